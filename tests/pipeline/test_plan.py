"""Which stage reads what, and which change makes a stage run again."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from heed.feedback.store import FeedbackStore
from heed.pipeline.plan import Output, PlannedStage, plan, settings, source_hash, stage_hashes
from heed.pipeline.recipe import Recipe, load_recipe, recipe_text
from heed.records import Judgement, Prompt, Response


def recipe_of(folder: Path, text: str) -> Recipe:
    (folder / "recipe.yaml").write_text(f"name: a\nmodel: testbed\n{text}")
    return load_recipe(folder / "recipe.yaml")


def preferences(stage: PlannedStage) -> list[str]:
    return [str(source) for name, source in stage.inputs.items() if name.startswith("preferences.")]


def test_rounds_add_what_was_asked_in_each_and_take_a_whole_project_once(tmp_path: Path) -> None:
    asked = "data: {prompts: p, eval_prompts: q}\nstages: [sample, judge: {project: tone}, dpo, evaluate]\n"
    newest = {each.name: each for each in plan(recipe_of(tmp_path, asked), 2)}
    assert preferences(newest["r2-03-dpo"]) == ["02-judge/feedback.db", "r2-02-judge/feedback.db"]
    whole = "data: {preferences: old, eval_prompts: q}\nstages: [judge: {project: tone}, judge: {project: style}, reward_model, evaluate]\n"
    newest = {each.name: each for each in plan(recipe_of(tmp_path, whole), 2)}
    assert preferences(newest["03-reward_model"]) == ["old", "01-judge/feedback.db", "02-judge/feedback.db"]
    assert preferences(newest["r2-03-reward_model"]) == ["old", "r2-01-judge/feedback.db", "r2-02-judge/feedback.db"]


def test_the_runs_own_policy_is_measured_last(tmp_path: Path) -> None:
    text = "data: {preferences: a, eval_prompts: q}\ncompare: {other: /other}\nstages: [dpo, evaluate]\n"
    evaluate = plan(recipe_of(tmp_path, text))[-1]
    assert [name for name in evaluate.inputs if name.startswith("policy.")] == ["policy.base", "policy.other", "policy.dpo"]
    assert evaluate.inputs["policy.dpo"] == Output("01-dpo", "model")


def test_what_people_said_is_part_of_what_is_made_of_it(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "stages: [judge: {project: tone}, reward_model, judge: {project: tone}]\n")
    planned = plan(recipe)
    before, once, again = (stage_hashes(recipe, planned, records) for records in ({}, said("a"), said("b")))
    assert before["01-judge"] == once["01-judge"] == again["01-judge"]
    assert len({hashes["02-reward_model"][0] for hashes in (before, once, again)}) == 3
    assert before["03-judge"] == again["03-judge"]


def said(gathered: str) -> dict[str, dict[str, str]]:
    return {"01-judge": {"gathered": gathered}}


def test_a_store_is_known_by_its_judgements_wherever_they_lie(tmp_path: Path) -> None:
    location = tmp_path / "team.db"
    prompt = Prompt("Tea?")
    with closing(FeedbackStore(location)) as store:
        store.add_items([(prompt, [Response("Yes."), Response("No.")])])
        store.add_judgement(Judgement(prompt, ("Yes.", "No."), (1, 2), "ann"))
        before, content = source_hash(str(location)), location.read_bytes()
        store.add_judgement(Judgement(prompt, ("Yes.", "No."), (2, 1), "ben"))
        assert location.read_bytes() == content, "the newest judgement lies in the log beside the file"
        after = source_hash(str(location))
    assert before != after
    assert not location.with_name("team.db-wal").exists()
    assert source_hash(str(location)) == after, "and now in the file"
    location.with_name("team.db.weights.json").write_text('{"ann": 0.5, "ben": 1.0}')
    assert source_hash(str(location)) != after


def test_a_function_is_known_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "tasteful.py"
    hashes = set()
    for at, body in enumerate(("return 1", "return 2")):
        source.write_text(f"def reward(prompt, response):\n    {body}\n")
        os.utime(source, (at, at))
        hashes |= {source_hash("tasteful:reward"), source_hash(f"{source}:reward")}
    assert len(hashes) == 2
    assert len({source_hash(spec) for spec in ("nowhere.at_all:reward", "org/name:train", "testbed:harmless", "gpt2")}) == 4


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("postgresql+psycopg://heed:S3:cr=t@db:5432/heed", "postgresql+psycopg://heed:***@db:5432/heed"),
        (
            "postgresql://db:5432/heed?user=heed&password=S3cret&sslmode=require",
            "postgresql://db:5432/heed?user=heed&password=***&sslmode=require",
        ),
        ("postgresql://heed@db:5432/heed", "postgresql://heed@db:5432/heed"),
        ("some:where/team@home.db", "some:where/team@home.db"),
    ],
)
def test_passwords_of_databases_are_not_written_down(tmp_path: Path, location: str, shown: str) -> None:
    recipe = recipe_of(tmp_path, f"stages: [judge: {{project: tone, database: '{location}'}}]\n")
    assert settings(recipe, recipe.stages[0])["config"]["database"] == shown
    assert f"database: {shown}\n" in recipe_text(recipe)
    assert recipe.stages[0].config.database == location
