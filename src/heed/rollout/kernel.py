"""Attention of decoding on a CPU as one kernel, where it can be compiled."""

from __future__ import annotations

import ctypes
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from heed.models.compiled import compiled, floats, integers

SOURCE = Path(__file__).with_name("attention.c")


class Slots(ctypes.Structure):
    """One layer's keys and values of sequences that lie one after another, each `[heads, capacity, dim]`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("keys", "values", "start", "capacity")]

    def __init__(self, keys: Tensor, values: Tensor, start: Tensor, capacity: Tensor) -> None:
        """Keys and values are lines of `dim` numbers; before each slot are `start` tokens, and it has room for `capacity`: `[slots]`."""
        super().__init__(*map(floats, (keys, values)), *map(integers, (start, capacity)))
        self.dim = keys.shape[1] if keys.shape == values.shape else None
        self.held = keys, values, start, capacity


class Prompts(NamedTuple):
    """Sequences that rows read before their own."""

    slots: Slots
    lengths: Tensor
    """Tokens in each slot, `[slots]`."""
    home: Tensor
    """The slot of each row's prompt, `[rows]`."""
    order: Tensor
    """Rows, those of one prompt side by side, `[rows]`."""


class Attention(Protocol):
    """Stores keys and values, and returns what the queries find."""

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, rows: Slots, ends: Tensor, scale: float, prompts: Prompts | None = None, /
    ) -> Tensor: ...


@cache
def decode_attention() -> Attention | None:
    """Attention of one token per row to its prompt and to `ends` tokens of its own, the last of which it is: `softmax(scale Q K^T) V`.

    Queries, and what they find, are `[rows, heads, queries, dim]`, where queries of one head of keys lie side by side; keys and values of
    these tokens, `[rows, heads, 1, dim]`, go into their slots. All in fp32. None where it cannot be compiled.
    """
    library = compiled(SOURCE)
    if library is None:
        return None
    function = library.decode_attention
    function.argtypes = [*[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 4, ctypes.c_float, *[ctypes.c_void_p] * 6]
    return partial(_attend, function)


def _attend(
    function: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Slots,
    ends: Tensor,
    scale: float,
    prompts: Prompts | None = None,
) -> Tensor:
    """Raises ValueError for what the kernel would misread."""
    num_rows, heads, group, dim = queries.shape
    sizes = {dim, rows.dim, prompts.slots.dim if prompts else dim}, {num_rows, len(ends), len(prompts.order) if prompts else num_rows}
    if not keys.shape == values.shape == (num_rows, heads, 1, dim) or any(len(size) > 1 for size in sizes):
        raise ValueError("keys, values and queries of different sizes")
    queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
    results = torch.empty_like(queries)
    of_prompts = [ctypes.byref(prompts.slots), *map(integers, prompts[1:])] if prompts else [None] * 4
    addresses = map(floats, (queries, keys, values, results))
    if not function(*addresses, num_rows, heads, group, dim, scale, ctypes.byref(rows), integers(ends), *of_prompts):
        raise RuntimeError("attention of decoding: a row has no room in its slot, or there is no memory")
    return results
