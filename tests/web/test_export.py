"""Downloads: what leaves, to whom, and that it can be read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from heed.data.readers import read_demonstrations, read_preferences
from heed.feedback.accounts import Role
from heed.feedback.database import Database
from heed.feedback.projects import Project, Projects, ProjectSettings
from heed.feedback.schema import AuditRow
from heed.feedback.tasks import Answer, Tasks
from heed.feedback.transfer import import_project
from heed.records import Prompt, Response
from tests.feedback.panel import panel
from tests.web.conftest import Person, text_of

Join = Callable[[str, Role], Person]


@pytest.fixture
def lead(person: Join) -> Person:
    return person("Lea", "lead")


@pytest.fixture
def judged(person: Join, project: Project, database: Database) -> Project:
    """Two annotators have answered a project."""
    tasks = Tasks(database)
    for name in ("Ann", "Ben"):
        account = person(name, "annotator").account.id
        for _ in range(2):
            task = tasks.next(project.id, account)
            assert task is not None
            ranks = tuple(sorted(task.responses).index(text) + 1 for text in task.responses)
            tasks.answer(task.lease_id, account, Answer(ranks=ranks))
    return project


def rows_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_page_explains_each_kind_and_names_those_who_answered(lead: Person, judged: Project) -> None:
    page = lead.get(f"/projects/{judged.id}/export").text
    for kind in ("pairs", "rankings", "kto", "demonstrations", "full"):
        assert f"/projects/{judged.id}/export/{kind}" in page
    for words in ("share of annotators", "Ann", "Ben", "toxic"):
        assert words in text_of(page)
    assert 'value="Lea"' not in page


@pytest.mark.parametrize("role", ["annotator", "viewer"])
def test_only_leads_export(person: Join, judged: Project, role: Role) -> None:
    other = person("Other", role)
    for path in ("", "/pairs", "/full", "/pairs/card"):
        assert other.get(f"/projects/{judged.id}/export{path}").status_code == 403


@pytest.mark.parametrize("kind", ["pairs", "rankings"])
def test_preferences_are_read_back(lead: Person, judged: Project, tmp_path: Path, kind: str) -> None:
    found = lead.get(f"/projects/{judged.id}/export/{kind}")
    assert found.status_code == 200
    assert found.headers["content-disposition"] == f'attachment; filename="kind-answers-{kind}.jsonl"'
    (tmp_path / "data.jsonl").write_bytes(found.content)
    assert len(read_preferences(tmp_path / "data.jsonl").records) == {"pairs": 12, "rankings": 4}[kind]


def test_demonstrations_are_read_back(lead: Person, database: Database, tmp_path: Path) -> None:
    settings = ProjectSettings(compare="none", num_responses=1, flags=(), ideal=True)
    project = Projects(database).create("Ideal \u2013 \u00fc\"'", settings, None)
    Projects(database).add_items(project.id, [(Prompt("Why?"), [Response("No.")])], None)
    task = Tasks(database).next(project.id, lead.account.id)
    assert task is not None
    Tasks(database).answer(task.lease_id, lead.account.id, Answer(ideal="Because \u2028 of <b>"))
    found = lead.get(f"/projects/{project.id}/export/demonstrations")
    assert found.headers["content-disposition"] == 'attachment; filename="ideal-demonstrations.jsonl"'
    (tmp_path / "data.jsonl").write_bytes(found.content)
    assert [d.response for d in read_demonstrations(tmp_path / "data.jsonl").records] == ["Because \u2028 of <b>"]


def test_filters_of_the_form_are_obeyed(lead: Person, judged: Project) -> None:
    path = f"/projects/{judged.id}/export/rankings"
    form = {"since": "", "until": "", "min_agreement": ""}  # a form sends what was left empty too
    assert len(rows_of(lead.get(path, params=form).text)) == 4
    both = {**form, "annotator": ["Ann", "Ben"], "since": "2020-01-01T00:00", "until": "2100-01-01T00:00", "checks": "yes"}
    assert len(rows_of(lead.get(path, params=both).text)) == 4
    assert {row["annotator"] for row in rows_of(lead.get(path, params={**form, "annotator": "Ann"}).text)} == {"Ann"}


def test_labels_are_weighed_where_the_form_asks_for_it(lead: Person, database: Database) -> None:
    pytest.importorskip("crowdkit")
    path = f"/projects/{panel(database).id}/export/rankings"
    assert {row["weight"] for row in rows_of(lead.get(path).text)} == {1.0}
    found = lead.get(path, params={"weights": "yes"}).text.splitlines()
    weights = {row["annotator"]: row["weight"] for row in map(json.loads, found)}
    assert weights["ann"] > 0.95
    assert weights.get("dan", 0) < 0.3
    card = lead.get(f"{path}/card", params={"weights": "yes"}).text
    assert f"| ann | 30 | {weights['ann']:.3f} |" in card
    assert 'name="weights"' in lead.get(path.removesuffix("/rankings")).text
    assert lead.get(path.replace("rankings", "demonstrations"), params={"weights": "yes"}).status_code == 422


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("annotator=Zoe", "annotator is 'Zoe'; expected one of Ann, Ben"),
        ("since=soon", "the time 'soon'; expected a date"),
        ("min_agreement=high", "min_agreement is 'high'"),
        ("min_agreement=2", "min_agreement is 2.0"),
        ("without_flag=loud", "without_flags is 'loud'"),
        ("since=2100-01-01", "there are no rows of kind 'pairs' yet"),
    ],
)
def test_filters_that_make_no_sense_are_told_on_a_page(lead: Person, judged: Project, query: str, message: str) -> None:
    found = lead.get(f"/projects/{judged.id}/export/pairs?{query}")
    assert found.status_code == 422
    assert message.lower() in text_of(found.text).replace("&#39;", "'").lower()


def test_kinds_and_projects_that_are_not_there(lead: Person, judged: Project) -> None:
    assert lead.get(f"/projects/{judged.id}/export/pears").status_code in (404, 422)
    for path in ("", "/pairs", "/full", "/pairs/card"):
        assert lead.get(f"/projects/999/export{path}").status_code == 404


def test_the_card_is_markdown(lead: Person, judged: Project) -> None:
    found = lead.get(f"/projects/{judged.id}/export/pairs/card")
    assert found.headers["content-type"] == "text/markdown; charset=utf-8"
    assert found.headers["content-disposition"] == 'attachment; filename="kind-answers-pairs.md"'
    assert "- rows: 12" in found.text


def test_the_whole_project_moves_to_another_database(lead: Person, judged: Project, tmp_path: Path) -> None:
    found = lead.get(f"/projects/{judged.id}/export/full")
    assert found.status_code == 200
    there = Database(tmp_path / "there.db")
    project = import_project(there, found.content.splitlines(keepends=True), "full.jsonl")
    assert (project.name, project.settings) == (judged.name, judged.settings)


def test_what_leaves_is_noted_but_no_name_of_a_person(lead: Person, judged: Project, database: Database) -> None:
    lead.get(f"/projects/{judged.id}/export/pairs?annotator=Ann")
    lead.get(f"/projects/{judged.id}/export/full")
    with database.read() as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.action == "project.export").order_by(AuditRow.id)).all()
    assert [(row.account_id, row.detail) for row in rows] == [
        (lead.account.id, {"project": judged.id, "kind": "pairs"}),
        (lead.account.id, {"project": judged.id, "kind": "full"}),
    ]
