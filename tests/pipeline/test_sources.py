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
        "def three(prompt, response, more):\n    return 1.0\n"
    )

    def judge(name: str) -> object:
        return sources.load_gold(f"{tmp_path}/gold.py:{name}", max_length=32)(Prompt("a"), "bcd")

    assert judge("number") == {"utility": 3.0}
    assert judge("mapping") == {"utility": 2.0, "helpful": 1.0}
    with pytest.raises(UserError, match=r"returned 'good' for 'bcd' to prompt \w+; expected a number, or a mapping that holds utility"):
        judge("text")
    with pytest.raises(UserError, match=r"takes \(prompt, response, more\); expected \(prompt, response\)"):
        judge("three")
    with pytest.raises(UserError, match="no function 'absent' in"):
        judge("absent")


def said_by_gold(folder: Path, result: str) -> object:
    (folder / "said.py").write_text(f"import numpy, torch\ndef gold(prompt, response):\n    return {result}\n")
    return sources.load_gold(f"{folder}/said.py:gold", max_length=32)(Prompt("a"), "bcd")


@pytest.mark.parametrize(
    ("result", "means"),
    [
        ("numpy.float32(2)", {"utility": 2.0}),
        ("torch.tensor([2.0])", {"utility": 2.0}),
        ("{'utility': torch.tensor(2), 'helpful': True}", {"utility": 2.0, "helpful": 1.0}),
        ("{'utility': 1.0, 'harmful': None}", {"utility": 1.0}),
    ],
)
def test_what_a_true_preference_says_is_taken_as_numbers(tmp_path: Path, result: str, means: dict[str, float]) -> None:
    found = said_by_gold(tmp_path, result)
    assert found == means
    assert isinstance(found, dict)
    assert {type(number) for number in found.values()} == {float}


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ("None", "returned None for"),
        ("{'utility': None}", "returned {'utility': None} for"),
        ("{'helpful': 1.0}", "returned {'helpful': 1.0} for"),
        ("{'utility': 'good'}", "gave 'good' as utility of"),
        ("float('nan')", "gave nan as utility of"),
        ("10**400", "gave inf as utility of"),
        ("{'utility': 1.0, 'helpful': float('inf')}", "gave inf as helpful of"),
        ("{'utility': 1.0, 'helpful': torch.ones(2)}", r"gave tensor\(\[1., 1.\]\) as helpful of"),
    ],
)
def test_a_true_preference_that_says_no_finite_number_is_told_with_the_response(tmp_path: Path, result: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"said\.py:gold {told} 'bcd' to prompt \w+; expected a"):
        said_by_gold(tmp_path, result)


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
