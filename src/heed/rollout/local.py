"""Sampling in this process, on unmodified Hugging Face models."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature

import torch

from heed.data.render import Renderer
from heed.errors import UserError, require
from heed.models.allocator import keep_freed_memory
from heed.models.backbone import WINDOWS
from heed.models.language_model import LanguageModel
from heed.records import Prompt, Rollout, Sampling
from heed.rollout.cache import Buffers, Part, SlotCache, cache_bytes_per_token, parts_for
from heed.rollout.decoding import Decoding
from heed.rollout.graphs import Graphs
from heed.rollout.sampling import request_uniforms, row_uniforms
from heed.rollout.shared import SharedCache
from heed.rollout.text import StopStrings, find_stop, pieces_until_stop, text_pieces, until_stop
from heed.rollout.trial import replaces_attention, takes_cache

TOKENS_IN_FLIGHT = 2**16
"""Tokens that the key/value cache has room for, unless one row needs more: half as many took half the memory and 15 % more time."""

HUGE_PAGES = 1 / 8
"""Share of `cache_bytes` up to which a cache lies in huge pages, which take their memory at once."""


class LocalEngine:
    """Samples the exact policy with a key/value cache of its own; an `Engine`.

    A prompt is read once and kept once for its samples; rows leave the batch as they end and waiting ones take their place. A token of
    prompt or response takes `cache_bytes_per_token`; in flight are as many rows as fit into `cache_bytes` (default: a quarter of the
    device's memory) and, unless `max_rows` says how many, into 65,536 tokens. Every row draws from its own random stream, made of the
    seed, the number of calls before, and its place in the call, or of the request alone where `Sampling.seed` is given: the same seed
    gives the same tokens, however the rows are batched. On a CUDA device steps of decoding are replayed as graphs, unless `graphs` is
    set to False.
    """

    def __init__(
        self, policy: LanguageModel, renderer: Renderer, *, seed: int, max_rows: int | None = None, cache_bytes: int | None = None
    ) -> None:
        require(seed >= 0, "seed", seed, "0 or above")
        require(max_rows is None or max_rows > 0, "max_rows", max_rows, "1 or above")
        require(cache_bytes is None or cache_bytes > 0, "cache_bytes", cache_bytes, "1 or above")
        _check_attention(policy)
        if policy.device.type == "cpu":
            keep_freed_memory()
        self.policy, self.renderer = policy, renderer
        self.seed, self.max_rows = seed, max_rows
        self.cache_bytes = _device_memory(policy.device) // 4 if cache_bytes is None else cache_bytes
        self.num_calls = 0
        self.graphs = policy.device.type == "cuda"

    def state(self) -> dict[str, int]:
        """What the next call's random streams depend on."""
        return {"seed": self.seed, "num_calls": self.num_calls}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on from `state()`, bit for bit."""
        self.seed, self.num_calls = state["seed"], state["num_calls"]

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, n: int = 1) -> list[Rollout]:
        """Sample `n` responses to each prompt; those of one prompt are adjacent, prompts in the order given.

        A response ends with an end-of-sequence token, which it holds, with the token that completes a stop string, or at
        `max_new_tokens` or the end of the model's context with finish reason `length`. Raises UserError for a prompt that leaves no room
        in the context, or that with its response does not fit into the cache.
        """
        require(n > 0, "n", n, "1 or above")
        if not prompts:
            return []
        prompt_ids = self.renderer.encode_prompts(prompts)
        decoding = self._start(prompt_ids, sampling, n)
        while decoding.advance():
            pass
        rows = enumerate(zip(decoding.ids[:-1].tolist(), decoding.logprobs[:-1].tolist(), strict=True))
        return [self._rollout(prompts[row // n], prompt_ids[row // n], decoding, row, *drawn) for row, drawn in rows]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """Sample one response piece by piece, as text that never splits a character; raises as `generate` does."""
        decoding = self._start(self.renderer.encode_prompts([prompt]), sampling, 1)
        return pieces_until_stop(text_pieces(_tokens(decoding), self.renderer.decode, self.renderer.is_byte), sampling.stop)

    def _start(self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, n: int) -> Decoding:
        limits = [min(sampling.max_new_tokens, self._room(ids)) for ids in prompts]
        cache = self._cache(prompts, limits, n)
        if sampling.seed is None:
            uniforms = row_uniforms(self.seed, self.num_calls, len(prompts) * n, max(limits))
            self.num_calls += 1
        else:
            uniforms = request_uniforms(sampling.seed, prompts, n, max(limits))
        stop = StopStrings(sampling.stop, self.renderer.decode) if sampling.stop else None
        graphs = Graphs(self.policy.device, self._without_graphs) if self.graphs else None
        return Decoding(self.policy, prompts, n, limits, uniforms, sampling, cache, stop, graphs)

    def _without_graphs(self, why: str) -> None:
        self.graphs = False
        warnings.warn(f"sampling without CUDA graphs, which takes longer: {why}", stacklevel=2)

    def _cache(self, prompts: Sequence[tuple[int, ...]], limits: Sequence[int], n: int) -> SlotCache:
        """A cache for as many rows as may be in flight, whose prompts stand apart where several rows share them."""
        prompt, response = max(map(len, prompts)), max(limits)
        shared = n > 1 and replaces_attention(self.policy)
        lengths = sorted((len(ids) + limit for ids, limit in zip(prompts, limits, strict=True)), reverse=True)
        length = prompt + response if shared else lengths[0]
        token_bytes = cache_bytes_per_token(self.policy)
        if length * token_bytes > self.cache_bytes:
            raise UserError(
                f"prompt and response of {length} tokens need {length * token_bytes:,} bytes of key/value cache",
                expected=f"at most the {self.cache_bytes:,} of cache_bytes",
                fix="lower max_length or max_new_tokens, or give the engine more memory",
            )
        tokens = self.cache_bytes // token_bytes
        if self.max_rows is None:
            tokens = min(tokens, max(length, TOKENS_IN_FLIGHT))
        max_rows = min(len(prompts) * n, self.max_rows or tokens)
        if not shared:
            rows = [each for each in lengths for _ in range(n)][:max_rows]
            in_parts = attends_in_parts(self.policy)
            buffers = self._buffers(parts_for(self.policy, rows, tokens, in_parts=in_parts))
            return SlotCache(self.policy, buffers, in_parts=in_parts, graphs=self.graphs)
        # As many prompts again as the rows make up: the next ones enter while the last rows of the ones before are in flight.
        groups = tokens // (n * response + 2 * prompt)
        num_rows = min(max_rows, groups * n or min(n, (tokens - prompt) // response))
        num_prompts = min(len(prompts), max(1, 2 * min(groups, -(-num_rows // n))))
        room = self._buffers([(num_rows, response)]), self._buffers([(num_prompts, prompt)])
        return SharedCache(self.policy, *room, graphs=self.graphs)

    def _buffers(self, parts: Sequence[Part]) -> Buffers:
        size = sum(num_slots * capacity for num_slots, capacity in parts) * cache_bytes_per_token(self.policy)
        return Buffers(parts, self.policy.device, huge_pages=size <= self.cache_bytes * HUGE_PAGES)

    def _room(self, prompt: tuple[int, ...]) -> int:
        """How many tokens may follow a prompt."""
        context = _context_length(self.policy)
        if len(prompt) >= context:
            raise UserError(
                f"a prompt of {len(prompt)} tokens",
                expected=f"fewer than the {context} that the model sees at once",
                fix="lower max_length",
            )
        return context - len(prompt)

    def _rollout(
        self, prompt: Prompt, prompt_ids: tuple[int, ...], decoding: Decoding, row: int, ids: list[int], logprobs: list[float]
    ) -> Rollout:
        length, stop = ids.index(-1) if -1 in ids else len(ids), decoding.sampling.stop
        ids = ids[:length]
        text = self.renderer.decode(ids)
        return Rollout(
            prompt=prompt,
            prompt_ids=prompt_ids,
            response_ids=tuple(ids),
            logprobs=tuple(logprobs[:length]),
            text=until_stop(text, stop),
            finish_reason="stop" if ids[-1] in self.policy.eos_ids or find_stop(text, stop) >= 0 else "length",
            weight_version=self.policy.version,
            top_logprobs=decoding.top(row, length),
        )


def _tokens(decoding: Decoding) -> Iterator[int]:
    """The tokens of a decoding's only row as they are sampled."""
    num_shown, going = 0, True
    while going:
        going = decoding.advance()
        decoding.check_finite(num_shown + 1)
        if (token := int(decoding.ids[0, num_shown])) >= 0:  # none where a chunk of the prompt was read
            yield token
            num_shown += 1


def _device_memory(device: torch.device) -> int:
    """All the memory of a device, in bytes; not what happens to be free, on which no result may depend."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def attends_in_parts(policy: LanguageModel) -> bool:
    """Whether rows attend in parts: on a CPU, whose kernel reads all columns that it is given, masked or not."""
    return policy.device.type == "cpu" and replaces_attention(policy)


def _check_attention(policy: LanguageModel) -> None:
    """Raise UserError for a model that keeps more than keys and values, or that cannot be told where a token stands."""
    body = policy.hf.base_model
    kinds = set(getattr(body.config, "layer_types", None) or ()) - {"full_attention", *WINDOWS}
    if kinds or "position_ids" not in signature(body.forward).parameters or not takes_cache(policy):
        raise UserError(
            f"the local engine cannot sample from {type(body).__name__}", expected="a transformer such as Llama, Qwen, GPT-2 or GPT-NeoX"
        )


def _context_length(policy: LanguageModel) -> int:
    """Tokens that a prompt and its response may have together: the model's context, or its attention window where that is shorter."""
    windows = (getattr(policy.hf.config, name, None) for name in WINDOWS.values())
    return min([policy.context_length, *(window for window in windows if window)])
