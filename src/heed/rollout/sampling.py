"""Drawing the next token: one uniform per row and token, no vocabulary-sized random tensor."""

from __future__ import annotations

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


def sample(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token per row, with its log-probability in nats.

    logits `[R, V]`, uniforms `[R]` -> tokens `[R]`, logprobs `[R]` in fp32. The log-probability is that of the distribution the token
    was drawn from: the policy at `temperature`, truncated and renormalised where `top_k` or `top_p` ask for it. Greedy decoding
    (temperature 0) has no such distribution and reports the policy's at temperature 1.
    """
    logits = logits.float()
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    probabilities = logits.softmax(-1)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        probabilities = truncate(probabilities, sampling.top_k, sampling.top_p)
        tokens = inverse_cdf(probabilities, uniforms)
    return tokens, probabilities.gather(-1, tokens[:, None])[:, 0].log()


def truncate(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the `top_k` likeliest tokens, then of those the smallest set with probability `top_p`, and renormalise; `[R, V]`.

    Tokens that tie with the k-th stay. 0 and 1 leave the distribution as it is. Source: Holtzman et al. 2020, section 3.1.
    """
    if 0 < top_k < probabilities.shape[-1]:
        threshold = probabilities.topk(top_k).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < threshold, 0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    if top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= top_p, 0))
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


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
