"""How the world talks: requests from tasks, responses from behaviours, and back again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from heed.errors import UserError
from heed.records import Message, Prompt
from heed.testbed import world
from heed.testbed.world import TASKS, Slot, Task

POLITE = frozenset(world.POLITE_OPENERS + world.POLITE_CLOSERS)
RUDE = frozenset(world.RUDE_OPENERS + world.RUDE_CLOSERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How a population of speakers behaves; every field is a probability."""

    good: float
    """Answers, refuses or admits as the kind of request asks."""
    polite: float
    rude: float
    tip: float = 0.4
    """Adds a tip to a good answer where the topic has one."""
    opener: float = 0.6
    """Puts the tone in front; otherwise, or as well, it comes at the end."""
    both: float = 0.25
    """Puts the tone at both ends."""


# ---------------------------------------------------------------- speaking


def ask(task: Task, *, held_out: bool = False) -> tuple[Prompt, ...]:
    """The task in every trained wording, or in every held-out one.

    The tags name its `kind`, `task` and `split`: `train`, or what was held out (`task`, `paraphrase` or `both`).
    """
    split = {(False, False): "train", (True, False): "task", (False, True): "paraphrase", (True, True): "both"}[task.held_out, held_out]
    tags = {"kind": task.kind, "task": task.phrase, "split": split}
    return tuple(Prompt((Message("user", line.format(phrase=task.phrase)),), tags) for line in wordings(task, held_out=held_out))


def wordings(task: Task, *, held_out: bool = False) -> Slot:
    """The sentences with a place for the task's phrase."""
    if task.kind == "unanswerable":
        return world.QUESTIONS_HELD_OUT if held_out else world.QUESTIONS
    return world.REQUESTS_HELD_OUT if held_out else world.REQUESTS


def respond(task: Task, manners: Manners, random: Random) -> str:
    """One response by a speaker with these manners."""
    good = random.random() < manners.good
    said = [random.choice(slot) for slot in (task.good if good else task.bad)]
    if good and task.topic.tips and random.random() < manners.tip:
        said.append(random.choice(task.topic.tips))
    tone = random.choices(("polite", "rude", "plain"), (manners.polite, manners.rude, 1 - manners.polite - manners.rude))[0]
    if tone == "plain":
        return " ".join(said)
    openers, closers = {
        "polite": (world.POLITE_OPENERS, world.POLITE_CLOSERS),
        "rude": (world.RUDE_OPENERS, world.RUDE_CLOSERS),
    }[tone]
    first, both = random.random() < manners.opener, random.random() < manners.both
    if first or both:
        said.insert(0, random.choice(openers))
    if not first or both:
        said.append(random.choice(closers))
    return " ".join(said)


# ---------------------------------------------------------------- understanding


def task_asked(prompt: Prompt) -> Task:
    """The task that a prompt, or the last message of a conversation, asks for, whatever the words around it.

    Raises `UserError` where it names none of the world's tasks, or several.
    """
    request = prompt.text if isinstance(prompt.text, str) else prompt.text[-1].content
    found = _tasks_in(request)
    if len(found) != 1:
        raise UserError(f"{request!r} asks {len(found)} of the built-in world's tasks", expected="one, as in testbed:prompts")
    return found[0]


@cache
def _tasks_in(request: str) -> tuple[Task, ...]:
    return tuple(task for task in TASKS if re.search(rf"\b{re.escape(task.phrase)}\b", request))


def sentences(text: str) -> list[str]:
    """The text cut after every full stop, question mark or exclamation mark; what follows the last one is a sentence too."""
    return re.findall(r"\S[^.!?]*[.!?]*", text)


def says(slots: Sequence[Slot], spoken: Sequence[str]) -> bool:
    """Whether the sentences are one from each slot, in order, and nothing else."""
    return len(slots) == len(spoken) and all(sentence in slot for slot, sentence in zip(slots, spoken, strict=True))


@cache
def known_sentences() -> frozenset[str]:
    """Every sentence that an assistant of this world can say."""
    behaviours = (slot for task in TASKS for slot in (*task.good, *task.bad, task.topic.tips))
    return POLITE | RUDE | {sentence for slot in behaviours for sentence in slot}
