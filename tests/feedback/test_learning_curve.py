"""Learning curves: parts within each other, the fit against a search of everything, and forecasts that know what they do not know."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sqlalchemy import select

from heed.feedback.database import Database
from heed.feedback.learning_curve import POWERS, Point, curves, fit, forecasts, keep, nested
from heed.feedback.projects import NotFound
from heed.feedback.schema import AuditRow
from tests.feedback.team import Team


def points(accuracies: list[float], half: float = 0.02, ceiling: float | None = None) -> list[Point]:
    """At 100, 200, 400, ... answers."""
    found = enumerate(accuracies)
    return [
        Point(items=25 * 2**i, answers=100 * 2**i, pairs=600 * 2**i, accuracy=a, low=a - half, high=a + half, ceiling=ceiling)
        for i, a in found
    ]


def test_each_part_is_within_the_next_and_the_last_is_all():
    parts = nested(range(80), seed=3)
    assert [len(part) for part in parts] == [10, 20, 40, 80]
    for smaller, larger in itertools.pairwise(parts):
        assert set(smaller) < set(larger)
    assert sorted(parts[-1]) == list(range(80))
    assert parts[0] != nested(range(80), seed=4)[0]
    assert [len(part) for part in nested(range(3), seed=0)] == [1, 2, 3]


def test_a_curve_is_found_again_from_its_points():
    true = [0.9 - 0.12 * (n / 800) ** -0.6 for n in (100, 200, 400, 800)]
    found = fit(points(true))
    assert (found.a, found.b, found.c) == pytest.approx((0.9, 0.12, 0.6), abs=1e-6)
    assert found.at(2) == pytest.approx(0.9 - 0.12 * 2**-0.6)


@pytest.mark.parametrize("ceiling", [None, 0.8, 0.7])
def test_the_fit_is_as_near_as_a_search_of_everything(ceiling: float | None):
    """Naively: every a and b of a fine grid for every c."""
    generator = np.random.default_rng(0)
    for _ in range(5):
        measured = points(list(np.sort(generator.uniform(0.55, 0.78, 4)))[:: generator.choice([-1, 1])])
        measured = [Point(**{**as_fields(p), "high": p.low + 0.04 * (i + 1)}) for i, p in enumerate(measured)]
        found = fit(measured, ceiling)
        y = np.array([p.accuracy for p in measured])
        w = np.array([(p.high - p.low) ** -2 for p in measured])
        n = np.array([p.answers for p in measured]) / measured[-1].answers
        most = max(1.0 if ceiling is None else ceiling, y.max())
        a, b, c = np.meshgrid(np.linspace(0.5, most, 200), np.linspace(0, 0.6, 200), POWERS, indexing="ij")
        searched = ((y - a[..., None] + b[..., None] * n ** -c[..., None]) ** 2 @ w).min()
        mine = float((y - np.array([found.at(x) for x in n])) ** 2 @ w)
        assert mine <= searched * (1 + 1e-9)
        assert found.a <= most + 1e-12
        assert found.b >= 0


def as_fields(point: Point) -> dict[str, float | None]:
    return {name: getattr(point, name) for name in Point.__slots__}


def test_no_forecast_goes_beyond_the_noise_ceiling_and_more_labels_do_no_harm():
    told = forecasts(points([0.62, 0.68, 0.73, 0.76], half=0.01), ceiling=0.78)
    assert [f.answers for f in told] == [1600, 3200]
    assert 0.76 < told[0].accuracy <= told[1].accuracy <= 0.78
    assert all(f.low <= f.accuracy <= f.high for f in told)
    flat = forecasts(points([0.7, 0.7, 0.7, 0.7], half=0.01))
    assert all(f.accuracy == pytest.approx(0.7) for f in flat)


def test_a_forecast_is_none_where_the_points_do_not_determine_it():
    assert forecasts(points([0.6, 0.7])) == []
    assert forecasts(points([0.6, 0.65, 0.7, 0.72], half=0.25)) == []
    with pytest.raises(ValueError, match="2 points"):
        fit(points([0.6, 0.7]))


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    generator, held = np.random.default_rng(1), 0
    true = [0.85 - 0.08 * x**-0.5 for x in (1 / 8, 1 / 4, 1 / 2, 1, 2)]
    for _ in range(60):
        drawn = generator.normal(true[:4], 0.01)
        (told, *_) = forecasts(points(list(drawn), half=1.96 * 0.01))
        held += told.low <= true[4] <= told.high
    assert held >= 51, "of 60, where 57 are expected"


def test_curves_are_kept_and_noted(database: Database):
    team = Team(database)
    project, measured = team.project(), points([0.6, 0.7, 0.75], ceiling=0.9)
    number = keep(database, project.id, "models/tiny", measured, team.annotator("lea"))
    (found,) = curves(database, project.id)
    assert (found.id, found.model, list(found.points)) == (number, "models/tiny", measured)
    assert curves(database, team.project("other").id) == []
    with database.read() as session:
        (row,) = session.scalars(select(AuditRow).where(AuditRow.action == "curve.add"))
        assert row.detail == {"project": project.id, "curve": number, "model": "models/tiny"}
    with pytest.raises(NotFound):
        keep(database, 999, "m", measured, None)
