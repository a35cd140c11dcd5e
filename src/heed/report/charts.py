"""What each plot shows, as plain data for the page's script and for the table beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from heed.report.reading import spoken
from heed.report.run import RunData, Stage

T = TypeVar("T")
COLORS = {"base": 0, "sft": 1, "best_of_n": 2, "ppo": 3, "dpo": 4, "reinforce": 5, "reward_model": 2}
"""A policy has the same colour on the whole page."""
MAX_POINTS, MAX_ROWS = 300, 16
"""Of a curve, and of the table of numbers beside it."""
FIRST = (
    *("loss", "accuracy", "score", "kl_exact", "response_length", "eos_rate", "entropy", "explained_variance"),
    *("margin", "shaped_reward", "clip_fraction", "value_loss"),
)
"""The metrics that say most, in the order they are drawn; the others follow on request."""
NUM_SHOWN = 6
NOT_PLOTTED = ("step", "seconds")


@dataclass(frozen=True, slots=True)
class Point:
    """One value, with its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together."""

    name: str
    points: Sequence[Point]
    color: int
    line: bool = True
    """Joined by a line, its interval a band; otherwise single points with whiskers."""
    markers: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """One plot."""

    id: str
    title: str
    x: str
    y: str
    series: Sequence[Series]
    diagonal: bool = False
    """Draw the line y = x to compare with."""
    shares: bool = False
    """Show the whole of y from 0 to 1."""
    small: bool = False
    note: str = ""

    @property
    def description(self) -> str:
        """What a reader who cannot see the plot is told of it."""
        parts = []
        for s in self.series:
            first, last = s.points[0], s.points[-1]
            middle = "" if len(s.points) == 1 else f" to {last.y:.3g} at {last.x:.3g}"
            parts.append(f"{s.name}: {first.y:.3g} at {first.x:.3g}{middle}")
        return f"{self.title}. {self.y} against {self.x}. " + "; ".join(parts)


@dataclass(frozen=True, slots=True)
class TrainingCharts:
    """The curves of one stage, and a few of its rows as numbers."""

    stage: Stage
    shown: Sequence[Chart]
    others: Sequence[Chart]
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[float | None]] = field(default_factory=list)


def color_of(policy: str) -> int:
    return COLORS.get(policy, 6)


def training_charts(stage: Stage) -> TrainingCharts | None:
    """The curves of a stage that logged metrics; None for any other."""
    columns = [key for key in dict.fromkeys(k for row in stage.metrics for k in row) if key not in NOT_PLOTTED]
    charts = {}
    for key in columns:
        points = [Point(row["step"], row[key]) for row in stage.metrics if _finite(row.get(key))]
        if len(points) > 1:
            series = Series(spoken(key), thinned(points, MAX_POINTS), color_of(stage.kind))
            charts[key] = Chart(f"{stage.name}-{key}", spoken(key), "update", spoken(key), [series], small=True)
    if not charts:
        return None
    order = sorted(charts, key=lambda key: (FIRST.index(key) if key in FIRST else len(FIRST), columns.index(key)))
    chosen = [charts[key] for key in order]
    rows = [[row.get(key) if _finite(row.get(key)) else None for key in ("step", *order)] for row in thinned(stage.metrics, MAX_ROWS)]
    return TrainingCharts(stage, chosen[:NUM_SHOWN], chosen[NUM_SHOWN:], ["step", *order], rows)


def reward_against_kl(run: RunData) -> list[Chart]:
    """Gold and proxy reward over KL: single policies, the best-of-n curve, and the way that training took."""
    if not run.evaluations:
        return []
    curve = run.evaluations[-1].best_of_n
    charts = []
    for key, title, note in (
        ("gold", "True preference", "The band and the whiskers are 95 % intervals. Up is better for people."),
        ("proxy", "Reward model's score", "If this rises where the true preference falls, the policy is gaming the reward model."),
    ):
        places = [(name, points) for name, points in _policy_points(run, key) if not (curve and name == "best_of_n")]
        series = [Series(spoken(name), points, color_of(name), line=len(points) > 1, markers=True) for name, points in places]
        if curve:
            points = [_estimated(p["kl"], p[key], f"best of {p['n']}") for p in curve]
            series.append(Series("best of n", points, color_of("best_of_n")))
        if key == "proxy" and (path := _training_path(run)):
            series.append(path)
        if series:
            x, y = "KL from the reference, nats per response", f"{key} reward"
            charts.append(Chart(f"{key}-kl", f"{title} against KL", x, y, series, note=note))
    return charts


def _policy_points(run: RunData, key: str) -> Iterable[tuple[str, list[Point]]]:
    """Each policy's place in each round; a policy that does not change is drawn once."""
    found: dict[str, list[Point]] = {}
    for stage in run.evaluations:
        for name, policy in stage.summary["policies"].items():
            estimate, kl = policy.get(f"{key}_reward"), policy.get("kl_to_reference")
            if estimate and kl is not None:
                label = f"{spoken(name)}, round {stage.round}" if len(run.evaluations) > 1 else spoken(name)
                point = _estimated(kl, estimate, label)
                if name in ("base", "sft"):
                    found[name] = [point]
                else:
                    found.setdefault(name, []).append(point)
    return found.items()


def _estimated(x: float, estimate: Mapping[str, Any], label: str) -> Point:
    low, high = estimate["ci95"]
    return Point(x, estimate["mean"], low, high, label)


def _training_path(run: RunData) -> Series | None:
    """Score over KL during the first policy-gradient training; later ones start from another reference."""
    for stage in run.stages:
        points = [
            Point(row["kl_exact"], row["score"]) for row in stage.metrics if _finite(row.get("kl_exact")) and _finite(row.get("score"))
        ]
        if len(points) > 1:
            return Series(f"{spoken(stage.kind)} in training", thinned(points, MAX_POINTS), color_of(stage.kind))
    return None


def calibration_chart(reward_model: Mapping[str, Any]) -> Chart | None:
    bins = reward_model.get("calibration")
    if not bins:
        return None
    points = [Point(b["confidence"], b["accuracy"], label=f"{b['count']} pairs") for b in bins]
    note = "On the dashed line the model is exactly as sure as it is right; below it, it is too sure."
    if reward_model.get("ece") is not None:
        note += f" The expected calibration error is {reward_model['ece']:.3f}."
    series = [Series("reward model", points, COLORS["reward_model"], markers=True)]
    return Chart("calibration", "Calibration", "how sure the model is", "how often people agree", series, diagonal=True, note=note)


def rounds_chart(run: RunData, rates: Sequence[str], policy: str | None) -> Chart | None:
    """How the newest policy's rates moved from round to round; None where there was one round."""
    if len(run.evaluations) < 2 or policy is None:
        return None
    series = []
    for index, rate in enumerate(rates):
        measured = [(stage.round, stage.summary["policies"].get(policy, {})) for stage in run.evaluations]
        points = [Point(r, p[f"{rate}_rate"], *p.get(f"{rate}_ci95", ())) for r, p in measured if f"{rate}_rate" in p]
        if points:
            series.append(Series(spoken(rate), points, 1 + index % 6, markers=True))
    return Chart("rounds", f"{spoken(policy)} from round to round", "round", "share of responses", series, shares=True) if series else None


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced, the first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
