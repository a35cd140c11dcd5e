"""How the C library treats memory that tensors on a CPU have left."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
KEPT = 2**30


@cache
def keep_freed_memory() -> None:
    """Let a step's tensors take the memory that those of the step before have left; does something with glibc alone.

    By default it goes back to the system when they are freed, and every page of it is zeroed again at its first use: up to a
    sixth of a training step. With this all tensors lie on the heap, however large, and of its free end at most `KEPT` bytes stay with
    the process. Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, KEPT)
