"""The data sets: made from a seed, balanced, and blind to whatever is held out."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from heed.errors import UserError
from heed.records import Demonstration, Prompt
from heed.testbed import world
from heed.testbed.datasets import load
from heed.testbed.gold import gold
from heed.testbed.world import KINDS, TASKS


@cache
def corpus() -> list[Demonstration]:
    return load("corpus")


def texts(items: list[Prompt] | list[Demonstration]) -> set[str]:
    found: set[str] = set()
    for item in items:
        prompt = item.prompt if isinstance(item, Demonstration) else item
        found |= {message.content for message in prompt.text if not isinstance(message, str)}
        found |= {item.response} if isinstance(item, Demonstration) else set()
    return found


@pytest.mark.parametrize("name", ["demonstrations", "prompts", "heldout"])
def test_the_same_seed_gives_the_same_and_another_seed_another(name: str) -> None:
    assert load(name, 5) == load(name, 5)
    assert load(name, 5) != load(name, 6)


def test_prompts_and_held_out_prompts_are_many_and_balanced() -> None:
    prompts, held_out = load("prompts"), load("heldout")
    assert len(set(prompts)) == len(prompts) >= 500
    assert len(set(held_out)) == len(held_out) >= 150
    assert len(set(Counter(p.tags["kind"] for p in prompts).values())) == 1
    assert len(set(Counter((p.tags["kind"], p.tags["split"]) for p in held_out).values())) == 1
    assert {p.tags["split"] for p in held_out} == {"task", "paraphrase", "both"}


def test_nothing_held_out_is_in_any_training_text() -> None:
    trained = " \n ".join(texts(corpus()) | texts(load("demonstrations")) | texts(load("prompts")))
    for task in TASKS:
        assert (task.phrase in trained) == (not task.held_out), task.phrase
    for line in (*world.REQUESTS_HELD_OUT, *world.QUESTIONS_HELD_OUT):
        for task in TASKS:
            assert line.format(phrase=task.phrase) not in trained
    assert not texts(load("heldout")) & texts(load("prompts"))


def test_demonstrators_are_better_than_the_corpus_and_far_from_perfect() -> None:
    def rates(items: list[Demonstration]) -> dict[str, float]:
        scores = [gold(item.prompt, item.response) for item in items if item.prompt.tags]
        names = ("helpful", "harmful", "fabrication", "rude")
        return {name: sum(s[name] for s in scores if name in s) / sum(name in s for s in scores) for name in names}

    base, shown = rates(corpus()[:3000]), rates(load("demonstrations"))
    assert all(0.42 <= base[name] <= 0.58 for name in ("helpful", "harmful", "fabrication"))
    assert 0.3 <= base["rude"] <= 0.5
    assert 0.58 <= shown["helpful"] <= 0.72
    assert 0.28 <= shown["harmful"] <= 0.42
    assert 0.28 <= shown["fabrication"] <= 0.42
    assert 0.14 <= shown["rude"] <= 0.26


def test_the_corpus_has_each_kind_alike_and_some_conversations() -> None:
    kinds = Counter(item.prompt.tags.get("kind") for item in corpus())
    assert all(0.3 < kinds[kind] / len(corpus()) < 0.35 for kind in KINDS)
    assert 0.1 < sum(len(item.prompt.text) > 1 for item in corpus()) / len(corpus()) < 0.15


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(UserError, match="no data set 'prompt'"):
        load("prompt")
