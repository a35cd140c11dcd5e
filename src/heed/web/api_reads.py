"""What the JSON API tells of a project, read from the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from heed.feedback.database import Database
from heed.feedback.learning_curve import curves, forecasts
from heed.feedback.schema import (
    OPEN,
    AccountRow,
    AnswerRow,
    DecisionRow,
    ItemResponseRow,
    ItemRow,
    LeaseRow,
    PromptRow,
    RankRow,
    ResponseRow,
    SourceRow,
)
from heed.feedback.tasks import Answer
from heed.feedback.waiting import WaitingPrompts
from heed.records import Message
from heed.web.api_models import Counts, Decision, GivenAnswer, Item, LearningCurve, Source, SourcedResponse, Text


def counts(database: Database, project_id: int) -> Counts:
    """How far a project is."""
    own = ItemRow.project_id == project_id
    said = (
        select(func.count(), func.count().filter(AnswerRow.skipped != ""))
        .select_from(AnswerRow)
        .join(ItemRow, ItemRow.id == AnswerRow.item_id)
    )
    waiting_prompts = WaitingPrompts(database).count(project_id)
    with database.read() as session:
        items, gold, waiting = session.execute(
            select(func.count(), func.count(ItemRow.gold), func.coalesce(func.sum(ItemRow.remaining), 0)).where(own)
        ).one()
        standing, skips = session.execute(said.where(own, AnswerRow.undone_at.is_(None))).one()
        leased = select(func.count()).select_from(LeaseRow).join(ItemRow, ItemRow.id == LeaseRow.item_id).where(own, OPEN)
        return Counts(
            items=items,
            gold=gold,
            waiting=waiting,
            waiting_prompts=waiting_prompts,
            open=session.scalar(leased) or 0,
            answers=standing - skips,
            skips=skips,
        )


def learning_curves(database: Database, project_id: int) -> list[LearningCurve]:
    """All that were measured of a project, the oldest first."""
    return [
        LearningCurve(
            id=curve.id,
            model=curve.model,
            points=list(curve.points),
            forecasts=forecasts(curve.points, curve.points[-1].ceiling),
            created_at=curve.created_at,
        )
        for curve in curves(database, project_id)
    ]


def _prompt(content: Any) -> Text:
    return content if isinstance(content, str) else tuple(Message(*message) for message in content)


def read_items(session: Session, rows: Sequence[ItemRow]) -> list[Item]:
    """Items with all that is known of them."""
    ids = [row.id for row in rows]
    prompts = {row.id: row for row in session.scalars(select(PromptRow).where(PromptRow.id.in_([row.prompt_id for row in rows])))}
    sources: defaultdict[int, list[Source]] = defaultdict(list)
    of_items = select(ItemResponseRow.response_id).where(ItemResponseRow.item_id.in_(ids))
    for source in session.scalars(select(SourceRow).where(SourceRow.response_id.in_(of_items)).order_by(SourceRow.id)):
        sources[source.response_id].append(Source(model=source.model, sampling=source.sampling, run=source.run))
    decisions: defaultdict[int, list[Decision]] = defaultdict(list)
    decided = select(DecisionRow, AccountRow.name).join(AccountRow, AccountRow.id == DecisionRow.account_id)
    for row, name in session.execute(decided.where(DecisionRow.item_id.in_(ids)).order_by(DecisionRow.id)).tuples():
        decisions[row.item_id].append(Decision(id=row.id, by=name, ranks=row.ranks, note=row.note, created_at=row.created_at))
    responses = _responses(session, ids)
    return [
        Item(
            id=row.id,
            prompt=_prompt(prompts[row.prompt_id].content),
            tags=prompts[row.prompt_id].tags,
            responses=[SourcedResponse(text=text, sources=sources[number]) for number, text in responses[row.id]],
            gold=row.gold,
            waiting=row.remaining,
            priority=row.priority,
            decisions=decisions[row.id],
        )
        for row in rows
    ]


def _responses(session: Session, items: Sequence[int]) -> dict[int, list[tuple[int, str]]]:
    """Id and text of each response of these items, in the items' order."""
    query = (
        select(ItemResponseRow.item_id, ResponseRow.id, ResponseRow.text)
        .join(ResponseRow, ResponseRow.id == ItemResponseRow.response_id)
        .where(ItemResponseRow.item_id.in_(items))
        .order_by(ItemResponseRow.item_id, ItemResponseRow.position)
    )
    found: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    for item_id, number, text in session.execute(query).tuples():
        found[item_id].append((number, text))
    return found


def read_answers(session: Session, rows: Sequence[tuple[AnswerRow, LeaseRow, str]], everything: bool) -> list[GivenAnswer]:
    """With everything, also what would tell an annotator which items are gold and which model comes first."""
    items = {row.item_id for row, _, _ in rows}
    responses = _responses(session, list(items))
    asked = select(ItemRow.id, PromptRow.content).join(PromptRow, PromptRow.id == ItemRow.prompt_id).where(ItemRow.id.in_(items))
    prompts = {item_id: _prompt(content) for item_id, content in session.execute(asked).tuples()}
    ranked = select(RankRow.judgement_id, RankRow.rank).where(RankRow.judgement_id.in_([row.judgement_id for row, _, _ in rows]))
    ranks: defaultdict[int | None, list[int]] = defaultdict(list)
    for judgement_id, rank in session.execute(ranked.order_by(RankRow.judgement_id, RankRow.position)).tuples():
        ranks[judgement_id].append(rank)
    return [
        GivenAnswer(
            id=row.id,
            lease_id=row.lease_id,
            item_id=row.item_id,
            annotator=name,
            prompt=prompts[row.item_id],
            responses=[responses[row.item_id][i][1] for i in lease.order],
            answer=_as_shown(row, ranks.get(row.judgement_id), lease.order),
            skipped=row.skipped,
            seconds=row.seconds,
            created_at=row.created_at,
            undone_at=row.undone_at,
            order=lease.order if everything else None,
            reason=lease.reason if everything else None,  # pyright: ignore[reportArgumentType]
        )
        for row, lease, name in rows
    ]


def _as_shown(row: AnswerRow, ranks: Sequence[int] | None, order: Sequence[int]) -> Answer:
    """A stored answer with its responses in the order of the screen."""
    return Answer(
        ranks=None if ranks is None else tuple(ranks[i] for i in order),
        strength=row.strength,
        ratings={name: [values[i] for i in order] for name, values in row.ratings.items()},
        flags={name: sorted(order.index(i) for i in places) for name, places in row.flags.items()},
        ideal=row.ideal,
        note=row.note,
    )
