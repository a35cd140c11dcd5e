"""Key/value caches with one slot per row, written in place, that unmodified Hugging Face models take as theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from heed.models.language_model import LanguageModel


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
        # zeros, not empty: a masked column weighs nothing, yet 0 * NaN would be NaN
        return states.new_zeros(self.num_slots, states.shape[1], self.capacity, states.shape[3])


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
        self.options: dict[str, Any] = {}  # what else to tell the model when it decodes
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
        return self._causal(position, self.width)[:, None, None]

    def evict(self, gaps: Tensor, movers: Tensor, position: Tensor, step: Tensor) -> None:
        """Rows have ended; `movers` now fill the `gaps` among the first slots, which `position` and `step` tell of."""
        self.rows.copy(movers, gaps, self.width)
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
