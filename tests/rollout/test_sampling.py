"""Inverse-CDF sampling and what bends the distribution, against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heed.errors import UserError
from heed.records import Sampling
from heed.rollout.sampling import inverse_cdf, request_uniforms, row_uniforms, sample, truncate

LAST_UNIFORM = 1 - 2**-53


def naive_inverse_cdf(probabilities: list[float], uniform: float) -> int:
    total, reached = sum(probabilities), 0.0
    for token, p in enumerate(probabilities):
        reached += p
        if reached > uniform * total:
            return token
    raise AssertionError("the total was never reached")


def naive_distribution(logits: list[float], sampling: Sampling, history: set[int]) -> list[float]:
    """What a token is drawn from, one rule after the other, in plain Python."""
    z = list(logits)
    for t in history:
        z[t] = z[t] * sampling.repetition_penalty if z[t] < 0 else z[t] / sampling.repetition_penalty
    weights = [math.exp((x - max(z)) / sampling.temperature) for x in z]
    order = sorted(range(len(weights)), key=lambda t: -weights[t])[: sampling.top_k or None]
    total = sum(weights[t] for t in order)
    kept: list[int] = []
    for token in order:
        if sum(weights[t] for t in kept) / total < sampling.top_p:
            kept.append(token)
    kept = [t for t in kept if weights[t] >= sampling.min_p * weights[order[0]]]
    mass = sum(weights[t] for t in kept)
    return [w / mass if t in kept else 0.0 for t, w in enumerate(weights)]


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


@given(
    st.builds(
        Sampling,
        temperature=st.sampled_from([0.5, 1.0, 2.0]),
        top_k=st.sampled_from([0, 1, 5, 500]),
        top_p=st.sampled_from([1.0, 0.8, 0.5, 1e-9]),
        min_p=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.3, 3.0, 0.5]),
    ),
    st.integers(0, 10**6),
)
def test_a_token_is_drawn_from_what_a_loop_keeps(sampling: Sampling, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, 30, generator=generator)
    seen = torch.rand(4, 30, generator=generator) < 0.3
    uniforms = torch.rand(4, generator=generator, dtype=torch.float64)
    tokens, logprobs, probabilities = sample(logits, uniforms, sampling, seen)
    histories = [set(row.nonzero()[:, 0].tolist()) for row in seen]
    rows = zip(logits.double().tolist(), histories, strict=True)
    expected = torch.tensor([naive_distribution(row, sampling, history) for row, history in rows])
    torch.testing.assert_close(probabilities, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logprobs, expected[torch.arange(4), tokens].log(), atol=1e-5, rtol=0)


def test_the_exact_policy_is_the_softmax_and_nothing_else() -> None:
    logits = 2 * torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
    probabilities = logits.softmax(-1)
    assert torch.equal(sample(logits, torch.full((6,), 0.5), Sampling())[2], probabilities)
    assert truncate(probabilities, Sampling()) is probabilities


def test_greedy_takes_the_likeliest_after_the_penalty() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0], [-0.1, -0.11, -3.0]])
    seen = torch.tensor([[True, False, False], [True, False, False]])
    sampling = Sampling(temperature=0, repetition_penalty=1.5)
    tokens, logprobs, _ = sample(logits, torch.zeros(2), sampling, seen)
    assert tokens.tolist() == [1, 1]
    expected = torch.tensor([[2.0 / 1.5, 1.9, -1.0], [-0.1 * 1.5, -0.11, -3.0]]).log_softmax(-1)[:, 1]
    torch.testing.assert_close(logprobs, expected)


def test_a_request_draws_the_same_numbers_wherever_it_is() -> None:
    prompts = [(1, 5, 6), (1, 5), (1, 5, 6), (7,)]
    numbers = request_uniforms(3, prompts, 2, 5)
    assert torch.equal(numbers[:2], numbers[4:6])
    assert torch.equal(request_uniforms(3, prompts[1:2], 4, 9)[:2, :5], numbers[2:4])
    assert len(numbers[[0, 1, 2, 3, 6, 7]].unique()) == 30
    others = torch.cat([request_uniforms(4, prompts, 2, 5), row_uniforms(3, 0, 8, 5)])
    assert not set(numbers.flatten().tolist()) & set(others.flatten().tolist())


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_p", -0.1), ("min_p", 1.5), ("repetition_penalty", 0.0), ("stop", "."), ("stop", ("",)), ("seed", -1), ("top_logprobs", -1)],
)
def test_what_makes_no_sense_is_refused(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field):
        replace(Sampling(), **{field: value})


def test_a_row_keeps_its_numbers_whatever_is_asked_for_beside_it() -> None:
    few, many = row_uniforms(3, 2, 4, 5), row_uniforms(3, 2, 9, 50)
    assert torch.equal(few, many[:4, :5])
    assert float(many.min()) >= 0
    assert float(many.max()) < 1
    streams = torch.cat([row_uniforms(seed, call, 3, 4) for seed in (0, 1) for call in (0, 1)])
    assert len(streams.flatten().unique()) == streams.numel()
