"""Sampling in this process, on unmodified Hugging Face models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import signature
from itertools import count

from heed.data.render import Renderer
from heed.errors import UserError, require
from heed.models.language_model import LanguageModel
from heed.records import Prompt, Rollout, Sampling
from heed.rollout.decoding import Decoding
from heed.rollout.sampling import row_uniforms

TOKENS_IN_FLIGHT = 2**16
"""Tokens that the key/value cache has room for, unless `max_rows` says otherwise."""

WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size", "local": "window_size"}
"""Kinds of attention that see the last tokens only, and what configurations call how many."""


class LocalEngine:
    """Samples the exact policy with a key/value cache of its own; an `Engine`.

    A prompt is read once and shared by its samples; rows leave the batch as they end and waiting ones take their place. In flight are at
    most `max_rows` rows of prompt + response tokens each (default: as many as fit 65,536 tokens), which bounds the cache at
    `2 * layers * rows * length * heads * dim` numbers. Every row draws from its own random stream, made of the seed, the number of
    calls before, and its place in the call: the same seed gives the same tokens, however the rows are batched.
    """

    def __init__(self, policy: LanguageModel, renderer: Renderer, *, seed: int, max_rows: int | None = None) -> None:
        require(seed >= 0, "seed", seed, "0 or above")
        require(max_rows is None or max_rows > 0, "max_rows", max_rows, "1 or above")
        _check_attention(policy)
        self.policy, self.renderer = policy, renderer
        self.seed, self.max_rows = seed, max_rows
        self.num_calls = 0

    def state(self) -> dict[str, int]:
        """What the next call's random streams depend on."""
        return {"seed": self.seed, "num_calls": self.num_calls}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on from `state()`, bit for bit."""
        self.seed, self.num_calls = state["seed"], state["num_calls"]

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, n: int = 1) -> list[Rollout]:
        """Sample `n` responses to each prompt; those of one prompt are adjacent, prompts in the order given.

        A response ends with an end-of-sequence token, which it holds, or at `max_new_tokens` or the end of the model's context with
        finish reason `length`. Raises UserError for a prompt that leaves no room in the context.
        """
        require(n > 0, "n", n, "1 or above")
        if not prompts:
            return []
        prompt_ids = self.renderer.encode_prompts(prompts)
        decoding = self._start(prompt_ids, sampling, n)
        while decoding.advance():
            pass
        responses = zip(decoding.ids.tolist(), decoding.logprobs.tolist(), strict=True)
        return [self._rollout(prompts[i // n], prompt_ids[i // n], ids, logprobs) for i, (ids, logprobs) in enumerate(responses)]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """Sample one response piece by piece, as text that never splits a character; raises as `generate` does."""
        decoding = self._start(self.renderer.encode_prompts([prompt]), sampling, 1)
        return text_pieces(_tokens(decoding), self.renderer.decode)

    def _start(self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, n: int) -> Decoding:
        limits = [min(sampling.max_new_tokens, self._room(ids)) for ids in prompts]
        longest = max(len(ids) + limit for ids, limit in zip(prompts, limits, strict=True))
        uniforms = row_uniforms(self.seed, self.num_calls, len(prompts) * n, max(limits))
        self.num_calls += 1
        return Decoding(self.policy, prompts, n, limits, uniforms, sampling, self.max_rows or max(1, TOKENS_IN_FLIGHT // longest))

    def _room(self, prompt: tuple[int, ...]) -> int:
        """How many tokens may follow a prompt."""
        context = _context_length(self.policy)
        if len(prompt) >= context:
            raise UserError(
                f"a prompt of {len(prompt)} tokens",
                expected=f"fewer than the {context} of the model's context",
                fix="lower max_prompt_length",
            )
        return context - len(prompt)

    def _rollout(self, prompt: Prompt, prompt_ids: tuple[int, ...], ids: list[int], logprobs: list[float]) -> Rollout:
        length = ids.index(-1) if -1 in ids else len(ids)
        return Rollout(
            prompt=prompt,
            prompt_ids=prompt_ids,
            response_ids=tuple(ids[:length]),
            logprobs=tuple(logprobs[:length]),
            text=self.renderer.decode(ids[:length]),
            finish_reason="stop" if ids[length - 1] in self.policy.eos_ids else "length",
            weight_version=self.policy.version,
        )


def _tokens(decoding: Decoding) -> Iterator[int]:
    """The tokens of a decoding's only row as they are sampled."""
    for i in count():
        going = decoding.advance()
        yield int(decoding.ids[0, i])
        if not going:
            return


def _check_attention(policy: LanguageModel) -> None:
    """Raise UserError for a model that keeps more than keys and values, or that cannot be told where a token stands."""
    body = policy.hf.base_model
    kinds = set(getattr(body.config, "layer_types", None) or ()) - {"full_attention", *WINDOWS}
    if kinds or "position_ids" not in signature(body.forward).parameters:
        raise UserError(
            f"the local engine cannot sample from {type(body).__name__}", expected="a transformer such as Llama, Qwen, GPT-2 or GPT-NeoX"
        )


def _context_length(policy: LanguageModel) -> int:
    """Tokens that a prompt and its response may have together: the model's context, or its attention window where that is shorter."""
    windows = (getattr(policy.hf.config, name, None) for name in WINDOWS.values())
    return min([policy.context_length, *(window for window in windows if window)])


def text_pieces(tokens: Iterable[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Text as its tokens arrive, holding back a character until its last byte is there; the pieces join to `decode(tokens)`."""
    ids: list[int] = []
    shown = text = ""
    for token in tokens:
        ids.append(token)
        text = decode(ids)
        whole = text.rstrip("\ufffd")
        if whole.startswith(shown) and len(whole) > len(shown):
            yield whole[len(shown) :]
            shown = whole
    if len(text) > len(shown):
        yield text[len(shown) :]
