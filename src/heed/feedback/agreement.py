"""How far annotators agree, and so how well any reward model can do.

A ranking of K responses says C(K, 2) things: of each pair, which response is better or that they tie. Agreement is
measured on these outcomes, wherever two annotators or more judged the same pair of the same prompt. Of an annotator
who judged a pair more than once, the last judgement counts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

import numpy as np

from heed.errors import UserError
from heed.records import Judgement


class _Pair(NamedTuple):
    prompt_id: str
    first: str
    second: str


def pairwise_agreement(judgements: Iterable[Judgement]) -> float:
    """How probably two annotators say the same of the same pair of responses.

    The mean over pairs of responses and over couples of annotators: 1 for the same outcome (two ties included), 1/2 for a
    tie against a preference, 0 for opposite preferences. Raises UserError where no pair was judged twice.
    """
    couples = [couple for outcomes in _outcomes(judgements).values() for couple in combinations(outcomes.values(), 2)]
    if not couples:
        raise _no_overlap()
    return sum(1 - abs(a - b) / 2 for a, b in couples) / len(couples)


def krippendorff_alpha(judgements: Iterable[Judgement]) -> float:
    """Krippendorff's alpha of the pair outcomes {first better, second better, tie}: 1 is perfect agreement, 0 is chance.

    Every pair is counted in both orders, so which response is called first changes nothing. Outcomes are nominal: a tie
    against a preference is a disagreement. Raises UserError where no pair was judged twice, or all say tie.
    """
    outcomes = _outcomes(judgements)
    rows = {name: row for row, name in enumerate(sorted({name for said in outcomes.values() for name in said}))}
    ratings = np.full((len(rows), len(outcomes)), np.nan)
    for column, said in enumerate(outcomes.values()):
        for name, outcome in said.items():
            ratings[rows[name], column] = outcome
    return nominal_alpha(np.concatenate([ratings, -ratings], axis=1))


def nominal_alpha(ratings: np.ndarray) -> float:
    """Krippendorff's alpha of nominal ratings `[annotators, units]`, NaN where an annotator did not rate a unit.

    alpha = 1 - D_o / D_e: the disagreement observed within units over that expected if all ratings were shuffled among the
    units. Units rated once say nothing and are left out. Raises UserError where nothing is left or all ratings are the same.
    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C.
    """
    categories = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == categories).sum(axis=0).astype(float)  # [units, categories]
    per_unit = counts.sum(axis=1)
    counts, per_unit = counts[per_unit > 1], per_unit[per_unit > 1]
    if not len(counts):
        raise _no_overlap()
    total, per_category = per_unit.sum(), counts.sum(axis=0)
    observed = ((per_unit**2 - (counts**2).sum(axis=1)) / (per_unit - 1)).sum() / total
    expected = (total**2 - (per_category**2).sum()) / (total * (total - 1))
    if expected == 0:
        raise UserError("all annotators said the same of everything: alpha is undefined", expected="two different outcomes or more")
    return float(1 - observed / expected)


def noise_ceiling(agreement: float) -> float:
    """The accuracy of one annotator, and so the best that a reward model can show on one annotator's labels.

    a = (1 + sqrt(2 p - 1)) / 2, the root of p = a^2 + (1 - a)^2: two annotators with independent, symmetric errors agree
    where both are right or both are wrong. 1/2 where p < 1/2. Raises ValueError where p is no probability.
    """
    if not 0 <= agreement <= 1:
        raise ValueError(f"agreement is {agreement}, not a probability")
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def _outcomes(judgements: Iterable[Judgement]) -> dict[_Pair, dict[str, int]]:
    """What each annotator said of each pair of texts: 1 the first is better, -1 the second is, 0 tie."""
    outcomes: dict[_Pair, dict[str, int]] = defaultdict(dict)
    for judgement in judgements:
        ranked = sorted(zip(judgement.responses, judgement.ranks, strict=True))
        for (first, rank), (second, other) in combinations(ranked, 2):
            outcomes[_Pair(judgement.prompt.id, first, second)][judgement.annotator] = (other > rank) - (other < rank)
    return outcomes


def _no_overlap() -> UserError:
    return UserError("no pair of responses was judged by two annotators", fix="have each prompt judged by 2 annotators or more")
