"""Running a recipe: every stage in a folder of its own, skipped where nothing changed, resumed where it was cut off."""

from __future__ import annotations

import fcntl
import gc
import os
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import heed
from heed.errors import UserError
from heed.pipeline.check import check
from heed.pipeline.context import Context, read_json, write_json, write_text
from heed.pipeline.plan import Output, PlannedStage, Source, plan, settings, stage_hashes
from heed.pipeline.recipe import Recipe, recipe_text
from heed.pipeline.stages import STAGES
from heed.report.run import belongs
from heed.training.run import Run

Say = Callable[[str], None]
RECORD = ("hash", "outputs", "metrics", "summary", "seconds", "peak_rss_gb")
"""What `stage.json` holds and a later run reads."""


def run(recipe: Recipe, say: Say = print, *, display: bool = True) -> dict[str, Any]:
    """Run all stages of a recipe in its folder and return the summary, which `summary.json` in that folder holds.

    Raises `UserError` before anything is written where the recipe cannot be run, and `Interrupted` where a signal stopped
    it; the same call then goes on.
    """
    check(recipe, plan(recipe))
    with opened(recipe) as folder:
        session = Session(recipe, folder, say, display)
        num_rounds = 1
        session.advance(num_rounds, closing=False)
        while num_rounds < recipe.rounds.max and not recipe.rounds.reached(session.summary):
            num_rounds += 1
            session.advance(num_rounds, closing=False)
        if left := sorted(path.name for path in (folder / "stages").iterdir() if not belongs(path.name, session.summary)):
            say(f"left as they are, for this run has fewer rounds: {', '.join(left)}")
        session.advance(num_rounds, closing=True)
        session.summary["status"] = "complete"
        write_json(folder / "summary.json", session.summary)
    return session.summary


@contextmanager
def opened(recipe: Recipe) -> Iterator[Path]:
    """The run's folder, made where there is none and locked against a second process."""
    folder = recipe.folder
    try:
        (folder / "stages").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be made: {error.strerror}", file=folder, expected="a folder to write to") from None
    # The kernel lets go of the lock when the process ends, however it ends: a dead process never blocks the folder.
    with open(folder / ".lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(f"is in use by process {lock.read().strip()}", file=folder, fix="wait for it, or name another output") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        write_json(folder / "run.json", {"heed": heed.__version__, "identity": recipe.identity})
        write_text(folder / "recipe.yaml", recipe_text(recipe))
        yield folder


class Session:
    """A run while it goes on: the stages done so far, and what they add up to."""

    def __init__(self, recipe: Recipe, folder: Path, say: Say, display: bool) -> None:
        self.recipe, self.folder, self.say, self.display = recipe, folder, say, display
        self.records: dict[str, dict[str, Any]] = {}
        """What `stage.json` holds, of every stage done."""
        self.summary: dict[str, Any] = {}

    def advance(self, num_rounds: int, *, closing: bool) -> None:
        """Do what is left of the first `num_rounds` rounds or, once they are over, of the stages that close the run."""
        planned = plan(self.recipe, num_rounds)
        if self.records:
            self.sum_up(num_rounds)  # a round counts from its beginning, and its stages from theirs
        for number, each in enumerate(planned, start=1):
            if each.name in self.records or each.closing != closing:
                continue
            self.say(f"[{number}/{len(planned)}] {each.name}")
            own_hash, inputs = stage_hashes(self.recipe, planned, self.records)[each.name]
            started = {"name": each.name, "hash": own_hash, **settings(self.recipe, each.stage), "inputs": inputs}
            self.records[each.name] = self.left_over(started) or self.execute(each, started)
            self.sum_up(num_rounds)

    def sum_up(self, num_rounds: int) -> None:
        self.summary = summarise(self.records, num_rounds)
        write_json(self.folder / "summary.json", self.summary)

    def left_over(self, started: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of a stage that ran before and need not run again; what cannot be used is cleared away."""
        folder = self.folder / "stages" / started["name"]
        fix = f"remove the folder {folder}, and the stage runs again"
        before = read_json(folder / "config.json", "hash", fix=fix)
        record = read_json(folder / "stage.json", *RECORD, fix=fix)
        if before is None or before["hash"] != started["hash"]:
            if before is not None:
                self.say(f"  runs again: {', '.join(changes(before, started)) or 'heed itself'} changed")
            # Also where there is no config.json: what lies here may be what an interrupted removal left.
            shutil.rmtree(folder, ignore_errors=True)
        elif record is None:
            self.say("  goes on from where it was cut off")
        elif missing := [name for name in record["outputs"] if not (folder / name).exists()]:
            self.say(f"  runs again: {', '.join(missing)} is gone")
            shutil.rmtree(folder)
        else:
            self.say(f"  unchanged since it ran, skipped: {numbers(record['metrics'])}")
            return record
        return None

    def execute(self, each: PlannedStage, started: Mapping[str, Any]) -> dict[str, Any]:
        """Run a stage, resumed where it left a checkpoint, and write its record."""
        folder, kind = self.folder / "stages" / each.name, each.stage.kind
        write_json(folder / "config.json", started)
        inputs = {name: str(self.locate(source)) for name, source in each.inputs.items()}
        with Run(folder, label=kind, display=self.display, trackers=self.recipe.trackers) as live:
            reset_peak_memory()
            clock = time.monotonic()
            outcome = STAGES[kind].run(Context(self.recipe, each.stage.config, inputs, live, lambda text: self.say(f"  {text}")))
            free_memory()
            record = {
                **started,
                "sources": {name: str(source) for name, source in each.inputs.items()},
                "seconds": round(time.monotonic() - clock, 3),
                "peak_rss_gb": round(peak_memory_gb(), 3),
                "outputs": sorted(path.name for path in folder.iterdir() if path not in (folder / "config.json", live.checkpoint_path)),
                "metrics": outcome.metrics,
                "summary": outcome.summary,
                **({} if outcome.gathered is None else {"gathered": outcome.gathered}),
            }
            write_json(folder / "stage.json", record)
            live.checkpoint_path.unlink(missing_ok=True)
            self.say(f"  done in {record['seconds']:.0f} s at {record['peak_rss_gb']:.1f} GB: {numbers(outcome.metrics)}")
            live.checkpoint_if_due(False, lambda: None)
        return record

    def locate(self, source: Source | Output) -> str | Path:
        return source.spec if isinstance(source, Source) else self.folder / "stages" / source.stage / source.path


def changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two records of a stage, as `config.lr 1e-05 -> 2e-05`; inputs only by name."""
    found = []
    for key in dict.fromkeys((*now, *before)):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += changes(old, new, f"{prefix}{key}.")
        elif old != new and key != "hash":
            found.append(f"{prefix}{key}" if prefix == "inputs." else f"{prefix}{key} {old} -> {new}")
    return found


def summarise(records: Mapping[str, Mapping[str, Any]], num_rounds: int) -> dict[str, Any]:
    """What `summary.json` holds: what the whole run took, and the stages' own parts, of which the newest win."""
    seconds = round(sum(record["seconds"] for record in records.values()), 1)
    peak = max(record["peak_rss_gb"] for record in records.values())
    summary: dict[str, Any] = {"status": "incomplete", "seconds": seconds, "peak_rss_gb": peak, "rounds": num_rounds}
    for record in records.values():
        summary |= record["summary"]
    return summary


def numbers(metrics: Mapping[str, float]) -> str:
    """The first few, for a line of text; `stage.json` has them all."""
    return "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:7])


def reset_peak_memory() -> None:
    """Let the next `peak_memory_gb` speak of what comes from here on, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_gb() -> float:
    """Peak resident memory in GB: since `reset_peak_memory` on Linux, of the whole process elsewhere."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024 / 1e9


def free_memory() -> None:
    """Give back what the stage's models took."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
