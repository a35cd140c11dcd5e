"""How stages hang together: which stage reads what, and the content hash that says whether it must run again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import heed
from heed.config import as_mapping
from heed.data.writers import to_row
from heed.pipeline import sources
from heed.pipeline.context import hashed
from heed.pipeline.recipe import Recipe, Stage, without_passwords


@dataclass(frozen=True, slots=True)
class Source:
    """An input from outside the run: a file, a folder, a dataset or model id, a function, or something built in."""

    spec: str

    def __str__(self) -> str:
        return self.spec


@dataclass(frozen=True, slots=True)
class Output:
    """An input that an earlier stage writes."""

    stage: str
    """The stage's folder name."""
    path: str
    """Within that folder."""

    def __str__(self) -> str:
        return f"{self.stage}/{self.path}"


Input = Source | Output


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage with its place in the run and everything it reads."""

    name: str
    """Its folder: `05-ppo`, or `r2-05-ppo` in the second round."""
    stage: Stage
    inputs: Mapping[str, Input]
    closing: bool
    """It stands behind the rounds, and runs once they are over."""


@dataclass(slots=True)
class _Newest:
    """The newest of everything that a later stage may read."""

    policies: dict[str, Input]
    """`base`, then `sft`, then the optimised one under the name of its algorithm; the last is the one to go on from."""
    compare: Mapping[str, Input]
    """Policies from outside, only to be measured."""
    demonstrations: Input | None
    prompts: Input | None
    eval_prompts: Input | None
    preferences: list[Input]
    reward: Input | None
    gold: Input | None
    responses: Input | None = None
    records: dict[str, Input] = field(default_factory=dict)
    """The record of every stage so far."""

    @property
    def policy(self) -> Input:
        return next(reversed(self.policies.values()))

    @property
    def start(self) -> Input:
        """The policy that optimisation starts from, and is held near in every round."""
        return self.policies.get("sft", self.policies["base"])

    def inputs(self, stage: Stage) -> dict[str, Input]:
        """What a stage of this kind reads; raises `UserError` at the recipe's line where that does not exist."""

        def need(name: str, fix: str) -> Input:
            found = getattr(self, name)
            if not found:
                raise stage.error(f"it has no {name.replace('_', ' ')}", fix=fix)
            return found

        match stage.kind:
            case "openings":
                return {"policy": self.policy}
            case "sft":
                return {"policy": self.policy, "demonstrations": need("demonstrations", "name them as data.demonstrations")}
            case "sample":
                return {"policy": self.policy, "prompts": need("prompts", "name them as data.prompts")}
            case "judge":
                if stage.config.project is not None:
                    return {"responses": self.responses} if self.responses else {}
                gold_fix = "name the judge's project, or the true preference as gold: testbed, module:function or file.py:function"
                return {"responses": need("responses", "put a sample stage before it"), "gold": need("gold", gold_fix)}
            case "reward_model" | "dpo":
                need("preferences", "name them as data.preferences, or put sample and judge before it")
                inputs = {"policy": self.policy, **{f"preferences.{i}": source for i, source in enumerate(self.preferences)}}
                return inputs | ({"gold": self.gold} if self.gold and stage.kind == "reward_model" else {})
            case "ppo" | "reinforce":
                reward = need("reward", "put a reward_model stage before it, or name one as reward")
                prompts = need("prompts", "name them as data.prompts")
                return {"policy": self.policy, "reference": self.start, "prompts": prompts, "reward": reward}
            case "evaluate":
                measures = {name: source for name, source in (("reward", self.reward), ("gold", self.gold)) if source}
                # The run's own optimised policies come last: the newest of all is what a report speaks of.
                unoptimised = {name: policy for name, policy in self.policies.items() if name in ("base", "sft")}
                policies = {f"policy.{name}": policy for name, policy in {**unoptimised, **self.compare, **self.policies}.items()}
                return {"prompts": need("eval_prompts", "name held-out prompts as data.eval_prompts"), **policies, **measures}
            case _:
                return dict(self.records)

    def advance(self, name: str, kind: str) -> None:
        """Take note of what a stage writes."""
        self.records[name] = Output(name, "stage.json")
        match kind:
            case "openings":
                self.prompts, self.eval_prompts = Output(name, "prompts.jsonl"), Output(name, "eval_prompts.jsonl")
            case "sample":
                self.responses = Output(name, "responses.jsonl")
            case "judge":
                if self.responses is None:  # it takes a whole project, and so what it took in the round before
                    self.preferences = [p for p in self.preferences if not isinstance(p, Output) or _place(p.stage) != _place(name)]
                self.preferences.append(Output(name, "feedback.db"))
            case "reward_model":
                self.reward = Output(name, "model")
            case "sft" | "ppo" | "reinforce" | "dpo":
                self.policies.pop(kind, None)
                self.policies[kind] = Output(name, "model")


def plan(recipe: Recipe, num_rounds: int = 1) -> list[PlannedStage]:
    """The stages of a run of `num_rounds` rounds, in order, with their inputs.

    `sample` to `evaluate` make a round; what stands before them runs once before, what stands behind once at the end.
    Raises `UserError` naming the recipe's line where a stage would have nothing to read.
    """
    data = recipe.data
    newest = _Newest(
        policies={"base": Source(recipe.model)},
        compare={name: Source(spec) for name, spec in recipe.compare.items()},
        demonstrations=_source(data.demonstrations),
        prompts=_source(data.prompts),
        eval_prompts=_source(data.eval_prompts),
        preferences=[Source(data.preferences)] if data.preferences else [],
        reward=_source(recipe.reward),
        gold=_source(recipe.gold),
    )

    kinds = [stage.kind for stage in recipe.stages]
    first = kinds.index("sample") if "sample" in kinds else 0
    last = len(kinds) - kinds[::-1].index("evaluate") if "evaluate" in kinds else len(kinds)
    order = [(1, i) for i in range(last)]
    order += [(number, i) for number in range(2, num_rounds + 1) for i in range(first, last)]
    order += [(1, i) for i in range(last, len(kinds))]
    planned = []
    for number, index in order:
        stage = recipe.stages[index]
        name = f"{'' if number == 1 else f'r{number}-'}{index + 1:02d}-{stage.kind}"
        planned.append(PlannedStage(name, stage, newest.inputs(stage), closing=index >= last))
        newest.advance(name, stage.kind)
    return planned


def _place(name: str) -> str:
    """A stage's name without its round: `r2-05-ppo` is `05-ppo`."""
    return "-".join(name.split("-")[-2:])


def _source(spec: str | None) -> Input | None:
    return Source(spec) if spec else None


def settings(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Everything configured that a stage's result depends on."""
    shared = as_mapping(recipe)
    model = {name: shared[name] for name in ("lora", "dtype", "max_length")}
    return {"kind": stage.kind, "config": without_passwords(as_mapping(stage.config)), "model": model}


def stage_hashes(
    recipe: Recipe, planned: Sequence[PlannedStage], records: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[str, dict[str, str]]]:
    """For every stage its content hash and those of its inputs.

    A stage's hash is over heed's version, its settings and its inputs: files by content, upstream outputs by the hash of the
    stage that writes them, and by what that gathered from people once it has done so (`records` of the stages that are done).
    """
    found: dict[str, tuple[str, dict[str, str]]] = {}
    written: dict[str, str] = {}
    for each in planned:
        inputs = {}
        for name, source in each.inputs.items():
            inputs[name] = source_hash(source.spec) if isinstance(source, Source) else hashed([written[source.stage], source.path])
        own = hashed({"heed": heed.__version__, "settings": settings(recipe, each.stage), "inputs": inputs})
        gathered = records.get(each.name, {}).get("gathered")
        found[each.name], written[each.name] = (own, inputs), own if gathered is None else hashed([own, gathered])
    return found


def source_hash(spec: str) -> str:
    """The hash of what `spec` names: a file's or folder's content, a feedback store's judgements, a function's source, or the id itself."""
    place = spec.rpartition(":")[0]
    file = next((path for path in (Path(spec), Path(place), _module_file(place)) if path is not None and path.is_file()), None)
    if file is not None:
        return _store_hash(file) if sources.names_store(spec) else _file_hash(file)
    if Path(spec).is_dir():
        return hashed({str(path.relative_to(spec)): _file_hash(path) for path in sorted(Path(spec).rglob("*")) if path.is_file()})
    return hashed(spec)


def _module_file(name: str) -> Path | None:
    """Where a module's source is, if `name` is a module's."""
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        with suppress(ImportError, ValueError):
            spec = find_spec(name)
            return Path(spec.origin) if spec and spec.has_location and spec.origin else None
    return None


def _store_hash(store: Path) -> str:
    """Over its judgements: what was written last may lie in the write-ahead log beside the file, which comes and goes."""
    beside = (store, store.with_name(f"{store.name}-wal"), sources.weights_beside(store))
    return _judgements_hash(store, tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in beside if path.exists()))


@cache
def _judgements_hash(store: Path, stamps: tuple[tuple[int, int], ...]) -> str:
    return hashed([to_row(record) for record in sources.read("preferences", str(store)).records])


def _file_hash(path: Path) -> str:
    return _content_hash(path, path.stat().st_size, path.stat().st_mtime_ns)


@cache
def _content_hash(path: Path, size: int, changed: int) -> str:
    """Kept for as long as the file is as large and as old: models are gigabytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
