"""A project whose annotators are known: three who look, one who clicks at random, and one who has hardly begun."""

from __future__ import annotations

import random

from heed.feedback.database import Database
from heed.feedback.projects import Project
from heed.feedback.tasks import Answer
from tests.feedback.team import Team

CAREFUL = ("ann", "ben", "cy")


def panel(database: Database, name: str = "panel", items: int = 30) -> Project:
    """Those who look rank alphabetically, `dan` anyhow; `eve`, who looks too, has answered 5 items."""
    team, generator = Team(database), random.Random(0)
    project = team.project(name, items=items, overlap=5)
    for annotator in CAREFUL:
        team.work(project.id, team.annotator(annotator), items)
    dan = team.annotator("dan")
    for _ in range(items):
        task = team.take(project.id, dan)
        team.tasks.answer(task.lease_id, dan, Answer(ranks=tuple(generator.sample((1, 2, 3), 3))))
    team.work(project.id, team.annotator("eve"), 5)
    return project
