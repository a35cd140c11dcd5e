"""Annotators made of a utility function, with the faults that people have; for trials whose truth must be known."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from heed.errors import UserError, require
from heed.feedback.store import FeedbackStore
from heed.records import Judgement, Prompt, Response


@dataclass(frozen=True, slots=True)
class SimulatedAnnotator:
    """Someone who ranks responses by a noisy look at their utility.

    Each response appears as v_i = u_i + position_bias [shown first] + temperature G_i, with G_i standard Gumbel noise, and
    is ranked by v: a Plackett-Luce ranking, in which i beats j with the Bradley-Terry probability
    sigma((u_i - u_j) / temperature). All of it is determined by `seed`, `name` and what is judged, not by when.
    Raises UserError where a field is out of range or a utility is not finite.
    """

    name: str
    utility: Callable[[Prompt, str], float]
    """What the annotator values."""
    reliability: float = 1.0
    """How often the annotator looks at all; otherwise the ranking is random and without ties."""
    position_bias: float = 0.0
    """Utility added to the response shown first."""
    tie_threshold: float = 0.0
    """Responses that appear to be at most this far below the best of a rank share that rank."""
    temperature: float = 1.0
    """Size of the noise, in units of utility; 0 is none."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.name), "name", self.name, "the annotator's name")
        require(0 <= self.reliability <= 1, "reliability", self.reliability, "a probability")
        require(math.isfinite(self.position_bias), "position_bias", self.position_bias, "a finite utility")
        require(0 <= self.tie_threshold < math.inf, "tie_threshold", self.tie_threshold, "0 or above")
        require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (no noise) or above")

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> Judgement:
        """Rank two responses or more, shown in a random order."""
        generator = self._generator(prompt, responses)
        order = generator.permutation(len(responses)).tolist()
        ranks = self._ranks(generator, prompt, responses, first=order[0])
        return Judgement(prompt, tuple(responses), ranks, self.name, order_shown=tuple(order))

    def rank_shown(self, prompt: Prompt, responses: Sequence[str]) -> tuple[int, ...]:
        """Ranks of two responses or more that someone else has put in the order shown; 1 is best."""
        return self._ranks(self._generator(prompt, responses), prompt, responses, first=0)

    def _ranks(self, generator: np.random.Generator, prompt: Prompt, responses: Sequence[str], first: int) -> tuple[int, ...]:
        """`first` is the index of the response shown first."""
        # Everything is drawn whether needed or not: changing one fault leaves the other draws as they were.
        looks = generator.random() < self.reliability
        noise = generator.gumbel(size=len(responses))
        guess = generator.permutation(len(responses)) + 1
        if not looks:
            return tuple(guess.tolist())
        seen = self._utilities(prompt, responses) + self.temperature * noise
        seen[first] += self.position_bias
        return _ranks_with_ties(seen, self.tie_threshold)

    def _generator(self, prompt: Prompt, responses: Sequence[str]) -> np.random.Generator:
        key = json.dumps([self.seed, self.name, prompt.id, list(responses)])
        return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()))

    def _utilities(self, prompt: Prompt, responses: Sequence[str]) -> np.ndarray:
        found = np.array([self.utility(prompt, response) for response in responses], dtype=float)
        if not np.isfinite(found).all():
            bad = int(np.flatnonzero(~np.isfinite(found))[0])
            raise UserError(f"the utility of {responses[bad][:60]!r} to prompt {prompt.id} is {found[bad]}", expected="a finite number")
        return found


class Judged(NamedTuple):
    """What came of a round of judging."""

    judgements: list[Judgement]
    """The new judgements, now in the store."""
    num_unrankable: int
    """Items left out because their responses are all the same text."""


def judge(
    store: FeedbackStore,
    annotators: Sequence[SimulatedAnnotator],
    items: Sequence[tuple[Prompt, Sequence[Response]]],
    *,
    overlap: int = 1,
    seed: int = 0,
) -> Judged:
    """Have each prompt's responses ranked by `overlap` annotators, chosen at random with equal loads, and store it all.

    Equal texts are shown once. What an annotator has judged already is not judged again, so the same call may be repeated
    after a crash. Raises UserError where there are fewer annotators than `overlap` or two of one name.
    """
    names = [annotator.name for annotator in annotators]
    require(len(set(names)) == len(names), "annotators", names, "different names")
    require(1 <= overlap <= len(names), "overlap", overlap, f"1 to {len(names)}, the number of annotators")
    store.add_items(items)
    shown = [(prompt, tuple(dict.fromkeys(r.text for r in responses))) for prompt, responses in items]
    rankable = [(prompt, texts) for prompt, texts in shown if len(texts) > 1]
    done = {(j.annotator, j.prompt.id, j.responses) for j in store.judgements()}
    judgements = [
        annotator.rank(prompt, texts)
        for (prompt, texts), chosen in zip(rankable, _assign(annotators, overlap, seed), strict=False)
        for annotator in chosen
        if (annotator.name, prompt.id, texts) not in done
    ]
    store.add_judgements(judgements)
    return Judged(judgements, len(shown) - len(rankable))


def _assign(annotators: Sequence[SimulatedAnnotator], overlap: int, seed: int) -> Iterator[list[SimulatedAnnotator]]:
    """For each item in turn, those who have judged the fewest items; equals are chosen among at random."""
    generator = np.random.default_rng(seed)
    loads = np.zeros(len(annotators), dtype=int)
    while True:
        chosen = np.lexsort((generator.random(len(annotators)), loads))[:overlap]
        loads[chosen] += 1
        yield [annotators[i] for i in chosen]


def _ranks_with_ties(seen: np.ndarray, threshold: float) -> tuple[int, ...]:
    """Ranks from 1, best first; a rank spans at most `threshold` (chaining neighbours would tie far apart responses)."""
    ranks = [0] * len(seen)
    rank, best = 0, math.inf
    for i in np.argsort(-seen):
        if best - seen[i] > threshold:
            rank, best = rank + 1, seen[i]
        ranks[i] = rank
    return tuple(ranks)
