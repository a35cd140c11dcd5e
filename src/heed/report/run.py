"""A run folder as the report reads it; whatever is not there is empty."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heed.errors import UserError

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run: what it was made from, what it measured, what it took."""

    name: str
    """Its folder, such as `05-ppo`, or `r2-05-ppo` in the second round."""
    kind: str
    round: int
    hash: str = ""
    """Of its configuration and everything it read."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Content hashes of what it read, by name."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each input came from: `STAGE/FILE`, or a path, id or name from outside the run."""
    config: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    """None while the stage is not done."""
    peak_rss_gb: float | None = None
    outputs: Sequence[str] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Its part of `summary.json`."""
    metrics: Sequence[Row] = ()
    """Rows of `metrics.jsonl`."""
    responses: Sequence[Row] = ()
    """Rows of `responses.jsonl`, of an evaluation."""
    best_of_n: Sequence[Row] = ()
    """Points of the best-of-n curve, of an evaluation."""


@dataclass(frozen=True, slots=True)
class RunData:
    """Everything that a report is made from."""

    name: str
    summary: Mapping[str, Any]
    stages: Sequence[Stage]
    recipe: str = ""
    """The recipe's text; empty where there is none."""
    finished: float | None = None
    """When the last stage ended, in seconds since 1970."""

    @property
    def evaluations(self) -> list[Stage]:
        """The stages that measured policies, one for each round, in order."""
        return [stage for stage in self.stages if stage.summary.get("policies")]


def load_run(folder: str | Path) -> RunData:
    """Read a run folder, in whatever state it is; stages that its summary does not count are left out.

    Raises `UserError` where there is no such folder, where it holds no run, or where a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("is not a folder", file=folder, expected="the folder of a run")
    summary = read_object(folder / "summary.json")
    places = [path for path in (folder / "stages").glob("*") if path.is_dir() and belongs(path.name, summary)]
    stages = tuple(load_stage(path) for path in sorted(places, key=lambda path: (_round_of(path.name), path.name)))
    if not summary and not stages:
        raise UserError("holds no run: neither summary.json nor stages", file=folder, expected="the folder of a run")
    recipe = folder / "recipe.yaml"
    ends = [(place / "stage.json").stat().st_mtime for place in places if (place / "stage.json").exists()]
    return RunData(
        name=folder.resolve().name,
        summary=summary,
        stages=stages,
        recipe=recipe.read_text(encoding="utf-8") if recipe.exists() else "",
        finished=max(ends, default=None),
    )


def load_stage(folder: Path) -> Stage:
    """Read one stage's folder; a stage that was cut off has its configuration and metrics only."""
    started, record = read_object(folder / "config.json"), read_object(folder / "stage.json")
    known = {**started, **record}
    summary = known.get("summary", {})
    measured = "policies" in summary
    return Stage(
        name=folder.name,
        kind=str(known.get("kind", re.sub(r"^(r\d+-)?\d+-", "", folder.name))),
        round=_round_of(folder.name),
        hash=str(known.get("hash", "")),
        inputs=known.get("inputs", {}),
        sources=known.get("sources", {}),
        config=known.get("config", {}),
        seconds=known.get("seconds"),
        peak_rss_gb=known.get("peak_rss_gb"),
        outputs=known.get("outputs", ()),
        summary=summary,
        metrics=_read_rows(folder / "metrics.jsonl"),
        responses=_read_rows(folder / "responses.jsonl") if measured else (),
        best_of_n=_read_rows(folder / "best_of_n.jsonl") if measured else (),
    )


def belongs(name: str, summary: Row) -> bool:
    """False of a stage in a round beyond those that the summary counts: what is left of a run that had more of them."""
    return _round_of(name) <= summary.get("rounds", math.inf)


def _round_of(name: str) -> int:
    found = re.match(r"r(\d+)-", name)
    return int(found[1]) if found else 1


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file; `UserError` where it is damaged."""
    if not path.exists():
        return {}
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", file=path, expected="what heed wrote there") from None


def _parse(text: str) -> dict[str, Any]:
    """A JSON object; NaN and the infinities, which Python writes and a browser does not read, are no number at all."""
    found = json.loads(text, parse_constant=lambda name: None)
    if not isinstance(found, dict):
        raise ValueError(f"found {type(found).__name__}, not an object")
    return found


def _read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file; a last line that a kill has cut short is not one."""
    if not path.exists():
        return []
    # Not splitlines(): a response may hold one of the other signs that end a line in Unicode.
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_parse(line))
        except ValueError as error:
            raise UserError(f"is not JSON ({error})", file=path, line=number, expected="one JSON object on each line") from None
    return rows
