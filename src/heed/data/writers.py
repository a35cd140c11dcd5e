"""Records as rows that the readers read back, and JSONL files that are whole or not there at all."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from heed.data.formats import ANY, PROMPT, Record, layout_of, parse
from heed.errors import UserError
from heed.records import Demonstration, PreferencePair, Prompt, Ranking, Rollout

_ROLLOUT_FIELDS = tuple(f.name for f in fields_of(Rollout) if f.name not in ("prompt", "text", "top_logprobs"))


def write_jsonl(path: str | Path, rows: Iterable[Record | Rollout | Mapping[str, Any]]) -> int:
    """Write records, or rows as they are, as JSON lines, compressed if the name ends in `.gz`, and return how many.

    The file appears whole, by renaming, or not at all. Raises `UserError` where it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    try:
        with open(temporary, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw as out:
            for row in rows:
                line = json.dumps(row if isinstance(row, Mapping) else to_row(row), ensure_ascii=False)
                out.write(line.encode() + b"\n")
                count += 1
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", file=path) from None
    finally:
        temporary.unlink(missing_ok=True)
    return count


def to_row(record: Record | Rollout) -> dict[str, Any]:
    """The row of a record, as the readers read it; a rollout keeps its token ids and logprobs beside `prompt` and `response`."""
    if isinstance(record, Prompt):
        return _prompt(record)
    if isinstance(record, Demonstration):
        return {**_prompt(record.prompt), "response": record.response}
    if isinstance(record, PreferencePair):
        return {**_prompt(record.prompt), "chosen": record.chosen, "rejected": record.rejected, **_unusual(record)}
    if isinstance(record, Ranking):
        return {**_prompt(record.prompt), "responses": list(record.responses), "ranks": list(record.ranks), **_unusual(record)}
    row = {**_prompt(record.prompt), "response": record.text, **{name: getattr(record, name) for name in _ROLLOUT_FIELDS}}
    return row | {"top_logprobs": record.top_logprobs} if record.top_logprobs else row


def from_row(row: Mapping[str, Any]) -> Record | Rollout:
    """The record that `to_row` wrote; raises `ValueError` for a row that holds none."""
    if "response_ids" not in row:
        return parse(row, layout_of(row, ANY))
    prompt = parse(row, PROMPT)
    assert isinstance(prompt, Prompt)
    values: dict[str, Any] = {name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in _ROLLOUT_FIELDS}
    top = tuple(tuple((int(token), float(logprob)) for token, logprob in place) for place in row.get("top_logprobs", ()))
    return Rollout(prompt=prompt, text=row["response"], top_logprobs=top, **values)


def _prompt(prompt: Prompt) -> dict[str, Any]:
    text = prompt.text if isinstance(prompt.text, str) else [{"role": m.role, "content": m.content} for m in prompt.text]
    return {"prompt": text, "tags": dict(prompt.tags)} if prompt.tags else {"prompt": text}


def _unusual(record: PreferencePair | Ranking) -> dict[str, float]:
    """The optional numbers of a record that are not at their default."""
    optional = [f for f in fields_of(record) if f.name in ("label", "margin", "weight")]
    return {f.name: getattr(record, f.name) for f in optional if getattr(record, f.name) != f.default}
