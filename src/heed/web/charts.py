"""Small pictures of numbers as SVG: no script, no style of their own, every word escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

MOST_BARS = 60
STEPS = tuple(timedelta(minutes=m) for m in (5, 15, 60, 180, 720, 1440, 10080))
"""What a bar may stand for, the shortest first."""
NAMES = ("5 minutes", "15 minutes", "hour", "3 hours", "12 hours", "day", "week")
MONDAY = datetime(2024, 1, 1)


class Bars(NamedTuple):
    """Counts over time."""

    svg: Markup
    step: str
    """What a bar stands for."""
    first: datetime
    last: datetime
    """Where the first bar begins and the last one ends."""
    most: int
    """Of a bar."""


def over_time(times: np.ndarray) -> Bars | None:
    """How many of `datetime64` times fall in each of at most 60 equal steps up to the last; the last ones, where there are more."""
    if not len(times):
        return None
    begin, latest = (time.astype("datetime64[us]").item() for time in (times.min(), times.max()))
    span = latest - begin
    step, name = next(((s, n) for s, n in zip(STEPS, NAMES, strict=True) if span / s < MOST_BARS - 1), (STEPS[-1], NAMES[-1]))
    end = MONDAY + ((latest - MONDAY) // step + 1) * step
    number = min(MOST_BARS, max(8, (end - begin) // step + 1))
    ages = (np.datetime64(end, "us") - times).astype("timedelta64[us]").astype(float) / 1e6
    places = number - np.ceil(ages / step.total_seconds()).astype(int)
    counts = np.bincount(places[(places >= 0) & (places < number)], minlength=number).tolist()
    starts = [end - (number - i) * step for i in range(number)]
    labels = [f"{count:,} from {start:%d %b %H:%M} UTC" for start, count in zip(starts, counts, strict=True)]
    return Bars(bars(counts, labels, f"Answers for each {name}: {max(counts):,} at most"), name, starts[0], end, max(counts))


def bars(counts: Sequence[int], labels: Sequence[str], description: str) -> Markup:
    """A column for each count, 10 wide and 100 high at most, to be stretched; labels show under the pointer."""
    column = Markup(
        '<g><title>{label}</title><rect class="back" x="{x}" width="10" height="100"/>'
        '<rect x="{x}" y="{top:.1f}" width="8" height="{height:.1f}"/></g>'
    )
    heights = [100 * count / (max(counts) or 1) for count in counts]
    columns = [
        column.format(label=label, x=10 * i, top=100 - height, height=height)
        for i, (height, label) in enumerate(zip(heights, labels, strict=True))
    ]
    picture = Markup('<svg class="bars" role="img" aria-label="{}" viewBox="0 0 {} 100" preserveAspectRatio="none">{}</svg>')
    return picture.format(description, 10 * len(counts), Markup("").join(columns))


def interval(value: float, low: float, high: float, *, start: float = 0.0, mark: float | None = None) -> Markup:
    """A point with its interval on a scale from `start` to 1, and a mark where chance is; numbers beside it say the same."""

    def line(name: str, first: float, last: float, top: int, bottom: int) -> Markup:
        left, right = (100 * (min(1.0, max(start, number)) - start) / (1 - start) for number in (first, last))
        return Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(name, left, right, top, bottom)

    lines = [line("scale", start, 1, 6, 6), line("range", low, high, 6, 6), line("point", value, value, 1, 11)]
    if mark is not None:
        lines.insert(1, line("mark", mark, mark, 0, 12))
    picture = Markup('<svg class="interval" aria-hidden="true" viewBox="0 0 100 12" preserveAspectRatio="none">{}</svg>')
    return picture.format(Markup("").join(lines))


class Shares(NamedTuple):
    """Shares with their intervals, one after the other."""

    svg: Markup
    scale: tuple[float, float, float]
    """The shares at its upper edge, middle and lower edge."""


def shares(
    estimates: Sequence[tuple[float, float, float]],
    labels: Sequence[str],
    description: str,
    *,
    ceiling: float | None = None,
    since: float | None = None,
) -> Shares:
    """A point for each (value, low, high) with its interval, and a line through the points; labels show under the pointer.

    `ceiling` is drawn across; `since` is where something happened, from 0 (before the first) to 1. The scale goes from 1 down
    to 1/2, or to the tenth below the lowest interval.
    """
    bottom = min(0.5, math.floor(10 * min(low for _, low, _ in estimates)) / 10)

    def y(share: float) -> float:
        return 100 * (1 - share) / (1 - bottom)

    def line(name: str, x: tuple[float, float], y: tuple[float, float]) -> Markup:
        return Markup('<line class="{}" x1="{:.2f}" x2="{:.2f}" y1="{:.1f}" y2="{:.1f}"/>').format(name, *x, *y)

    step = 100 / len(estimates)
    middles = [step * (i + 0.5) for i in range(len(estimates))]
    parts = [line("grid", (0, 100), (at, at)) for at in (0, 50, 100)]
    if since is not None:
        parts.append(line("since", (100 * since, 100 * since), (0, 100)))
    if ceiling is not None:
        parts.append(line("ceiling", (0, 100), (y(ceiling), y(ceiling))))
    path = " ".join(f"{x:.2f},{y(value):.1f}" for x, (value, _, _) in zip(middles, estimates, strict=True))
    parts.append(Markup('<polyline points="{}"/>').format(path))
    for x, (value, low, high), label in zip(middles, estimates, labels, strict=True):
        back = Markup('<rect class="back" x="{:.2f}" width="{:.2f}" height="100"/>').format(x - step / 2, step)
        # A stretched circle would be none: a line without length has round ends of its stroke's width.
        point = line("range", (x, x), (y(low), y(high))) + line("point", (x, x), (y(value), y(value)))
        parts.append(Markup("<g><title>{}</title>{}{}</g>").format(label, back, point))
    picture = Markup('<svg class="shares" role="img" aria-label="{}" viewBox="0 0 100 100" preserveAspectRatio="none">{}</svg>')
    return Shares(picture.format(description, Markup("").join(parts)), (1.0, (1 + bottom) / 2, bottom))
