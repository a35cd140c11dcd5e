"""A tiny random policy and rollouts whose numbers are chosen by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from heed.evaluation import GradedResponse
from heed.models.language_model import LanguageModel
from heed.models.loading import load_policy
from heed.records import Prompt
from tests.tiny import save_tiny_llama

WORDS = [f"w{i}" for i in range(3, 40)]


@pytest.fixture(scope="session")
def make_policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], LanguageModel]:
    """A random policy; another seed gives other weights."""

    def make(seed: int) -> LanguageModel:
        folder = save_tiny_llama(tmp_path_factory.mktemp("tiny"), words=WORDS, seed=seed)
        return load_policy(folder, device="cpu")

    return make


@pytest.fixture
def graded() -> Callable[..., GradedResponse]:
    """A graded response, of which a test gives what it is about."""

    def make(prompt: str, utility: float | None = 0.0, *, text: str = "a", kind: str | None = None, **known: object) -> GradedResponse:
        values: dict[str, object] = {
            "policy": "p",
            "prompt": Prompt(prompt, {"kind": kind} if kind else {}),
            "text": text,
            "num_tokens": 3,
            "ended": True,
            "utility": utility,
            "attributes": {},
            "kl": 0.0,
            "kl_k1": 0.0,
        }
        return GradedResponse(**(values | known))  # pyright: ignore[reportArgumentType]

    return make
