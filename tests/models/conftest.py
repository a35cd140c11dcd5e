"""Tiny random models of several families, with a tokenizer of numbered words, saved as model folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from heed.models import TokenBatch, collate
from heed.records import TokenSequence

VOCABULARY = 100
END = 2
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "initializer_range": 0.3,
}
GROUPED: dict[str, Any] = SIZES | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llama": (LlamaConfig, GROUPED),
    "llama-tied": (LlamaConfig, GROUPED | {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, GROUPED),
    "qwen3": (Qwen3Config, GROUPED),
    "gpt2": (GPT2Config, SIZES | {"n_inner": 64, "resid_pdrop": 0.5, "attn_pdrop": 0.5}),
    "gpt_neox": (GPTNeoXConfig, SIZES | {"intermediate_size": 64, "hidden_dropout": 0.5}),
}
OTHERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "mixtral": (MixtralConfig, GROUPED | {"num_local_experts": 4}),
    "qwen3_moe": (Qwen3MoeConfig, GROUPED | {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": (Olmo2Config, {name: value for name, value in GROUPED.items() if name != "head_dim"}),
}
REFUSED: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "gemma2": (Gemma2Config, GROUPED),
    "opt": (OPTConfig, SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
}


def word_tokenizer(*, unk: bool = True, pad: str | None = "</s>") -> PreTrainedTokenizerFast:
    words = ["<unk>" if unk else "w0", "<s>", "</s>", *[f"w{i}" for i in range(3, VOCABULARY)]]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"bos_token": "<s>", "eos_token": "</s>"} | ({"unk_token": "<unk>"} if unk else {}) | ({"pad_token": pad} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a random causal language model of a family; the same arguments give the same folder."""

    @cache
    def make(family: str, *, unk: bool = True, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(len(family))
        kind, sizes = (FAMILIES | OTHERS | REFUSED)[family]
        tokens = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": END}
        AutoModelForCausalLM.from_config(kind(**(sizes | tokens | changes))).save_pretrained(folder)
        word_tokenizer(unk=unk).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, make_folder: Callable[..., Path]) -> Path:
    """One folder of every family."""
    return make_folder(request.param)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder reward model."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes: dict[str, Any] = SIZES | {"vocab_size": VOCABULARY, "intermediate_size": 64, "num_labels": 1, "pad_token_id": 0}
    BertForSequenceClassification(BertConfig(**sizes)).save_pretrained(folder)
    word_tokenizer(pad="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture
def batch() -> TokenBatch:
    """Rows of unequal length: one ends with the end token, which is also the padding; one was cut off; one repeats the end token."""
    rows = [
        ((1, 5, 6, 7, 8, 9, END), 3),
        ((1, 11, 12, 13), 2),
        ((1, END, 14, 15, END), 3),
    ]
    return collate([TokenSequence(ids, tuple(t >= start for t in range(len(ids)))) for ids, start in rows], pad_id=END)


@pytest.fixture
def rewrite_config() -> Callable[..., None]:
    """Change values in a folder's `config.json`."""

    def rewrite(folder: Path, **changes: Any) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return rewrite
