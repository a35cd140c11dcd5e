"""The tables: enough of everything, held out cleanly, and understood back from what is said."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from heed.errors import UserError
from heed.records import Message, Prompt
from heed.testbed import world
from heed.testbed.grammar import Manners, ask, known_sentences, respond, sentences, task_asked
from heed.testbed.world import TASKS, Task


def test_each_kind_has_enough_tasks_and_paraphrases() -> None:
    tasks = Counter(task.kind for task in TASKS)
    assert tasks["answerable"] >= 60
    assert tasks["dangerous"] >= 30
    assert tasks["unanswerable"] >= 30
    assert min(len(world.REQUESTS), len(world.QUESTIONS)) >= 5
    assert min(len(world.REQUESTS_HELD_OUT), len(world.QUESTIONS_HELD_OUT)) >= 2


def test_no_task_is_both_trained_and_held_out() -> None:
    assert len({task.phrase for task in TASKS}) == len(TASKS)
    for topic in {task.topic for task in TASKS}:
        assert topic.held_out
        assert not set(topic.subjects) & set(topic.held_out)


@pytest.mark.parametrize("task", [task for task in TASKS if task.held_out], ids=lambda task: task.phrase)
def test_a_held_out_task_is_made_of_parts_met_in_training(task: Task) -> None:
    trained = [other for other in TASKS if not other.held_out]
    assert sum(other.topic is task.topic for other in trained) >= 5
    assert sum(other.subject == task.subject for other in trained) >= 2


def test_every_wording_asks_its_own_task_and_no_two_are_the_same() -> None:
    prompts = [(prompt, task) for task in TASKS for held_out in (False, True) for prompt in ask(task, held_out=held_out)]
    assert len({prompt.id for prompt, _ in prompts}) == len(prompts)
    for prompt, task in prompts:
        assert task_asked(prompt) is task
        assert prompt.tags["kind"] == task.kind
        assert prompt.tags["task"] == task.phrase


def test_the_last_message_is_the_request_and_tags_are_not_needed() -> None:
    first, second = TASKS[0], TASKS[-1]
    messages = (Message("user", f"How do I {first.phrase}?"), Message("assistant", "So."), Message("user", f"Do you know {second.phrase}?"))
    assert task_asked(Prompt(messages)) is second
    assert task_asked(Prompt(f"I should very much like to {first.phrase} on Friday")) is first


@pytest.mark.parametrize("request_text", ["", "How do I fly?", "How do I clean the table and paint the chair?", "I clean the tablecloth."])
def test_a_request_for_no_task_or_for_two_is_refused(request_text: str) -> None:
    with pytest.raises(UserError, match="tasks"):
        task_asked(Prompt(request_text))


def test_good_and_bad_behaviour_share_no_sentence() -> None:
    good = {line for task in TASKS for slot in (*task.good, task.topic.tips) for line in slot}
    bad = {line for task in TASKS for slot in task.bad for line in slot}
    tone = {*world.POLITE_OPENERS, *world.POLITE_CLOSERS, *world.RUDE_OPENERS, *world.RUDE_CLOSERS}
    assert not good & bad
    assert not (good | bad) & tone
    assert "{" not in "".join(good | bad | tone)


def test_the_manners_are_the_shares_that_are_heard() -> None:
    random, manners = Random(3), Manners(good=0.7, polite=0.5, rude=0.2)
    task = TASKS[0]
    said = [respond(task, manners, random) for _ in range(2000)]
    assert all(sentence in known_sentences() for response in said for sentence in sentences(response))
    rude = sum(any(line in response for line in (*world.RUDE_OPENERS, *world.RUDE_CLOSERS)) for response in said)
    good = sum(task.good[0][0] in response for response in said)
    assert rude / 2000 == pytest.approx(0.2, abs=0.04)
    assert good / 2000 == pytest.approx(0.7, abs=0.04)
    assert len({len(response.split()) for response in said}) > 10
