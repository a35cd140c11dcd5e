"""Which policy of a run is the newest, while it goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from heed.errors import UserError
from heed.pipeline.newest import newest_policy, newest_reward_model, trained_policy, trained_reward_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: tone\nmodel: testbed\nstages: [sft]\n")
    return folder


def trained(run: Path, stage: str, at: int) -> str:
    """Write what a stage leaves, as of that second; returns the folder of its model."""
    folder = run / "stages" / stage
    (folder / "model").mkdir(parents=True)
    for path in (folder / "model" / "model.safetensors", folder / "model" / "config.json", folder / "stage.json"):
        path.write_text("{}")
        os.utime(path, (at, at))
    return str(folder / "model")


def test_a_run_begins_with_the_model_it_starts_from(run: Path) -> None:
    (run / "stages" / "01-sft" / "model").mkdir(parents=True)  # under way: nothing says that it is done
    assert newest_policy(str(run)) == ("testbed", "", "tone")


def test_the_newest_policy_is_the_one_trained_last_whatever_its_name(run: Path) -> None:
    model = ""
    for at, stage in enumerate(("01-sft", "04-ppo", "r2-04-ppo", "r10-04-ppo"), start=1):
        model = trained(run, stage, at)
        assert newest_policy(str(run))[::2] == (model, "tone")
    trained(run, "r10-03-reward_model", 5)
    trained(run, "r10-05-evaluate", 6)
    assert newest_policy(str(run)).path == model
    shutil.rmtree(run / "stages" / "01-sft")
    again = trained(run, "01-sft", 7)  # an edited recipe trains the first stage again
    assert newest_policy(str(run)).path == again


def test_rounds_that_the_summary_does_not_count_are_left_out(run: Path) -> None:
    first = trained(run, "04-ppo", 1)
    trained(run, "r3-04-ppo", 2)
    (run / "summary.json").write_text('{"rounds": 1}')
    assert newest_policy(str(run)).path == trained_policy(str(run)) == first


def test_the_newest_reward_model_is_the_one_trained_last_and_a_folder_that_is_no_run_is_one_itself(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no reward model yet"):
        newest_reward_model(run)
    model = ""
    for at, stage in enumerate(("04-reward_model", "r2-04-reward_model", "r10-04-reward_model"), start=1):
        model = trained(run, stage, at)
        assert str(newest_reward_model(run)) == model
    trained(run, "r10-05-ppo", 9)
    assert str(newest_reward_model(run)) == model
    assert newest_reward_model(tmp_path) == tmp_path
    with pytest.raises(UserError, match="no such folder"):
        newest_reward_model(tmp_path / "gone")


def test_a_run_names_what_it_has_trained_and_all_else_itself(run: Path) -> None:
    for named, what in ((trained_policy, "policy"), (trained_reward_model, "reward model")):
        with pytest.raises(UserError, match=f"this run has no {what} yet"):
            named(str(run))
        assert named("someone/model") == "someone/model"
    model, judge = trained(run, "03-ppo", 1), trained(run, "02-reward_model", 2)
    assert (trained_policy(str(run)), trained_reward_model(str(run))) == (model, judge)
    assert trained_policy(model) == model


def test_weights_that_are_replaced_are_another_version(run: Path, tmp_path: Path) -> None:
    model = trained(run, "01-sft", 1)
    before = newest_policy(model)
    assert before == newest_policy(model) == (model, before.version, "")
    os.utime(Path(model) / "model.safetensors", (2, 2))
    assert newest_policy(model).version != before.version


def test_names_of_models_are_what_they_are(tmp_path: Path) -> None:
    assert newest_policy("testbed") == ("testbed", "", "")
    assert newest_policy("someone/model") == ("someone/model", "", "")


def test_folders_that_are_neither_model_nor_run_are_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither config"):
        newest_policy(str(tmp_path))
    (run / "recipe.yaml").write_text("- not a recipe\n")
    with pytest.raises(UserError, match="names no model"):
        newest_policy(str(run))


def test_looking_needs_no_torch(run: Path) -> None:
    told = f"import sys; from heed.pipeline.newest import newest_policy; newest_policy({str(run)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", told], check=True)
