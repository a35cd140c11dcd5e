"""The two runs on real input: a reward model on human preference pairs, and RLHF on a pretrained story model.

    python benchmarks/quality_real_inputs.py [--folder FOLDER]

Needs `../shared/models/stories260k` and `../shared/data/hh-harmless-dev.jsonl.gz` beside the project. Writes
`benchmarks/results/hh_reward_model.json` and `benchmarks/results/stories.json`. Runs are in `runs/real-COMMIT` and are
resumed, as every heed run is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from results import ROOT, runs_folder, write_results

MODEL, PAIRS = "../shared/models/stories260k", "../shared/data/hh-harmless-dev.jsonl.gz"
REWARD_MODELS = {"default": [], "lr 1e-3": ["--lr", "1e-3"]}


def heed(*words: str) -> str:
    """Run a heed command from the project's root; returns it as a person would type it."""
    subprocess.run([sys.executable, "-m", "heed.cli.main", *words], cwd=ROOT, check=True)
    return " ".join(["heed", *words])


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def samples(folder: Path, count: int) -> list[dict[str, str]]:
    """The first response of the base model and of PPO to the first prompts."""
    (path,) = folder.glob("stages/*-evaluate/responses.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["policy"] in ("base", "ppo"):
            first.setdefault(row["prompt"], {}).setdefault(row["policy"], row["response"])
    return [{"prompt": prompt, **texts} for prompt, texts in list(first.items())[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=runs_folder("real"))
    folder = parser.parse_args().folder
    models = {}
    for number, (name, options) in enumerate(REWARD_MODELS.items()):
        output = folder / f"hh-rm-{number}"
        command = heed("rm", "--model", MODEL, "--data", PAIRS, "--output", str(output), *options)
        models[name] = {"command": command, **summary_of(ROOT / output)}
    write_results("hh_reward_model", "python benchmarks/quality_real_inputs.py", models)
    output = folder / "stories"
    command = heed("run", "recipes/stories.yaml", "--output", str(output))
    write_results("stories", command, {**summary_of(ROOT / output), "samples": samples(ROOT / output, 3)})


if __name__ == "__main__":
    main()
