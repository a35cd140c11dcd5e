"""The frozen records that every layer speaks. No torch here: a labelling server imports this module."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from heed.errors import require

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """Who speaks: `system`, `user`, `assistant` or `tool`."""
    content: str
    """What is said."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a policy answers: plain text to continue, or a conversation in which the assistant speaks next."""

    text: str | tuple[Message, ...]
    """The text, or the messages so far."""
    tags: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)
    """What is known of the prompt, such as its `kind`; never shown to a model."""

    @property
    def id(self) -> str:
        """A stable identity made from the content: equal prompts are one prompt."""
        content = self.text if isinstance(self.text, str) else [[m.role, m.content] for m in self.text]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]

    @property
    def is_conversation(self) -> bool:
        return not isinstance(self.text, str)

    def display(self) -> str:
        """The prompt as a person reads it."""
        if isinstance(self.text, str):
            return self.text
        return "\n".join(f"{m.role}: {m.content}" for m in self.text)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A response that a policy should imitate."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two responses to one prompt, of which people preferred `chosen`."""

    prompt: Prompt
    chosen: str
    rejected: str
    label: float = 1.0
    """Probability that `chosen` is better: 1 is certain, 0.5 a tie."""
    margin: float = 0.0
    """How much better, in units of reward; 0 where nothing is known of strength."""
    weight: float = 1.0
    """How much the pair counts."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two responses as shown side by side, before anyone has said which is better."""

    prompt: Prompt
    first: str
    second: str

    def swap(self) -> Comparison:
        """The same two responses shown in the other order."""
        return Comparison(self.prompt, self.second, self.first)


@dataclass(frozen=True, slots=True)
class Ranking:
    """K responses to one prompt, ranked by one annotator; equal ranks are ties and 1 is best."""

    prompt: Prompt
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if len(self.responses) != len(self.ranks) or len(self.responses) < 2:
            raise ValueError(f"{len(self.responses)} responses with {len(self.ranks)} ranks; a ranking needs 2 or more, one rank each")

    def pairs(self) -> tuple[PreferencePair, ...]:
        """All C(K, 2) pairs, better response first; a tie is a pair with label 0.5."""
        return tuple(
            PreferencePair(self.prompt, self.responses[better], self.responses[worse], label=label, weight=self.weight)
            for better, worse, label in ranked_pairs(self.ranks)
        )


def ranked_pairs(ranks: Sequence[int]) -> tuple[tuple[int, int, float], ...]:
    """All C(K, 2) pairs of places as (better, worse, probability that it is better); a tie is 0.5."""
    pairs = combinations(range(len(ranks)), 2)
    return tuple((j, i, 1.0) if ranks[j] < ranks[i] else (i, j, 0.5 if ranks[i] == ranks[j] else 1.0) for i, j in pairs)


@dataclass(frozen=True, slots=True)
class Rating:
    """One response rated on one attribute."""

    prompt: Prompt
    response: str
    attribute: str
    value: float


@dataclass(frozen=True, slots=True)
class Response:
    """A response with its provenance: which model wrote it, how it was sampled, in which run."""

    text: str
    model: str = ""
    sampling: Mapping[str, object] = field(default_factory=dict, hash=False)
    run: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one annotator said of the responses to one prompt."""

    prompt: Prompt
    responses: tuple[str, ...]
    """The responses, in the store's order."""
    ranks: tuple[int, ...]
    """One rank per response, in the same order; 1 is best, equal ranks are ties."""
    annotator: str
    order_shown: tuple[int, ...] = ()
    """Indices into `responses` in the order the annotator saw them."""
    seconds: float | None = None
    note: str = ""

    def ranking(self, weight: float = 1.0) -> Ranking:
        """The judgement as training data."""
        return Ranking(self.prompt, self.responses, self.ranks, weight)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. The default is the exact policy: temperature 1 and no truncation."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this much probability; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens with at least this share of the likeliest token's probability; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that prompt or response hold, and multiplies the negative ones; 1 changes nothing."""
    stop: tuple[str, ...] = ()
    """A response ends as soon as its text holds one of these."""
    seed: int | None = None
    """Ties the tokens to the request alone: the same prompt and seed are answered alike in every call; None: the engine's own stream."""
    top_logprobs: int = 0
    """How many of the likeliest tokens are reported with their log-probabilities at each place."""

    def __post_init__(self) -> None:
        require(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens, "a number of tokens above 0")
        require(self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or above")
        require(self.top_k >= 0, "top_k", self.top_k, "0 (all tokens) or above")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "a share above 0 and at most 1")
        require(0 <= self.min_p <= 1, "min_p", self.min_p, "a share from 0 (all tokens) to 1")
        require(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "a factor above 0; 1 changes nothing")
        require(not isinstance(self.stop, str) and all(self.stop), "stop", self.stop, "a tuple of texts, none of them empty")
        require(self.seed is None or 0 <= self.seed < 2**64, "seed", self.seed, "from 0 to 2**64 - 1, or None")
        require(self.top_logprobs >= 0, "top_logprobs", self.top_logprobs, "0 (none) or above")


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One prompt with one response as token ids; `response_mask` is True on the tokens the policy is to learn."""

    ids: tuple[int, ...]
    response_mask: tuple[bool, ...]

    @property
    def prompt_length(self) -> int:
        """How many tokens stand before the first that the policy is to learn; 0 where it is to learn none."""
        return self.response_mask.index(True) if True in self.response_mask else 0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response, token ids in and token ids out."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """The sampled tokens, with the end-of-sequence token where one was sampled."""
    logprobs: tuple[float, ...]
    """Log-probability of each sampled token in the distribution it was drawn from: the policy as `Sampling` bends it."""
    text: str
    """The response as text, without special tokens, and up to the stop string that ended it."""
    finish_reason: FinishReason
    weight_version: int = 0
    """How many updates the policy had seen."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    """For each sampled token, where asked for: the ids and log-probabilities of the likeliest, likeliest first, none of probability 0."""

    def sequence(self) -> TokenSequence:
        """The rollout as a training sequence: exactly the tokens that were sampled."""
        return TokenSequence(
            self.prompt_ids + self.response_ids,
            (False,) * len(self.prompt_ids) + (True,) * len(self.response_ids),
        )


@dataclass(frozen=True, slots=True)
class Experience:
    """A batch of rollouts with everything a policy gradient needs; every tensor is `[B, T]`, aligned with its target token."""

    ids: Tensor
    """Prompt, response and right padding, `[B, T]`."""
    attention_mask: Tensor
    response_mask: Tensor
    old_logprobs: Tensor
    """Under the policy that sampled them."""
    ref_logprobs: Tensor
    """Under the frozen reference."""
    values: Tensor
    """The critic's estimate before each token; zeros where there is no critic."""
    advantages: Tensor
    returns: Tensor

    def rows(self, indices: Tensor) -> Experience:
        """The chosen rows, trimmed to their longest sequence."""
        width = int(self.attention_mask[indices].sum(dim=1).max())
        return replace(self, **{name: getattr(self, name)[indices, :width] for name in self.__slots__})

    def to(self, device: object) -> Experience:
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__slots__})
