"""Projects: what a team judges, how, and the items that are given out."""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from sqlalchemy import case, func, insert, select, update
from sqlalchemy.orm import Session

from heed.config import load_config
from heed.errors import UserError, require
from heed.feedback.database import Database, take_turns
from heed.feedback.schema import OPEN, AuditRow, ItemResponseRow, ItemRow, LeaseRow, ProjectRow, PromptRow, WaitingPromptRow, utc_now
from heed.feedback.store import add_items, prompt_categories
from heed.records import Prompt, Response

FLAGS = ("toxic", "harmful", "made up", "off-topic", "wrong language")
SCALE = 7
"""Ratings go from 1 to this."""
STRENGTHS = 4
"""Levels of a preference between two; 0 beside them is a tie."""
IDS = range(1, 2**31)
"""What the number of a row can be; databases fail on others."""


class NotFound(UserError):
    """There is no such thing, or it is not this person's."""


class Forbidden(UserError):
    """Someone is signed in, but may not do this."""


class Conflict(UserError):
    """What was asked for came too late: someone else, or the clock, was there before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSettings:
    """What annotators are asked, and in which order."""

    criterion: str = "Which response is more helpful, honest and harmless?"
    """The question that a comparison answers."""
    guidelines: str = ""
    """Markdown, one key away for the annotator."""
    compare: Literal["rank", "pairwise", "none"] = "rank"
    """Rank all responses, ties allowed; say which of two is better and how much; or neither."""
    num_responses: int = 4
    """Responses shown together; 2 where they are compared in pairs."""
    ratings: tuple[str, ...] = ()
    """Attributes that each response is rated on from 1 to 7."""
    flags: tuple[str, ...] = FLAGS
    """What may be wrong with a response."""
    ideal: bool = False
    """Whether annotators may write or edit the ideal response, which becomes a demonstration."""
    overlap: int = 1
    """Annotators who judge each item."""
    gold_rate: float = 0.0
    """Share of items whose right answer is known, mixed in."""
    again_rate: float = 0.0
    """Share of items that the same annotator judges again, responses in another order."""
    strategy: Literal["random", "uncertain"] = "random"
    """What comes next: anything, or what a reward model is least sure of."""
    control_share: float = 0.25
    """Share of items that come at random whatever the strategy, so that it can be judged."""
    lease_minutes: int = 30
    """How long an item waits for the annotator who has it before another may get it."""

    def __post_init__(self) -> None:
        require(bool(self.criterion.strip()), "criterion", self.criterion, "a question")
        require(self.num_responses >= 1, "num_responses", self.num_responses, "1 or above")
        alone = self.compare != "none" and self.num_responses < 2
        require(not alone, "num_responses", self.num_responses, "2 or more where responses are compared")
        two = self.compare != "pairwise" or self.num_responses == 2
        require(two, "num_responses", self.num_responses, "2 where responses are compared in pairs")
        asks = self.compare != "none" or self.ratings or self.ideal
        require(bool(asks), "compare", self.compare, "something to ask: a comparison, ratings or an ideal response")
        for name in ("ratings", "flags"):
            names = getattr(self, name)
            clean = all(n.strip() == n and 0 < len(n) <= 40 for n in names) and len(set(names)) == len(names)
            require(clean, name, names, "different names of 1 to 40 characters")
        require(1 <= self.overlap <= 100, "overlap", self.overlap, "1 to 100 annotators")
        for name in ("gold_rate", "again_rate", "control_share"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a share from 0 to 1")
        require(self.gold_rate + self.again_rate < 1, "gold_rate", self.gold_rate, "less than 1 together with again_rate")
        require(1 <= self.lease_minutes <= 24 * 60, "lease_minutes", self.lease_minutes, "1 minute to a day")


@dataclass(frozen=True, slots=True)
class Project:
    """A project as it stands."""

    id: int
    name: str
    settings: ProjectSettings
    revision: int
    """To be named by whoever changes it."""
    archived: bool


class Added(NamedTuple):
    """What came of adding items."""

    new: int
    known: int
    """Items that the project had."""
    too_few: int
    """Prompts with fewer different responses than are compared."""
    left_over: int
    """Responses that were alone after the others of their prompt had been put together."""


class Progress(NamedTuple):
    """How far a project has come."""

    items: int
    """Those that are judged for their own sake."""
    gold: int
    """Those whose right answer is known."""
    wanted: int
    """Answers that the items need in all."""
    waiting: int
    """Answers of these that nobody has given yet."""


class Projects:
    """Makes, changes and fills projects; every change is audited, and on disk when the call returns."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def create(self, name: str, settings: ProjectSettings, by: int | None) -> Project:
        """Raises UserError for a name of nothing, of more than 80 characters or of unseen ones, Conflict for one that is taken."""
        name = name.strip()
        require(0 < len(name) <= 80 and name.isprintable(), "name", name[:100], "1 to 80 characters that can be seen")
        with self.database.write() as session:
            take_turns(session, "projects")
            if session.scalar(select(ProjectRow.id).where(ProjectRow.name == name)):
                raise Conflict(f"there is a project {name!r} already", fix="choose another name")
            row = ProjectRow(name=name, settings=asdict(settings), revision=1)
            session.add(row)
            session.flush()
            audit(session, by, "project.create", project=row.id, name=name, settings=asdict(settings))
            return project_of(row)

    def all(self) -> list[Project]:
        """In the order they were made."""
        with self.database.read() as session:
            return [project_of(row) for row in session.scalars(select(ProjectRow).order_by(ProjectRow.id))]

    def get(self, project: int | str) -> Project:
        """By id or name; NotFound where there is none."""
        with self.database.read() as session:
            return project_of(find_project(session, project))

    def progress(self) -> dict[int, Progress]:
        """Of each project that has items."""
        judged = ItemRow.gold.is_(None)
        counts = (
            select(ItemRow.project_id, func.sum(case((judged, 1), else_=0)), func.sum(case((judged, 0), else_=1)))
            .add_columns(func.sum(case((judged, ItemRow.remaining), else_=0)))
            .group_by(ItemRow.project_id)
        )
        begun = select(ItemRow.project_id, func.count()).join(LeaseRow, LeaseRow.item_id == ItemRow.id)
        begun = begun.where(OPEN, LeaseRow.slot.is_not(None)).group_by(ItemRow.project_id)
        with self.database.read() as session:
            overlaps = {row.id: settings_of(row).overlap for row in session.scalars(select(ProjectRow))}
            found = session.execute(counts).all()
            on_screens = dict(session.execute(begun).tuples().all())
        return {i: Progress(items, gold, items * overlaps[i], free + on_screens.get(i, 0)) for i, items, gold, free in found}

    def change(self, project_id: int, settings: ProjectSettings, revision: int, by: int | None) -> Project:
        """Replace the settings that were read at this revision.

        Conflict where someone else has changed them since; UserError where the project has items that cannot be compared so.
        """
        with self.database.write() as session:
            row = find_project(session, project_id, lock=True)
            if row.revision != revision:
                raise Conflict(
                    f"{row.name!r} was changed by someone else meanwhile",
                    expected=f"revision {row.revision}",
                    fix="reload, and change it again",
                )
            before, row.settings, row.revision = row.settings, asdict(settings), revision + 1
            if settings.compare != before["compare"]:
                _check_sizes(session, project_id, settings)
            if settings.overlap != before["overlap"]:
                taken = select(func.count(LeaseRow.id)).where(LeaseRow.item_id == ItemRow.id, LeaseRow.slot.is_not(None)).scalar_subquery()
                waits = func.max(settings.overlap - taken, 0) if self._sqlite else func.greatest(settings.overlap - taken, 0)
                own = ItemRow.project_id == project_id, ItemRow.gold.is_(None)
                session.execute(update(ItemRow).where(*own).values(remaining=waits).execution_options(synchronize_session=False))
            audit(session, by, "project.change", project=project_id, **_changes(before, asdict(settings)))
            return project_of(row)

    def archive(self, project_id: int, by: int | None, *, archived: bool = True) -> None:
        """Give out no more of its items; or go on."""
        with self.database.write() as session:
            find_project(session, project_id, lock=True).archived_at = utc_now() if archived else None
            audit(session, by, "project.archive" if archived else "project.reopen", project=project_id)

    def add_items(
        self,
        project_id: int,
        items: Sequence[tuple[Prompt, Sequence[Response]]],
        by: int | None,
        *,
        gold: Sequence[Sequence[int] | None] | None = None,
    ) -> Added:
        """Add prompts with their responses, `num_responses` at a time; those that the project has, in any order, are left as they are.

        Equal texts are one response. `gold` has the right ranks for the responses of a prompt, or none; UserError where
        they do not fit. A prompt's tag `categories`, split at commas, says what it may hold that people asked not to see;
        of one that is known it adds to what is said, in every project.
        UserError too where plain texts and conversations would come together: no training takes both.
        """
        with self.database.write() as session:
            take_turns(session, "texts")
            return add_project_items(session, project_id, items, by, gold=gold)

    @property
    def _sqlite(self) -> bool:
        return self.database.engine.dialect.name == "sqlite"


def add_project_items(
    session: Session,
    project_id: int,
    items: Sequence[tuple[Prompt, Sequence[Response]]],
    by: int | None,
    *,
    gold: Sequence[Sequence[int] | None] | None = None,
) -> Added:
    """`Projects.add_items` within a transaction that takes its turn at `texts`."""
    ids = add_items(session, items)
    project = project_of(find_project(session, project_id, lock=True))
    check_style(session, project_id, [prompt for prompt, _ in items])
    settings, rows, known, too_few, left_over = project.settings, [], 0, 0, 0
    prompt_ids = {prompt.id for prompt, _ in items}
    have, categories = _known_groups(session, project_id, prompt_ids), prompt_categories(session, prompt_ids)
    for index, ((prompt, _), found) in enumerate(zip(items, ids, strict=True)):
        right = gold[index] if gold else None
        different = list(dict.fromkeys(found))
        groups = _groups(different, settings)
        too_few += not groups
        left_over += len(different) - sum(map(len, groups)) if groups else 0
        if right and groups:
            require(len(groups) == 1, "gold", right, f"ranks of {settings.num_responses} responses at most: those shown together")
            check_ranks(right, len(groups[0]))
        for group in groups:
            if frozenset(group) in have:
                known += 1
                continue
            have.add(frozenset(group))
            digest = hashlib.sha256(json.dumps(group).encode()).hexdigest()
            rows.append((_item(project_id, prompt.id, digest, settings, right, categories[prompt.id]), group))
    session.add_all(row for row, _ in rows)
    session.flush()
    places = [
        {"item_id": row.id, "position": position, "response_id": response_id}
        for row, group in rows
        for position, response_id in enumerate(group)
    ]
    if places:
        session.execute(insert(ItemResponseRow), places)
    added = Added(len(rows), known, too_few, left_over)
    audit(session, by, "items.add", project=project_id, **added._asdict())
    return added


def audit(session: Session, by: int | None, action: str, **detail: Any) -> None:
    """Note in the audit log who did what, within the transaction that does it."""
    session.add(AuditRow(account_id=by, action=action, detail=detail))


def find_project(session: Session, project: int | str, *, lock: bool = False) -> ProjectRow:
    """Within a transaction; with `lock` no one else changes it, or the leases of its items, until the end."""
    column = ProjectRow.id if isinstance(project, int) else ProjectRow.name
    query = select(ProjectRow).where(column == project)
    possible = not isinstance(project, int) or project in IDS
    # `key_share`: other transactions may go on adding rows that refer to the project.
    row = session.scalar(query.with_for_update(key_share=True) if lock else query) if possible else None
    if row is None:
        raise NotFound(f"there is no project {project!r}")
    return row


def check_style(session: Session, project_id: int, prompts: Sequence[Prompt]) -> None:
    """Raise UserError where plain texts and conversations would come together in a project: no training takes both."""
    styles = {prompt.is_conversation for prompt in prompts}
    for row in (ItemRow, WaitingPromptRow):
        content = session.scalar(
            select(PromptRow.content).join(row, row.prompt_id == PromptRow.id).where(row.project_id == project_id).limit(1)
        )
        styles |= set() if content is None else {not isinstance(content, str)}
    if len(styles) > 1:
        raise UserError("plain texts and conversations together", expected="one of them in a project", fix="make another project")


def check_ranks(ranks: Sequence[int], count: int) -> None:
    """Raise UserError unless there is a rank for each of `count` responses."""
    if not whole(ranks, range(1, count + 1)) or len(ranks) != count or 1 not in ranks:
        raise UserError(f"ranks {str(ranks)[:200]}", expected=f"a whole number from 1 for each of {count} responses, 1 for the best")


def whole(values: object, allowed: Container[int]) -> bool:
    """Whether it is a list of whole numbers in this range; True and 1.0 are none."""
    return isinstance(values, list | tuple) and all(type(value) is int and value in allowed for value in values)


def settings_of(row: ProjectRow) -> ProjectSettings:
    return load_config(ProjectSettings, row.settings, f"the settings of {row.name!r}")


def project_of(row: ProjectRow) -> Project:
    return Project(row.id, row.name, settings_of(row), row.revision, row.archived_at is not None)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return {name: [plain(before.get(name)), plain(after[name])] for name in after if plain(before.get(name)) != plain(after[name])}


def _check_sizes(session: Session, project_id: int, settings: ProjectSettings) -> None:
    """Raise UserError unless all items of a project can be compared as the settings say."""
    own = select(func.count().label("size")).join(ItemRow, ItemRow.id == ItemResponseRow.item_id).where(ItemRow.project_id == project_id)
    sizes = own.select_from(ItemResponseRow).group_by(ItemRow.id).subquery()
    least, most = session.execute(select(func.min(sizes.c.size), func.max(sizes.c.size))).one()
    fits = {"rank": (least or 2) >= 2, "pairwise": (least or 2) == (most or 2) == 2, "none": True}
    wanted = "items of 2 responses each" if settings.compare == "pairwise" else "items of 2 responses or more"
    require(fits[settings.compare], "compare", settings.compare, f"{wanted}, which this project does not have; make another")


def _known_groups(session: Session, project_id: int, prompt_ids: Collection[str]) -> set[frozenset[int]]:
    """Responses of each item that a project has of these prompts.

    Sets, not digests, which know an order: files that disagree on which of two is better name them in opposite orders.
    """
    wanted, found = list(prompt_ids), defaultdict[int, set[int]](set)
    held = select(ItemRow.id, ItemResponseRow.response_id).join(ItemResponseRow, ItemResponseRow.item_id == ItemRow.id)
    for start in range(0, len(wanted), 500):
        own = ItemRow.project_id == project_id, ItemRow.prompt_id.in_(wanted[start : start + 500])
        for item_id, response_id in session.execute(held.where(*own)).tuples():
            found[item_id].add(response_id)
    return {frozenset(group) for group in found.values()}


def _groups(ids: list[int], settings: ProjectSettings) -> list[list[int]]:
    """Responses that are judged together; a last one alone has nothing to be compared with."""
    least, most = 2 if settings.compare != "none" else 1, settings.num_responses
    groups = [ids[start : start + most] for start in range(0, len(ids), most)]
    return [group for group in groups if len(group) >= least]


def _item(
    project_id: int, prompt_id: str, digest: str, settings: ProjectSettings, gold: Sequence[int] | None, categories: list[str]
) -> ItemRow:
    return ItemRow(
        project_id=project_id,
        prompt_id=prompt_id,
        digest=digest,
        remaining=0 if gold else settings.overlap,
        # From the content alone, so that the order of a project does not depend on when its items came.
        shuffle=random.Random(f"{project_id} {prompt_id} {digest}").random(),
        gold=list(gold) if gold else None,
        categories=categories,
    )
