"""A whole project as lines of JSON, to be kept or moved: what one database writes, and another has read, that one writes alike.

A first line with the version, one for the project, then one for each item, waiting prompt, lease, answer and decision, for
each reward model and what it gives an item, for each learning curve, and one for the end. Items, leases and reward models are
referred to by their number, counted from 0 in the order of the lines. People are their names: no password, session or key is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice, pairwise
from typing import Any, NamedTuple

from sqlalchemy import Executable, and_, insert, select
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from heed.config import load_config
from heed.errors import UserError
from heed.feedback.accounts import alone
from heed.feedback.categories import merged_tags
from heed.feedback.database import Database, take_turns
from heed.feedback.projects import Conflict, Project, Projects, ProjectSettings, audit, check_ranks, find_project
from heed.feedback.schema import (
    AccountRow,
    AnswerRow,
    DecisionRow,
    ItemResponseRow,
    ItemRow,
    JudgementRow,
    LearningCurveRow,
    LeaseRow,
    ProjectRow,
    PromptRow,
    RankRow,
    ResponseRow,
    RewardModelRow,
    RewardScoreRow,
    SourceRow,
    WaitingPromptRow,
)
from heed.feedback.store import add_items, prompt_categories
from heed.feedback.transfer_records import (
    VERSION,
    AnswerLine,
    CurveLine,
    DecisionLine,
    ItemLine,
    JudgementLine,
    LeaseLine,
    Numbered,
    ProjectLine,
    RewardModelLine,
    Row,
    ScoresLine,
    WaitingLine,
    columns,
    read_lines,
    values,
)
from heed.records import Message, Prompt, Response

AT_ONCE = 500
"""Rows that are read or written together."""


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
    reading = read_lines(lines, file)
    try:
        with database.write() as session:
            take_turns(session, "projects")
            take_turns(session, "texts")
            alone(session)
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
        yield {"record": "project", **columns(find_project(session, project_id), ProjectLine)}
        items: dict[int, int] = {}
        leases: dict[int, int] = {}
        own = ItemRow.project_id == project_id
        for item, prompt, tags, responses in _items(session, project_id):
            items[item.id] = len(items)
            yield {"record": "item", "prompt": prompt, "tags": tags, "responses": responses, **columns(item, ItemLine)}
        waiting = select(WaitingPromptRow, PromptRow.content, PromptRow.tags).join(PromptRow, PromptRow.id == WaitingPromptRow.prompt_id)
        for row, prompt, tags in _streamed(session, waiting.where(WaitingPromptRow.project_id == project_id).order_by(WaitingPromptRow.id)):
            yield {"record": "waiting", "prompt": prompt, "tags": tags, **columns(row, WaitingLine)}
        leased = select(LeaseRow, AccountRow.name).join(ItemRow, ItemRow.id == LeaseRow.item_id)
        leased = leased.join(AccountRow, AccountRow.id == LeaseRow.account_id).where(own).order_by(LeaseRow.id)
        for lease, name in _streamed(session, leased):
            leases[lease.id] = len(leases)
            yield {"record": "lease", "item": items[lease.item_id], "annotator": name, **columns(lease, LeaseLine)}
        for answer, judgement in _answers(session, project_id):
            yield {"record": "answer", "lease": leases[answer.lease_id], "judgement": judgement, **columns(answer, AnswerLine)}
        decided = select(DecisionRow, AccountRow.name).join(ItemRow, ItemRow.id == DecisionRow.item_id)
        decided = decided.join(AccountRow, AccountRow.id == DecisionRow.account_id).where(own).order_by(DecisionRow.id)
        for decision, name in _streamed(session, decided):
            yield {"record": "decision", "item": items[decision.item_id], "lead": name, **columns(decision, DecisionLine)}
        models = select(RewardModelRow).where(RewardModelRow.project_id == project_id).order_by(RewardModelRow.id)
        for number, model in enumerate(session.scalars(models)):
            yield {"record": "reward_model", **columns(model, RewardModelLine)}
            for item_id, scores in _scores(session, project_id, model.id):
                yield {"record": "scores", "model": number, "item": items[item_id], "scores": scores}
        curves = select(LearningCurveRow).where(LearningCurveRow.project_id == project_id).order_by(LearningCurveRow.id)
        for curve in session.scalars(curves):
            yield {"record": "learning_curve", **columns(curve, CurveLine)}


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
            yield answer, None if judgement is None else {"ranks": ranks[judgement.id], **columns(judgement, JudgementLine)}


def _scores(session: Session, project_id: int, model_id: int) -> Iterator[tuple[int, list[float | None]]]:
    """Of each item that a reward model has scored, its id and the scores of its responses."""
    given = and_(RewardScoreRow.response_id == ItemResponseRow.response_id, RewardScoreRow.reward_model_id == model_id)
    query = (
        select(ItemResponseRow.item_id, RewardScoreRow.score)
        .join(ItemRow, ItemRow.id == ItemResponseRow.item_id)
        .outerjoin(RewardScoreRow, given)
        .where(ItemRow.project_id == project_id)
        .order_by(ItemResponseRow.item_id, ItemResponseRow.position)
    )
    for item_id, group in groupby(_streamed(session, query), key=lambda row: row.item_id):
        scores = [row.score for row in group]
        if scores.count(None) < len(scores):
            yield item_id, scores


class _Lease(NamedTuple):
    """A lease that was added."""

    line: int
    id: int
    item: int
    """The item's number."""
    annotator: str
    order: list[int]
    state: str


@dataclass
class _Writer:
    """Adds lines to a database within a transaction."""

    session: Session
    file: str
    project: ProjectRow | None = None
    items: list[tuple[int, str, list[int]]] = field(default_factory=list)
    """Of each item its id, its prompt's, and its responses'."""
    leases: list[_Lease] = field(default_factory=list)
    answered: set[int] = field(default_factory=set)
    """The ids of leases whose answer, or reason to skip, stands."""
    accounts: dict[str, int] = field(default_factory=dict)
    models: list[int] = field(default_factory=list)
    """The id of each reward model."""
    scores: dict[tuple[int, int], float] = field(default_factory=dict)
    """By reward model and response; a response that several items share comes with each of them."""

    def write(self, kind: type[Any], batch: Sequence[Numbered]) -> None:
        if (kind is ProjectLine) != (self.project is None):
            raise self._error(batch[0].number, "a line out of place", "one project first, then what it holds")
        adders = {
            ProjectLine: self._add_project,
            ItemLine: self._add_items,
            WaitingLine: self._add_waiting,
            LeaseLine: self._add_leases,
            AnswerLine: self._add_answers,
            DecisionLine: self._add_decisions,
            RewardModelLine: self._add_models,
            ScoresLine: self._add_scores,
            CurveLine: self._add_curves,
        }
        adders[kind](batch)

    def done(self) -> Project:
        if self.project is None:
            raise self._error(1, "nothing but the first line", "a project")
        for lease in self.leases:
            if lease.state in ("answered", "skipped") and lease.id not in self.answered:
                raise self._error(lease.line, f"a lease that was {lease.state}", "a line that says how, and was not undone")
        counts = {"items": len(self.items), "leases": len(self.leases)}
        audit(self.session, None, "project.import", project=self.project.id, name=self.project.name, **counts)
        settings = load_config(ProjectSettings, self.project.settings, self.file)
        return Project(self.project.id, self.project.name, settings, self.project.revision, self.project.archived_at is not None)

    def _error(self, number: int, found: str, expected: str | None = None) -> UserError:
        return UserError(found, file=self.file, line=number, expected=expected)

    def _add_project(self, batch: Sequence[Numbered]) -> None:
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
        self.project = ProjectRow(**values(said, ProjectRow))
        self.session.add(self.project)
        self.session.flush()

    def _add_items(self, batch: Sequence[Numbered]) -> None:
        assert self.project is not None
        contents = [
            (_prompt(said), [Response(r.text, s.model, s.sampling, s.run) for r in said.responses for s in r.sources]) for _, said in batch
        ]
        rows, added = [], add_items(self.session, contents)
        categories = prompt_categories(self.session, {prompt.id for prompt, _ in contents})
        for (number, said), (prompt, _), found in zip(batch, contents, added, strict=True):
            ids = list(dict.fromkeys(found))
            if len(ids) < len(said.responses):
                raise self._error(number, "a response that comes twice", "different responses")
            if said.gold is not None:
                self._check_ranks(number, said.gold, len(ids))
            digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
            own = {**values(said, ItemRow), "categories": categories[prompt.id]}
            rows.append((ItemRow(project_id=self.project.id, prompt_id=prompt.id, digest=digest, **own), ids))
        self.session.add_all(row for row, _ in rows)
        self.session.flush()
        places = [{"item_id": row.id, "position": i, "response_id": r} for row, ids in rows for i, r in enumerate(ids)]
        self.session.execute(insert(ItemResponseRow), places)
        self.items += [(row.id, row.prompt_id, ids) for row, ids in rows]

    def _add_waiting(self, batch: Sequence[Numbered]) -> None:
        prompts = [_prompt(said) for _, said in batch]
        add_items(self.session, [(prompt, ()) for prompt in prompts])
        rows = zip(prompts, batch, strict=True)
        self._insert(WaitingPromptRow, [{"prompt_id": prompt.id, **values(said, WaitingPromptRow)} for prompt, (_, said) in rows])

    def _add_leases(self, batch: Sequence[Numbered]) -> None:
        rows = []
        for number, said in batch:
            item_id, _, responses = self._find(self.items, said.item, "item", number)
            if sorted(said.order) != list(range(len(responses))):
                raise self._error(number, f"order {list(said.order)}", f"each of 0 to {len(responses) - 1} once")
            account_id = self._account(said.annotator, "annotator", number)
            rows.append((LeaseRow(item_id=item_id, account_id=account_id, **values(said, LeaseRow)), number, said))
        self.session.add_all(row for row, _, _ in rows)
        self.session.flush()
        self.leases += [_Lease(number, row.id, said.item, said.annotator, row.order, said.state) for row, number, said in rows]

    def _add_answers(self, batch: Sequence[Numbered]) -> None:
        rows, judgements, ranks = [], [], []
        for number, said in batch:
            lease = self._find(self.leases, said.lease, "lease", number)
            self._check_standing(number, lease, said)
            item_id, prompt_id, responses = self.items[lease.item]
            places = {place for named in said.flags.values() for place in named}
            if any(len(rated) != len(responses) for rated in said.ratings.values()) or not places <= set(range(len(responses))):
                raise self._error(number, "ratings or flags that do not fit the item", f"something of its {len(responses)} responses")
            row = AnswerRow(lease_id=lease.id, item_id=item_id, account_id=self.accounts[lease.annotator], **values(said, AnswerRow))
            rows.append(row)
            if said.judgement is None:
                continue
            self._check_ranks(number, said.judgement.ranks, len(responses))
            signed = {"prompt_id": prompt_id, "annotator": lease.annotator, "seconds": said.seconds, "note": said.note}
            judgements.append((row, JudgementRow(**signed, **values(said.judgement, JudgementRow))))
            ranked = zip(responses, said.judgement.ranks, strict=True)
            ranks.append(
                [
                    {"position": place, "response_id": response_id, "rank": rank, "shown": lease.order.index(place)}
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

    def _add_decisions(self, batch: Sequence[Numbered]) -> None:
        for number, said in batch:
            item_id, _, responses = self._find(self.items, said.item, "item", number)
            self._check_ranks(number, said.ranks, len(responses))
            account_id = self._account(said.lead, "lead", number)
            self.session.add(DecisionRow(item_id=item_id, account_id=account_id, **values(said, DecisionRow)))
        self.session.flush()

    def _add_models(self, batch: Sequence[Numbered]) -> None:
        assert self.project is not None
        rows = [RewardModelRow(project_id=self.project.id, **values(said, RewardModelRow)) for _, said in batch]
        self.session.add_all(rows)
        self.session.flush()
        self.models += [row.id for row in rows]

    def _add_scores(self, batch: Sequence[Numbered]) -> None:
        new: dict[tuple[int, int], float] = {}
        for number, said in batch:
            model_id = self._find(self.models, said.model, "reward model", number)
            _, _, responses = self._find(self.items, said.item, "item", number)
            if len(said.scores) != len(responses):
                raise self._error(number, f"{len(said.scores)} scores", f"one for each of {len(responses)} responses, or null")
            for key, score in zip([(model_id, response_id) for response_id in responses], said.scores, strict=True):
                known = self.scores.get(key, new.get(key))
                if score is not None and known is not None and known != score:
                    raise self._error(number, f"score {score}", f"{known}, as another item has it for the same response")
                if score is not None and known is None:
                    new[key] = score
        self.scores |= new
        rows = [{"reward_model_id": model, "response_id": response, "score": score} for (model, response), score in new.items()]
        if rows:
            self.session.execute(insert(RewardScoreRow), rows)

    def _add_curves(self, batch: Sequence[Numbered]) -> None:
        for number, said in batch:
            answers = [point.answers for point in said.points]
            if any(one >= other for one, other in pairwise(answers)):
                raise self._error(number, f"points from {', '.join(map(str, answers[:8]))} answers", "each from more than the one before")
        points = [[asdict(point) for point in said.points] for _, said in batch]
        rows = zip(batch, points, strict=True)
        self._insert(LearningCurveRow, [{**values(said, LearningCurveRow), "points": found} for (_, said), found in rows])

    def _insert(self, table: type[WaitingPromptRow | LearningCurveRow], rows: Sequence[Row]) -> None:
        """Rows of the project to which no other line refers."""
        assert self.project is not None
        self.session.execute(insert(table), [{"project_id": self.project.id, **row} for row in rows])

    def _find(self, known: Sequence[Any], number: int, what: str, line: int) -> Any:
        if not 0 <= number < len(known):
            raise self._error(line, f"{what} {number}", f"one of the {len(known)} in the lines before")
        return known[number]

    def _check_standing(self, number: int, lease: _Lease, said: AnswerLine) -> None:
        """Of a lease one answer stands, or one reason to skip, as its state says; none that is open or expired."""
        if said.undone_at is not None:
            return
        if lease.state != ("skipped" if said.skipped else "answered"):
            what = "a reason to skip" if said.skipped else "an answer"
            raise self._error(
                number, f"{what} to a lease that is {lease.state}", f"one that was undone, or another state in line {lease.line}"
            )
        if lease.id in self.answered:
            raise self._error(number, f"a second answer to the lease of line {lease.line}", "one that was not undone")
        self.answered.add(lease.id)

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
                row = AccountRow(name=name, role=role, avoid=[])
                self.session.add(row)
                self.session.flush()
            self.accounts[name] = row.id
        return self.accounts[name]


def _prompt(said: ItemLine | WaitingLine) -> Prompt:
    # An older heed could write categories of an item that its prompt's tags do not name.
    known = ", ".join(said.categories) if isinstance(said, ItemLine) else ""
    tags = merged_tags(said.tags, {"categories": known}) if known else said.tags
    return Prompt(said.prompt if isinstance(said.prompt, str) else tuple(Message(*m) for m in said.prompt), tags)
