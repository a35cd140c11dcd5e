"""What the dashboard and the API say of reward models, to whom, and what annotators see of it: nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest

from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.projects import Project, Projects, ProjectSettings
from heed.feedback.quality import Estimate
from heed.feedback.reward_agreement import ModelAgreement, Slice
from heed.feedback.reward_scores import RewardModel, add_reward_model, prioritise, score_responses
from heed.feedback.schema import utc_now
from heed.feedback.tasks import Answer, Tasks
from heed.records import Prompt, Response
from heed.web import dashboard
from heed.web.charts import shares
from heed.web.reward import reward_section
from tests.web.conftest import Person, text_of

Make = Callable[..., Person]
NAME = "runs/<b>one</b>/model"


@pytest.fixture
def scored(database: Database) -> Project:
    """Sixty pairs, of which a reward model prefers the longer response, and is unsure of the last prompts."""
    projects = Projects(database)
    made = projects.create("Pairs", ProjectSettings(num_responses=2, strategy="uncertain", control_share=0.5), None)
    items = [(Prompt(f"{i}?"), [Response("worth"), Response("worth more")]) for i in range(60)]
    projects.add_items(made.id, items, None)
    score(database, made)
    return made


def score(database: Database, project: Project, digest: str = "d1", name: str = NAME) -> None:
    def by_length(items: Sequence[tuple[Prompt, str]]) -> list[float]:
        return [(7654.321 - int(str(prompt.text)[:-1])) * len(text) / 1e5 for prompt, text in items]

    model = add_reward_model(database, project.id, name, digest)
    score_responses(database, model, by_length)
    prioritise(database, [model])


def work(database: Database, project: Project, account_id: int, number: int, wrong: int = 0) -> None:
    """The longer response is better, except in the first `wrong` tasks."""
    tasks = Tasks(database)
    for count in range(number):
        task = tasks.next(project.id, account_id)
        assert task is not None
        longer = len(task.responses[0]) > len(task.responses[1])
        tasks.answer(task.lease_id, account_id, Answer(ranks=(1, 2) if longer == (count >= wrong) else (2, 1)))


def section(page: str) -> str:
    found = re.search(r'<section[^>]*id="reward".*?</section>', page, re.S)
    return found[0] if found else ""


def test_without_a_reward_model_nothing_is_said_of_one(person: Make, project: Project):
    assert section(person("Lea", "lead").get(f"/projects/{project.id}").text) == ""


def test_the_dashboard_says_how_far_the_newest_model_agrees_with_people(person: Make, scored: Project, database: Database):
    lead, path = person("Lea", "lead"), f"/projects/{scored.id}"
    assert "Nobody has preferred one response" in text_of(section(lead.get(path).text))
    work(database, scored, person("Ann", "annotator").account.id, 50, wrong=10)
    part = section(lead.get(path).text)
    said = text_of(part)
    assert "runs/&lt;b&gt;one&lt;/b&gt;/model" in part
    assert "<b>" not in part
    assert re.search(r"Agrees with people 80 % \d+ to \d+ % since it first scored 80 %", said)
    assert "50 answers, oldest first" in said
    assert part.count('class="point"') == 6  # four tiles and two slices
    assert "uncertain" in said
    assert "<table" not in part
    assert 'style="' not in part
    assert "<script" not in part
    score(database, scored, "d2", "runs/two")
    said = text_of(section(lead.get(path).text))
    assert said.startswith("Reward model runs/two, first scored here")
    assert "no answers since" in said
    assert said.rindex("runs/two") < said.rindex("runs/&lt;b&gt;one")


def test_the_page_keeps_up_with_scores(person: Make, scored: Project, database: Database):
    lead = person("Lea", "lead")
    path = f"/projects/{scored.id}"
    work(database, scored, person("Ann", "annotator").account.id, 1)
    assert "runs/two" not in lead.get(path).text
    score(database, scored, "d2", "runs/two")
    assert "runs/two" in lead.get(path).text
    Projects(database).add_items(scored.id, [(Prompt("99?"), [Response("a"), Response("bc")])], None)
    seen = dashboard.look(database, scored)
    assert dashboard.look(database, scored) is seen
    score(database, scored, "d2")
    assert dashboard.look(database, scored) is not seen


def test_annotators_see_nothing_of_it(person: Make, scored: Project, database: Database):
    ann = person("Ann", "annotator")
    for path in (f"/projects/{scored.id}", f"/projects/{scored.id}/live"):
        assert ann.get(path).status_code == 403
    pages = [ann.get(path).text for path in ("/", f"/projects/{scored.id}/label", f"/projects/{scored.id}/guidelines", "/account")]
    for page in pages:
        assert "reward" not in page.casefold()
        assert "priorit" not in page.casefold()
        assert "uncertain" not in page.casefold()
        assert "7654" not in page


def test_the_api_tells_what_the_page_does_and_annotators_nothing(person: Make, scored: Project, database: Database):
    work(database, scored, person("Ann", "annotator").account.id, 50, wrong=10)
    viewer, path = person("Vi", "viewer"), f"/api/v1/projects/{scored.id}"
    keys = {who.account.role: Accounts(database).new_token(who.account.id, "key") for who in (viewer, person("Bob", "annotator"))}

    def get(path: str, role: str = "viewer"):
        return viewer.get(path, headers={"Authorization": f"Bearer {keys[role]}"})

    (found,) = get(f"{path}/reward-models").json()
    assert (found["name"], found["digest"], found["answers"]) == (NAME, "d1", 50)
    assert found["overall"][0] == found["since"][0] == 0.8
    assert len(found["slices"]) == 2
    assert sum(part["answers"] for part in found["slices"]) == 50
    assert found["scored_at"].endswith("Z")
    assert get(f"{path}/reward-models", "annotator").status_code == 403
    assert get("/api/v1/projects/99/reward-models").status_code == 404
    task = viewer.post(f"{path}/tasks/next", headers={"Authorization": f"Bearer {keys['annotator']}"}).json()
    assert set(task) == {"lease_id", "item_id", "prompt", "categories", "responses", "answer"}


def test_the_api_works_quality_out_no_more_often_than_the_page(
    person: Make, scored: Project, database: Database, monkeypatch: pytest.MonkeyPatch
):
    worked = []
    real = dashboard.quality
    monkeypatch.setattr(dashboard, "quality", lambda *given: worked.append(1) or real(*given))
    lead = person("Lea", "lead")
    key = {"Authorization": f"Bearer {Accounts(database).new_token(lead.account.id, 'key')}"}
    lead.get(f"/projects/{scored.id}")
    for name in ("quality", "reward-models", "quality"):
        assert lead.get(f"/api/v1/projects/{scored.id}/{name}", headers=key).status_code == 200
    assert len(worked) == 1


# The chart


def measured(*values: float, before: int = 0) -> ModelAgreement:
    now = utc_now()
    parts = [Slice(now, now + timedelta(hours=i), 20, Estimate(v, v - 0.1, v + 0.1)) for i, v in enumerate(values)]
    model = RewardModel(1, 1, "m", "d", now)
    return ModelAgreement(model, 20 * len(values), parts[0].share, None, before, None, None, tuple(parts))


def test_points_stand_where_their_shares_are():
    drawn = shares([(0.75, 0.7, 0.8), (1.0, 0.9, 1.0)], ["<first>", "second"], "what", ceiling=0.9, since=0.5)
    assert drawn.scale == (1.0, 0.75, 0.5)
    assert '<line class="point" x1="25.00" x2="25.00" y1="50.0" y2="50.0"/>' in drawn.svg
    assert '<line class="range" x1="25.00" x2="25.00" y1="60.0" y2="40.0"/>' in drawn.svg
    assert '<line class="point" x1="75.00" x2="75.00" y1="0.0" y2="0.0"/>' in drawn.svg
    assert '<line class="ceiling" x1="0.00" x2="100.00" y1="20.0" y2="20.0"/>' in drawn.svg
    assert '<line class="since" x1="50.00" x2="50.00"' in drawn.svg
    assert "<first>" not in drawn.svg
    assert shares([(0.4, 0.33, 0.5)], [""], "").scale == pytest.approx((1.0, 0.65, 0.3))
    assert shares([(0.0, 0.0, 0.1)], [""], "").scale[2] == 0


def test_the_section_draws_the_ceiling_and_when_the_model_scored():
    found = reward_section([measured(0.6, 0.7, before=20)], Estimate(0.9, 0.8, 1.0))
    assert found is not None
    assert found.chart is not None
    assert 'class="ceiling"' in found.chart.svg
    assert 'class="since" x1="50.00"' in found.chart.svg
    assert "60 %, 70 %; noise ceiling 90 %" in found.chart.svg
    bare = reward_section([measured(0.6, before=20)], None)
    assert bare is not None
    assert bare.chart is not None
    assert 'class="ceiling"' not in bare.chart.svg
    assert 'class="since"' not in bare.chart.svg
    assert reward_section([], None) is None
