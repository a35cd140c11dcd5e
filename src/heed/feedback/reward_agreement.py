"""How far a reward model orders responses as people do, over time and by why an item was judged.

What counts are pairs of responses of which someone preferred one: ties say nothing of the model, and answers to gold items and
repetitions check annotators. Pairs of one item are not independent of each other, so every interval takes the item as its unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from typing import NamedTuple

import numpy as np

from heed.feedback.answers import Standing
from heed.feedback.database import Database
from heed.feedback.outcomes import padded
from heed.feedback.quality import Estimate, clustered_share
from heed.feedback.reward_scores import RewardModel, Scores, response_table, reward_models, stored_scores

SLICES = 12
"""Of the answers over time, at most."""
LEAST = 20
"""Answers in a slice, at least: where there are fewer than two such slices, there is one."""
LATEST = 6
"""Reward models that are compared with all answers: earlier ones would take time and say little."""


@dataclass(frozen=True, slots=True, eq=False)
class Preferences:
    """Answers that compare responses, oldest first: A answers to I items with K responses and P pairs at most."""

    item: np.ndarray
    """`[A]`: which of the items."""
    said: np.ndarray
    """`[A, P]`: 1 where the first of two responses is better, -1 where the second is, 0 for a tie; NaN where there is no pair."""
    responses: np.ndarray
    """`[I, K]`: their ids, 0 where there is none."""
    times: np.ndarray
    """`[A]`, `datetime64`."""
    uncertain: np.ndarray
    """`[A]`: whether the item came because a reward model was unsure of it, and not at random."""

    @classmethod
    def of(cls, standing: Standing) -> Preferences:
        """Gold items, repetitions, and what a file brought are left out."""
        chosen = [a for a in standing.answers if a.ranks is not None and a.reason in ("random", "uncertain") and a.item.gold is None]
        chosen.sort(key=lambda answer: answer.created_at)
        rows = {item.id: row for row, item in enumerate(standing.items)}
        responses = response_table([item.responses for item in standing.items])
        left, right = _pairs(responses.shape[1])
        ranks = padded([answer.ranks or () for answer in chosen], responses.shape[1])
        return cls(
            np.array([rows[answer.item.id] for answer in chosen], dtype=int),
            np.sign(ranks[:, right] - ranks[:, left]),
            responses,
            np.array([answer.created_at for answer in chosen], dtype="datetime64[us]"),
            np.array([answer.reason == "uncertain" for answer in chosen], dtype=bool),
        )


class Slice(NamedTuple):
    """Answers that came one after the other."""

    first: datetime
    last: datetime
    answers: int
    share: Estimate
    """In which the model says what people say."""


@dataclass(frozen=True, slots=True)
class ModelAgreement:
    """The share of pairs that a reward model orders as the person did who preferred one; a share is none where there are none.

    Equal scores are half right. On answers that the model was trained on, shares are higher than they will be on others.
    """

    model: RewardModel
    answers: int
    """With a preference between responses that the model has scored."""
    overall: Estimate | None
    since: Estimate | None
    """Over answers that were given after the model had scored: it cannot have been trained on them."""
    before: int
    """Answers that came earlier."""
    control: Estimate | None
    """Of these later answers, over those to items that came at random."""
    uncertain: Estimate | None
    """And over those to items that came because a reward model was unsure of them."""
    slices: tuple[Slice, ...]
    """Oldest first, with equal numbers of answers."""


def agreements(database: Database, project_id: int, standing: Standing) -> tuple[ModelAgreement, ...]:
    """Of the project's latest reward models with what people said, the newest first."""
    models = reward_models(database, project_id)[-LATEST:]
    people = Preferences.of(standing) if models else None
    return tuple(agreement(people, model, stored_scores(database, model.id)) for model in reversed(models)) if people else ()


def agreement(people: Preferences, model: RewardModel, scores: Scores) -> ModelAgreement:
    """How often the model says what people say.

    Of an answer's pairs with a preference, `right` are those of which the preferred response has the higher score, with half
    of those with equal scores, and a share is sum(right) / sum(decided).
    """
    left, right = _pairs(people.responses.shape[1])
    scored = scores.of(people.responses)
    product = people.said * np.sign(scored[:, left] - scored[:, right])[people.item]
    preferred = (np.abs(people.said) == 1) & ~np.isnan(product)
    correct = np.where(preferred, (1 + product) / 2, 0).sum(axis=1)
    decided = preferred.sum(axis=1)
    known = np.flatnonzero(decided)

    def over(rows: np.ndarray) -> Estimate | None:
        return clustered_share(correct[rows], decided[rows], people.item[rows])

    later = known[people.times[known] >= np.datetime64(model.scored_at, "us")]
    slices = []
    for rows in np.array_split(known, min(SLICES, max(1, len(known) // LEAST))):
        share = over(rows)
        if share is not None:
            first, last = people.times[rows[0]].item(), people.times[rows[-1]].item()
            slices.append(Slice(first, last, len(rows), share))
    return ModelAgreement(
        model=model,
        answers=len(known),
        overall=over(known),
        since=over(later),
        before=len(known) - len(later),
        control=over(later[~people.uncertain[later]]),
        uncertain=over(later[people.uncertain[later]]),
        slices=tuple(slices),
    )


def _pairs(count: int) -> np.ndarray:
    """The places of each pair of `count` responses, `[2, P]`, in the order of `outcomes.Outcomes`."""
    return np.array(list(combinations(range(count), 2)), dtype=int).reshape(-1, 2).T
