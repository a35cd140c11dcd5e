"""What a reward is: the seam between optimising a policy and whatever says how good its responses are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from heed.errors import UserError
from heed.records import Rollout

Reward = Callable[[Sequence[Rollout]], Tensor]
"""Scores `[B]` float32, one for each of B rollouts; higher is better. It need not be differentiable."""


def checked_scores(scores: Tensor | Sequence[float], rollouts: Sequence[Rollout], source: str) -> Tensor:
    """The scores that `source` gave, as a detached float32 tensor `[B]` on the CPU.

    Raises UserError where there is not one score for each rollout or, naming the response, where a score is not finite.
    """
    checked = torch.as_tensor(scores).detach().to("cpu", torch.float32)
    if checked.shape != (len(rollouts),):
        raise UserError(f"{source} gave scores of shape {tuple(checked.shape)}", expected=f"one for each of {len(rollouts)} responses")
    if not checked.isfinite().all():
        i = int((~checked.isfinite()).nonzero()[0])
        where = f"response {i} of {len(rollouts)}, {rollouts[i].text[:60]!r} to prompt {rollouts[i].prompt.id}"
        raise UserError(f"{source} gave {float(checked[i])} to {where}", expected="a finite score")
    return checked
