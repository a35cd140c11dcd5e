"""The Kullback-Leibler divergence KL(policy || reference): estimates from one sampled token, exact values, and its controller."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from heed.core.head import Head, autocast_head, wide
from heed.core.logprobs import at_targets, predicting

MAX_LOG_RATIO = 20.0
"""Log-ratios are held within +-20 before they are exponentiated, so that one absurd token cannot make an infinity."""


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The unbiased estimate `log p(x) - log q(x)` of KL(p || q) for x drawn from p, elementwise, negative at times.

    For rewards and metrics: its gradient has expectation 0, so in a loss it does nothing but add noise. Schulman 2020, "Approximating
    KL divergence".
    """
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The biased, never negative estimate `(log p(x) - log q(x))^2 / 2` of KL(p || q) for x drawn from p, elementwise.

    The estimate to put into a loss: `E_p[(log p - log q) grad log p]` is exactly the gradient of KL(p || q). Schulman 2020.
    """
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The unbiased, never negative estimate `exp(-r) - 1 + r`, `r = log p(x) - log q(x)`, of KL(p || q) for x drawn from p, elementwise.

    For rewards and metrics: in a loss its gradient is that of KL(q || p) instead. r is clamped to +-20. Schulman 2020.
    """
    log_ratio = (logprobs - ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(-log_ratio) + log_ratio


def exact_kl(
    hidden: Tensor,
    weight: Tensor,
    ref_hidden: Tensor,
    ref_weight: Tensor,
    *,
    bias: Tensor | None = None,
    ref_bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk_elements: int | None = None,
) -> Tensor:
    """KL(policy || reference) of the next-token distributions over the whole vocabulary, in nats per token.

    `KL_n = sum_v p_nv (log p_nv - log q_nv)`, `p = softmax((hidden @ weight.T + bias) / temperature)`, q likewise from the reference.
    hidden `[N, D]`, weight `[V, D]`, ref_hidden `[N, E]`, ref_weight `[V, E]` -> `[N]` in fp32 or wider, differentiable in hidden,
    weight and bias; the reference is a constant. Chunked as `token_logprobs`.
    """
    head = autocast_head(hidden, weight, bias, temperature)
    reference = autocast_head(ref_hidden, ref_weight, ref_bias, temperature)
    return _ExactKL.apply(*head, *reference[:3], chunk_elements)  # pyright: ignore[reportReturnType]


def sequence_exact_kl(
    hidden: Tensor,
    weight: Tensor,
    ref_hidden: Tensor,
    ref_weight: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    ref_bias: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """`exact_kl` of whole sequences, each entry at the token drawn from the two distributions that it compares.

    hidden `[B, T, D]`, ref_hidden `[B, T, E]`, boolean mask `[B, T]` -> `[B, T]`, zeros off the mask. Raises ValueError where the
    mask counts position 0.
    """
    hidden, ref_hidden = predicting(hidden, mask), predicting(ref_hidden, mask)
    kl = exact_kl(hidden, weight, ref_hidden, ref_weight, bias=bias, ref_bias=ref_bias, temperature=temperature)
    return at_targets(kl, mask)


def next_kl_coef(kl_coef: float, observed_kl: float, target: float, horizon: float, num_samples: int) -> float:
    """The coefficient that steers the KL towards its target, after `num_samples` more episodes.

    `kl_coef (1 + clip(observed_kl / target - 1, -0.2, 0.2) num_samples / horizon)`; KL and target in nats per response, the horizon in
    episodes. Ziegler et al. 2019, "Fine-tuning language models from human preferences", section 2.2.
    """
    error = min(max(observed_kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_samples / horizon)


class _ExactKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        temperature: float,
        ref_hidden: Tensor,
        ref_weight: Tensor,
        ref_bias: Tensor | None,
        chunk_elements: int | None,
    ) -> Tensor:
        head = Head(hidden, weight, bias, temperature)
        reference = Head(ref_hidden, ref_weight, ref_bias, temperature)
        kl = hidden.new_empty(hidden.shape[0], dtype=wide(hidden.dtype))
        for rows in head.chunks(chunk_elements):
            log_p, log_ratio = _log_p_and_ratio(head, reference, rows)
            kl[rows] = log_p.exp_().mul_(log_ratio).sum(1)
        ctx.save_for_backward(hidden, weight, bias, ref_hidden, ref_weight, ref_bias, kl)
        ctx.temperature, ctx.chunk_elements = temperature, chunk_elements
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_kl: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, ref_hidden, ref_weight, ref_bias, kl = ctx.saved_tensors
        head = Head(hidden, weight, bias, ctx.temperature)
        reference = Head(ref_hidden, ref_weight, ref_bias, ctx.temperature)

        def grad_logits(rows: slice) -> Tensor:
            """`g p (log p - log q - KL)`."""
            log_p, log_ratio = _log_p_and_ratio(head, reference, rows)
            return log_ratio.sub_(kl[rows, None]).mul_(grad_kl[rows, None]).mul_(log_p.exp_())

        return *head.backward(ctx.chunk_elements, ctx.needs_input_grad, grad_logits), None, None, None, None, None


def _log_p_and_ratio(head: Head, reference: Head, rows: slice) -> tuple[Tensor, Tensor]:
    """`log p` and `log p - log q` of some tokens, `[n, V]` each."""
    log_p = head.log_p(rows)
    return log_p, log_p - reference.log_p(rows)
