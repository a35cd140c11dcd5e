"""Prompts that wait for a policy: each is given to one sampler at a time, and what it samples becomes an item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Select, delete, func, insert, select, update
from sqlalchemy.orm import Session

from heed.errors import UserError
from heed.feedback.database import Database, take_turns
from heed.feedback.projects import Added, add_project_items, audit, check_style, find_project, settings_of
from heed.feedback.schema import WAITING, ItemRow, LeaseRow, PromptRow, WaitingPromptRow, utc_now
from heed.feedback.store import add_items
from heed.records import Message, Prompt, Response

TAKEN_MINUTES = 5
"""How long a batch is a sampler's own; then another may take it, and whoever is done first answers it."""


class AddedPrompts(NamedTuple):
    """What came of adding prompts."""

    new: int
    known: int
    """Prompts that waited already, were answered before, or came twice."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that one sampler has taken."""

    project_id: int
    prompts: tuple[Prompt, ...]
    num_responses: int
    """To each prompt: as many as are shown together."""
    num_different: int
    """Of those to a prompt, how many different ones make an item at least."""
    taken_until: datetime
    """By which the batch is known for the sampler's own."""


class WaitingPrompts:
    """The prompts of projects that a policy is to answer; what a call changes is on disk when it returns.

    `clock` tells UTC without a zone.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self.database = database
        self.clock = clock

    def add(self, project_id: int, prompts: Sequence[Prompt], by: int | None) -> AddedPrompts:
        """Let prompts wait; raises UserError where plain texts and conversations would come together, or for a NUL character."""
        with self.database.write() as session:
            take_turns(session, "texts")
            return add_prompts(session, project_id, prompts, by)

    def count(self, project_id: int) -> int:
        """Prompts that are not answered yet."""
        with self.database.read() as session:
            return session.scalar(_unanswered(project_id).with_only_columns(func.count())) or 0

    def clear(self, project_id: int, by: int | None) -> int:
        """Let no prompt wait any more, and return how many did; those answered stay so, and each of the others may be added again.

        What a sampler says afterwards of prompts that it is at becomes no item, unless they wait again by then.
        """
        with self.database.write() as session:
            take_turns(session, "texts")
            find_project(session, project_id)
            unanswered = WaitingPromptRow.project_id == project_id, WaitingPromptRow.answered_at.is_(None)
            cleared = len(session.scalars(delete(WaitingPromptRow).where(*unanswered).returning(WaitingPromptRow.id)).all())
            audit(session, by, "prompts.clear", project=project_id, cleared=cleared)
            return cleared

    def last_answered(self, project_id: int) -> Prompt | None:
        """The prompt that a policy has answered last, if any was."""
        answered = select(WaitingPromptRow.prompt_id).where(
            WaitingPromptRow.project_id == project_id, WaitingPromptRow.answered_at.is_not(None)
        )
        with self.database.read() as session:
            found = session.scalar(answered.order_by(WaitingPromptRow.answered_at.desc()).limit(1))
            return None if found is None else _prompts(session, [found])[0]

    def take(self, project_id: int, most: int, ahead: int | None = None) -> Batch | None:
        """The next prompts, at most `most`, which no other sampler gets meanwhile; None where there is nothing to do.

        With `ahead`, only as many as are missing until that many items are there that no annotator has begun. An archived
        project asks for nothing.
        """
        now = self.clock()
        free = _unanswered(project_id).where(WaitingPromptRow.taken_until.is_(None) | (WaitingPromptRow.taken_until < now))
        with self.database.write() as session:
            take_turns(session, f"waiting prompts {project_id}")
            project = find_project(session, project_id)
            if project.archived_at:
                return None
            if ahead is not None:
                most = min(most, ahead - _num_untouched(session, project_id) - _num_taken(session, project_id, now))
            next_ones = free.order_by(WaitingPromptRow.id).limit(most).with_for_update(skip_locked=True)
            rows = session.scalars(next_ones).all() if most > 0 else []
            if not rows:
                return None
            until = now + timedelta(minutes=TAKEN_MINUTES)
            for row in rows:
                row.taken_until = until
            settings = settings_of(project)
            prompts = _prompts(session, [row.prompt_id for row in rows])
        return Batch(project_id, prompts, settings.num_responses, 1 if settings.compare == "none" else 2, until)

    def give_back(self, batch: Batch) -> None:
        """Let what was not answered of a batch wait for the next sampler."""
        own = WaitingPromptRow.project_id == batch.project_id, WaitingPromptRow.taken_until == batch.taken_until
        prompts = WaitingPromptRow.prompt_id.in_([prompt.id for prompt in batch.prompts])
        with self.database.write() as session:
            take_turns(session, "texts")
            session.execute(update(WaitingPromptRow).where(*own, prompts).values(taken_until=None))

    def answer(self, batch: Batch, responses: Sequence[Sequence[Response] | UserError]) -> Added:
        """Make items of the responses to each prompt of a batch that still waits: nobody has cleared it, and no other sampler, who took it
        when its time was up, has answered it.

        A prompt with too few different responses is counted, and waits no more. Nor does one that has an error for responses, as the policy
        refused it; it may be added again.
        """
        sampled = dict(zip((prompt.id for prompt in batch.prompts), zip(batch.prompts, responses, strict=True), strict=True))
        left = _unanswered(batch.project_id).where(WaitingPromptRow.prompt_id.in_(sampled))
        with self.database.write() as session:
            take_turns(session, "texts")
            rows = session.scalars(left.order_by(WaitingPromptRow.id).with_for_update()).all()
            answered = list[tuple[Prompt, Sequence[Response]]]()
            for row in rows:
                prompt, found = sampled[row.prompt_id]
                if isinstance(found, UserError):
                    session.delete(row)
                    audit(session, None, "prompts.refuse", project=batch.project_id, prompt=opening(prompt), why=str(found))
                else:
                    row.answered_at, row.taken_until = self.clock(), None
                    answered.append((prompt, found))
            return add_project_items(session, batch.project_id, answered, None)


def opening(prompt: Prompt) -> str:
    """How a prompt begins: enough for a person to know it by."""
    return prompt.display()[:60]


def add_prompts(session: Session, project_id: int, prompts: Sequence[Prompt], by: int | None) -> AddedPrompts:
    """`WaitingPrompts.add` within a transaction that takes its turn at `texts`."""
    for prompt in prompts:
        if any("\0" in text for text in (prompt.display(), *prompt.tags, *prompt.tags.values())):
            raise UserError("a prompt with a NUL character", expected="text that databases keep")
    add_items(session, [(prompt, ()) for prompt in prompts])
    find_project(session, project_id, lock=True)
    check_style(session, project_id, prompts)
    known = set(session.scalars(select(WaitingPromptRow.prompt_id).where(WaitingPromptRow.project_id == project_id)))
    new = [prompt_id for prompt_id in dict.fromkeys(prompt.id for prompt in prompts) if prompt_id not in known]
    if new:
        session.execute(insert(WaitingPromptRow), [{"project_id": project_id, "prompt_id": prompt_id} for prompt_id in new])
    added = AddedPrompts(len(new), len(prompts) - len(new))
    audit(session, by, "prompts.add", project=project_id, **added._asdict())
    return added


def _unanswered(project_id: int) -> Select[WaitingPromptRow]:
    return select(WaitingPromptRow).where(WaitingPromptRow.project_id == project_id, WaitingPromptRow.answered_at.is_(None))


def _num_taken(session: Session, project_id: int, now: datetime) -> int:
    """Prompts that a sampler is at, each an item to be."""
    taken = _unanswered(project_id).where(WaitingPromptRow.taken_until >= now)
    return session.scalar(taken.with_only_columns(func.count())) or 0


def _num_untouched(session: Session, project_id: int) -> int:
    """Items that no annotator has had: those begun by some may have nothing left for others."""
    begun = select(LeaseRow.id).where(LeaseRow.item_id == ItemRow.id).exists()
    return session.scalar(select(func.count(ItemRow.id)).where(ItemRow.project_id == project_id, WAITING, ~begun)) or 0


def _prompts(session: Session, ids: Sequence[str]) -> tuple[Prompt, ...]:
    found = session.execute(select(PromptRow.id, PromptRow.content, PromptRow.tags).where(PromptRow.id.in_(ids))).tuples()
    prompts = {i: Prompt(c if isinstance(c, str) else tuple(Message(*m) for m in c), tags) for i, c, tags in found}
    return tuple(prompts[i] for i in ids)
