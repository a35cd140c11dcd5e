"""Drawing the next token: one uniform per row and token, no vocabulary-sized random tensor."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from heed.records import Sampling

BLOCK = 64
"""Tokens summed together before the cumulative sum over the vocabulary, which is slow."""


def row_uniforms(seed: int, call: int, num_rows: int, num_tokens: int) -> Tensor:
    """The uniforms in [0, 1) that decide each token of each row, `[rows, tokens]` in fp64.

    Row r reads the counter-based stream Philox(key = seed, counter = (0, r, call, 0)): its numbers depend on neither the number of
    rows nor the number of tokens asked for, and no two rows or calls share any. Source: Salmon et al. 2011, Parallel Random Numbers.
    """
    streams = (np.random.Generator(np.random.Philox(key=seed, counter=[0, row, call, 0])) for row in range(num_rows))
    return torch.from_numpy(np.stack([stream.random(num_tokens) for stream in streams]))


def request_uniforms(seed: int, prompts: Sequence[tuple[int, ...]], num_samples: int, num_tokens: int) -> Tensor:
    """The uniforms of requests with a seed of their own, `[prompts * samples, tokens]` in fp64.

    Sample i of a prompt reads Philox(key = (seed, digest of the prompt's ids), counter = (0, i, 0, 1)): equal requests draw equal
    numbers, whatever else is in the call, and none of them those of `row_uniforms`.
    """
    keys = [(seed, int.from_bytes(blake2b(np.array(ids, dtype="<i8").tobytes(), digest_size=8).digest())) for ids in prompts]
    streams = (
        np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64), counter=[0, sample, 0, 1]))
        for key in keys
        for sample in range(num_samples)
    )
    return torch.from_numpy(np.stack([stream.random(num_tokens) for stream in streams]))


def sample(logits: Tensor, uniforms: Tensor, sampling: Sampling, seen: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row: tokens `[R]`, their log-probabilities in nats `[R]`, and the distributions drawn from `[R, V]`, in fp32.

    logits `[R, V]`, uniforms `[R]`, seen `[R, V]` True where prompt or response hold the token (read for a repetition penalty only). The
    distribution is the policy's, penalised, at `temperature`, truncated and renormalised. Greedy decoding (temperature 0) draws from
    none; it takes the likeliest token and reports the penalised policy's distribution at temperature 1.
    """
    logits = logits.float()
    if sampling.repetition_penalty != 1:
        assert seen is not None, "a repetition penalty needs the tokens seen"
        logits = torch.where(seen, penalised(logits, sampling.repetition_penalty), logits)
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    probabilities = logits.softmax(-1)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        probabilities = truncate(probabilities, sampling)
        tokens = inverse_cdf(probabilities, uniforms)
    return tokens, probabilities.gather(-1, tokens[:, None])[:, 0].log(), probabilities


def penalised(logits: Tensor, penalty: float) -> Tensor:
    """`z / penalty` where z > 0 and `z * penalty` elsewhere: less likely where the penalty is above 1. Source: Keskar et al. 2019, 4.1."""
    return torch.where(logits > 0, logits / penalty, logits * penalty)


def truncate(probabilities: Tensor, sampling: Sampling) -> Tensor:
    """Leave out what `top_k`, `top_p` and `min_p` leave out, in this order, and renormalise; `[R, V]`.

    The k likeliest tokens stay (with those that tie with the k-th), then of those the smallest set with probability `top_p`, then of
    those the tokens with `min_p` times the likeliest one's probability. Source: Holtzman et al. 2020, 3.1; Nguyen et al. 2024, 3 (min-p).
    """
    whole = probabilities
    if 0 < sampling.top_k < probabilities.shape[-1]:
        threshold = probabilities.topk(sampling.top_k).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < threshold, 0)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        cumulative = ordered.cumsum(-1)
        kept = ordered.masked_fill(cumulative - ordered >= sampling.top_p * cumulative[:, -1:], 0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, kept)
    if sampling.min_p > 0:
        probabilities = probabilities.masked_fill(probabilities < sampling.min_p * probabilities.amax(-1, keepdim=True), 0)
    return whole if probabilities is whole else probabilities / probabilities.sum(-1, keepdim=True)


def inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token t with `F(t - 1) <= u F(V) < F(t)`, F the cumulative sum in fp64: exact sampling; `[R, V]`, `[R]` -> `[R]`.

    Finds the block of tokens first and then the token in it. A token of probability 0 is never drawn.
    """
    size = probabilities.shape[-1]
    if size % BLOCK:
        probabilities = F.pad(probabilities, (0, -size % BLOCK))
    blocks = probabilities.unflatten(-1, (-1, BLOCK))
    cumulative = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    block, rest = _locate(cumulative, uniforms[:, None] * cumulative[:, -1:])
    inside = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    # The block's own sum, rounded apart from these, may lie a hair above them.
    token, _ = _locate(inside, torch.minimum(rest, inside[:, -1:].nextafter(torch.zeros_like(rest))))
    return (block * BLOCK + token)[:, 0].clamp_(max=size - 1)


def _locate(cumulative: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose cumulative sum `[R, N]` exceeds the target `[R, 1]`, and how far the target is above the sum before it."""
    # Only NaN is above no target; the engine reports it, and here it just stays within bounds.
    index = torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[-1] - 1)
    return index, target - F.pad(cumulative, (1, 0)).gather(-1, index)
