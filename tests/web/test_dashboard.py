"""The dashboard: what it says, to whom, how it keeps up, and that it waits for nothing heavy."""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from threading import Event

import numpy as np
import pytest

from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.imported import add_rankings
from heed.feedback.projects import Project, Projects, ProjectSettings
from heed.feedback.schema import utc_now
from heed.feedback.tasks import Answer, Tasks
from heed.records import Prompt, Ranking, Response
from heed.web import dashboard
from heed.web.charts import bars, interval, over_time
from tests.web.conftest import Person, text_of

Make = Callable[..., Person]


@pytest.fixture
def shared(database: Database) -> Project:
    """Ten items for two annotators each, with ratings."""
    projects = Projects(database)
    made = projects.create("Kind <b>answers</b>", ProjectSettings(num_responses=3, overlap=2, ratings=("helpful",)), None)
    items = [(Prompt(f"Question {i}?"), [Response("worth " + "x" * (i + n), model="secret") for n in range(1, 4)]) for i in range(10)]
    projects.add_items(made.id, items, None)
    return made


def work(database: Database, project: Project, account_id: int, number: int, **more: object) -> None:
    """The longest response is the best."""
    tasks = Tasks(database)
    for _ in range(number):
        task = tasks.next(project.id, account_id)
        assert task is not None
        lengths = sorted(map(len, task.responses), reverse=True)
        ranks = tuple(lengths.index(len(text)) + 1 for text in task.responses)
        rated = {"helpful": tuple(8 - 2 * rank for rank in ranks)} if project.settings.ratings else {}
        tasks.answer(task.lease_id, account_id, Answer(ranks=ranks, ratings=rated, **more))  # pyright: ignore


def shown(page: str) -> str:
    found = re.search(r'name="shown" value="([^"]*)"', page)
    assert found is not None
    return found[1]


def test_those_who_lead_or_watch_see_it_and_annotators_and_strangers_do_not(person: Make, shared: Project):
    people = {role: person(role, role) for role in ("owner", "lead", "viewer", "annotator")}
    for path in (f"/projects/{shared.id}", f"/projects/{shared.id}/live"):
        codes = {role: someone.get(path).status_code for role, someone in people.items()}
        assert codes == {"owner": 200, "lead": 200, "viewer": 200, "annotator": 403}
        for missing in ("9999", "0", "99999999999999999999", "-1", "x"):
            assert people["lead"].get(path.replace(f"/{shared.id}", f"/{missing}")).status_code in (404, 422)
    people["lead"].cookies.clear()
    for path in (f"/projects/{shared.id}", f"/projects/{shared.id}/live"):
        answer = people["lead"].get(path, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")


def test_it_says_how_far_the_work_is_and_what_the_answers_show(person: Make, shared: Project, database: Database):
    lead = person("Lea", "lead")
    for name, number in (("Ann", 10), ("Bob", 5)):
        work(database, shared, person(name, "annotator").account.id, number, flags={"toxic": (0,)} if name == "Bob" else {})
    tasks, cara = Tasks(database), person("Cara", "annotator").account.id
    task = tasks.next(shared.id, cara)
    assert task is not None
    tasks.skip(task.lease_id, cara, "too <i>long</i>")
    page = lead.get(f"/projects/{shared.id}").text
    said = text_of(page)
    assert "15 of 20 answers 75 %" in said
    assert "10 items, 2 annotators each" in said
    assert "Agreement 100 % 57 to 100 %" in said
    assert "Alpha 1.00" in said
    assert "Noise ceiling 100 %" in said
    assert "Longer preferred 100 %" in said
    assert "Agreement of 5 items" in said
    assert re.search(r"Ann 10 100 % – – \d+ % ", said)
    assert "helpful 1.00 0.0 points" in said
    assert "toxic 5" in said
    assert "15 in the last hour" in said or "in the last hour 15" in said
    assert "too &lt;i&gt;long&lt;/i&gt;" in page
    assert "Kind &lt;b&gt;answers&lt;/b&gt;" in page
    assert "secret" not in page
    assert " style=" not in page
    assert "<style" not in page


def test_what_a_file_brought_is_no_work_of_the_last_hour(person: Make, shared: Project, database: Database):
    lead, ann = person("Lea", "lead"), person("Ann", "annotator").account.id
    ranked = [Ranking(Prompt(f"Question {i}?"), tuple("worth " + "x" * (i + n) for n in range(1, 4)), (3, 2, 1)) for i in range(10)]
    add_rankings(database, shared.id, ranked, "Paper", None)
    page = text_of(lead.get(f"/projects/{shared.id}").text)
    assert "10 of 20 answers" in page
    assert re.search(r"in the last hour 0 0 in 24 hours last \d\d ", page)
    work(database, shared, ann, 2)
    assert re.search(r"in the last hour 2 2 in 24 hours last \d\d ", text_of(lead.get(f"/projects/{shared.id}").text))
    assert len(dashboard.look(database, shared).times) == 2


def test_what_stands_out_of_an_annotator_is_said_in_words(person: Make, database: Database):
    projects = Projects(database)
    project = projects.create("Pairs", ProjectSettings(num_responses=2, overlap=4, compare="pairwise"), None)
    projects.add_items(project.id, [(Prompt(f"{i}?"), [Response("better"), Response("worse")]) for i in range(24)], None)
    tasks = Tasks(database, random.Random(0))  # the tests of significance err now and then, as they say
    for name in ("Ann", "Bob", "Cy", "Zed"):
        account = person(name, "annotator").account.id
        while (task := tasks.next(project.id, account)) is not None:
            right = task.responses[0] == "better"
            tasks.answer(task.lease_id, account, Answer(ranks=(1, 2) if right or name == "Zed" else (2, 1), strength=1))
    said = text_of(person("Lea", "lead").get(f"/projects/{project.id}").text)
    assert re.search(r"Zed may be clicking at random: agrees with others in \d+ % of pairs, no better than chance", said)
    assert "Zed prefers the response shown first: it wins 100 % of its comparisons" in said
    assert not re.search(r"(Ann|Bob|Cy) (may|prefers|is)", said)


def test_an_empty_project_says_what_to_do_to_those_who_may(person: Make, database: Database):
    project = Projects(database).create("New", ProjectSettings(), None)
    lead, viewer = (person(name, role).get(f"/projects/{project.id}").text for name, role in (("Lea", "lead"), ("Vi", "viewer")))
    assert "no items to judge yet" in lead
    assert f'href="/projects/{project.id}/import">Import prompts' in lead
    assert "no items to judge yet" in viewer
    assert "import" not in viewer
    Projects(database).add_items(project.id, [(Prompt("?"), [Response(text) for text in "abcd"])], None)
    assert "Nobody has answered yet" in text_of(person("Lou", "lead").get(f"/projects/{project.id}").text)


def test_links_are_those_that_the_person_may_follow(person: Make, shared: Project, database: Database):
    pages = {role: person(role, role).get(f"/projects/{shared.id}").text for role in ("owner", "lead", "viewer")}
    for name in ("label", "adjudicate", "export", "settings", "import"):
        links = {role: f'href="/projects/{shared.id}/{name}"' in page for role, page in pages.items()}
        assert links == {"owner": True, "lead": True, "viewer": False}
    Projects(database).archive(shared.id, None)
    page = person("Lou", "lead").get(f"/projects/{shared.id}").text
    assert "archived" in page
    assert f'href="/projects/{shared.id}/label"' not in page


def test_the_fragment_comes_again_only_when_something_has_changed(person: Make, shared: Project, database: Database):
    lead, ann = person("Lea", "owner"), person("Ann", "annotator").account.id
    version = shown(lead.get(f"/projects/{shared.id}").text)

    def refresh() -> str:
        """What the fragment says anew, or nothing."""
        nonlocal version
        answer = lead.get(f"/projects/{shared.id}/live", params={"shown": version})
        if answer.status_code == 204:
            return ""
        assert "<html" not in answer.text
        version = shown(answer.text)
        return text_of(answer.text)

    assert refresh() == ""
    work(database, shared, ann, 1)
    assert "1 of 20 answers" in refresh()
    assert refresh() == ""
    Tasks(database).undo(shared.id, ann)
    assert "0 of 20 answers" in refresh()
    Projects(database).change(shared.id, ProjectSettings(num_responses=3, overlap=3, ratings=("helpful",)), shared.revision, None)
    assert "0 of 30 answers" in refresh()
    Projects(database).add_items(shared.id, [(Prompt("New?"), [Response(text) for text in "abc"])], None)
    assert "0 of 33 answers" in refresh()
    work(database, shared, ann, 1)
    assert "Ann" in refresh()
    Accounts(database).delete(ann, lead.account.id)
    said = refresh()
    assert "Ann " not in said
    assert "annotator-" in said


def test_a_page_that_outlives_its_session_is_sent_to_sign_in_as_a_whole(person: Make, shared: Project):
    lead = person("Lea", "lead")
    lead.cookies.clear()
    answer = lead.get(f"/projects/{shared.id}/live", headers={"HX-Request": "true"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["hx-redirect"], answer.text) == (204, "/sign-in", "")


def test_nothing_is_worked_out_twice_and_long_work_is_done_beside_the_page(
    person: Make, shared: Project, database: Database, monkeypatch: pytest.MonkeyPatch
):
    worked = []
    real = dashboard.quality
    monkeypatch.setattr(dashboard, "quality", lambda *given: worked.append(1) or real(*given))
    lead, ann, path = person("Lea", "lead"), person("Ann", "annotator").account.id, f"/projects/{shared.id}"
    for _ in range(3):
        lead.get(path)
    assert len(worked) == 1
    monkeypatch.setattr(dashboard, "QUICK", 0.0)
    monkeypatch.setattr(dashboard, "REST", 1e9)
    work(database, shared, ann, 1)
    assert "0 of 20 answers" in text_of(lead.get(path).text)  # it rests
    assert len(worked) == 1
    monkeypatch.setattr(dashboard, "REST", 0.0)
    assert "0 of 20 answers" in text_of(lead.get(path).text)
    until = time.monotonic() + 10
    while "1 of 20 answers" not in text_of(lead.get(path).text):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert len(worked) == 2


def test_nobody_waits_long_for_numbers_that_were_never_worked_out(
    person: Make, shared: Project, database: Database, monkeypatch: pytest.MonkeyPatch
):
    may_go_on, real = Event(), dashboard.quality
    monkeypatch.setattr(dashboard, "QUICK", 0.01)
    monkeypatch.setattr(dashboard, "quality", lambda *given: may_go_on.wait(10) and real(*given))
    lead, path = person("Lea", "lead"), f"/projects/{shared.id}"
    page = lead.get(path).text
    assert "being worked out" in page
    assert '<meta http-equiv="refresh"' in page
    assert lead.get(f"{path}/live").status_code == 204
    may_go_on.set()
    assert dashboard.look(database, shared).quality.progress.items == 10
    assert "Nobody has answered" in lead.get(path).text


def test_an_error_in_the_numbers_is_not_kept_from_whoever_asks(shared: Project, database: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dashboard, "quality", lambda *given: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            dashboard.look(database, shared)


def test_two_databases_do_not_share_what_was_worked_out(person: Make, shared: Project, database: Database, tmp_path):
    other = Database(tmp_path / "other.db")
    same = Projects(other).create("Other", ProjectSettings(num_responses=3, overlap=2, ratings=("helpful",)), None)
    assert same.id == shared.id
    assert "Nobody has answered" in person("Lea", "lead").get(f"/projects/{shared.id}").text
    assert dashboard.look(other, same).quality.progress.items == 0


def test_weights_are_offered_on_request_or_what_is_missing_is_said(person: Make, shared: Project, database: Database):
    lead = person("Lea", "lead")
    work(database, shared, person("Ann", "annotator").account.id, 10)
    assert "decided by two annotators" in lead.get(f"/projects/{shared.id}?weights=1").text
    work(database, shared, person("Bob", "annotator").account.id, 10)
    assert "Weight of Ann" not in lead.get(f"/projects/{shared.id}").text
    pytest.importorskip("crowdkit")
    page = lead.get(f"/projects/{shared.id}?weights=1").text
    assert re.search(r"Ann 1\.00 .*Bob 1\.00", text_of(page))


def test_missing_crowd_kit_is_said_on_the_page(person: Make, shared: Project, database: Database, monkeypatch: pytest.MonkeyPatch):
    work(database, shared, person("Ann", "annotator").account.id, 1)
    monkeypatch.setitem(sys.modules, "crowdkit.aggregation", None)
    answer = person("Lea", "lead").get(f"/projects/{shared.id}?weights=1")
    assert answer.status_code == 200
    assert "pip install &#39;heed-rlhf[quality]&#39;" in answer.text


# Charts


def test_bars_count_every_time_once_in_equal_steps_up_to_the_last():
    now = utc_now()
    for span in (timedelta(minutes=1), timedelta(hours=3), timedelta(days=2), timedelta(days=40), timedelta(days=300)):
        times = np.array([now - span * share for share in np.linspace(0, 1, 41)], "datetime64[us]")
        chart = over_time(times)
        assert chart is not None
        titles = re.findall(r"<title>([\d,]+) from", chart.svg)
        assert sum(map(int, titles)) == 41
        assert 8 <= len(titles) <= 60
        assert max(map(int, titles)) == chart.most
        assert chart.first <= now - span
        assert chart.last > now
    assert over_time(np.array([], "datetime64[us]")) is None
    years = over_time(np.array([now, now - timedelta(days=3650)], "datetime64[us]"))
    assert years is not None
    assert years.svg.count("<title>") == 60


def test_a_time_on_the_edge_of_a_step_belongs_to_the_step_that_it_begins():
    chart = over_time(np.array(["2024-01-01T10:00", "2024-01-01T10:04:59", "2024-01-01T10:05"], "datetime64[us]"))
    assert chart is not None
    assert [int(n) for n in re.findall(r"<title>(\d+) from", chart.svg)][-2:] == [2, 1]


def test_words_in_charts_are_escaped():
    drawn = bars([1, 2], ["<script>", '"x"'], "<b>")
    assert "<script>" not in drawn
    assert "<b>" not in drawn
    assert 'height="50.0"' in drawn
    assert 'height="100.0"' in drawn


def test_an_interval_stays_on_its_scale():
    drawn = interval(-0.5, -1, 0.75, mark=0.5)
    assert 'class="point" x1="0.0"' in drawn
    assert 'class="range" x1="0.0" x2="75.0"' in drawn
    assert 'class="mark" x1="50.0"' in drawn
    assert 'x1="50.0"' in interval(0.75, 0.6, 0.9, start=0.5)
