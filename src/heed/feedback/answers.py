"""Everything that a project's annotators said, as it stands: read in a few bulk queries, whatever the size."""

from __future__ import annotations

import gc
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Select, String, Text, cast, func, select
from sqlalchemy.orm import Session

from heed.feedback.database import Database
from heed.feedback.schema import (
    AccountRow,
    AnswerRow,
    ItemResponseRow,
    ItemRow,
    LeaseRow,
    PromptRow,
    RankRow,
    ResponseRow,
)
from heed.records import Message, Prompt

T = TypeVar("T")


class Item(NamedTuple):
    """A prompt with the responses to it that are judged together."""

    id: int
    prompt_id: str
    responses: tuple[int, ...]
    """The responses' ids; whatever else is said of responses comes in this order."""
    lengths: tuple[int, ...]
    """Characters of each response."""
    gold: tuple[int, ...] | None
    """The right ranks, where they are known."""
    prompt: Prompt | None = None
    """Where texts were asked for."""
    texts: tuple[str, ...] = ()
    """Of the responses, where they were asked for."""


class GivenAnswer(NamedTuple):
    """What an annotator said of an item, responses in the item's order."""

    id: int
    item: Item
    account_id: int
    annotator: str
    """The account's name, or its pseudonym."""
    reason: str
    """Why the annotator got this item, as `LeaseRow.reason`."""
    order: tuple[int, ...]
    """Positions of the item's responses in the order shown."""
    ranks: tuple[int, ...] | None
    """1 is best, equal ranks are ties; none where nothing was compared."""
    strength: int | None
    ratings: Mapping[str, Sequence[int | None]]
    flags: Mapping[str, Sequence[int]]
    ideal: str
    note: str
    seconds: float
    created_at: datetime


class Skip(NamedTuple):
    """An item that an annotator gave back."""

    item: Item
    account_id: int
    annotator: str
    why: str
    note: str
    seconds: float
    created_at: datetime


class Standing(NamedTuple):
    """A project's items and what was said of them and not taken back, each in the order it came."""

    items: tuple[Item, ...]
    answers: tuple[GivenAnswer, ...]
    skips: tuple[Skip, ...]


def standing_answers(database: Database, project_id: int, *, texts: bool = False) -> Standing:
    """All that stands in a project; with `texts`, items have their prompts and the texts of their responses."""
    answers: list[GivenAnswer] = []
    skips: list[Skip] = []
    numbers, ratings, flags = _reader(tuple), _reader(_of_responses), _reader(_of_responses)
    with database.read() as session, _no_garbage():
        # The answers first: what they refer to is never deleted, so whoever adds to it meanwhile does no harm.
        rows = session.execute(_answers(project_id)).all()
        ranks = _by_key(session, _ranks(project_id), cache(in_order))
        items = _items(session, project_id, texts)
        for number, item_id, account_id, annotator, judgement_id, reason, order, skipped, *said in rows:
            item = items[item_id]
            strength, rated, flagged, ideal, note, seconds, created_at = said
            if skipped:
                skips.append(Skip(item, account_id, annotator, skipped, note, seconds, created_at))
                continue
            ranked = None if judgement_id is None else ranks[judgement_id]
            beside = (strength, ratings(rated), flags(flagged), ideal, note, seconds, created_at)
            answers.append(GivenAnswer(number, item, account_id, annotator, reason, numbers(order), ranked, *beside))
    return Standing(tuple(items.values()), tuple(answers), tuple(skips))


def _answers(project_id: int) -> Select[*tuple[Any, ...]]:
    return (
        select(AnswerRow.id, AnswerRow.item_id, AnswerRow.account_id, AccountRow.name, AnswerRow.judgement_id)
        .add_columns(LeaseRow.reason, cast(LeaseRow.order, Text), AnswerRow.skipped, AnswerRow.strength)
        .add_columns(cast(AnswerRow.ratings, Text), cast(AnswerRow.flags, Text))
        .add_columns(AnswerRow.ideal, AnswerRow.note, AnswerRow.seconds, AnswerRow.created_at)
        .join(ItemRow, ItemRow.id == AnswerRow.item_id)
        .join(LeaseRow, LeaseRow.id == AnswerRow.lease_id)
        .join(AccountRow, AccountRow.id == AnswerRow.account_id)
        .where(ItemRow.project_id == project_id, AnswerRow.undone_at.is_(None))
        .order_by(AnswerRow.id)
    )


def _ranks(project_id: int) -> Select[*tuple[Any, ...]]:
    """Of each judgement `position:rank` of its responses in one text: a row for each response would take three times as long."""
    return (
        select(RankRow.judgement_id, _joined(RankRow.position, RankRow.rank))
        .join(AnswerRow, AnswerRow.judgement_id == RankRow.judgement_id)
        .join(ItemRow, ItemRow.id == AnswerRow.item_id)
        .where(ItemRow.project_id == project_id)
        .group_by(RankRow.judgement_id)
    )


def _items(session: Session, project_id: int, texts: bool) -> dict[int, Item]:
    own = ItemRow.project_id == project_id
    held = select(ItemResponseRow.item_id, ItemResponseRow.response_id).join(ItemRow, ItemRow.id == ItemResponseRow.item_id).where(own)
    responses: dict[int, list[int]] = defaultdict(list)
    for item_id, response_id in session.execute(held.order_by(ItemResponseRow.item_id, ItemResponseRow.position)):
        responses[item_id].append(response_id)
    shown = ResponseRow.id.in_(held.with_only_columns(ItemResponseRow.response_id))
    lengths = _by_key(session, select(ResponseRow.id, func.length(ResponseRow.text)).where(shown))
    written = _by_key(session, select(ResponseRow.id, ResponseRow.text).where(shown)) if texts else {}
    prompts: dict[str, Prompt] = {}
    if texts:
        asked = PromptRow.id.in_(select(ItemRow.prompt_id).where(own))
        for prompt_id, content, tags in session.execute(select(PromptRow.id, PromptRow.content, PromptRow.tags).where(asked)):
            prompts[prompt_id] = Prompt(content if isinstance(content, str) else tuple(Message(*m) for m in content), tags)
    found = session.execute(select(ItemRow.id, ItemRow.prompt_id, ItemRow.gold).where(own).order_by(ItemRow.id))
    return {
        item_id: Item(
            item_id,
            prompt_id,
            tuple(responses[item_id]),
            tuple(lengths[i] for i in responses[item_id]),
            None if gold is None else tuple(gold),
            prompts.get(prompt_id),
            tuple(written[i] for i in responses[item_id]) if texts else (),
        )
        for item_id, prompt_id, gold in found
    }


def _by_key(session: Session, query: Select[*tuple[Any, ...]], read: Callable[[Any], Any] = lambda value: value) -> dict[Any, Any]:
    """The second column of a query by its first."""
    return {key: read(value) for key, value in session.execute(query)}


def _joined(position: Any, value: Any) -> ColumnElement[str]:
    return func.aggregate_strings(cast(position, String) + ":" + cast(value, String), ",")


def in_order(joined: str) -> tuple[int, ...]:
    """The values of `position:value` texts that come in any order."""
    pairs = sorted((int(position), int(value)) for position, value in (pair.split(":") for pair in joined.split(",")))
    return tuple(value for _, value in pairs)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """To look for cycles, of which there are none here, while a million objects come to life takes as long as making them."""
    looking = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looking:
            gc.enable()


def _reader(read: Callable[[Any], T]) -> Callable[[str], T]:
    """Reads JSON; a text that comes again is read once, for there are few different ones among many answers."""
    return cache(lambda text: read(json.loads(text)))


def _of_responses(values: dict[str, list[Any]]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(of_responses) for name, of_responses in values.items()}
