"""A tiny random policy and rollouts whose numbers are chosen by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from heed.evaluation import GradedResponse
from heed.models.language_model import LanguageModel
from heed.models.loading import load_policy
from heed.records import Prompt

WORDS = ["<pad>", "<s>", "</s>", *[f"w{i}" for i in range(3, 40)]]


@pytest.fixture(scope="session")
def make_policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], LanguageModel]:
    """A random policy; another seed gives other weights."""

    def make(seed: int) -> LanguageModel:
        folder: Path = tmp_path_factory.mktemp("tiny")
        raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
        raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>").save_pretrained(folder)
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        return load_policy(folder, device="cpu")

    return make


@pytest.fixture
def graded() -> Callable[..., GradedResponse]:
    """A graded response, of which a test gives what it is about."""

    def make(prompt: str, utility: float | None = 0.0, *, text: str = "a", kind: str | None = None, **known: object) -> GradedResponse:
        values: dict[str, object] = {
            "policy": "p",
            "prompt": Prompt(prompt, {"kind": kind} if kind else {}),
            "text": text,
            "num_tokens": 3,
            "ended": True,
            "utility": utility,
            "attributes": {},
            "kl": 0.0,
            "kl_k1": 0.0,
        }
        return GradedResponse(**(values | known))  # pyright: ignore[reportArgumentType]

    return make
