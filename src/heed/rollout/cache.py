"""A key/value cache with one slot per row, written in place, that unmodified Hugging Face models take as theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class SlotCache(Cache):
    """Per layer `[slots, heads, capacity, dim]` keys and values, allocated once, at the model's first forward.

    The token at position p of a row lies in column p of its slot: rows of any length sit side by side, and a slot is ready for
    another row without clearing. Before each forward say what it brings, `take_prompts` or `take_tokens`.
    """

    def __init__(self, num_slots: int, capacity: int) -> None:
        # To transformers this cache is always empty: prompts start at column 0, and with single tokens comes their own mask.
        super().__init__(layers=[])
        self.num_slots, self.capacity = num_slots, capacity
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._prompts: tuple[int, Tensor] | None = None
        self._positions = torch.empty(0, dtype=torch.long)
        self._width = 0

    def take_prompts(self, first_slot: int, source: Tensor) -> None:
        """The next forward reads whole prompts, right-padded: slot `first_slot + i` becomes a copy of its row `source[i]`."""
        self._prompts = first_slot, source

    def take_tokens(self, positions: Tensor, width: int) -> None:
        """The next forward reads one token for each of the first slots, at `positions`, and attends to the first `width` columns."""
        self._prompts = None
        self._positions, self._width = positions, width
        self._slots = torch.arange(len(positions), device=positions.device)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the new `[rows, heads, tokens, dim]` keys and values of a layer and return those to attend to."""
        if layer_idx == len(self.keys):
            self.keys.append(self._allocate(key_states))
            self.values.append(self._allocate(value_states))
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self._prompts is not None:
            first, source = self._prompts
            where = slice(first, first + len(source)), slice(None), slice(key_states.shape[2])
            keys[where], values[where] = key_states[source], value_states[source]
            return key_states, value_states
        keys[self._slots, :, self._positions] = key_states[:, :, 0]
        values[self._slots, :, self._positions] = value_states[:, :, 0]
        return keys[: len(self._slots), :, : self._width], values[: len(self._slots), :, : self._width]

    def move(self, sources: Tensor, targets: Tensor, width: int) -> None:
        """Copy the first `width` columns of some slots into others."""
        for buffer in self.keys + self.values:
            buffer[targets, :, :width] = buffer[sources, :, :width]

    def _allocate(self, states: Tensor) -> Tensor:
        # zeros, not empty: a masked column weighs nothing, yet 0 * NaN would be NaN
        return states.new_zeros(self.num_slots, states.shape[1], self.capacity, states.shape[3])
