"""The learning curve on the dashboard and in the API."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest

from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.learning_curve import Point, forecasts, keep
from heed.feedback.projects import Project, Projects, ProjectSettings
from heed.web.curve import draw, section
from tests.web.conftest import Person, text_of

Make = Callable[..., Person]


def points(*accuracies: float, half: float = 0.015) -> list[Point]:
    return [
        Point(items=25 * 2**i, answers=100 * 2**i, pairs=600 * 2**i, accuracy=a, low=a - half, high=a + half, ceiling=0.85)
        for i, a in enumerate(accuracies)
    ]


MEASURED = points(0.61, 0.67, 0.72, 0.75)


def test_the_dashboard_tells_how_to_measure_a_curve_and_then_shows_it(person: Make, project: Project, database: Database):
    viewer = person("Vic", "viewer")
    assert "Nothing was measured yet. heed feedback curve" in text_of(viewer.get(f"/projects/{project.id}").text)
    keep(database, project.id, "older", points(0.5, 0.5, 0.5), None)
    keep(database, project.id, "models/<b>tiny</b>", MEASURED, None)
    page = viewer.get(f"/projects/{project.id}").text
    said = text_of(page)
    assert "800 100" not in said
    assert "800 200 75.0 % 73.5 % to 76.5 %" in said
    assert re.search(r"1,600, expected 2 times 7\d\.\d %", said)
    assert "noise ceiling, 85.0 %" in said
    assert "models/&lt;b&gt;tiny&lt;/b&gt;" in page
    assert "older" not in said
    assert "style=" not in page
    assert viewer.get("/static/curve.css").status_code == 200


def test_points_that_determine_no_curve_are_said_to(person: Make, project: Project, database: Database):
    keep(database, project.id, "m", points(0.6, 0.7, half=0.3), None)
    said = text_of(person("Lea", "lead").get(f"/projects/{project.id}").text)
    assert "cannot be told from so little" in said
    assert "expected" not in said.partition("What more labels would buy")[2].partition("Expected accuracies")[0]


def test_a_project_that_compares_nothing_has_no_curve(person: Make, database: Database):
    made = Projects(database).create("Ideal", ProjectSettings(compare="none", num_responses=1, ideal=True), None)
    assert "What more labels would buy" not in person("Lea", "lead").get(f"/projects/{made.id}").text


def test_the_picture_is_true_to_the_numbers(database: Database, project: Project):
    told = forecasts(MEASURED, 0.85)
    chart = draw(MEASURED, told, 0.85)
    assert (chart.first, chart.last, chart.bottom, chart.top) == (100, 3200, 0.55, 0.85)
    dots = [
        (float(x), float(y)) for x, y in re.findall(r'<line class="dot \w+" x1="([\d.]+)" y1="([\d.]+)" x2="\1" y2="\2">', str(chart.svg))
    ]
    assert len(dots) == 6
    steps = [b[0] - a[0] for a, b in itertools.pairwise(dots)]
    assert max(steps) - min(steps) < 0.02, "each doubling is one step"
    for (_, y), accuracy in zip(dots, [p.accuracy for p in MEASURED] + [f.accuracy for f in told], strict=True):
        assert 0.85 - 0.30 * y / 100 == pytest.approx(accuracy, abs=1e-3)
    assert section(database, project.id) is None


def test_the_api_gives_curves_to_those_who_see_the_dashboard(person: Make, project: Project, database: Database):
    keep(database, project.id, "m", MEASURED, None)
    path = f"/api/v1/projects/{project.id}/learning-curves"
    keys = {role: Accounts(database).new_token(person(role, role).account.id, "test") for role in ("viewer", "annotator")}
    client = person("Lea", "lead")

    def get(role: str, where: str = path):
        return client.get(where, headers={"Authorization": f"Bearer {keys[role]}"})

    (curve,) = get("viewer").json()
    assert [point["answers"] for point in curve["points"]] == [100, 200, 400, 800]
    assert [forecast["factor"] for forecast in curve["forecasts"]] == [2, 4]
    assert get("annotator").status_code == 403
    assert get("viewer", path.replace(f"/{project.id}/", "/999/")).status_code == 404
