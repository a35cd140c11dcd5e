"""Where judgements are kept: a database that two processes can share and a crash does not hurt."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from heed.errors import UserError
from heed.feedback.categories import categories_of, merged_tags
from heed.feedback.database import Database, take_turns
from heed.feedback.schema import AnswerRow, ItemRow, JudgementRow, ProjectRow, PromptRow, RankRow, ResponseRow, SourceRow
from heed.records import Judgement, Message, Prompt, Response

MAX_TEXT = 1_000_000
"""Characters of a prompt or a response."""


class FeedbackStore:
    """Prompts, responses with their provenance, and judgements, in SQLite or any database that SQLAlchemy opens.

    `location` is a file (made where there is none), a database URL, or a database that is open. Every `add_*` is one
    transaction that is on disk when the call returns, and adds all or nothing. Readers, also in other processes, are never
    blocked. Raises UserError where the location cannot be opened.
    """

    def __init__(self, location: str | Path | Database) -> None:
        self.database = location if isinstance(location, Database) else Database(location)

    def close(self) -> None:
        """Let the connections go; the next call opens them again."""
        self.database.close()

    def add_prompt(self, prompt: Prompt) -> str:
        """Add a prompt and return its id; a known prompt gains the tags and `categories` it did not have, and new values of other tags."""
        self.add_items([(prompt, ())])
        return prompt.id

    def add_responses(self, prompt: Prompt, responses: Sequence[Response]) -> list[int]:
        """Add responses to a prompt (itself added where needed) and return their ids; a known text keeps its id, a new source is added."""
        return self.add_items([(prompt, responses)])[0]

    def add_items(self, items: Sequence[tuple[Prompt, Sequence[Response]]]) -> list[list[int]]:
        """Add many prompts, each with its responses, in one transaction; returns the response ids of each.

        Raises UserError, and adds none, for a text that nobody could read: one of more than a million characters.
        """
        with self.database.write() as session:
            take_turns(session, "texts")
            return add_items(session, items)

    def add_judgement(self, judgement: Judgement) -> int:
        """Add one judgement and return its id; raises UserError as `add_judgements` does."""
        return self.add_judgements([judgement])[0]

    def add_judgements(self, judgements: Sequence[Judgement]) -> list[int]:
        """Add many judgements in one transaction and return their ids.

        A judgement is always added, so an annotator may be asked twice. Raises UserError, and adds none, where a
        response is unknown or named twice, ranks do not fit, or the order shown is no permutation.
        """
        with self.database.write() as session:
            return add_judgements(session, judgements)

    def prompts(self) -> list[Prompt]:
        """All prompts, in the order they were added."""
        with self.database.read() as session:
            return list(_prompts(session).values())

    def responses(self, prompt: Prompt) -> list[Response]:
        """The responses to a prompt in the order they were added; a text from two sources comes once for each."""
        query = (
            select(ResponseRow.text, SourceRow.model, SourceRow.sampling, SourceRow.run)
            .join(SourceRow, SourceRow.response_id == ResponseRow.id)
            .where(ResponseRow.prompt_id == prompt.id)
            .order_by(ResponseRow.id, SourceRow.id)
        )
        with self.database.read() as session:
            return [Response(*row) for row in session.execute(query)]

    def judgements(self, *, in_projects: bool = True) -> list[Judgement]:
        """All judgements that were not withdrawn, in the order they were added; or those alone that no labelling project has."""
        alone = select(JudgementRow.id).except_(select(AnswerRow.judgement_id))
        outside = [] if in_projects else [JudgementRow.id.in_(alone)]
        query = (
            select(JudgementRow.id, JudgementRow.prompt_id, JudgementRow.annotator, JudgementRow.seconds, JudgementRow.note)
            .add_columns(ResponseRow.text, RankRow.rank, RankRow.shown)
            .join(RankRow, RankRow.judgement_id == JudgementRow.id)
            .join(ResponseRow, ResponseRow.id == RankRow.response_id)
            .where(JudgementRow.withdrawn_at.is_(None), *outside)
            .order_by(JudgementRow.id, RankRow.position)
        )
        with self.database.read() as session:
            rows = session.execute(query).all()
            prompts = _prompts(session)
        return [_judgement(list(group), prompts) for _, group in groupby(rows, key=lambda row: row.id)]

    def counts(self) -> dict[str, int]:
        """How many prompts, responses, judgements and annotators there are."""
        standing = JudgementRow.withdrawn_at.is_(None)
        with self.database.read() as session:
            counts = {
                "prompts": session.scalar(select(func.count(PromptRow.number))),
                "responses": session.scalar(select(func.count(ResponseRow.id))),
                "judgements": session.scalar(select(func.count(JudgementRow.id)).where(standing)),
                "annotators": session.scalar(select(func.count(JudgementRow.annotator.distinct())).where(standing)),
            }
        return {name: count or 0 for name, count in counts.items()}


def add_items(session: Session, items: Sequence[tuple[Prompt, Sequence[Response]]]) -> list[list[int]]:
    """`FeedbackStore.add_items` within a transaction that takes its turn at `texts`."""
    for prompt, responses in items:
        longest = max(len(prompt.display()), max((len(r.text) for r in responses), default=0))
        if longest > MAX_TEXT:
            raise UserError(f"a text of {longest:,} characters", expected=f"at most {MAX_TEXT:,}")
    _add_prompts(session, [prompt for prompt, _ in items])
    ids = _add_texts(session, [(prompt.id, r.text) for prompt, responses in items for r in responses])
    _add_sources(session, [(ids[prompt.id, r.text], r) for prompt, responses in items for r in responses])
    return [[ids[prompt.id, r.text] for r in responses] for prompt, responses in items]


def add_judgements(session: Session, judgements: Sequence[Judgement]) -> list[int]:
    """`FeedbackStore.add_judgements` within a transaction."""
    ids = _response_ids(session, {j.prompt.id for j in judgements})
    for judgement in judgements:
        _validate(judgement, ids)
    rows = [JudgementRow(prompt_id=j.prompt.id, annotator=j.annotator, seconds=j.seconds, note=j.note) for j in judgements]
    session.add_all(rows)
    session.flush()
    ranks = [rank for row, j in zip(rows, judgements, strict=True) for rank in _ranks(row.id, j, ids)]
    if ranks:
        session.execute(insert(RankRow), ranks)  # in bulk: as objects they would take most of the time
    return [row.id for row in rows]


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _chunks(values: Iterable[Any], size: int = 500) -> Iterator[list[Any]]:
    """Slices small enough for the number of parameters that databases take in one statement."""
    found = list(values)
    for start in range(0, len(found), size):
        yield found[start : start + size]


def _add_prompts(session: Session, prompts: Sequence[Prompt]) -> None:
    known: dict[str, PromptRow] = {}
    for ids in _chunks({p.id for p in prompts}):
        known.update((row.id, row) for row in session.scalars(select(PromptRow).where(PromptRow.id.in_(ids))))
    before = {row.id: categories_of(row.tags) for row in known.values()}
    for prompt in prompts:
        if prompt.id in known:
            known[prompt.id].tags = merged_tags(known[prompt.id].tags, prompt.tags)
        else:
            content = prompt.text if isinstance(prompt.text, str) else [[m.role, m.content] for m in prompt.text]
            known[prompt.id] = PromptRow(id=prompt.id, content=content, tags=dict(prompt.tags))
            session.add(known[prompt.id])
    session.flush()
    after = {prompt_id: categories_of(known[prompt_id].tags) for prompt_id in before}
    _refresh_items(session, {prompt_id: names for prompt_id, names in after.items() if names != before[prompt_id]})


def _refresh_items(session: Session, changed: Mapping[str, list[str]]) -> None:
    """Give items, whatever their project, the categories that their prompts have got."""
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for prompt_id, names in changed.items():
        alike[tuple(names)].append(prompt_id)
    for names, prompt_ids in alike.items():
        for ids in _chunks(prompt_ids):
            # Their projects are named so that the index is used, and locked first, as by all who change items.
            own = ItemRow.project_id.in_(select(ProjectRow.id)), ItemRow.prompt_id.in_(ids)
            projects = select(ProjectRow.id).where(ProjectRow.id.in_(select(ItemRow.project_id).where(*own)))
            session.execute(projects.with_for_update(key_share=True))
            session.execute(update(ItemRow).where(*own).values(categories=list(names)).execution_options(synchronize_session=False))


def prompt_categories(session: Session, prompt_ids: Iterable[str]) -> dict[str, list[str]]:
    """What each of these prompts may hold, by all that was ever said of it."""
    found: dict[str, list[str]] = {}
    for ids in _chunks(prompt_ids):
        query = select(PromptRow.id, PromptRow.tags).where(PromptRow.id.in_(ids))
        found.update((prompt_id, categories_of(tags)) for prompt_id, tags in session.execute(query))
    return found


def _response_ids(session: Session, prompt_ids: Iterable[str]) -> dict[tuple[str, str], int]:
    """The id of each response, by prompt id and text."""
    found: dict[tuple[str, str], int] = {}
    for ids in _chunks(prompt_ids):
        query = select(ResponseRow.prompt_id, ResponseRow.text, ResponseRow.id).where(ResponseRow.prompt_id.in_(ids))
        found.update(((prompt_id, text), response_id) for prompt_id, text, response_id in session.execute(query))
    return found


def _add_texts(session: Session, texts: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    known = _response_ids(session, {prompt_id for prompt_id, _ in texts})
    new = [(i, text) for i, text in dict.fromkeys(texts) if (i, text) not in known]
    rows = [ResponseRow(prompt_id=prompt_id, text=text, digest=_digest(text)) for prompt_id, text in new]
    session.add_all(rows)
    session.flush()
    return known | {(row.prompt_id, row.text): row.id for row in rows}


def _add_sources(session: Session, responses: Sequence[tuple[int, Response]]) -> None:
    known: set[tuple[int, str]] = set()
    for ids in _chunks({response_id for response_id, _ in responses}):
        query = select(SourceRow.response_id, SourceRow.digest).where(SourceRow.response_id.in_(ids))
        known.update((response_id, digest) for response_id, digest in session.execute(query))
    for response_id, r in responses:
        digest = _digest([r.model, dict(r.sampling), r.run])
        if (response_id, digest) not in known:
            known.add((response_id, digest))
            session.add(SourceRow(response_id=response_id, digest=digest, model=r.model, sampling=dict(r.sampling), run=r.run))


def _validate(judgement: Judgement, ids: Mapping[tuple[str, str], int]) -> None:
    def reject(found: str, expected: str) -> UserError:
        return UserError(f"judgement by {judgement.annotator!r} of prompt {judgement.prompt.id}: {found}", expected=expected)

    count, ranks, order, seconds = len(judgement.responses), judgement.ranks, judgement.order_shown, judgement.seconds
    if not judgement.annotator:
        raise reject("no annotator", "a name")
    if count < 2 or len(set(judgement.responses)) < count:
        raise reject(f"{count} responses, {len(set(judgement.responses))} of them different", "2 or more, all different")
    if len(ranks) != count or not all(isinstance(rank, int) for rank in ranks) or min(ranks) != 1:
        raise reject(f"ranks {ranks} for {count} responses", "one whole number for each response, 1 the best")
    if order and sorted(order) != list(range(count)):
        raise reject(f"order shown {order}", f"each of 0 to {count - 1} once, or nothing")
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise reject(f"{seconds} seconds", "0 or more")
    for response in judgement.responses:
        if (judgement.prompt.id, response) not in ids:
            raise reject(f"unknown response {response[:60]!r}", "one that was added to the store before")


def _ranks(judgement_id: int, judgement: Judgement, ids: Mapping[tuple[str, str], int]) -> Iterator[dict[str, int | None]]:
    """The rows of `judgement_ranks`."""
    for position, (text, rank) in enumerate(zip(judgement.responses, judgement.ranks, strict=True)):
        yield {
            "judgement_id": judgement_id,
            "position": position,
            "response_id": ids[judgement.prompt.id, text],
            "rank": rank,
            "shown": judgement.order_shown.index(position) if judgement.order_shown else None,
        }


def _prompts(session: Session) -> dict[str, Prompt]:
    rows = session.execute(select(PromptRow.id, PromptRow.content, PromptRow.tags).order_by(PromptRow.number))
    return {i: Prompt(c if isinstance(c, str) else tuple(Message(*m) for m in c), tags) for i, c, tags in rows}


def _judgement(rows: Sequence[Any], prompts: Mapping[str, Prompt]) -> Judgement:
    """One judgement from its ranks' rows, in the order of their position."""
    first = rows[0]
    return Judgement(
        prompt=prompts[first.prompt_id],
        responses=tuple(row.text for row in rows),
        ranks=tuple(row.rank for row in rows),
        annotator=first.annotator,
        order_shown=() if first.shown is None else tuple(sorted(range(len(rows)), key=lambda i: rows[i].shown)),
        seconds=first.seconds,
        note=first.note,
    )
