"""What samples responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from heed.records import Prompt, Rollout, Sampling


class Engine(Protocol):
    """Anything that answers prompts from the current policy, token ids in and token ids out."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, n: int = 1) -> list[Rollout]:
        """`n` responses to each prompt; those of one prompt are adjacent, prompts in the order given."""
        ...
