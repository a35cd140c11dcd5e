"""Several rewards as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heed.errors import require
from heed.records import Rollout
from heed.rewards.protocol import Reward, checked_scores


def weighted_sum(parts: Sequence[tuple[float, Reward]]) -> Reward:
    """The reward sum_i w_i r_i; raises UserError without parts and, when scoring, where a part or the sum is not finite."""
    require(len(parts) > 0, "parts", list(parts), "one weighted reward or more")

    def reward(rollouts: Sequence[Rollout]) -> Tensor:
        total = torch.zeros(len(rollouts))
        for number, (weight, part) in enumerate(parts, start=1):
            total += weight * checked_scores(part(rollouts), rollouts, f"part {number} of the weighted reward")
        return checked_scores(total, rollouts, "the weighted reward")

    return reward
