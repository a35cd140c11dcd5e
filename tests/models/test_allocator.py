"""Memory that tensors have left is not asked of the system again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from platform import libc_ver

import pytest

from tests.tiny import save_tiny_llama

PROBE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from resource import RUSAGE_SELF, getrusage
from statistics import median
import torch
from heed.data.render import Renderer
from heed.models import load_policy
from heed.rollout import LocalEngine
from heed.training.loop import TrainConfig, TrainState

def share_of_new_pages():
    "Of tensors of 640 MB, the largest 512 MB, all of which are freed together: the median of seven times."
    sizes, shares = [2**21] * 16 + [2**27], []
    for _ in range(7):
        before = getrusage(RUSAGE_SELF).ru_minflt
        [torch.ones(size) for size in sizes]
        shares.append((getrusage(RUSAGE_SELF).ru_minflt - before) * 4096 / (4 * sum(sizes)))
    return median(shares)

policy = load_policy(sys.argv[2])
before = share_of_new_pages()
if sys.argv[1] == "training":
    TrainState.create({"policy": policy}, TrainConfig(), num_updates=1)
else:
    LocalEngine(policy, Renderer(policy.tokenizer, eos_ids=policy.eos_ids, max_length=16), seed=0)
after = share_of_new_pages()
with ThreadPoolExecutor(1) as other:  # whose heap is of another kind, and has no room for this
    assert other.submit(lambda: torch.ones(2**25).sum()).result() == 2**25
print(before, after)
"""


@pytest.mark.skipif(libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
@pytest.mark.parametrize("work", ["training", "sampling"])
def test_tensors_take_the_pages_that_others_have_left(work: str, tmp_path: Path) -> None:
    # A process of its own: once told, the C library keeps to it. It begins as one that gives all larger pieces back at once,
    # since by default it learns, and what it has learnt so far is luck.
    command = [sys.executable, "-c", PROBE, work, str(save_tiny_llama(tmp_path))]
    said = subprocess.run(command, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}, capture_output=True, text=True, check=True)
    before, after = map(float, said.stdout.split())
    assert before > 0.9
    assert after < 0.05
