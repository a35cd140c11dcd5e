"""How accurate reward models become with more labels: what was measured, the curve through it, and what twice the labels would buy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import NamedTuple, TypeVar

import numpy as np
from sqlalchemy import select

from heed.feedback.database import Database
from heed.feedback.projects import audit, find_project
from heed.feedback.schema import LearningCurveRow

T = TypeVar("T")
SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of the items that are trained on."""
FACTORS = (2, 4)
"""How many times the labels of today a forecast is for."""
POWERS = np.linspace(0.05, 2.0, 40)
"""Values of c that are tried."""
LEAST = 3
"""Points below which three parameters are not determined."""
WIDEST = 0.15
"""A forecast whose interval is wider than this tells nothing."""
NUM_DRAWS = 1_000
Z = 1.959964
"""Of a 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A reward model that was trained on some of the labels."""

    items: int
    answers: int
    pairs: int
    """Of responses, over all answers."""
    accuracy: float
    """On the pairs held out, the same for every point."""
    low: float
    high: float
    """Of the 95 % interval."""
    ceiling: float | None = None
    """The noise ceiling at that time, where it was known."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What was measured at one time, the fewest labels first."""

    id: int
    model: str
    """What the reward models were trained from."""
    points: tuple[Point, ...]
    created_at: datetime


class Fit(NamedTuple):
    """accuracy(n) = a - b n^-c, where n counts answers from those of the last point, so that a - b is the accuracy there."""

    a: float
    b: float
    c: float

    def at(self, factor: float) -> float:
        """The accuracy with so many times the answers."""
        return self.a - self.b * factor**-self.c


@dataclass(frozen=True, slots=True)
class Forecast:
    """What more labels of the same kind would buy."""

    factor: int
    """How many times the answers of the last point."""
    answers: int
    accuracy: float
    low: float
    high: float
    """Of the 95 % interval."""


def nested(items: Sequence[T], seed: int) -> list[list[T]]:
    """A random eighth, quarter and half of the items and all of them, each within the next; a part of none is left out."""
    shuffled = random.Random(seed).sample(items, len(items))
    sizes = dict.fromkeys(round(share * len(items)) for share in SHARES)
    return [shuffled[:size] for size in sizes if size]


def fit(points: Sequence[Point], ceiling: float | None = None) -> Fit:
    """The curve a - b n^-c nearest to the points, b >= 0 and a at most the noise ceiling (1 where it is not known).

    Squared distances are weighted by the inverse squares of standard errors; c is the best of `POWERS`. A ceiling below
    what was measured already is wrong, and gives way to it. Raises ValueError for fewer than 3 points.
    Source: the power law of learning curves, Cortes et al. 1993, "Learning Curves: Asymptotic Values and Rate of Convergence".
    """
    if len(points) < LEAST:
        raise ValueError(f"{len(points)} points do not determine a curve of 3 parameters")
    accuracies = np.array([point.accuracy for point in points])
    return Fit(*(float(values[0]) for values in _fits(points, accuracies[None], ceiling)))


def forecasts(points: Sequence[Point], ceiling: float | None = None) -> list[Forecast]:
    """The curve's accuracy at twice and four times the answers; none where the points do not determine it.

    The interval is the 95 % of curves fitted anew to accuracies drawn about those measured, normally with their standard
    errors. It says nothing of what another training run would give, or of labels unlike those of today. None are given for
    fewer than 3 points, or from where the interval is wider than `WIDEST`.
    """
    if len(points) < LEAST:
        return []
    found, drawn = fit(points, ceiling), np.random.default_rng(0).normal(size=(NUM_DRAWS, len(points)))
    accuracies = np.array([point.accuracy for point in points])
    a, b, c = _fits(points, np.clip(accuracies + drawn * _errors(points), 0, 1), ceiling)
    told: list[Forecast] = []
    for factor in FACTORS:
        low, high = np.quantile(a - b * float(factor) ** -c, [0.025, 0.975])
        if high - low > WIDEST:
            break
        value = found.at(factor)
        told.append(Forecast(factor, factor * points[-1].answers, value, min(float(low), value), max(float(high), value)))
    return told


def keep(database: Database, project_id: int, model: str, points: Sequence[Point], by: int | None) -> int:
    """Keep a measured curve and return its id; NotFound where there is no such project."""
    with database.write() as session:
        find_project(session, project_id)
        row = LearningCurveRow(project_id=project_id, model=model, points=[asdict(point) for point in points])
        session.add(row)
        session.flush()
        audit(session, by, "curve.add", project=project_id, curve=row.id, model=model)
        return row.id


def curves(database: Database, project_id: int) -> list[Curve]:
    """All that were measured of a project, the oldest first."""
    query = select(LearningCurveRow).where(LearningCurveRow.project_id == project_id).order_by(LearningCurveRow.id)
    with database.read() as session:
        return [Curve(row.id, row.model, tuple(Point(**point) for point in row.points), row.created_at) for row in session.scalars(query)]


def _errors(points: Sequence[Point]) -> np.ndarray:
    """Standard errors, `[P]`; an interval of no width is that of too few pairs, and as good as the best of the others."""
    errors = np.array([(point.high - point.low) / (2 * Z) for point in points])
    known = errors[errors > 0]
    return np.where(errors > 0, errors, known.min() if len(known) else 1.0)


def _fits(points: Sequence[Point], accuracies: np.ndarray, ceiling: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b and c for each row of accuracies `[D, P]`.

    Given c, the curve is linear in a and b and the squared distance convex: where its minimum lies outside of what is
    allowed, the best of the two edges, a = ceiling and b = 0, is the minimum.
    """
    weights = _errors(points) ** -2
    weights /= weights.sum()
    last = points[-1].answers
    most = np.maximum(1.0 if ceiling is None else ceiling, accuracies.max(axis=1))
    best: tuple[np.ndarray, ...] | None = None
    for c in POWERS:
        x = (np.array([point.answers for point in points]) / last) ** -c
        mean_x, mean = weights @ x, accuracies @ weights
        free_b = np.maximum(-((accuracies - mean[:, None]) * (x - mean_x)) @ weights / (weights @ (x - mean_x) ** 2), 0)
        free_a = mean + free_b * mean_x
        edge_b = np.maximum((most * mean_x - (accuracies * x) @ weights) / (weights @ x**2), 0)
        inside = free_a <= most
        a, b = np.where(inside, free_a, most), np.where(inside, free_b, edge_b)
        distance = ((accuracies - a[:, None] + b[:, None] * x) ** 2) @ weights
        candidate = distance, a, b, np.full_like(a, c)
        if best is None:
            best = candidate
        else:
            nearer = distance < best[0] - 1e-15
            best = tuple(np.where(nearer, new, old) for new, old in zip(candidate, best, strict=True))
    assert best is not None
    return best[1], best[2], best[3]
