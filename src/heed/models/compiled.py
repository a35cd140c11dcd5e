"""Kernels of heed's own for CPUs, in C, compiled at their first use where there is a compiler."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

FLAGS = "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"


@cache
def compiled(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file, on PyTorch's threads; None where nothing compiles them, and PyTorch's operations have to do.

    That is off Linux, without gcc, or where PyTorch's threads are not GNU OpenMP's, as two libraries keep each other's threads waiting.
    """
    compiler = shutil.which("gcc")
    if compiler is None or not _has_gnu_threads():
        return None
    try:
        try:
            return _load(source, compiler, Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heed")
        except (OSError, RuntimeError):  # no home, or none that can be written to
            with TemporaryDirectory() as folder:
                return _load(source, compiler, Path(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        why = next(iter(str(getattr(error, "stderr", None) or error).splitlines()), type(error).__name__)
        warnings.warn(f"{source.name} is not compiled, so that heed takes longer: {why}", stacklevel=2)
        return None


def floats(x: Tensor) -> int:
    """The address of numbers in fp32; ValueError for what a kernel would misread."""
    return _address(x, torch.float32)


def integers(x: Tensor) -> int:
    """The address of whole numbers; ValueError for what a kernel would misread."""
    return _address(x, torch.int64)


def _address(x: Tensor, dtype: torch.dtype) -> int:
    if x.dtype != dtype or not x.is_cpu or not x.is_contiguous():
        raise ValueError(f"{x.dtype} on {x.device} with strides {x.stride()} where {dtype} side by side on the CPU belongs")
    return x.data_ptr()


def _has_gnu_threads() -> bool:
    """Whether a library that is linked with GNU OpenMP gets the one that PyTorch has loaded."""
    if sys.platform != "linux":
        return False
    try:
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True


def _load(source: Path, compiler: str, folder: Path) -> ctypes.CDLL:
    """The library for this processor, which is kept in a folder once it is compiled."""
    processor = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))][:1]
    made_from = "\n".join([source.read_text(), *FLAGS, platform.machine(), *processor])
    library = folder / f"{source.stem}-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / library.name
            subprocess.run([compiler, *FLAGS, source, "-o", made, "-lm"], check=True, capture_output=True, text=True)
            made.replace(library)
    return ctypes.CDLL(str(library))
