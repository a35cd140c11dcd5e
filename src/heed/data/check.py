"""Everything that is wrong with a data file, and what is in it, before any training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from heed.data.formats import Record
from heed.data.readers import outcomes
from heed.data.sources import Problem
from heed.records import Demonstration, PreferencePair, Prompt, Ranking

_SHOWN = 20


class Lengths(NamedTuple):
    """How long texts are, in characters."""

    shortest: int
    median: int
    p95: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        ordered = sorted(lengths)
        last = len(ordered) - 1
        return cls(ordered[0], ordered[round(last * 0.5)], ordered[round(last * 0.95)], ordered[last])


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found; prints as a short text."""

    file: str
    format: str
    """The fields and style of the rows, such as `chosen + rejected (transcripts)`; empty where no row could be read."""
    num_rows: int
    """All rows, good or not."""
    problems: list[Problem]
    """Rows that stop a reader."""
    skipped: list[Problem]
    """Well-formed rows that readers skip, such as two equal responses."""
    num_prompts: int
    """Distinct prompts."""
    num_repeated: int
    """Rows whose prompt came before."""
    num_blank: int
    """Responses of nothing but spaces."""
    num_ties: int
    """Pairs of responses that are ranked equal or labelled 0.5."""
    lengths: dict[str, Lengths] = field(default_factory=dict)
    """Characters of each kind of text: `prompt`, and `response` or `chosen` and `rejected`."""

    @property
    def ok(self) -> bool:
        """True where every row can be read."""
        return not self.problems

    def __str__(self) -> str:
        lines = [
            f"{self.file}: {self.num_rows} rows of {self.format or 'no known format'}",
            f"prompts: {self.num_prompts} distinct, {self.num_repeated} rows repeat one",
        ]
        lines += [
            f"{name}: {n.shortest} to {n.longest} characters, median {n.median}, 95 % up to {n.p95}" for name, n in self.lengths.items()
        ]
        lines += [f"{count} {what}" for count, what in ((self.num_blank, "blank responses"), (self.num_ties, "tied pairs")) if count]
        for message, count in Counter(problem.message for problem in self.skipped).most_common():
            first = next(problem.line for problem in self.skipped if problem.message == message)
            lines.append(f"{count} rows are skipped, the first in line {first}: {message}")
        lines += [str(problem) for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"and {len(self.problems) - _SHOWN} more problems")
        lines.append(f"{len(self.problems)} problems" if self.problems else "no problems")
        return "\n".join(lines)


def check(source: str | Path) -> CheckReport:
    """Read all of a source, collect every problem with its line, and count what it holds; raises `UserError` if it cannot be opened."""
    style, num_rows, num_blank, num_ties = "", 0, 0, 0
    problems: list[Problem] = []
    skipped: list[Problem] = []
    prompts: Counter[str] = Counter()
    lengths: dict[str, list[int]] = {}
    for outcome in outcomes(source):
        num_rows += outcome.line is not None
        if isinstance(outcome, Problem):
            (skipped if outcome.skipped else problems).append(outcome)
            continue
        style = outcome.format
        for name, text in _texts(outcome.record):
            lengths.setdefault(name, []).append(len(text))
            num_blank += not text.strip()
        num_ties += _ties(outcome.record)
        prompts[(outcome.record if isinstance(outcome.record, Prompt) else outcome.record.prompt).id] += 1
    return CheckReport(
        str(source),
        style,
        num_rows,
        problems,
        skipped,
        num_prompts=len(prompts),
        num_repeated=prompts.total() - len(prompts),
        num_blank=num_blank,
        num_ties=num_ties,
        lengths={name: Lengths.of(found) for name, found in lengths.items()},
    )


def _texts(record: Record) -> list[tuple[str, str]]:
    match record:
        case Prompt():
            return [("prompt", "".join(m.content for m in record.text) if not isinstance(record.text, str) else record.text)]
        case Demonstration(prompt, response):
            return [*_texts(prompt), ("response", response)]
        case PreferencePair(prompt, chosen, rejected):
            return [*_texts(prompt), ("chosen", chosen), ("rejected", rejected)]
        case Ranking(prompt, responses):
            return [*_texts(prompt), *(("response", response) for response in responses)]


def _ties(record: Record) -> int:
    if isinstance(record, Ranking):
        return sum(pair.label == 0.5 for pair in record.pairs())
    return int(isinstance(record, PreferencePair) and record.label == 0.5)
