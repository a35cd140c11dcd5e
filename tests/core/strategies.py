"""Random batches as the package sees them: right-padded rows, a prompt, and a response that may have holes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

seeds = st.integers(0, 2**32 - 1)


class Batch(NamedTuple):
    mask: Tensor
    generator: torch.Generator

    def draw(self) -> Tensor:
        """A `[B, T]` tensor of normal numbers, off the mask as well."""
        return torch.randn(self.mask.shape, generator=self.generator, dtype=torch.float64)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Between 1 and 4 rows of up to 10 tokens; every row has a prompt token first and a response token somewhere."""
    num_rows, num_tokens = draw(st.integers(1, 4)), draw(st.integers(2, 10))
    rows = st.lists(st.booleans(), min_size=num_tokens - 1, max_size=num_tokens - 1).filter(any)
    mask = torch.tensor([[False, *draw(rows)] for _ in range(num_rows)])
    return Batch(mask, torch.Generator().manual_seed(draw(seeds)))


def close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-9, atol=1e-9)
