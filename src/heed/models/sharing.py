"""Prompts that several rows of a batch begin with, run once: each response sees the prompt and itself, and nothing of the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from heed.models.batch import TokenBatch
from heed.records import TokenSequence


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """The tokens of a batch `[B, T]` in fewer rows `[R, W]`: a prompt, then the responses to it one after the other."""

    ids: Tensor
    """`[R, W]`."""
    positions: Tensor
    """Where each token stands in its own sequence: every response goes on where the prompt ended, `[R, W]`."""
    visible: Tensor
    """Whether the token in column i sees the one in column j: `[R, 1, W, W]`, indexed `[.., i, j]`."""
    place: Tensor
    """Where each token of the batch lies among the `R * W`, `[B, T]`; that of padding is 0."""

    def unpack(self, hidden: Tensor) -> Tensor:
        """Hidden states `[R, W, D]` back at the tokens of the batch, `[B, T, D]`."""
        # Indexing would do, but its backward pass is ten times slower.
        return F.embedding(self.place, hidden.flatten(0, 1))

    def pack(self, marked: Tensor) -> Tensor:
        """Which tokens of the rows `[R, W]` are marked in the batch `[B, T]`, True for those of a prompt that any of its rows marks."""
        found = marked.new_zeros(self.ids.shape)
        found.view(-1)[self.place[marked]] = True
        return found

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What attention scores are raised by: 0, or -inf for what is not visible; `[R, 1, W, W]`."""
        return torch.zeros(self.visible.shape, dtype=dtype, device=self.visible.device).masked_fill_(~self.visible, -torch.inf)


def share_prompts(batch: TokenBatch, hidden_size: int) -> SharedPrompts | None:
    """Lay out a batch so that a prompt which adjacent rows have in common is there once; None where that saves nothing.

    A row's prompt is what stands before its first response token. Padding sees the prompt and itself, so that no row of
    the attention is empty.
    """
    size, width = batch.ids.shape
    device, real = batch.ids.device, batch.attention_mask
    columns = torch.arange(width, device=device)
    starts = batch.response_mask.int().argmax(1)
    in_prompt = columns < starts[:, None]
    same = (starts[1:] == starts[:-1]) & ((batch.ids[1:] == batch.ids[:-1]) | ~in_prompt[1:]).all(1)
    row, offset, segment, packed_width = _place_rows(starts.tolist(), real.sum(1).tolist(), [False, *same.tolist()], hidden_size)
    num_rows = row[-1] + 1
    if num_rows * packed_width >= size * width:
        return None

    def per_row(values: list[int]) -> Tensor:
        return torch.tensor(values, device=device)[:, None]

    place = per_row(row) * packed_width + columns + per_row(offset) * ~in_prompt

    def laid_out(values: Tensor, filler: int) -> Tensor:
        found = torch.full((num_rows * packed_width,), filler, device=device)
        found[place[real]] = values.expand(size, width)[real]
        return found.view(num_rows, packed_width)

    segments = laid_out(per_row(segment) * ~in_prompt, -1)
    seen, seeing = segments[:, None, None, :], segments[:, None, :, None]
    causal = torch.ones(packed_width, packed_width, dtype=torch.bool, device=device).tril()
    return SharedPrompts(
        ids=laid_out(batch.ids, 0),
        positions=laid_out(columns, 0),
        visible=causal & ((seen == 0) | (seen == seeing)),
        place=place.masked_fill_(~real, 0),
    )


def _place_rows(starts: list[int], lengths: list[int], same: list[bool], hidden_size: int) -> tuple[list[int], list[int], list[int], int]:
    """For every row of a batch its packed row, how far its response moves right, its number there from 1; and the width of all."""
    row, offset, segment, width, end = [], [], [], 0, 0
    for start, length, is_same in zip(starts, lengths, same, strict=True):
        if is_same and end - start + length - start <= room(start, hidden_size):
            row.append(row[-1])
            offset.append(end - start)
            segment.append(segment[-1] + 1)
        else:
            row.append(row[-1] + 1 if row else 0)
            offset.append(0)
            segment.append(1)
        end = length + offset[-1]
        width = max(width, end)
    return row, offset, segment, width


def room(prompt_length: int, hidden_size: int) -> float:
    """How many response tokens are best put behind one prompt of P tokens, `sqrt(P (6 D + P))`.

    A token costs `24 D^2` operations in a layer's matrices and `4 D` for each column of the attention, be it masked or not.
    With R response tokens to a row, what one of them costs on average, `(P + R) (24 D^2 + 4 D (P + R)) / R`, is least there.
    """
    return math.sqrt(prompt_length * (6 * hidden_size + prompt_length))


def prompt_runs(sequences: Sequence[TokenSequence]) -> list[tuple[int, list[int]]]:
    """The length of each prompt and the indices of the adjacent sequences that begin with it."""
    runs: list[tuple[int, list[int]]] = []
    last: tuple[int, ...] | None = None
    for i, sequence in enumerate(sequences):
        prompt = sequence.ids[: sequence.prompt_length]
        if prompt == last:
            runs[-1][1].append(i)
        else:
            runs.append((len(prompt), [i]))
        last = prompt
    return runs


def shared_rows(prompt_length: int, lengths: Sequence[int], hidden_size: int) -> Iterator[tuple[list[int], int]]:
    """The rows that `share_prompts` makes of adjacent sequences of one prompt: which of them it holds, and its width."""
    row, offset, _, _ = _place_rows([prompt_length] * len(lengths), list(lengths), [False] + [True] * (len(lengths) - 1), hidden_size)
    for number in range(row[-1] + 1):
        members = [i for i, r in enumerate(row) if r == number]
        yield members, lengths[members[-1]] + offset[members[-1]]
