"""What more labels would buy: the newest learning curve of a project, as a picture and in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from markupsafe import Markup

from heed.feedback.database import Database
from heed.feedback.learning_curve import LEAST, Forecast, Point, curves, fit, forecasts

STEPS = 40
"""Of the line."""


class Chart(NamedTuple):
    """Accuracy over answers."""

    svg: Markup
    bottom: float
    top: float
    """Accuracies at the edges of the picture."""
    first: int
    last: int
    """Answers at its sides, between which the scale is logarithmic."""


class Section(NamedTuple):
    """What the dashboard shows of a learning curve."""

    model: str
    at: datetime
    points: tuple[Point, ...]
    forecasts: list[Forecast]
    ceiling: float | None
    chart: Chart | None
    """None where there are too few points for a curve."""


def section(database: Database, project_id: int) -> Section | None:
    """Of the newest curve; none where nothing was measured."""
    found = curves(database, project_id)
    if not found:
        return None
    newest, ceiling = found[-1], found[-1].points[-1].ceiling
    expected = forecasts(newest.points, ceiling)
    chart = draw(newest.points, expected, ceiling) if len(newest.points) >= LEAST else None
    return Section(newest.model, newest.created_at, newest.points, expected, ceiling, chart)


def draw(points: Sequence[Point], expected: Sequence[Forecast], ceiling: float | None) -> Chart:
    """The points and what is expected with their intervals, the curve through them, and the noise ceiling.

    100 by 100, to be stretched: dots are lines of no length with round ends, which stay round.
    """
    marks = [("point", p.answers, p) for p in points] + [("expected", f.answers, f) for f in expected]
    first, last = points[0].answers, marks[-1][1]
    bottom = math.floor(20 * min(mark.low for _, _, mark in marks)) / 20
    top = math.ceil(20 * max(*(mark.high for _, _, mark in marks), ceiling or 0)) / 20

    def x(answers: float) -> float:
        return 4 + 92 * math.log(answers / first) / (math.log(last / first) or 1)

    def y(accuracy: float) -> float:
        return 100 * (top - min(top, max(bottom, accuracy))) / ((top - bottom) or 1)

    def line(name: str, x1: float, y1: float, x2: float, y2: float, words: str = "") -> Markup:
        title = Markup("<title>{}</title>").format(words) if words else ""
        shape = Markup('<line class="{}" x1="{:.2f}" y1="{:.2f}" x2="{:.2f}" y2="{:.2f}">{}</line>')
        return shape.format(name, x1, y1, x2, y2, title)

    curve = fit(points, ceiling)
    where = [first * (last / first) ** (i / STEPS) for i in range(STEPS + 1)]
    path = " ".join(f"{x(n):.2f},{y(curve.at(n / points[-1].answers)):.2f}" for n in where)
    parts = [] if ceiling is None else [line("ceiling", 0, y(ceiling), 100, y(ceiling), f"noise ceiling {100 * ceiling:.1f} %")]
    parts.append(Markup('<polyline class="fit" points="{}"/>').format(path))
    for name, answers, mark in marks:
        words = f"{answers:,} answers: {100 * mark.accuracy:.1f} % ({100 * mark.low:.1f} to {100 * mark.high:.1f} %)"
        parts.append(line(f"range {name}", x(answers), y(mark.low), x(answers), y(mark.high), words))
        parts.append(line(f"dot {name}", x(answers), y(mark.accuracy), x(answers), y(mark.accuracy), words))
    said = f"Accuracy rises from {100 * points[0].accuracy:.0f} to {100 * points[-1].accuracy:.0f} %; the table below has the numbers"
    picture = Markup('<svg class="curve" role="img" aria-label="{}" viewBox="0 0 100 100" preserveAspectRatio="none">{}</svg>')
    return Chart(picture.format(said, Markup("").join(parts)), bottom, top, first, last)
