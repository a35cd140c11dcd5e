"""Continuous batching: the rows of one call wait, go through the slots of a cache, and leave as soon as they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from heed.errors import UserError
from heed.models.language_model import LanguageModel
from heed.records import Sampling
from heed.rollout.cache import SlotCache
from heed.rollout.sampling import sample

PREFILL_TOKENS = 2**12
"""Prompt tokens, padding included, that one forward reads."""


class Decoding:
    """The rows of one call: waiting, in flight (the first `num_live` slots), or finished.

    `num_samples` rows answer each prompt; row r is sample `r % num_samples` of prompt `r // num_samples`. A row's tokens follow from its
    prompt and its line of `uniforms [rows, tokens]`, whatever shares the batch with it, up to the rounding of matrix products.
    """

    def __init__(
        self,
        policy: LanguageModel,
        prompts: Sequence[tuple[int, ...]],
        num_samples: int,
        limits: Sequence[int],
        uniforms: Tensor,
        sampling: Sampling,
        max_rows: int,
    ) -> None:
        """`limits` holds the tokens each prompt's responses may have; at most `max_rows` rows are in flight at a time."""
        self.policy, self.sampling = policy, sampling
        device = policy.device
        self.num_slots = min(max_rows, len(prompts) * num_samples)
        self.num_live = 0
        # Long prompts first: rows of about one length pad each other little, and share the width of the attention.
        self.waiting = deque(
            (prompts[i], range(row, min(row + self.num_slots, (i + 1) * num_samples)))
            for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
            for row in range(i * num_samples, (i + 1) * num_samples, self.num_slots)
        )
        capacity = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
        self.cache = SlotCache(self.num_slots, capacity)
        self.width = 0  # columns of the cache that rows in flight have filled
        self.columns = torch.arange(capacity, device=device)
        self.eos = torch.tensor(policy.eos_ids, dtype=torch.long, device=device)
        # per row
        self.limits = torch.tensor(limits, device=device).repeat_interleave(num_samples)
        self.uniforms = uniforms.to(device)
        self.ids = torch.full(uniforms.shape, -1, device=device)
        self.logprobs = torch.zeros(uniforms.shape, device=device)
        # per slot: the row in it, its newest token, that token's position, and how many tokens it has sampled
        self.slots = torch.zeros(4, self.num_slots, dtype=torch.long, device=device)
        self.row, self.token, self.position, self.step = self.slots
        self.finished = torch.zeros(self.num_slots, dtype=torch.bool, device=device)

    @torch.inference_mode()
    def advance(self) -> bool:
        """Sample the next token of the rows in flight, or the first of rows that enter; False once every row has finished."""
        if not self._admit():
            self._decode()
        self._evict()
        if self.num_live or self.waiting:
            return True
        if not self.logprobs.isfinite().all():
            raise UserError("the policy's probabilities are not finite", fix="lower the learning rate, or use fp32")
        return False

    def _admit(self) -> bool:
        """Let waiting rows in once a quarter of the slots is free: a forward over few prompts costs as much as one over many."""
        free = self.num_slots - self.num_live
        if 4 * free < self.num_slots:
            return False
        entering = []
        while self.waiting and len(self.waiting[0][1]) <= free:
            entering.append(self.waiting.popleft())
            free -= len(entering[-1][1])
        rest = iter(entering)
        for prompt, rows in rest:
            self._prefill([(prompt, rows), *islice(rest, max(1, PREFILL_TOKENS // len(prompt)) - 1)])
        return len(entering) > 0

    def _prefill(self, entering: Sequence[tuple[tuple[int, ...], range]]) -> None:
        """Read each prompt once, copy it to the slots of its rows, and sample their first tokens."""
        device = self.policy.device
        lengths = torch.tensor([len(prompt) for prompt, _ in entering], device=device)
        longest = len(entering[0][0])
        ids = torch.tensor([prompt + (0,) * (longest - len(prompt)) for prompt, _ in entering], device=device)
        source = torch.tensor([i for i, (_, rows) in enumerate(entering) for _ in rows], device=device)
        slots = slice(self.num_live, self.num_live + len(source))
        self.row[slots] = torch.tensor([row for _, rows in entering for row in rows], device=device)
        self.position[slots] = lengths[source] - 1
        self.step[slots] = 0
        self.num_live += len(source)
        self.width = max(self.width, longest)
        self.cache.take_prompts(slots.start, source)
        # The padding lies right of every real token: causal attention hides it without a mask.
        hidden = self._hidden(ids, self.columns[None, :longest], torch.ones_like(ids))
        self._draw(self._logits(hidden[torch.arange(len(ids), device=device), lengths - 1])[source], slots)

    def _decode(self) -> None:
        """Read the newest token of every row in flight and sample the next one."""
        live = slice(self.num_live)
        position = self.position[live]
        self.width += 1
        self.cache.take_tokens(position, self.width)
        mask = torch.zeros(self.num_live, self.width, dtype=self.policy.head()[0].dtype, device=position.device)
        mask.masked_fill_(self.columns[: self.width] > position[:, None], -torch.inf)
        hidden = self._hidden(self.token[live, None], position[:, None], mask[:, None, None])
        self._draw(self._logits(hidden[:, 0]), live)

    def _draw(self, logits: Tensor, slots: slice) -> None:
        row, step = self.row[slots], self.step[slots]
        token, logprobs = sample(logits, self.uniforms[row, step], self.sampling)
        self.ids[row, step], self.logprobs[row, step] = token, logprobs
        self.token[slots] = token
        self.position[slots] += 1
        self.step[slots] += 1
        self.finished[slots] = torch.isin(token, self.eos) | (self.step[slots] == self.limits[row])

    def _evict(self) -> None:
        """Free the slots of finished rows and close the gaps with the last rows in flight, so that the batch shrinks."""
        finished = self.finished[: self.num_live]
        num_live = self.num_live - int(finished.sum())
        if num_live == self.num_live:
            return
        gaps = finished[:num_live].nonzero()[:, 0]
        movers = num_live + (~finished[num_live:]).nonzero()[:, 0]
        self.cache.move(movers, gaps, self.width)
        self.slots[:, gaps] = self.slots[:, movers]
        finished.zero_()
        self.num_live = num_live
        self.width = int(self.position[:num_live].max()) if num_live else 0

    def _hidden(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        body = self.policy.hf.base_model
        return body(ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True).last_hidden_state

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, *self.policy.head())
