"""How the C library treats memory that tensors on a CPU have left."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_ON_HEAP = 2**25  # the largest that glibc takes
KEPT = 2**28


@cache
def keep_freed_memory() -> None:
    """Let a step's tensors take the memory that those of the step before have left; does something with glibc alone.

    By default it goes back to the system when they are freed, and every page of it is zeroed again at its first use: up to a
    tenth of a training step, and of sampling from 32,000 words. Of the free end of the heap at most `KEPT` bytes stay with the
    process. Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP)
        mallopt(M_TRIM_THRESHOLD, KEPT)
