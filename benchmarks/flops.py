"""How many operations the work needs, whoever does it: each distinct token once, no padding, logits where they are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of one model; a multiplication and an addition are two."""

    hidden: int
    layers: int
    matrix: int
    """Weights that a token is multiplied with in the body."""
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Flops:
        """From a Llama or GPT-2 configuration."""
        d, layers = config.hidden_size, config.num_hidden_layers
        if config.model_type == "gpt2":
            return cls(d, layers, layers * 12 * d * d, config.vocab_size)
        shared = d * config.num_key_value_heads // config.num_attention_heads
        return cls(d, layers, layers * (2 * d * d + 2 * d * shared + 3 * d * config.intermediate_size), config.vocab_size)

    def body(self, prompt: int, responses: Iterable[int]) -> float:
        """A forward over a prompt and the responses to it, the prompt once; lengths in tokens."""
        responses = list(responses)
        tokens = prompt + sum(responses)
        attended = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in responses)
        return 2.0 * self.matrix * tokens + 4.0 * self.layers * self.hidden * attended

    def head(self, tokens: int) -> float:
        """Logits of so many tokens."""
        return 2.0 * self.hidden * self.vocabulary * tokens

    def language_model(self, prompt: int, responses: Iterable[int]) -> float:
        """The body, and logits of every response token."""
        responses = list(responses)
        return self.body(prompt, responses) + self.head(sum(responses))


TRAINING = 3
"""A forward and a backward cost as much as three forwards."""
