"""Files of data that are too much, whatever they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heed.errors import UserError
from heed.web import uploads
from heed.web.uploads import read_data


@pytest.mark.parametrize("rows", [["a", "b", "c", "d"], ["a", "a", "a", "a"]])
def test_more_rows_than_fit_into_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[str]) -> None:
    monkeypatch.setattr(uploads, "MAX_ROWS", 3)
    path = tmp_path / "upload.jsonl"
    path.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"^many\.jsonl: more than 3 rows; expected fewer; split the file$"):
        read_data(path, "many.jsonl")
    path.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows[:3]))
    assert len(read_data(path, "many.jsonl").found) == len(set(rows[:3]))
