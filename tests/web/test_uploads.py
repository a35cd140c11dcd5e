"""Files of data that are too much, whatever they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heed.errors import UserError
from heed.web import uploads
from heed.web.uploads import read_data


def test_rows_with_one_prompt_put_their_tags_together(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    tags = ({}, {"categories": "violence", "kind": "a"}, {"categories": "gore", "kind": "b"}, {"categories": ""})
    path.write_text("".join(json.dumps({"prompt": "How?", "response": f"{i}", "tags": said}) + "\n" for i, said in enumerate(tags)))
    (found,) = read_data(path).found
    assert (found.prompt.tags, found.responses) == ({"categories": "violence, gore", "kind": "b"}, ["0", "1", "2", "3"])


@pytest.mark.parametrize("rows", [["a", "b", "c", "d"], ["a", "a", "a", "a"]])
def test_more_rows_than_fit_into_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[str]) -> None:
    monkeypatch.setattr(uploads, "MAX_ROWS", 3)
    path = tmp_path / "upload.jsonl"
    path.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"^many\.jsonl: more than 3 rows; expected fewer; split the file$"):
        read_data(path, "many.jsonl")
    path.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows[:3]))
    assert len(read_data(path, "many.jsonl").found) == len(set(rows[:3]))
