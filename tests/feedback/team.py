"""Annotators, projects and a clock to try the labelling services with."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from heed.feedback.database import Database
from heed.feedback.projects import Project, Projects, ProjectSettings
from heed.feedback.schema import AccountRow, AnswerRow, ItemRow, LeaseRow
from heed.feedback.tasks import Answer, Task, Tasks
from heed.records import Prompt, Response


class Clock:
    """Stands still unless it is set."""

    def __init__(self) -> None:
        self.now = datetime(2024, 5, 6, 9, 0)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)


class Team:
    """The services over a database, with what tests ask of it."""

    def __init__(self, database: Database, seed: int = 0) -> None:
        self.database = database
        self.clock = Clock()
        self.tasks = Tasks(database, random.Random(seed), self.clock)
        self.projects = Projects(database)

    def annotator(self, name: str, **limits: Any) -> int:
        with self.database.write() as session:
            row = AccountRow(name=name, password="none", **{"role": "annotator", "avoid": [], **limits})
            session.add(row)
            session.flush()
            return row.id

    def project(self, name: str = "project", items: int = 5, responses: int = 3, gold: int = 0, **settings: Any) -> Project:
        """Prompts `name 0?` and so on, of which the last `gold` have a right answer, with responses `a`, `b`, ..."""
        made = self.projects.create(name, ProjectSettings(**{"num_responses": max(2, responses), **settings}), None)
        rows = [(Prompt(f"{name} {i}?"), [Response(chr(ord("a") + k)) for k in range(responses)]) for i in range(items)]
        right = [None] * (items - gold) + [list(range(1, responses + 1))] * gold
        self.projects.add_items(made.id, rows, None, gold=right)
        return made

    def change(self, project_id: int, **settings: Any) -> None:
        found = self.projects.get(project_id)
        values = {name: getattr(found.settings, name) for name in ProjectSettings.__slots__}
        self.projects.change(project_id, ProjectSettings(**{**values, **settings}), found.revision, None)

    def set_account(self, account_id: int, **limits: Any) -> None:
        with self.database.write() as session:
            for name, value in limits.items():
                setattr(session.get_one(AccountRow, account_id), name, value)

    def take(self, project_id: int, account_id: int) -> Task:
        task = self.tasks.next(project_id, account_id)
        assert task is not None
        return task

    def work(self, project_id: int, account_id: int, number: int) -> list[Task]:
        """Tasks that the annotator took and answered."""
        done = []
        for _ in range(number):
            done.append(self.take(project_id, account_id))
            self.tasks.answer(done[-1].lease_id, account_id, alphabetical(done[-1]))
        return done

    def lease(self, lease_id: int) -> LeaseRow:
        with self.database.read() as session:
            return session.get_one(LeaseRow, lease_id)

    def item(self, item_id: int) -> ItemRow:
        with self.database.read() as session:
            return session.get_one(ItemRow, item_id)

    def answers(self) -> list[AnswerRow]:
        with self.database.read() as session:
            return list(session.scalars(select(AnswerRow).order_by(AnswerRow.id)))

    def drifted(self) -> list[int]:
        """Items whose `remaining` is not what the slots say."""
        overlaps = {project.id: project.settings.overlap for project in self.projects.all()}
        with self.database.read() as session:
            slots = select(LeaseRow.item_id, func.count(LeaseRow.slot)).group_by(LeaseRow.item_id)
            taken = dict(session.execute(slots).all())
            items = session.scalars(select(ItemRow))
            wanted = {row: 0 if row.gold else max(0, overlaps[row.project_id] - taken.get(row.id, 0)) for row in items}
            return [row.id for row, remaining in wanted.items() if row.remaining != remaining]


def alphabetical(task: Task, **more: Any) -> Answer:
    """Ranks the responses by their text."""
    places = sorted(task.responses)
    return Answer(ranks=tuple(places.index(text) + 1 for text in task.responses), **more)
