"""How many operations the work needs, whoever does it: each distinct token once, no padding, logits where they are asked for, and
in the last layer keys and values of all tokens, but all else for those alone whose states are read."""

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
    keys_values: int
    """Those of them that give a layer's keys and values."""
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Flops:
        """From a Llama or GPT-2 configuration."""
        d, layers = config.hidden_size, config.num_hidden_layers
        if config.model_type == "gpt2":
            return cls(d, layers, layers * 12 * d * d, 2 * d * d, config.vocab_size)
        shared = d * config.num_key_value_heads // config.num_attention_heads
        return cls(d, layers, layers * (2 * d * d + 2 * d * shared + 3 * d * config.intermediate_size), 2 * d * shared, config.vocab_size)

    def body(self, prompt: int, responses: Iterable[int], *, scores: bool = False) -> float:
        """A forward over a prompt and the responses to it, the prompt once; lengths in tokens.

        States are read where a response token is predicted or, for `scores`, at each response's last token.
        """
        responses = list(responses)
        tokens = prompt + sum(responses)
        attended = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in responses)
        read = len(responses) if scores else 1 + sum(n - 1 for n in responses)
        seen = sum(prompt + n for n in responses) if scores else prompt + sum((n - 1) * (prompt + n / 2) for n in responses)
        spared = self.matrix / self.layers - self.keys_values
        weights = (self.matrix - spared) * tokens + spared * read
        return 2.0 * weights + 4.0 * self.hidden * ((self.layers - 1) * attended + seen)

    def head(self, tokens: int) -> float:
        """Logits of so many tokens."""
        return 2.0 * self.hidden * self.vocabulary * tokens

    def language_model(self, prompt: int, responses: Iterable[int]) -> float:
        """The body, and logits of every response token."""
        responses = list(responses)
        return self.body(prompt, responses) + self.head(sum(responses))


TRAINING = 3
"""A forward and a backward cost as much as three forwards."""
