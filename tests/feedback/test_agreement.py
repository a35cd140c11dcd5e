from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heed.errors import UserError
from heed.feedback import krippendorff_alpha, noise_ceiling, nominal_alpha, pairwise_agreement
from heed.records import Judgement, Prompt


def said(annotator: str, ranks: tuple[int, ...], prompt: str = "p", responses: str = "abcdefgh") -> Judgement:
    return Judgement(Prompt(prompt), tuple(responses[: len(ranks)]), ranks, annotator)


def random_judgements(seed: int, *, num_prompts: int = 30, num_ranks: int = 3) -> list[Judgement]:
    """Three annotators who each judge most prompts, of three responses."""
    draw = random.Random(seed)
    made = []
    for prompt in range(num_prompts):
        for annotator in ("ada", "bob", "eve"):
            if draw.random() < 0.8:
                ranks = [draw.randint(1, num_ranks) for _ in range(3)]
                made.append(said(annotator, tuple(r - min(ranks) + 1 for r in ranks), f"p{prompt}"))
    return made


def outcomes_by_hand(judgements: list[Judgement]) -> np.ndarray:
    """Annotators by pairs, in store order: 0 the first response is better, 1 the second, 2 tie."""
    annotators = sorted({j.annotator for j in judgements})
    prompts = sorted({j.prompt.id for j in judgements})
    pairs = [(prompt, i, k) for prompt in prompts for i, k in combinations(range(3), 2)]
    table = np.full((len(annotators), len(pairs)), np.nan)
    for j in judgements:
        for column, (prompt, i, k) in enumerate(pairs):
            if prompt == j.prompt.id:
                a, b = j.ranks[i], j.ranks[k]
                table[annotators.index(j.annotator), column] = 0 if a < b else 1 if b < a else 2
    return table


# Krippendorff's alpha


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0, np.nan]), min_size=4, max_size=4), min_size=2, max_size=12))
def test_nominal_alpha_is_that_of_the_krippendorff_library(units: list[list[float]]):
    krippendorff = pytest.importorskip("krippendorff")
    ratings = np.array(units).T
    rated_together = ratings[:, (~np.isnan(ratings)).sum(axis=0) > 1]
    if len(np.unique(rated_together[~np.isnan(rated_together)])) < 2:
        with pytest.raises(UserError):
            nominal_alpha(ratings)
    else:
        expected = krippendorff.alpha(ratings, level_of_measurement="nominal")
        assert nominal_alpha(ratings) == pytest.approx(expected, abs=1e-9)


def test_nominal_alpha_of_krippendorffs_own_example():
    # Krippendorff 2011, section C: 4 observers, 12 units, missing data; nominal alpha 0.743.
    nan = np.nan
    ratings = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
            [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
        ]
    )
    assert nominal_alpha(ratings) == pytest.approx(0.743, abs=5e-4)


@pytest.mark.parametrize("seed", range(3))
def test_alpha_of_rankings_is_the_librarys_on_all_pairs_in_both_orders(seed: int):
    krippendorff = pytest.importorskip("krippendorff")
    judgements = random_judgements(seed)
    table = outcomes_by_hand(judgements)
    swapped = np.where(table == 2, 2, 1 - table)
    expected = krippendorff.alpha(np.hstack([table, swapped]), level_of_measurement="nominal")
    assert krippendorff_alpha(judgements) == pytest.approx(expected, abs=1e-9)


def test_alpha_does_not_ask_what_responses_are_called_or_in_which_order_they_stand():
    judgements = random_judgements(0)
    backwards = [Judgement(j.prompt, j.responses[::-1], j.ranks[::-1], j.annotator) for j in judgements[::2]] + judgements[1::2]
    renamed = [Judgement(j.prompt, tuple("zyx"["abc".index(r)] for r in j.responses), j.ranks, j.annotator) for j in judgements]
    assert krippendorff_alpha(backwards) == pytest.approx(krippendorff_alpha(judgements), abs=1e-12)
    assert krippendorff_alpha(renamed) == pytest.approx(krippendorff_alpha(judgements), abs=1e-12)


def test_alpha_of_chance_is_near_0_and_of_accord_is_1_even_where_one_side_always_wins():
    assert krippendorff_alpha(random_judgements(1, num_prompts=800)) == pytest.approx(0, abs=0.04)
    accord = [said(name, (1, 2, 3), f"p{i}") for name in ("ada", "bob") for i in range(5)]
    assert krippendorff_alpha(accord) == 1
    opposed = [said("ada", (1, 2), f"p{i}") for i in range(50)] + [said("bob", (2, 1), f"p{i}") for i in range(50)]
    assert krippendorff_alpha(opposed) == pytest.approx(-1, abs=0.02)


# Agreement in pairs


def test_pairwise_agreement_by_hand():
    # Pairs ab, ac, bc. ada: a>b, a>c, b=c. bob: a>b, c>a, c>b. So 1, 0 and 1/2 (a tie against a preference).
    judgements = [said("ada", (1, 2, 2)), said("bob", (2, 3, 1))]
    assert pairwise_agreement(judgements) == pytest.approx(1.5 / 3)
    # eve ties all: against ada 1/2, 1/2, 1; against bob 1/2 each.
    assert pairwise_agreement([*judgements, said("eve", (1, 1, 1))]) == pytest.approx((1.5 + 2 + 1.5) / 9)


def test_only_the_same_pair_of_the_same_prompt_is_compared():
    judgements = [said("ada", (1, 2)), said("bob", (2, 1), "another prompt"), said("bob", (2, 1), responses="ax")]
    with pytest.raises(UserError, match="judged by two annotators"):
        pairwise_agreement(judgements)
    with pytest.raises(UserError, match="judged by two annotators"):
        krippendorff_alpha(judgements)
    with pytest.raises(UserError, match="judged by two annotators"):
        krippendorff_alpha([])
    # A pair is found again inside a longer ranking.
    assert pairwise_agreement([said("ada", (1, 2)), said("bob", (2, 3, 1))]) == 1


def test_an_annotators_last_judgement_of_a_pair_counts_and_is_not_compared_with_the_first():
    assert pairwise_agreement([said("ada", (2, 1)), said("ada", (1, 2)), said("bob", (1, 2))]) == 1
    with pytest.raises(UserError, match="judged by two annotators"):
        pairwise_agreement([said("ada", (2, 1)), said("ada", (1, 2))])


def test_alpha_is_undefined_where_everything_is_tied():
    with pytest.raises(UserError, match="undefined"):
        krippendorff_alpha([said("ada", (1, 1)), said("bob", (1, 1))])


# The noise ceiling


@given(st.floats(0.5, 1))
def test_noise_ceiling_inverts_the_agreement_of_two_equal_annotators(accuracy: float):
    agreement = accuracy**2 + (1 - accuracy) ** 2
    assert noise_ceiling(agreement) == pytest.approx(accuracy, abs=1e-6)


def test_noise_ceiling_at_its_ends():
    assert noise_ceiling(1) == 1
    assert noise_ceiling(0.5) == noise_ceiling(0.3) == noise_ceiling(0) == 0.5
    assert noise_ceiling(0.726) == pytest.approx(0.836, abs=1e-3)  # labellers who agree in 72.6 % of pairs
    for impossible in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="not a probability"):
            noise_ceiling(impossible)
