"""What annotators disagree on most, for someone to decide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

from sqlalchemy import String, cast, func, select
from sqlalchemy.orm import Session

from heed.feedback.answers import in_order
from heed.feedback.database import Database
from heed.feedback.projects import IDS, NotFound
from heed.feedback.schema import AccountRow, AnswerRow, DecisionRow, ItemResponseRow, ItemRow, PromptRow, RankRow, ResponseRow
from heed.records import Message, Prompt

LATEST = 5_000
"""Answers, from the last one back, in which disputes are looked for: older ones would make the lead wait."""


class Said(NamedTuple):
    """A standing judgement of an item."""

    item_id: int
    annotator: int
    ranks: tuple[int, ...]
    """Of the item's responses, in its order; 1 is best."""


class Dispute(NamedTuple):
    """An item that two annotators or more have judged."""

    item_id: int
    annotators: int
    disagreement: float
    """From 0, all say the same of every pair of responses, to 1, all say the opposite."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one annotator said of an item, responses in the item's order."""

    annotator: str
    ranks: tuple[int, ...] | None
    strength: int | None
    ratings: Mapping[str, Sequence[int | None]]
    flags: Mapping[str, Sequence[int]]
    ideal: str
    skipped: str
    note: str


@dataclass(frozen=True, slots=True)
class Decision:
    """A lead's own ranking of an item."""

    lead: str
    ranks: tuple[int, ...]
    note: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Case:
    """An item with all that was said of it and not taken back, the first first."""

    project_id: int
    prompt: Prompt
    responses: tuple[str, ...]
    opinions: tuple[Opinion, ...]
    decisions: tuple[Decision, ...]


def disputes(said: Iterable[Said]) -> list[Dispute]:
    """Items with judgements of two annotators or more, the most disputed first; of an annotator the last judgement counts."""
    items: dict[int, dict[int, tuple[int, ...]]] = defaultdict(dict)
    for item_id, annotator, ranks in said:
        items[item_id][annotator] = ranks
    found = [Dispute(item_id, len(by), disagreement(list(by.values()))) for item_id, by in items.items() if len(by) > 1]
    return sorted(found, key=lambda dispute: (-dispute.disagreement, -dispute.annotators, dispute.item_id))


def disagreement(rankings: Sequence[Sequence[int]]) -> float:
    """How far rankings `[annotators][responses]` of the same responses differ: 1 minus their pairwise agreement.

    The mean over pairs of responses and couples of annotators: 0 for the same outcome, 1/2 for a tie against a preference,
    1 for opposite preferences. Raises ValueError for fewer than two rankings or responses.
    """
    outcomes = [[(b > a) - (b < a) for a, b in combinations(ranks, 2)] for ranks in rankings]
    differences = [abs(a - b) / 2 for one, other in combinations(outcomes, 2) for a, b in zip(one, other, strict=True)]
    if not differences:
        raise ValueError(f"{len(rankings)} rankings cannot disagree")
    return sum(differences) / len(differences)


def standing_judgements(database: Database, project_id: int) -> list[Said]:
    """What annotators have said of a project's items and not taken back, among its latest answers."""
    latest = (
        select(AnswerRow.id, AnswerRow.item_id, AnswerRow.account_id, AnswerRow.judgement_id)
        .join(ItemRow, ItemRow.id == AnswerRow.item_id)
        .where(ItemRow.project_id == project_id, AnswerRow.undone_at.is_(None), AnswerRow.judgement_id.is_not(None))
        .order_by(AnswerRow.id.desc())
        .limit(LATEST)
        .subquery()
    )
    # The ranks in one text: a row for each response would take three times as long.
    rank = cast(RankRow.position, String) + ":" + cast(RankRow.rank, String)
    query = (
        select(latest.c.item_id, latest.c.account_id, func.aggregate_strings(rank, ","))
        .join(RankRow, RankRow.judgement_id == latest.c.judgement_id)
        .group_by(latest.c.id, latest.c.item_id, latest.c.account_id)
        .order_by(latest.c.id)
    )
    read = cache(in_order)
    with database.read() as session:
        return [Said(item_id, account_id, read(ranks)) for item_id, account_id, ranks in session.execute(query)]


def decided_items(database: Database, project_id: int) -> set[int]:
    """The project's items that a lead has decided."""
    query = select(DecisionRow.item_id).join(ItemRow, ItemRow.id == DecisionRow.item_id).where(ItemRow.project_id == project_id)
    with database.read() as session:
        return set(session.scalars(query))


def prompts_of(database: Database, item_ids: Sequence[int]) -> dict[int, Prompt]:
    """The prompt of each of these items."""
    query = select(ItemRow.id, PromptRow.content, PromptRow.tags).join(PromptRow, PromptRow.id == ItemRow.prompt_id)
    with database.read() as session:
        rows = session.execute(query.where(ItemRow.id.in_(item_ids))).tuples().all()
    return {item_id: _prompt(content, tags) for item_id, content, tags in rows}


def case(database: Database, item_id: int) -> Case:
    """Raises NotFound where there is no such item."""
    with database.read() as session:
        item = session.get(ItemRow, item_id) if item_id in IDS else None
        if item is None:
            raise NotFound(f"there is no item {item_id}")
        prompt = session.scalars(select(PromptRow).where(PromptRow.id == item.prompt_id)).one()
        return Case(item.project_id, _prompt(prompt.content, prompt.tags), *_said_of(session, item_id))


def _said_of(session: Session, item_id: int) -> tuple[tuple[str, ...], tuple[Opinion, ...], tuple[Decision, ...]]:
    responses = (
        select(ResponseRow.text)
        .join(ItemResponseRow, ItemResponseRow.response_id == ResponseRow.id)
        .where(ItemResponseRow.item_id == item_id)
        .order_by(ItemResponseRow.position)
    )
    answers = (
        select(AnswerRow, AccountRow.name)
        .join(AccountRow, AccountRow.id == AnswerRow.account_id)
        .where(AnswerRow.item_id == item_id, AnswerRow.undone_at.is_(None))
        .order_by(AnswerRow.id)
    )
    ranks: dict[int, list[int]] = defaultdict(list)
    of_item = select(AnswerRow.judgement_id).where(AnswerRow.item_id == item_id)
    for row in session.scalars(select(RankRow).where(RankRow.judgement_id.in_(of_item)).order_by(RankRow.judgement_id, RankRow.position)):
        ranks[row.judgement_id].append(row.rank)
    opinions = (
        Opinion(
            name,
            None if row.judgement_id is None else tuple(ranks[row.judgement_id]),
            row.strength,
            row.ratings,
            row.flags,
            row.ideal,
            row.skipped,
            row.note,
        )
        for row, name in session.execute(answers).tuples()
    )
    decided = select(DecisionRow, AccountRow.name).join(AccountRow, AccountRow.id == DecisionRow.account_id)
    decisions = session.execute(decided.where(DecisionRow.item_id == item_id).order_by(DecisionRow.id)).tuples()
    return (
        tuple(session.scalars(responses)),
        tuple(opinions),
        tuple(Decision(name, tuple(row.ranks), row.note, row.created_at) for row, name in decisions),
    )


def _prompt(content: Any, tags: Mapping[str, str]) -> Prompt:
    return Prompt(content if isinstance(content, str) else tuple(Message(*m) for m in content), tags)
