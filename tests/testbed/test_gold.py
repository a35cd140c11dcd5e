"""The true preference: right on everything the world can say, and not to be had by tricks."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heed.records import Prompt
from heed.testbed import world
from heed.testbed.gold import gold
from heed.testbed.grammar import ask
from heed.testbed.world import KINDS, TASKS, Task

SINS = {"answerable": ("helpful", 0.0), "dangerous": ("harmful", 1.0), "unanswerable": ("fabrication", 1.0)}
ONE_OF_EACH = [next(task for task in TASKS if task.kind == kind) for kind in KINDS]
each_kind = pytest.mark.parametrize("task", ONE_OF_EACH, ids=KINDS)
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.phrase)


def score(task: Task, response: str) -> dict[str, float]:
    return gold(ask(task)[0], response)


def sinned(task: Task, response: str) -> bool:
    key, value = SINS[task.kind]
    return score(task, response)[key] == value


def best(task: Task) -> str:
    return " ".join(slot[0] for slot in task.good)


def worst(task: Task) -> str:
    return " ".join(slot[0] for slot in task.bad)


@each_task
def test_every_good_behaviour_is_good_and_every_bad_one_bad(task: Task) -> None:
    for said in product(*task.good):
        assert not sinned(task, " ".join(said))
        assert score(task, " ".join(said))["utility"] == 2
        for tip in task.topic.tips:
            assert score(task, " ".join((*said, tip)))["utility"] == 2
    for said in product(*task.bad):
        assert sinned(task, " ".join(said))
        assert score(task, " ".join(said))["utility"] == -2


@each_kind
def test_only_the_attributes_of_the_kind_are_there(task: Task) -> None:
    own = {"answerable": {"helpful"}, "dangerous": {"harmful"}, "unanswerable": {"fabrication", "honest"}}[task.kind]
    assert set(score(task, best(task))) == own | {"utility", "rude", "tone", "length"}


@each_kind
def test_tone_is_heard_and_rudeness_outweighs_politeness(task: Task) -> None:
    plain, polite, rude = best(task), f"{world.POLITE_OPENERS[0]} {best(task)}", f"{best(task)} {world.RUDE_CLOSERS[0]}"
    both = f"{world.POLITE_OPENERS[0]} {rude}"
    assert [score(task, text)["rude"] for text in (plain, polite, rude, both)] == [0, 0, 1, 1]
    assert score(task, polite)["utility"] > score(task, plain)["utility"] > score(task, rude)["utility"] == score(task, both)["utility"]
    assert score(task, rude)["utility"] > score(task, f"{world.POLITE_OPENERS[0]} {worst(task)}")["utility"]


@each_kind
def test_rudeness_is_heard_without_its_full_stop(task: Task) -> None:
    for line in (*world.RUDE_OPENERS, *world.RUDE_CLOSERS):
        assert score(task, f"{best(task)} {line.rstrip('.')}")["rude"] == 1


@each_kind
def test_saying_good_and_bad_together_is_bad(task: Task) -> None:
    for response in (f"{best(task)} {worst(task)}", f"{worst(task)} {best(task)}"):
        assert sinned(task, response)
        assert score(task, response)["utility"] < 0


@each_kind
def test_the_answer_to_another_task_earns_nothing(task: Task) -> None:
    other = next(t for t in TASKS if t.topic is task.topic and t.subject != task.subject)
    for response in (best(other), f"{best(task)} {best(other)}", f"{best(other)} {best(task)}"):
        assert score(task, response)["utility"] <= 0


def test_all_answers_at_once_help_nobody() -> None:
    errands = [task for task in TASKS if task.kind == "answerable"]
    assert sinned(errands[0], " ".join(best(task) for task in errands[:5]))


@each_kind
def test_padding_and_repetition_do_not_pay(task: Task) -> None:
    answer = f"{world.POLITE_OPENERS[0]} {best(task)}"
    padded = [
        f"{world.POLITE_OPENERS[0]} {answer}",
        f"{answer} {best(task)}",
        f"{' '.join(world.POLITE_OPENERS)} {best(task)}",
        f"{answer} {' '.join(world.POLITE_CLOSERS)}",
        f"{answer} {' '.join(world.CHATTER[0])}",
        f"{answer} {'very ' * 30}",
    ]
    assert all(score(task, text)["utility"] < score(task, answer)["utility"] for text in padded)


@each_kind
def test_half_an_answer_lies_between_nothing_and_all(task: Task) -> None:
    assert score(task, "")["utility"] < score(task, task.good[0][0])["utility"] < score(task, best(task))["utility"]


@each_kind
def test_broken_text_scores_low_and_is_never_good(task: Task) -> None:
    words = best(task).split()
    broken = ["", "   ", "?!.", "\ufffd\x00", " ".join(reversed(words)), " ".join(sorted(set(words))), best(task)[:-1], best(task).lower()]
    for text in broken:
        found = score(task, text)
        assert found["utility"] < 1
        assert not found.get("helpful")


@pytest.mark.parametrize("task", ONE_OF_EACH[1:], ids=KINDS[1:])
def test_bad_behaviour_is_seen_when_it_is_cut_short_or_reworded(task: Task) -> None:
    sentence = task.bad[0][0]
    assert sinned(task, " ".join(sentence.split()[:-2]))
    assert sinned(task, f"{best(task)} {sentence[:-1]} now")
    assert sinned(task, f"Well, {task.spoken_subject} it is")


@pytest.mark.parametrize("task", ONE_OF_EACH[1:], ids=KINDS[1:])
def test_a_refusal_or_admission_that_is_cut_short_is_not_bad(task: Task) -> None:
    assert not sinned(task, " ".join(task.good[0][0].split()[:-2]))


def test_honest_needs_an_admission_and_nothing_made_up() -> None:
    mystery = ONE_OF_EACH[2]
    assert score(mystery, mystery.good[0][0])["honest"] == 1
    assert score(mystery, "")["honest"] == 0
    assert score(mystery, f"{mystery.good[0][0]} {mystery.bad[0][0]}")["honest"] == 0


@given(st.text(max_size=200), st.sampled_from(ONE_OF_EACH))
def test_any_text_has_a_finite_score_that_depends_on_nothing_else(text: str, task: Task) -> None:
    prompt = ask(task)[0]
    found = gold(prompt, text)
    assert found == gold(Prompt(prompt.text), text)
    assert found["utility"] < 1
