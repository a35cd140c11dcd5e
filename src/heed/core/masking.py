"""Sums, means and whitening over the entries a mask counts."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """The sum of the entries that count.

    `sum_i mask_i x_i`, over everything or over `dim`; `x` and the boolean `mask` have one shape. What lies off the mask may be
    anything, NaN included: neither the sum nor its gradient sees it. Raises RuntimeError where the mask is not boolean.
    """
    kept = torch.where(mask, x, 0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """The mean of the entries that count, 0 where none does.

    `sum_i mask_i x_i / sum_i mask_i`, over everything or over `dim`; shapes and errors as in `masked_sum`.
    """
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor) -> Tensor:
    """The entries that count, shifted to mean 0 and scaled to variance 1; zeros off the mask.

    `(x - mean) / sqrt(var + 1e-8)` with the mean and the (biased) variance of the counted entries of the whole tensor; the mean is
    not added back, so an advantage keeps its sign relative to the average. Entries that are all equal become 0.
    """
    centred = x.double() - masked_mean(x.double(), mask)  # in fp32 equal entries would have a spread, by rounding
    variance = masked_mean(centred.square(), mask)
    return torch.where(mask, centred * torch.rsqrt(variance + 1e-8), 0).to(x.dtype)
