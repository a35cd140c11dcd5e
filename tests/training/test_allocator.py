"""Memory that tensors have left is not asked of the system again."""

from __future__ import annotations

import sys
from platform import libc_ver

import pytest
import torch

from heed.models import LanguageModel
from heed.training.loop import TrainConfig, TrainState


@pytest.mark.skipif(libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
def test_tensors_take_the_pages_that_others_have_left(policy: LanguageModel) -> None:
    from resource import RUSAGE_SELF, getrusage

    TrainState.create({"policy": policy}, TrainConfig(), num_updates=1)

    def step() -> None:
        """40 MB in five pieces, all of which are freed at the end."""
        [torch.ones(2**21) for _ in range(5)]

    for _ in range(3):
        step()
    before = getrusage(RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    pages = 20 * 5 * 2**23 // 4096
    assert getrusage(RUSAGE_SELF).ru_minflt - before < pages / 20
