"""The newest models of a run, which may be going on. No torch here: they are asked for again and again, also before torch is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from heed.config import read_yaml
from heed.errors import UserError
from heed.feedback.sampler import Checkpoint
from heed.report.run import belongs, read_object

POLICY_STAGES = ("sft", "ppo", "reinforce", "dpo")
"""Kinds of stages that write a policy, to `model` in their folder."""


def newest_policy(spec: str) -> Checkpoint:
    """The policy that `spec` names: of a run's folder the one that was trained last or, until there is one, what the run starts from.

    Anything else is a model itself: a folder, a Hugging Face id or `testbed`. UserError for a folder that is neither.
    """
    folder = Path(spec)
    if not (folder / "recipe.yaml").is_file():
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise UserError("neither config.json nor recipe.yaml is here", file=spec, expected="a model folder, or the folder of a run")
        return Checkpoint(spec, _version(folder))
    recipe = read_yaml(folder / "recipe.yaml").values
    if not isinstance(recipe, Mapping) or not {"name", "model"} <= set(recipe):
        raise UserError("names no model to start from", file=folder / "recipe.yaml", expected="the recipe of a run")
    trained = _trained_last(folder, POLICY_STAGES)
    newest = recipe["model"] if trained is None else str(trained)
    return Checkpoint(newest, _version(Path(newest)), recipe["name"])


def newest_reward_model(folder: Path) -> Path:
    """The folder itself or, where it is a run's, the reward model that was trained last; UserError where there is none."""
    if not folder.is_dir():
        raise UserError("there is no such folder", file=folder, expected="a reward model's folder, or that of a run")
    return Path(trained_reward_model(str(folder)))


def trained_policy(spec: str) -> str:
    """The policy that was trained last where `spec` is a run's folder; anything else is a model itself.

    UserError for a run that has trained none.
    """
    return _trained(spec, POLICY_STAGES, "policy")


def trained_reward_model(spec: str) -> str:
    """The same of reward models."""
    return _trained(spec, ("reward_model",), "reward model")


def _trained(spec: str, kinds: Collection[str], what: str) -> str:
    if not (Path(spec) / "recipe.yaml").is_file():
        return spec
    found = _trained_last(Path(spec), kinds)
    if found is None:
        raise UserError(f"this run has no {what} yet", file=spec, fix=f"wait for its stage {' or '.join(kinds)}, or name another folder")
    return str(found)


def _trained_last(run: Path, kinds: Collection[str]) -> Path | None:
    """The model of the stage of these kinds that was done last."""
    summary = read_object(run / "summary.json")
    # A stage writes stage.json when all else is there; one that runs again removes it first.
    places = [path for path in run.glob("stages/*/stage.json") if _kind(path) in kinds and belongs(path.parent.name, summary)]
    done = [(age, path.parent) for path in places if (age := _changed(path))]
    return max(done)[1] / "model" if done else None


def _kind(path: Path) -> str:
    """Of a stage in the folder `r2-05-ppo`, by anything in it."""
    return path.parent.name.rpartition("-")[2]


def _version(folder: Path) -> str:
    """Changes with the files of a model, which are replaced and never written in place."""
    files = sorted(path for pattern in ("*.safetensors", "*.json") for path in folder.glob(pattern))
    return " ".join(f"{path.name} {_changed(path)}" for path in files)


def _changed(path: Path) -> int:
    """When, in nanoseconds; 0 where it has gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
