"""Training data as records: demonstrations, preferences and prompts from files and data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from heed.data.formats import ANY, DEMONSTRATIONS, PREFERENCES, Layout, Record, Uninformative, describe, layout_of, parse
from heed.data.sources import Malformed, Problem, rows
from heed.errors import UserError
from heed.records import Demonstration, PreferencePair, Prompt, Ranking

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[R]):
    """What was read from one source."""

    records: list[R]
    skipped: Sequence[Problem]
    """Rows that say nothing, such as two equal responses."""
    format: str
    """The fields and style of its rows, such as `chosen + rejected (transcripts)`."""

    def summary(self) -> str:
        """What was read and what was skipped, in one line."""
        reasons = Counter(problem.message for problem in self.skipped)
        skipped = "".join(f"; {count} skipped: {reason}" for reason, count in reasons.most_common())
        return f"{len(self.records)} rows of {self.format}{skipped}"


class Parsed(NamedTuple):
    """One row as a record."""

    line: int
    record: Record
    format: str


def read_demonstrations(source: str | Path) -> Loaded[Demonstration]:
    """Read demonstrations: `messages`, `prompt` + `response` or `completion`, or the chosen responses of preference pairs.

    Of `messages` the last, the assistant's, is the response. Raises `UserError` at the first row that is wrong.
    """
    return _read(source, DEMONSTRATIONS, _demonstration)


def read_preferences(source: str | Path) -> Loaded[PreferencePair | Ranking]:
    """Read preferences: `prompt` + `responses` + `ranks`, or `chosen` + `rejected` with a `prompt` or the shared beginning as one.

    Texts and conversations are read as they are; HH transcripts as text, whose prompt ends with the last shared `Assistant:`. Pairs may
    have a `label`, `margin` and `weight`, rankings a `weight`. Raises `UserError` at the first row that is wrong.
    """
    return _read(source, PREFERENCES, _preference)


def read_prompts(source: str | Path) -> Loaded[Prompt]:
    """Read the prompts of any data heed reads, each once; raises `UserError` at the first row that is wrong."""
    seen: set[Prompt] = set()

    def first(record: Record) -> Prompt:
        prompt = record if isinstance(record, Prompt) else record.prompt
        if prompt in seen:
            raise Uninformative("the prompt came before")
        seen.add(prompt)
        return prompt

    return _read(source, ANY, first)


def outcomes(source: str | Path, layouts: Sequence[Layout] = ANY) -> Iterator[Parsed | Problem]:
    """Every row of a source as a record of one of `layouts`, or the problem with it; all rows must have the format of the first."""
    file, found_any = str(source), False
    layout: Layout | None = None
    style = ""
    for row in rows(source):
        found_any = True
        if isinstance(row, Problem):
            yield row
            continue
        try:
            layout = _same_layout(row.fields, layouts, layout)
            record = parse(row.fields, layout)
            found = describe(layout, record if isinstance(record, Prompt) else record.prompt)
            style = style or found
            if found != style:
                raise Malformed(f"a row of {found}", f"{style}, as in the rows before")
            yield Parsed(row.line, record, style)
        except Malformed as error:
            yield Problem(file, row.line, str(error))
        except Uninformative as error:
            yield Problem(file, row.line, str(error), skipped=True)
    if not found_any:
        yield Problem(file, None, "there are no rows; expected at least one")


def _same_layout(fields: object, layouts: Sequence[Layout], first: Layout | None) -> Layout:
    """The layout of a row, which must be that of the `first`; a row that lacks a field is told which."""
    if first is not None and isinstance(fields, Mapping):
        missing = [name for name in first if fields.get(name) is None]
        if missing:
            raise Malformed(f"`{missing[0]}` is missing", f"{' + '.join(first)}, as in the rows before")
    layout = layout_of(fields, layouts)
    if first is not None and layout != first:
        raise Malformed(f"a row of {' + '.join(layout)}", f"{' + '.join(first)}, as in the rows before")
    return layout


def _read(source: str | Path, layouts: Sequence[Layout], convert: Callable[[Record], R]) -> Loaded[R]:
    records: list[R] = []
    skipped: list[Problem] = []
    style = ""
    for outcome in outcomes(source, layouts):
        if isinstance(outcome, Problem):
            if not outcome.skipped:
                raise outcome.error()
            skipped.append(outcome)
            continue
        style = outcome.format
        try:
            records.append(convert(outcome.record))
        except Malformed as error:
            raise UserError(str(error), file=source, line=outcome.line) from None
        except Uninformative as error:
            skipped.append(Problem(str(source), outcome.line, str(error), skipped=True))
    if not records:
        raise UserError(f"all {len(skipped)} rows are skipped, the first as {skipped[0].message}", file=source, line=skipped[0].line)
    return Loaded(records, skipped, style)


def _demonstration(record: Record) -> Demonstration:
    if isinstance(record, PreferencePair):
        return Demonstration(record.prompt, record.chosen)
    if not isinstance(record, Demonstration):
        raise Malformed("`messages` do not end with the assistant", "the assistant's response last")
    return record


def _preference(record: Record) -> PreferencePair | Ranking:
    assert isinstance(record, PreferencePair | Ranking)  # the layouts of preferences give nothing else
    return record
