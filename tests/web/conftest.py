"""The app over a fresh database, with people who are signed in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from heed.feedback.accounts import Account, Accounts, Role
from heed.feedback.database import Database
from heed.feedback.projects import Project, Projects, ProjectSettings
from heed.records import Prompt, Response
from heed.web.app import create_app
from heed.web.site import COOKIE

PASSWORD = "a long enough password"


class Person(TestClient):
    """A browser in which someone is signed in; forms are sent with the session's token."""

    account: Account
    csrf: str

    def submit(self, path: str, fields: Mapping[str, object] | None = None, **options: object):
        """POST a form, as a page of this session would; redirects are not followed."""
        return self.post(path, data={"csrf": self.csrf, **(fields or {})}, follow_redirects=False, **options)  # pyright: ignore


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "feedback.db")


@pytest.fixture
def person(database: Database) -> Callable[[str, Role], Person]:
    """Makes an account, and a browser in which it is signed in."""
    accounts = Accounts(database)
    app = create_app(database)

    def make(name: str, role: Role) -> Person:
        account = accounts.accept(accounts.invite(role, None), name, PASSWORD)
        token = accounts.start_session(account.id)
        found = Person(app, base_url="http://testserver")
        found.cookies.set(COOKIE, token, domain="testserver.local")  # as the client calls it: a cookie from the server replaces it
        signed = accounts.signed_in(token)
        assert signed is not None
        found.account, found.csrf = account, signed.csrf
        return found

    return make


@pytest.fixture
def project(database: Database) -> Project:
    """Rankings of 3 responses to each of 5 prompts."""
    projects = Projects(database)
    made = projects.create("Kind answers", ProjectSettings(num_responses=3, guidelines="Be **kind**."), None)
    items = [(Prompt(f"Question {i}?"), [Response(f"Answer {i}{letter}", model=f"model-{letter}") for letter in "abc"]) for i in range(5)]
    projects.add_items(made.id, items, None)
    return made


def text_of(html: str) -> str:
    """What a page says, without tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).strip()
