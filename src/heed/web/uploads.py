"""Files of data as items of a project: read whole or refused with the place of the fault, and never left behind."""

from __future__ import annotations

import gzip
import re
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from heed.data.formats import Record
from heed.data.readers import Parsed, outcomes
from heed.data.sources import Problem
from heed.errors import UserError
from heed.feedback.categories import merged_tags
from heed.feedback.database import Database, take_turns
from heed.feedback.projects import Added, Projects, add_project_items
from heed.feedback.waiting import AddedPrompts, add_prompts
from heed.records import Demonstration, PreferencePair, Prompt, Ranking, Response

MAX_UNPACKED = 256 * 2**20
"""Bytes of the data in an upload, however small it was packed."""
MAX_ROWS = 250_000
"""Of a file: all of them are in memory before any is added."""
_NAME = re.compile(r"(\.jsonl|\.json|\.csv)(\.gz)?$|(\.parquet)$", re.IGNORECASE)
_KINDS = "a file ending in .jsonl, .json, .csv (each also .gz) or .parquet"


@dataclass(frozen=True, slots=True)
class Found:
    """A prompt with the responses to it, and how the file ranks them."""

    line: int
    prompt: Prompt
    responses: list[str]
    """Different ones, in the file's order; none where a policy is to answer."""
    ranks: list[int] | None
    """1 is best; none where the file does not say."""


@dataclass(frozen=True, slots=True)
class Data:
    """What a file holds."""

    name: str
    format: str
    found: Sequence[Found]
    skipped: Counter[str]
    """Rows that say nothing, by why."""

    @property
    def most_responses(self) -> int:
        return max((len(f.responses) for f in self.found), default=0)


def read_data(path: Path, name: str = "") -> Data:
    """Read any file that `heed.data` reads; `name` is what errors call it.

    A pair or ranking is one entry; responses that come in rows of their own are put together by prompt, as are the tags of these rows.
    Raises UserError at the first row that is wrong.
    """
    name = name or str(path)
    found: list[Found] = []
    alone: dict[Prompt, Found] = {}
    skipped: Counter[str] = Counter()
    style = ""
    for count, row in enumerate(_rows(path, name), start=1):
        if count > MAX_ROWS:
            raise UserError(f"more than {MAX_ROWS:,} rows", file=name, expected="fewer", fix="split the file")
        if isinstance(row, Problem):
            skipped[row.message] += 1
            continue
        style = row.format
        if isinstance(row.record, Prompt | Demonstration):
            prompt, texts = (row.record, []) if isinstance(row.record, Prompt) else (row.record.prompt, [row.record.response])
            entry = alone.setdefault(prompt, Found(row.line, prompt, [], None))
            entry.responses.extend(text for text in texts if text not in entry.responses)
            if prompt.tags != entry.prompt.tags:
                alone[prompt] = replace(entry, prompt=Prompt(prompt.text, merged_tags(entry.prompt.tags, prompt.tags)))
        else:
            found.append(_compared(row.line, row.record))
    return Data(name, style, [*found, *alone.values()], skipped)


def add_data(database: Database, project_id: int, data: Data, by: int | None, *, gold: bool = False) -> tuple[Added, AddedPrompts]:
    """Add what was read to a project, all of it or nothing: items, and prompts that wait for a policy where they have no responses.

    With `gold` the file's ranks are the right answers: raises UserError where there are none, or for more responses than are shown
    together.
    """
    most = Projects(database).get(project_id).settings.num_responses
    for entry in data.found if gold else ():
        if entry.ranks is None:
            raise UserError(f"rows of {data.format} have no right answer", file=data.name, expected="preferences or rankings")
        if len(entry.responses) > most:
            told = f"{len(entry.responses)} responses with one right answer"
            raise UserError(told, file=data.name, line=entry.line, expected=f"at most {most}, as many as are shown together")
    answered = [entry for entry in data.found if entry.responses]
    items = [(entry.prompt, [Response(text) for text in entry.responses]) for entry in answered]
    prompts = [entry.prompt for entry in data.found if not entry.responses]
    added, waiting = Added(0, 0, 0, 0), AddedPrompts(0, 0)
    with database.write() as session:
        take_turns(session, "texts")
        if items:
            added = add_project_items(session, project_id, items, by, gold=[entry.ranks for entry in answered] if gold else None)
        if prompts:
            waiting = add_prompts(session, project_id, prompts, by)
    return added, waiting


@contextmanager
def received(upload: IO[bytes], name: str) -> Iterator[Path]:
    """An upload as a file of its kind, unpacked; gone when the block ends. Raises UserError where it is of no kind or too large."""
    kind = _NAME.search(name)
    if kind is None:
        raise UserError(f"{name!r} is no kind of data heed reads", expected=_KINDS)
    suffix, packed, parquet = kind.groups()
    with tempfile.TemporaryDirectory(prefix="heed-upload-") as folder:
        path = Path(folder) / f"upload{(suffix or parquet).lower()}"
        with open(path, "wb") as out:
            if packed:
                _unpack(upload, out, name)
            else:
                shutil.copyfileobj(upload, out, 2**20)
        if parquet:
            _check_parquet(path, name)
        yield path


def shown_name(name: str) -> str:
    """A file's name as it may be shown: what browsers send can be anything."""
    return "".join(c if c.isprintable() else "?" for c in name.encode(errors="replace").decode())[-100:]


def _rows(path: Path, name: str) -> Iterator[Parsed | Problem]:
    """Rows, and those that are skipped; UserError at the first that is wrong, and never with the path in it."""
    try:
        for row in outcomes(path):
            if isinstance(row, Problem) and not row.skipped:
                raise UserError(row.message, file=name, line=row.line)
            if isinstance(row, Parsed) and any("\0" in text for text in _texts(row.record)):
                raise UserError("a text with a NUL character", file=name, line=row.line, expected="text that databases keep")
            yield row
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from None


def _texts(record: Record) -> Iterator[str]:
    prompt = record if isinstance(record, Prompt) else record.prompt
    yield prompt.display()
    yield from (text for tag in prompt.tags.items() for text in tag)
    match record:
        case Demonstration():
            yield record.response
        case PreferencePair():
            yield from (record.chosen, record.rejected)
        case Ranking():
            yield from record.responses


def _compared(line: int, record: PreferencePair | Ranking) -> Found:
    if isinstance(record, PreferencePair):
        ranks = [1, 1] if record.label == 0.5 else [1, 2] if record.label > 0.5 else [2, 1]
        return Found(line, record.prompt, [record.chosen, record.rejected], ranks)
    # Of equal texts the first counts; the ranks of what is left begin at 1 again.
    ranked = dict(reversed(list(zip(record.responses, record.ranks, strict=True))))
    texts = list(dict.fromkeys(record.responses))
    return Found(line, record.prompt, texts, [1 + sum(ranked[other] < ranked[text] for other in texts) for text in texts])


def _unpack(upload: IO[bytes], out: IO[bytes], name: str) -> None:
    size = 0
    try:
        with gzip.GzipFile(fileobj=upload, mode="rb") as unpacked:
            while chunk := unpacked.read(2**20):
                size += len(chunk)
                if size > MAX_UNPACKED:
                    raise _too_large(name)
                out.write(chunk)
    except EOFError:
        raise UserError("the gzip stream breaks off", file=name, expected="a whole file") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"broken gzip data ({error})", file=name, expected="a gzip file") from None


def _check_parquet(path: Path, name: str) -> None:
    """UserError where the table unpacks to too much; a text that repeats takes almost no room in the file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        return  # the reader says what is missing
    try:
        table: Any = parquet.ParquetFile(path)
        groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
        # No value is larger than all different ones of its column together, so no batch than this.
        largest = max((g.column(c).total_uncompressed_size for g in groups for c in range(g.num_columns)), default=0)
        size = 0
        for batch in table.iter_batches(batch_size=min(1024, max(1, MAX_UNPACKED // max(1, largest)))):
            size += batch.nbytes
            if size > MAX_UNPACKED:
                raise _too_large(name)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"broken parquet data ({error})", file=name, expected="a parquet file") from None


def _too_large(name: str) -> UserError:
    return UserError(f"more than {MAX_UNPACKED // 2**20} MB of data", file=name, expected="less", fix="split the file")
