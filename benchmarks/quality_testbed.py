"""What the loop learns on the testbed, over several seeds: PPO, and beside it REINFORCE and DPO from the same start.

    python benchmarks/quality_testbed.py [--seeds 4] [--jobs 2] [--algorithms reinforce dpo] [--folder FOLDER]

Writes `benchmarks/results/quality_testbed.json` with commit, machine, seeds and command, and the table in
`docs/guide/testbed.md` comes from it. REINFORCE and DPO go on from the PPO run's own SFT model and judgements, so that
the comparison is of algorithms alone. Runs are in `runs/quality-COMMIT` and are
resumed, as every heed run is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from results import ROOT, runs_folder, write_results

RECIPES = {"ppo": "demo.yaml", "reinforce": "reinforce.yaml", "dpo": "dpo.yaml"}
RATES = ("helpful_rate", "harmful_rate", "fabrication_rate", "rude_rate", "kl_to_reference", "mean_length", "eos_rate", "distinct_2")


def run(algorithm: str, seed: int, folder: Path) -> dict[str, Any]:
    """One recipe with one seed, on one thread; returns its summary."""
    output = folder / f"{algorithm}-{seed}"
    start = folder / f"ppo-{seed}" / "stages"
    if algorithm != "ppo" and not output.exists():
        shared = [stage for stage in sorted(start.iterdir()) if stage.name.partition("-")[2] in SHARED[algorithm]]
        for stage in shared:
            shutil.copytree(stage, output / "stages" / stage.name)
    command = [sys.executable, "-m", "heed.cli.main", "run", str(ROOT / "recipes" / RECIPES[algorithm])]
    command += ["--output", str(output), "--set", f"seed={seed}"]
    with (folder / f"{algorithm}-{seed}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((output / "summary.json").read_text())


SHARED = {"reinforce": ("sft", "sample", "judge", "reward_model"), "dpo": ("sft", "sample", "judge")}


def table(summaries: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means over seeds of every policy's rates, with the spread; and of the reward model's accuracies."""
    policies = {name: [s["policies"][name] for s in summaries["ppo"]] for name in ("base", "sft", "best_of_n", "ppo")}
    policies |= {name: [s["policies"][name] for s in summaries[name]] for name in summaries if name != "ppo"}
    rows: dict[str, Any] = {}
    for name, measured in policies.items():
        rows[name] = {key: spread([m[key] for m in measured]) for key in RATES if measured[0].get(key) is not None}
        rows[name]["gold_reward"] = spread([m["gold_reward"]["mean"] for m in measured])
    for name, runs in summaries.items():
        wins = [s["win_rate"][f"{name}_vs_sft"] for s in runs]
        rows[name]["win_rate_over_sft"] = spread([w["mean"] for w in wins]) | {"lowest_bound": min(w["ci95"][0] for w in wins)}
    models = [s["reward_model"] for s in summaries["ppo"]]
    rows["reward_model"] = {
        "accuracy": spread([m["accuracy"]["mean"] for m in models]),
        "noise_ceiling": spread([m["noise_ceiling"] for m in models]),
        "oracle_accuracy": spread([m["oracle_accuracy"]["mean"] for m in models]),
        "share_of_noise_ceiling": spread([m["accuracy"]["mean"] / m["noise_ceiling"] for m in models]),
        "share_of_oracle": spread([m["accuracy"]["mean"] / m["oracle_accuracy"]["mean"] for m in models]),
        "longer_baseline": spread([m["longer_baseline"] for m in models]),
        "ece": spread([m["ece"] for m in models]),
    }
    rows["cost"] = {
        "seconds": spread([s["seconds"] for s in summaries["ppo"]]),
        "peak_rss_gb": spread([s["peak_rss_gb"] for s in summaries["ppo"]]),
    }
    return rows


def spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "lowest": min(values), "highest": max(values), "each": values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--algorithms", nargs="*", default=["reinforce", "dpo"], help="beside PPO")
    parser.add_argument("--folder", type=Path, default=ROOT / runs_folder("quality"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    seeds = list(range(options.seeds))
    with ThreadPoolExecutor(options.jobs) as pool:
        # PPO's runs come first: the others start from what they made.
        summaries = {"ppo": list(pool.map(lambda seed: run("ppo", seed, options.folder), seeds))}
        later = {name: [pool.submit(run, name, seed, options.folder) for seed in seeds] for name in options.algorithms}
        summaries |= {name: [job.result() for job in jobs] for name, jobs in later.items()}
    rows = table(summaries) | {"seeds": seeds}
    write_results("quality_testbed", " ".join(["python", *sys.argv]), rows)
    print(markdown(rows))


def markdown(rows: dict[str, Any]) -> str:
    """The table as the guide shows it."""
    columns = (
        "helpful_rate",
        "harmful_rate",
        "fabrication_rate",
        "rude_rate",
        "gold_reward",
        "kl_to_reference",
        "mean_length",
        "win_rate_over_sft",
    )
    lines = [
        "| policy | " + " | ".join(c.replace("_", " ").removesuffix(" rate") for c in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in (name for name in ("base", "sft", "best_of_n", *RECIPES) if name in rows):
        cells = [f"{rows[name][c]['mean']:.3f}" if c in rows[name] else "" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
