"""What the app has acknowledged is in the database, also where the server is killed the next moment."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from threading import Thread

import httpx
import pytest
from sqlalchemy import func, select

from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.schema import AnswerRow, JudgementRow, LeaseRow, RankRow
from heed.web.site import COOKIE
from tests.feedback.team import Team
from tests.postgres import POSTGRES, new_postgres_database, postgres_cluster, postgres_databases
from tests.web.server import serving

__all__ = ["new_postgres_database", "postgres_cluster", "postgres_databases"]

ANNOTATORS = 6
ENOUGH = 40
"""Acknowledged answers before the server is killed."""


class Annotator(Thread):
    """Someone who answers as fast as the server does, and notes what it acknowledged."""

    def __init__(self, address: str, project_id: int, cookie: str, csrf: str) -> None:
        super().__init__(daemon=True)
        self.address, self.project_id, self.csrf = address, project_id, csrf
        self.cookie = cookie
        self.saved: list[int] = []
        self.asked = 0

    def run(self) -> None:
        with httpx.Client(base_url=self.address, cookies={COOKIE: self.cookie}, timeout=60) as browser:
            try:
                while True:
                    self.answer(browser)
            except httpx.TransportError:  # the server is dead
                return

    def answer(self, browser: httpx.Client) -> None:
        page = browser.get(f"/projects/{self.project_id}/label").raise_for_status()
        found = re.search(r"/tasks/(\d+)/answer", page.text)
        assert found is not None, "no task on the page"
        self.asked += 1
        fields = {"csrf": self.csrf, "note": f"task {found[1]}", "rank_0": "2", "rank_1": "1", "rank_2": "2"}
        done = browser.post(f"/tasks/{found[1]}/answer", data=fields)
        assert done.status_code == 303, done.text
        assert "notice" not in done.headers["location"]
        self.saved.append(int(found[1]))


@pytest.mark.parametrize("kind", ["sqlite", POSTGRES])
def test_a_server_that_is_killed_under_load_has_kept_every_acknowledged_answer(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    location = str(tmp_path / "feedback.db") if kind == "sqlite" else request.getfixturevalue("new_postgres_database")()
    database = Database(location)
    team, accounts = Team(database), Accounts(database)
    project = team.project(items=2_000)
    cookies = [accounts.start_session(team.annotator(f"annotator {i}")) for i in range(ANNOTATORS)]
    people = [(cookie, signed.csrf) for cookie in cookies if (signed := accounts.signed_in(cookie)) is not None]
    with serving(location, tmp_path / "log") as (server, address):
        load = [Annotator(address, project.id, *person) for person in people]
        for annotator in load:
            annotator.start()
        while sum(len(annotator.saved) for annotator in load) < ENOUGH:
            assert all(annotator.is_alive() for annotator in load), (tmp_path / "log").read_text()
            time.sleep(0.01)
        server.send_signal(signal.SIGKILL)
        for annotator in load:
            annotator.join()
    database.close()

    saved = {lease_id for annotator in load for lease_id in annotator.saved}
    kept = Database(location)
    with kept.read() as session:
        answers = session.execute(
            select(AnswerRow.lease_id, LeaseRow.state, JudgementRow.note, func.count(RankRow.position))
            .join(LeaseRow, LeaseRow.id == AnswerRow.lease_id)
            .join(JudgementRow, JudgementRow.id == AnswerRow.judgement_id)
            .join(RankRow, RankRow.judgement_id == JudgementRow.id)
            .group_by(AnswerRow.id, LeaseRow.state, JudgementRow.note)
        ).all()
        if kind == "sqlite":
            assert session.connection().exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            assert session.connection().exec_driver_sql("PRAGMA foreign_key_check").all() == []
    found = {lease_id for lease_id, *_ in answers}
    assert len(saved) >= ENOUGH
    assert saved <= found
    assert len(found - saved) <= ANNOTATORS  # those that were under way
    assert len(found) == len(answers)
    assert all(row == (row[0], "answered", f"task {row[0]}", 3) for row in answers)
    assert Team(kept).drifted() == []
    kept.close()
    with serving(location, tmp_path / "log again") as (_, address):
        after = Annotator(address, project.id, *people[0])
        with httpx.Client(base_url=address, cookies={COOKIE: after.cookie}, timeout=60) as browser:
            after.answer(browser)
        assert len(after.saved) == 1
