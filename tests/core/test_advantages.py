from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from heed.core.advantages import discounted_returns, gae, group_normalised, leave_one_out, shape_rewards
from tests import naive
from tests.core.strategies import Batch, batches, close, seeds

discounts = st.sampled_from([0.0, 0.3, 0.95, 1.0])


@given(batches(), discounts, discounts)
def test_gae_is_the_double_sum_over_the_tokens_that_count(batch: Batch, gamma: float, gae_lambda: float) -> None:
    """Masks with holes included, where the state is carried across; rewards and values off the mask are arbitrary."""
    rewards, values = batch.draw(), batch.draw()
    advantages, returns = gae(rewards, values, batch.mask, gamma, gae_lambda)
    rows = zip(rewards.tolist(), values.tolist(), batch.mask.tolist(), strict=True)
    expected = [naive.gae(r, v, mask, gamma, gae_lambda) for r, v, mask in rows]
    close(advantages, [row[0] for row in expected])
    close(returns, [row[1] for row in expected])


def test_gae_carries_the_state_across_a_tools_answer() -> None:
    """Two response tokens around a token that the policy did not write: the reward at the end reaches the first undiminished."""
    mask = torch.tensor([[False, True, False, True]])
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    advantages, _ = gae(rewards, torch.zeros(1, 4), mask, gamma=1.0, gae_lambda=0.5)
    assert advantages.tolist() == [[0, 0.5, 0, 1]]
    assert torch.equal(advantages[mask], gae(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2), mask[:, [1, 3]], 1.0, 0.5)[0][0])


@given(batches(), discounts)
def test_at_lambda_1_the_advantage_is_return_less_value_and_at_0_the_td_error(batch: Batch, gamma: float) -> None:
    rewards, values = batch.draw(), batch.draw()
    discounted = discounted_returns(rewards, batch.mask, gamma)
    advantages, returns = gae(rewards, values, batch.mask, gamma, gae_lambda=1.0)
    close(returns, discounted)
    close(advantages, torch.where(batch.mask, discounted - values, 0))
    close(discounted, [naive.gae(r, [0.0] * len(r), m, gamma, 1.0)[0] for r, m in zip(rewards.tolist(), batch.mask.tolist(), strict=True)])


@given(batches(), st.integers(1, 4))
def test_more_padding_changes_neither_rewards_nor_advantages(batch: Batch, extra: int) -> None:
    scores = torch.randn(len(batch.mask), generator=batch.generator, dtype=torch.float64)
    kl, values = batch.draw(), batch.draw()
    padding = (0, extra)
    rewards = shape_rewards(scores, kl, batch.mask, 0.1)
    padded = shape_rewards(scores, F.pad(kl, padding, value=9.0), F.pad(batch.mask, padding), 0.1)
    close(padded, F.pad(rewards, padding))
    advantages, returns = gae(rewards, values, batch.mask, 0.9, 0.8)
    padded_advantages, padded_returns = gae(padded, F.pad(values, padding, value=9.0), F.pad(batch.mask, padding), 0.9, 0.8)
    close(padded_advantages, F.pad(advantages, padding))
    close(padded_returns, F.pad(returns, padding))


def test_advantages_and_returns_carry_no_gradient_and_are_fp32_at_least() -> None:
    values = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    for x in gae(torch.ones(1, 2), values, torch.tensor([[False, True]]), 1.0, 1.0):
        assert not x.requires_grad
        assert x.dtype == torch.float32


@given(batches(), st.floats(0, 2))
def test_each_response_token_pays_its_kl_and_the_last_one_earns_the_score(batch: Batch, kl_coef: float) -> None:
    scores = torch.randn(len(batch.mask), generator=batch.generator, dtype=torch.float64)
    kl = batch.draw()
    found = shape_rewards(scores, kl, batch.mask, kl_coef)
    rows = zip(scores.tolist(), kl.tolist(), batch.mask.tolist(), strict=True)
    close(found, [naive.shaped_rewards(score, row, mask, kl_coef) for score, row, mask in rows])


def test_the_score_lands_on_the_end_of_sequence_token_not_on_padding_after_it() -> None:
    mask = torch.tensor([[False, True, True, False, False], [False, False, True, True, True]])
    rewards = shape_rewards(torch.tensor([5.0, 7.0]), torch.zeros(2, 5), mask, 0.1)
    assert rewards.tolist() == [[0, 0, 5, 0, 0], [0, 0, 0, 0, 7]]


def test_a_response_without_tokens_cannot_carry_a_score() -> None:
    with pytest.raises(ValueError, match="no response token"):
        shape_rewards(torch.zeros(2), torch.zeros(2, 2), torch.tensor([[False, True], [False, False]]), 0.1)


@given(seeds, st.integers(1, 4), st.integers(2, 6))
def test_baselines_use_their_own_group_only(seed: int, num_groups: int, group_size: int) -> None:
    scores = torch.randn(num_groups * group_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left_out, normalised = [], []
    for start in range(0, len(scores), group_size):
        group = scores[start : start + group_size].tolist()
        mean = sum(group) / group_size
        std = (sum((x - mean) ** 2 for x in group) / (group_size - 1)) ** 0.5
        for i, x in enumerate(group):
            others = group[:i] + group[i + 1 :]
            left_out.append(x - sum(others) / len(others))
            normalised.append((x - mean) / (std + 1e-4))
    close(leave_one_out(scores, group_size), left_out)
    close(group_normalised(scores, group_size), normalised)


def test_equal_scores_have_no_advantage() -> None:
    for score, size in ((10.1, 3), (123.4, 7), (300.3, 6), (1000.1, 12)):
        scores = torch.full((2 * size,), score)
        assert leave_one_out(scores, size).tolist() == [0] * len(scores)
        assert group_normalised(scores, size).tolist() == [0] * len(scores)


@pytest.mark.parametrize("baseline", [leave_one_out, group_normalised])
@pytest.mark.parametrize(("group_size", "reason"), [(1, "group of 1"), (0, "group of 0"), (4, "do not make groups")])
def test_a_group_baseline_over_one_sample_is_refused(baseline: Callable[[Tensor, int], Tensor], group_size: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        baseline(torch.ones(6), group_size)
