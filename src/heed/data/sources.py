"""Rows of JSONL, JSON, CSV and parquet files and of Hugging Face data sets, one at a time and with their line numbers."""

from __future__ import annotations

import csv
import gzip
import importlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from heed.errors import UserError

_SUFFIXES = ".jsonl, .json, .csv (each also .gz) or .parquet"
_DATASET_ID = re.compile(r"[\w.-]+/[\w.-]+(:\S+)?")
_SPACE = re.compile(r"\s*")
_CSV_NUMBERS = ("label", "margin", "weight")
MAX_LINE = 2**24
"""Bytes of a line of JSON: a longer one is no row of training data, and would fill the memory."""


class Malformed(ValueError):
    """A row, or what should be one, that cannot be read: what was found and what was expected."""

    def __init__(self, found: str, expected: str, line: int | None = None) -> None:
        super().__init__(f"{found}; expected {expected}")
        self.line = line


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that gives no record, and why."""

    file: str
    line: int | None
    """Counted from 1; the number of the row where a file has no lines."""
    message: str
    skipped: bool = False
    """True for a well-formed row that says nothing, such as equal responses; False for one that is wrong."""

    def error(self) -> UserError:
        return UserError(self.message, file=self.file, line=self.line)

    def __str__(self) -> str:
        return str(self.error())


class Row(NamedTuple):
    """One row as it was found."""

    line: int
    fields: object


def rows(source: str | Path) -> Iterator[Row | Problem]:
    """Yield every row of a file or data set in order, and a `Problem` in place of each that cannot be read.

    A source is a path, or `organisation/name` with an optional `:split` (default `train`). Raises `UserError` where it cannot be opened.
    """
    file, line = str(source), 0
    read = _reader(file)
    try:
        for row in read(file):
            line = row.line or line
            yield row
    except Malformed as error:
        yield Problem(file, error.line, str(error))
    except EOFError:
        yield Problem(file, line + 1, "the gzip stream breaks off; expected a whole file")
    except (gzip.BadGzipFile, zlib.error) as error:
        yield Problem(file, line + 1, f"broken gzip data ({error}); expected a gzip file")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", file=file) from None


def _reader(source: str) -> Callable[[str], Iterator[Row | Problem]]:
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    suffix = Path(source.removesuffix(".gz")).suffix.lower()
    if suffix in readers:
        return readers[suffix]
    if Path(source).exists() or not _DATASET_ID.fullmatch(source):
        raise UserError(f"{source!r} is no kind of data heed reads", expected=f"a file ending in {_SUFFIXES}, or organisation/name")
    return _hub


def _open(file: str) -> IO[bytes]:
    return gzip.open(file, "rb") if file.endswith(".gz") else open(file, "rb")  # type: ignore[return-value]


def _decode(raw: bytes, line: int) -> str:
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise Malformed(f"byte 0x{raw[error.start]:02x} is not UTF-8", "text in UTF-8", line) from None


def _jsonl(file: str) -> Iterator[Row | Problem]:
    with _open(file) as handle:
        for line, raw in enumerate(iter(partial(handle.readline, MAX_LINE + 1), b""), start=1):
            if len(raw) > MAX_LINE:
                raise Malformed(f"over {MAX_LINE >> 20} MB without an end of line", "one JSON object per line", line)
            try:
                text = _decode(raw, line)
                if text.strip():
                    yield Row(line, _loads(text))
            except Malformed as error:
                yield Problem(file, line, str(error))


def _loads(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Malformed(f"{error.msg} at character {error.pos + 1}", "one JSON object per line") from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{error}", "one JSON object per line") from None


def _json(file: str) -> Iterator[Row | Problem]:
    with _open(file) as handle:
        text = _decode(handle.read(), 1)
    at = _skip_space(text, 0)
    if text.startswith("{", at):  # JSON lines often go by this name
        yield from _jsonl(file)
    elif text.startswith("[", at):
        yield from _json_list(text, at)
    elif at < len(text):
        raise _misplaced(text, at)


def _json_list(text: str, at: int) -> Iterator[Row]:
    decoder, line, counted = json.JSONDecoder(), 1, 0
    at = _skip_space(text, at + 1)
    more = not text.startswith("]", at)
    while more:
        line, counted = line + text.count("\n", counted, at), at
        try:
            fields, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _misplaced(text, error.pos, error.msg) from None
        except (ValueError, RecursionError) as error:
            raise _misplaced(text, at, str(error)) from None
        yield Row(line, fields)
        at = _skip_space(text, at)
        more = text.startswith(",", at)
        if more:
            at = _skip_space(text, at + 1)
        elif not text.startswith("]", at):
            raise _misplaced(text, at, "no comma or closing bracket")
    if _skip_space(text, at + 1) < len(text):
        raise _misplaced(text, _skip_space(text, at + 1), "something after the list")


def _misplaced(text: str, at: int, found: str = "no list") -> Malformed:
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return Malformed(f"{found} at column {column}", "a JSON list of rows", line)


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _csv(file: str) -> Iterator[Row | Problem]:
    csv.field_size_limit(2**31 - 1)  # a transcript may well be longer than the 128 KiB that the module allows
    with _open(file) as handle:
        table = csv.reader((_decode(raw, line) for line, raw in enumerate(handle, start=1)), strict=True)
        header, line = None, 1
        try:
            for cells in table:
                if not cells:
                    pass
                elif header is None:
                    header = cells
                elif len(cells) != len(header):
                    yield Problem(file, line, f"{len(cells)} cells; expected {len(header)}, as in the header")
                else:
                    yield Row(line, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True)})
                line = table.line_num + 1
        except csv.Error as error:
            raise Malformed(f"broken CSV ({error})", 'comma-separated cells, quoted with "', line) from None


def _cell(name: str, cell: str) -> object:
    """What a cell says: a number where one belongs, nothing where an optional one is empty, and otherwise its text."""
    if name not in _CSV_NUMBERS:
        return cell
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _parquet(file: str) -> Iterator[Row]:
    parquet = _extra("pyarrow.parquet", file)
    arrow_error = _extra("pyarrow", file).ArrowException
    with _open(file) as handle:
        try:
            batches = parquet.ParquetFile(handle).iter_batches(batch_size=1024)
            table = (fields for batch in batches for fields in batch.to_pylist())
            yield from (Row(line, fields) for line, fields in enumerate(table, start=1))
        except arrow_error as error:
            raise Malformed(f"broken parquet data ({error})", "a parquet file") from None


def _hub(source: str) -> Iterator[Row]:
    name, _, split = source.partition(":")
    datasets = _extra("datasets", source)
    try:
        table = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"the data set cannot be loaded: {error}", file=source, expected="a file, or a data set on the hub") from None
    for line, fields in enumerate(table, start=1):
        yield Row(line, fields)


def _extra(module: str, source: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"reading this needs {module.partition('.')[0]}", file=source, fix="pip install 'heed-rlhf[data]'") from None
