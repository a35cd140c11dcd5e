"""Fixtures that every test may use: real models and data beside the project, where they are present."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# A slow machine is not a wrong answer.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def _beside(relative: str) -> Path:
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"{relative} is not beside the project")
    return path


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """A real pretrained Llama of 0.26M parameters (karpathy/tinyllamas)."""
    return _beside("models/stories260k")


@pytest.fixture(scope="session")
def hh_harmless() -> Path:
    """1,500 real human preference pairs (anthropics/hh-rlhf, harmless-base)."""
    return _beside("data/hh-harmless-dev.jsonl.gz")
