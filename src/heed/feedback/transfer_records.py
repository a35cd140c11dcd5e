"""What stands in each line of a whole project's export, and how such a file is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import ConfigDict, Field, NaiveDatetime, TypeAdapter, ValidationError, with_config

from heed.errors import UserError
from heed.feedback.ordering import Reason
from heed.feedback.projects import SCALE, STRENGTHS
from heed.feedback.schema import Base

VERSION = 2
"""Of files that are written. Those of version 1 hold no waiting prompts, reward models or learning curves."""
Row = dict[str, Any]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
_strict = with_config(ConfigDict(extra="forbid"))


@_strict
@dataclass(frozen=True, slots=True)
class ProjectLine:
    record: Literal["project"]
    name: Annotated[str, Field(max_length=80)]
    settings: Row
    revision: Count
    created_at: NaiveDatetime
    archived_at: NaiveDatetime | None


@_strict
@dataclass(frozen=True, slots=True)
class SourceLine:
    model: str
    sampling: Row
    run: str


@_strict
@dataclass(frozen=True, slots=True)
class ResponseLine:
    text: str
    sources: Annotated[tuple[SourceLine, ...], Field(min_length=1)]


@_strict
@dataclass(frozen=True, slots=True)
class ItemLine:
    record: Literal["item"]
    prompt: str | tuple[tuple[str, str], ...]
    """The text, or role and content of each message."""
    tags: dict[str, str]
    responses: Annotated[tuple[ResponseLine, ...], Field(min_length=1)]
    remaining: Count
    shuffle: Finite
    priority: Finite
    gold: tuple[int, ...] | None
    categories: tuple[str, ...]


@_strict
@dataclass(frozen=True, slots=True)
class LeaseLine:
    record: Literal["lease"]
    item: int
    annotator: str
    slot: Count | None
    reason: Reason
    order: tuple[int, ...]
    state: Literal["open", "answered", "skipped", "expired"]
    created_at: NaiveDatetime
    expires_at: NaiveDatetime


@_strict
@dataclass(frozen=True, slots=True)
class JudgementLine:
    ranks: tuple[int, ...]
    created_at: NaiveDatetime
    withdrawn_at: NaiveDatetime | None


@_strict
@dataclass(frozen=True, slots=True)
class AnswerLine:
    record: Literal["answer"]
    lease: int
    judgement: JudgementLine | None
    strength: Annotated[int, Field(ge=0, le=STRENGTHS)] | None
    ratings: dict[str, tuple[Annotated[int, Field(ge=1, le=SCALE)] | None, ...]]
    flags: dict[str, tuple[int, ...]]
    ideal: str
    skipped: str
    note: str
    seconds: Seconds
    created_at: NaiveDatetime
    undone_at: NaiveDatetime | None


@_strict
@dataclass(frozen=True, slots=True)
class DecisionLine:
    record: Literal["decision"]
    item: int
    lead: str
    ranks: tuple[int, ...]
    note: str
    created_at: NaiveDatetime


@_strict
@dataclass(frozen=True, slots=True)
class WaitingLine:
    record: Literal["waiting"]
    prompt: str | tuple[tuple[str, str], ...]
    tags: dict[str, str]
    taken_until: NaiveDatetime | None
    answered_at: NaiveDatetime | None


@_strict
@dataclass(frozen=True, slots=True)
class RewardModelLine:
    record: Literal["reward_model"]
    name: str
    digest: Annotated[str, Field(min_length=1, max_length=64)]
    created_at: NaiveDatetime


@_strict
@dataclass(frozen=True, slots=True)
class ScoresLine:
    record: Literal["scores"]
    model: int
    item: int
    scores: tuple[Finite | None, ...]
    """Of the item's responses; none where the model has not scored one."""


@_strict
@dataclass(frozen=True, slots=True)
class PointLine:
    items: Count
    answers: Annotated[Count, Field(ge=1)]
    pairs: Count
    accuracy: Share
    low: Finite
    high: Finite
    ceiling: Share | None = None


@_strict
@dataclass(frozen=True, slots=True)
class CurveLine:
    record: Literal["learning_curve"]
    model: str
    points: Annotated[tuple[PointLine, ...], Field(min_length=1)]
    created_at: NaiveDatetime


@_strict
@dataclass(frozen=True, slots=True)
class EndLine:
    record: Literal["end"]
    lines: int
    """Those before this one: a file that breaks off is told."""


_First: TypeAlias = ProjectLine | ItemLine | LeaseLine | AnswerLine | DecisionLine | EndLine
_Second: TypeAlias = _First | WaitingLine | RewardModelLine | ScoresLine | CurveLine
_readers: dict[int, TypeAdapter[Any]] = {
    1: TypeAdapter(Annotated[_First, Field(discriminator="record")]),
    2: TypeAdapter(Annotated[_Second, Field(discriminator="record")]),
}
"""By the version of the file."""


class Numbered(NamedTuple):
    number: int
    """The line's, from 1."""
    said: Any


def _shared(line: type[Any], table: type[Base]) -> list[str]:
    """The fields of a line that are columns of a table."""
    return [f.name for f in fields(line) if f.name in table.__table__.columns]


def columns(row: Base, line: type[Any]) -> Row:
    """What a row says as it is in a line."""
    found = {name: getattr(row, name) for name in _shared(line, type(row))}
    return {name: v.isoformat(timespec="microseconds") if isinstance(v, datetime) else v for name, v in found.items()}


def values(said: Any, table: type[Base]) -> Row:
    """What a line says as it is in a row."""
    found = {name: getattr(said, name) for name in _shared(type(said), table)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


def read_lines(lines: Iterable[bytes], file: str) -> Iterator[Numbered]:
    """Every line but the first; UserError at one that is wrong, and where the end is missing."""
    numbered = enumerate(lines, start=1)
    _, first = next(numbered, (1, b""))
    try:
        start = json.loads(first)
    except (ValueError, RecursionError):
        start = None
    if not isinstance(start, dict) or start.get("heed") != "project":
        raise UserError("this is no export of a whole project", file=file, line=1, expected=f'{{"heed": "project", "version": {VERSION}}}')
    version = start.get("version")
    if type(version) is not int or version not in _readers:
        raise UserError(f"version {version!r}", file=file, line=1, expected=" or ".join(map(str, _readers)), fix="update heed")
    number, said = 1, None
    for number, line in numbered:
        if isinstance(said, EndLine):
            raise UserError("something after the end", file=file, line=number, expected="nothing")
        try:
            said = _readers[version].validate_json(line, strict=True)
        except ValidationError as error:
            first_error = error.errors(include_url=False)[0]
            place = ".".join(map(str, first_error["loc"]))
            raise UserError(f"{place}: {first_error['msg']}" if place else first_error["msg"], file=file, line=number) from None
        if not isinstance(said, EndLine):
            yield Numbered(number, said)
        elif said.lines != number - 1:
            raise UserError(f"{number - 1} lines", file=file, line=number, expected=f"{said.lines} before the end", fix="export it again")
    if not isinstance(said, EndLine):
        raise UserError("the file breaks off", file=file, line=number, expected="a line for the end", fix="export it again")
