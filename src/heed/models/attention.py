"""Attention of ours in place of a transformer's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

IN_BLOCKS = "heed_in_blocks"
"""Of `blocked_attention`, to transformers."""
BLOCK = 128
"""Queries of a block at least, where a row has as many."""


def blocked_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention that looks left, `softmax(Q K^T scaling + mask) V`, for blocks of queries, each without the keys after its last.

    With a mask the kernel for CPUs works through all of its columns, seen or not; here nearly half of them are left out.
    Shapes: `[B, heads, T, dim]` and a mask `[B, 1, T, T]` of 0 and -inf -> `[B, T, heads, dim]`.
    """
    assert kwargs.get("position_bias") is None, "positions are in the queries and keys"
    if (group := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    size = -(-query.shape[2] // max(1, query.shape[2] // BLOCK))
    blocks = []
    for queries, mask in zip(reversed(query.split(size, dim=2)), reversed(attention_mask.split(size, dim=2)), strict=True):
        width = key.shape[2]
        found = F.scaled_dot_product_attention(queries, key, value, attn_mask=mask[..., :width], dropout_p=dropout, scale=scaling)
        blocks.append(found.transpose(1, 2))
        # Each cut from the one after it: gradients are then added up over what is left, not over all keys for every block.
        key, value = (x[:, :, : width - queries.shape[2]] for x in (key, value))
    return torch.cat(blocks[::-1], dim=1), None


def fastest_attention(body: Any, mask: Tensor) -> str:
    """The name of the attention that is fastest for a mask `[B, 1, T, T]` by which no token sees a later one."""
    in_blocks = mask.device.type == "cpu" and mask.shape[-1] >= 2 * BLOCK and is_replaceable(body)
    return IN_BLOCKS if in_blocks else body.config._attn_implementation


def is_replaceable(body: Any) -> bool:
    """Whether a transformer lets its attention be replaced, and has it at transformers' default."""
    return bool(getattr(body, "_supports_attention_backend", False)) and body.config._attn_implementation == "sdpa"


@contextmanager
def attending(config: Any, name: str) -> Iterator[None]:
    """Within, models of this configuration take the attention of this name for theirs."""
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(IN_BLOCKS, blocked_attention)
