"""Padded token batches; the masks are made from lengths and never from the padding id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from heed.records import TokenSequence


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right-padded token sequences, `[B, T]`."""

    ids: Tensor
    """Token ids, long."""
    attention_mask: Tensor
    """True on tokens, False on padding."""
    response_mask: Tensor
    """True on the tokens the policy is to learn."""

    @property
    def num_tokens(self) -> int:
        """How many response tokens there are."""
        return int(self.response_mask.sum())

    @property
    def before_response(self) -> Tensor:
        """True on the tokens whose states predict a response token: the left neighbours of those, `[B, T]`."""
        return F.pad(self.response_mask[:, 1:], (0, 1))

    @property
    def last_response_index(self) -> Tensor:
        """Position of each row's last response token, `[B]`; ValueError where a row has none."""
        if not self.response_mask.any(dim=1).all():
            raise ValueError("a row has no response token")
        positions = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (positions * self.response_mask).argmax(dim=1)

    def sequences(self) -> list[TokenSequence]:
        """The rows without their padding: what `collate` was given."""
        rows = zip(self.ids.tolist(), self.response_mask.tolist(), self.attention_mask.sum(1).tolist(), strict=True)
        return [TokenSequence(tuple(ids[:length]), tuple(mask[:length])) for ids, mask, length in rows]

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(self.ids.to(device), self.attention_mask.to(device), self.response_mask.to(device))


def micro_batches(lengths: Sequence[int], max_tokens: int, rows: Sequence[int] | None = None) -> list[list[int]]:
    """Items in groups of similar length whose padded size is at most `max_tokens`.

    `lengths[i]` is the longest sequence of item i and `rows[i]` (1 where not given) how many sequences it has. An item
    larger than the budget by itself forms a group of its own. The longest group comes first, so that a lack of memory
    shows at once.
    """
    groups: list[list[int]] = []
    padded_rows = 0
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        count = rows[item] if rows else 1
        if groups and (padded_rows + count) * lengths[groups[-1][0]] <= max_tokens:
            groups[-1].append(item)
            padded_rows += count
        else:
            groups.append([item])
            padded_rows = count
    return groups


def collate(sequences: Sequence[TokenSequence], pad_id: int, device: torch.device | str = "cpu") -> TokenBatch:
    """The sequences padded on the right to the longest; `pad_id` is filler that no mask counts, so any id will do."""
    width = max(len(s.ids) for s in sequences)
    gaps = [width - len(s.ids) for s in sequences]
    ids = torch.tensor([(*s.ids, *[pad_id] * gap) for s, gap in zip(sequences, gaps, strict=True)])
    attention = torch.tensor([[True] * len(s.ids) + [False] * gap for s, gap in zip(sequences, gaps, strict=True)])
    response = torch.tensor([(*s.response_mask, *[False] * gap) for s, gap in zip(sequences, gaps, strict=True)])
    return TokenBatch(ids, attention, response).to(device)
