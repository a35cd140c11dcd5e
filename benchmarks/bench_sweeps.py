"""How both sides scale: sampling by batch, response length, samples per prompt, vocabulary and prompt length; DPO by vocabulary and batch.

    python benchmarks/bench_sweeps.py [--quick] [--repetitions 1] [--steps 2] [--shape 7m] [--only vocabulary]

Every point is a comparison as in `bench_rollout.py` (against `generate`) or `bench_dpo.py` (against TRL's DPOTrainer, reference included),
with one quantity changed and the others held. `table.py` plots them.
"""

from __future__ import annotations

import argparse
from typing import Any

import bench_dpo
import bench_rollout
from inputs import model_folder
from measure import Comparison, main

ROLLOUT: dict[str, Any] = {"prompts": 32, "ragged": True, "prompt_tokens": 200, "new_tokens": 64, "n": 1}
SHARED: dict[str, Any] = {"prompts": 8, "ragged": False, "prompt_tokens": 256, "new_tokens": 32, "n": 4}
DPO: dict[str, Any] = {"batch": 4, "reference": "included"}
SWEEPS: dict[str, tuple[dict[str, Any], str, tuple[int, ...]]] = {
    "sampling by batch": (ROLLOUT, "prompts", (1, 8, 32, 128)),
    "sampling by response length": (ROLLOUT, "new_tokens", (16, 64, 128, 256)),
    "sampling by samples per prompt": (SHARED, "n", (1, 2, 4, 8, 16)),
    "sampling by vocabulary": (ROLLOUT, "vocabulary", (2048, 8192, 32768, 65536)),
    "sampling by prompt length": (SHARED, "prompt_tokens", (64, 128, 256, 512)),
    "DPO by pairs in a step": (DPO, "batch", (1, 2, 4, 8)),
    "DPO by vocabulary": (DPO, "vocabulary", (2048, 8192, 32768)),
}
"""What is held, what changes, and to what."""


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """Every point of every sweep; when quick, the first of two."""
    found = []
    for name, (held, changed, values) in list(SWEEPS.items())[:: 6 if options.quick else 1]:
        for value in values[:1] if options.quick else values:
            case = {"shape": options.shape, "steps": 1 if options.quick else options.steps, **held, changed: value}
            peer = "TRL DPOTrainer" if held is DPO else "generate"
            heed = "heed DPO" if held is DPO else "heed sampling"
            found.append(Comparison(f"{name}: {value}", case | {"sweep": name, "changed": changed}, heed, peer))
            model_folder(options.shape, case.get("vocabulary"))
    return found


SIDES = {
    "heed sampling": bench_rollout.heed,
    "generate": bench_rollout.generate,
    "heed DPO": bench_dpo.heed,
    "TRL DPOTrainer": bench_dpo.dpo_trainer,
}

if __name__ == "__main__":
    main(__file__, comparisons, SIDES, __doc__ or "", repetitions=1)
