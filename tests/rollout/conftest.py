"""Tiny random models of each family, with a tokenizer of numbered words."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from heed.data.render import Renderer
from heed.models.backbone import LoRAConfig
from heed.models.language_model import LanguageModel
from heed.models.loading import load_policy
from heed.records import Prompt
from heed.rollout.local import LocalEngine

CONTEXT = 48
# Rotary embeddings with one scale up to a length and another beyond it, and those with a scale by the length met so far.
LONGROPE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "original_max_position_embeddings": 30,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gpt2": GPT2Config,
    "gpt_neox": GPTNeoXConfig,
    "mistral": MistralConfig,
    "bloom": BloomConfig,
    "longrope": partial(LlamaConfig, rope_parameters=LONGROPE | {"rope_theta": 1e4}),
    "dynamic": partial(LlamaConfig, rope_parameters=DYNAMIC | {"rope_theta": 1e4}),
}


def tiny_model(family: str, vocab_size: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if family == "gpt2":
        sizes["n_inner"] = sizes.pop("intermediate_size")
    elif family != "gpt_neox":
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    # Weights well above the usual ones: the next token then depends on all tokens before it.
    settings = {"max_position_embeddings": CONTEXT, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return AutoModelForCausalLM.from_config(FAMILIES[family](vocab_size=vocab_size, **(sizes | settings | changes)))


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "</s>", *[f"w{i}" for i in range(3, vocab_size)]]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def make_policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LanguageModel]:
    """A policy of a family; the same arguments give the same object."""

    @cache
    def make(family: str, vocab_size: int = 100, lora: LoRAConfig | None = None, device: str = "cpu", **changes: Any) -> LanguageModel:
        folder: Path = tmp_path_factory.mktemp(family)
        tiny_model(family, vocab_size, **changes).save_pretrained(folder)
        word_tokenizer(vocab_size).save_pretrained(folder)
        policy = load_policy(folder, lora=lora, device=device)
        policy.tokenizer = word_tokenizer(vocab_size)  # transformers insists on a Qwen2 having Qwen2's own
        return policy

    return make


@pytest.fixture
def policy(make_policy: Callable[..., LanguageModel]) -> LanguageModel:
    return make_policy("llama")


@pytest.fixture
def make_engine() -> Callable[..., LocalEngine]:
    def make(policy: LanguageModel, seed: int = 0, max_rows: int | None = None, cache_bytes: int | None = None) -> LocalEngine:
        renderer = Renderer(policy.tokenizer, eos_ids=policy.eos_ids, max_length=64, max_prompt_length=63)
        return LocalEngine(policy, renderer, seed=seed, max_rows=max_rows, cache_bytes=cache_bytes)

    return make


@pytest.fixture
def prompts() -> list[Prompt]:
    """Prompts of 3, 17, 1, 8, 5 and 11 words."""
    return [Prompt(" ".join(f"w{3 + (7 * i + length) % 97}" for i in range(length))) for length in (3, 17, 1, 8, 5, 11)]
