"""A stage in which people judge: the sampled responses go to a project, and what annotators say comes back."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest

from heed.errors import UserError
from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.projects import Projects
from heed.feedback.store import FeedbackStore
from heed.feedback.tasks import Answer, Tasks
from heed.pipeline import people, sources
from heed.pipeline.collect import JudgeConfig, _described
from heed.pipeline.recipe import load_recipe
from heed.pipeline.runner import run as run_recipe
from heed.records import Judgement, Prompt, Response
from heed.training.run import Run
from tests.feedback.panel import CAREFUL, panel

ITEMS = [(Prompt(f"Question {i}?"), [Response(f"yes {i}"), Response(f"no {i}"), Response(f"perhaps {i}")]) for i in range(4)]


def annotator(database: Database, name: str) -> int:
    accounts = Accounts(database)
    return accounts.accept(accounts.invite("annotator", None), name, "a long enough password").id


def label(database: Database, project: str, account_id: int, most: int = 100) -> int:
    """Someone who likes short responses; returns how many items were answered."""
    tasks, project_id = Tasks(database), Projects(database).get(project).id
    for number in range(most):
        task = tasks.next(project_id, account_id)
        if task is None:
            return number
        order = sorted(set(map(len, task.responses)))
        tasks.answer(task.lease_id, account_id, Answer(ranks=tuple(order.index(len(text)) + 1 for text in task.responses)))
    return most


@pytest.fixture
def location(tmp_path: Path) -> str:
    return str(tmp_path / "team.db")


def test_items_are_asked_once_and_their_answers_come_back(location: str) -> None:
    with closing(Database(location)) as database:
        assert people.ask(database, "tone", ITEMS).startswith("4 items are new")
        assert people.ask(database, "tone", ITEMS).startswith("0 items are new to project 'tone', 4 were there")
        assert people.waiting(database, "tone", None) == (4, 4)
        label(database, "tone", annotator(database, "ann"), most=3)
        assert people.waiting(database, "tone", None) == (1, 4)
    found = people.judged(location, "tone").judgements
    assert len(found) == 3
    assert {j.annotator for j in found} == {"ann"}
    assert all(text.startswith("no") == (rank == 1) for j in found for text, rank in zip(j.responses, j.ranks, strict=True))


def test_a_later_round_takes_only_what_it_asked_about_the_same_prompts(location: str) -> None:
    later = [(prompt, [Response("why?"), Response("never"), responses[0]]) for prompt, responses in ITEMS]
    with closing(Database(location)) as database:
        account, asked = 0, []
        for number, items in enumerate((ITEMS, later), start=1):
            asked.append({prompt.id: {response.text for response in responses} for prompt, responses in items})
            people.ask(database, "tone", items)
            account = account or annotator(database, "ann")
            assert label(database, "tone", account) == 4
            assert len(people.judged(location, "tone").judgements) == 4 * number
        people.ask(database, "tone", [(prompt, [Response("no"), Response("yes")]) for prompt, _ in ITEMS])
        for each in asked:
            said = people.judged(location, "tone", each).judgements
            assert [(j.prompt.id, set(j.responses)) for j in said] == list(each.items())
        with Run(Path(location).parent / "run", display=False) as run:
            people.wait(database, "tone", asked[0], run)  # though the last items of the project are still to be answered
        assert people.waiting(database, "tone") == (4, 12)


def test_waiting_ends_with_the_last_answer_and_an_open_task_is_waited_for(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "POLL_SECONDS", 0.01)
    database = Database(location)
    people.ask(database, "tone", ITEMS)
    account, project_id = annotator(database, "ann"), Projects(database).get("tone").id
    label(database, "tone", account, most=3)
    task = Tasks(database).next(project_id, account)
    assert task is not None
    assert people.waiting(database, "tone", None) == (1, 4)
    with Run(tmp_path / "run", display=False) as run:
        thread = Thread(target=people.wait, args=(database, "tone", None, run))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        Tasks(database).answer(task.lease_id, account, Answer(ranks=(1, 2, 3)))
        thread.join(10)
        assert not thread.is_alive()


def test_a_leads_decision_settles_its_item(location: str) -> None:
    database = Database(location)
    people.ask(database, "tone", ITEMS[:1])
    account = annotator(database, "ann")
    label(database, "tone", account)
    Tasks(database).decide(1, account, (3, 2, 1))
    (judgement,) = people.judged(location, "tone").judgements
    assert (judgement.annotator, judgement.ranks) == (people.NOBODY, (3, 2, 1))
    assert _described([judgement]) == {"judgements": 1, "annotators": 0}
    with pytest.raises(UserError, match="name"):
        annotator(database, people.NOBODY)


def test_a_recipe_learns_from_a_project(location: str, tmp_path: Path, tiny_model: Path) -> None:
    database = Database(location)
    people.ask(database, "tone", ITEMS)
    label(database, "tone", annotator(database, "ann"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: team\nmodel: {tiny_model}\nmax_length: 64\ndevice: cpu\noutput: {tmp_path / 'run'}\n"
        f"stages:\n- judge: {{project: tone, database: {location}}}\n- reward_model: {{batch_size: 2, held_out: 0.25}}\n"
    )
    run_recipe(load_recipe(recipe), lambda _: None, display=False)
    with closing(FeedbackStore(tmp_path / "run" / "stages" / "01-judge" / "feedback.db")) as store:
        assert store.judgements() == people.judged(location, "tone").judgements
    assert (tmp_path / "run" / "stages" / "02-reward_model" / "model").is_dir()


def test_a_recipe_weighs_labels_by_reliability(location: str, tmp_path: Path, tiny_model: Path) -> None:
    pytest.importorskip("crowdkit")
    panel(Database(location))
    weights = people.judged(location, "panel", weights=True).weights
    assert weights["ann"] > 0.95
    assert weights.get("dan", 0) < 0.3
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: team\nmodel: {tiny_model}\nmax_length: 64\ndevice: cpu\noutput: {tmp_path / 'run'}\n"
        f"stages:\n- judge: {{project: panel, database: {location}, weights: true, wait: false}}\n- reward_model: {{batch_size: 64}}\n"
    )
    run_recipe(load_recipe(recipe), lambda _: None, display=False)
    judged = str(tmp_path / "run" / "stages" / "01-judge" / "feedback.db")
    with closing(FeedbackStore(judged)) as store:
        said = [judgement.annotator for judgement in store.judgements()]
    assert [ranking.weight for ranking in sources.read("preferences", judged).records] == [weights[name] for name in said]
    assert people.judged(location, "panel").weights == dict.fromkeys((*CAREFUL, "dan", "eve"), 1.0)


def test_only_a_projects_annotators_are_weighed() -> None:
    with pytest.raises(UserError, match="weights is True"):
        JudgeConfig(weights=True)


def test_a_project_without_answers_is_said_to_have_none(location: str, tmp_path: Path, tiny_model: Path) -> None:
    people.ask(Database(location), "tone", ITEMS)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: team\nmodel: {tiny_model}\nmax_length: 64\ndevice: cpu\noutput: {tmp_path / 'run'}\n"
        f"stages:\n- judge: {{project: tone, database: {location}, wait: false}}\n- reward_model:\n"
    )
    with pytest.raises(UserError, match="has no answers"):
        run_recipe(load_recipe(recipe), lambda _: None, display=False)


def test_a_stage_that_asks_again_has_all_that_follows_made_again(location: str, tmp_path: Path, tiny_model: Path) -> None:
    database, said = Database(location), list[str]()
    people.ask(database, "tone", ITEMS)
    account = annotator(database, "ann")
    label(database, "tone", account, most=2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: team\nmodel: {tiny_model}\nmax_length: 64\ndevice: cpu\noutput: {tmp_path / 'run'}\n"
        f"stages:\n- judge: {{project: tone, database: {location}, wait: false}}\n- reward_model: {{batch_size: 2, held_out: 0.5}}\n"
    )
    run_recipe(load_recipe(recipe), lambda _: None, display=False)
    label(database, "tone", account)
    run_recipe(load_recipe(recipe), said.append, display=False)
    assert sum("unchanged" in line for line in said) == 2
    shutil.rmtree(tmp_path / "run" / "stages" / "01-judge")
    said.clear()
    run_recipe(load_recipe(recipe), said.append, display=False)
    assert "  runs again: inputs.preferences.0 changed" in said
    assert sum("unchanged" in line for line in said) == 0


def test_one_annotator_twice_shows_no_agreement_and_ties_alone_measure_nothing(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for name, ranks in (("twice", (1, 2, 3)), ("ties", (1, 1, 1))):
        with closing(FeedbackStore(tmp_path / f"{name}.db")) as store:
            store.add_items(ITEMS)
            said = [Judgement(prompt, tuple(r.text for r in responses), ranks, "ann") for prompt, responses in ITEMS]
            store.add_judgements([*said, *said])
        recipe.write_text(
            f"name: {name}\nmodel: {tiny_model}\nmax_length: 64\ndevice: cpu\noutput: {tmp_path / name}\n"
            f"data: {{preferences: {tmp_path / name}.db}}\nstages:\n- reward_model: {{batch_size: 2, held_out: 0.5}}\n"
        )
        if name == "ties":
            with pytest.raises(UserError, match="held-out comparisons are all ties; expected one at least"):
                run_recipe(load_recipe(recipe), lambda _: None, display=False)
            assert not (tmp_path / name / "stages" / "01-reward_model" / "model").exists()
        else:
            summary = run_recipe(load_recipe(recipe), lambda _: None, display=False)
            assert summary["reward_model"]["noise_ceiling"] is None
