"""Key/value caches with one slot per row, written in place, that unmodified Hugging Face models take as theirs."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, Cache

from heed.models.attention import is_replaceable
from heed.models.language_model import LanguageModel

RAGGED_ROWS = "heed_ragged_rows"
"""Of `ragged_attention`, to transformers."""
TOGETHER = 16
"""Rows that go through the attention of one call, as wide as the longest of them; 8 and 32 gain nothing beyond the noise."""


class Buffers:
    """Per layer `[slots, heads, capacity, dim]` keys and values, allocated once, at the model's first forward."""

    def __init__(self, num_slots: int, capacity: int) -> None:
        self.num_slots, self.capacity = num_slots, capacity
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def put(self, layer: int, slots: Tensor, columns: Tensor | slice, keys: Tensor, values: Tensor) -> None:
        """Store `[rows, heads, tokens, dim]`: the same columns of every slot, or one column for each."""
        if layer == len(self.keys):
            self.keys.append(self._allocate(keys))
            self.values.append(self._allocate(values))
        if isinstance(columns, Tensor):
            keys, values = keys[:, :, 0], values[:, :, 0]
        self.keys[layer][slots, :, columns] = keys
        self.values[layer][slots, :, columns] = values

    def copy(self, sources: Tensor, targets: Tensor, width: int) -> None:
        """Copy the first `width` columns of some slots into others."""
        for buffer in self.keys + self.values:
            buffer[targets, :, :width] = buffer[sources, :, :width]

    def _allocate(self, states: Tensor) -> Tensor:
        """Zeros, as a masked column weighs nothing, yet 0 * NaN would be NaN; on a CPU they take memory once they are written to."""
        shape = self.num_slots, states.shape[1], self.capacity, states.shape[3]
        if states.device.type != "cpu":
            return states.new_zeros(shape)
        size = math.prod(shape) * states.element_size()
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(pages, dtype=states.dtype).view(shape)


class SlotCache(Cache):
    """Prompt and response of a row side by side in one slot: the token at position p lies in column p.

    Rows in flight have the first slots; the last ones, which are free, hold prompts while they are read. A slot is ready for another row
    without clearing. Before each forward say what it brings: `read` or `decode`, which return the attention mask to pass.
    """

    def __init__(self, policy: LanguageModel, num_slots: int, capacity: int) -> None:
        # To transformers this cache is always empty: prompts start at column 0, and whatever comes later has its own mask.
        super().__init__(layers=[])
        self.device, self.dtype = policy.device, policy.head()[0].dtype
        self.columns = torch.arange(capacity, device=self.device)
        self.rows = self.prompts = Buffers(num_slots, capacity)
        self.attention = RAGGED_ROWS  # in place of the model's own where there are options
        self.parts: list[tuple[slice, int]] = []  # slots, and columns of the longest row in them
        self.in_parts = self.device.type == "cpu" and is_replaceable(policy.hf.base_model)
        self.num_live = 0
        self.width = 0  # columns that rows in flight have filled
        self.where: tuple[Tensor, Tensor | slice] = self.columns[:0], slice(0)  # of the next forward's tokens
        self.seen = slice(0), 0  # slots and columns that they attend to

    def free_prompts(self) -> Sequence[int]:
        """Slots that no row in flight has its prompt in."""
        return range(self.num_live, self.rows.num_slots)

    def read(self, num_prompts: int, start: int, end: int) -> Tensor | None:
        """The next forward reads columns `start` to `end` of prompts whose earlier columns are there."""
        num_slots = self.rows.num_slots
        self.where = torch.arange(num_slots - num_prompts, num_slots, device=self.device), slice(start, end)
        self.seen = slice(num_slots - num_prompts, num_slots), end
        return self._causal(self.columns[start:end], end)[None, None] if start else None

    def enter(self, prompt: Tensor, lengths: Tensor, width: int) -> None:
        """Rows whose prompts, `width` columns and less, have just been read are in flight: for each, which one of the prompts."""
        first, self.num_live = self.num_live, self.num_live + len(prompt)
        self.rows.copy(self.where[0][prompt], torch.arange(first, self.num_live, device=self.device), width)
        self.width = max(self.width, width)

    def decode(self, position: Tensor, step: Tensor) -> Tensor:
        """The next forward reads one token of each row in flight: its position, and how many tokens its response has."""
        self.width += 1
        self.where = torch.arange(self.num_live, device=self.device), position
        self.seen = slice(self.num_live), self.width
        if self.in_parts:
            ends = [last + 1 for last in position.tolist()]
            parts = [slice(i, i + TOGETHER) for i in range(0, len(ends), TOGETHER)]
            self.parts = [(part, max(ends[part])) for part in parts]
        return self._causal(position, self.width)[:, None, None]

    def options(self) -> dict[str, Any]:
        """What else to tell the model when it decodes."""
        return {"parts": self.parts} if self.in_parts else {}

    def evict(self, gaps: Tensor, movers: Tensor, position: Tensor, step: Tensor) -> None:
        """Rows have ended; `movers` now fill the `gaps` among the first slots, which `position` and `step` tell of."""
        if len(gaps):
            self.rows.copy(movers, gaps, int(position[gaps].max()))
        self.num_live = len(position)
        self.width = int(position.max()) if self.num_live else 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the new `[rows, heads, tokens, dim]` keys and values of a layer and return those to attend to."""
        self.rows.put(layer_idx, *self.where, key_states, value_states)
        slots, width = self.seen
        return self.rows.keys[layer_idx][slots, :, :width], self.rows.values[layer_idx][slots, :, :width]

    def _causal(self, positions: Tensor, width: int) -> Tensor:
        """What tokens at these positions attend to, `[positions, width]`: 0, and -inf in columns after their own."""
        mask = torch.zeros(len(positions), width, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(self.columns[:width] > positions[:, None], -torch.inf)


def ragged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None,
    parts: Sequence[tuple[slice, int]],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one token per row to the columns before its end: `[rows, heads, 1, dim]` -> `[rows, 1, heads, dim]`.

    `parts` are slices of rows with the columns that the longest of each has; the kernel for CPUs reads all columns that it is
    given, masked or not. Heads that share keys are adjacent, and go through the kernel as that many queries.
    """
    assert kwargs.get("position_bias") is None, "positions are in the queries and keys"
    rows, heads, _, dim = query.shape
    queries = query.view(rows, key.shape[1], -1, dim)
    found = [
        F.scaled_dot_product_attention(
            queries[part], key[part, :, :width], value[part, :, :width], attn_mask=attention_mask[part, ..., :width], scale=scaling
        )
        for part, width in parts
    ]
    return torch.cat(found).view(rows, 1, heads, dim), None


AttentionInterface.register(RAGGED_ROWS, ragged_attention)
