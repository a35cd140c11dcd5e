"""The page: everything that a template needs, rendered into one file that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import heed
from heed.report import charts, lineage
from heed.report.reading import BAD, GOOD, attributes, optimised_names, percent, percents, read_results, reference_name, signed, spoken
from heed.report.responses import side_by_side
from heed.report.run import RunData

HERE = Path(__file__).parent
HEURISTICS = (("longer_baseline", "always the longer"), ("shorter_baseline", "always the shorter"))


class Dot(NamedTuple):
    """A share with its interval, on a line from 0 to 1."""

    name: str
    color: int
    mean: float
    low: float | None = None
    high: float | None = None


class Tile(NamedTuple):
    """One of the few numbers at the top."""

    value: str
    label: str
    detail: str = ""


def write_report(data: RunData, folder: str | Path) -> Path:
    """Render a run into `report.html` in `folder`, one file that opens offline; parts that the run lacks are left out.

    A content security policy names the two scripts by hash: whatever else a response may hold, no browser runs it.
    """
    path = Path(folder) / "report.html"
    temporary = path.with_suffix(".html.tmp")
    temporary.write_text(render(data), encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(data: RunData) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "percents": lambda interval: percents(*interval),
        "signed": signed,
        "number": number,
        "duration": duration,
        "color": charts.color_of,
        "spoken": spoken,
        "thinned": lambda points: charts.thinned(points, charts.MAX_ROWS),
        "yaml": as_yaml,
    }
    library = (HERE / "assets" / "chart.umd.min.js").read_text(encoding="utf-8").partition("\n//# sourceMappingURL")[0]
    script = (HERE / "assets" / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        **content(data),
        css=Markup((HERE / "assets" / "report.css").read_text(encoding="utf-8")),
        scripts=[Markup(library), Markup(script)],
        script_hashes=[csp_hash(library), csp_hash(script)],
        version=heed.__version__,
    )


def content(data: RunData) -> dict[str, Any]:
    """What the template shows, section by section; an empty section is not drawn."""
    summary = data.summary
    policies = summary.get("policies") or {}
    start, optimised = reference_name(summary), optimised_names(summary)
    newest = optimised[-1] if optimised else None
    rates = attributes(policies)
    curve = data.evaluations[-1].best_of_n if data.evaluations else ()
    training = [found for stage in data.stages if (found := charts.training_charts(stage))]
    plots = charts.reward_against_kl(data)
    rounds = charts.rounds_chart(data, rates, newest)
    calibration = charts.calibration_chart(summary.get("reward_model") or {})
    nodes = lineage.lineage(data.stages)
    drawn = [*plots, *(c for c in (rounds, calibration) if c), *(c for t in training for c in (*t.shown, *t.others))]
    return {
        "run": data,
        "summary": summary,
        "policies": policies,
        "start": start,
        "newest": newest,
        "rates": rates,
        "findings": read_results(summary, curve),
        "tiles": tiles(summary, start, newest, rates),
        "rate_dots": [(rate, rate_dots(policies, rate)) for rate in rates],
        "win_dots": [win_line(name, win) for name, win in (summary.get("win_rate") or {}).items()],
        "kinds": list(dict.fromkeys(kind for policy in policies.values() for kind in policy.get("by_kind") or {})),
        "reward_model": summary.get("reward_model") or {},
        "reward_model_dots": reward_model_dots(summary.get("reward_model") or {}),
        "plots": plots,
        "rounds": rounds,
        "calibration": calibration,
        "training": training,
        "comparisons": side_by_side(data.evaluations[-1].responses, start, newest) if data.evaluations else [],
        "simulated": any((stage.summary.get("feedback") or {}).get("simulated") for stage in data.stages),
        "nodes": nodes,
        "arcs": lineage.arcs(nodes),
        "rail": {"width": lineage.WIDTH, "row": lineage.ROW_HEIGHT, "centres": [lineage.centre(i) for i in range(len(nodes))]},
        "costs": [stage for stage in data.stages if stage.seconds is not None and stage.kind != "report"],
        "unfinished": [stage.name for stage in data.stages if stage.seconds is None and stage.kind != "report"],
        "finished": time.strftime("%d %B %Y, %H:%M", time.localtime(data.finished)) if data.finished else "",
        "chart_data": {chart.id: asdict(chart) for chart in drawn},
    }


def tiles(summary: Mapping[str, Any], start: str | None, newest: str | None, rates: Sequence[str]) -> list[Tile]:
    """The few numbers at the top."""
    found = _policy_tiles(summary, start, newest, rates) if start and newest else []
    if measured := summary.get("reward_model"):
        accuracy = measured["accuracy"]
        found.append(Tile(percent(accuracy["mean"]), "reward model accuracy", f"95 % interval {percents(*accuracy['ci95'])}"))
    if summary.get("seconds"):
        found.append(Tile(duration(summary["seconds"]), "in all", f"peak {summary.get('peak_rss_gb', 0):.1f} GB"))
    return found


def _policy_tiles(summary: Mapping[str, Any], start: str, newest: str, rates: Sequence[str]) -> list[Tile]:
    found, policies = [], summary["policies"]
    if win := (summary.get("win_rate") or {}).get(f"{newest}_vs_{start}"):
        label = f"{spoken(newest)} preferred over {spoken(start)}"
        found.append(Tile(percent(win["mean"]), label, f"95 % interval {percents(*win['ci95'])}"))
    first = "base" if "base" in policies else start
    for rate in rates:
        before, after = (policies[name].get(f"{rate}_rate") for name in (first, newest))
        if before is not None and after is not None and rate in GOOD | BAD:
            found.append(Tile(f"{percent(before)} → {percent(after)}", spoken(rate), f"{spoken(first)} → {spoken(newest)}"))
    if policies[newest].get("kl_to_reference") is not None:
        found.append(Tile(f"{policies[newest]['kl_to_reference']:.1f} nats", "of KL spent", f"per response, from {spoken(start)}"))
    return found


def rate_dots(policies: Mapping[str, Any], rate: str) -> list[Dot]:
    return [
        Dot(name, charts.color_of(name), policy[f"{rate}_rate"], *policy.get(f"{rate}_ci95", ()))
        for name, policy in policies.items()
        if policy.get(f"{rate}_rate") is not None
    ]


def win_line(name: str, win: Mapping[str, Any]) -> tuple[str, list[Dot]]:
    winner, _, loser = name.partition("_vs_")
    return f"{spoken(winner)} over {spoken(loser)}", [Dot(winner, charts.color_of(winner), win["mean"], *win["ci95"])]


def reward_model_dots(measured: Mapping[str, Any]) -> list[tuple[str, list[Dot]]]:
    """The reward model's accuracy among those to compare it with."""
    if not measured:
        return []
    color = charts.COLORS["reward_model"]
    lines = [(label, Dot(label, 0, measured[key])) for key, label in HEURISTICS if measured.get(key) is not None]
    lines.sort(key=lambda line: line[1].mean)
    shown = (
        ("accuracy", "reward model", color),
        ("gold_accuracy", "reward model, against the truth", color),
        ("oracle_accuracy", "the truth itself", 1),
    )
    for key, label, tint in shown:
        if estimate := measured.get(key):
            lines.append((label, Dot(label, tint, estimate["mean"], *estimate["ci95"])))
    if measured.get("noise_ceiling") is not None:
        lines.append(("noise ceiling", Dot("noise ceiling", 1, measured["noise_ceiling"])))
    return [(label, [dot]) for label, dot in lines]


def number(value: Any, digits: int = 2) -> str:
    """A number as people write it; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    small = 0 < abs(value) < 10**-digits
    return (f"{value:.1e}" if small else f"{value:,.{digits}f}").replace("-", "−")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def as_yaml(value: Any) -> str:
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True).rstrip()


def csp_hash(script: str) -> str:
    """The script's name in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
