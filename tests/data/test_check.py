"""All the problems of a file at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heed.data.check import Lengths, check
from heed.errors import UserError

TURN = "\n\nHuman: Hi\n\nAssistant:"


def test_every_problem_is_collected_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [
        json.dumps({"prompt": "ab", "chosen": "c", "rejected": "defg"}),
        "{",
        json.dumps({"prompt": "ab", "chosen": "c"}),
        "",
        json.dumps({"prompt": "ab", "chosen": "", "rejected": "d"}),
        json.dumps({"prompt": "x", "chosen": "d", "rejected": "d"}),
        json.dumps({"prompt": "x", "chosen": " ", "rejected": "d", "label": 0.5}),
        json.dumps({"prompt": "x", "response": "d"}),
        json.dumps({"prompt": "abcd", "chosen": "cc", "rejected": "d"}),
        json.dumps({"prompt": "ab", "chosen": "ccc", "rejected": "d"}),
    ]
    path.write_bytes("\n".join(lines).encode() + b'\n{"prompt": "\xff"}\n')
    report = check(path)
    assert not report.ok
    assert [p.line for p in report.problems] == [2, 3, 5, 8, 11]
    assert [p.line for p in report.skipped] == [6]
    assert (report.format, report.num_rows) == ("prompt + chosen + rejected (text)", 10)
    assert (report.num_prompts, report.num_repeated, report.num_blank, report.num_ties) == (3, 1, 1, 1)
    assert report.lengths == {"prompt": Lengths(1, 2, 4, 4), "chosen": Lengths(1, 2, 3, 3), "rejected": Lengths(1, 1, 4, 4)}
    text = str(report)
    assert f"{path}:3: `rejected` is missing; expected prompt + chosen + rejected" in text
    assert "1 rows are skipped, the first in line 6: chosen and rejected are identical" in text
    assert text.endswith("5 problems")


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": [{"role": "user", "content": "Hi"}], "responses": ["a", "bb", "b"], "ranks": [1, 2, 2]}] * 2
    path.write_text("\n".join(map(json.dumps, rows)))
    report = check(path)
    assert report.ok
    assert (report.num_rows, report.num_repeated, report.num_ties) == (2, 1, 2)
    assert report.lengths["response"] == Lengths(1, 1, 2, 2)
    assert str(report).endswith("no problems")


def test_many_problems_are_shown_in_part(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("nonsense\n" * 50)
    report = check(path)
    assert len(report.problems) == 50
    assert (report.format, report.lengths) == ("", {})
    assert "no known format" in str(report)
    assert "and 30 more problems" in str(report)


def test_files_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("")
    assert (check(path).num_rows, [p.message for p in check(path).problems]) == (0, ["there are no rows; expected at least one"])
    with pytest.raises(UserError, match="No such file"):
        check(tmp_path / "absent.jsonl")


def test_real_human_preferences(hh_harmless: Path) -> None:
    report = check(hh_harmless)
    assert report.ok
    assert (report.num_rows, report.num_prompts, report.num_blank, report.skipped) == (1500, 1498, 4, [])
