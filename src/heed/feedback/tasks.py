"""Giving items to annotators and taking their answers: atomically, so that no two people get the same slot."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from heed.errors import UserError
from heed.feedback.database import Database
from heed.feedback.ordering import Reason, avoids, choose, from_file, in_project, num_left
from heed.feedback.projects import (
    IDS,
    SCALE,
    STRENGTHS,
    Conflict,
    NotFound,
    Project,
    ProjectSettings,
    audit,
    check_ranks,
    find_project,
    project_of,
    settings_of,
    whole,
)
from heed.feedback.schema import (
    FIRST_TIME,
    OPEN,
    REPEATED,
    AccountRow,
    AnswerRow,
    DecisionRow,
    ItemResponseRow,
    ItemRow,
    JudgementRow,
    LeaseRow,
    ProjectRow,
    PromptRow,
    RankRow,
    ResponseRow,
    utc_now,
)
from heed.feedback.store import MAX_TEXT as MAX_RESPONSE
from heed.feedback.store import add_judgements
from heed.records import Judgement, Message, Prompt

MAX_TEXT = 20_000
"""Characters of a note; an ideal response may be as long as any response."""
SLOT_REASONS: tuple[Reason, ...] = ("random", "uncertain", "imported")
"""Of leases that fill one of an item's slots; gold items and repetitions fill none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an annotator says; responses are meant in the order in which they were shown."""

    ranks: tuple[int, ...] | None = None
    """1 is best, equal ranks are ties; none where nothing is compared."""
    strength: int | None = None
    """How much better the better of two is, 1 to 4; 0 for a tie."""
    ratings: Mapping[str, Sequence[int | None]] = field(default_factory=dict)
    """Per attribute, 1 to 7 for each response."""
    flags: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Per flag, the places of the responses that have it."""
    ideal: str = ""
    """The response that should have been given."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """An item on an annotator's screen."""

    lease_id: int
    item_id: int
    prompt: Prompt
    responses: tuple[str, ...]
    """In the order shown; who wrote them is not told."""
    answer: Answer | None = None
    """What was answered before it was undone."""


@dataclass(frozen=True, slots=True)
class OwnProgress:
    """Where an annotator stands."""

    today: int
    """Answers and skips since midnight (UTC) in all projects, without those that files brought: what the daily cap counts."""
    left: int
    """Items of the project that wait for an annotator and may come to this one."""


@dataclass(frozen=True, slots=True)
class Screen:
    """What an annotator's page shows."""

    project: Project
    task: Task | None
    """None where nothing is left for this person today."""
    progress: OwnProgress


class Tasks:
    """Leases, answers, skips and decisions of the projects in a database.

    What a call returns is on disk. Leases of a project change one after the other, by a lock on the project's row. An
    annotator has one lease of an item at most, taken up again when the item comes again, and another for its repetition.
    `generator` decides orders and mixtures, by default the system's randomness; `clock` tells UTC without a zone, and may
    be set back: then leases last longer, and no time is negative.
    """

    def __init__(self, database: Database, generator: random.Random | None = None, clock: Callable[[], datetime] = utc_now) -> None:
        self.database = database
        self.generator = generator or random.SystemRandom()
        self.clock = clock

    def next(self, project_id: int, account_id: int) -> Task | None:
        """The task that the annotator has open, or a new one; None where there is nothing left for this person today.

        Today is the day in UTC; skips count towards the daily cap as answers do, and what a file brought does not.
        """
        with self.database.write() as session:
            project = find_project(session, project_id, lock=True)
            return self._next(session, project, _annotator(session, account_id))

    def screen(self, project_id: int, account_id: int) -> Screen:
        """`next` with what stands round it on the page, in one transaction."""
        with self.database.write() as session:
            project = find_project(session, project_id, lock=True)
            account = _annotator(session, account_id)
            task = self._next(session, project, account)
            return Screen(project_of(project), task, self._progress(session, project_id, account))

    def progress(self, project_id: int, account_id: int) -> OwnProgress:
        """How much the annotator did today, and has left to do in a project."""
        with self.database.read() as session:
            return self._progress(session, project_id, session.get_one(AccountRow, account_id))

    def of_lease(self, lease_id: int, account_id: int) -> tuple[Project, int]:
        """The project of an annotator's own task, and how many responses it shows; NotFound for a task of someone else."""
        of_item = ItemRow.project_id == ProjectRow.id
        own = LeaseRow.id == lease_id, LeaseRow.account_id == account_id
        query = select(ProjectRow, LeaseRow.order).join(ItemRow, of_item).join(LeaseRow, LeaseRow.item_id == ItemRow.id).where(*own)
        with self.database.read() as session:
            found = session.execute(query).first() if lease_id in IDS else None
            if found is None:
                raise NotFound(f"there is no task {lease_id} of yours")
            return project_of(found[0]), len(found[1])

    def answer(self, lease_id: int, account_id: int, answer: Answer) -> int:
        """Keep an answer and return its id; the same form sent twice is kept once.

        Raises NotFound for a lease of someone else, Conflict where the item has gone to another annotator meanwhile or was
        answered otherwise or skipped, and UserError where the answer does not fit what was asked.
        """
        with self.database.write() as session:
            lease, account, settings = _held(session, lease_id, account_id)
            check_answer(answer, settings, len(lease.order))
            if lease.state == "answered":
                standing = _standing(session, lease_id)
                if _as_shown(session, standing, lease.order) != _plain(answer):
                    raise Conflict("this task was answered already", fix="undo that answer first")
                return standing.id
            if lease.state == "skipped":
                raise Conflict("this task was skipped", fix="go on with the next one")
            if lease.state == "expired":
                _take_up(session, lease, settings)
            place = {position: shown for shown, position in enumerate(lease.order)}
            positions = range(len(place))
            judgement_id = None
            seconds = self._seconds(lease)
            if answer.ranks is not None:
                prompt, texts = _content(session, lease.item_id)
                ranks = tuple(answer.ranks[place[i]] for i in positions)
                judgement = Judgement(prompt, texts, ranks, account.name, order_shown=tuple(lease.order), seconds=seconds, note=answer.note)
                (judgement_id,) = add_judgements(session, [judgement])
            row = AnswerRow(
                lease_id=lease_id,
                item_id=lease.item_id,
                account_id=account_id,
                judgement_id=judgement_id,
                strength=answer.strength,
                ratings={name: [values[place[i]] for i in positions] for name, values in answer.ratings.items()},
                flags={name: sorted({lease.order[shown] for shown in places}) for name, places in answer.flags.items() if places},
                ideal=answer.ideal,
                note=answer.note,
                seconds=seconds,
                created_at=self.clock(),
            )
            session.add(row)
            lease.state = "answered"
            session.flush()
            audit(session, account_id, "answer", item=lease.item_id, answer=row.id)
            return row.id

    def skip(self, lease_id: int, account_id: int, reason: str, note: str = "") -> None:
        """Give an item back unanswered, saying why; it goes to someone else, and never again to this annotator.

        Raises NotFound for a lease of someone else, Conflict where it was answered, and UserError for a reason that will not do.
        """
        _check_text("reason", reason)
        _check_text("note", note)
        if not reason.strip():
            raise UserError("there is no reason", expected="a few words", fix="say why nothing can be said of this task")
        with self.database.write() as session:
            lease, _, settings = _held(session, lease_id, account_id)
            if lease.state == "skipped":
                return
            if lease.state == "answered":
                raise Conflict("this task was answered already", fix="undo the answer first")
            row = AnswerRow(lease_id=lease_id, item_id=lease.item_id, account_id=account_id, ratings={}, flags={}, skipped=reason.strip())
            row.note, row.seconds, row.created_at = note, self._seconds(lease), self.clock()
            session.add(row)
            _close(session, lease, "skipped", settings.overlap)
            audit(session, account_id, "skip", item=lease.item_id)

    def last_answer(self, project_id: int, account_id: int) -> int | None:
        """The answer that an undo would take back, by its id; None where there is none."""
        with self.database.read() as session:
            last = _last_answer(session, project_id, account_id)
            return None if last is None else last.id

    def undo(self, project_id: int, account_id: int, answer_id: int | None = None) -> Task | None:
        """Take back the annotator's last answer, which is kept as undone, and show its task again; None where there is none.

        With `answer_id` that answer and no other: None where it is not the last one. A task that was open meanwhile goes back to the
        others. What a file brought stays.
        """
        with self.database.write() as session:
            settings = settings_of(find_project(session, project_id, lock=True))
            _annotator(session, account_id)
            last = _last_answer(session, project_id, account_id)
            if last is None or answer_id not in (None, last.id):
                return None
            for other in session.scalars(_open_leases(project_id).where(LeaseRow.account_id == account_id)).all():
                _close(session, other, "expired", settings.overlap)
            last.undone_at = self.clock()
            if last.judgement_id is not None:
                session.get_one(JudgementRow, last.judgement_id).withdrawn_at = self.clock()
            lease = session.get_one(LeaseRow, last.lease_id)
            lease.state, lease.created_at, lease.expires_at = "open", self.clock(), self._deadline(settings)
            session.flush()
            audit(session, account_id, "undo", item=last.item_id, answer=last.id)
            return _task(session, lease, _content(session, lease.item_id))

    def decide(self, item_id: int, account_id: int, ranks: Sequence[int], note: str = "") -> int:
        """A lead's own ranking of an item, responses in the item's order; beside those of the annotators, never over them."""
        with self.database.write() as session:
            count = session.scalar(select(func.count()).where(ItemResponseRow.item_id == item_id)) if item_id in IDS else 0
            if not count:
                raise NotFound(f"there is no item {item_id}")
            check_ranks(ranks, count)
            _check_text("note", note)
            row = DecisionRow(item_id=item_id, account_id=account_id, ranks=list(ranks), note=note, created_at=self.clock())
            session.add(row)
            session.flush()
            audit(session, account_id, "decide", item=item_id, decision=row.id)
            return row.id

    def _next(self, session: Session, project: ProjectRow, account: AccountRow) -> Task | None:
        settings, now = settings_of(project), self.clock()
        if account.daily_cap is not None and self._answers_today(session, account.id) >= account.daily_cap:
            return None
        own_or_lost = (LeaseRow.account_id == account.id) | (LeaseRow.expires_at < now)
        leases = session.scalars(_open_leases(project.id).where(own_or_lost)).all()
        own = next((lease for lease in leases if lease.account_id == account.id), None)
        if own is not None and not _avoided(session, own, account):
            own.expires_at = self._deadline(settings)
            return _task(session, own, _content(session, own.item_id))
        for lease in leases:
            if lease is own or not project.archived_at:
                _close(session, lease, "expired", settings.overlap)
        found = None if project.archived_at else choose(session, project.id, account, settings, self.generator)
        return None if found is None else self._lease(session, *found, account.id, settings)

    def _lease(self, session: Session, item: ItemRow, reason: Reason, account_id: int, settings: ProjectSettings) -> Task:
        """Give an item to an annotator: anew, or again where it was given before and came to nothing."""
        content = _content(session, item.id)
        own = select(LeaseRow).where(LeaseRow.item_id == item.id, LeaseRow.account_id == account_id)
        again = reason == "again"
        known = session.scalar(own.where(REPEATED if again else FIRST_TIME))
        first = session.scalar(own.where(FIRST_TIME)) if again and known is None else None
        lease = known or LeaseRow(item_id=item.id, account_id=account_id, slot=None, order=self._order(len(content[1]), first))
        lease.reason, lease.state, lease.created_at, lease.expires_at = reason, "open", self.clock(), self._deadline(settings)
        if reason in SLOT_REASONS:
            _take_slot(session, lease, item, settings.overlap)
        session.add(lease)
        session.flush()
        return _task(session, lease, content)

    def _order(self, count: int, first: LeaseRow | None) -> list[int]:
        """A random order of an item's responses; another than the first time, where there is another."""
        order = list(range(count))
        self.generator.shuffle(order)
        while first is not None and order == first.order and len(order) > 1:
            self.generator.shuffle(order)
        return order

    def _deadline(self, settings: ProjectSettings) -> datetime:
        return self.clock() + timedelta(minutes=settings.lease_minutes)

    def _seconds(self, lease: LeaseRow) -> float:
        return max(0.0, (self.clock() - lease.created_at).total_seconds())  # the clock may have been set back

    def _progress(self, session: Session, project_id: int, account: AccountRow) -> OwnProgress:
        return OwnProgress(self._answers_today(session, account.id), num_left(session, project_id, account))

    def _answers_today(self, session: Session, account_id: int) -> int:
        midnight = self.clock().replace(hour=0, minute=0, second=0, microsecond=0)
        standing = AnswerRow.account_id == account_id, AnswerRow.created_at >= midnight, AnswerRow.undone_at.is_(None)
        return session.scalar(select(func.count(AnswerRow.id)).where(*standing, ~from_file(AnswerRow.lease_id))) or 0


def check_answer(answer: Answer, settings: ProjectSettings, count: int) -> None:
    """Raise UserError unless the answer says of `count` responses all that the project asks, and nothing else."""

    def reject(name: str, found: object, expected: str) -> UserError:
        return UserError(f"{name}: {str(found)[:200]}", expected=expected)

    if (answer.ranks is None) != (settings.compare == "none"):
        raise reject("ranks", answer.ranks, "a rank for each response" if settings.compare != "none" else "none: nothing is compared")
    if answer.ranks is not None:
        check_ranks(answer.ranks, count)
    if settings.compare == "pairwise":
        if not whole([answer.strength], range(STRENGTHS + 1)):
            raise reject("strength", answer.strength, f"0 for a tie, or 1 to {STRENGTHS}")
        if (answer.strength == 0) != (len(set(answer.ranks or ())) == 1):
            raise reject("strength", answer.strength, "0 where the two tie, and only there")
    elif answer.strength is not None:
        raise reject("strength", answer.strength, "none: nothing is compared in pairs")
    if set(answer.ratings) != set(settings.ratings):
        raise reject("ratings", ", ".join(map(str, answer.ratings)) or "none", ", ".join(settings.ratings) or "none")
    for name, values in answer.ratings.items():
        if not whole(values, range(1, SCALE + 1)) or len(values) != count:
            raise reject(f"rating {name}", values, f"1 to {SCALE} for each of {count} responses")
    for name, places in answer.flags.items():
        if name not in settings.flags or not whole(places, range(count)):
            raise reject(f"flag {name}", places, f"one of {', '.join(settings.flags) or 'no flags'}, at places 0 to {count - 1}")
    _check_text("note", answer.note)
    _check_text("ideal", answer.ideal, MAX_RESPONSE)
    if answer.ideal and not settings.ideal:
        raise reject("ideal", "a response", "none: the project does not ask for one")
    if settings.ideal and settings.compare == "none" and not settings.ratings and not answer.ideal.strip():
        raise reject("ideal", "nothing", "the response that should be given")


def _check_text(name: str, text: str, most: int = MAX_TEXT) -> None:
    """What every database keeps as it is: PostgreSQL has no place for NUL, and no file for half a character."""
    if not isinstance(text, str):
        raise UserError(f"{name}: {str(text)[:200]}", expected="text")
    if len(text) > most:
        raise UserError(f"{name}: {len(text):,} characters", expected=f"at most {most:,}")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{name}: a character that is none", expected="text")


def _last_answer(session: Session, project_id: int, account_id: int) -> AnswerRow | None:
    """What the annotator answered last, and has not taken back."""
    return session.scalar(
        select(AnswerRow)
        .where(AnswerRow.account_id == account_id, in_project(AnswerRow.item_id, project_id))
        .where(AnswerRow.undone_at.is_(None), AnswerRow.skipped == "", ~from_file(AnswerRow.lease_id))
        .order_by(AnswerRow.id.desc())
        .limit(1)
    )


def _annotator(session: Session, account_id: int) -> AccountRow:
    """Within a transaction, someone who can sign in; until its end the account is neither renamed nor deleted."""
    account = session.scalar(select(AccountRow).where(AccountRow.id == account_id).with_for_update(read=True))
    if account is None or not account.can_sign_in:
        raise NotFound(f"there is no account {account_id}")
    return account


def _held(session: Session, lease_id: int, account_id: int) -> tuple[LeaseRow, AccountRow, ProjectSettings]:
    """The annotator's own lease, which no one else changes until the transaction ends."""
    query = select(ItemRow.project_id).join(LeaseRow, LeaseRow.item_id == ItemRow.id)
    own = LeaseRow.id == lease_id, LeaseRow.account_id == account_id
    project_id = session.scalar(query.where(*own)) if lease_id in IDS else None
    if project_id is None:
        raise NotFound(f"there is no task {lease_id} of yours")
    settings = settings_of(find_project(session, project_id, lock=True))
    return session.get_one(LeaseRow, lease_id), _annotator(session, account_id), settings


def _open_leases(project_id: int) -> Select[LeaseRow]:
    return select(LeaseRow).where(OPEN, in_project(LeaseRow.item_id, project_id))


def _avoided(session: Session, lease: LeaseRow, account: AccountRow) -> bool:
    """Whether the annotator has asked, since the lease was given, not to see such a thing."""
    return avoids(account, session.get_one(ItemRow, lease.item_id).categories)


def free_slot(taken: Collection[int | None]) -> int:
    """The first slot that is not taken."""
    return min(set(range(len(taken) + 1)).difference(taken))


def _take_slot(session: Session, lease: LeaseRow, item: ItemRow, overlap: int) -> None:
    taken = set(session.scalars(select(LeaseRow.slot).where(LeaseRow.item_id == item.id, LeaseRow.slot.is_not(None))))
    lease.slot = free_slot(taken)
    item.remaining = max(0, overlap - len(taken) - 1)


def _close(session: Session, lease: LeaseRow, state: str, overlap: int) -> None:
    """End a lease that came to nothing; its slot is free again."""
    had_slot, lease.state, lease.slot = lease.slot is not None, state, None
    session.flush()
    if had_slot:
        taken = session.scalar(select(func.count(LeaseRow.slot)).where(LeaseRow.item_id == lease.item_id)) or 0
        session.get_one(ItemRow, lease.item_id).remaining = max(0, overlap - taken)
        session.flush()


def _take_up(session: Session, lease: LeaseRow, settings: ProjectSettings) -> None:
    """An answer that comes after its lease has expired counts, unless others have the item by then."""
    if lease.reason in SLOT_REASONS:
        item = session.get_one(ItemRow, lease.item_id)
        if item.remaining < 1:
            raise Conflict("this task took so long that it went to someone else", fix="go on with the next one")
        _take_slot(session, lease, item, settings.overlap)


def _standing(session: Session, lease_id: int) -> AnswerRow:
    found = session.scalars(select(AnswerRow).where(AnswerRow.lease_id == lease_id, AnswerRow.undone_at.is_(None)))
    return found.one()


def _content(session: Session, item_id: int) -> tuple[Prompt, tuple[str, ...]]:
    """An item's prompt and its responses in the item's order."""
    query = (
        select(ResponseRow.text)
        .join(ItemResponseRow, ItemResponseRow.response_id == ResponseRow.id)
        .where(ItemResponseRow.item_id == item_id)
        .order_by(ItemResponseRow.position)
    )
    content, tags = session.execute(
        select(PromptRow.content, PromptRow.tags).join(ItemRow, ItemRow.prompt_id == PromptRow.id).where(ItemRow.id == item_id)
    ).one()
    prompt = Prompt(content if isinstance(content, str) else tuple(Message(*m) for m in content), tags)
    return prompt, tuple(session.scalars(query))


def _task(session: Session, lease: LeaseRow, content: tuple[Prompt, tuple[str, ...]]) -> Task:
    prompt, texts = content
    before = select(AnswerRow).where(AnswerRow.lease_id == lease.id, AnswerRow.undone_at.is_not(None))
    undone = session.scalar(before.order_by(AnswerRow.id.desc()).limit(1))
    answer = None if undone is None else _as_shown(session, undone, lease.order)
    return Task(lease.id, lease.item_id, prompt, tuple(texts[i] for i in lease.order), answer)


def _as_shown(session: Session, row: AnswerRow, order: Sequence[int]) -> Answer:
    """A stored answer with its responses in the order of the screen."""
    ranks = None
    if row.judgement_id is not None:
        stored = session.scalars(select(RankRow.rank).where(RankRow.judgement_id == row.judgement_id).order_by(RankRow.position)).all()
        ranks = tuple(stored[i] for i in order)
    return Answer(
        ranks=ranks,
        strength=row.strength,
        ratings={name: tuple(values[i] for i in order) for name, values in row.ratings.items()},
        flags={name: tuple(sorted(order.index(i) for i in places)) for name, places in row.flags.items()},
        ideal=row.ideal,
        note=row.note,
    )


def _plain(answer: Answer) -> Answer:
    """As it reads when it comes back from the database."""
    return Answer(
        ranks=None if answer.ranks is None else tuple(answer.ranks),
        strength=answer.strength,
        ratings={name: tuple(values) for name, values in answer.ratings.items()},
        flags={name: tuple(sorted(set(places))) for name, places in answer.flags.items() if places},
        ideal=answer.ideal,
        note=answer.note,
    )
