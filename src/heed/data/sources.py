"""Rows of JSONL, JSON, CSV and parquet files and of Hugging Face data sets, one at a time and with their line numbers."""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from heed.errors import UserError

_SUFFIXES = ".jsonl, .json, .csv (each also .gz) or .parquet"
_DATASET_ID = re.compile(r"[\w.-]+/[\w.-]+(:\S+)?")
_SPACE = re.compile(r"\s*")
_CSV_NUMBERS = ("label", "margin", "weight")
_CSV_TRUTHS = {"true": True, "false": False}
MAX_LINE = 2**24
"""Bytes of a line, a cell, or a row of JSON: a longer one is no training data, and would fill the memory."""


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


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON, in which no key stands twice: which of two is meant, nobody knows."""
    _each_once([name for name, _ in pairs], "key")
    return dict(pairs)


def _each_once(names: Sequence[str], what: str, line: int | None = None) -> None:
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise Malformed(f"the {what} {twice!r:.80} twice", "each once", line)


_JSON = json.JSONDecoder(object_pairs_hook=_object)


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
        raise _not_utf8(error, line) from None


def _not_utf8(error: UnicodeDecodeError, line: int) -> Malformed:
    """What is wrong with bytes that begin in a line."""
    line += error.object.count(b"\n", 0, error.start)
    return Malformed(f"byte 0x{error.object[error.start]:02x} is not UTF-8", "text in UTF-8", line)


def _lines(handle: IO[bytes], expected: str) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; raises `Malformed` where one is longer than `MAX_LINE`."""
    for line, raw in enumerate(iter(partial(handle.readline, MAX_LINE + 1), b""), start=1):
        if len(raw) > MAX_LINE:
            raise Malformed(f"over {MAX_LINE >> 20} MB without an end of line", expected, line)
        yield line, raw


def _jsonl(file: str) -> Iterator[Row | Problem]:
    with _open(file) as handle:
        for line, raw in _lines(handle, "one JSON object per line"):
            try:
                text = _decode(raw, line)
                if text.strip():
                    yield Row(line, _loads(text))
            except Malformed as error:
                yield Problem(file, line, str(error))


def _loads(text: str) -> object:
    try:
        return _JSON.decode(text)
    except Malformed:
        raise
    except json.JSONDecodeError as error:
        raise Malformed(f"{error.msg} at character {error.pos + 1}", "one JSON object per line") from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{error}", "one JSON object per line") from None


def _json(file: str) -> Iterator[Row | Problem]:
    with _open(file) as handle:
        text = _Text(handle)
        first = text.next_sign()
        if first == "[":
            yield from _json_list(text)
        elif first and first != "{":
            raise text.wrong("no list")
    if first == "{":  # JSON lines often go by this name
        yield from _jsonl(file)


def _json_list(text: _Text) -> Iterator[Row]:
    text.at += 1
    more = text.next_sign() != "]"
    while more:
        line, _ = text.place(text.at)
        yield Row(line, text.value())
        more = text.next_sign() == ","
        if more:
            text.at += 1
            text.next_sign()
        elif text.next_sign() != "]":
            raise text.wrong("no comma or closing bracket")
    text.at += 1
    if text.next_sign():
        raise text.wrong("something after the list")


class _Text:
    """The text of a JSON file from `at`, to where it was read; no more of it is held than the value there needs."""

    def __init__(self, file: IO[bytes]) -> None:
        self.at = 0
        self._text, self._file, self._decoder = "", file, codecs.getincrementaldecoder("utf-8-sig")()
        self._line, self._begin, self._counted = 1, 0, 0  # the line at the place `_counted`, and where that line begins

    def next_sign(self) -> str:
        """The next character that is no space, to which it goes; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self._text) or not self._read_on():
                return self._text[self.at : self.at + 1]

    def value(self) -> object:
        """The value that begins here, after which it goes on."""
        while True:
            try:
                value, end = _JSON.raw_decode(self._text, self.at)
            except Malformed as error:
                error.line = self.place(self.at)[0]
                raise
            except json.JSONDecodeError as error:
                # A string that does not end, and a fault at the end of what was read, may be just that: not read yet.
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 12
                if cut and len(self._text) - self.at > MAX_LINE:
                    raise self.wrong(f"a row of over {MAX_LINE >> 20} MB") from None
                if not cut or not self._read_on():
                    raise self.wrong(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise self.wrong(str(error)) from None
            else:
                if end < len(self._text) or not self._read_on():
                    self.at = end
                    return value

    def wrong(self, found: str, at: int | None = None) -> Malformed:
        line, column = self.place(self.at if at is None else at)
        return Malformed(f"{found} at column {column}", "a JSON list of rows", line)

    def place(self, at: int) -> tuple[int, int]:
        """Line and column; no place before one that was asked for."""
        if lines := self._text.count("\n", self._counted, at):
            self._line, self._begin = self._line + lines, self._text.rfind("\n", self._counted, at) + 1
        self._counted = at
        return self._line, at - self._begin + 1

    def _read_on(self) -> bool:
        """Read as much again, and forget what lies behind; false at the end of the file."""
        raw = self._file.read(max(2**16, len(self._text) - self.at))
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise _not_utf8(error, self._line + self._text.count("\n", self._counted)) from None
        if raw:
            self.place(self.at)
            self._text = self._text[self.at :] + text
            self._begin, self._counted, self.at = self._begin - self.at, 0, 0
        return bool(raw)


def _csv(file: str) -> Iterator[Row | Problem]:
    csv.field_size_limit(MAX_LINE)  # a transcript may well be longer than the 128 KiB that the module allows
    with _open(file) as handle:
        table = csv.reader((_decode(raw, line) for line, raw in _lines(handle, "comma-separated cells")), strict=True)
        header, line = None, 1
        try:
            for cells in table:
                if not cells:
                    pass
                elif header is None:
                    _each_once([name for name in cells if name], "column", line)  # columns without a name are nobody's
                    header = cells
                elif len(cells) != len(header):
                    yield Problem(file, line, f"{len(cells)} cells; expected {len(header)}, as in the header")
                else:
                    yield Row(line, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True)})
                line = table.line_num + 1
        except csv.Error as error:
            raise Malformed(f"broken CSV ({error})", 'comma-separated cells, quoted with "', line) from None


def _cell(name: str, cell: str) -> object:
    """What a cell says: a number or a truth where one belongs, nothing where an optional one is empty, and otherwise its text."""
    if name not in _CSV_NUMBERS:
        return cell
    if name == "label" and (truth := _CSV_TRUTHS.get(cell.strip().lower())) is not None:
        return truth
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _parquet(file: str) -> Iterator[Row]:
    parquet = _extra("pyarrow.parquet", file)
    arrow_error = _extra("pyarrow", file).ArrowException
    with _open(file) as handle:
        try:
            found = parquet.ParquetFile(handle)
            _each_once(found.schema_arrow.names, "column")
            table = (fields for batch in found.iter_batches(batch_size=1024) for fields in batch.to_pylist())
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
