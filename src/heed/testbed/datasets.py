"""The world's data sets, made on the spot from a seed; `testbed:NAME` in a recipe is `load(NAME)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, overload

from heed.errors import UserError
from heed.records import Demonstration, Message, Prompt
from heed.testbed.grammar import Manners, ask, respond, task_asked
from heed.testbed.world import KINDS, SMALL_TALK, TASKS, Kind

CORPUS_MANNERS = Manners(good=0.5, polite=0.4, rude=0.4)
DEMONSTRATOR_MANNERS = Manners(good=0.65, polite=0.5, rude=0.2)
NUM_CONVERSATIONS = 150_000
NUM_DEMONSTRATIONS = 1_200
HELD_OUT_PER_KIND = 60

PromptSet = Literal["prompts", "heldout"]
DemonstrationSet = Literal["corpus", "demonstrations"]


@overload
def load(name: PromptSet, seed: int = 0) -> list[Prompt]: ...
@overload
def load(name: DemonstrationSet, seed: int = 0) -> list[Demonstration]: ...
@overload
def load(name: str, seed: int = 0) -> list[Prompt] | list[Demonstration]: ...
def load(name: str, seed: int = 0) -> list[Prompt] | list[Demonstration]:
    """One of the world's data sets, the same for the same seed.

    `corpus`: conversations to pretrain on, good and bad behaviour in like amounts; `demonstrations`: responses to training prompts
    by people of middling quality; `prompts`: training prompts, each once, as many of each kind; `heldout`: prompts for
    evaluation, whose task, paraphrase or both occur in none of the others. Raises `UserError` for any other name.
    """
    if name not in _MAKERS:
        raise UserError(f"the built-in world has no data set {name!r}", expected=" or ".join(_MAKERS))
    return _MAKERS[name](Random(f"{name} {seed}"))


def _corpus(random: Random) -> list[Demonstration]:
    asked = _ask_all("train")
    return [_conversation(asked, random) for _ in range(NUM_CONVERSATIONS)]


def _conversation(asked: dict[Kind, list[Prompt]], random: Random) -> Demonstration:
    """Mostly one request; sometimes small talk, alone or before it, or an earlier request, so that the model can chat."""
    form = random.choices(("request", "small talk", "small talk first", "request first"), (85, 3, 7, 5))[0]
    hello, answer = random.choice(SMALL_TALK)
    small_talk = Demonstration(Prompt((Message("user", hello),)), answer)
    if form == "small talk":
        return small_talk
    request = _exchange(asked, CORPUS_MANNERS, random)
    if form == "request":
        return request
    return _after(small_talk if form == "small talk first" else _exchange(asked, CORPUS_MANNERS, random), request)


def _after(earlier: Demonstration, request: Demonstration) -> Demonstration:
    """The request, once the earlier exchange has been had."""
    messages = (*earlier.prompt.text, Message("assistant", earlier.response), *request.prompt.text)
    return Demonstration(Prompt(messages, request.prompt.tags), request.response)  # pyright: ignore[reportArgumentType]


def _demonstrations(random: Random) -> list[Demonstration]:
    asked = _ask_all("train")
    return [_exchange(asked, DEMONSTRATOR_MANNERS, random) for _ in range(NUM_DEMONSTRATIONS)]


def _exchange(asked: dict[Kind, list[Prompt]], manners: Manners, random: Random) -> Demonstration:
    prompt = random.choice(asked[random.choice(KINDS)])
    return Demonstration(prompt, respond(task_asked(prompt), manners, random))


def _prompts(random: Random) -> list[Prompt]:
    asked = _ask_all("train")
    fewest = min(len(prompts) for prompts in asked.values())
    return _shuffled([prompt for prompts in asked.values() for prompt in random.sample(prompts, fewest)], random)


def _held_out(random: Random) -> list[Prompt]:
    splits = [_ask_all(split) for split in ("task", "paraphrase", "both")]
    count = HELD_OUT_PER_KIND // len(splits)
    return _shuffled([prompt for asked in splits for kind in KINDS for prompt in random.sample(asked[kind], count)], random)


def _ask_all(split: str) -> dict[Kind, list[Prompt]]:
    """Every prompt of a split, by kind."""
    asked = [prompt for task in TASKS for held_out in (False, True) for prompt in ask(task, held_out=held_out)]
    return {kind: [prompt for prompt in asked if prompt.tags["split"] == split and prompt.tags["kind"] == kind] for kind in KINDS}


def _shuffled(prompts: Sequence[Prompt], random: Random) -> list[Prompt]:
    return random.sample(prompts, len(prompts))


_MAKERS: dict[str, Callable[[Random], list[Prompt] | list[Demonstration]]] = {
    "corpus": _corpus,
    "demonstrations": _demonstrations,
    "prompts": _prompts,
    "heldout": _held_out,
}
