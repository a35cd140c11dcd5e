"""What the names in a recipe stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heed.errors import UserError
from heed.models.loading import load_policy, load_reward_model
from heed.models.scalar_model import new_scalar_model
from heed.pipeline import sources
from heed.records import Prompt, Rollout
from heed.rewards.model import ModelReward


def test_a_true_preference_may_give_a_number_or_a_mapping_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "gold.py").write_text(
        "def number(prompt, response):\n    return len(response)\n"
        "def mapping(prompt, response):\n    return {'utility': 2.0, 'helpful': 1.0}\n"
        "def text(prompt, response):\n    return 'good'\n"
    )

    def judge(name: str) -> object:
        return sources.load_gold(f"{tmp_path}/gold.py:{name}", max_length=32)(Prompt("a"), "bcd")

    assert judge("number") == {"utility": 3.0}
    assert judge("mapping") == {"utility": 2.0, "helpful": 1.0}
    with pytest.raises(UserError, match="returned 'good'; expected a number, or a mapping that holds utility"):
        judge("text")
    with pytest.raises(UserError, match="no function 'absent' in"):
        judge("absent")


def test_a_response_cut_at_the_limit_is_scored_as_if_it_ended_there(tiny_model: Path) -> None:
    policy = load_policy(tiny_model, device="cpu")
    model = new_scalar_model(policy, "reward", seed=0)
    renderer = sources.make_renderer(policy, 32)
    reward = ModelReward(model)
    prompt, text = Prompt("red green"), "blue one"
    ids = renderer.encode_prompt(prompt)
    whole = renderer.encode(prompt, text).ids[len(ids) :]
    ended = Rollout(prompt, ids, whole, (0.0,) * len(whole), text, "stop")
    cut = Rollout(prompt, ids, whole[:-1], (0.0,) * (len(whole) - 1), text, "length")
    assert reward([cut]) != reward([ended])
    assert torch.equal(sources.ending(reward, renderer)([cut, ended]), reward([ended, ended]))


def test_a_reward_model_can_stand_in_for_the_true_preference(tiny_model: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny_model, device="cpu")
    new_scalar_model(policy, "reward", seed=0).save(tmp_path / "rm")
    gold = sources.load_gold(str(tmp_path / "rm"), max_length=32, device="cpu")
    model = load_reward_model(tmp_path / "rm", device="cpu")
    renderer = sources.make_renderer(policy, 32)
    prompt, text = Prompt("red green"), "blue one"
    sequence = renderer.encode(prompt, text)
    ids = sequence.ids[:2], sequence.ids[2:]
    expected = ModelReward(model)([Rollout(prompt, *ids, (0.0,) * len(ids[1]), text, "stop")])
    assert gold(prompt, text)["utility"] == pytest.approx(float(expected))


def test_an_answer_longer_than_the_context_is_a_fault(tiny_model: Path) -> None:
    policy = load_policy(tiny_model, device="cpu")
    with pytest.raises(UserError, match="max_new_tokens is 64; expected fewer than the 64 tokens of prompt and response"):
        sources.make_renderer(policy, 1024, 64)
    assert sources.make_renderer(policy, 1024, 60).max_prompt_length == 4
