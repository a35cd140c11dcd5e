"""The adjudication queue: who sees it, in which order, and what a decision leaves as it was."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from heed.feedback.database import Database
from heed.feedback.projects import Project, Projects, ProjectSettings
from heed.feedback.schema import DecisionRow
from heed.feedback.store import FeedbackStore
from heed.feedback.tasks import Answer, Tasks
from heed.records import Prompt, Response
from tests.web.conftest import Person, text_of

Make = Callable[..., Person]


@pytest.fixture
def disputed(person: Make, database: Database) -> Project:
    """Of three items Ann and Bob agree on `alike`, one ties in `tied`, and they say the opposite of `opposite`."""
    projects, tasks = Projects(database), Tasks(database)
    project = projects.create("Kind", ProjectSettings(num_responses=2, overlap=2), None)
    prompts = ("alike", "opposite", "tied")
    projects.add_items(project.id, [(Prompt(name), [Response("yes", model="secret"), Response("no")]) for name in prompts], None)
    for name, said in (("Ann", {}), ("Bob", {"opposite": (2, 1), "tied": (1, 1)})):
        account = person(name, "annotator").account
        while (task := tasks.next(project.id, account.id)) is not None:
            yes, no = said.get(str(task.prompt.text), (1, 2))
            ranks = (yes, no) if task.responses[0] == "yes" else (no, yes)
            tasks.answer(task.lease_id, account.id, Answer(ranks=ranks, flags={"toxic": (0,)}, note=f"{name} on {task.prompt.text}"))
    return project


def listed(page: str) -> list[tuple[str, str]]:
    return re.findall(r'<a href="/items/(\d+)/decide">(\w+)</a>', page)


def test_the_most_disputed_comes_first_and_what_all_agree_on_does_not_come(person: Make, disputed: Project) -> None:
    page = person("Lea", "lead").get(f"/projects/{disputed.id}/adjudicate").text
    assert [name for _, name in listed(page)] == ["opposite", "tied"]
    assert "100 %" in page
    assert "2 wait for a decision" in text_of(page)


def test_a_decision_stands_beside_what_the_annotators_said(person: Make, disputed: Project, database: Database) -> None:
    lea, before = person("Lea", "lead"), FeedbackStore(database).judgements()
    item = listed(lea.get(f"/projects/{disputed.id}/adjudicate").text)[0][0]
    page = lea.get(f"/items/{item}/decide").text
    for part in ("opposite", "yes", "no", "Ann", "Bob", "Ann on opposite", "Bob on opposite", "toxic"):
        assert part in text_of(page)
    assert "secret" not in page
    done = lea.submit(f"/items/{item}/decide", {"rank_0": "1", "rank_1": "2", "note": "yes is right"})
    assert (done.status_code, done.headers["location"]) == (303, f"/projects/{disputed.id}/adjudicate")
    assert FeedbackStore(database).judgements() == before
    with database.read() as session:
        (row,) = session.query(DecisionRow).all()
        assert (row.ranks, row.note, row.account_id) == ([1, 2], "yes is right", lea.account.id)
    after = lea.get(f"/projects/{disputed.id}/adjudicate").text
    assert [name for _, name in listed(after)] == ["tied", "opposite"]
    assert "1 waits" in text_of(after)
    assert after.count("decided</span>") == 1
    assert "Lea decided" in text_of(lea.get(f"/items/{item}/decide").text)


@pytest.mark.parametrize(
    "wrong", [{}, {"rank_0": "1"}, {"rank_0": "1", "rank_1": "3"}, {"rank_0": "2", "rank_1": "2"}, {"rank_0": "x", "rank_1": "1"}]
)
def test_a_decision_that_will_not_do_comes_back_as_it_was(
    person: Make, disputed: Project, database: Database, wrong: dict[str, str]
) -> None:
    lea = person("Lea", "lead")
    item = listed(lea.get(f"/projects/{disputed.id}/adjudicate").text)[0][0]
    back = lea.submit(f"/items/{item}/decide", {**wrong, "note": "because"})
    assert back.status_code == 422
    assert "because</textarea>" in back.text
    assert ('name="rank_0" value="1" required checked' in back.text) == (wrong.get("rank_0") == "1")
    with database.read() as session:
        assert session.query(DecisionRow).all() == []


@pytest.mark.parametrize("role", ["annotator", "viewer"])
def test_only_leads_adjudicate(person: Make, disputed: Project, role: str) -> None:
    someone = person("Sam", role)
    assert someone.get(f"/projects/{disputed.id}/adjudicate").status_code == 403
    assert someone.get("/items/1/decide").status_code == 403
    assert someone.submit("/items/1/decide", {"rank_0": "1", "rank_1": "2"}).status_code == 403


def test_items_that_there_are_not_are_not_found(person: Make, disputed: Project) -> None:
    lea = person("Lea", "lead")
    for item, status in {0: 404, 999: 404, 2**31 - 1: 404, -1: 422, 2**31: 422, 2**80: 422}.items():
        assert lea.get(f"/items/{item}/decide").status_code == status
        assert lea.submit(f"/items/{item}/decide", {"rank_0": "1", "rank_1": "2"}).status_code == status
    assert lea.get("/projects/999/adjudicate").status_code == 404


def test_an_empty_queue_says_so(person: Make, project: Project) -> None:
    assert "Nothing is disputed" in text_of(person("Lea", "lead").get(f"/projects/{project.id}/adjudicate").text)
