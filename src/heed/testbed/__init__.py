"""The built-in world: a small household assistant whose true preference is known, so that every claim can be checked."""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """The folder of the base model that comes with the package."""
    return Path(__file__).parent / "model"
