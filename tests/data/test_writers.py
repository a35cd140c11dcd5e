"""What is written is read back, and a file is whole or absent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heed.data.readers import read_demonstrations, read_preferences, read_prompts
from heed.data.writers import from_row, to_row, write_jsonl
from heed.errors import UserError
from heed.records import Demonstration, Message, PreferencePair, Prompt, Ranking, Rollout

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
MESSAGES = st.tuples(st.builds(Message, st.sampled_from(["system", "assistant"]), TEXTS), st.builds(Message, st.just("user"), TEXTS))
PROMPTS = st.builds(Prompt, TEXTS | MESSAGES, st.dictionaries(TEXTS, TEXTS, max_size=2))
RECORDS = st.one_of(
    PROMPTS,
    st.builds(Demonstration, PROMPTS, TEXTS),
    st.builds(PreferencePair, PROMPTS, TEXTS.map("a".__add__), TEXTS.map("b".__add__), label=st.floats(0, 1), margin=st.floats(0, 9)),
    st.builds(Ranking, PROMPTS, st.tuples(st.just(""), TEXTS), st.tuples(st.integers(1, 3), st.integers(1, 3)), weight=st.floats(0, 9)),
    st.builds(
        Rollout,
        PROMPTS,
        st.tuples(st.integers(0, 9)),
        st.tuples(st.integers(0, 9)),
        st.tuples(st.floats(-9, 0)),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.sampled_from(["stop", "length"]),
        st.integers(0, 3),
        st.just(()) | st.tuples(st.tuples(st.tuples(st.integers(0, 9), st.floats(-9, 0)), st.tuples(st.integers(0, 9), st.floats(-9, 0)))),
    ),
)


@given(RECORDS)
def test_records_round_trip(record: Any) -> None:
    found: Any = from_row(json.loads(json.dumps(to_row(record))))
    assert found == record
    asked, read = (r if isinstance(r, Prompt) else r.prompt for r in (record, found))
    assert read.tags == asked.tags


def test_rows_hold_only_what_is_unusual() -> None:
    assert to_row(PreferencePair(Prompt("a"), "b", "c")) == {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert to_row(Ranking(Prompt("a"), ("b", "c"), (1, 1), 0.5)) == {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1], "weight": 0.5}
    assert "top_logprobs" not in to_row(Rollout(Prompt("a"), (1,), (2,), (-0.5,), "b", "stop"))
    with pytest.raises(ValueError, match="the fields answer"):
        from_row({"answer": "a"})


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_files_are_read_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    prompt = Prompt((Message("user", "é\u2028\n"),))
    for read, record in (
        (read_prompts, prompt),
        (read_demonstrations, Demonstration(prompt, "ä")),
        (read_preferences, PreferencePair(prompt, " ", "b")),
        (read_preferences, Ranking(prompt, ("", "b", "c"), (2, 1, 2))),
    ):
        assert write_jsonl(path, [record]) == 1
        first = path.read_bytes()
        assert read(path).records == [record]
        write_jsonl(path, [to_row(record)])
        assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_jsonl(path, [Prompt("old")])

    def rows() -> Iterator[Prompt]:
        yield Prompt("new")
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        write_jsonl(path, rows())
    assert read_prompts(path).records == [Prompt("old")]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match=r"data\.jsonl: cannot be written: No such file or directory"):
        write_jsonl(tmp_path / "absent" / "data.jsonl", [Prompt("a")])
