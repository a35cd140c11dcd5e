"""What every stage is given, and what it gives back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from heed.data.render import Renderer
from heed.errors import UserError
from heed.models.language_model import LanguageModel
from heed.models.loading import load_policy, load_reward_model
from heed.models.scalar_model import ScalarModel
from heed.pipeline import sources
from heed.records import PreferencePair, Prompt, Ranking, Rollout, Sampling
from heed.rewards.model import ModelReward
from heed.rewards.protocol import Reward
from heed.rewards.python import load_reward
from heed.rollout.local import LocalEngine
from heed.training.run import Run

if TYPE_CHECKING:
    from heed.pipeline.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage has to say when it is done; what it made lies in its folder."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Its last numbers, for a person to read."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Its part of `summary.json`."""
    gathered: str | None = None
    """The hash of what it took from outside, where its settings and inputs do not say what that is: people's answers."""


@dataclass(frozen=True, slots=True)
class Context:
    """A stage's settings and inputs, and the models and data that they stand for."""

    recipe: Recipe
    config: Any
    inputs: Mapping[str, str]
    """Where each input is: a path, an id, or what the recipe calls it."""
    run: Run
    say: Callable[[str], None]
    """Tell the user what should be known: what was read, cut or skipped."""
    own_renderers: list[Renderer] = field(default_factory=list)
    """Those of reward models that read the policy's texts by tokens of their own."""

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def model_options(self) -> dict[str, Any]:
        return {"device": self.recipe.device, "dtype": self.recipe.dtype}

    def policy(self, name: str = "policy", *, train: bool = False) -> LanguageModel:
        """The policy of this input, whole; to `train`, with a new adapter where the recipe asks for LoRA."""
        training = {"lora": self.recipe.lora, "gradient_checkpointing": self.recipe.gradient_checkpointing} if train else {}
        return load_policy(sources.model_path(self.inputs[name]), **self.model_options, **training)

    def tokenizer(self) -> Any:
        """The policies' tokenizer, also before any of them is loaded."""
        spec = next(spec for name, spec in self.inputs.items() if name.partition(".")[0] == "policy")
        return AutoTokenizer.from_pretrained(sources.model_path(spec))

    def reward(self, policy: LanguageModel) -> tuple[Reward, ScalarModel | None]:
        """The reward of the policy's rollouts and, where it is a trained one, its model."""
        spec = self.inputs["reward"]
        if sources.names_function(spec):
            return load_reward(spec), None
        model = load_reward_model(spec, policy=policy, **self.model_options)
        if sources.reads_tokens_of(model, policy):
            own = None
        else:
            longest: int = self.config.max_new_tokens
            own = self.renderer(model, longest if longest < model.context_length else None)
            self.own_renderers.append(own)
        return sources.ending(ModelReward(model, own), self.renderer(model)), model

    def gold(self) -> sources.Gold | None:
        if "gold" not in self.inputs:
            return None
        return sources.load_gold(self.inputs["gold"], max_length=self.recipe.max_length, **self.model_options)

    def renderer(self, model: LanguageModel | ScalarModel, max_new_tokens: int | None = None) -> Renderer:
        return sources.make_renderer(model, self.recipe.max_length, max_new_tokens)

    def read(self, kind: sources.Kind, name: str) -> list[Any]:
        loaded = sources.read(kind, self.inputs[name])
        self.say(f"{self.inputs[name]}: {loaded.summary()}")
        if kind == "prompts" and (said := sources.continued(loaded.records, self.tokenizer())):
            self.say(said)
        return loaded.records

    def preferences(self) -> list[PreferencePair | Ranking]:
        return [record for name in self.inputs if name.startswith("preferences.") for record in self.read("preferences", name)]

    def done(self, renderer: Renderer, metrics: Mapping[str, float], summary: Mapping[str, Any] | None = None) -> Outcome:
        """The outcome of a stage that rendered text: says what was truncated."""
        for whose, each in (("", renderer), *(("for the reward model, ", own) for own in self.own_renderers)):
            if cut := each.truncations():
                self.say(f"{whose}{cut}")
        return Outcome(metrics, summary or {})


@dataclass(frozen=True, slots=True)
class PatientEngine:
    """An engine that shows progress, and can be stopped, between the portions of a long call."""

    engine: LocalEngine
    run: Run
    note: str = ""
    portion: int = 256
    """Responses in one portion."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, n: int = 1) -> list[Rollout]:
        size = max(1, self.portion // n)
        rollouts: list[Rollout] = []
        for start in range(0, len(prompts), size):
            rollouts += self.engine.generate(prompts[start : start + size], sampling, n)
            self.run.progress(len(rollouts), len(prompts) * n, self.note)
            self.run.checkpoint_if_due(False, lambda: None)
        return rollouts


def hashed(value: object) -> str:
    """A short hash of anything that JSON holds."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path, *names: str, fix: str) -> dict[str, Any] | None:
    """A mapping with these names, or None where there is no such file; `UserError`, with what to do, where it holds anything else."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # neither JSON nor, it may be, text
        value = None
    if not isinstance(value, dict) or not value.keys() >= set(names):
        raise UserError("is damaged", file=path, expected=f"JSON with {', '.join(names)}", fix=fix)
    return value


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole, or leave the one that is there."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
