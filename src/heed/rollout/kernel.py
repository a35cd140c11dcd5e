"""Attention of decoding on a CPU as one kernel, which is compiled where there is a compiler for it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import warnings
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("attention.c")
FLAGS = "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"


class Slots(ctypes.Structure):
    """One layer's keys and values of sequences that lie one after another, each `[heads, capacity, dim]`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("keys", "values", "start", "capacity")]

    def __init__(self, keys: Tensor, values: Tensor, start: Tensor, capacity: Tensor) -> None:
        """Keys and values are lines of `dim` numbers; before each slot are `start` tokens, and it has room for `capacity`: `[slots]`."""
        super().__init__(*map(_floats, (keys, values)), *map(_integers, (start, capacity)))
        self.dim = keys.shape[1] if keys.shape == values.shape else None
        self.held = keys, values, start, capacity


class Prompts(NamedTuple):
    """Sequences that rows read before their own."""

    slots: Slots
    lengths: Tensor
    """Tokens in each slot, `[slots]`."""
    home: Tensor
    """The slot of each row's prompt, `[rows]`."""
    order: Tensor
    """Rows, those of one prompt side by side, `[rows]`."""


class Attention(Protocol):
    """Stores keys and values, and returns what the queries find."""

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, rows: Slots, ends: Tensor, scale: float, prompts: Prompts | None = None, /
    ) -> Tensor: ...


@cache
def decode_attention() -> Attention | None:
    """Attention of one token per row to its prompt and to `ends` tokens of its own, the last of which it is: `softmax(scale Q K^T) V`.

    Queries, and what they find, are `[rows, heads, queries, dim]`, where queries of one head of keys lie side by side; keys and values of
    these tokens, `[rows, heads, 1, dim]`, go into their slots. All in fp32. None where there is nothing to compile it with: off Linux,
    without gcc, or where PyTorch's threads are not GNU OpenMP's, as two libraries keep each other's threads waiting.
    """
    compiler = shutil.which("gcc")
    if compiler is None or not _has_gnu_threads():
        return None
    try:
        try:
            library = _load(compiler, Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heed")
        except (OSError, RuntimeError):  # no home, or none that can be written to
            with TemporaryDirectory() as folder:
                library = _load(compiler, Path(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        why = next(iter(str(getattr(error, "stderr", None) or error).splitlines()))
        warnings.warn(f"sampling without compiled attention, which takes longer: {why}", stacklevel=2)
        return None
    function = library.decode_attention
    function.argtypes = [*[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 4, ctypes.c_float, *[ctypes.c_void_p] * 6]
    return partial(_attend, function)


def _has_gnu_threads() -> bool:
    """Whether a library that is linked with GNU OpenMP gets the one that PyTorch has loaded."""
    if sys.platform != "linux":
        return False
    try:
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True


def _load(compiler: str, folder: Path) -> ctypes.CDLL:
    """The library for this processor, which is kept in a folder once it is compiled."""
    processor = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))][:1]
    made_from = "\n".join([SOURCE.read_text(), *FLAGS, platform.machine(), *processor])
    library = folder / f"attention-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / library.name
            subprocess.run([compiler, *FLAGS, SOURCE, "-o", made, "-lm"], check=True, capture_output=True, text=True)
            made.replace(library)
    return ctypes.CDLL(str(library))


def _attend(
    function: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Slots,
    ends: Tensor,
    scale: float,
    prompts: Prompts | None = None,
) -> Tensor:
    """Raises ValueError for what the kernel would misread."""
    num_rows, heads, group, dim = queries.shape
    if not keys.shape == values.shape == (num_rows, heads, 1, dim) or {rows.dim, prompts.slots.dim if prompts else dim} != {dim}:
        raise ValueError("keys, values and queries of different sizes")
    queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
    results = torch.empty_like(queries)
    of_prompts = [ctypes.byref(prompts.slots), *map(_integers, prompts[1:])] if prompts else [None] * 4
    addresses = map(_floats, (queries, keys, values, results))
    if not function(*addresses, num_rows, heads, group, dim, scale, ctypes.byref(rows), _integers(ends), *of_prompts):
        raise RuntimeError("attention of decoding: a row has no room in its slot, or there is no memory")
    return results


def _floats(x: Tensor) -> int:
    return _address(x, torch.float32)


def _integers(x: Tensor) -> int:
    return _address(x, torch.int64)


def _address(x: Tensor, dtype: torch.dtype) -> int:
    if x.dtype != dtype or not x.is_cpu or not x.is_contiguous():
        raise ValueError(f"{x.dtype} on {x.device} with strides {x.stride()} where {dtype} side by side on the CPU belongs")
    return x.data_ptr()
