"""Which annotators can be relied on: agreement with others, gold answers and themselves, and what speaks against them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from heed.feedback.answers import Standing
from heed.feedback.outcomes import Outcomes

LEAST = 20
"""Answers of an annotator below which nothing is said against them."""
LEVEL = 0.05
"""Of the tests that warn, over all annotators together."""


class Warned(NamedTuple):
    """Something that speaks against an annotator."""

    kind: Literal["random", "fast", "position"]
    text: str
    """Why, in words."""


@dataclass(frozen=True, slots=True)
class AnnotatorQuality:
    """What an annotator's answers show. A share is none where there is nothing to take it of."""

    account_id: int
    name: str
    answers: int
    agreement: float | None
    """How probably another annotator says the same of a pair, as `agreement.pairwise_agreement` counts it."""
    gold: float | None
    """The same of gold items and their right ranks."""
    num_gold: int
    consistency: float | None
    """The same of items that came again, and this annotator's answer before."""
    num_again: int
    first_preferred: float | None
    """Share of comparisons that the response shown first wins, ties half; 1/2 without position bias."""
    seconds: float | None
    """Median for an answer."""
    warnings: tuple[Warned, ...]


def annotator_qualities(standing: Standing, said: Outcomes, last: Outcomes, counts: np.ndarray) -> tuple[AnnotatorQuality, ...]:
    """Each annotator's numbers, and what speaks against them."""
    again, before = said.again()
    others = _Against.others(last, counts)
    gold = _Against.of(last, last.gold[last.item])
    repeated = _Against.of(said.rows(again), said.said[before])
    shares = [against.share() for against in (others, gold, repeated)]
    num_gold, num_again = gold.items(), repeated.items()
    seconds: dict[str, list[float]] = defaultdict(list)
    answers: Counter[str] = Counter()
    accounts: dict[str, int] = {}
    for answer in standing.answers:
        answers[answer.annotator] += 1
        if answer.reason != "imported":
            seconds[answer.annotator].append(answer.seconds)
        accounts[answer.annotator] = answer.account_id
    usual = {name: float(np.median(values)) for name, values in seconds.items() if len(values) >= LEAST}
    found = []
    for row, name in enumerate(said.names):
        agreement, of_gold, consistency = (None if np.isnan(share[row]) else float(share[row]) for share in shares)
        first, biased = _position_bias(said, row)
        found.append(
            AnnotatorQuality(
                account_id=accounts[name],
                name=name,
                answers=answers[name],
                agreement=agreement,
                gold=of_gold,
                num_gold=int(num_gold[row]),
                consistency=consistency,
                num_again=int(num_again[row]),
                first_preferred=first,
                seconds=float(np.median(seconds[name])) if seconds[name] else None,
                warnings=(
                    *others.random_clicks(row, "others"),
                    *gold.random_clicks(row, "gold answers"),
                    *biased,
                    *_too_fast(name, usual),
                ),
            )
        )
    return tuple(found)


class _Against(NamedTuple):
    """What answers say against what a reference says of the same pairs: sums over the pairs of each answer, `[A]`."""

    said: Outcomes
    same: np.ndarray
    """1 for each voice of the reference that says the same, 1/2 for a tie against a preference."""
    voices: np.ndarray
    net: np.ndarray
    """Voices that prefer the same less those that prefer the other, where both have a preference."""
    decided: np.ndarray
    """How many those are."""
    mutual: bool = False
    """Whether the reference is the other annotators, so that every couple is counted for both."""

    @classmethod
    def of(cls, said: Outcomes, reference: np.ndarray) -> _Against:
        """A reference of one voice, `[A, P]`."""
        known = ~np.isnan(said.said + reference)
        same = np.where(known, 1 - np.abs(said.said - reference) / 2, 0)
        net = np.nan_to_num(said.said * reference)
        return cls(said, *(table.sum(axis=1) for table in (same, known, net, np.abs(net))))

    @classmethod
    def others(cls, said: Outcomes, counts: np.ndarray) -> _Against:
        """The other annotators, of whose outcomes and the annotator's own there are `counts`."""
        own = np.nan_to_num(said.said)
        minus, ties, plus = np.moveaxis(counts[said.item], 2, 0)
        prefers, known = np.abs(own), ~np.isnan(said.said)
        same = np.where(own > 0, plus, np.where(own < 0, minus, ties)) - 1 + np.where(prefers, ties, plus + minus) / 2
        net, decided = own * (plus - minus) - prefers, prefers * (plus + minus - 1)
        voices = minus + ties + plus - 1
        return cls(said, *(np.where(known, table, 0).sum(axis=1) for table in (same, voices, net, decided)), mutual=True)

    def share(self) -> np.ndarray:
        """Of each annotator, NaN where there is nothing to compare."""
        with np.errstate(invalid="ignore"):
            return self.said.by_annotator(self.same) / self.said.by_annotator(self.voices)

    def items(self) -> np.ndarray:
        """How many answers of each annotator can be compared."""
        return self.said.by_annotator(self.voices > 0)

    def random_clicks(self, annotator: int, reference: str) -> tuple[Warned, ...]:
        """A warning where an annotator agrees with the reference no better than chance, though the rest of the team does.

        Who clicks at random prefers what the reference prefers in 1/2 of the pairs that both decide, for the order shown is
        random. The excess over 1/2 is tested twice, with the item as unit and `LEAST` items at least. It must not differ
        from 0 upwards, by the sign-flip test at 5 %: of a random ranking and its reverse one is as probable as the other.
        And it must be below that of the rest of the team by its standard error, one-sided, with Bonferroni's correction over
        the annotators: so of honest teams `LEVEL` at most see a warning. Both tests by normal approximation.
        """
        mine = (self.said.account == annotator) & (self.decided > 0)
        if mine.sum() < LEAST:
            return ()
        net, decided = self.net[mine], self.decided[mine]
        counted = 2 if self.mutual else 1
        rest = self.decided.sum() - counted * decided.sum()
        usual = (self.net.sum() - counted * net.sum()) / rest if rest > 0 else 0.0
        excess = net.sum() / decided.sum()
        error = math.sqrt(((net - excess * decided) ** 2).sum()) / decided.sum()
        z = net.sum() / math.sqrt((net**2).sum() or 1)
        if z >= _critical(1) or usual - excess <= _critical(len(self.said.names)) * error:
            return ()
        chance = "worse than chance" if z <= -_critical(1) else "no better than chance"
        text = f"agrees with {reference} in {_percent(excess)} of pairs, {chance}; the rest of the team in {_percent(usual)}"
        return (Warned("random", f"may be clicking at random: {text}"),)


def _position_bias(said: Outcomes, annotator: int) -> tuple[float | None, tuple[Warned, ...]]:
    """Share of comparisons that the response shown first wins, ties half, and a warning where that is no chance.

    A randomisation test: the order is drawn at random, so without bias any of the K responses is as probably the first.
    The sum over answers of the first one's (worse - better) / (K - 1) is compared with its standard deviation under that
    draw; two-sided, normal approximation, with Bonferroni's correction over the annotators. Repetitions are left out.
    """
    mine = (said.account == annotator) & ~np.isnan(said.first_won)
    if not mine.any():
        return None, ()
    won = said.first_won[mine]
    share = (1 + float(won.mean())) / 2
    z = won.sum() / math.sqrt(said.first_spread[mine].sum() or 1)
    p = math.erfc(abs(z) / math.sqrt(2))
    if mine.sum() < LEAST or p * len(said.names) >= LEVEL:
        return share, ()
    verb = "prefers" if share > 0.5 else "avoids"
    chance = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    text = f"{verb} the response shown first: it wins {100 * share:.0f} % of its comparisons, where 50 % would be no bias ({chance})"
    return share, (Warned("position", text),)


def _too_fast(name: str, usual: Mapping[str, float]) -> tuple[Warned, ...]:
    """A warning where the median time is less than a third of the others', all of `LEAST` answers or more."""
    others = [seconds for other, seconds in usual.items() if other != name]
    if name not in usual or not others or usual[name] >= np.median(others) / 3:
        return ()
    return (Warned("fast", f"is much too fast: {usual[name]:.1f} s for an answer, where the others take {np.median(others):.1f} s"),)


def _critical(num_tests: int) -> float:
    """How many standard errors, one-sided, say something where so many are tested."""
    return NormalDist().inv_cdf(1 - LEVEL / num_tests)


def _percent(excess: float) -> str:
    """A share of pairs, from its excess over chance: 1 for all and -1 for none."""
    return f"{50 * (1 + excess):.0f} %"
