"""The recipe: one YAML file that names a model, data, and the stages of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from heed.config import Document, as_mapping, load_config, parse_yaml, read_yaml, yaml_text
from heed.errors import UserError, require
from heed.evaluation import PolicyEvaluation
from heed.models.backbone import LoRAConfig
from heed.pipeline.device import check_device
from heed.pipeline.newest import POLICY_STAGES, trained_policy, trained_reward_model
from heed.pipeline.stages import STAGES
from heed.training.run import Tracker

DEMO = Path(__file__).with_name("demo.yaml")
PASSWORD = re.compile(r"(?<=://)([^/:@\s]*:)[^/@\s]*(?=@)|(\bpassword=)[^&\s]*")
"""In a database's URL."""
RUN_NUMBERS = ("seconds", "peak_rss_gb", "rounds")
"""What `summary.json` holds of every run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Where data comes from: files, dataset ids (`org/name:split`) or built-in sets (`testbed:NAME`)."""

    demonstrations: str | None = None
    """What `sft` imitates."""
    prompts: str | None = None
    """What the policy answers in `sample` and in reinforcement learning; an `openings` stage can write them instead."""
    eval_prompts: str | None = None
    """What `evaluate` asks; kept apart from `prompts`."""
    preferences: str | None = None
    """Comparisons made by people; a `judge` stage adds to them or stands in for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How often `sample` to `evaluate` are repeated, each time from the newest policy."""

    max: int = 1
    """Rounds at most."""
    until: dict[str, float | str] = field(default_factory=dict)
    """Stop early when all hold: a number in `summary.json`, by its dotted name, to a least value (`0.9`) or a bound (`"<= 0.05"`)."""

    def __post_init__(self) -> None:
        require(self.max >= 1, "max", self.max, "1 round or more")
        for name, bound in self.until.items():
            parse_bound(name, bound)

    def reached(self, summary: Mapping[str, Any]) -> bool:
        """True when every target in `until` is met; False when there is none."""
        return bool(self.until) and all(_holds(metric(summary, name), *parse_bound(name, bound)) for name, bound in self.until.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One entry of the recipe's `stages`."""

    kind: str
    config: Any
    """The dataclass of this kind of stage."""
    file: str = ""
    line: int | None = None
    """Where the recipe names it."""

    def __post_init__(self) -> None:
        try:
            check_seed(getattr(self.config, "seed", 0))
        except UserError as error:
            raise self.error(str(error)) from None

    def error(self, found: str, expected: str | None = None, fix: str | None = None) -> UserError:
        return UserError(f"stage {self.kind}: {found}", file=self.file or None, line=self.line, expected=expected, fix=fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that a run is made from."""

    name: str
    """What the run is called."""
    model: str
    """The model to start from: a Hugging Face id, a folder or that of the run that trained it, or `testbed` for the built-in one.

    Of a run's folder, here and below, the newest model is taken when the recipe is read, so that the recipe in a run names it.
    """
    output: str = ""
    """The run's folder; `runs/NAME` where not given."""
    seed: int = 0
    """Of every stage that does not give its own."""
    lora: LoRAConfig | None = None
    """Train low-rank adapters instead of all weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """How weights are held in memory: those of whole models that are trained in float32, others and those below LoRA in either."""
    device: str = "auto"
    """`auto` takes a GPU where there is one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    max_length: int = 1024
    """Tokens of prompt and response together; the model's own context where that is shorter."""
    trackers: tuple[Tracker, ...] = ()
    """Experiment trackers that metrics are sent to as well."""
    data: Data = field(default_factory=Data)
    gold: str | None = None
    """The true preference, where it is known: `testbed`, `module:function`, `file.py:function`, or a reward model (see `reward`)."""
    reward: str | None = None
    """A reward in place of a `reward_model` stage: a reward model (folder, run or id), `module:function` or `file.py:function`."""
    compare: dict[str, str] = field(default_factory=dict)
    """More policies that `evaluate` measures, by the name they get there."""
    rounds: Rounds = field(default_factory=Rounds)
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_device(self.device)
        require(self.max_length > 1, "max_length", self.max_length, "2 tokens or more")
        require(bool(self.name) and "/" not in self.name, "name", self.name, "a short name that can be part of a path")
        own = sorted({"base", "best_of_n", *STAGES} & set(self.compare))
        require(not own, "compare", ", ".join(own), "names that no policy of the run itself has")
        dotted = sorted(name for name in self.compare if "." in name)
        require(not dotted, "compare", ", ".join(dotted), "names without a dot, which parts the names of numbers in rounds.until")
        models = {"model": trained_policy(self.model), "compare": {name: trained_policy(spec) for name, spec in self.compare.items()}}
        models |= {name: trained_reward_model(spec) for name in ("reward", "gold") if (spec := getattr(self, name))}
        for name, value in models.items():
            object.__setattr__(self, name, value)

    @property
    def folder(self) -> Path:
        return Path(self.output or f"runs/{self.name}")

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two recipes the same run: settings of stages may be edited and run again, these may not."""
        made = {name: getattr(self, name) for name in ("name", "model", "seed", "gold", "reward", "compare")}
        return made | {"data": as_mapping(self.data), "stages": [stage.kind for stage in self.stages]}


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML, every setting written out; `load_recipe` reads the same recipe back, but for passwords."""
    values = as_mapping(replace(recipe, stages=()))
    values["stages"] = [{stage.kind: without_passwords(as_mapping(stage.config))} for stage in recipe.stages]
    return yaml_text(values)


def without_passwords(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings as a run's files and its report may show them to others: `***` for the password of a database."""
    return {name: PASSWORD.sub(r"\1\2***", value) if isinstance(value, str) else value for name, value in settings.items()}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; each override is `key=value`, the key dotted (`seed`, `data.prompts`, `ppo.kl_coef`)."""
    document = read_yaml(path)
    if not isinstance(document.values, Mapping):
        raise document.error((), f"the recipe is {document.values!r}", expected="a mapping with at least name, model and stages")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise UserError(f"--set {override}", expected="key=value, such as ppo.kl_coef=0.1")
        document = document.with_value(_place(key.strip().split(".")), parse_yaml(value, f"--set {key}").values)
    return build_recipe(document)


def _place(keys: Sequence[str]) -> tuple[str, ...]:
    """Where in a recipe the setting is that `--set` names."""
    if keys[0] in STAGES:
        return ("stages", *keys)
    if keys[:2] == ["rounds", "until"] and len(keys) > 2:
        return ("rounds", "until", ".".join(keys[2:]))  # the dots are part of a number's name
    return tuple(keys)


def build_recipe(document: Document) -> Recipe:
    """The recipe that a document holds; raises `UserError` naming file, line, found and expected."""
    values = dict(document.values)
    entries = values.pop("stages", None)
    if not isinstance(entries, list) or not entries:
        raise document.error(("stages",), f"stages is {entries!r}", expected=f"a list of stages, each one of {', '.join(STAGES)}")
    recipe = load_config(Recipe, values, document)
    recipe = replace(recipe, stages=tuple(_stage(entry, i, document, recipe.seed) for i, entry in enumerate(entries)))
    for name in recipe.rounds.until:
        if fault := _unreported(name, recipe):
            raise document.error(("rounds", "until", name), f"rounds.until.{name}: {fault[0]}", expected=fault[1])
    return recipe


def _stage(entry: object, index: int, document: Document, seed: int) -> Stage:
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise document.error(("stages", index), f"a stage is {entry!r}", expected="one key, the stage's kind, with its settings below it")
    kind, values = next(iter(entry.items()))
    if kind not in STAGES:
        raise document.error(("stages", index, kind), f"there is no stage {kind!r}", expected=f"one of {', '.join(STAGES)}")
    if values is not None and not isinstance(values, Mapping):
        raise document.error(("stages", index, kind), f"the settings of {kind} are {values!r}", expected="a mapping of keys to values")
    seeded = any(f.name == "seed" for f in fields(STAGES[kind].config))
    config = load_config(STAGES[kind].config, ({"seed": seed} if seeded else {}) | dict(values or {}), document.at("stages", index, kind))
    return Stage(kind=kind, config=config, file=document.file, line=document.lines.get(("stages", index)))


def _unreported(name: str, recipe: Recipe) -> tuple[str, str] | None:
    """What is wrong with a target that no summary of this recipe will hold, and what it could be; None where there may be one."""
    kinds = [stage.kind for stage in recipe.stages]
    part, *rest = name.split(".")
    parts = [*RUN_NUMBERS, *dict.fromkeys(part for kind in kinds for part in STAGES[kind].numbers)]
    if part not in parts:
        return f"no stage of the recipe reports {part!r}", f"one of {', '.join(parts)}"
    measures = {"gold": recipe.gold is not None, "reward": recipe.reward is not None or "reward_model" in kinds}
    for key, measure in (("win_rate", "gold"), ("gold_reward", "gold"), ("proxy_reward", "reward")):
        if key in (part, *rest) and not measures[measure]:
            return f"the recipe has no {measure} to know {key} by", "another number"
    policies = ["base", *recipe.compare, *(kind for kind in dict.fromkeys(kinds) if kind in POLICY_STAGES)]
    if all(measures.values()):
        policies.append("best_of_n")
    if part == "policies" and rest and rest[0] not in policies:
        return f"the recipe has no policy {rest[0]!r}", f"one of {', '.join(policies)}"
    if part == "policies":
        reported = [f.name for f in fields(PolicyEvaluation) if f.name != "rates"]
        number = rest[1] if len(rest) > 1 else ""
        if number not in reported and not (measures["gold"] and number.endswith("_rate")):
            rates = ["a rate of the gold preference, such as helpful_rate"] if measures["gold"] else []
            return f"evaluate reports no number {number!r} of a policy", f"one of {', '.join([*reported, *rates])}"
    if part == "win_rate":
        start = "sft" if "sft" in kinds else "base"
        pairs = [f"{policy}_vs_{start}" for policy in policies if policy != start]
        if not rest or rest[0] not in pairs:
            return f"evaluate reports no win rate {'.'.join(rest)!r}", f"one of {', '.join(pairs)}"
    return None


def check_seed(seed: int) -> None:
    """Raise `UserError` for a seed that not every generator takes."""
    require(0 <= seed < 2**32, "seed", seed, "a whole number from 0 to 4294967295")


def parse_bound(name: str, bound: float | str) -> tuple[str, float]:
    """`0.9` and `">= 0.9"` are a least value, `"<= 0.05"` a greatest."""
    sign, number = (bound[:2], bound[2:]) if isinstance(bound, str) else (">=", bound)
    with suppress(ValueError):
        if sign in ("<=", ">=") and math.isfinite(value := float(number)):
            return sign, value
    raise UserError(f"until.{name} is {bound!r}", expected='a finite number or a bound such as "<= 0.05"')


def _holds(value: float, sign: str, bound: float) -> bool:
    return value <= bound if sign == "<=" else value >= bound


def metric(summary: Mapping[str, Any], name: str) -> float:
    """A number in a summary by its dotted name; a mean with interval counts as its mean."""
    value: Any = summary
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            known = ", ".join(value) if isinstance(value, Mapping) else "nothing below it"
            raise UserError(f"the summary has no {name!r}: there is no {key!r}", expected=known)
        value = value[key]
    number = value["mean"] if isinstance(value, Mapping) and "mean" in value else value
    if not isinstance(number, int | float):
        raise UserError(f"{name!r} is no number in the summary", expected=", ".join(f"{name}.{key}" for key in value) if value else "one")
    return float(number)
