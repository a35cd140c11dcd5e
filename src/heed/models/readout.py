"""The last layer, run in full for the tokens whose states are read; of the others it is asked for keys and values alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from heed.models.attention import attending

READOUT = "heed_readout"
"""Of `readout_attention`, to transformers."""


@dataclass(slots=True)
class Readout:
    """The tokens of rows `[R, W]` whose last states are read: S columns of each row, with some that nobody reads where it has fewer."""

    index: Tensor
    """Where they lie among the `R * W`, `[R, S]`."""
    visible: Tensor
    """Which columns each of them sees: `[R, 1, S, W]`."""
    states: tuple[Tensor, Tensor] | None = None
    """The last layer's keys and values of all tokens, `[R, heads, W, dim]`, once they are known."""

    @classmethod
    def of(cls, read: Tensor, visible: Tensor | None = None) -> Self | None:
        """Lay out what is to be read, marked True in `[R, W]`; None where the last layer had better run for all tokens.

        `visible [R, 1, W, W]` says what a token sees; where it is None, all that is not later.

        A layer takes `24 D^2` operations for a token, `6 D^2` of them for queries, keys and values. These are computed for all W
        columns, then the whole layer for S of them: less than for all where `6 W + 24 S < 24 W`.
        """
        (num_rows, width), size = read.shape, max(1, int(read.sum(1).max()))
        if 4 * size >= 3 * width:
            return None
        columns = read.logical_not().int().argsort(dim=1, stable=True)[:, :size]
        if visible is None:
            seen = (torch.arange(width, device=read.device) <= columns[..., None])[:, None]
        else:
            seen = visible.gather(2, columns[:, None, :, None].expand(-1, -1, -1, width))
        return cls(columns + width * torch.arange(num_rows, device=read.device)[:, None], seen)

    def take(self, x: Tensor) -> Tensor:
        """What belongs to these tokens: `[R or 1, W, ...]` -> `[R, S, ...]`."""
        index = self.index if len(x) > 1 else self.index % x.shape[1]
        # Indexing would do, but its backward pass is ten times slower.
        return F.embedding(index, x.flatten(0, 1)) if x.dim() == 3 else x.flatten()[index]

    def put(self, x: Tensor, width: int) -> Tensor:
        """Put states back at their tokens: `[R, S, D]` -> `[R, W, D]`, zeros elsewhere."""
        found = x.new_zeros(len(x) * width, x.shape[2])
        return found.index_copy_(0, self.index.flatten(), x.flatten(0, 1)).view(len(x), width, -1)


class _KeysAndValuesKnown(Exception):
    """Ends a forward of which nothing else is wanted."""


@contextmanager
def reading_out(layer: GradientCheckpointingLayer, config: Any, readout: Readout) -> Iterator[None]:
    """Within, this layer gives the states of the tokens that are read, and others that mean nothing: `[R, W, D]` -> `[R, W, D]`.

    It runs twice: for all tokens up to its attention, then for those that are read, with the keys and values of all.
    """
    width = readout.visible.shape[-1]

    def narrow(layer: GradientCheckpointingLayer, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        config._attn_implementation = READOUT
        checkpointing, layer.gradient_checkpointing = layer.gradient_checkpointing, False  # not a forward that never ends
        try:
            layer.forward(*args, **options, readout=readout)
        except _KeysAndValuesKnown:
            pass
        finally:
            layer.gradient_checkpointing = checkpointing
        told = {name: options[name] for name in ("position_ids", "position_embeddings") if options.get(name) is not None}
        taken = {name: tuple(map(readout.take, value)) if isinstance(value, tuple) else readout.take(value) for name, value in told.items()}
        return (readout.take(args[0]), *args[1:]), options | taken | {"readout": readout}

    def widen(layer: GradientCheckpointingLayer, args: tuple[Any, ...], states: Tensor) -> Tensor:
        return readout.put(states, width)

    before, after = layer.register_forward_pre_hook(narrow, with_kwargs=True), layer.register_forward_hook(widen)
    with attending(config, config._attn_implementation), before, after:
        yield


def readout_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    readout: Readout,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Keep the keys and values of all tokens and go no further; or, once they are kept, attend to them.

    `[R, heads, S, dim]` -> `[R, S, heads, dim]`.
    """
    assert kwargs.get("position_bias") is None, "positions are in the queries and keys"
    if readout.states is None:
        readout.states = key, value
        raise _KeysAndValuesKnown
    key, value = readout.states
    if (group := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=readout.visible, dropout_p=dropout, scale=scaling)
    return found.transpose(1, 2), None


AttentionInterface.register(READOUT, readout_attention)
