"""Where benchmark results go: one JSON file each, with the commit, machine and command that made them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """The short name of the commit that is checked out."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def runs_folder(name: str) -> Path:
    """Where a script's runs go, from the project's root: one folder a commit, as a run must not be resumed by other code."""
    return Path("runs") / f"{name}-{commit()}"


def write_results(name: str, command: str, results: Mapping[str, Any]) -> None:
    """Write `benchmarks/results/NAME.json`."""
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()}
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    record = {"commit": commit(), "machine": machine, "command": command, "results": results}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
