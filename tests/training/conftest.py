"""A tiny random model with a word-level tokenizer, small enough to train in a test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from heed.data.render import Renderer
from heed.models.language_model import LanguageModel
from heed.models.loading import load_policy

WORDS = ["<pad>", "<s>", "</s>", *["alpha", "beta", "gamma", "delta", "red", "green", "blue", "one", "two", "three", "good", "bad"]]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def policy(tiny_folder: Path) -> LanguageModel:
    return load_policy(tiny_folder, device="cpu")


@pytest.fixture
def renderer(policy: LanguageModel) -> Renderer:
    return Renderer(policy.tokenizer, eos_ids=policy.eos_ids, max_length=32)
