from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heed.core.kl import exact_kl
from heed.core.logprobs import before_targets, sequence_logprobs, token_logprobs
from tests import naive
from tests.core.strategies import Batch, batches, close, seeds


class LargestTensor(TorchDispatchMode):
    """Records how many elements the largest tensor made under it has, in forward and backward alike."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return out


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def whole(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies through autograd and the full `[N, V]`."""
    scores = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    log_p = torch.log_softmax(scores / temperature, dim=1)
    return log_p[torch.arange(len(targets)), targets], torch.special.entr(log_p.exp()).sum(1)


@given(seeds, st.integers(1, 6), st.integers(1, 9), st.sampled_from([0.5, 1.0, 1.7]), st.booleans())
def test_equal_the_definition(seed: int, num_tokens: int, vocabulary: int, temperature: float, with_bias: bool) -> None:
    hidden, weight, bias = normal(seed, num_tokens, 3), normal(seed + 1, vocabulary, 3), normal(seed + 2, vocabulary)
    targets = torch.arange(num_tokens) % vocabulary
    logprobs, entropy = token_logprobs(
        hidden, weight, targets, bias=bias if with_bias else None, temperature=temperature, with_entropy=True, chunk_elements=11
    )
    rows = [naive.logits(h, weight.tolist(), bias.tolist() if with_bias else None, temperature) for h in hidden.tolist()]
    close(logprobs, [naive.log_softmax(row)[target] for row, target in zip(rows, targets.tolist(), strict=True)])
    assert entropy is not None
    close(entropy, [naive.entropy(row) for row in rows])


@given(seeds, st.integers(1, 40), st.integers(0, 40), st.sampled_from([1.0, 0.6]), st.booleans())
def test_chunked_equals_whole_forward_and_backward(seed: int, chunk_elements: int, kept: int, temperature: float, with_bias: bool) -> None:
    leaves = [normal(seed, 5, 4), normal(seed + 1, 7, 4), *([normal(seed + 2, 7)] if with_bias else [])]
    targets = torch.tensor([0, 6, 3, 3, 1])
    upstream = normal(seed + 3, 2, 5)
    grads = []
    for chunked in (True, False):
        hidden, weight, *rest = (x.clone().requires_grad_() for x in leaves)
        bias = rest[0] if rest else None
        if chunked:
            options = {"temperature": temperature, "with_entropy": True, "chunk_elements": chunk_elements, "kept_elements": kept}
            logprobs, entropy = token_logprobs(hidden, weight, targets, bias=bias, **options)
        else:
            logprobs, entropy = whole(hidden, weight, targets, bias, temperature)
        assert entropy is not None
        (upstream[0] @ logprobs + upstream[1] @ entropy).backward()
        grads.append([logprobs.detach(), entropy.detach(), hidden.grad, weight.grad, *(x.grad for x in rest)])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_gradients_pass_gradcheck(temperature: float, with_entropy: bool) -> None:
    inputs = tuple(normal(seed, *shape).requires_grad_() for seed, shape in enumerate([(5, 3), (7, 3), (7,)]))
    targets = torch.tensor([0, 6, 3, 3, 1])

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        found = token_logprobs(hidden, weight, targets, bias=bias, temperature=temperature, with_entropy=with_entropy, chunk_elements=15)
        return tuple(x for x in found if x is not None)

    assert torch.autograd.gradcheck(function, inputs)


def test_entropy_alone_can_be_trained_on() -> None:
    hidden, weight = normal(0, 5, 3).requires_grad_(), normal(1, 7, 3)
    targets = torch.zeros(5, dtype=torch.long)
    _, entropy = token_logprobs(hidden, weight, targets, with_entropy=True)
    assert entropy is not None
    (found,) = torch.autograd.grad(entropy.sum(), hidden)
    (expected,) = torch.autograd.grad(whole(hidden, weight, targets, None, 1.0)[1].sum(), hidden)
    close(found, expected)


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight, bias = normal(0, 5, 3), normal(1, 7, 3), normal(2, 7)
    targets = torch.tensor([0, 6, 3, 3, 1])
    for learns in (hidden, weight, bias):
        for x in (hidden, weight, bias):
            x.requires_grad_(x is learns).grad = None
        token_logprobs(hidden, weight, targets, bias=bias)[0].sum().backward()
        assert [x.grad is not None for x in (hidden, weight, bias)] == [x is learns for x in (hidden, weight, bias)]


@pytest.mark.parametrize("which", ["logprobs", "entropy", "kl"])
def test_no_tensor_the_size_of_all_logits_ever_exists(which: str) -> None:
    num_tokens, vocabulary, width, chunk_elements = 64, 50, 4, 400
    hidden, weight = normal(0, num_tokens, width).requires_grad_(), normal(1, vocabulary, width).requires_grad_()
    with LargestTensor() as largest:
        if which == "kl":
            out = exact_kl(hidden, weight, hidden.detach() + 1, weight.detach(), chunk_elements=chunk_elements)
        else:
            targets = torch.zeros(num_tokens, dtype=torch.long)
            out, entropy = token_logprobs(hidden, weight, targets, with_entropy=which == "entropy", chunk_elements=chunk_elements)
            out = out if entropy is None else out + entropy
        forward = largest.numel
        out.sum().backward()
    assert 0 < forward <= chunk_elements
    assert largest.numel <= chunk_elements


@pytest.mark.parametrize("kept_elements", [0, 299, 1000, 10_000])
def test_no_more_logits_wait_for_backward_than_may(kept_elements: int) -> None:
    hidden, weight = normal(0, 64, 4).requires_grad_(), normal(1, 50, 4)
    targets = torch.zeros(64, dtype=torch.long)
    logprobs, _ = token_logprobs(hidden, weight, targets, chunk_elements=100, kept_elements=kept_elements)
    waiting = [logits.numel() for logits in logprobs.grad_fn.kept.values()]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert sum(waiting) == min(64 * 50, kept_elements // 100 * 100)
    first, again = (torch.autograd.grad(logprobs.sum(), hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again), "logits that were used up are computed again"


def test_the_recorder_of_the_largest_tensor_sees_backward_too() -> None:
    x = torch.ones(3, 1, requires_grad=True)
    with LargestTensor() as largest:
        out = (x * 2).sum()
        forward = largest.numel
        (out * torch.ones(5)).sum().backward()
    assert (forward, largest.numel) == (3, 5)


def test_a_vocabulary_larger_than_a_chunk_and_no_tokens_at_all() -> None:
    hidden, weight = normal(0, 3, 2).requires_grad_(), normal(1, 9, 2).requires_grad_()
    targets = torch.tensor([8, 0, 4])
    close(token_logprobs(hidden, weight, targets, chunk_elements=1)[0], whole(hidden, weight, targets, None, 1.0)[0])
    none = token_logprobs(hidden[:0], weight, targets[:0])[0]
    assert none.shape == (0,)
    none.sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_get_fp32_softmax_and_sums(dtype: torch.dtype) -> None:
    """Logits that the inputs' dtype holds exactly, so that the only rounding is that of the softmax and of the gradient's sums."""
    num_tokens, vocabulary = 600, 64
    hidden = torch.ones(num_tokens, 1, dtype=dtype)
    weight = (torch.arange(vocabulary) % 4).to(dtype)[:, None].requires_grad_()
    targets = torch.arange(num_tokens) % vocabulary
    logprobs, _ = token_logprobs(hidden, weight, targets, chunk_elements=vocabulary)
    assert logprobs.dtype == torch.float32
    exact = weight.detach().double().requires_grad_()
    expected, _ = whole(hidden.double(), exact, targets, None, 1.0)
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-6, atol=1e-6)
    (found,) = torch.autograd.grad(logprobs.sum(), weight)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=0.1)


def test_autocast_multiplies_in_its_dtype_and_gives_gradients_in_the_parameters_own() -> None:
    hidden, weight = normal(0, 6, 8, dtype=torch.float32).requires_grad_(), normal(1, 10, 8, dtype=torch.float32).requires_grad_()
    targets = torch.arange(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, _ = token_logprobs(hidden, weight, targets)
        logprobs.sum().backward()
    rounded = torch.nn.functional.linear(hidden.bfloat16(), weight.bfloat16()).float().log_softmax(1)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, rounded[torch.arange(6), targets])
    grads = torch.autograd.grad(whole(hidden, weight, targets, None, 1.0)[0].sum(), [hidden, weight])
    for found, expected in zip((hidden.grad, weight.grad), grads, strict=True):
        assert found is not None
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


@given(batches())
def test_sequences_are_shifted_once_and_aligned_with_their_targets(batch: Batch) -> None:
    num_rows, num_tokens = batch.mask.shape
    hidden = torch.randn(num_rows, num_tokens, 3, generator=batch.generator, dtype=torch.float64)
    weight = torch.randn(6, 3, generator=batch.generator, dtype=torch.float64)
    ids = torch.randint(6, batch.mask.shape, generator=batch.generator)
    logprobs, entropy = sequence_logprobs(hidden, weight, ids, batch.mask, with_entropy=True)
    rows = zip(hidden.tolist(), ids.tolist(), batch.mask.tolist(), strict=True)
    close(logprobs, [naive.sequence_logprobs(states, weight.tolist(), row_ids, mask) for states, row_ids, mask in rows])
    assert entropy is not None
    before = before_targets(hidden).tolist()
    close(entropy[batch.mask], [naive.entropy(naive.logits(before[b][t], weight.tolist())) for b, t in batch.mask.nonzero().tolist()])
    assert (entropy[~batch.mask] == 0).all()


@given(batches(), st.integers(1, 3))
def test_more_padding_changes_nothing(batch: Batch, extra: int) -> None:
    num_rows, num_tokens = batch.mask.shape
    hidden = torch.randn(num_rows, num_tokens + extra, 3, generator=batch.generator, dtype=torch.float64)
    weight = torch.randn(6, 3, generator=batch.generator, dtype=torch.float64)
    ids = torch.randint(6, (num_rows, num_tokens + extra), generator=batch.generator)
    short, _ = sequence_logprobs(hidden[:, :num_tokens], weight, ids[:, :num_tokens], batch.mask)
    padded_mask = torch.nn.functional.pad(batch.mask, (0, extra))
    long, _ = sequence_logprobs(hidden, weight, ids, padded_mask)
    close(long[:, :num_tokens], short)
    assert (long[:, num_tokens:] == 0).all()


def test_hidden_states_that_predict_nothing_counted_are_never_touched() -> None:
    hidden = torch.full((1, 4, 2), float("nan"), dtype=torch.float64)
    hidden[0, 1] = 1.0
    hidden.requires_grad_()
    mask = torch.tensor([[False, False, True, False]])
    logprobs, _ = sequence_logprobs(hidden, normal(0, 5, 2), torch.zeros(1, 4, dtype=torch.long), mask)
    logprobs.sum().backward()
    assert logprobs.isfinite().all()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    assert (hidden.grad[0, 1] != 0).any()


def test_the_first_token_cannot_be_counted() -> None:
    mask = torch.tensor([[True, True]])
    with pytest.raises(ValueError, match="position 0"):
        sequence_logprobs(torch.zeros(1, 2, 3), torch.zeros(4, 3), torch.zeros(1, 2, dtype=torch.long), mask)


def test_before_targets_places_each_state_at_the_token_it_predicts() -> None:
    hidden = torch.arange(1.0, 7.0).view(1, 3, 2)
    assert before_targets(hidden).tolist() == [[[0, 0], [1, 2], [3, 4]]]
