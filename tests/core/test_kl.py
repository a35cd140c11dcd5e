from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heed.core.kl import exact_kl, k1, k2, k3, next_kl_coef, sequence_exact_kl
from heed.core.masking import masked_mean
from tests import naive
from tests.core.strategies import Batch, batches, close, seeds


def random_heads(seed: int, num_tokens: int = 3, vocabulary: int = 6, width: int = 4) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num_tokens, width), (vocabulary, width), (num_tokens, width + 1), (vocabulary, width + 1)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@given(seeds, st.integers(1, 20), st.sampled_from([1.0, 0.7]))
def test_exact_kl_is_the_sum_over_the_vocabulary(seed: int, chunk_elements: int, temperature: float) -> None:
    hidden, weight, ref_hidden, ref_weight = random_heads(seed)
    bias, ref_bias = weight[:, 0].clone(), ref_weight[:, 1].clone()
    found = exact_kl(
        hidden, weight, ref_hidden, ref_weight, bias=bias, ref_bias=ref_bias, temperature=temperature, chunk_elements=chunk_elements
    )
    expected = [
        naive.kl(
            naive.logits(h, weight.tolist(), bias.tolist(), temperature),
            naive.logits(r, ref_weight.tolist(), ref_bias.tolist(), temperature),
        )
        for h, r in zip(hidden.tolist(), ref_hidden.tolist(), strict=True)
    ]
    close(found, expected)


@given(seeds)
def test_exact_kl_is_the_expectation_of_k1_and_of_k3(seed: int) -> None:
    hidden, weight, ref_hidden, ref_weight = random_heads(seed)
    log_p, log_q = (hidden @ weight.T).log_softmax(1), (ref_hidden @ ref_weight.T).log_softmax(1)
    exact = exact_kl(hidden, weight, ref_hidden, ref_weight)
    close((log_p.exp() * k1(log_p, log_q)).sum(1), exact)
    if (log_p - log_q).abs().max() < 20:
        close((log_p.exp() * k3(log_p, log_q)).sum(1), exact)


def test_exact_kl_of_a_policy_to_itself_is_zero_with_zero_gradient() -> None:
    hidden, weight, *_ = random_heads(0)
    hidden.requires_grad_()
    kl = exact_kl(hidden, weight, hidden.detach(), weight)
    kl.sum().backward()
    close(kl, torch.zeros(3))
    assert hidden.grad is not None
    close(hidden.grad, torch.zeros_like(hidden))


def test_exact_kl_passes_gradcheck() -> None:
    hidden, weight, ref_hidden, ref_weight = random_heads(1)
    bias = weight[:, 0].clone()
    inputs = tuple(x.requires_grad_() for x in (hidden, weight, bias))
    assert torch.autograd.gradcheck(
        lambda h, w, b: exact_kl(h, w, ref_hidden, ref_weight, bias=b, temperature=0.7, chunk_elements=13), inputs
    )


def test_the_reference_is_a_constant() -> None:
    heads = random_heads(2)
    for x in heads:
        x.requires_grad_()
    exact_kl(*heads).sum().backward()
    assert [x.grad is None for x in heads] == [False, False, True, True]


def expected_gradient(estimate: Callable[[Tensor, Tensor], Tensor], scores: Tensor, ref_scores: Tensor) -> Tensor:
    """`E_p[grad estimate(x)]` by enumeration: every token of the vocabulary, weighed by a probability that is not differentiated."""
    scores = scores.detach().requires_grad_()
    log_p, log_q = scores.log_softmax(0), ref_scores.log_softmax(0)
    (gradient,) = torch.autograd.grad((log_p.exp().detach() * estimate(log_p, log_q)).sum(), scores)
    return gradient


def kl_gradient(scores: Tensor, ref_scores: Tensor) -> Tensor:
    """The gradient of KL(p || q) in the logits of p, by finite differences of the enumerated sum."""
    gradient, step = [], 1e-5
    for v in range(len(scores)):
        moved = []
        for sign in (1, -1):
            shifted = scores.tolist()
            shifted[v] += sign * step
            moved.append(naive.kl(shifted, ref_scores.tolist()))
        gradient.append((moved[0] - moved[1]) / (2 * step))
    return torch.tensor(gradient, dtype=torch.float64)


@given(seeds)
def test_what_goes_into_a_loss_has_the_gradient_of_the_kl(seed: int) -> None:
    """Exactly for the whole vocabulary, in expectation for the sampled token; k1 and k3 have another gradient and stay out of losses."""
    scores, ref_scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    right = kl_gradient(scores, ref_scores)
    hidden, weight = scores.clone()[None].requires_grad_(), torch.eye(5, dtype=torch.float64)
    (exact,) = torch.autograd.grad(exact_kl(hidden, weight, ref_scores[None], weight).sum(), hidden)
    torch.testing.assert_close(exact[0], right, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(expected_gradient(k2, scores, ref_scores), right, rtol=1e-5, atol=1e-7)
    reverse = scores.softmax(0) - ref_scores.softmax(0)
    torch.testing.assert_close(expected_gradient(k3, scores, ref_scores), reverse, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(expected_gradient(k1, scores, ref_scores), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (reverse - right).abs().max() > 1e-3


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_estimates_of_equal_distributions_are_zero_and_k2_and_k3_are_never_negative(a: float, b: float) -> None:
    x, y = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    assert [k(x, x).item() for k in (k1, k2, k3)] == [0, 0, 0]
    assert min(k2(x, y).item(), k3(x, y).item()) >= 0
    assert k1(x, y).item() == pytest.approx(-k1(y, x).item())


def test_one_absurd_token_makes_no_infinity() -> None:
    assert k3(torch.tensor([-2000.0, 2000.0]), torch.tensor([0.0, 0.0])).isfinite().all()


@given(batches())
def test_sequence_kl_sits_at_the_sampled_token_and_is_not_diluted_by_padding(batch: Batch) -> None:
    shape = (*batch.mask.shape, 3)
    hidden, ref_hidden = (torch.randn(shape, generator=batch.generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(6, 3, generator=batch.generator, dtype=torch.float64)
    kl = sequence_exact_kl(hidden, weight, ref_hidden, weight, batch.mask)
    expected = [
        naive.kl(naive.logits(hidden[b, t - 1].tolist(), weight.tolist()), naive.logits(ref_hidden[b, t - 1].tolist(), weight.tolist()))
        for b, t in batch.mask.nonzero().tolist()
    ]
    close(kl[batch.mask], expected)
    assert (kl[~batch.mask] == 0).all()
    close(masked_mean(kl, batch.mask), sum(expected) / len(expected))  # fails where the mean is taken over padding


def test_sequence_kl_cannot_count_the_first_token() -> None:
    with pytest.raises(ValueError, match="position 0"):
        sequence_exact_kl(torch.zeros(1, 2, 3), torch.zeros(4, 3), torch.zeros(1, 2, 3), torch.zeros(4, 3), torch.tensor([[True, False]]))


def test_the_coefficient_is_steered_towards_the_target() -> None:
    assert next_kl_coef(0.2, observed_kl=6, target=6, horizon=10_000, num_samples=500) == 0.2
    assert next_kl_coef(0.2, observed_kl=6.6, target=6, horizon=10_000, num_samples=500) == pytest.approx(0.2 * (1 + 0.1 * 0.05))
    assert next_kl_coef(0.2, observed_kl=600, target=6, horizon=10_000, num_samples=500) == pytest.approx(0.2 * (1 + 0.2 * 0.05))
    assert next_kl_coef(0.2, observed_kl=0, target=6, horizon=10_000, num_samples=500) == pytest.approx(0.2 * (1 - 0.2 * 0.05))
