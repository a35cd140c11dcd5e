"""Key/value caches with one slot per row, written in place, that unmodified Hugging Face models take as theirs."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache

from heed.models.language_model import LanguageModel
from heed.rollout.kernel import Attention, Slots, decode_attention

RAGGED_ROWS = "heed_ragged_rows"
"""Of `ragged_attention`, to transformers."""
TOGETHER = 16
"""Slots of one capacity at least, whose rows go through the attention of one call, as wide as the longest of them."""
TOGETHER_BYTES = 2**15
"""As many slots as have so much of a layer's keys and values for one token of each, as calls over less take their time for nothing."""
COLUMNS = 32
"""Of which a forward of a graph looks at a multiple."""

Part = tuple[int, int]
"""How many slots lie side by side, and the columns that each of them has."""


class Buffers:
    """Per layer the keys and values of some slots, allocated once, at the model's first forward.

    A slot is `[heads, capacity, dim]`; the slots of a part have one capacity and make one tensor. All of them are lines of `dim`
    numbers, of which `lines` finds those of a token. In huge pages a cache is read and written faster; without them it takes memory
    as it is written.
    """

    def __init__(self, parts: Sequence[Part], device: torch.device, *, huge_pages: bool = False) -> None:
        self.parts, self.huge_pages = parts, huge_pages
        self.first_slot = [0, *accumulate(num_slots for num_slots, _ in parts)]  # of each part, and the number of all
        self.first_token = [0, *accumulate(num_slots * capacity for num_slots, capacity in parts)]
        self.num_slots, self.num_tokens = self.first_slot[-1], self.first_token[-1]
        self.capacity = torch.tensor([capacity for num_slots, capacity in parts for _ in range(num_slots)], device=device)
        self.start = self.capacity.cumsum(0) - self.capacity
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.slots: list[Slots] = []

    @property
    def num_heads(self) -> int:
        """Heads that keys have, once there are some."""
        return len(self.keys[0]) // self.num_tokens

    def lines(self, slots: Tensor, columns: Tensor, num_heads: int) -> Tensor:
        """Where the tokens in these columns `[slots or 1, tokens]` are: `[slots, heads, tokens]`.

        Padding beyond a slot's end comes to its last column, which no prompt reaches, and no row before its last token.
        """
        start, capacity = self.start[slots, None, None], self.capacity[slots, None, None]
        heads = torch.arange(num_heads, device=slots.device)[:, None]
        return start * num_heads + heads * capacity + columns[:, None].minimum(capacity - 1)

    def put(self, layer: int, lines: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store `[slots, heads, tokens, dim]` in these lines."""
        self.make_room(layer, keys, values)
        for buffer, states in ((self.keys[layer], keys), (self.values[layer], values)):
            buffer.index_copy_(0, lines.flatten(), states.reshape(-1, states.shape[3]))

    def make_room(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Allocate a layer's buffers for keys and values such as these, if there are none."""
        if layer == len(self.keys):
            self.keys.append(self._allocate(keys))
            self.values.append(self._allocate(values))

    def take(self, layer: int, lines: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of the keys and values in these lines."""
        keys, values = (buffer[layer].index_select(0, lines.flatten()) for buffer in (self.keys, self.values))
        return keys.view(*lines.shape, -1), values.view(*lines.shape, -1)

    def copy(self, sources: Tensor, targets: Tensor, width: int) -> None:
        """Copy the first `width` columns of some slots into others."""
        if not self.keys:  # rows that end with their first token leave nothing behind
            return
        columns = torch.arange(width, device=sources.device)[None]
        there, here = (self.lines(slots, columns, self.num_heads).flatten() for slots in (sources, targets))
        for buffer in self.keys + self.values:
            buffer.index_copy_(0, here, buffer.index_select(0, there))

    def part(self, layer: int, number: int) -> tuple[Tensor, Tensor]:
        """The keys and the values of a part, `[slots, heads, capacity, dim]`."""
        num_slots, capacity = self.parts[number]
        lines = slice(*(self.num_heads * token for token in self.first_token[number : number + 2]))
        keys, values = (buffer[layer][lines].view(num_slots, self.num_heads, capacity, -1) for buffer in (self.keys, self.values))
        return keys, values

    def all(self, layer: int) -> Slots:
        """The keys and values of all slots."""
        if layer == len(self.slots):
            self.slots.append(Slots(self.keys[layer], self.values[layer], self.start, self.capacity))
        return self.slots[layer]

    def _allocate(self, states: Tensor) -> Tensor:
        """Lines of zeros, as a masked column weighs nothing, yet 0 * NaN would be NaN."""
        shape = states.shape[1] * self.num_tokens, states.shape[3]
        if states.device.type != "cpu":
            return states.new_zeros(shape)
        pages = mmap.mmap(-1, shape[0] * shape[1] * states.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if self.huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # it is advice alone, and a kernel may know no such pages
                pages.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(pages, dtype=states.dtype).view(shape)


class SlotCache(Cache):
    """Prompt and response of a row side by side in one slot: the token at position p lies in column p.

    Rows in flight have the first slots. Prompts are read in the slots after them, where their rows then are, unless others have
    left meanwhile. Rows come longest first, and no slot has more room than those before it, so that a row has room wherever it comes
    to. A slot is ready for another row without clearing. Before each forward say what it brings: `read`, or `advance` and
    `decode`; `read` and `decode` return the attention mask to pass.

    With `in_parts` rows attend part by part, each as wide as its longest row. With `graphs` a decoding forward does on the host nothing
    but what follows from its sizes, and these are rounded up, so that they change rarely: slots without a row fill the batch up.
    """

    def __init__(
        self, policy: LanguageModel, rows: Buffers, prompts: Buffers | None = None, *, in_parts: bool = False, graphs: bool = False
    ) -> None:
        # To transformers this cache is always empty: prompts start at column 0, and whatever comes later has its own mask.
        super().__init__(layers=[])
        self.device, self.dtype = policy.device, policy.head()[0].dtype
        self.rows, self.prompts = rows, prompts or rows
        self.columns = torch.arange(max(capacity for _, capacity in (*rows.parts, *self.prompts.parts)), device=self.device)
        self.attention = RAGGED_ROWS  # in place of the model's own where there are options
        self.in_parts = in_parts
        self.graphs = graphs
        self.kernel = self._compiled() if in_parts else None
        self.num_live = 0
        self.width = 0  # columns that rows in flight have filled
        self.reading = self.columns[:0]  # slots of the prompts that are being read
        # Of the next forward: whether it decodes, where its tokens go, which lines that is, up to where it reads earlier columns, and how
        # many each row then has.
        self.decoding = False
        self.where = self.reading, self.columns[None, :0]
        self.ends = self.reading
        self.lines: Tensor | None = None
        self.earlier = 0
        self.layer = 0

    def free_prompts(self) -> Sequence[int]:
        """Slots that no row in flight has its prompt in."""
        return range(self.num_live, self.rows.num_slots)

    def read(self, num_prompts: int, start: int, end: int) -> Tensor | None:
        """The next forward reads columns `start` to `end` of prompts whose earlier columns are there."""
        if not start:
            self.reading = torch.tensor(self.free_prompts()[:num_prompts], device=self.device)
        self.decoding, self.lines, self.earlier = False, None, end if start else 0
        self.where = self.reading, self.columns[None, start:end]
        return self._causal(self.columns[start:end], end)[None, None] if start else None

    def enter(self, prompt: Tensor, lengths: Tensor, width: int) -> None:
        """Rows whose prompts, `width` columns and less, have just been read are in flight: for each, which one of the prompts."""
        first, self.num_live = self.num_live, self.num_live + len(prompt)
        sources, targets = self.reading[prompt], torch.arange(first, self.num_live, device=self.device)
        if (moved := sources != targets).any():
            self.rows.copy(sources[moved], targets[moved], width)
        self.width = max(self.width, width)

    @property
    def num_rows(self) -> int:
        """Slots that a decoding forward reads tokens of."""
        return self.fit(self.num_live, self.rows.num_slots)

    @property
    def num_columns(self) -> int:
        """Columns that a decoding forward looks at."""
        return self.fit(self.width, self.rows.parts[0][1], COLUMNS)

    def advance(self) -> None:
        """Each row in flight goes on by one token."""
        self.width += 1

    def sizes(self) -> tuple[int, ...]:
        """All that a decoding forward does follows from these, and from tensors."""
        return self.num_rows, self.num_columns

    def decode(self, position: Tensor, step: Tensor) -> Tensor:
        """The next forward reads one token of each of `num_rows` slots: its position, and how many tokens its response has."""
        self._write(position)
        return self._causal(position, self.num_columns)[:, None, None] if self.kernel is None else self._no_mask()

    def options(self) -> dict[str, Any]:
        """What else to tell the model when it decodes; made anew, as kept it would keep the cache until cycles are collected."""
        return {"ragged": self} if self.in_parts else {}

    def evict(self, gaps: Tensor, movers: Tensor, position: Tensor, step: Tensor) -> None:
        """Rows have ended; `movers` now fill the `gaps` among the first slots, which `position` and `step` tell of."""
        if len(gaps):
            self.rows.copy(movers, gaps, int(position[gaps].max()))
        self.num_live = len(position)
        self.width = int(position.max()) if self.num_live else 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the new `[rows, heads, tokens, dim]` keys and values of a layer and return those to attend to."""
        self.layer, num_heads = layer_idx, key_states.shape[1]
        if self.decoding and self.kernel is not None:  # which stores them
            self.rows.make_room(layer_idx, key_states, value_states)
            return key_states, value_states
        buffers = self.rows if self.decoding else self.prompts
        if self.lines is None:
            self.lines = buffers.lines(*self.where, num_heads)
        buffers.put(layer_idx, self.lines, key_states, value_states)
        if self.earlier:
            return buffers.take(layer_idx, buffers.lines(self.reading, self.columns[None, : self.earlier], num_heads))
        if self.decoding and not self.in_parts:
            keys, values = buffers.part(layer_idx, 0)
            return keys[: self.num_rows, :, : self.num_columns], values[: self.num_rows, :, : self.num_columns]
        return key_states, value_states

    def seen(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows in flight, part by part, with the keys and values of this layer that the longest of them attends to."""
        for number, first in enumerate(self.rows.first_slot[:-1]):
            if first < self.num_live:
                rows = slice(first, min(self.rows.first_slot[number + 1], self.num_live))
                width, num_rows = int(self.ends[rows].max()), rows.stop - first
                keys, values = self.rows.part(self.layer, number)
                yield rows, keys[:num_rows, :, :width], values[:num_rows, :, :width]

    def fit(self, size: int, largest: int, unit: int = 1) -> int:
        """A size of a decoding forward, rounded up where there are graphs."""
        return min(rounded(size, unit), largest) if self.graphs else size

    def _compiled(self) -> Attention | None:
        """The kernel for decoding, of which a graph would know nothing."""
        return decode_attention() if self.device.type == "cpu" and self.dtype == torch.float32 and not self.graphs else None

    def _write(self, columns: Tensor) -> None:
        """The next forward decodes, into one column of each of the first slots."""
        self.decoding, self.lines, self.earlier = True, None, 0
        self.where = torch.arange(len(columns), device=self.device), columns[:, None]
        self.ends = columns + 1

    def _no_mask(self) -> Tensor:
        """What keeps transformers from making one of its own, for the kernel, which goes by the rows' ends."""
        return torch.zeros(1, 1, 1, 1, dtype=self.dtype, device=self.device)

    def _causal(self, positions: Tensor, width: int) -> Tensor:
        """What tokens at these positions attend to, `[positions, width]`: 0, and -inf in columns after their own."""
        mask = torch.zeros(len(positions), width, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(self.columns[:width] > positions[:, None], -torch.inf)


def rounded(size: int, unit: int = 1) -> int:
    """Up to a multiple of `unit` and of an eighth of the next power of two: less than a quarter more, or less than a unit."""
    unit = max(unit, 1 << max(0, (size - 1).bit_length() - 3))
    return -(-size // unit) * unit


def cache_bytes_per_token(policy: LanguageModel) -> int:
    """`2 * layers * heads * dim * bytes`: the keys and values of one token."""
    config: Any = policy.hf.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * dim * policy.head()[0].element_size()


def parts_for(policy: LanguageModel, lengths: Sequence[int], num_tokens: int, *, in_parts: bool) -> list[Part]:
    """Parts of a cache of this many tokens for rows of these lengths, longest first: for as many rows as it has room for."""
    layer_bytes = cache_bytes_per_token(policy) // policy.hf.config.get_text_config().num_hidden_layers
    together = max(TOGETHER, TOGETHER_BYTES // layer_bytes) if in_parts else len(lengths)
    parts = []
    for first in range(0, len(lengths), together):
        num_slots = min(together, len(lengths) - first, num_tokens // lengths[first])
        if num_slots:
            parts.append((num_slots, lengths[first]))
        if num_slots < together:
            break
        num_tokens -= num_slots * lengths[first]
    return parts


def ragged_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, ragged: SlotCache, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of one token per row to the columns before its end: `[rows, heads, 1, dim]` -> `[rows, 1, heads, dim]`.

    Heads that share keys are adjacent, and go through the products as that many queries. On a CPU, products of batches of matrices
    read a cache faster than the fused kernel does.
    """
    assert kwargs.get("position_bias") is None, "positions are in the queries and keys"
    num_rows, num_heads, _, dim = key.shape
    queries = query.reshape(num_rows, num_heads, -1, dim)
    if ragged.kernel is not None:
        found = ragged.kernel(queries, key, value, ragged.rows.all(ragged.layer), ragged.ends, scaling)
        return found.view(num_rows, 1, -1, dim), None
    found = torch.empty_like(queries)
    for rows, keys, values in ragged.seen():
        mask = attention_mask[rows, ..., : keys.shape[2]].expand(-1, num_heads, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(mask, queries[rows].flatten(0, 1), keys.flatten(0, 1).transpose(1, 2), alpha=scaling)
        torch.bmm(scores.softmax(-1), values.flatten(0, 1), out=found[rows].flatten(0, 1))
    return found.view(num_rows, 1, -1, dim), None


AttentionInterface.register(RAGGED_ROWS, ragged_attention)
