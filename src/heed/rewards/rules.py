"""Rewards that need no model: rules about the response's text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import Tensor

from heed.errors import UserError, require
from heed.records import Rollout
from heed.rewards.protocol import Reward, checked_scores
from heed.rewards.syllables import count_syllables

HAIKU = (5, 7, 5)
"""Syllables of each line."""


def length_target(num_words: int) -> Reward:
    """How near the response is to a length: min(n, N) / max(n, N) for n words where N are wanted; 1 at N, 0 when empty."""
    require(num_words > 0, "num_words", num_words, "a number of words above 0")

    def score(response: str) -> float:
        count = len(response.split())
        return min(count, num_words) / max(count, num_words)

    return _rule(f"length_target({num_words})", score)


def regex(pattern: str) -> Reward:
    """1 where the pattern is found anywhere in the response, else 0; raises UserError where it is no regular expression."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"pattern {pattern!r}: {error}", expected="a Python regular expression") from error
    return _rule(f"regex({pattern!r})", lambda response: float(compiled.search(response) is not None))


def repetition_penalty(n: int = 3) -> Reward:
    """The share of the response's n-grams of words that are different, minus 1: 0 where nothing repeats, towards -1 in a loop."""
    require(n > 0, "n", n, "a number of words above 0")

    def score(response: str) -> float:
        words = response.lower().split()
        ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0

    return _rule(f"repetition_penalty({n})", score)


def haiku() -> Reward:
    """How near the response is to three lines of 5, 7 and 5 syllables: 1 exactly there, falling to 0.

    The mean over lines of max(0, 1 - |syllables - wanted| / wanted); a missing line and each line beyond the third are 0.
    Blank lines do not count. Syllables are counted as by `count_syllables`.
    """

    def score(response: str) -> float:
        lines = [line for line in response.splitlines() if line.strip()]
        near = [max(0.0, 1 - abs(count_syllables(line) - wanted) / wanted) for line, wanted in zip(lines, HAIKU, strict=False)]
        return sum(near) / max(len(lines), len(HAIKU))

    return _rule("haiku()", score)


def _rule(name: str, score: Callable[[str], float]) -> Reward:
    def reward(rollouts: Sequence[Rollout]) -> Tensor:
        return checked_scores([score(rollout.text) for rollout in rollouts], rollouts, name)

    return reward
