from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from heed.core.masking import masked_mean, masked_sum, masked_whiten
from tests import naive
from tests.core.strategies import Batch, batches, close


@given(batches())
def test_sum_and_mean_are_those_of_the_counted_entries(batch: Batch) -> None:
    x = batch.draw()
    rows = [naive.counted(values, mask) for values, mask in zip(x.tolist(), batch.mask.tolist(), strict=True)]
    flat = [value for row in rows for value in row]
    close(masked_sum(x, batch.mask), sum(flat))
    close(masked_mean(x, batch.mask), sum(flat) / len(flat))
    close(masked_sum(x, batch.mask, dim=1), [sum(row) for row in rows])
    close(masked_mean(x, batch.mask, dim=1), [sum(row) / len(row) for row in rows])


def test_an_empty_mask_has_sum_and_mean_zero() -> None:
    x, mask = torch.ones(2, 3), torch.tensor([[False, False, False], [True, True, False]])
    assert masked_mean(x, mask, dim=1).tolist() == [0, 1]
    assert masked_sum(x, mask, dim=1).tolist() == [0, 2]
    assert masked_mean(x, torch.zeros_like(mask)).item() == 0


def test_what_lies_off_the_mask_reaches_neither_value_nor_gradient() -> None:
    x = torch.tensor([1.0, float("nan"), float("inf"), 3.0], requires_grad=True)
    mask = torch.tensor([True, False, False, True])
    mean = masked_mean(x, mask)
    mean.backward()
    assert mean.item() == 2
    assert x.grad is not None
    assert x.grad.tolist() == [0.5, 0, 0, 0.5]
    assert masked_whiten(x.detach(), mask).tolist() == pytest.approx([-1, 0, 0, 1])


@given(batches(), st.floats(-100, 100), st.floats(0.1, 100))
def test_whitening_gives_mean_0_and_variance_1_under_the_mask_and_zeros_off_it(batch: Batch, shift: float, scale: float) -> None:
    x = batch.draw() * scale + shift
    assume(x[batch.mask].std(unbiased=False) > 0.01)  # else the 1e-8 under the root shows
    white = masked_whiten(x, batch.mask)
    counted = white[batch.mask]
    assert counted.mean().item() == pytest.approx(0, abs=1e-6)  # fails where the mean is added back
    assert counted.var(unbiased=False).item() == pytest.approx(1, rel=1e-3)
    assert (white[~batch.mask] == 0).all()


def test_whitening_equal_entries_gives_zeros() -> None:
    for value in (7.3, 123.4, 1000.1):
        assert masked_whiten(torch.full((40, 25), value), torch.ones(40, 25, dtype=torch.bool)).abs().max() < 1e-6
    assert masked_whiten(torch.tensor([[5.0, 9.0]]), torch.tensor([[False, True]])).tolist() == [[0, 0]]


@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_whiten])
@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_a_mask_that_is_not_boolean_is_refused(function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    """Numbers have no polarity: an additive mask holds 0 for what counts, an attention mask 1."""
    with pytest.raises(RuntimeError, match="boolean"):
        function(torch.ones(2, 2), torch.ones(2, 2, dtype=dtype))
