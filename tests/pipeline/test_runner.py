"""A run skips what is unchanged, resumes what was cut off, and never damages what was there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from heed.errors import UserError
from heed.pipeline.context import write_json
from heed.pipeline.newest import trained_policy
from heed.pipeline.recipe import load_recipe
from heed.pipeline.runner import changes, opened, run
from heed.report import load_run

WriteRecipe = Callable[..., Path]


def run_saying(path: Path, *overrides: str) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return run(load_recipe(path, overrides), said.append, display=False), said


def test_the_whole_loop_then_only_what_changed(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    summary, said = run_saying(write_recipe())
    out = tmp_path / "out"
    assert summary == json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("complete", 1)
    assert list(summary["policies"]) == ["base", "sft", "best_of_n", "ppo"]
    assert set(summary["win_rate"]) == {"base_vs_sft", "best_of_n_vs_sft", "ppo_vs_sft"}
    assert summary["policies"]["sft"]["kl_to_reference"] == pytest.approx(0, abs=1e-5)
    assert 0 <= summary["reward_model"]["accuracy"]["mean"] <= 1
    assert summary["reward_model"]["noise_ceiling"] is not None
    assert "<html" in (out / "report.html").read_text()
    record = json.loads((out / "stages" / "05-ppo" / "stage.json").read_text())
    assert record["kind"] == "ppo"
    assert set(record["inputs"]) == {"policy", "reference", "prompts", "reward"}
    assert record["peak_rss_gb"] > 0
    assert record["outputs"] == ["metrics.jsonl", "model"]

    again, said = run_saying(write_recipe())
    assert again == summary
    assert sum("unchanged" in line for line in said) == 7

    changed, said = run_saying(write_recipe(), "ppo.kl_coef=0.5")
    assert next(line.strip() for line in said if "runs again" in line) == "runs again: config.kl_coef 0.05 -> 0.5 changed"
    assert sum("unchanged" in line for line in said) == 4
    assert changed["policies"]["sft"] == summary["policies"]["sft"]


def test_rounds_go_on_from_the_newest_policy_until_the_target_is_met(write_recipe: WriteRecipe) -> None:
    stages = """
- sample: {max_new_tokens: 4, num_prompts: 12}
- judge:
- dpo: {lr: 1e-3}
- evaluate: {max_new_tokens: 4, responses_per_prompt: 1}
"""
    summary, said = run_saying(write_recipe(stages=stages, rounds="{max: 3, until: {policies.dpo.kl_to_reference: 0.0}}"))
    assert summary["rounds"] == 1
    unreached = write_recipe(stages=stages, rounds="{max: 2, until: {policies.dpo.gold_reward: 100}}")
    summary, said = run_saying(unreached)
    assert summary["rounds"] == 2
    assert sum("unchanged" in line for line in said) == 4
    assert [line for line in said if line.startswith("[")][-1] == "[8/8] r2-04-evaluate"


def test_rounds_of_an_earlier_longer_run_are_kept_and_are_no_part_of_a_shorter_one(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    stages = """
- sample: {max_new_tokens: 4, num_prompts: 12}
- judge:
- dpo: {lr: 1e-3}
- evaluate: {max_new_tokens: 4, responses_per_prompt: 1}
- report:
"""
    out, counted = tmp_path / "out", dict[str, int]()

    def note(line: str) -> None:
        if line.startswith("[") and (out / "summary.json").exists():
            counted[line.partition(" ")[2]] = json.loads((out / "summary.json").read_text())["rounds"]

    run(load_recipe(write_recipe(stages=stages, rounds="{max: 2}")), note, display=False)
    assert (counted["04-evaluate"], counted["r2-01-sample"]) == (1, 2)
    later = ["r2-01-sample", "r2-02-judge", "r2-03-dpo", "r2-04-evaluate"]
    assert trained_policy(str(out)) == str(out / "stages" / "r2-03-dpo" / "model")
    assert [stage.name for stage in load_run(out).stages][-4:] == later

    _, said = run_saying(write_recipe(stages=stages))
    assert f"left as they are, for this run has fewer rounds: {', '.join(later)}" in said
    assert trained_policy(str(out)) == str(out / "stages" / "03-dpo" / "model")
    assert not {stage.name for stage in load_run(out).stages} & set(later)
    assert "r2-03-dpo" not in (out / "report.html").read_text()

    _, said = run_saying(write_recipe(stages=stages, rounds="{max: 2}"))
    assert sum("unchanged" in line for line in said) == 8
    assert not any("fewer rounds" in line for line in said)


def test_another_run_in_the_folder_is_left_alone(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    stages = "\n- sft: {epochs: 1}\n"
    run_saying(write_recipe(stages=stages))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="out: holds another run, with seed 0; expected 5"):
        run_saying(write_recipe(stages=stages), "seed=5")
    with pytest.raises(UserError, match="holds another run, with stages"):
        run_saying(write_recipe())
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="other: holds files that are no heed run"):
        run_saying(write_recipe(output=str(tmp_path / "other")))
    with pytest.raises(UserError, match="is a file; expected a folder"):
        run_saying(write_recipe(output=str(tmp_path / "gold.py")))


def test_two_processes_do_not_share_a_folder(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(stages="[sft]"))
    with opened(recipe), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        run(recipe, display=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "./nowhere"}, r"\./nowhere: no such folder; expected a model folder"),
        ({"data": "{demonstrations: absent.jsonl}", "stages": "[sft]"}, r"absent\.jsonl: cannot be read"),
        ({"gold": "absent.py:gold"}, r"no file absent\.py"),
        ({"gold": "json:gold"}, r"no function 'gold' in json; expected file\.py:function or module:function"),
        ({"reward": "colorsys:rgb_to_hsv", "stages": "[ppo: {max_new_tokens: 6}]"}, r"takes \(r, g, b\); expected \(prompt, response\)"),
        ({"gold": "colorsys:rgb_to_hsv"}, r"colorsys:rgb_to_hsv takes \(r, g, b\); expected \(prompt, response\)"),
        ({"gold": "builtins:max"}, r"builtins:max does not say what it takes; expected \(prompt, response\)"),
        (
            {"stages": "[openings: {min_tokens: 40, max_tokens: 40}]"},
            r"recipe\.yaml:\d+: stage openings: max_tokens is 40; expected fewer than the 32 tokens",
        ),
        ({"dtype": "bfloat16"}, r"recipe\.yaml:\d+: stage sft: it trains the whole model, held in bfloat16.*set dtype: float32"),
        ({"lora": "{target: [q_proj, v_porj]}"}, r"lora\.target is 'v_porj'; expected all-linear, or names among down_proj"),
        ({"max_length": "6"}, r"stage sample: max_new_tokens is 6; expected fewer than the 6 tokens"),
    ],
)
def test_faults_are_found_before_anything_is_written(
    write_recipe: WriteRecipe, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_saying(write_recipe(**changes))
    assert not (tmp_path / "out").exists()


def test_conversations_need_a_chat_template(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}]}\n')
    with pytest.raises(UserError, match="no chat template"):
        run_saying(write_recipe(data=f"{{demonstrations: {tmp_path}/chat.jsonl}}", stages="[sft]"))


def test_changes_are_told_by_name() -> None:
    before = {"hash": "a", "config": {"lr": 1, "seed": 0}, "inputs": {"policy": "x"}}
    now = {"hash": "b", "config": {"lr": 2, "seed": 0}, "inputs": {"policy": "y"}}
    assert changes(before, now) == ["config.lr 1 -> 2", "inputs.policy"]
    assert changes({"inputs": {"policy": "x", "gold": "y"}}, {"inputs": {"policy": "x"}}) == ["inputs.gold"]
    assert changes({"config": {"lr": 1, "old": 2}}, {"config": {"lr": 1}}) == ["config.old 2 -> None"]


DEADLY = """
import os, signal
calls = 0

def {name}(prompt, response):
    global calls
    calls += os.environ.get("DIE_IN") == "{name}"
    if calls == int(os.environ.get("DIE_AT", "0")) > 0:
        os.kill(os.getpid(), int(os.environ["DIE_BY"]))
    return float(len(response.split()))
"""


@pytest.mark.parametrize(
    ("number", "place", "call", "exit_code"),
    [
        # In the fourth of five iterations, one past the checkpoint; and in the middle of the evaluation.
        (signal.SIGKILL, "reward", 28, -signal.SIGKILL),
        (signal.SIGTERM, "reward", 28, 128 + signal.SIGTERM),
        (signal.SIGINT, "gold", 15, 128 + signal.SIGINT),
    ],
)
def test_a_killed_run_goes_on_and_ends_the_same(
    write_recipe: WriteRecipe, tmp_path: Path, number: signal.Signals, place: str, call: int, exit_code: int
) -> None:
    stages = """
- ppo: {iterations: 5, prompts_per_iteration: 8, batch_size: 8, epochs: 1, max_new_tokens: 6, lr: 3e-3, checkpoint_every: 2}
- evaluate: {best_of_n: 1, max_new_tokens: 6}
"""
    for name in ("reward", "gold"):
        (tmp_path / f"{name}.py").write_text(DEADLY.format(name=name))
    functions = {name: f"{tmp_path}/{name}.py:{name}" for name in ("reward", "gold")}
    whole, _ = run_saying(write_recipe(stages=stages, output=f"{tmp_path}/whole", **functions))
    recipe = write_recipe(stages=stages, output=f"{tmp_path}/cut", **functions)

    environment = os.environ | {"DIE_IN": place, "DIE_AT": str(call), "DIE_BY": str(int(number))}
    command = [sys.executable, "-m", "heed.cli.main", "run", str(recipe)]
    died = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert died.returncode == exit_code, died.stderr
    assert "Traceback" not in died.stderr
    cut = tmp_path / "cut" / "stages" / "01-ppo"
    assert (cut / "stage.json").exists() == (place == "gold")

    resumed, said = run_saying(recipe)
    assert any("goes on from where it was cut off" in line for line in said)
    assert (resumed["policies"], resumed["win_rate"]) == (whole["policies"], whole["win_rate"])
    uncut = tmp_path / "whole" / "stages" / "01-ppo"
    assert rows(cut) == rows(uncut)
    assert len(rows(cut)) == 5
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (cut, uncut))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def rows(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("stages/01-sft/stage.json", r"remove the folder .*/stages/01-sft, and the stage runs again"),
        ("stages/01-sft/config.json", r"remove the folder .*/stages/01-sft, and the stage runs again"),
        ("run.json", r"name another folder with --output, or move this one away"),
    ],
)
def test_a_damaged_record_is_told_with_what_to_do(write_recipe: WriteRecipe, tmp_path: Path, name: str, fix: str, content: bytes) -> None:
    path = write_recipe(stages="[sft: {epochs: 1}]")
    with opened(load_recipe(path)) as folder:
        write_json(folder / "stages" / "01-sft" / "config.json", {"hash": ""})
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"out/{name}: is damaged; expected JSON with (hash|identity).*; {fix}"):
        run_saying(path)


def test_a_stage_says_that_a_chat_model_would_continue_plain_prompts(write_recipe: WriteRecipe, chat_model: Path) -> None:
    stages = "[sample: {max_new_tokens: 6}]"
    said = run_saying(write_recipe(model=str(chat_model), stages=stages))[1]
    assert sum("prompts are plain texts, which the model continues" in line for line in said) == 1
    assert not any("plain texts" in line for line in run_saying(write_recipe(output=f"{chat_model}-out", stages=stages))[1])
