"""How good a project's answers are: agreement, biases, and which annotators seem not to look.

A ranking of K responses says C(K, 2) things, and statistics are about these pairs: which response is better, or that they
tie. Pairs of one item are not independent of each other, so every interval and test takes the item as its unit. Of an
annotator who answered an item twice the last answer counts, except where the two are compared with each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from heed.errors import UserError
from heed.feedback.agreement import noise_ceiling
from heed.feedback.annotators import AnnotatorQuality, annotator_qualities
from heed.feedback.answers import GivenAnswer, Standing
from heed.feedback.outcomes import Outcomes, padded
from heed.feedback.projects import SCALE
from heed.feedback.tasks import SLOT_REASONS

LEAST = 20
"""Answers below which the end is not foretold."""
LONGEST = timedelta(days=3_650).total_seconds()
"""To the end, where one is foretold."""
NUM_RESAMPLES = 1_000
Z = 1.959964
"""Of a 95 % interval."""
MOST_VOTES = 100_000
"""Of pairs that reliabilities are estimated from: more make them no better, and slow."""


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class RatingAgreement:
    """How far annotators agree on one attribute."""

    alpha: float
    """Krippendorff's, interval: 1 is perfect agreement, 0 is chance."""
    difference: float
    """Points between two annotators of one response, on average."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of what is wanted is there."""

    items: int
    """Gold items aside."""
    gold_items: int
    wanted: int
    """Answers: items times annotators for each."""
    done: int
    """Of those wanted."""
    answers: int
    """All, with those to gold items and repetitions."""
    gold: int
    again: int
    skips: tuple[tuple[str, int], ...]
    """Reasons with how often they were given, the most frequent first."""
    flags: tuple[tuple[str, int], ...]
    """With how many responses were said to have them, counted once for each annotator."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast answers come."""

    last_hour: int
    last_day: int
    end: datetime | None
    """When all that is wanted is there at the pace of the last 7 days; none where nothing is left, or too little is known."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What a project's answers show; estimates are none where the answers do not determine them."""

    progress: Progress
    num_shared: int
    """Items that two annotators or more compared."""
    alpha: Estimate | None
    """Krippendorff's, of pair outcomes; see `agreement.krippendorff_alpha`."""
    agreement: Estimate | None
    """See `agreement.pairwise_agreement`."""
    ceiling: Estimate | None
    """See `agreement.noise_ceiling`."""
    length_bias: Estimate | None
    """Share of decided pairs in which the longer response is preferred."""
    ratings: Mapping[str, RatingAgreement | None]
    annotators: tuple[AnnotatorQuality, ...]
    """By name."""


def quality(standing: Standing, overlap: int) -> Quality:
    """Everything that a project's answers show, where `overlap` annotators are wanted for each item."""
    said = Outcomes.of(standing)
    last = said.last()
    counts = last.counts()
    agreed = _agreed(counts)
    agreement = clustered_share(agreed[:, 1], agreed[:, 0], np.arange(len(agreed)))
    return Quality(
        progress=progress(standing, overlap),
        num_shared=len(agreed),
        alpha=_alpha_estimate(agreed),
        agreement=agreement,
        ceiling=None if agreement is None else Estimate(*map(noise_ceiling, agreement)),
        length_bias=_length_bias(last),
        ratings=rating_agreements(standing),
        annotators=annotator_qualities(standing, said, last, counts),
    )


def progress(standing: Standing, overlap: int) -> Progress:
    """How much is there; answers to an item beyond the `overlap` that are wanted do not count as done."""
    reasons = Counter(answer.reason for answer in standing.answers)
    per_item = Counter(answer.item.id for answer in standing.answers if answer.reason in SLOT_REASONS and answer.item.gold is None)
    items = sum(item.gold is None for item in standing.items)
    flagged = dict.fromkeys(
        (flag, a.item.id, place, a.account_id) for a in standing.answers for flag, places in a.flags.items() for place in places
    )
    return Progress(
        items=items,
        gold_items=len(standing.items) - items,
        wanted=items * overlap,
        done=sum(min(overlap, count) for count in per_item.values()),
        answers=len(standing.answers),
        gold=reasons["gold"],
        again=reasons["again"],
        skips=tuple(Counter(skip.why for skip in standing.skips).most_common()),
        flags=tuple(Counter(flag for flag, *_ in flagged).most_common()),
    )


def pace(times: np.ndarray, progress: Progress, now: datetime) -> Pace:
    """From when the answers came (`datetime64`, any order). Gold items and repetitions go on taking the share that they took."""
    ages = np.sort((np.datetime64(now, "us") - times).astype("timedelta64[us]").astype(float) / 1e6)
    days = timedelta(days=7).total_seconds()
    recent = int(np.searchsorted(ages, days, "right"))
    end = None
    remaining = (progress.wanted - progress.done) * progress.answers / max(1, progress.done)
    if remaining > 0 and recent >= LEAST:
        seconds = remaining * min(days, ages[-1]) / recent
        end = now + timedelta(seconds=seconds) if seconds < LONGEST else None
    return Pace(int((ages <= 3600).sum()), int((ages <= 86400).sum()), end)


def rating_agreements(standing: Standing) -> dict[str, RatingAgreement | None]:
    """Of each attribute that was rated, over annotators' ratings of the same response; none where no two rated one.

    Ratings are points at equal distances, so disagreement is the squared difference: interval alpha = 1 - D_o / D_e,
    with D_o the mean within responses and D_e that among all ratings. Source: Krippendorff 2011, section D; the mean
    absolute difference says the same in points.
    """
    attributes = dict.fromkeys(name for answer in standing.answers for name in answer.ratings)
    return {name: _rating_agreement([a for a in standing.answers if name in a.ratings], name) for name in attributes}


def reliabilities(standing: Standing, *, seed: int = 0) -> dict[str, float]:
    """Of each annotator a weight from 0 (no better than chance) to 1 (always right), for labels to be weighted by.

    The one-coin model of Dawid and Skene: each pair has a right outcome, which annotator w says with probability p_w.
    p_w is estimated by expectation maximisation over pairs that two annotators or more decided, and the weight is
    max(0, 2 p_w - 1), how far w is better than a coin. Annotators without such pairs are left out.
    Raises UserError where crowd-kit is not installed, or no pair was decided by two annotators.
    Source: Dawid and Skene 1979; Zhang, Chen, Zhou and Jordan 2016 (one coin).
    """
    try:
        import pandas as pd
        from crowdkit.aggregation import OneCoinDawidSkene
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed", fix="pip install 'heed-rlhf[quality]'") from error
    last = Outcomes.of(standing).last()
    decided = np.abs(last.said) == 1
    pairs = last.item[:, None] * last.said.shape[1] + np.arange(last.said.shape[1])
    workers = np.broadcast_to(last.account[:, None], pairs.shape)
    votes: Any = pd.DataFrame({"task": pairs[decided], "worker": workers[decided], "label": last.said[decided].astype(int)})
    votes = votes[votes["task"].duplicated(keep=False)]
    if votes.empty:
        raise UserError("no pair of responses was decided by two annotators", fix="have each item judged by 3 annotators or more")
    if len(votes) > MOST_VOTES:
        tasks = np.random.default_rng(seed).permutation(votes["task"].unique())
        votes = votes[votes["task"].isin(tasks[: int(len(tasks) * MOST_VOTES / len(votes))])]
    skills: Any = OneCoinDawidSkene().fit(votes).skills_
    return {last.names[worker]: max(0.0, 2 * float(skill) - 1) for worker, skill in sorted(skills.items())}


def clustered_share(correct: np.ndarray, decided: np.ndarray, item: np.ndarray) -> Estimate | None:
    """sum(correct) / sum(decided) with a 95 % interval whose unit is the item; none where nothing was decided.

    Wilson's interval for as many independent pairs as have the share's standard error over items, which stays within 0 and 1.
    Source: Wilson 1927; the ratio estimator of cluster samples, Cochran 1977, equation 11.11.
    """
    _, rows = np.unique(item, return_inverse=True)
    won, of = np.bincount(rows, correct), np.bincount(rows, decided)
    won, of = won[of > 0], of[of > 0]
    if not len(of):
        return None
    share = won.sum() / of.sum()
    variance = ((won - share * of) ** 2).sum() / of.sum() ** 2
    # Where every item says the same, up to rounding, items are what there is to count.
    size = share * (1 - share) / variance if variance > 1e-20 else len(of)
    middle = (share + Z**2 / (2 * size)) / (1 + Z**2 / size)
    half = Z / (1 + Z**2 / size) * math.sqrt(share * (1 - share) / size + Z**2 / (4 * size**2))
    low, high = max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
    return Estimate(float(share), float(low), float(high))


def _agreed(counts: np.ndarray) -> np.ndarray:
    """What agreement is computed from, of each item with pairs that two annotators judged: `[items, 5]`.

    Sums over these pairs: couples of annotators; couples that say the same, and half of those of which one says tie;
    disagreement within pairs (D_o of nominal alpha, times the number of values); values; and how many of these are ties.
    """
    values = counts.sum(axis=2)
    judged = values > 1
    same = (counts * (counts - 1)).sum(axis=2) / 2 + counts[..., 1] * (counts[..., 0] + counts[..., 2]) / 2
    disagreement = (values**2 - (counts**2).sum(axis=2)) / np.maximum(values - 1, 1)
    sums = np.stack([values * (values - 1) / 2, same, disagreement, values, counts[..., 1]], axis=2)
    per_item = np.where(judged[..., None], sums, 0).sum(axis=1)
    return per_item[per_item[:, 0] > 0]


def _alpha(sums: np.ndarray) -> np.ndarray:
    """Nominal alpha of sums `[..., 5]`; NaN where all values are the same."""
    expected = _expected_disagreement(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1 - sums[..., 2] / sums[..., 3] / expected, np.nan)


def _expected_disagreement(sums: np.ndarray) -> np.ndarray:
    """D_e of nominal alpha of sums `[..., 5]`, every pair counted in both orders."""
    values, ties = sums[..., 3], sums[..., 4]
    total = 2 * values
    return (total**2 - 2 * (values - ties) ** 2 - (2 * ties) ** 2) / (total * (total - 1))


def _alpha_estimate(agreed: np.ndarray) -> Estimate | None:
    """Alpha with the interval of the bootstrap, which has no width where items drawn again are always alike, as where all agree.

    There it is that of the share of values that agree within pairs, at the disagreement that is expected of all values.
    """
    found = _bootstrap(agreed, _alpha)
    if found is None or found.high - found.low > 1e-9:
        return found
    observed = clustered_share(agreed[:, 3] - agreed[:, 2], agreed[:, 3], np.arange(len(agreed)))
    assert observed is not None, "where alpha is known, there are items"
    expected = float(_expected_disagreement(agreed.sum(axis=0)))
    low, high = (1 - (1 - share) / expected for share in observed[1:])
    return Estimate(found.value, max(-1.0, low), high)


def _bootstrap(per_item: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate | None:
    """A statistic of sums over items, with the percentile interval over items drawn with replacement; None where undefined.

    Items with the same numbers are drawn together, by a multinomial: the same distribution, whatever their number.
    """
    if not len(per_item):
        return None
    value = float(statistic(per_item.sum(axis=0)))
    if math.isnan(value):
        return None
    patterns, times = np.unique(per_item, axis=0, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(per_item), times / len(per_item), size=NUM_RESAMPLES)
    low, high = np.nanquantile(statistic(draws @ patterns), [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _length_bias(last: Outcomes) -> Estimate | None:
    """Over the pairs of unlike lengths with a preference."""
    signs = np.nan_to_num(last.said * last.longer[last.item])
    return clustered_share((signs > 0).sum(axis=1), (signs != 0).sum(axis=1), last.item)


def _rating_agreement(answers: Sequence[GivenAnswer], attribute: str) -> RatingAgreement | None:
    last = {(a.item.id, a.account_id): a for a in answers}.values()
    items = {item_id: row for row, item_id in enumerate(dict.fromkeys(a.item.id for a in last))}
    ratings = padded([a.ratings[attribute] for a in last], max(len(a.item.responses) for a in last))
    unit = np.array([items[a.item.id] for a in last])[:, None] * ratings.shape[1] + np.arange(ratings.shape[1])
    known = ~np.isnan(ratings)
    cells = unit[known] * SCALE + ratings[known].astype(int) - 1
    counts = np.bincount(cells, minlength=len(items) * ratings.shape[1] * SCALE).reshape(-1, SCALE).astype(float)
    counts = counts[counts.sum(axis=1) > 1]
    if not len(counts):
        return None
    points = np.arange(1, SCALE + 1)
    values, total = counts.sum(axis=1), counts.sum()
    apart = np.abs(points[:, None] - points)
    difference = ((counts @ apart) * counts).sum() / (values * (values - 1)).sum()
    observed = (((counts @ apart**2) * counts).sum(axis=1) / (values - 1)).sum() / total
    expected = counts.sum(axis=0) @ apart**2 @ counts.sum(axis=0) / (total * (total - 1))
    return RatingAgreement(float(1 - observed / expected), float(difference)) if expected > 0 else None
