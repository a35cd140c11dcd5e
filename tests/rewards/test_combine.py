from __future__ import annotations

import pytest
import torch

from heed.errors import UserError
from heed.records import Prompt, Rollout
from heed.rewards import Reward, length_target, regex, weighted_sum

ROLLOUTS = [Rollout(Prompt("p"), (1,), (2,), (0.0,), text, "stop") for text in ("a b", "a b c d", "no")]


def constant(*scores: float) -> Reward:
    return lambda rollouts: torch.tensor(scores, dtype=torch.float64, requires_grad=True)


def test_the_sum_weighs_its_parts():
    scores = weighted_sum([(2.0, length_target(2)), (-0.5, regex("a")), (0.0, constant(5, 6, 7))])(ROLLOUTS)
    assert torch.equal(scores, torch.tensor([2 * 1 - 0.5, 2 * 0.5 - 0.5, 2 * 0.5]))
    assert scores.dtype == torch.float32
    assert not scores.requires_grad


def test_sums_of_sums_are_sums():
    inner = weighted_sum([(1.0, constant(1, 2, 3)), (1.0, constant(10, 20, 30))])
    assert weighted_sum([(2.0, inner), (-1.0, inner)])(ROLLOUTS).tolist() == [11, 22, 33]


def test_what_is_not_finite_is_traced_to_its_part_and_response():
    with pytest.raises(UserError, match=r"part 2 of the weighted reward gave nan to response 1 of 3, 'a b c d' to prompt \w+;"):
        weighted_sum([(1.0, regex("a")), (0.0, constant(0, float("nan"), 0))])(ROLLOUTS)
    with pytest.raises(UserError, match="the weighted reward gave inf to response 2"):
        weighted_sum([(1e30, constant(0, 0, 1e30))])(ROLLOUTS)


def test_a_part_must_score_every_response():
    with pytest.raises(UserError, match=r"part 1 of the weighted reward gave scores of shape \(2,\); expected one for each of 3 responses"):
        weighted_sum([(1.0, constant(1, 2))])(ROLLOUTS)


def test_no_parts_are_no_reward():
    with pytest.raises(UserError, match="one weighted reward or more"):
        weighted_sum([])
