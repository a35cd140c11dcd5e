"""Samples of one prompt that share its keys and values: stored once, and read once for all of them at every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from heed.models.language_model import LanguageModel
from heed.rollout.cache import COLUMNS, Buffers, SlotCache
from heed.rollout.kernel import Prompts

SHARED_PROMPTS = "heed_shared_prompts"
"""Of the attention below, to transformers."""


class SharedCache(SlotCache):
    """Slots for prompts, and slots for the responses of rows in flight, each of which knows its prompt's slot."""

    def __init__(self, policy: LanguageModel, rows: Buffers, prompts: Buffers, *, graphs: bool = False) -> None:
        super().__init__(policy, rows, prompts, graphs=graphs)
        self.attention = SHARED_PROMPTS
        self.kernel = self._compiled()
        self.home = torch.zeros(rows.num_slots, dtype=torch.long, device=self.device)  # per row: the slot of its prompt
        self.place = torch.zeros_like(self.home)  # per row: which of its prompt's rows it is
        self.most = 0  # rows of one prompt
        self.order = self.home[:0]  # rows in flight, those of one prompt side by side
        self.lengths = torch.zeros(prompts.num_slots, dtype=torch.long, device=self.device)
        self.num_homes = self.prompt_width = 0

    def free_prompts(self) -> list[int]:
        taken = set(self.home[: self.num_live].tolist())
        return [slot for slot in range(self.prompts.num_slots) if slot not in taken]

    def enter(self, prompt: Tensor, lengths: Tensor, width: int) -> None:
        first, self.num_live = self.num_live, self.num_live + len(prompt)
        self.home[first : self.num_live] = self.reading[prompt]
        self.lengths[self.reading] = lengths
        self._group()

    def sizes(self) -> tuple[int, ...]:
        return *super().sizes(), self.num_homes, self.prompt_width, self.most

    def decode(self, position: Tensor, step: Tensor) -> Tensor:
        self._write(step - 1)
        if self.kernel is not None:
            return self._no_mask()
        prompts = self._causal(self.lengths[self.home[: len(step)]] - 1, self.prompt_width)
        return torch.cat([prompts, self._causal(step - 1, self.num_columns)], dim=1)[:, None, None]

    def options(self) -> dict[str, Any]:
        return {"shared": self}

    def evict(self, gaps: Tensor, movers: Tensor, position: Tensor, step: Tensor) -> None:
        if len(gaps):
            self.rows.copy(movers, gaps, int(step[gaps].max()) - 1)
        self.home[gaps] = self.home[movers]
        self.num_live = len(step)
        self.width = int(step.max()) - 1 if self.num_live else 0
        self._group()

    def _group(self) -> None:
        """Number the rows of each prompt."""
        if not self.num_live:
            return
        home = self.home[: self.num_live]
        self.order = order = home.argsort(stable=True)
        counts = home.bincount(minlength=self.prompts.num_slots)
        self.place[order] = torch.arange(self.num_live, device=self.device) - (counts.cumsum(0) - counts)[home[order]]
        self.num_homes = self.fit(int(home.max()) + 1, self.prompts.num_slots)
        self.prompt_width = self.fit(int(self.lengths[home].max()), self.prompts.parts[0][1], COLUMNS)
        # Slots without a row that are read nevertheless have a place that no row has.
        self.most = self.fit(int(counts.max()) + (self.num_rows > self.num_live), self.num_rows)
        self.home[self.num_live :] = 0
        self.place[self.num_live :] = self.most - 1


def shared_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, shared: SharedCache, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of one token per row to its prompt and to its own response: `[rows, heads, 1, dim]` -> `[rows, 1, heads, dim]`.

    One softmax over both; the products with a prompt are taken for all of its rows at once. Heads that share keys are adjacent.
    Source: Juravsky et al. 2024, Hydragen, section 3 (there with two softmaxes and their log-sum-exps).
    """
    assert kwargs.get("position_bias") is None, "positions are in the queries and keys"
    rows, kv_heads, width, dim = key.shape
    if shared.kernel is not None:
        queries = query.reshape(rows, kv_heads, -1, dim)
        prompts = Prompts(shared.prompts.all(shared.layer), shared.lengths, shared.home, shared.order)
        found = shared.kernel(queries, key, value, shared.rows.all(shared.layer), shared.ends, scaling, prompts)
        return found.view(rows, 1, -1, dim), None
    slots, length = shared.num_homes, shared.prompt_width
    prompt_keys, prompt_values = (x[:slots, :, :length].flatten(0, 1) for x in shared.prompts.part(shared.layer, 0))
    member = shared.home[:rows], slice(None), shared.place[:rows]
    queries = query.view(rows, kv_heads, -1, dim) * scaling
    group = queries.shape[2]

    def together(x: Tensor) -> Tensor:
        grid = x.new_empty(slots, kv_heads, shared.most, group, x.shape[-1])
        grid[member] = x
        return grid.view(slots * kv_heads, shared.most * group, -1)

    def apart(x: Tensor) -> Tensor:
        return x.view(slots, kv_heads, shared.most, group, -1)[member]

    to_prompt = apart(torch.bmm(together(queries), prompt_keys.transpose(1, 2)))
    to_response = torch.bmm(queries.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)).view(rows, kv_heads, group, width)
    weights = torch.cat([to_prompt, to_response], dim=-1).add_(attention_mask).softmax(-1, dtype=torch.float32).to(query.dtype)
    of_response = torch.bmm(weights[..., length:].flatten(0, 1), value.flatten(0, 1)).view(queries.shape)
    return (apart(torch.bmm(together(weights[..., :length]), prompt_values)) + of_response).view(rows, 1, -1, dim), None


AttentionInterface.register(SHARED_PROMPTS, shared_attention)
