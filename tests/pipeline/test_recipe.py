"""Recipes are read strictly, and the plan says which stage reads what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from heed.errors import UserError
from heed.pipeline.plan import Output, Source, plan, stage_hashes
from heed.pipeline.recipe import DEMO, Recipe, Rounds, load_recipe, metric, recipe_text

WriteRecipe = Callable[..., Path]
SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def places_aside(recipe: Recipe) -> Recipe:
    return replace(recipe, stages=tuple(replace(stage, file="", line=None) for stage in recipe.stages))


@pytest.mark.parametrize("path", [DEMO, *SHIPPED], ids=lambda path: path.name)
def test_shipped_recipes_are_valid_and_written_out_in_full_say_the_same(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert plan(recipe)
    (tmp_path / "resolved.yaml").write_text(recipe_text(recipe))
    assert places_aside(load_recipe(tmp_path / "resolved.yaml")) == places_aside(recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": "x"}, r"recipe\.yaml:\d+: there is no key 'modle'; expected model"),
        ({"seed": "soon"}, r"recipe\.yaml:\d+: seed is 'soon'; expected a whole number"),
        ({"max_length": "1"}, r"recipe\.yaml:\d+: max_length is 1; expected 2 tokens or more"),
        ({"stages": "[]"}, r"recipe\.yaml:\d+: stages is \[\]; expected a list of stages"),
        ({"stages": "[pppo]"}, r"recipe\.yaml:\d+: there is no stage 'pppo'; expected one of openings, sft"),
        ({"stages": "\n- sft:\n    learning_rate: 1"}, r"recipe\.yaml:\d+: there is no key 'learning_rate'"),
        ({"stages": "\n- sft:\n    lr: -1"}, r"recipe\.yaml:\d+: lr is -1.0; expected a number above 0"),
        ({"stages": "[judge]"}, r"recipe\.yaml:\d+: stage judge: it has no responses; put a sample stage before it"),
        ({"stages": "[ppo]"}, r"stage ppo: it has no reward; put a reward_model stage before it"),
        ({"stages": "[dpo]"}, r"stage dpo: it has no preferences"),
        ({"data": "{}", "stages": "[sft]"}, r"stage sft: it has no demonstrations; name them as data.demonstrations"),
        ({"rounds": "{until: {x: about 3}}"}, r"until\.x is 'about 3'; expected a finite number or a bound"),
        ({"seed": "-1"}, r"recipe\.yaml:\d+: seed is -1; expected a whole number from 0 to 4294967295"),
        ({"stages": "\n- sft:\n    seed: 5000000000"}, r"recipe\.yaml:\d+: stage sft: seed is 5000000000; expected a whole number"),
        ({"stages": "\n- sft: 3"}, r"recipe\.yaml:\d+: the settings of sft are 3; expected a mapping"),
        ({"device": "foo"}, r"recipe\.yaml:\d+: device is 'foo'; expected auto"),
        ({"device": "cuda:99"}, r"recipe\.yaml:\d+: device is 'cuda:99'; expected auto"),
        (
            {"rounds": "{until: {polices.ppo: 1}}"},
            r"recipe\.yaml:\d+: rounds\.until\.polices\.ppo: no stage .* reports 'polices'; expected .*polici",
        ),
        ({"rounds": "{until: {policies.dpo.kl: 1}}"}, r"the recipe has no policy 'dpo'; expected one of base, sft, ppo, best_of_n"),
        (
            {"rounds": "{until: {policies.ppo.kl: 1}}"},
            r"until\.policies\.ppo\.kl: evaluate reports no number 'kl' of a policy; expected one of gold_reward, .*kl_to.*helpful_rate",
        ),
        ({"rounds": "{until: {policies.ppo: 1}}"}, r"evaluate reports no number '' of a policy; expected one of gold_reward"),
        ({"rounds": "{until: {win_rate.ppo: 1}}"}, r"evaluate reports no win rate 'ppo'; expected one of base_vs_sft, ppo_vs_sft, best_of"),
        (
            {"rounds": "{until: {feedback.alpha: 1}}", "stages": "[sft]"},
            r"no stage of the recipe reports 'feedback'; expected one of seconds",
        ),
        ({"stages": "\n- judge:\n    annotators: [{nmae: x}]"}, r"there is no key 'annotators\.0\.nmae'; expected name"),
        (
            {"stages": "\n- judge:\n    annotators:\n    - {name: a, reliability: 1.5}"},
            r"yaml:\d+: reliability is 1\.5; expected a probability",
        ),
        ({"stages": "\n- judge:\n    annotators: [{name: a, temperature: -1}]"}, r"recipe\.yaml:\d+: temperature is -1\.0; expected 0"),
        ({"stages": "\n- judge:\n    annotators: [{name: a}, {name: a}]"}, r"yaml:\d+: annotators is 'a, a'; expected different names"),
        ({"compare": "{v1.2: testbed}"}, r"recipe\.yaml:\d+: compare is 'v1\.2'; expected names without a dot"),
        ({"rounds": "{until: {seconds: .nan}}"}, r"recipe\.yaml:\d+: until\.seconds is nan; expected a finite number or a bound"),
        ({"rounds": "{until: {seconds: <= inf}}"}, r"recipe\.yaml:\d+: until\.seconds is '<= inf'; expected a finite number"),
        ({"rounds": "{until: {policies: {sft: 1}}}"}, r"rounds\.until is .*; expected a mapping of keys, each to a number or text"),
        (
            {"rounds": "{until: {policies.sft.proxy_reward: 1}}", "stages": "[sft, evaluate]"},
            r"the recipe has no reward to know proxy_reward by; expected another number",
        ),
    ],
)
def test_faults_name_the_line_and_what_was_expected(write_recipe: WriteRecipe, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(load_recipe(write_recipe(**changes)))


def test_overrides_reach_settings_and_stages(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(), ["seed=7", "ppo.kl_coef=1e-3", "data.prompts=other.jsonl"])
    assert recipe.data.prompts == "other.jsonl"
    assert {stage.config.seed for stage in recipe.stages if hasattr(stage.config, "seed")} == {7}
    assert recipe.stages[4].config.kl_coef == 1e-3
    with pytest.raises(UserError, match=r"there is no key 'kl_ceof'; expected kl_coef"):
        load_recipe(write_recipe(), ["ppo.kl_ceof=1"])
    with pytest.raises(UserError, match="expected key=value"):
        load_recipe(write_recipe(), ["seed"])


def test_overrides_reach_stages_without_settings_and_targets_with_dots(write_recipe: WriteRecipe) -> None:
    target = "rounds.until.policies.sft.gold_reward=0.5"
    recipe = load_recipe(write_recipe(stages="[sft, evaluate, report]"), ["sft.lr=1e-3", "stages.1.evaluate.best_of_n=1", target])
    assert [stage.kind for stage in recipe.stages] == ["sft", "evaluate", "report"]
    assert (recipe.stages[0].config.lr, recipe.stages[1].config.best_of_n) == (1e-3, 1)
    assert recipe.rounds.until == {"policies.sft.gold_reward": 0.5}
    assert load_recipe(write_recipe(), ['rounds.until={seconds: "<= 9"}']).rounds.until == {"seconds": "<= 9"}


@pytest.mark.parametrize("name", ["12e45678", "1e5", "+3E2", "2026-01-01", "12", "1.5", "no", "ab"])
def test_a_name_that_looks_like_a_number_is_read_back_as_a_name(write_recipe: WriteRecipe, tmp_path: Path, name: str) -> None:
    (tmp_path / "resolved.yaml").write_text(recipe_text(load_recipe(write_recipe(name=f'"{name}"'))))
    assert load_recipe(tmp_path / "resolved.yaml").name == name


def test_every_stage_reads_the_newest_of_what_it_needs(write_recipe: WriteRecipe) -> None:
    first, second = Output("05-ppo", "model"), Output("r2-05-ppo", "model")
    stages = {each.name: each.inputs for each in plan(load_recipe(write_recipe(rounds="{max: 2}")), 2)}
    assert list(stages)[:6] == ["01-sft", "02-sample", "03-judge", "04-reward_model", "05-ppo", "06-evaluate"]
    assert list(stages)[6:] == ["r2-02-sample", "r2-03-judge", "r2-04-reward_model", "r2-05-ppo", "r2-06-evaluate", "07-report"]
    assert stages["02-sample"]["policy"] == Output("01-sft", "model")
    assert stages["r2-02-sample"]["policy"] == first
    assert [str(s) for n, s in stages["r2-04-reward_model"].items() if n.startswith("pref")] == [
        "03-judge/feedback.db",
        "r2-03-judge/feedback.db",
    ]
    assert stages["r2-05-ppo"]["reward"] == Output("r2-04-reward_model", "model")
    assert stages["r2-06-evaluate"]["policy.ppo"] == second
    assert isinstance(stages["r2-06-evaluate"]["policy.base"], Source)
    assert len(stages["07-report"]) == 11


def test_a_hash_changes_with_settings_and_content_and_carries_downstream(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    def hashes(*overrides: str) -> dict[str, str]:
        recipe = load_recipe(write_recipe(), overrides)
        return {name: own for name, (own, _) in stage_hashes(recipe, plan(recipe), {}).items()}

    def changed(other: dict[str, str]) -> list[str]:
        return [name for name in before if before[name] != other[name]]

    before = hashes()
    assert hashes() == before
    assert changed(hashes("ppo.kl_coef=0.3")) == ["05-ppo", "06-evaluate", "07-report"]
    assert changed(hashes("device=cpu")) == []
    (tmp_path / "other.jsonl").write_text('{"prompt": "red"}\n')
    assert changed(hashes(f"data.eval_prompts={tmp_path}/other.jsonl")) == ["06-evaluate", "07-report"]
    assert changed(hashes(f"data.prompts={tmp_path}/other.jsonl"))[0] == "02-sample"


def test_targets_are_read_from_the_summary() -> None:
    summary = {"policies": {"ppo": {"harmful_rate": 0.04, "gold_reward": {"mean": 1.5, "ci95": [1, 2]}}}}
    assert Rounds(until={"policies.ppo.harmful_rate": "<= 0.05", "policies.ppo.gold_reward": 1.2}).reached(summary)
    assert not Rounds(until={"policies.ppo.harmful_rate": "<= 0.03"}).reached(summary)
    assert not Rounds().reached(summary)
    with pytest.raises(UserError, match="there is no 'dpo'; expected ppo"):
        metric(summary, "policies.dpo.harmful_rate")


def test_a_target_that_the_recipe_reports_is_taken(write_recipe: WriteRecipe) -> None:
    for name in ("policies.best_of_n.gold_reward", "policies.sft.kl_to_reference", "win_rate.ppo_vs_sft", "feedback.alpha", "seconds"):
        assert load_recipe(write_recipe(rounds=f"{{until: {{{name}: 1}}}}")).rounds.until == {name: 1}


def test_an_override_below_a_value_is_told(write_recipe: WriteRecipe) -> None:
    for override, found in (("sft.lr.x=3", "0.01"), ("model.x=3", ".*tiny")):
        with pytest.raises(UserError, match=f"there is no 'x' to set within '?{found}"):
            load_recipe(write_recipe(), [override])
    with pytest.raises(UserError, match="there is no 'sft' to set; expected one of dpo"):
        load_recipe(write_recipe(stages="[dpo]"), ["sft.lr=3"])


def test_the_folder_of_a_run_stands_for_what_it_has_trained(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    models = {kind: tmp_path / "run" / "stages" / f"01-{kind}" / "model" for kind in ("sft", "reward_model")}
    for model in models.values():
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model.parent / "stage.json").write_text("{}")
    run = tmp_path / "run"
    (run / "recipe.yaml").write_text("name: run\nmodel: testbed\n")
    path = write_recipe(model=str(run), gold=str(run), reward=str(run), compare=f"{{other: {run}}}", stages="[evaluate]")
    recipe = load_recipe(path)
    assert (recipe.model, recipe.compare) == (str(models["sft"]), {"other": str(models["sft"])})
    assert recipe.gold == recipe.reward == str(models["reward_model"])

    before = stage_hashes(recipe, plan(recipe), {})
    (models["reward_model"] / "config.json").write_text('{"other": "weights"}')
    assert stage_hashes(recipe, plan(recipe), {}) != before
    (models["reward_model"].parent / "stage.json").unlink()
    with pytest.raises(UserError, match="run: this run has no reward model yet"):
        load_recipe(path)
