"""Inverse-CDF sampling and truncation against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heed.records import Sampling
from heed.rollout.sampling import inverse_cdf, row_uniforms, sample, truncate

LAST_UNIFORM = 1 - 2**-53


def naive_inverse_cdf(probabilities: list[float], uniform: float) -> int:
    total, reached = sum(probabilities), 0.0
    for token, p in enumerate(probabilities):
        reached += p
        if reached > uniform * total:
            return token
    raise AssertionError("the total was never reached")


def naive_truncate(probabilities: list[float], top_k: int, top_p: float) -> list[float]:
    kept: list[int] = []
    order = sorted(range(len(probabilities)), key=lambda t: -probabilities[t])[: top_k or None]
    total = sum(probabilities[t] for t in order)
    for token in order:
        if sum(probabilities[t] for t in kept) / total < top_p:
            kept.append(token)
    mass = sum(probabilities[t] for t in kept)
    return [p / mass if t in kept else 0.0 for t, p in enumerate(probabilities)]


@settings(deadline=None, max_examples=60)
@given(size=st.sampled_from([1, 2, 63, 64, 65, 200]), seed=st.integers(0, 10**6), uniform=st.floats(0, LAST_UNIFORM))
def test_inverse_cdf_finds_the_token_that_a_loop_finds(size: int, seed: int, uniform: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Multiples of 1/1024, many of them 0: every sum is exact, in whatever order.
    probabilities = torch.randint(0, 8, (1, size), generator=generator).clamp(max=5).sub(2).clamp(min=0) / 1024
    probabilities[0, seed % size] = 1 / 1024
    token = int(inverse_cdf(probabilities, torch.tensor([uniform], dtype=torch.float64)))
    assert probabilities[0, token] > 0
    assert token == naive_inverse_cdf(probabilities[0].tolist(), uniform)


def test_only_possible_tokens_are_drawn_at_the_edges() -> None:
    for size in (5, 64, 300):
        probabilities = torch.zeros(3, size)
        probabilities[0, 0] = probabilities[1, size - 1] = probabilities[2, size // 2] = 0.1
        for uniform in (0.0, LAST_UNIFORM):
            tokens = inverse_cdf(probabilities, torch.full((3,), uniform, dtype=torch.float64))
            assert tokens.tolist() == [0, size - 1, size // 2]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (1, 1.0), (5, 1.0), (500, 1.0), (0, 0.5), (0, 1e-9), (7, 0.8)])
def test_truncation_keeps_what_a_loop_keeps(top_k: int, top_p: float) -> None:
    probabilities = (3 * torch.randn(4, 30, generator=torch.Generator().manual_seed(1))).softmax(-1)
    expected = [naive_truncate(row, top_k, top_p) for row in probabilities.tolist()]
    torch.testing.assert_close(truncate(probabilities, top_k, top_p), torch.tensor(expected), atol=1e-6, rtol=0)


def test_the_logprob_is_that_of_the_distribution_drawn_from() -> None:
    logits = 2 * torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
    uniforms = torch.rand(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for sampling in (Sampling(temperature=0.5), Sampling(top_k=3), Sampling(temperature=2.0, top_p=0.6)):
        tokens, logprobs = sample(logits, uniforms, sampling)
        probabilities = (logits / sampling.temperature).softmax(-1).tolist()
        kept = [naive_truncate(row, sampling.top_k, sampling.top_p)[t] for row, t in zip(probabilities, tokens.tolist(), strict=True)]
        torch.testing.assert_close(logprobs, torch.tensor(kept).log(), atol=1e-5, rtol=0)
    tokens, logprobs = sample(logits, uniforms, Sampling(temperature=0))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).max(-1).values)


def test_a_row_keeps_its_numbers_whatever_is_asked_for_beside_it() -> None:
    few, many = row_uniforms(3, 2, 4, 5), row_uniforms(3, 2, 9, 50)
    assert torch.equal(few, many[:4, :5])
    assert float(many.min()) >= 0
    assert float(many.max()) < 1
    streams = torch.cat([row_uniforms(seed, call, 3, 4) for seed in (0, 1) for call in (0, 1)])
    assert len(streams.flatten().unique()) == streams.numel()
