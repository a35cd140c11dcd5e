"""A whole project as lines of JSON, to be kept or moved: what one database writes, and another has read, that one writes alike.

A first line with the version, one for the project, then one for each item, lease, answer and decision, and one for the
end. Items and leases are referred to by their number, counted from 0 in the order of the lines. People are their names:
no password, session or key is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from itertools import groupby, islice
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import ConfigDict, Field, NaiveDatetime, TypeAdapter, ValidationError, with_config
from sqlalchemy import Executable, insert, select
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from heed.config import load_config
from heed.errors import UserError
from heed.feedback.database import Database, take_turns
from heed.feedback.projects import SCALE, STRENGTHS, Conflict, Project, Projects, ProjectSettings, audit, check_ranks, find_project
from heed.feedback.schema import (
    AccountRow,
    AnswerRow,
    Base,
    DecisionRow,
    ItemResponseRow,
    ItemRow,
    JudgementRow,
    LeaseRow,
    ProjectRow,
    PromptRow,
    RankRow,
    ResponseRow,
    SourceRow,
    utc_now,
)
from heed.feedback.store import add_items
from heed.records import Message, Prompt, Response

VERSION = 1
AT_ONCE = 500
"""Rows that are read or written together."""
Row = dict[str, Any]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
_strict = with_config(ConfigDict(extra="forbid"))


@_strict
@dataclass(frozen=True, slots=True)
class _Project:
    record: Literal["project"]
    name: Annotated[str, Field(max_length=80)]
    settings: Row
    revision: Count
    created_at: NaiveDatetime
    archived_at: NaiveDatetime | None


@_strict
@dataclass(frozen=True, slots=True)
class _Source:
    model: str
    sampling: Row
    run: str


@_strict
@dataclass(frozen=True, slots=True)
class _Response:
    text: str
    sources: Annotated[tuple[_Source, ...], Field(min_length=1)]


@_strict
@dataclass(frozen=True, slots=True)
class _Item:
    record: Literal["item"]
    prompt: str | tuple[tuple[str, str], ...]
    """The text, or role and content of each message."""
    tags: dict[str, str]
    responses: Annotated[tuple[_Response, ...], Field(min_length=1)]
    remaining: Count
    shuffle: Finite
    priority: Finite
    gold: tuple[int, ...] | None
    categories: tuple[str, ...]


@_strict
@dataclass(frozen=True, slots=True)
class _Lease:
    record: Literal["lease"]
    item: int
    annotator: str
    slot: Count | None
    reason: Literal["random", "uncertain", "gold", "again"]
    order: tuple[int, ...]
    state: Literal["open", "answered", "skipped", "expired"]
    created_at: NaiveDatetime
    expires_at: NaiveDatetime


@_strict
@dataclass(frozen=True, slots=True)
class _Judgement:
    ranks: tuple[int, ...]
    created_at: NaiveDatetime
    withdrawn_at: NaiveDatetime | None


@_strict
@dataclass(frozen=True, slots=True)
class _Answer:
    record: Literal["answer"]
    lease: int
    judgement: _Judgement | None
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
class _Decision:
    record: Literal["decision"]
    item: int
    lead: str
    ranks: tuple[int, ...]
    note: str
    created_at: NaiveDatetime


@_strict
@dataclass(frozen=True, slots=True)
class _End:
    record: Literal["end"]
    lines: int
    """Those before this one: a file that breaks off is told."""


_Line: TypeAlias = _Project | _Item | _Lease | _Answer | _Decision | _End
_reader: TypeAdapter[_Line] = TypeAdapter(Annotated[_Line, Field(discriminator="record")])


class _Numbered(NamedTuple):
    number: int
    """The line's, from 1."""
    said: Any


def project_rows(database: Database, project: int | str) -> Iterator[Row]:
    """All of a project, a row for each line, as it stands at one moment; NotFound where there is none."""
    found = Projects(database).get(project)

    def counted() -> Iterator[Row]:
        lines = 0
        for row in _rows(database, found.id):
            lines += 1
            yield row
        yield {"record": "end", "lines": lines}

    return counted()


def import_project(database: Database, lines: Iterable[bytes], file: str) -> Project:
    """Read into a database what `project_rows` wrote, as JSON lines; all of it or nothing.

    Annotators that the database has by name are those; others are made without a way to sign in. Raises Conflict where it
    has a project of that name, and UserError, naming `file` and line, for anything that such a project cannot hold.
    """
    reading = _read(lines, file)
    try:
        with database.write() as session:
            take_turns(session, "projects")
            take_turns(session, "texts")
            writer = _Writer(session, file)
            for kind, group in groupby(reading, key=lambda numbered: type(numbered.said)):
                while batch := list(islice(group, AT_ONCE)):
                    writer.write(kind, batch)
            return writer.done()
    except (IntegrityError, DataError) as error:
        raise UserError(f"its lines contradict each other: {error.orig}", file=file, expected="an export of a project") from None


def _rows(database: Database, project_id: int) -> Iterator[Row]:
    yield {"heed": "project", "version": VERSION}
    with database.read() as session:
        yield {"record": "project", **_columns(find_project(session, project_id), _Project)}
        items: dict[int, int] = {}
        leases: dict[int, int] = {}
        own = ItemRow.project_id == project_id
        for item, prompt, tags, responses in _items(session, project_id):
            items[item.id] = len(items)
            yield {"record": "item", "prompt": prompt, "tags": tags, "responses": responses, **_columns(item, _Item)}
        leased = select(LeaseRow, AccountRow.name).join(ItemRow, ItemRow.id == LeaseRow.item_id)
        leased = leased.join(AccountRow, AccountRow.id == LeaseRow.account_id).where(own).order_by(LeaseRow.id)
        for lease, name in _streamed(session, leased):
            leases[lease.id] = len(leases)
            yield {"record": "lease", "item": items[lease.item_id], "annotator": name, **_columns(lease, _Lease)}
        for answer, judgement in _answers(session, project_id):
            yield {"record": "answer", "lease": leases[answer.lease_id], "judgement": judgement, **_columns(answer, _Answer)}
        decided = select(DecisionRow, AccountRow.name).join(ItemRow, ItemRow.id == DecisionRow.item_id)
        decided = decided.join(AccountRow, AccountRow.id == DecisionRow.account_id).where(own).order_by(DecisionRow.id)
        for decision, name in _streamed(session, decided):
            yield {"record": "decision", "item": items[decision.item_id], "lead": name, **_columns(decision, _Decision)}


def _streamed(session: Session, query: Executable) -> Iterator[Any]:
    return iter(session.execute(query.execution_options(yield_per=AT_ONCE)))


def _items(session: Session, project_id: int) -> Iterator[tuple[ItemRow, Any, Row, list[Row]]]:
    query = select(ItemRow, PromptRow.content, PromptRow.tags).join(PromptRow, PromptRow.id == ItemRow.prompt_id)
    found = _streamed(session, query.where(ItemRow.project_id == project_id).order_by(ItemRow.id))
    while chunk := list(islice(found, AT_ONCE)):
        texts = (
            select(ItemResponseRow.item_id, ItemResponseRow.position, ResponseRow.text, SourceRow.model, SourceRow.sampling, SourceRow.run)
            .join(ResponseRow, ResponseRow.id == ItemResponseRow.response_id)
            .join(SourceRow, SourceRow.response_id == ResponseRow.id)
            .where(ItemResponseRow.item_id.in_([item.id for item, *_ in chunk]))
            .order_by(ItemResponseRow.item_id, ItemResponseRow.position, SourceRow.id)
        )
        responses: dict[int, list[Row]] = defaultdict(list)
        for (item_id, _, text), group in groupby(session.execute(texts), key=lambda row: (row.item_id, row.position, row.text)):
            sources = [{"model": model, "sampling": sampling, "run": run} for *_, model, sampling, run in group]
            responses[item_id].append({"text": text, "sources": sources})
        for item, content, tags in chunk:
            yield item, content, tags, responses[item.id]


def _answers(session: Session, project_id: int) -> Iterator[tuple[AnswerRow, Row | None]]:
    query = select(AnswerRow, JudgementRow).join(ItemRow, ItemRow.id == AnswerRow.item_id)
    query = query.outerjoin(JudgementRow, JudgementRow.id == AnswerRow.judgement_id).where(ItemRow.project_id == project_id)
    found = _streamed(session, query.order_by(AnswerRow.id))
    while chunk := list(islice(found, AT_ONCE)):
        judged = [answer.judgement_id for answer, _ in chunk if answer.judgement_id is not None]
        query = select(RankRow.judgement_id, RankRow.rank).where(RankRow.judgement_id.in_(judged))
        ranks: dict[int, list[int]] = defaultdict(list)
        for judgement_id, rank in session.execute(query.order_by(RankRow.judgement_id, RankRow.position)):
            ranks[judgement_id].append(rank)
        for answer, judgement in chunk:
            yield answer, None if judgement is None else {"ranks": ranks[judgement.id], **_columns(judgement, _Judgement)}


def _shared(line: type[Any], table: type[Base]) -> list[str]:
    """The fields of a line that are columns of a table."""
    return [f.name for f in fields(line) if f.name in table.__table__.columns]


def _columns(row: Base, line: type[Any]) -> Row:
    """What a row says as it is in a line."""
    found = {name: getattr(row, name) for name in _shared(line, type(row))}
    return {name: v.isoformat(timespec="microseconds") if isinstance(v, datetime) else v for name, v in found.items()}


def _values(said: Any, table: type[Base]) -> Row:
    """What a line says as it is in a row."""
    found = {name: getattr(said, name) for name in _shared(type(said), table)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


def _read(lines: Iterable[bytes], file: str) -> Iterator[_Numbered]:
    """Every line but the first; UserError at one that is wrong, and where the end is missing."""
    numbered = enumerate(lines, start=1)
    _, first = next(numbered, (1, b""))
    try:
        start = json.loads(first)
    except ValueError:
        start = None
    if not isinstance(start, dict) or start.get("heed") != "project":
        raise UserError("this is no export of a whole project", file=file, line=1, expected='{"heed": "project", "version": 1}')
    if start.get("version") != VERSION:
        raise UserError(f"version {start.get('version')!r}", file=file, line=1, expected=f"{VERSION}", fix="update heed")
    number, said = 1, None
    for number, line in numbered:
        if isinstance(said, _End):
            raise UserError("something after the end", file=file, line=number, expected="nothing")
        try:
            said = _reader.validate_json(line, strict=True)
        except ValidationError as error:
            first_error = error.errors(include_url=False)[0]
            place = ".".join(map(str, first_error["loc"]))
            raise UserError(f"{place}: {first_error['msg']}" if place else first_error["msg"], file=file, line=number) from None
        if not isinstance(said, _End):
            yield _Numbered(number, said)
        elif said.lines != number - 1:
            raise UserError(f"{number - 1} lines", file=file, line=number, expected=f"{said.lines} before the end", fix="export it again")
    if not isinstance(said, _End):
        raise UserError("the file breaks off", file=file, line=number, expected="a line for the end", fix="export it again")


@dataclass
class _Writer:
    """Adds lines to a database within a transaction."""

    session: Session
    file: str
    project: ProjectRow | None = None
    items: list[tuple[int, str, list[int]]] = field(default_factory=list)
    """Of each item its id, its prompt's, and its responses'."""
    leases: list[tuple[int, int, str, list[int]]] = field(default_factory=list)
    """Of each lease its id, its item's number, the annotator, and the order shown."""
    accounts: dict[str, int] = field(default_factory=dict)

    def write(self, kind: type[Any], batch: Sequence[_Numbered]) -> None:
        if (kind is _Project) != (self.project is None):
            raise self._error(batch[0].number, "a line out of place", "one project first, then what it holds")
        adders = {_Project: self._add_project, _Item: self._add_items, _Lease: self._add_leases, _Answer: self._add_answers}
        {**adders, _Decision: self._add_decisions}[kind](batch)

    def done(self) -> Project:
        if self.project is None:
            raise self._error(1, "nothing but the first line", "a project")
        counts = {"items": len(self.items), "leases": len(self.leases)}
        audit(self.session, None, "project.import", project=self.project.id, name=self.project.name, **counts)
        settings = load_config(ProjectSettings, self.project.settings, self.file)
        return Project(self.project.id, self.project.name, settings, self.project.revision, self.project.archived_at is not None)

    def _error(self, number: int, found: str, expected: str | None = None) -> UserError:
        return UserError(found, file=self.file, line=number, expected=expected)

    def _add_project(self, batch: Sequence[_Numbered]) -> None:
        (number, said), *more = batch
        if more:
            raise self._error(more[0].number, "a second project", "one in a file")
        if not said.name.strip() or not said.name.isprintable():
            raise self._error(number, f"a project named {said.name!r}", "a name that can be seen")
        if self.session.scalar(select(ProjectRow.id).where(ProjectRow.name == said.name)):
            raise Conflict(f"there is a project {said.name!r} already", fix="import into another database")
        try:
            load_config(ProjectSettings, said.settings, self.file)
        except UserError as error:
            raise self._error(number, str(error).removeprefix(f"{self.file}: ")) from None
        self.project = ProjectRow(**_values(said, ProjectRow))
        self.session.add(self.project)
        self.session.flush()

    def _add_items(self, batch: Sequence[_Numbered]) -> None:
        assert self.project is not None
        contents = [
            (_prompt(said), [Response(r.text, s.model, s.sampling, s.run) for r in said.responses for s in r.sources]) for _, said in batch
        ]
        rows = []
        for (number, said), (prompt, _), found in zip(batch, contents, add_items(self.session, contents), strict=True):
            ids = list(dict.fromkeys(found))
            if len(ids) < len(said.responses):
                raise self._error(number, "a response that comes twice", "different responses")
            if said.gold is not None:
                self._check_ranks(number, said.gold, len(ids))
            digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
            rows.append((ItemRow(project_id=self.project.id, prompt_id=prompt.id, digest=digest, **_values(said, ItemRow)), ids))
        self.session.add_all(row for row, _ in rows)
        self.session.flush()
        places = [{"item_id": row.id, "position": i, "response_id": r} for row, ids in rows for i, r in enumerate(ids)]
        self.session.execute(insert(ItemResponseRow), places)
        self.items += [(row.id, row.prompt_id, ids) for row, ids in rows]

    def _add_leases(self, batch: Sequence[_Numbered]) -> None:
        rows = []
        for number, said in batch:
            item_id, _, responses = self._find(self.items, said.item, "item", number)
            if sorted(said.order) != list(range(len(responses))):
                raise self._error(number, f"order {list(said.order)}", f"each of 0 to {len(responses) - 1} once")
            account_id = self._account(said.annotator, "annotator", number)
            rows.append((LeaseRow(item_id=item_id, account_id=account_id, **_values(said, LeaseRow)), said))
        self.session.add_all(row for row, _ in rows)
        self.session.flush()
        self.leases += [(row.id, said.item, said.annotator, row.order) for row, said in rows]

    def _add_answers(self, batch: Sequence[_Numbered]) -> None:
        rows, judgements, ranks = [], [], []
        for number, said in batch:
            lease_id, item, annotator, order = self._find(self.leases, said.lease, "lease", number)
            item_id, prompt_id, responses = self.items[item]
            places = {place for named in said.flags.values() for place in named}
            if any(len(rated) != len(responses) for rated in said.ratings.values()) or not places <= set(range(len(responses))):
                raise self._error(number, "ratings or flags that do not fit the item", f"something of its {len(responses)} responses")
            row = AnswerRow(lease_id=lease_id, item_id=item_id, account_id=self.accounts[annotator], **_values(said, AnswerRow))
            rows.append(row)
            if said.judgement is None:
                continue
            self._check_ranks(number, said.judgement.ranks, len(responses))
            signed = {"prompt_id": prompt_id, "annotator": annotator, "seconds": said.seconds, "note": said.note}
            judgements.append((row, JudgementRow(**signed, **_values(said.judgement, JudgementRow))))
            ranked = zip(responses, said.judgement.ranks, strict=True)
            ranks.append(
                [
                    {"position": place, "response_id": response_id, "rank": rank, "shown": order.index(place)}
                    for place, (response_id, rank) in enumerate(ranked)
                ]
            )
        self.session.add_all(judgement for _, judgement in judgements)
        self.session.flush()
        for row, judgement in judgements:
            row.judgement_id = judgement.id
        self.session.add_all(rows)
        self.session.flush()
        found = [{"judgement_id": j.id, **rank} for (_, j), ranked in zip(judgements, ranks, strict=True) for rank in ranked]
        if found:
            self.session.execute(insert(RankRow), found)

    def _add_decisions(self, batch: Sequence[_Numbered]) -> None:
        for number, said in batch:
            item_id, _, responses = self._find(self.items, said.item, "item", number)
            self._check_ranks(number, said.ranks, len(responses))
            account_id = self._account(said.lead, "lead", number)
            self.session.add(DecisionRow(item_id=item_id, account_id=account_id, **_values(said, DecisionRow)))
        self.session.flush()

    def _find(self, known: Sequence[Any], number: int, what: str, line: int) -> Any:
        if not 0 <= number < len(known):
            raise self._error(line, f"{what} {number}", f"one of the {len(known)} in the lines before")
        return known[number]

    def _check_ranks(self, number: int, ranks: Sequence[int], count: int) -> None:
        try:
            check_ranks(ranks, count)
        except UserError as error:
            raise self._error(number, str(error)) from None

    def _account(self, name: str, role: str, number: int) -> int:
        """The account of this name; where there is none, one that nobody can sign in to."""
        if name not in self.accounts:
            row = self.session.scalar(select(AccountRow).where(AccountRow.name == name))
            if row is None:
                if not (0 < len(name) <= 80 and name.isprintable()):
                    raise self._error(number, f"a person named {name[:100]!r}", "1 to 80 characters that can be seen")
                row = AccountRow(name=name, role=role, avoid=[], deleted_at=utc_now())
                self.session.add(row)
                self.session.flush()
            self.accounts[name] = row.id
        return self.accounts[name]


def _prompt(item: _Item) -> Prompt:
    return Prompt(item.prompt if isinstance(item.prompt, str) else tuple(Message(*m) for m in item.prompt), item.tags)
