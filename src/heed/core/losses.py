"""Every training loss, as a scalar that is a sum divided by a global count: the losses of micro-batches add up to that of the batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from heed.core.kl import MAX_LOG_RATIO, k3
from heed.core.masking import masked_sum


def sft_loss(logprobs: Tensor, mask: Tensor, num_tokens: float | Tensor) -> Tensor:
    """The cross-entropy of the tokens that count, `-sum_t log p(x_t) / num_tokens`; logprobs and mask `[B, T]` -> scalar, nats."""
    return -masked_sum(logprobs, mask) / num_tokens


def pairwise_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    *,
    labels: Tensor | None = None,
    margins: Tensor | None = None,
    weights: Tensor | None = None,
    num_pairs: float | Tensor,
) -> Tensor:
    """The Bradley-Terry negative log-likelihood of preferences between pairs.

    `-sum_i w_i [y_i log sigma(d_i - m_i) + (1 - y_i) log sigma(m_i - d_i)] / num_pairs`, `d = chosen - rejected`; everything `[P]` ->
    scalar. The label y is the probability that `chosen` is better (default 1; a tie is 0.5), the margin m says by how much (default 0),
    w weighs (default 1). Ouyang et al. 2022 (InstructGPT), equation 1; margins as in Touvron et al. 2023 (Llama 2), equation 2.
    """
    difference = chosen_scores - rejected_scores
    if margins is not None:
        difference = difference - margins
    losses = -F.logsigmoid(difference)
    if labels is not None:
        losses = labels * losses - (1 - labels) * F.logsigmoid(-difference)
    if weights is not None:
        losses = weights * losses
    return losses.sum() / num_pairs


def kwise_loss(
    scores: Tensor,
    better: Tensor,
    worse: Tensor,
    labels: Tensor,
    weights: Tensor,
    pairs_per_ranking: Tensor,
    num_rankings: float | Tensor,
    margins: Tensor | None = None,
) -> Tensor:
    """The pairwise loss of rankings of any size: the mean over each ranking's C(K, 2) pairs, then over rankings.

    `sum_rankings 1 / C(K, 2) sum_pairs loss / num_rankings`. scores `[R]` hold each response once; better and worse `[P]` are indices
    into them; labels, weights, margins and pairs_per_ranking (the C(K, 2) of the ranking that a pair belongs to) `[P]` -> scalar. Ouyang
    et al. 2022 (InstructGPT), equation 1.
    """
    weights = weights / pairs_per_ranking
    return pairwise_loss(scores[better], scores[worse], labels=labels, margins=margins, weights=weights, num_pairs=num_rankings)


def reinforce_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor, num_tokens: float | Tensor) -> Tensor:
    """The policy gradient as a loss, `-sum_t A_t log p(x_t) / num_tokens`; everything `[B, T]` -> scalar. Williams 1992."""
    return -masked_sum(advantages * logprobs, mask) / num_tokens


class PolicyStats(NamedTuple):
    """Sums over the tokens that count, without gradient; divide by their number."""

    clipped: Tensor
    """How many tokens the clip kept from moving further."""
    ratio: Tensor
    """Sum of `p / p_old`."""
    approx_kl: Tensor
    """Sum of k3 estimates of KL(p_old || p), nats."""


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float,
    num_tokens: float | Tensor,
) -> tuple[Tensor, PolicyStats]:
    """The clipped surrogate objective, as a loss.

    `-sum_t min(rho_t A_t, clip(rho_t, 1 - clip_range, 1 + clip_range) A_t) / num_tokens`, `rho = p / p_old`; everything `[B, T]` ->
    scalar. The log-ratio is clamped to +-20. Schulman et al. 2017, "Proximal policy optimization algorithms", equation 7.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0)  # a ratio of 1 off the mask is never clipped
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    with torch.no_grad():
        stats = PolicyStats(
            clipped=(clipped > free).sum(),
            ratio=masked_sum(ratio, mask),
            approx_kl=masked_sum(k3(old_logprobs, logprobs), mask),
        )
    return masked_sum(torch.maximum(free, clipped), mask) / num_tokens, stats


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    value_clip_range: float | None,
    num_tokens: float | Tensor,
) -> Tensor:
    """Half the squared error of the critic, with no credit for moving further than the clip range from its old values.

    `sum_t max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / (2 num_tokens)`, or the first term alone where c is None; everything
    `[B, T]` -> scalar. The clip is that of OpenAI's `baselines`; Engstrom et al. 2020, "Implementation matters", section 3.
    """
    errors = (values - returns).square()
    if value_clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
        errors = torch.maximum(errors, (clipped - returns).square())
    return masked_sum(errors, mask) / 2 / num_tokens


def entropy_loss(entropy: Tensor, mask: Tensor, num_tokens: float | Tensor) -> Tensor:
    """The entropy bonus as a loss, `-sum_t H_t / num_tokens`; entropy and mask `[B, T]` -> scalar."""
    return -masked_sum(entropy, mask) / num_tokens


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    *,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    num_pairs: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Direct preference optimisation: the pairwise loss of the rewards that the policy implies, and their detached differences.

    `r = beta (log p(response) - log p_ref(response))`, loss `pairwise_loss(r_chosen, r_rejected)`; logprobs of whole responses, labels
    and weights `[P]` -> scalar, margins `[P]`. Rafailov et al. 2023, equation 7; soft labels as in Mitchell 2023 (conservative DPO).
    """
    chosen = beta * (chosen_logps - ref_chosen)
    rejected = beta * (rejected_logps - ref_rejected)
    loss = pairwise_loss(chosen, rejected, labels=labels, weights=weights, num_pairs=num_pairs)
    return loss, (chosen - rejected).detach()
