"""What the names in a recipe stand for: models, data sets, the true preference, rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from heed.data.readers import Loaded, read_demonstrations, read_preferences, read_prompts
from heed.data.render import Renderer
from heed.errors import UserError
from heed.evaluation.policies import Gold
from heed.feedback import FeedbackStore, training_data
from heed.models.language_model import LanguageModel
from heed.models.loading import load_reward_model
from heed.models.scalar_model import ScalarModel
from heed.records import Demonstration, PreferencePair, Prompt, Ranking, Rollout
from heed.rewards.model import ModelReward
from heed.rewards.protocol import Reward
from heed.rewards.python import as_number, load_text_function

Record = Prompt | Demonstration | PreferencePair | Ranking
Kind = Literal["demonstrations", "prompts", "preferences"]
READERS: Mapping[Kind, Callable[[str], Loaded[Any]]] = {
    "demonstrations": read_demonstrations,
    "prompts": read_prompts,
    "preferences": read_preferences,
}
BUILT_IN = "testbed"


def model_path(spec: str) -> str:
    """The folder or Hugging Face id of a model; `testbed` is the built-in one."""
    if spec != BUILT_IN:
        return spec
    from heed.testbed import model_path

    return str(model_path())


def read(kind: Kind, spec: str) -> Loaded[Any]:
    """The records of a file, a data set id, a built-in set `testbed:NAME` or, of preferences, a feedback store `NAME.db`.

    Judgements of a store weigh what the file of weights beside it says of their annotators, and 1 where there is none.
    """
    if kind == "preferences" and names_store(spec):
        if not Path(spec).is_file():  # opening would make one
            raise UserError("there is no such file", file=spec, expected="a feedback store")
        weights = weights_beside(Path(spec))
        store = FeedbackStore(spec)
        rankings = training_data.rankings(store, json.loads(weights.read_text(encoding="utf-8")) if weights.exists() else None)
        store.close()
        if not rankings:
            raise UserError("it holds no judgement", file=spec, expected="at least one", fix="let annotators answer first: heed label")
        return Loaded(rankings, [], "judgements")
    if not spec.startswith(f"{BUILT_IN}:"):
        return READERS[kind](spec)
    from heed.testbed.datasets import load

    return Loaded(list(load(spec.removeprefix(f"{BUILT_IN}:"))), [], f"the built-in {kind}")


def continued(records: Sequence[Record], tokenizer: Any) -> str:
    """What should be said where prompts are plain texts and the model could take them as conversations; nothing of anything else."""
    plain = sum(isinstance(record, Prompt) and not record.is_conversation for record in records)
    if not plain or not tokenizer.chat_template:
        return ""
    many = "prompts are" if plain == len(records) else f"{plain:,} of {len(records):,} prompts are"
    form = '[{"role": "user", "content": ...}]'
    return f"{many} plain texts, which the model continues; to have it answer as a chat model, write them as {form}"


def names_store(spec: str) -> bool:
    """True where judgements lie in a feedback store rather than in a data file."""
    return spec.endswith(".db")


def weights_beside(store: Path) -> Path:
    """Where a `judge` stage puts the weights of annotators."""
    return store.with_name(f"{store.name}.weights.json")


def names_function(spec: str) -> bool:
    """True for `module:function` and `file.py:function`, False for a folder or id of a model."""
    return ":" in spec and not Path(spec).exists()


def load_gold(spec: str, **model_options: Any) -> Gold:
    """The true preference: `testbed`, a function of the texts of prompt and response, or a reward model that stands in for people.

    A function returns the utility, or a mapping that holds `utility` and attributes, of which one that is None does not apply.
    Raises UserError where it takes anything but two texts and, when judging, where it returns anything but finite numbers.
    """
    if spec == BUILT_IN:
        from heed.testbed.gold import gold

        return gold
    if not names_function(spec):
        return as_gold(*load_scoring(spec, **model_options))
    function = load_text_function(spec)

    def judge(prompt: Prompt, response: str) -> Mapping[str, float]:
        found = function(prompt.display(), response)
        return _judgement(found, spec, f"{response[:60]!r} to prompt {prompt.id}")

    return judge


def _judgement(found: object, spec: str, judged: str) -> dict[str, float]:
    """What a function of the user said of a response, as finite numbers; attributes that do not apply are left out."""
    said = found if isinstance(found, Mapping) else {"utility": as_number(found)}
    if said.get("utility") is None:
        raise UserError(f"{spec} returned {found!r} for {judged}", expected="a number, or a mapping that holds utility")
    numbers: dict[str, float] = {}
    for name, value in said.items():
        if value is None:
            continue
        number = as_number(value)
        if number is None or not math.isfinite(number):
            raise UserError(f"{spec} gave {value!r} as {name} of {judged}", expected="a finite number")
        numbers[name] = number
    return numbers


def load_scoring(spec: str, *, max_length: int, **model_options: Any) -> tuple[Reward, Renderer]:
    """A trained reward model as a reward, with the renderer of its own tokenizer."""
    model = load_reward_model(spec, **model_options)
    renderer = make_renderer(model, max_length)
    return ModelReward(model, renderer), renderer


def ending(reward: Reward, renderer: Renderer) -> Reward:
    """The reward of responses as if those cut at the limit ended there: a reward model has learned from ended responses only.

    Read without an end, they would be judged by where they were cut, and a policy could gain by merely ending.
    """

    def close(rollout: Rollout) -> Rollout:
        if rollout.finish_reason == "stop":
            return rollout
        bare, whole = (renderer.encode(rollout.prompt, "a", ended=ended).ids for ended in (False, True))
        ids = rollout.response_ids + whole[len(bare) :]
        fits = len(rollout.prompt_ids) + len(ids) <= renderer.max_length
        return replace(rollout, response_ids=ids, finish_reason="stop") if fits else rollout

    return lambda rollouts: reward([close(rollout) for rollout in rollouts])


def as_gold(reward: Reward, renderer: Renderer) -> Gold:
    """A reward in the place of a true preference that nobody knows."""

    def judge(prompt: Prompt, response: str) -> Mapping[str, float]:
        sequence = renderer.encode(prompt, response)
        start = sequence.response_mask.index(True)
        ids = sequence.ids[:start], sequence.ids[start:]
        rollout = Rollout(prompt, *ids, logprobs=(0.0,) * len(ids[1]), text=response, finish_reason="stop")
        return {"utility": float(reward([rollout])[0])}

    return judge


def reads_tokens_of(model: ScalarModel, policy: LanguageModel) -> bool:
    """True where the model can read the policy's token ids as they are: its vocabulary holds the policy's."""
    return policy.tokenizer.get_vocab().items() <= model.tokenizer.get_vocab().items()


class Reader(Protocol):
    """What is known of a model that reads text."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def context_length(self) -> int: ...


def make_renderer(model: Reader, max_length: int, max_new_tokens: int | None = None, setting: str = "max_new_tokens") -> Renderer:
    """The model's renderer; prompts leave room for `max_new_tokens` of response where that is given, by a setting of that name."""
    length = min(max_length, model.context_length)
    if max_new_tokens is not None and max_new_tokens >= length:
        raise UserError(f"{setting} is {max_new_tokens}", expected=f"fewer than the {length} tokens of prompt and response together")
    room = None if max_new_tokens is None else length - max_new_tokens
    return Renderer(model.tokenizer, eos_ids=model.eos_ids, max_length=length, max_prompt_length=room)
