"""Which item an annotator gets next: one with a known answer, one seen before, the one most uncertain, or any."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Literal

from sqlalchemy import ColumnElement, Select, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from heed.feedback.projects import ProjectSettings
from heed.feedback.schema import FIRST_TIME, GOLD, REPEATED, WAITING, AccountRow, AnswerRow, ItemRow, LeaseRow

Reason = Literal["random", "uncertain", "gold", "again", "imported"]
AGAIN_AFTER = 10
"""Answers that must lie between an item and its repetition."""
AGAIN_AMONG = 100
"""Repetitions are drawn from the latest answers before those, this many."""


def choose(
    session: Session, project_id: int, account: AccountRow, settings: ProjectSettings, generator: random.Random
) -> tuple[ItemRow, Reason] | None:
    """The next item for an annotator and why it is that one; None where no item waits for this person.

    Gold items and repetitions are mixed in while others wait; where a project has gold items alone, they are the work.
    """
    fresh = select(ItemRow).where(ItemRow.project_id == project_id, ~_had(account.id), *_wanted(session, account))
    found = _waiting(session, fresh, project_id, account, settings, generator)
    draw = generator.random()
    if draw < settings.gold_rate if found is not None else _all_gold(session, project_id):
        gold = session.scalar(fresh.where(GOLD).order_by(ItemRow.shuffle).limit(1))
        if gold is not None:
            return gold, "gold"
    elif found is not None and draw < settings.gold_rate + settings.again_rate:
        again = _again(session, project_id, account, generator)
        if again is not None:
            return again, "again"
    return found


def _waiting(
    session: Session,
    fresh: Select[ItemRow],
    project_id: int,
    account: AccountRow,
    settings: ProjectSettings,
    generator: random.Random,
) -> tuple[ItemRow, Reason] | None:
    """Of the items with a free slot, the most uncertain or the next in the annotator's own order."""
    waiting = fresh.where(WAITING)
    if settings.strategy == "uncertain" and generator.random() >= settings.control_share:
        item = session.scalar(waiting.order_by(ItemRow.priority.desc(), ItemRow.shuffle.desc()).limit(1))
        if item is None or item.priority > 0:  # else no reward model has told anything yet
            return None if item is None else (item, "uncertain")
    place = _place(session, project_id, account.id)
    for part in (ItemRow.shuffle >= place, ItemRow.shuffle < place):
        item = session.scalar(waiting.where(part).order_by(ItemRow.shuffle).limit(1))
        if item is not None:
            return item, "random"
    return None


def _place(session: Session, project_id: int, account_id: int) -> float:
    """Where the annotator stands in the shuffled circle of items: all go round it one way, each from a start of their own.

    That gives an order per person at the price of one index, and nobody searches again through what lies behind.
    """
    last = (
        select(LeaseRow.item_id)
        .where(LeaseRow.account_id == account_id, LeaseRow.reason == "random", in_project(LeaseRow.item_id, project_id))
        .order_by(LeaseRow.id.desc())
        .limit(1)
    )
    place = session.scalar(select(ItemRow.shuffle).where(ItemRow.id == last.scalar_subquery()))
    return random.Random(f"{account_id} {project_id}").random() if place is None else place


def _again(session: Session, project_id: int, account: AccountRow, generator: random.Random) -> ItemRow | None:
    """An item that this annotator answered a while ago, and once."""
    lease = aliased(LeaseRow)
    repeated = exists().where(lease.item_id == AnswerRow.item_id, lease.account_id == account.id, REPEATED, lease.state != "expired")
    candidates = session.scalars(
        select(AnswerRow.item_id)
        .where(AnswerRow.account_id == account.id, in_project(AnswerRow.item_id, project_id))
        .where(AnswerRow.undone_at.is_(None), AnswerRow.skipped == "", ~repeated)
        .order_by(AnswerRow.created_at.desc(), AnswerRow.id.desc())
        .offset(AGAIN_AFTER)
        .limit(AGAIN_AMONG)
    ).all()
    for item_id in generator.sample(candidates, len(candidates)):
        item = session.get_one(ItemRow, item_id)
        if not avoids(account, item.categories):
            return item
    return None


def num_left(session: Session, project_id: int, account: AccountRow) -> int:
    """Items of a project that wait for an annotator and may come to this one."""
    waiting = select(func.count(ItemRow.id)).where(ItemRow.project_id == project_id, WAITING)
    wanted = waiting.where(*_wanted(session, account))
    # Two numbers from short indices: to ask of each item whether this annotator had it takes ten times as long.
    lease = select(LeaseRow.item_id).where(LeaseRow.account_id == account.id, LeaseRow.state != "expired", FIRST_TIME)
    return (session.scalar(wanted) or 0) - (session.scalar(wanted.where(ItemRow.id.in_(lease))) or 0)


def avoids(account: AccountRow, categories: Iterable[str]) -> bool:
    """Whether the annotator has asked not to see what holds one of these; capitals make no difference."""
    return not {name.casefold() for name in account.avoid}.isdisjoint(categories)


def in_project(item_id: ColumnElement[int] | InstrumentedAttribute[int], project_id: int) -> ColumnElement[bool]:
    """Whether an item is of this project.

    Not by a join: without statistics SQLite would start that from all items of the project.
    """
    return select(ItemRow.project_id).where(ItemRow.id == item_id).scalar_subquery() == project_id


def from_file(lease_id: ColumnElement[int] | InstrumentedAttribute[int]) -> ColumnElement[bool]:
    """Whether a file had the answer to a lease, so that its annotator did nothing when it came."""
    return select(LeaseRow.reason).where(LeaseRow.id == lease_id).scalar_subquery() == "imported"


def _had(account_id: int) -> ColumnElement[bool]:
    """Whether this annotator has or had the item, other than by letting it lie."""
    lease = aliased(LeaseRow)
    return exists().where(lease.item_id == ItemRow.id, lease.account_id == account_id, lease.state != "expired", FIRST_TIME)


def _wanted(session: Session, account: AccountRow) -> list[ColumnElement[bool]]:
    """Leaves out what the annotator asked not to see."""
    if not account.avoid:
        return []
    names = func.json_each if session.get_bind().dialect.name == "sqlite" else func.json_array_elements_text
    name = names(ItemRow.categories).table_valued("value")
    return [~exists().select_from(name).where(name.c.value.in_(sorted({name.casefold() for name in account.avoid})))]


def _all_gold(session: Session, project_id: int) -> bool:
    return not session.scalar(select(exists().where(ItemRow.project_id == project_id, ItemRow.gold.is_(None))))
