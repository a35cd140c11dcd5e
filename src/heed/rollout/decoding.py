"""Continuous batching: the rows of one call wait, go through the slots of a cache, and leave as soon as they end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from heed.errors import UserError
from heed.models.attention import attending
from heed.models.fused import kernels
from heed.models.language_model import LanguageModel
from heed.records import Sampling
from heed.rollout.cache import SlotCache
from heed.rollout.graphs import Graphs
from heed.rollout.sampling import sample
from heed.rollout.text import StopStrings

PREFILL_TOKENS = 2**10
"""Prompt tokens, padding included, that one forward reads: short prompts together, a longer one in chunks of as many."""


@dataclass(slots=True)
class Reading:
    """Prompts that are read side by side, with the rows that each of them is for; the first is the longest."""

    prompts: list[tuple[int, ...]]
    rows: list[range]
    start: int = 0
    """Columns read so far."""

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.rows))


class Decoding:
    """The rows of one call: waiting, being read, in flight (the first `num_live` slots), or finished.

    `num_samples` rows answer each prompt; row r is sample `r % num_samples` of prompt `r // num_samples`. A row's tokens follow from its
    prompt and its line of `uniforms [rows, tokens]`, whatever shares the batch with it, up to the rounding of matrix products.
    Results are per row: `ids` (-1 where none), `logprobs`, and where asked for `top_ids`, `top_logprobs` `[rows, tokens, k]`.
    """

    def __init__(
        self,
        policy: LanguageModel,
        prompts: Sequence[tuple[int, ...]],
        num_samples: int,
        limits: Sequence[int],
        uniforms: Tensor,
        sampling: Sampling,
        cache: SlotCache,
        stop: StopStrings | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        """`limits` holds the tokens each prompt's responses may have; the cache has room for them, and is for graphs where they are."""
        self.policy, self.sampling, self.cache, self.stop, self.graphs = policy, sampling, cache, stop, graphs
        device = policy.device
        self.num_slots = cache.rows.num_slots
        self.num_live = 0
        # Long prompts first: rows of about one length pad each other little, and share the width of the attention.
        self.waiting = deque(
            (prompts[i], range(row, min(row + self.num_slots, (i + 1) * num_samples)))
            for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
            for row in range(i * num_samples, (i + 1) * num_samples, self.num_slots)
        )
        self.reading: deque[Reading] = deque()
        self.read_last = False
        self.eos = torch.tensor(policy.eos_ids, dtype=torch.long, device=device)
        # per row, and a last line for what slots without a row draw
        self.limits = F.pad(torch.tensor(limits, device=device).repeat_interleave(num_samples), (0, 1))
        self.uniforms = F.pad(uniforms, (0, 0, 0, 1)).to(device)
        self.ids = torch.full(self.uniforms.shape, -1, device=device)
        self.logprobs = torch.zeros(self.ids.shape, device=device)
        num_top = min(sampling.top_logprobs, policy.head()[0].shape[0])
        self.top_ids = torch.zeros(*self.ids.shape, num_top, dtype=torch.long, device=device)
        self.top_logprobs = torch.zeros(*self.ids.shape, num_top, device=device)
        # per slot: the row in it, its newest token, that token's position, how many tokens it has sampled, and how many each step adds
        slot = torch.zeros(self.num_slots, dtype=torch.long, device=device)
        self.empty = torch.stack([slot + len(uniforms), slot, cache.rows.capacity - 1, slot + 1, slot])
        self.slots = self.empty.clone()
        self.row, self.token, self.position, self.step, self.stride = self.slots
        self.finished = torch.zeros(self.num_slots, dtype=torch.bool, device=device)
        penalised = sampling.repetition_penalty != 1
        self.seen = torch.zeros(self.num_slots, len(policy.head()[0]), dtype=torch.bool, device=device) if penalised else None

    @torch.inference_mode()
    def advance(self) -> bool:
        """One forward: the next token of every row in flight, or a chunk of prompts that enter; False once every row has finished."""
        self._admit()
        # Rows in flight wait for one chunk at a time, unless they are few.
        if self.reading and not (self.read_last and 2 * self.num_live >= self.num_slots):
            self.read_last = True
            self._read()
        else:
            self.read_last = False
            self._decode()
        self._evict()
        if self.num_live or self.waiting or self.reading:
            return True
        self.check_finite()
        return False

    def check_finite(self, num_tokens: int | None = None) -> None:
        """Raise UserError where a log-probability, of the first tokens or of all, is no number."""
        if not self.logprobs[:-1, :num_tokens].isfinite().all():
            raise UserError("the policy's probabilities are not finite", fix="lower the learning rate, or use fp32")

    def top(self, row: int, length: int) -> tuple[tuple[tuple[int, float], ...], ...]:
        """The likeliest tokens at each place of a row, with their log-probabilities; () where none were asked for."""
        if not self.top_ids.shape[-1]:
            return ()
        places = zip(self.top_ids[row, :length].tolist(), self.top_logprobs[row, :length].tolist(), strict=True)
        return tuple(tuple((i, p) for i, p in zip(*place, strict=True) if p > -math.inf) for place in places)

    def _admit(self) -> None:
        """Let waiting rows in once a quarter of the slots is free: a forward over few prompts costs as much as one over many."""
        free = self.num_slots - self.num_live - sum(reading.num_rows for reading in self.reading)
        if not self.waiting or 4 * free < self.num_slots:
            return
        entering = []
        num_free = len(self.cache.free_prompts()) - sum(len(reading.prompts) for reading in self.reading)
        while self.waiting and len(self.waiting[0][1]) <= free and len(entering) < num_free:
            entering.append(self.waiting.popleft())
            free -= len(entering[-1][1])
        rest = iter(entering)
        for prompt, rows in rest:
            group = [(prompt, rows), *islice(rest, max(1, PREFILL_TOKENS // len(prompt)) - 1)]
            self.reading.append(Reading([prompt for prompt, _ in group], [rows for _, rows in group]))

    def _read(self) -> None:
        """Read the next chunk of prompts in the last slots, which are free; after the last chunk their rows are in flight."""
        reading, device = self.reading[0], self.policy.device
        longest, start = len(reading.prompts[0]), reading.start
        end = min(longest, start + PREFILL_TOKENS)
        ids = torch.tensor([(prompt + (0,) * (longest - len(prompt)))[start:end] for prompt in reading.prompts], device=device)
        mask = self.cache.read(len(ids), start, end)
        # Padding lies right of every real token, so causal attention hides it; from column 0 on it needs no mask.
        hidden = self._hidden(ids, torch.arange(start, end, device=device)[None], torch.ones_like(ids) if mask is None else mask)
        reading.start = end
        if end == longest:
            self._enter(self.reading.popleft(), hidden, start)

    def _enter(self, reading: Reading, hidden: Tensor, start: int) -> None:
        """Copy each prompt to the slots of its rows and sample their first tokens; `hidden [prompts, T, D]` from column `start` on."""
        device, num_prompts = self.policy.device, len(reading.prompts)
        lengths = torch.tensor([len(prompt) for prompt in reading.prompts], device=device)
        source = torch.tensor([i for i, rows in enumerate(reading.rows) for _ in rows], device=device)
        slots = slice(self.num_live, self.num_live + len(source))
        self.num_live = slots.stop
        self.cache.enter(source, lengths, len(reading.prompts[0]))
        self.row[slots] = torch.tensor([row for rows in reading.rows for row in rows], device=device)
        self.position[slots] = lengths[source] - 1
        self.step[slots], self.stride[slots] = 0, 1
        if self.seen is not None:
            self.seen[slots] = False
            for i, prompt in enumerate(reading.prompts):
                self.seen[slots][:, list(prompt)] |= (source == i)[:, None]
        last = hidden[torch.arange(num_prompts, device=device), lengths - 1 - start]
        self._draw(self._logits(last)[source], slots)
        self._end_at_stop_strings(slots)

    def _decode(self) -> None:
        """Read the newest token of every row in flight and sample the next one."""
        self.cache.advance()
        if self.graphs is None:
            self._step()
        else:
            self.graphs.run(self.cache.sizes(), self._step)
        self._end_at_stop_strings(slice(self.num_live))

    def _step(self) -> None:
        """What of a step is the same for all of one size, with every tensor in its place."""
        slots = slice(self.cache.num_rows)
        position = self.position[slots]
        mask = self.cache.decode(position, self.step[slots])
        hidden = self._hidden(self.token[slots, None], position[:, None], mask, **self.cache.options())
        self._draw(self._logits(hidden[:, 0]), slots)

    def _draw(self, logits: Tensor, slots: slice) -> None:
        row, step = self.row[slots], self.step[slots]
        token, logprobs, probabilities = sample(
            logits, self.uniforms[row, step], self.sampling, None if self.seen is None else self.seen[slots]
        )
        self.ids[row, step], self.logprobs[row, step] = token, logprobs
        if num_top := self.top_ids.shape[-1]:
            top = probabilities.topk(num_top)
            self.top_ids[row, step], self.top_logprobs[row, step] = top.indices, top.values.log()
        if self.seen is not None:
            self.seen[slots].scatter_(1, token[:, None], True)
        self.token[slots] = token
        self.position[slots] += self.stride[slots]
        self.step[slots] += self.stride[slots]
        self.finished[slots] = (token[:, None] == self.eos).any(-1) | (self.step[slots] == self.limits[row])

    def _end_at_stop_strings(self, slots: slice) -> None:
        if self.stop is not None:
            ended = self.stop.ended(self.row[slots].tolist(), self.token[slots].tolist())
            self.finished[slots] |= torch.tensor(ended, device=self.finished.device)

    def _evict(self) -> None:
        """Free the slots of finished rows and close the gaps with the last rows in flight, so that the batch shrinks."""
        finished = self.finished[: self.num_live]
        num_live = self.num_live - int(finished.sum())
        if num_live == self.num_live:
            return
        gaps = finished[:num_live].nonzero()[:, 0]
        movers = num_live + (~finished[num_live:]).nonzero()[:, 0]
        self.slots[:, gaps] = self.slots[:, movers]
        self.slots[:, num_live : self.num_live] = self.empty[:, num_live : self.num_live]
        if self.seen is not None:
            self.seen[gaps] = self.seen[movers]
        finished.zero_()
        self.num_live = num_live
        self.cache.evict(gaps, movers, self.position[:num_live], self.step[:num_live])

    def _hidden(self, ids: Tensor, positions: Tensor, mask: Tensor, **options: Any) -> Tensor:
        body = self.policy.hf.base_model
        # Written out in PyTorch's operations they take as many for a token each as transformers' own.
        few_passes = self.policy.backbone.in_few_passes() if self.graphs is None and kernels() else nullcontext()
        with attending(body.config, self.cache.attention) if options else nullcontext(), few_passes:
            output = body(ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True, **options)
        return output.last_hidden_state

    def _logits(self, hidden: Tensor) -> Tensor:
        weight, bias = self.policy.head()
        if hidden.device.type != "cpu":
            return F.linear(hidden, weight, bias)
        # The same product the other way round: few rows and many words take MKL up to three times as long as many words and few rows.
        logits = (weight @ hidden.T).T.contiguous()
        return logits if bias is None else logits.add_(bias)
