"""Kernels are compiled once, work on PyTorch's threads, and are missed by nobody where they cannot be compiled."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from heed.models import compiled as module
from heed.models import fused
from heed.models.compiled import compiled, floats, integers

needs_compiler = pytest.mark.skipif(compiled(fused.SOURCE) is None, reason="no gcc, or PyTorch's threads are not GNU OpenMP's")
Fresh = Callable[[], ctypes.CDLL | None]


@pytest.fixture
def fresh() -> Fresh:
    """Kernels asked for as in a new process."""
    return lambda: compiled.__wrapped__(fused.SOURCE)


@needs_compiler
def test_kernels_are_compiled_once_and_work_on_pytorchs_threads(tmp_path: Path, fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    def thread_libraries() -> set[str]:
        return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "gomp" in line}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    before = thread_libraries()
    assert fresh()
    assert thread_libraries() == before
    made = list((tmp_path / "new" / "heed").iterdir())
    assert [(path.suffix, path.stem.partition("-")[0]) for path in made] == [(".so", "fused")]
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
        assert fresh()
        patch.setattr(module, "FLAGS", (*module.FLAGS, "-g"))
        with pytest.raises(pytest.fail.Exception):
            fresh()


@needs_compiler
@pytest.mark.parametrize("home", ["a file", "none"])
def test_without_a_folder_to_keep_them_in_they_are_compiled_anew(
    home: str, tmp_path: Path, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    if home == "a file":
        (tmp_path / "taken").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

        def nobody() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", nobody)
    assert fresh()


def test_where_nothing_can_be_compiled_there_are_none(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda _: None)
        assert fresh() is None
    with monkeypatch.context() as patch:
        patch.setattr("sys.platform", "darwin")
        assert fresh() is None

    def not_loaded(name: str, mode: int = 0) -> None:
        assert mode & os.RTLD_NOLOAD
        raise OSError(f"{name}: cannot open shared object file")

    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", not_loaded)
        assert fresh() is None


@needs_compiler
def test_a_compiler_that_fails_is_told(tmp_path: Path, fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "FLAGS", (*module.FLAGS, "-march=nothing"))
    with pytest.warns(UserWarning, match="fused.c is not compiled, so that heed takes longer: .*march"):
        assert fresh() is None
    assert not list(tmp_path.rglob("*.so"))
    broken = tmp_path / "gcc"
    broken.write_text("#!/bin/sh\necho nothing > $9\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(broken))
    with pytest.warns(UserWarning, match="is not compiled"):
        assert fresh() is None


def test_an_error_that_says_nothing_is_told_by_its_kind(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(shutil, "which", lambda _: "gcc")
    monkeypatch.setattr(module, "_has_gnu_threads", lambda: True)
    monkeypatch.setattr(module, "_load", fail)
    with pytest.warns(UserWarning, match="OSError$"):
        assert fresh() is None


def test_addresses_are_of_what_a_kernel_reads() -> None:
    x = torch.zeros(3, 4)
    assert floats(x) == x.data_ptr()
    assert integers(torch.arange(3)) > 0
    for wrong in (x.double(), x.T, x.to("meta")):
        with pytest.raises(ValueError, match="side by side"):
            floats(wrong)
    with pytest.raises(ValueError, match="int32"):
        integers(torch.arange(3).int())
