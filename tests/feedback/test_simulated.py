from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path

import pytest

from heed.errors import UserError
from heed.feedback import FeedbackStore, SimulatedAnnotator, judge, noise_ceiling, pairwise_agreement
from heed.records import Judgement, Prompt, Response

NUM_PROMPTS = 4000
PROMPTS = [Prompt(f"prompt {i}") for i in range(NUM_PROMPTS)]


def valued(utilities: Mapping[str, float]) -> Callable[[Prompt, str], float]:
    return lambda prompt, response: utilities[response]


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def share(judgements: list[Judgement], event: Callable[[Judgement], bool]) -> float:
    return sum(map(event, judgements)) / len(judgements)


def assert_probability(observed: float, expected: float, n: int = NUM_PROMPTS) -> None:
    """The expected probability lies inside Wilson's interval around the observed share, at 3.3 standard errors (p = 0.001)."""
    assert abs(observed - expected) <= 3.3 * math.sqrt(expected * (1 - expected) / n) + 1e-12, (observed, expected)


def run(utilities: Mapping[str, float], **faults) -> list[Judgement]:
    annotator = SimulatedAnnotator("ada", valued(utilities), **faults)
    return [annotator.rank(prompt, list(utilities)) for prompt in PROMPTS]


# Choice frequencies


@pytest.mark.parametrize(("difference", "temperature"), [(0.0, 1.0), (1.0, 1.0), (-2.0, 1.0), (1.0, 0.5), (3.0, 4.0)])
def test_of_two_responses_choices_are_bradley_terry(difference: float, temperature: float):
    judgements = run({"a": difference, "b": 0.0}, temperature=temperature)
    assert_probability(share(judgements, lambda j: j.ranks == (1, 2)), sigma(difference / temperature))
    assert_probability(share(judgements, lambda j: j.order_shown == (0, 1)), 0.5)


def test_of_four_responses_rankings_are_plackett_luce_and_every_pair_bradley_terry():
    utilities = {"a": 0.0, "b": 0.5, "c": 1.5, "d": -1.0}
    temperature = 0.8
    judgements = run(utilities, temperature=temperature)
    strengths = [math.exp(u / temperature) for u in utilities.values()]
    for i, strength in enumerate(strengths):
        assert_probability(share(judgements, lambda j, i=i: j.ranks[i] == 1), strength / sum(strengths))
    for i, k in combinations(range(4), 2):
        p = strengths[i] / (strengths[i] + strengths[k])
        assert_probability(share(judgements, lambda j, i=i, k=k: j.ranks[i] < j.ranks[k]), p)
    # The whole order c, b, a, d: each is drawn from those that remain.
    a, b, c, d = strengths
    assert_probability(share(judgements, lambda j: j.ranks == (3, 2, 1, 4)), c / (a + b + c + d) * b / (a + b + d) * a / (a + d))


def test_without_noise_rankings_are_the_utilitys_and_equals_tie():
    utilities = {"a": 1.0, "b": 3.0, "c": 1.0, "d": 0.0, "e": 2.0}
    assert {j.ranks for j in run(utilities, temperature=0.0)} == {(3, 1, 3, 4, 2)}


def test_position_bias_favours_what_is_shown_first():
    judgements = run({"a": 0.5, "b": 0.0}, position_bias=1.2, temperature=2.0)
    for first in (0, 1):
        shown = [j for j in judgements if j.order_shown[0] == first]
        difference = 0.5 + (1.2 if first == 0 else -1.2)
        assert_probability(share(shown, lambda j: j.ranks == (1, 2)), sigma(difference / 2.0), len(shown))


@pytest.mark.parametrize("reliability", [0.0, 0.6, 1.0])
def test_an_unreliable_annotator_mixes_in_random_rankings(reliability: float):
    judgements = run({"a": 2.0, "b": 1.0, "c": 1.0}, reliability=reliability, temperature=0.0)
    orders = Counter(j.ranks for j in judgements)
    assert_probability(orders.pop((1, 2, 2), 0) / NUM_PROMPTS, reliability)  # random rankings have no ties
    assert len(orders) == (6 if reliability < 1 else 0)
    for count in orders.values():
        assert_probability(count / NUM_PROMPTS, (1 - reliability) / 6)


def test_ties_occur_where_responses_appear_to_be_within_the_threshold():
    difference, threshold, temperature = 0.7, 0.4, 1.5
    judgements = run({"a": difference, "b": 0.0}, tie_threshold=threshold, temperature=temperature)
    # The difference of two Gumbel draws is logistic.
    expected = sigma((threshold - difference) / temperature) - sigma((-threshold - difference) / temperature)
    assert_probability(share(judgements, lambda j: j.ranks == (1, 1)), expected)


def test_a_tied_rank_spans_at_most_the_threshold():
    judgements = run({"a": 0.0, "b": 0.4, "c": 0.8, "d": 1.2}, tie_threshold=0.5, temperature=0.0)
    assert {j.ranks for j in judgements} == {(2, 2, 1, 1)}  # b and c are near, but c shares its rank with d already


# Determinism


def test_a_judgement_depends_on_what_is_judged_and_not_on_when():
    utilities = {"a": 0.3, "b": 0.0, "c": -0.1, "d": 0.2}
    texts = list(utilities)

    def annotator(name: str = "ada", seed: int = 0) -> SimulatedAnnotator:
        return SimulatedAnnotator(name, valued(utilities), seed=seed, reliability=0.8, tie_threshold=0.1)

    some = PROMPTS[:200]
    forwards = [annotator().rank(p, texts) for p in some]
    ada = annotator()
    assert [ada.rank(p, texts) for p in reversed(some)] == forwards[::-1]
    for other in (annotator("bob"), annotator(seed=1)):
        agreeing = sum(other.rank(p, texts).ranks == j.ranks for p, j in zip(some, forwards, strict=True))
        assert agreeing < len(some) / 2


def test_changing_one_fault_leaves_the_other_draws_as_they_were():
    utilities = {"a": 0.3, "b": 0.0}
    calm, hasty = run(utilities), run(utilities, reliability=0.5)
    assert [j.order_shown for j in calm] == [j.order_shown for j in hasty]
    # Half are drawn as before, half at random, of which half come out the same.
    assert_probability(sum(a.ranks == b.ranks for a, b in zip(calm, hasty, strict=True)) / NUM_PROMPTS, 0.75)


@pytest.mark.parametrize(
    "fault",
    [{"reliability": 1.5}, {"temperature": -1.0}, {"tie_threshold": math.inf}, {"position_bias": math.nan}, {"name": ""}],
)
def test_impossible_annotators_are_refused(fault: dict):
    with pytest.raises(UserError, match=next(iter(fault))):
        SimulatedAnnotator(**{"name": "ada", "utility": valued({})} | fault)


def test_a_utility_that_is_not_finite_is_told():
    with pytest.raises(UserError, match=r"utility of 'b' to prompt \w+ is nan"):
        SimulatedAnnotator("ada", valued({"a": 1.0, "b": math.nan})).rank(PROMPTS[0], ["a", "b"])


# A round of judging


def annotators(num: int, **faults) -> list[SimulatedAnnotator]:
    return [SimulatedAnnotator(f"annotator {i}", lambda _, response: float(response), **faults) for i in range(num)]


def items(num: int) -> list[tuple[Prompt, list[Response]]]:
    return [(prompt, [Response(f"{k}", model="m") for k in range(4)]) for prompt in PROMPTS[:num]]


@pytest.mark.parametrize(("num_annotators", "overlap"), [(1, 1), (5, 1), (5, 2), (4, 2), (3, 3)])
def test_every_item_gets_its_annotators_and_loads_are_equal(tmp_path: Path, num_annotators: int, overlap: int):
    store = FeedbackStore(tmp_path / "f.db")
    done = judge(store, annotators(num_annotators), items(101), overlap=overlap, seed=3)
    assert store.judgements() == done.judgements
    assert done.num_unrankable == 0
    judges: dict[str, set[str]] = {}
    for judgement in done.judgements:
        judges.setdefault(judgement.prompt.id, set()).add(judgement.annotator)
    assert len(done.judgements) == 101 * overlap
    assert all(len(names) == overlap for names in judges.values())
    assert len(judges) == 101
    loads = Counter(j.annotator for j in done.judgements)
    assert len(loads) == num_annotators
    assert max(loads.values()) - min(loads.values()) <= 1
    # Everyone is compared with everyone, or agreement would be measured in cliques.
    couples = {couple for names in judges.values() for couple in combinations(sorted(names), 2)}
    assert len(couples) == (math.comb(num_annotators, 2) if overlap > 1 else 0)


def test_the_assignment_follows_the_seed(tmp_path: Path):
    def assigned(seed: int, name: str) -> list[str]:
        return [j.annotator for j in judge(FeedbackStore(tmp_path / name), annotators(5), items(40), overlap=2, seed=seed).judgements]

    assert assigned(1, "a.db") == assigned(1, "b.db") != assigned(2, "c.db")


def test_a_repeated_round_adds_only_what_is_missing(tmp_path: Path):
    store = FeedbackStore(tmp_path / "f.db")
    first = judge(store, annotators(3), items(20), overlap=2)
    assert judge(store, annotators(3), items(20), overlap=2).judgements == []
    more = judge(store, annotators(3), items(30), overlap=2)
    assert len(more.judgements) == 20
    assert store.judgements() == first.judgements + more.judgements
    # New responses to a known prompt are a new question.
    again = [(PROMPTS[0], [Response("7"), Response("8")])]
    assert len(judge(store, annotators(3), again, overlap=2).judgements) == 2


def test_equal_texts_are_shown_once_and_what_cannot_be_ranked_is_counted(tmp_path: Path):
    store = FeedbackStore(tmp_path / "f.db")
    same = [Response("1", model="m"), Response("1", model="n")]
    done = judge(store, annotators(1, temperature=0.0), [(PROMPTS[0], same), (PROMPTS[1], [*same, Response("2")]), (PROMPTS[2], [])])
    assert done.num_unrankable == 2
    assert [(j.responses, j.ranks) for j in done.judgements] == [(("1", "2"), (2, 1))]
    assert len(store.responses(PROMPTS[0])) == 2  # kept, with both their sources


def test_impossible_rounds_are_refused(tmp_path: Path):
    store = FeedbackStore(tmp_path / "f.db")
    with pytest.raises(UserError, match="overlap is 3"):
        judge(store, annotators(2), items(1), overlap=3)
    with pytest.raises(UserError, match="different names"):
        judge(store, annotators(1) * 2, items(1))
    assert store.counts()["prompts"] == 0


def test_the_noise_ceiling_of_simulated_annotators_is_their_true_accuracy(tmp_path: Path):
    store = FeedbackStore(tmp_path / "f.db")
    pairs = [(prompt, [Response("0"), Response("1")]) for prompt in PROMPTS[:1500]]
    judge(store, annotators(4, temperature=0.7), pairs, overlap=2)
    accuracy = sigma(1 / 0.7)
    assert noise_ceiling(pairwise_agreement(store.judgements())) == pytest.approx(accuracy, abs=0.025)
