"""Rankings that a file brings along, as what a named annotator said of a project's items."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from heed.errors import require
from heed.feedback.accounts import alone, check_name, named
from heed.feedback.database import Database
from heed.feedback.projects import audit, find_project, settings_of
from heed.feedback.schema import FIRST_TIME, AccountRow, AnswerRow, ItemResponseRow, ItemRow, LeaseRow, ResponseRow, utc_now
from heed.feedback.store import add_judgements
from heed.feedback.tasks import free_slot
from heed.records import Judgement, Ranking

AT_ONCE = 500
"""Prompts whose items are read together."""


class AddedRankings(NamedTuple):
    """What came of adding rankings, counted in items of the project."""

    new: int
    known: int
    """Items that the annotator has or had already."""
    without_item: int
    """Rankings of which the project has no item: its prompt with responses that are all ranked."""


class _Found(NamedTuple):
    item: ItemRow
    texts: tuple[str, ...]


def add_rankings(database: Database, project_id: int, rankings: Sequence[Ranking], annotator: str, by: int | None) -> AddedRankings:
    """Take rankings as an annotator's answers to the items of a project; all of them or nothing.

    A ranking answers each item of its prompt whose responses are all in it, by their order within it, and fills one of the item's
    slots; gold items are not asked. What was answered before stays: a file can be added twice. An annotator without an account gets
    one that nobody can sign in to. In which order the responses were seen, and how long it took, is not known: what is kept in their
    place is marked by the lease's reason, and statistics leave it out. Raises NotFound for an unknown project, and UserError where it
    compares nothing, for a name that will not do, or for a ranking with a response twice.
    """
    for ranking in rankings:
        require(len(set(ranking.responses)) == len(ranking.responses), "responses", ranking.responses[:4], "different ones in a ranking")
    with database.write() as session:
        alone(session)
        account = _account(session, check_name(annotator), by)
        project = find_project(session, project_id, lock=True)
        settings = settings_of(project)
        require(settings.compare != "none", "compare", settings.compare, "rank or pairwise: a project that compares responses")
        items: dict[str, list[_Found]] = defaultdict(list)
        for found in _items(session, project_id, {ranking.prompt.id for ranking in rankings}):
            items[found.item.prompt_id].append(found)
        had = _leases(session, account.id, project_id)
        answered: list[tuple[_Found, Judgement]] = []
        known, without, taken = 0, 0, {item_id for item_id, lease in had.items() if lease.state != "expired"}
        for ranking in rankings:
            ranked = dict(zip(ranking.responses, ranking.ranks, strict=True))
            fitting = [found for found in items[ranking.prompt.id] if ranked.keys() >= set(found.texts)]
            without += not fitting
            for found in fitting:
                if found.item.id in taken:
                    known += 1
                    continue
                taken.add(found.item.id)
                ranks = tuple(1 + sum(ranked[other] < ranked[text] for other in found.texts) for text in found.texts)
                answered.append((found, Judgement(ranking.prompt, found.texts, ranks, account.name)))
        judgements = add_judgements(session, [judgement for _, judgement in answered])
        leases = _close(session, [found for found, _ in answered], had, account.id, settings.overlap)
        session.add_all(
            AnswerRow(lease_id=lease.id, item_id=lease.item_id, account_id=account.id, judgement_id=i, ratings={}, flags={}, seconds=0.0)
            for lease, i in zip(leases, judgements, strict=True)
        )
        added = AddedRankings(len(answered), known, without)
        audit(session, by, "answers.import", project=project_id, account=account.id, **added._asdict())
    return added


def _account(session: Session, name: str, by: int | None) -> AccountRow:
    """The account of this name; where there is none, one that nobody can sign in to."""
    account = named(session, name)
    if account is None:
        account = AccountRow(name=name, role="annotator", avoid=[])
        session.add(account)
        session.flush()
        audit(session, by, "account.create", account=account.id, role="annotator")
    return account


def _items(session: Session, project_id: int, prompt_ids: Collection[str]) -> Iterator[_Found]:
    """The project's items of these prompts, with the texts of their responses."""
    wanted = sorted(prompt_ids)
    for start in range(0, len(wanted), AT_ONCE):
        own = ItemRow.project_id == project_id, ItemRow.gold.is_(None), ItemRow.prompt_id.in_(wanted[start : start + AT_ONCE])
        texts: dict[int, list[str]] = defaultdict(list)
        held = select(ItemResponseRow.item_id, ResponseRow.text).join(ResponseRow, ResponseRow.id == ItemResponseRow.response_id)
        held = held.join(ItemRow, ItemRow.id == ItemResponseRow.item_id).where(*own)
        for item_id, text in session.execute(held.order_by(ItemResponseRow.item_id, ItemResponseRow.position)):
            texts[item_id].append(text)
        for item in session.scalars(select(ItemRow).where(*own).order_by(ItemRow.id)).all():
            yield _Found(item, tuple(texts[item.id]))


def _leases(session: Session, account_id: int, project_id: int) -> dict[int, LeaseRow]:
    """By item, what the annotator has or had."""
    own = select(LeaseRow).join(ItemRow, ItemRow.id == LeaseRow.item_id).where(ItemRow.project_id == project_id)
    return {lease.item_id: lease for lease in session.scalars(own.where(LeaseRow.account_id == account_id, FIRST_TIME))}


def _close(session: Session, answered: Sequence[_Found], had: Mapping[int, LeaseRow], account_id: int, overlap: int) -> list[LeaseRow]:
    """A lease of each item that is answered, in a slot of its own: all at once, for one after the other a large file would take minutes."""
    slots: dict[int, set[int | None]] = defaultdict(set)
    ids = [found.item.id for found in answered]
    for start in range(0, len(ids), AT_ONCE):
        taken = select(LeaseRow.item_id, LeaseRow.slot).where(
            LeaseRow.item_id.in_(ids[start : start + AT_ONCE]), LeaseRow.slot.is_not(None)
        )
        for item_id, slot in session.execute(taken):
            slots[item_id].add(slot)
    leases = []
    for item, texts in answered:
        order = random.Random(f"{item.id} {account_id}").sample(range(len(texts)), len(texts))
        lease = had.get(item.id) or LeaseRow(item_id=item.id, account_id=account_id, order=order)
        lease.state, lease.reason, lease.created_at = "answered", "imported", utc_now()
        lease.expires_at, lease.slot = lease.created_at, free_slot(slots[item.id])
        item.remaining = max(0, overlap - len(slots[item.id]) - 1)
        leases.append(lease)
    session.add_all(leases)
    session.flush()
    return leases
