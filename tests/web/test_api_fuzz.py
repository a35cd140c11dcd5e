"""The API under requests that are made up from its own schema: it never breaks, and answers as it says it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.projects import Projects, ProjectSettings
from heed.feedback.schema import AccountRow
from heed.feedback.tasks import Answer, Tasks
from heed.records import Prompt, Response
from heed.web.app import create_app
from tests.postgres import POSTGRES, new_postgres_database, postgres_cluster, postgres_databases

__all__ = ["new_postgres_database", "postgres_cluster", "postgres_databases"]

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis, which makes up the requests, is not installed")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks", reason="schemathesis is not installed")

PEOPLE = 5
"""The owner whose key is used comes first."""
CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
]
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
PROJECTS = {
    "Ranked": ProjectSettings(num_responses=3, overlap=2, again_rate=0.3),
    "Paired": ProjectSettings(compare="pairwise", num_responses=2, ratings=("kind",), gold_rate=0.3),
    "Written": ProjectSettings(compare="none", num_responses=1, ideal=True),
}


def fill(database: Database) -> str:
    """People, projects with items, and tasks in every state; returns an owner's key."""
    with database.write() as session:
        session.add_all(
            AccountRow(name=f"Person {i}", role="annotator" if i else "owner", password="a hash", avoid=[]) for i in range(PEOPLE)
        )
    projects, tasks = Projects(database), Tasks(database)
    for name, chosen in PROJECTS.items():
        project = projects.create(name, chosen, 1)
        responses = [Response(f"answer {letter}", model="m", sampling={"temperature": 1.0}) for letter in "abc"[: chosen.num_responses]]
        gold = [(1, 2), *[None] * 19] if name == "Paired" else None
        projects.add_items(project.id, [(Prompt(f"{name} {i}?"), responses) for i in range(20)], 1, gold=gold)
    for account in (1, 2):
        for _ in range(4):
            task = tasks.next(1, account)
            assert task is not None
            tasks.answer(task.lease_id, account, Answer(ranks=(1, 2, 2) if account == 1 else (3, 1, 2)))
        tasks.undo(1, account)
    for project_id in (2, 3):
        tasks.next(project_id, 1)
    tasks.decide(1, 1, (1, 2, 3))
    return Accounts(database).new_token(1, "fuzz")


@pytest.fixture(params=["sqlite", POSTGRES])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, int]]:
    """The schema, and how many requests to make to each operation: on PostgreSQL few, for it is slower and answers alike."""
    on_sqlite = request.param == "sqlite"
    database = Database(tmp_path / "feedback.db" if on_sqlite else request.getfixturevalue("new_postgres_database")())
    key = fill(database)
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", create_app(database))
    schema.config.update(headers={"Authorization": f"Bearer {key}"})
    yield schema, 12 if on_sqlite else 4
    database.close()


def aim(case: Any) -> None:
    """Point every other request at something that exists, and none at the owner whose key is used."""
    for name, number in case.path_parameters.items():
        if isinstance(number, int) and number % 2:
            case.path_parameters[name] = 2 + number % (PEOPLE - 1) if name == "account_id" else 1 + number % len(PROJECTS)
    if case.path_parameters.get("account_id") == 1:
        case.path_parameters["account_id"] = 2


def ask(operation: Any, mode: Any, num_requests: int) -> Counter[int]:
    """Made-up requests to one operation, right or wrong ones by the mode; returns how often each status came back."""
    statuses: Counter[int] = Counter()

    @settings(max_examples=num_requests, deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
    @given(case=operation.as_strategy(generation_mode=mode))
    def answered_as_the_schema_says(case: Any) -> None:
        aim(case)
        statuses[case.call_and_validate(checks=CHECKS).status_code] += 1

    answered_as_the_schema_says()
    return statuses


def test_requests_that_fit_the_schema_are_answered_as_it_says(api: tuple[Any, int]):
    schema, num_requests = api
    mode = schemathesis.GenerationMode.POSITIVE
    answers = {found.ok().label: ask(found.ok(), mode, num_requests) for found in schema.get_all_operations()}
    useful = [label for label, statuses in answers.items() if any(status < 300 for status in statuses)]
    assert len(useful) > len(answers) // 2, answers


def test_requests_that_do_not_fit_the_schema_are_answered_as_it_says(api: tuple[Any, int]):
    schema, num_requests = api
    for operation in (found.ok() for found in schema.get_all_operations()):
        if operation.path_parameters or operation.query or operation.body:  # else nothing can be wrong
            ask(operation, schemathesis.GenerationMode.NEGATIVE, num_requests)
