"""One training run on disk and on screen: metrics, checkpoints, progress with ETA, and a safe stop."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from heed.errors import Interrupted, UserError

Tracker = Literal["tensorboard", "wandb", "trackio"]
PLAIN_PROGRESS_SECONDS = 10.0
"""How often progress is printed where there is no terminal to draw a bar on."""


class Run:
    """A folder with `metrics.jsonl` and `checkpoint.safetensors`, open while a training goes on.

    As a context manager it turns SIGINT and SIGTERM into a request to stop after the update at hand, or the iteration of
    a policy gradient: `checkpoint_if_due` then saves and raises `Interrupted`. A second signal ends the process at once;
    nothing on disk is ever half written.
    """

    def __init__(self, folder: Path, *, label: str = "", display: bool = True, trackers: Sequence[Tracker] = ()) -> None:
        self.folder = folder
        self.label = label or folder.name
        self._display = Display(self.label) if display else None
        self._trackers = trackers
        self._log_to: list[Callable[[Mapping[str, float], int], None]] = []
        self._stop_signal: int | None = None
        self._handlers: dict[int, object] = {}
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log_to = [open_tracker(name, self.folder) for name in self._trackers]
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._request_stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        if self._display:
            self._display.close()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop_signal = number
        for each, handler in self._handlers.items():
            signal.signal(each, handler)  # pyright: ignore[reportArgumentType]

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def log(self, step: int, total: int, metrics: Mapping[str, float], *, show: Sequence[str] = ()) -> None:
        """Append one row to `metrics.jsonl`, pass it to the trackers, and move the progress display."""
        row = {"step": step, **metrics, "seconds": round(time.monotonic() - self._started, 3)}
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for track in self._log_to:
            track(metrics, step)
        self.progress(step, total, "  ".join(f"{name} {metrics[name]:.3g}" for name in show if name in metrics))

    def progress(self, done: int, total: int, note: str = "") -> None:
        if self._display:
            self._display.show(done, total, note)

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, object]) -> None:
        """Replace the checkpoint in one atomic step, so that a kill at any moment leaves the old one or the new one."""
        save_atomically(self.checkpoint_path, tensors, {"values": json.dumps(values)})

    def load(self) -> tuple[dict[str, Tensor], dict[str, object]] | None:
        """The checkpoint, or None where there is none; metrics logged after it are dropped, to be logged again."""
        if not self.checkpoint_path.exists():
            if self.metrics_path.exists():
                self._keep_metrics(until=0)
            return None
        tensors, metadata = load_tensors(self.checkpoint_path)
        values = json.loads(metadata["values"])
        self._keep_metrics(until=values["step"])
        return tensors, values

    def last_metrics(self) -> dict[str, float]:
        """The newest row logged, without its step and time; empty where there is none."""
        rows = self.metrics_path.read_text(encoding="utf-8").splitlines() if self.metrics_path.exists() else []
        return {name: value for name, value in json.loads(rows[-1]).items() if name not in ("step", "seconds")} if rows else {}

    def _keep_metrics(self, until: int) -> None:
        if not self.metrics_path.exists():
            return
        kept = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True):
            # A kill can cut the last line short; what cannot be complete is past the checkpoint.
            if line.endswith("\n") and json.loads(line)["step"] <= until:
                kept.append(line)
        temporary = self.metrics_path.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.metrics_path)

    def checkpoint_if_due(self, due: bool, save: Callable[[], None]) -> None:
        """Save when due or when asked to stop; after a requested stop raise `Interrupted`."""
        if due or self._stop_signal is not None:
            save()
        if self._stop_signal is not None:
            raise Interrupted(self._stop_signal)


def save_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name, flush it to disk, then rename it into place."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"could not be written ({error})", file=path, fix="free disk space, then run the same command again") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, on the CPU, and its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"is not a readable checkpoint ({error})", file=path, fix="delete it to start this stage afresh") from error


class Display:
    """Progress with ETA: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._console = Console(stderr=True)
        self._first: tuple[float, int] | None = None
        """When progress was first shown, and how far it was: the pace is measured from there."""
        self._last_line = 0.0
        self._progress: Progress | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"))
            self._progress = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=self._console)
            self._task = self._progress.add_task(label, total=None, note="")
            self._progress.start()

    def show(self, done: int, total: int, note: str) -> None:
        if self._progress:
            self._progress.update(self._task, completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        if now - self._last_line < PLAIN_PROGRESS_SECONDS and done < total:
            return
        self._last_line = now
        since, before = self._first
        eta = f"  ETA {(total - done) * (now - since) / (done - before):.0f} s" if before < done < total else ""
        print(f"  {self.label} {done}/{total}{eta}  {note}", flush=True)

    def close(self) -> None:
        if self._progress:
            self._progress.stop()


def open_tracker(name: Tracker, folder: Path) -> Callable[[Mapping[str, float], int], None]:
    """A function that sends a row of metrics to an experiment tracker."""
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder / "tensorboard"))

            def write(metrics: Mapping[str, float], step: int) -> None:
                for key, value in metrics.items():
                    writer.add_scalar(key, value, step)
                writer.flush()

            return write
        module = __import__(name)
    except ImportError as error:
        raise UserError(f"tracker {name!r} is not installed", fix="pip install 'heed-rlhf[track]'") from error
    module.init(project="heed", name=folder.name)
    return lambda metrics, step: module.log(dict(metrics), step=step)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The process-wide random states, which only dropout draws from."""
    states = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["rng.cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_rng_state(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)
