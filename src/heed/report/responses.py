"""Before and after: what several policies answer to the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import NamedTuple

from heed.report.reading import BAD, GOOD, spoken
from heed.report.run import Row

NUM_EVEN, NUM_WORSE = 12, 6
"""Prompts shown: drawn evenly by kind, and those on which the newest policy lost most."""


class Chip(NamedTuple):
    """A gold attribute of one response, in words and colour."""

    text: str
    tone: str
    """`good`, `bad` or `plain`."""


class Cell(NamedTuple):
    """One policy's response."""

    policy: str
    text: str
    utility: float | None
    chips: Sequence[Chip]


class Comparison(NamedTuple):
    """The responses of several policies to one prompt."""

    prompt: str
    kind: str
    loss: float
    """Gold utility lost between the policy that optimisation started from and the newest; below 0 where it gained."""
    cells: Sequence[Cell]


def side_by_side(rows: Sequence[Row], start: str | None, newest: str | None) -> list[Comparison]:
    """The first response of each policy to a fair draw of prompts, and to those on which the newest policy lost most."""
    by_prompt: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], {}).setdefault(row["policy"], row)
    answered = {row["policy"] for row in rows}
    columns = [name for name in dict.fromkeys(("base", start, newest)) if name and name in answered]
    # Prompt ids are hashes, so their order is a fair draw.
    found = [_comparison([by_prompt[key][name] for name in columns], start, newest) for key in sorted(by_prompt)] if columns else []
    by_kind = [[item for item in found if item.kind == kind] for kind in dict.fromkeys(item.kind for item in found)]
    mixed = [item for item in chain(*zip_longest(*by_kind)) if item is not None]
    even, rest = mixed[:NUM_EVEN], mixed[NUM_EVEN:]
    return [*even, *sorted((item for item in rest if item.loss > 0), key=lambda item: -item.loss)[:NUM_WORSE]]


def _comparison(rows: Sequence[Row], start: str | None, newest: str | None) -> Comparison:
    utility = {row["policy"]: row.get("utility") for row in rows}
    before, after = utility.get(start or ""), utility.get(newest or "")
    loss = 0.0 if before is None or after is None else before - after
    cells = [Cell(row["policy"], row["response"], row.get("utility"), [_chip(*flag) for flag in row["gold"].items()]) for row in rows]
    return Comparison(rows[0]["prompt"], rows[0]["kind"], loss, cells)


def _chip(attribute: str, value: float) -> Chip:
    holds = value >= 0.5
    tone = "plain" if attribute not in GOOD | BAD else "good" if holds == (attribute in GOOD) else "bad"
    return Chip(f"{spoken(attribute)}: {'yes' if holds else 'no'}", tone)
