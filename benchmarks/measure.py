"""heed and its peers in alternation: every measurement is a process of its own, which prints one line of JSON.

A script calls `compare` for each case; its workers are the script itself in the virtual environment of a side, with
`--worker`. A worker loads everything, times nothing until `Meter.ready`, and calls `Meter.mark` at the end of every step:
the first step warms up, those after it are measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from results import ROOT, write_results

PYTHON = {
    "peers": ROOT / "benchmarks" / ".venv-peers" / "bin" / "python",
    "ppo": ROOT / "benchmarks" / ".venv-ppo" / "bin" / "python",
}
"""The interpreters with TRL 1.16, and with TRL 1.12, the last that has PPO."""
MARK = "measured: "


@dataclass(frozen=True, slots=True)
class Measured:
    """What one worker reports."""

    seconds: float
    """Per step."""
    tokens: float
    """Per step, counted alike on both sides."""
    items: int
    """Updates, or responses, of the measured steps."""
    idle_mb: float
    """Resident memory with imports done and weights loaded."""
    peak_mb: float
    """Highest resident memory from then on."""
    flops: float
    """Operations that one step needs."""
    matmul: float
    """Operations a second of a plain matrix product in the same process, the faster of before and after."""
    versions: str
    """Of what both sides stand on."""
    loss: float | None = None
    """Loss of the first step, where both sides must agree on it."""


@dataclass(slots=True)
class Meter:
    """The clock and the scales of one worker."""

    times: list[float] = field(default_factory=list)
    idle_mb: float = 0.0
    peak_mb: float = 0.0
    matmul: float = 0.0

    def ready(self, *models: Any) -> None:
        """These models are all that is loaded: measure the machine and the idle process, and start."""
        for model in models:
            for weight in model.parameters():
                weight.sum()  # weights lie in a mapped file until they are first read
        self.matmul = matmul_rate()
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        self.idle_mb = memory("VmRSS")
        self.mark()

    def restart(self) -> None:
        """The clock starts now; what was prepared since `ready` counts as memory but not as time."""
        self.times.clear()
        self.mark()

    def mark(self) -> None:
        """A step has ended."""
        self.times.append(time.perf_counter())
        self.peak_mb = memory("VmHWM")

    def result(self, *, tokens: int, items: int, flops: float, loss: float | None = None, warm: int = 1) -> Measured:
        """The mean step after the `warm` first ones; tokens, items and flops are those of all measured steps together."""
        steps = len(self.times) - 1 - warm
        matmul = max(self.matmul, matmul_rate())
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl"))
        seconds = (self.times[-1] - self.times[warm]) / steps
        return Measured(seconds, tokens / steps, items, self.idle_mb, self.peak_mb, flops / steps, matmul, versions, loss)


def memory(name: str) -> float:
    """A line of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def matmul_rate(size: int = 2048, repetitions: int = 3) -> float:
    """Operations a second of the fastest of a few fp32 matrix products."""
    import torch

    left, right, out = (torch.ones(size, size) for _ in range(3))
    best = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


@dataclass(frozen=True, slots=True)
class Comparison:
    """heed against one peer on one case."""

    name: str
    case: dict[str, Any]
    """What the workers are told, beside their side."""
    heed: str
    """Side of heed: a name the script's `SIDES` know."""
    peer: str
    venv: str = "peers"
    target: float | None = None
    """Wanted speed, as a multiple of the peer's."""
    memory_target: float | None = None
    """Wanted memory above the idle process, as a share of the peer's."""
    total_memory_target: float | None = None
    """Wanted peak of the whole process, as a share of the peer's."""


Worker = Callable[[dict[str, Any], Meter], Measured]


def main(
    script: str, comparisons: Callable[[argparse.Namespace], list[Comparison]], sides: Mapping[str, Worker], about: str, **defaults: int
) -> None:
    """The command line of a benchmark, and of its workers."""
    parser = arguments(about)
    parser.set_defaults(**defaults)
    options = parser.parse_args()
    if options.worker:
        task = json.loads(options.worker)
        print(MARK + json.dumps(asdict(sides[task["side"]](task["case"], Meter()))), flush=True)
        return
    need_peers(PYTHON)
    chosen = [c for c in comparisons(options) if options.only in c.name]
    rows = {}
    for comparison in chosen:
        rows[comparison.name] = row = compare(script, comparison, options)
        print_row(comparison.name, row)
        if not options.quick and not options.only:
            results = {"threads": options.threads, "repetitions": options.repetitions, "steps": options.steps, "comparisons": rows}
            write_results(f"{Path(script).stem}_{options.shape}", command_line(script), results)


def arguments(about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, help="processes for each side of a comparison")
    parser.add_argument("--steps", type=int, default=3, help="measured steps in each process")
    parser.add_argument("--shape", default="7m", help="7m, 30m or gpt2 (124M)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="comparisons whose name holds this")
    parser.add_argument("--quick", action="store_true", help="one small repetition, to see that it runs; writes no results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def need_peers(pythons: Mapping[str, Path]) -> None:
    """Exit where the peers are not installed."""
    missing = [str(python.parents[1]) for python in pythons.values() if not python.exists()]
    if missing:
        sys.exit(f"the peers are not installed: {' and '.join(missing)} missing; run `make peers`")


def compare(script: str, comparison: Comparison, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn, as often as asked; medians, and the ratio of each pair of neighbours."""
    heed, peer = [], []
    for number in range(1 if options.quick else options.repetitions):
        order = [(comparison.heed, heed), (comparison.peer, peer)]
        # Whoever runs first finds the machine cooler or the cache warmer: take turns.
        for side, measured in reversed(order) if number % 2 else order:
            measured.append(run_worker(script, side, comparison, options.threads))
    return summary(comparison, heed, peer)


def run_worker(script: str, side: str, comparison: Comparison, threads: int) -> Measured:
    """One measurement in a fresh process."""
    task = json.dumps({"side": side, "case": comparison.case})
    quiet = {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    env = os.environ | quiet | {"OMP_NUM_THREADS": str(threads), "TRL_EXPERIMENTAL_SILENCE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(PYTHON[comparison.venv]), script, "--worker", task]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        done = subprocess.run(command, env=env | {"TMPDIR": folder}, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        sys.exit(f"{comparison.name}, {side}: the worker failed\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return Measured(**json.loads(lines[-1].removeprefix(MARK)))


def summary(comparison: Comparison, heed: Sequence[Measured], peer: Sequence[Measured]) -> dict[str, Any]:
    """Medians of both sides and the ratios between them; exits where the two did not do the same work."""
    check_same_work(comparison, heed[0], peer[0])
    speedups = [speed(h) / speed(p) for h, p in zip(heed, peer, strict=True)]
    memories = [max(h.peak_mb - h.idle_mb, 1) / max(p.peak_mb - p.idle_mb, 1) for h, p in zip(heed, peer, strict=True)]
    return {
        "case": comparison.case,
        "peer": comparison.peer,
        "versions": peer[0].versions,
        "speedup": statistics.median(speedups),
        "speedup_range": [min(speedups), max(speedups)],
        "speedup_target": comparison.target,
        "memory": statistics.median(memories),
        "memory_range": [min(memories), max(memories)],
        "memory_target": comparison.memory_target,
        "total_memory_target": comparison.total_memory_target,
        "total_memory": statistics.median(h.peak_mb / p.peak_mb for h, p in zip(heed, peer, strict=True)),
        "heed": medians(heed),
        "peers": medians(peer),
    }


def speed(measured: Measured) -> float:
    """Tokens a second."""
    return measured.tokens / measured.seconds


def medians(measured: Sequence[Measured]) -> dict[str, Any]:
    of = {
        "seconds": [m.seconds for m in measured],
        "tokens_per_second": [speed(m) for m in measured],
        "peak_mb": [m.peak_mb for m in measured],
        "above_idle_mb": [m.peak_mb - m.idle_mb for m in measured],
        "share_of_matmul": [m.flops / m.seconds / m.matmul for m in measured],
        "matmul_gflops": [m.matmul / 1e9 for m in measured],
    }
    return {name: statistics.median(values) for name, values in of.items()} | {
        "tokens": measured[0].tokens,
        "items": measured[0].items,
        "loss": measured[0].loss,
    }


def check_same_work(comparison: Comparison, heed: Measured, peer: Measured) -> None:
    """Exit unless updates, tokens and the loss agree; where both sample, lengths are chance and tokens need only be close."""
    if heed.items != peer.items:
        sys.exit(f"{comparison.name}: heed did {heed.items} items and the peer {peer.items}")
    if heed.loss is None:
        if abs(heed.tokens / peer.tokens - 1) > 0.25:
            sys.exit(f"{comparison.name}: heed sampled {heed.tokens:.0f} tokens a step and the peer {peer.tokens:.0f}")
        return
    if heed.tokens != peer.tokens:
        sys.exit(f"{comparison.name}: heed saw {heed.tokens} tokens and the peer {peer.tokens}")
    assert peer.loss is not None
    if abs(heed.loss - peer.loss) > 1e-3 * max(1.0, abs(peer.loss)):
        sys.exit(f"{comparison.name}: the loss is {heed.loss:.6f} in heed and {peer.loss:.6f} in the peer")


def print_row(name: str, row: Mapping[str, Any]) -> None:
    heed, peer = row["heed"], row["peers"]
    low, high = row["speedup_range"]
    target = f"target {row['memory_target'] or '-'}" + (f", of total {row['total_memory_target']}" if row["total_memory_target"] else "")
    print(f"{name}, against {row['peer']}")
    print(f"  speed   {row['speedup']:.2f}x ({low:.2f} to {high:.2f})   target {row['speedup_target'] or '-'}")
    print(f"          heed {heed['seconds']:.3f} s, {heed['tokens_per_second']:,.0f} tokens/s, {heed['share_of_matmul']:.0%} of matmul")
    print(f"          peer {peer['seconds']:.3f} s, {peer['tokens_per_second']:,.0f} tokens/s, {peer['share_of_matmul']:.0%} of matmul")
    print(f"  memory  {row['memory']:.2f}x above idle, {row['total_memory']:.2f}x of total   {target}")
    print(f"          heed {heed['above_idle_mb']:.0f} MB above idle, peak {heed['peak_mb']:.0f} MB")
    print(f"          peer {peer['above_idle_mb']:.0f} MB above idle, peak {peer['peak_mb']:.0f} MB")
    if heed["loss"] is not None:
        print(f"  loss  heed {heed['loss']:.6f}, peer {peer['loss']:.6f}")
    sys.stdout.flush()


def command_line(script: str) -> str:
    return " ".join(["python", str(Path(script).resolve().relative_to(ROOT)), *sys.argv[1:]])
