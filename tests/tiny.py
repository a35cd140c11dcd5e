"""A tiny random Llama with a word-level tokenizer, small enough to train in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>")
WORDS = ("alpha", "beta", "gamma", "delta", "red", "green", "blue", "one", "two", "three", "good", "bad")


def save_tiny_llama(folder: Path, *, words: Sequence[str] = WORDS, initializer_range: float = 0.2, seed: int = 0) -> Path:
    """Write model and tokenizer as a Hugging Face folder; wide first weights make its choices far from uniform."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=initializer_range,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
