"""From scores of responses to advantages of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from heed.core.head import wide


def shape_rewards(scores: Tensor, kl: Tensor, response_mask: Tensor, kl_coef: float) -> Tensor:
    """The reward of each response token: minus its KL, and on the last one the score of the whole response.

    `r_t = -kl_coef kl_t + [t is the last response token] score`; scores `[B]`, kl and response_mask `[B, T]` -> `[B, T]`, zeros off the
    mask. Raises ValueError where a row has no response token to carry its score. Ziegler et al. 2019, equation 2.
    """
    num_left = response_mask.flip(1).cumsum(1).flip(1)
    if (num_left[:, 0] == 0).any():
        raise ValueError("a row has no response token to carry its score")
    last = response_mask & (num_left == 1)
    return torch.where(response_mask, -kl_coef * kl, 0) + last * scores[:, None]


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns they imply, without gradient.

    `A_t = delta_t + gamma lambda A_t+`, `delta_t = r_t + gamma V_t+ - V_t`, `return_t = A_t + V_t`, where t+ is the next token that the
    mask counts (V and A are 0 after the last): tokens in between that the policy did not write, such as a tool's answer, take no time.
    rewards, values (before each token) and response_mask `[B, T]` -> advantages and returns `[B, T]`, zeros off the mask. Schulman et
    al. 2016, "High-dimensional continuous control using generalized advantage estimation", equation 16.
    """
    dtype = torch.promote_types(wide(rewards.dtype), values.dtype)
    advantages = torch.zeros_like(rewards, dtype=dtype)
    advantage = next_value = torch.zeros_like(advantages[:, 0])
    for t in response_mask.any(0).nonzero().flatten().flip(0).tolist():
        counts, value = response_mask[:, t], values[:, t]
        delta = rewards[:, t] + gamma * next_value - value
        advantage = torch.where(counts, delta + gamma * gae_lambda * advantage, advantage)
        next_value = torch.where(counts, value, next_value)
        advantages[:, t] = advantage
    return torch.where(response_mask, advantages, 0), torch.where(response_mask, advantages + values, 0)


def discounted_returns(rewards: Tensor, response_mask: Tensor, gamma: float) -> Tensor:
    """The discounted sum of the rewards from each token on, `G_t = r_t + gamma G_t+`: GAE with lambda 1 and no critic.

    Shapes as in `gae`. Sutton & Barto 2018, equation 3.9.
    """
    return gae(rewards, torch.zeros_like(rewards), response_mask, gamma, gae_lambda=1.0)[0]


def leave_one_out(scores: Tensor, group_size: int) -> Tensor:
    """Each score less the mean of the other scores of its group: an advantage with an unbiased baseline.

    `A_i = R_i - 1 / (G - 1) sum_{j != i} R_j = (R_i - mean) G / (G - 1)`; scores `[B]`, the G rows of one group adjacent -> `[B]`.
    Raises ValueError where G is below 2 or does not divide B. Kool et al. 2019; Ahmadian et al. 2024, "Back to basics" (RLOO).
    """
    groups = _groups(scores, group_size)
    return ((groups - groups.mean(1, keepdim=True)) * (group_size / (group_size - 1))).flatten().to(wide(scores.dtype))


def group_normalised(scores: Tensor, group_size: int) -> Tensor:
    """Each score less the mean of its group, in standard deviations of the group.

    `A_i = (R_i - mean) / (std + 1e-4)` with the unbiased standard deviation; shapes and errors as in `leave_one_out`. Shao et al. 2024,
    "DeepSeekMath" (GRPO), section 4.1.2.
    """
    groups = _groups(scores, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten().to(wide(scores.dtype))


def _groups(scores: Tensor, group_size: int) -> Tensor:
    if group_size < 2:
        raise ValueError(f"a group of {group_size} has no other scores to compare with; give 2 or more")
    if len(scores) % group_size:
        raise ValueError(f"{len(scores)} scores do not make groups of {group_size}")
    # In fp32 a group of equal scores has a mean beside them, and what little that is would count as a spread.
    return scores.view(-1, group_size).double()
