"""What annotators said of pairs of responses, as arrays: a hundred thousand rankings are a few operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from heed.feedback.answers import Standing


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """Answers with ranks as arrays: A answers to I items with P pairs of responses; NaN where an item has fewer responses.

    An outcome is 1 where the first of two responses is better, -1 where the second is, and 0 for a tie.
    """

    names: tuple[str, ...]
    account: np.ndarray
    """`[A]`: which of the names."""
    item: np.ndarray
    """`[A]`: which of the items."""
    said: np.ndarray
    """`[A, P]`."""
    first_won: np.ndarray
    """`[A]`: share of other responses that are worse than the one shown first, less the share that is better; NaN in repetitions,
    and where the order is not known."""
    first_spread: np.ndarray
    """`[A]`: the mean square of that share over the responses, any of which might have been shown first."""
    gold: np.ndarray
    """`[I, P]`: the right outcomes, NaN where they are not known."""
    longer: np.ndarray
    """`[I, P]`: 1 where the first response is longer, -1 where the second is."""

    @classmethod
    def of(cls, standing: Standing) -> Outcomes:
        """Arrays of the answers that compare something, in the order they came."""
        answers = [answer for answer in standing.answers if answer.ranks is not None and len(answer.ranks) > 1]
        width = max((len(item.responses) for item in standing.items), default=0)
        left, right = np.array(list(combinations(range(width), 2)), dtype=int).reshape(-1, 2).T
        rows = {item.id: row for row, item in enumerate(standing.items)}
        names = tuple(sorted({answer.annotator for answer in standing.answers}, key=str.casefold))
        columns = {name: column for column, name in enumerate(names)}
        ranks = padded([answer.ranks or () for answer in answers], width)
        lengths = padded([item.lengths for item in standing.items], width)
        gold = padded([item.gold or () for item in standing.items], width)
        said = np.sign(ranks[:, right] - ranks[:, left])
        sides = np.zeros((len(left), width))
        sides[np.arange(len(left)), left], sides[np.arange(len(left)), right] = 1, -1
        shown = (~np.isnan(ranks)).sum(axis=1)
        won = np.nan_to_num(said) @ sides / (shown - 1)[:, None]
        first = won[np.arange(len(answers)), np.array([answer.order[0] for answer in answers], dtype=int)]
        return cls(
            names,
            np.array([columns[answer.annotator] for answer in answers], dtype=int),
            np.array([rows[answer.item.id] for answer in answers], dtype=int),
            said,
            # A repetition is never shown in the order of the time before: its order is not as good as any other. A file tells none.
            np.where(np.array([answer.reason in ("again", "imported") for answer in answers], dtype=bool), np.nan, first),
            (won**2).sum(axis=1) / shown,
            np.sign(gold[:, right] - gold[:, left]),
            np.sign(lengths[:, left] - lengths[:, right]),
        )

    def rows(self, chosen: np.ndarray) -> Outcomes:
        """Some of the answers."""
        return replace(self, **{name: getattr(self, name)[chosen] for name in ("account", "item", "said", "first_won", "first_spread")})

    def last(self) -> Outcomes:
        """The last answer of each annotator to each item."""
        _, index = np.unique(self._key[::-1], return_index=True)
        return self.rows(len(self.item) - 1 - index)

    def again(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of answers to an item that their annotator had answered before, and of the answers before."""
        order = np.argsort(self._key, kind="stable")
        same = np.flatnonzero(self._key[order][1:] == self._key[order][:-1])
        return order[same + 1], order[same]

    def counts(self) -> np.ndarray:
        """How often each outcome -1, 0, 1 was given, `[I, P, 3]`."""
        shape = (*self.gold.shape, 3)
        known = ~np.isnan(self.said)
        cells = (self.item[:, None] * shape[1] + np.arange(shape[1])) * 3 + np.nan_to_num(self.said).astype(int) + 1
        return np.bincount(cells[known], minlength=math.prod(shape)).reshape(shape).astype(float)

    def by_annotator(self, values: np.ndarray) -> np.ndarray:
        """Sums of `[A]` over the answers of each annotator."""
        return np.bincount(self.account, values, minlength=len(self.names))

    @property
    def _key(self) -> np.ndarray:
        return self.item * len(self.names) + self.account


def padded(rows: Sequence[Sequence[int | None]], width: int) -> np.ndarray:
    """Rows of different lengths as `[len(rows), width]`, NaN where there is nothing."""
    table = np.full((len(rows), width), np.nan)
    lengths = np.array([len(row) for row in rows], dtype=int)
    for length in np.unique(lengths):
        chosen = np.flatnonzero(lengths == length)
        table[chosen, :length] = np.array([rows[i] for i in chosen.tolist()], dtype=float).reshape(len(chosen), length)
    return table
