"""Log-probabilities of given tokens, and the one place where hidden states meet the tokens they predict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from heed.core.head import Head, autocast_head, wide

KEPT_ELEMENTS = 2**24
"""How many logits wait for the backward pass unless told: 64 MB in fp32, and a quarter less time in the head."""


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    with_entropy: bool = False,
    chunk_elements: int | None = None,
    kept_elements: int = KEPT_ELEMENTS,
) -> tuple[Tensor, Tensor | None]:
    """The log-probability of each target token and, if asked for, the entropy in nats of the distribution it is drawn from.

    `logprobs_n = log p_n[targets_n]` and `entropy_n = -sum_v p_nv log p_nv`, `p = softmax((hidden @ weight.T + bias) / temperature)`.
    hidden `[N, D]`, weight `[V, D]`, targets `[N]`, bias `[V]` -> `[N]` and `[N]` or None, in fp32 or wider, both differentiable in
    hidden, weight and bias. `chunk_elements` logits (one token's at least; by default `head.CHUNK_ELEMENTS`) are computed at a
    time; at most `kept_elements` wait for backward, which computes the others again.
    """
    head = autocast_head(hidden, weight, bias, temperature)
    num_kept = kept_elements // weight.shape[0] if torch.is_grad_enabled() else 0
    return _TokenLogprobs.apply(*head, targets, with_entropy, chunk_elements, num_kept)  # pyright: ignore[reportReturnType]


def sequence_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`token_logprobs` of whole sequences, each entry at its target token: only targets that the mask counts meet the head.

    `logprobs_bt = log p(ids_bt | ids_b,<t)`, from the hidden state at `t - 1`. hidden `[B, T, D]`, weight `[V, D]`, ids and boolean
    mask `[B, T]` -> `[B, T]` and `[B, T]` or None, zeros off the mask. Raises ValueError where the mask counts position 0, which
    nothing predicts.
    """
    logprobs, entropy = token_logprobs(
        predicting(hidden, mask), weight, ids[mask], bias=bias, temperature=temperature, with_entropy=with_entropy
    )
    return at_targets(logprobs, mask), None if entropy is None else at_targets(entropy, mask)


def before_targets(hidden: Tensor) -> Tensor:
    """The hidden state that predicts each token, placed at that token: `[B, T, D]` -> `[B, T, D]`, shifted right by one, zeros at 0."""
    return torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)


def predicting(hidden: Tensor, mask: Tensor) -> Tensor:
    """The hidden states `[N, D]` that predict the N targets counted by the mask `[B, T]`, in row order; ValueError at position 0."""
    if mask[:, 0].any():
        raise ValueError("the mask counts position 0, which no hidden state predicts")
    # A mask would do for an index, but the backward pass of that is ten times slower.
    return hidden.flatten(0, 1).index_select(0, mask.flatten().nonzero()[:, 0] - 1)


def at_targets(values: Tensor, mask: Tensor) -> Tensor:
    """N values back at the N targets counted by the mask: `[N]` -> `[B, T]`, zeros elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        temperature: float,
        targets: Tensor,
        with_entropy: bool,
        chunk_elements: int | None,
        num_kept: int,
    ) -> tuple[Tensor, Tensor | None]:
        head = Head(hidden, weight, bias, temperature)
        logprobs = hidden.new_empty(targets.shape, dtype=wide(hidden.dtype))
        entropy = torch.empty_like(logprobs) if with_entropy else None
        kept: dict[int, Tensor] = {}
        for rows in head.chunks(chunk_elements):
            log_p = head.log_p(rows)
            logprobs[rows] = log_p.gather(1, targets[rows, None]).squeeze(1)
            if rows.start + len(log_p) <= num_kept:
                kept[rows.start] = log_p
            if entropy is not None:
                entropy[rows] = -log_p.exp().mul_(log_p).sum(1)
        ctx.save_for_backward(hidden, weight, bias, targets, entropy)
        ctx.temperature, ctx.chunk_elements, ctx.kept = temperature, chunk_elements, kept
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropy = ctx.saved_tensors
        head = Head(hidden, weight, bias, ctx.temperature)
        grad_target = torch.zeros_like(targets, dtype=wide(hidden.dtype)) if grad_logprobs is None else grad_logprobs

        def grad_logits(rows: slice) -> Tensor:
            """`g (onehot - p) - h p (log p + entropy)` for the gradients g of the log-probabilities and h of the entropies."""
            # Taken out, for it is overwritten: a second backward pass through the same graph computes it again.
            log_p = ctx.kept.pop(rows.start, None)
            log_p = head.log_p(rows) if log_p is None else log_p
            g = grad_target[rows, None]
            if grad_entropy is None:
                grad = log_p.exp_().mul_(-g)
            else:
                p = log_p.exp()
                grad = log_p.add_(entropy[rows, None]).mul_(grad_entropy[rows, None]).add_(g).mul_(p).neg_()
            return grad.scatter_add_(1, targets[rows, None], g)

        return *head.backward(ctx.chunk_elements, ctx.needs_input_grad, grad_logits), None, None, None, None, None
