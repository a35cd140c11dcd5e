"""What both sides of a comparison are given: weights on disk, and prompts and preferences from human data."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from results import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig
from transformers.utils.logging import disable_progress_bar

from heed.data.readers import read_preferences
from heed.data.render import Renderer
from heed.models import LanguageModel, load_policy, new_scalar_model
from heed.records import PreferencePair, Prompt, Ranking

disable_progress_bar()
SHARED = ROOT.parent / "shared"
STORIES = SHARED / "models" / "stories260k"
PAIRS = SHARED / "data" / "hh-harmless-dev.jsonl.gz"
FOLDER = ROOT / "build" / "bench"
MAX_LENGTH = 1024
"""Longest prompt and response; longer pairs are left out, as TRL does with them."""

ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
LLAMAS: dict[str, dict[str, Any]] = {
    "7m": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 672, "vocab_size": 8192},
    "30m": {"hidden_size": 320, "num_hidden_layers": 8, "num_attention_heads": 5, "intermediate_size": 864, "vocab_size": 32000},
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
}
"""7.3M, 30.4M and 1.24B parameters."""
SHAPES = ("stories260k", "7m", "30m", "gpt2")
"""`gpt2` is the shape of GPT-2 small, 124M; all but `stories260k` have random weights and its tokenizer."""


def shape_config(shape: str, vocab_size: int | None = None) -> LlamaConfig | GPT2Config:
    """The configuration of a random model, with another vocabulary where one is given."""
    asked: dict[str, Any] = {"vocab_size": vocab_size} if vocab_size else {}
    if shape == "gpt2":
        return GPT2Config(**ENDS, **asked)
    sizes = LLAMAS[shape] | asked
    sizes.setdefault("num_key_value_heads", sizes["num_attention_heads"])
    return LlamaConfig(**ENDS, **sizes, max_position_embeddings=2048)


def model_folder(shape: str, vocab_size: int | None = None) -> Path:
    """A folder with weights and tokenizer that both sides load; made once, the same on every machine."""
    _need(STORIES)
    if shape == "stories260k":
        return STORIES
    folder = FOLDER / (shape if vocab_size is None else f"{shape}-{vocab_size}")
    if not (folder / "tokenizer.json").exists():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(shape_config(shape, vocab_size), dtype=torch.float32)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(STORIES, model_max_length=model.config.max_position_embeddings).save_pretrained(folder)
    return folder


def reward_model_folder(shape: str, vocab_size: int | None = None) -> Path:
    """A reward model with the weights of `model_folder` and one random head, as `AutoModelForSequenceClassification` loads it."""
    folder = FOLDER / f"{model_folder(shape, vocab_size).name}-reward"
    if not (folder / "tokenizer.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        new_scalar_model(load_policy(model_folder(shape, vocab_size)), "reward", 0).save(folder)
    return folder


def renderer(tokenizer: Any, max_prompt_length: int | None = None, max_length: int = MAX_LENGTH) -> Renderer:
    """Prompts and responses as ids, in heed and, from these ids, in its peers."""
    return Renderer(tokenizer, eos_ids=(1, 2), max_length=max_length, max_prompt_length=max_prompt_length)


def policy_of(shape: str, vocab_size: int | None = None, **options: Any) -> LanguageModel:
    """heed's policy of a shape."""
    return load_policy(model_folder(shape, vocab_size), device="cpu", **options)


def hh_pairs(tokenizer: Any, count: int) -> list[PreferencePair]:
    """Human preference pairs with nothing cut."""
    whole = renderer(tokenizer, MAX_LENGTH - 1, 2**14)
    found: list[PreferencePair] = []
    for pair in _all_pairs():
        lengths = [len(whole.encode(pair.prompt, response).ids) for response in (pair.chosen, pair.rejected)]
        if max(lengths) <= MAX_LENGTH:
            found.append(pair)
        if len(found) == count:
            return found
    raise ValueError(f"{PAIRS} has {len(found)} pairs of at most {MAX_LENGTH} tokens, not {count}")


def hh_rankings(tokenizer: Any, count: int, size: int) -> list[Ranking]:
    """Rankings of `size` responses: a human prompt with its own two responses and those to the prompts that follow it.

    Lengths are as real as those of pairs; who wins is made up, which no clock notices. Prompts are short enough for the
    longest of the responses.
    """
    own = hh_pairs(tokenizer, 4 * count * size)
    whole = renderer(tokenizer, MAX_LENGTH - 1, 2**14)
    found: list[Ranking] = []
    for start in range(len(own)):
        group = own[start : start + -(-size // 2)]
        responses = [response for pair in group for response in (pair.chosen, pair.rejected)][:size]
        longest = max(len(whole.encode(group[0].prompt, response).ids) for response in responses)
        if longest <= MAX_LENGTH and len(set(responses)) == size:
            found.append(Ranking(group[0].prompt, tuple(responses), tuple(range(1, size + 1))))
        if len(found) == count:
            return found
    raise ValueError(f"{PAIRS} gives {len(found)} rankings, not {count}")


def hh_prompts(tokenizer: Any, count: int, *, first_turn: bool = False, min_length: int = 0, max_length: int = MAX_LENGTH) -> list[Prompt]:
    """Distinct human prompts of `min_length` to `max_length` tokens; with `first_turn` what people opened with."""
    whole = renderer(tokenizer, 2**13, 2**14)
    prompts = [pair.prompt for pair in _all_pairs()]
    if first_turn:
        turn = "\n\nAssistant:"
        prompts = [Prompt(str(prompt.text).split(turn)[0] + turn) for prompt in prompts]
    found: list[Prompt] = []
    for prompt in dict.fromkeys(prompts):
        if min_length <= len(whole.encode_prompt(prompt)) <= max_length:
            found.append(prompt)
        if len(found) == count:
            return found
    raise ValueError(f"{PAIRS} has {len(found)} prompts of {min_length} to {max_length} tokens, not {count}")


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Prompts as `generate` takes them."""
    width = max(len(ids) for ids in prompts)
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def _all_pairs() -> list[PreferencePair]:
    _need(PAIRS)
    return [record for record in read_preferences(PAIRS).records if isinstance(record, PreferencePair)]


def _need(path: Path) -> None:
    if not path.exists():
        sys.exit(f"skipped: {path} is not there; the benchmarks need the model and the preference data beside the project")
