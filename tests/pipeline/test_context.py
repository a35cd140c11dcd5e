"""What a stage is given stands for what its inputs name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from heed.models.loading import load_policy
from heed.models.scalar_model import new_scalar_model
from heed.pipeline.recipe import load_recipe
from heed.pipeline.runner import run
from tests.pipeline.conftest import write_rows
from tests.tiny import WORDS, save_tiny_llama


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A reward model that has a tokenizer of its own."""
    policy = load_policy(save_tiny_llama(tmp_path / "foreign", words=WORDS[::-1]), device="cpu")
    new_scalar_model(policy, "reward", seed=0).save(tmp_path / "rm")
    return tmp_path / "rm"


@pytest.mark.parametrize(("length", "cut"), [(30, False), (31, True)])
def test_a_reward_model_of_another_tokenizer_reads_all_that_responses_leave_room_for(
    write_recipe: Callable[..., Path], tmp_path: Path, foreign: Path, length: int, cut: bool
) -> None:
    write_rows(tmp_path / "long.jsonl", [{"prompt": " ".join([word] * length)} for word in WORDS])
    stages = "[evaluate: {max_new_tokens: 2, responses_per_prompt: 1, best_of_n: 1}]"
    recipe = write_recipe(data=f"{{eval_prompts: {tmp_path}/long.jsonl}}", gold="", reward=str(foreign), stages=stages)
    said: list[str] = []
    run(load_recipe(recipe), said.append, display=False)
    told = [line.strip() for line in said if "cut to" in line]
    counted = f"{len(WORDS)} of {len(WORDS)} prompts cut to their last 30 tokens"
    assert told == ([counted, f"for the reward model, {counted}"] if cut else [])


def test_a_reward_model_that_sees_no_more_than_a_response_may_hold_reads_what_it_can(
    write_recipe: Callable[..., Path], foreign: Path
) -> None:
    stages = "[evaluate: {max_new_tokens: 64, responses_per_prompt: 1, best_of_n: 1, num_prompts: 2}]"
    model = save_tiny_llama(foreign.parent / "long")
    config = model / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 64', '"max_position_embeddings": 128'))
    recipe = write_recipe(model=str(model), gold="", reward=str(foreign), max_length="128", stages=stages)
    assert run(load_recipe(recipe), display=False)["policies"]["base"]["proxy_reward"] is not None
