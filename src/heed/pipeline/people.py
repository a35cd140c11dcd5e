"""Judgements by people: sampled responses go to a labelling project, and what its annotators say of them comes back."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

from sqlalchemy import func, select

from heed.feedback.database import Database
from heed.feedback.export import Export, Row, label_weights, prompt_of
from heed.feedback.projects import NotFound, Projects, ProjectSettings
from heed.feedback.schema import ItemResponseRow, ItemRow, LeaseRow, ResponseRow
from heed.records import Judgement, Prompt, Response
from heed.training.run import Run

POLL_SECONDS = 2.0
NOBODY = "lead\N{ZERO WIDTH SPACE}"
"""Who signs what a lead decided: a name that no account can have, as it does not print."""

Asked = Mapping[str, Collection[str]]
"""By the id of a prompt, the responses that people were asked about: a later round asks about others to the same prompt."""


def ask(database: Database, project: str, items: Sequence[tuple[Prompt, Sequence[Response]]]) -> str:
    """Add items to a project, which is made where there is none, and say what came of it; items that it has are not asked again."""
    projects = Projects(database)
    try:
        found = projects.get(project)
    except NotFound:
        most = max(len({r.text for r in responses}) for _, responses in items)
        found = projects.create(project, ProjectSettings(num_responses=max(2, most)), None)
    added = projects.add_items(found.id, items, None)
    return f"{added.new} items are new to project {project!r}, {added.known} were there, {added.too_few} have too few different responses"


def wait(database: Database, project: str, asked: Asked | None, run: Run) -> None:
    """Return once every item of the project (that was asked, where given) has all its annotators; it can be stopped meanwhile."""
    own = None if asked is None else _items(database, project, asked)
    while (left := waiting(database, project, own))[0]:
        run.progress(left[1] - left[0], left[1], "answers by people")
        run.checkpoint_if_due(False, lambda: None)
        time.sleep(POLL_SECONDS)


def waiting(database: Database, project: str, own: Collection[int] | None = None) -> tuple[int, int]:
    """How many answers to a project's items, or to these of them, are still to come, and how many there will be."""
    found = Projects(database).get(project)
    open_leases = select(LeaseRow.item_id, func.count().label("open")).where(LeaseRow.state == "open", LeaseRow.slot.is_not(None))
    held = open_leases.group_by(LeaseRow.item_id).subquery()
    query = select(ItemRow.id, ItemRow.remaining, func.coalesce(held.c.open, 0)).outerjoin(held, held.c.item_id == ItemRow.id)
    with database.read() as session:
        items = session.execute(query.where(ItemRow.project_id == found.id, ItemRow.gold.is_(None))).tuples().all()
    left = [remaining + leased for item_id, remaining, leased in items if own is None or item_id in own]
    return sum(left), len(left) * found.settings.overlap


def _items(database: Database, project: str, asked: Asked) -> set[int]:
    """The items of a project whose responses are all among those asked about."""
    query = (
        select(ItemRow.id, ItemRow.prompt_id, ResponseRow.text)
        .join(ItemResponseRow, ItemResponseRow.item_id == ItemRow.id)
        .join(ResponseRow, ResponseRow.id == ItemResponseRow.response_id)
        .where(ItemRow.project_id == Projects(database).get(project).id)
    )
    with database.read() as session:
        rows = session.execute(query).tuples().all()
    return {item_id for item_id, _, _ in rows} - {item_id for item_id, prompt_id, text in rows if text not in asked.get(prompt_id, ())}


class Judged(NamedTuple):
    """What counts of a project's answers."""

    judgements: list[Judgement]
    weights: dict[str, float]
    """Of each annotator among them."""


def judged(location: str, project: str, asked: Asked | None = None, *, weights: bool = False) -> Judged:
    """What counts of a project's answers (see `feedback.export.Filters`), of what was asked where given.

    A lead's decision settles its item. With `weights`, annotators weigh what `feedback.export.label_weights` finds, and those
    who weigh nothing are left out; without, everyone weighs 1.
    """
    with closing(Database(location)) as database:
        rows = list(Export(database, project, "rankings", weights=label_weights if weights else None).rows())
    said = [(_judgement(row), row["weight"]) for row in rows]
    if asked is not None:
        said = [(j, weight) for j, weight in said if set(j.responses) <= set(asked.get(j.prompt.id, ()))]
    return Judged([judgement for judgement, _ in said], {judgement.annotator: weight for judgement, weight in said})


def _judgement(row: Row) -> Judgement:
    return Judgement(prompt_of(row), tuple(row["responses"]), tuple(row["ranks"]), row["annotator"] or NOBODY)
