"""Held-out data: split by prompt, so that no prompt is on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

from heed.errors import UserError, require
from heed.records import Prompt


class HasPrompt(Protocol):
    @property
    def prompt(self) -> Prompt: ...


R = TypeVar("R", bound=Prompt | HasPrompt)


def split_by_prompt(records: Sequence[R], held_out_fraction: float, seed: int) -> tuple[list[R], list[R]]:
    """Split records, or prompts themselves, into `(train, held_out)` by the identity of their prompt, never by pair.

    `held_out_fraction` of the distinct prompts, at least one unless it is 0, are held out: those whose hash with `seed` is smallest.
    The order of the records changes nothing. Raises `UserError` where fewer than two distinct prompts are to be split.
    """
    require(0 <= held_out_fraction < 1, "held_out_fraction", held_out_fraction, "a share from 0 up to, but not including, 1")
    if held_out_fraction == 0:
        return list(records), []
    ids = [(r if isinstance(r, Prompt) else r.prompt).id for r in records]
    ordered = sorted(set(ids), key=lambda id: hashlib.sha256(f"{seed}:{id}".encode()).digest())
    if len(ordered) < 2:
        raise UserError(f"{len(ordered)} distinct prompts cannot be split", expected="2 or more", fix="or a held-out fraction of 0")
    count = min(max(1, round(held_out_fraction * len(ordered))), len(ordered) - 1)
    held_out = set(ordered[:count])
    return (
        [r for r, id in zip(records, ids, strict=True) if id not in held_out],
        [r for r, id in zip(records, ids, strict=True) if id in held_out],
    )
