from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from heed.core import losses
from tests import naive
from tests.core.strategies import Batch, batches, close, seeds

COUNT = 7.0
"""A global count that is not the batch's own: no loss may divide by anything else."""

TokenLoss = Callable[[list[Tensor], Tensor], Tensor]
TOKEN_LOSSES: dict[str, TokenLoss] = {
    "sft": lambda x, mask: losses.sft_loss(x[0], mask, COUNT),
    "reinforce": lambda x, mask: losses.reinforce_loss(x[0], x[1], mask, COUNT),
    "ppo_policy": lambda x, mask: losses.ppo_policy_loss(x[0], x[1], x[2], mask, 0.2, COUNT)[0],
    "ppo_value": lambda x, mask: losses.ppo_value_loss(x[0], x[1], x[2], mask, 0.2, COUNT),
    "ppo_value_unclipped": lambda x, mask: losses.ppo_value_loss(x[0], x[1], x[2], mask, None, COUNT),
    "entropy": lambda x, mask: losses.entropy_loss(x[0], mask, COUNT),
}
NAIVE: dict[str, Callable[..., float]] = {
    "sft": lambda a, b, c, mask: -sum(naive.counted(a, mask)),
    "reinforce": lambda a, b, c, mask: -sum(x * y for x, y in zip(naive.counted(a, mask), naive.counted(b, mask), strict=True)),
    "ppo_policy": lambda a, b, c, mask: naive.ppo_policy(a, b, c, mask, 0.2),
    "ppo_value": lambda a, b, c, mask: naive.ppo_value(a, b, c, mask, 0.2),
    "ppo_value_unclipped": lambda a, b, c, mask: naive.ppo_value(a, b, c, mask, None),
    "entropy": lambda a, b, c, mask: -sum(naive.counted(a, mask)),
}
every_token_loss = pytest.mark.parametrize("name", TOKEN_LOSSES)


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss, leaf)[0]


@every_token_loss
@given(batch=batches())
def test_token_losses_are_sums_over_sequences_divided_by_the_global_count(name: str, batch: Batch) -> None:
    x = [batch.draw() for _ in range(3)]
    rows = zip(*(tensor.tolist() for tensor in x), batch.mask.tolist(), strict=True)
    close(TOKEN_LOSSES[name](x, batch.mask), sum(NAIVE[name](*row) for row in rows) / COUNT)


@every_token_loss
@given(batch=batches(), extra=st.integers(1, 3))
def test_neither_padding_nor_what_lies_off_the_mask_changes_a_loss_or_its_gradient(name: str, batch: Batch, extra: int) -> None:
    """One polarity for all: what the mask calls False never matters, what it calls True does."""
    x = [batch.draw() for _ in range(3)]
    x[0].requires_grad_()
    loss = TOKEN_LOSSES[name](x, batch.mask)
    grad = gradient(loss, x[0])
    other = [F.pad(torch.where(batch.mask, tensor.detach(), 5.0), (0, extra), value=-3.0) for tensor in x]
    other[0].requires_grad_()
    padded = TOKEN_LOSSES[name](other, F.pad(batch.mask, (0, extra)))
    close(padded, loss)
    close(gradient(padded, other[0]), F.pad(grad, (0, extra)))
    assert (grad[~batch.mask] == 0).all()
    if name not in ("ppo_policy", "ppo_value"):  # which are flat beyond their clip
        assert (grad[batch.mask] != 0).all()


@every_token_loss
@given(batch=batches())
def test_micro_batches_add_up_to_the_batch(name: str, batch: Batch) -> None:
    x = [batch.draw() for _ in range(3)]
    parts = [TOKEN_LOSSES[name]([tensor[b : b + 1] for tensor in x], batch.mask[b : b + 1]) for b in range(len(batch.mask))]
    close(torch.stack(parts).sum(), TOKEN_LOSSES[name](x, batch.mask))


@every_token_loss
def test_an_empty_mask_costs_nothing(name: str) -> None:
    x = [torch.full((1, 3), float("nan")) for _ in range(3)]
    assert TOKEN_LOSSES[name](x, torch.zeros(1, 3, dtype=torch.bool)).item() == 0


@given(batches())
def test_ppo_at_ratio_1_has_the_gradient_of_reinforce(batch: Batch) -> None:
    logprobs, advantages = batch.draw().requires_grad_(), batch.draw()
    loss, stats = losses.ppo_policy_loss(logprobs, logprobs.detach(), advantages, batch.mask, 0.2, COUNT)
    close(gradient(loss, logprobs), gradient(losses.reinforce_loss(logprobs, advantages, batch.mask, COUNT), logprobs))
    assert (stats.clipped.item(), stats.ratio.item(), stats.approx_kl.item()) == (0, batch.mask.sum().item(), 0)


@given(batches())
def test_ppo_statistics_are_sums_over_the_counted_tokens(batch: Batch) -> None:
    logprobs, old, advantages = batch.draw(), batch.draw(), batch.draw()
    _, stats = losses.ppo_policy_loss(logprobs.requires_grad_(), old, advantages, batch.mask, 0.2, COUNT)
    tokens = [(logprobs[b, t].item() - old[b, t].item(), advantages[b, t].item()) for b, t in batch.mask.nonzero().tolist()]
    assert stats.clipped.item() == sum((a > 0 and r > math.log(1.2)) or (a < 0 and r < math.log(0.8)) for r, a in tokens)
    close(stats.ratio, sum(math.exp(r) for r, _ in tokens))
    close(stats.approx_kl, sum(math.exp(r) - 1 - r for r, _ in tokens))  # fails where padding adds its own
    assert not any(stat.requires_grad for stat in stats)


def test_ppo_stops_pushing_beyond_the_clip_but_always_pulls_back() -> None:
    logprobs = torch.tensor([[1.0, 1.0, -1.0, -1.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss, stats = losses.ppo_policy_loss(logprobs, torch.zeros(1, 4), advantages, torch.ones(1, 4, dtype=torch.bool), 0.2, 4)
    assert (gradient(loss, logprobs) != 0).tolist() == [[False, True, True, False]]
    assert stats.clipped.item() == 2


def test_ppo_survives_one_absurd_token() -> None:
    logprobs = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    loss, stats = losses.ppo_policy_loss(logprobs, torch.zeros(1, 2), -torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), 0.2, 2)
    assert loss.isfinite()
    assert gradient(loss, logprobs).isfinite().all()
    assert all(stat.isfinite() for stat in stats)


numbers = st.floats(-8, 8)


@given(numbers, numbers, st.floats(0, 1), st.floats(0, 3), st.floats(0, 5))
def test_pairwise_loss_is_the_bradley_terry_likelihood(chosen: float, rejected: float, label: float, margin: float, weight: float) -> None:
    c, r, y, m, w = (torch.tensor([x], dtype=torch.float64) for x in (chosen, rejected, label, margin, weight))
    close(losses.pairwise_loss(c, r, num_pairs=COUNT), naive.pair_nll(chosen, rejected) / COUNT)
    found = losses.pairwise_loss(c, r, labels=y, margins=m, weights=w, num_pairs=COUNT)
    close(found, weight * naive.pair_nll(chosen, rejected, label, margin) / COUNT)


def test_a_tie_is_indifferent_to_order_and_best_at_equal_scores() -> None:
    scores, half = torch.tensor([0.7, -1.1], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    close(losses.pairwise_loss(scores, -scores, labels=half, num_pairs=2), losses.pairwise_loss(-scores, scores, labels=half, num_pairs=2))
    equal = torch.zeros(2, requires_grad=True)
    assert gradient(losses.pairwise_loss(equal, torch.zeros(2), labels=half.float(), num_pairs=2), equal).tolist() == [0, 0]


def test_scores_far_apart_make_no_infinity() -> None:
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = losses.pairwise_loss(far, torch.zeros(2), labels=torch.tensor([1.0, 0.0]), num_pairs=2)
    assert loss.isfinite()
    assert gradient(loss, far).isfinite().all()


@given(st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=5), min_size=1, max_size=3), seeds)
def test_kwise_loss_is_the_mean_over_the_pairs_of_each_ranking(rankings: list[list[int]], seed: int) -> None:
    scores = torch.randn(sum(map(len, rankings)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    better, worse, labels, per_ranking, expected, first = [], [], [], [], 0.0, 0
    for ranks in rankings:
        size = len(ranks)
        expected += naive.ranking_nll(scores[first : first + size].tolist(), ranks)
        for i in range(size):
            for j in range(i):
                b, w = (i, j) if ranks[i] < ranks[j] else (j, i)
                better.append(first + b)
                worse.append(first + w)
                labels.append(0.5 if ranks[i] == ranks[j] else 1.0)
                per_ranking.append(size * (size - 1) / 2)
        first += size
    indices = torch.tensor(better), torch.tensor(worse)
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (labels, [1.0] * len(labels), per_ranking))
    close(losses.kwise_loss(scores, *indices, *numbers, num_rankings=len(rankings)), expected / len(rankings))


@given(numbers, numbers, st.floats(0, 5))
def test_a_ranking_of_two_is_bradley_terry(chosen: float, rejected: float, weight: float) -> None:
    scores, one, w = torch.tensor([rejected, chosen]).double(), torch.ones(1, dtype=torch.float64), torch.tensor([weight]).double()
    found = losses.kwise_loss(scores, torch.tensor([1]), torch.tensor([0]), one, w, one, num_rankings=COUNT)
    close(found, losses.pairwise_loss(scores[1:], scores[:1], weights=w, num_pairs=COUNT))


@given(seeds, st.floats(0.01, 2))
def test_dpo_is_log_2_where_the_policy_is_the_reference(seed: int, beta: float) -> None:
    chosen, rejected = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    loss, margins = losses.dpo_loss(chosen.requires_grad_(), rejected, chosen.detach(), rejected, beta, num_pairs=4)
    close(loss, math.log(2))
    assert margins.tolist() == [0] * 4
    close(gradient(loss, chosen), [-beta / 8] * 4)


@given(seeds, st.floats(0.01, 2))
def test_dpo_is_the_likelihood_of_the_implied_rewards(seed: int, beta: float) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels, weights = torch.tensor([1.0, 0.5, 0.9]).double(), torch.tensor([1.0, 2.0, 0.0]).double()
    chosen, rejected, ref_chosen, ref_rejected = x
    loss, margins = losses.dpo_loss(
        chosen.requires_grad_(), rejected, ref_chosen, ref_rejected, beta, labels=labels, weights=weights, num_pairs=COUNT
    )
    expected, differences = 0.0, []
    for (c, r, rc, rr), label, weight in zip(x.detach().T.tolist(), labels.tolist(), weights.tolist(), strict=True):
        differences.append(beta * ((c - rc) - (r - rr)))
        expected += weight * naive.pair_nll(differences[-1], 0.0, label)
    close(loss, expected / COUNT)
    close(margins, differences)
    assert not margins.requires_grad


def test_pairs_split_into_micro_batches_add_up() -> None:
    chosen, rejected = torch.randn(2, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parts = [losses.pairwise_loss(chosen[i : i + 2], rejected[i : i + 2], num_pairs=6) for i in (0, 2, 4)]
    close(torch.stack(parts).sum(), losses.pairwise_loss(chosen, rejected, num_pairs=6))
