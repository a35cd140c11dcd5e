"""A tiny random model with a word-level tokenizer, small enough to train in a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from heed.data.render import Renderer
from heed.models.language_model import LanguageModel
from heed.models.loading import load_policy
from tests.tiny import save_tiny_llama


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def policy(tiny_folder: Path) -> LanguageModel:
    return load_policy(tiny_folder, device="cpu")


@pytest.fixture
def renderer(policy: LanguageModel) -> Renderer:
    return Renderer(policy.tokenizer, eos_ids=policy.eos_ids, max_length=32)
