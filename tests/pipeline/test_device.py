"""Models go only where this machine can compute."""

from __future__ import annotations

import pytest
import torch

from heed.errors import UserError
from heed.pipeline.device import check_device


def test_accelerators_that_are_there_are_taken_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for name in ("auto", "cpu", "cuda", "cuda:0", "cuda:1"):
        check_device(name)
    for name in ("cuda:2", "mps", "meta", "foo", ""):
        with pytest.raises(UserError, match=f"device is '{name}'; expected auto, cpu, cuda, cuda:0, cuda:1$"):
            check_device(name)


def test_without_an_accelerator_there_is_only_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    with pytest.raises(UserError, match="device is 'cuda'; expected auto or cpu: torch finds no GPU here"):
        check_device("cuda")
