"""Formats people have, read into records; and what is wrong with a file, told in one line."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from heed.data import sources
from heed.data.check import check
from heed.data.readers import Loaded, read_demonstrations, read_preferences, read_prompts
from heed.data.transcripts import to_conversation
from heed.errors import UserError
from heed.records import Demonstration, Message, PreferencePair, Prompt, Ranking

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello."}
BAD = {"role": "assistant", "content": "Go away."}
SYSTEM = {"role": "system", "content": "Be kind."}
ASKED = Prompt((Message("user", "Hi"),))


@pytest.fixture
def jsonl(tmp_path: Path):
    def write(*rows: Any, name: str = "data.jsonl") -> Path:
        text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


def message_of(read: Any, path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


PAIRS: list[tuple[dict[str, Any], PreferencePair | Ranking, str]] = [
    (
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
        PreferencePair(Prompt("1+1="), "2", "3"),
        "prompt + chosen + rejected (text)",
    ),
    (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        PreferencePair(Prompt("The sky is"), " blue.", " green."),
        "chosen + rejected (text)",
    ),
    (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: A: b", "rejected": "\n\nHuman: Hi\n\nAssistant: A: c"},
        PreferencePair(Prompt("\n\nHuman: Hi\n\nAssistant:"), " A: b", " A: c"),
        "chosen + rejected (transcripts)",
    ),
    (
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        PreferencePair(ASKED, "Hello.", "Go away."),
        "prompt + chosen + rejected (conversations)",
    ),
    (
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        PreferencePair(ASKED, "Hello.", "Go away."),
        "chosen + rejected (conversations)",
    ),
    (
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        PreferencePair(ASKED, "Hello.", "Go away."),
        "prompt + chosen + rejected (conversations)",
    ),
    (
        {"prompt": "Hi", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD], "messages": [USER, GOOD], "score_chosen": 9.0},
        PreferencePair(Prompt((Message("system", "Be kind."), Message("user", "Hi"))), "Hello.", "Go away."),
        "prompt + chosen + rejected (conversations)",
    ),
    (
        {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]},
        PreferencePair(ASKED, "Hello.", "Go away."),
        "prompt + chosen + rejected (conversations)",
    ),
    (
        {"prompt": [USER], "chosen": "Hello.", "rejected": "Go away."},
        PreferencePair(ASKED, "Hello.", "Go away."),
        "prompt + chosen + rejected (conversations)",
    ),
    (
        {
            "prompt": "\n\nHuman: Hi\n\nAssistant:",
            "chosen": "\n\nHuman: Hi\n\nAssistant: yes",
            "rejected": "\n\nHuman: Hi\n\nAssistant: no",
        },
        PreferencePair(Prompt("\n\nHuman: Hi\n\nAssistant:"), " yes", " no"),
        "prompt + chosen + rejected (text)",
    ),
    (
        {"prompt": "x", "chosen": "a", "rejected": "b", "label": 0.5, "margin": 2, "weight": 0.25, "other": None},
        PreferencePair(Prompt("x"), "a", "b", label=0.5, margin=2.0, weight=0.25),
        "prompt + chosen + rejected (text)",
    ),
    (
        {"prompt": "x", "responses": ["a", "", "c"], "ranks": [2, 1, 2], "weight": 3},
        Ranking(Prompt("x"), ("a", "", "c"), (2, 1, 2), weight=3.0),
        "prompt + responses + ranks (text)",
    ),
    (
        {"prompt": [USER], "responses": [[GOOD], [BAD]], "ranks": [1, 2]},
        Ranking(ASKED, ("Hello.", "Go away."), (1, 2)),
        "prompt + responses + ranks (conversations)",
    ),
]


@pytest.mark.parametrize(("row", "record", "style"), PAIRS)
def test_preference_formats(jsonl: Any, row: dict[str, Any], record: PreferencePair | Ranking, style: str) -> None:
    assert read_preferences(jsonl(row)) == Loaded([record], [], style)


@pytest.mark.parametrize(
    ("row", "demonstration"),
    [
        ({"messages": [SYSTEM, USER, BAD, USER, GOOD]}, None),
        ({"prompt": "1+1=", "response": "2"}, Demonstration(Prompt("1+1="), "2")),
        ({"prompt": "1+1=", "completion": "2"}, Demonstration(Prompt("1+1="), "2")),
        ({"prompt": [USER], "completion": [GOOD]}, Demonstration(ASKED, "Hello.")),
        ({"prompt": [USER], "response": "Hello."}, Demonstration(ASKED, "Hello.")),
        ({"prompt": "1+1=", "chosen": "2", "rejected": "3"}, Demonstration(Prompt("1+1="), "2")),
    ],
)
def test_demonstration_formats(jsonl: Any, row: dict[str, Any], demonstration: Demonstration | None) -> None:
    (record,) = read_demonstrations(jsonl(row)).records
    if demonstration is None:
        turns = [Message(m["role"], m["content"]) for m in (SYSTEM, USER, BAD, USER)]
        demonstration = Demonstration(Prompt(tuple(turns)), "Hello.")
    assert record == demonstration


@pytest.mark.parametrize("field", ["response", "completion"])
def test_responses_labelled_good_or_bad_are_no_demonstrations(jsonl: Any, field: str) -> None:
    path = jsonl({"prompt": "Why?", field: "Because.", "label": False})
    assert check(path).ok
    assert check(path).format == f"prompt + {field} + label (text)"
    assert [prompt.text for prompt in read_prompts(path).records] == ["Why?"]
    with pytest.raises(UserError, match=":1: a response with the `label` False; expected demonstrations, which have none: keep the good"):
        read_demonstrations(path)
    with pytest.raises(UserError, match=":1: the fields"):
        read_preferences(path)


@pytest.mark.parametrize("field", ["response", "completion"])
@pytest.mark.parametrize("label", [True, 0, 1.0, "bad", "", float("nan")])
def test_no_label_whatever_it_says_is_imitated_in_silence(jsonl: Any, field: str, label: object) -> None:
    path = jsonl({"prompt": "Why?", field: "Because.", "label": None}, {"prompt": "Who?", field: "You.", "label": label})
    assert f"{path}:2: a response with the `label` {label!r}; expected demonstrations" in message_of(read_demonstrations, path)
    assert read_demonstrations(jsonl({"prompt": "Why?", field: "Because.", "label": None})).records
    assert read_prompts(jsonl({"prompt": "Why?", field: "Because.", "label": label})).records == [Prompt("Why?")]


@pytest.mark.parametrize("field", ["response", "completion"])
@pytest.mark.parametrize(
    ("cells", "found"), [(("True", "False"), "True"), (("false", "TRUE"), "False"), (("1", "0"), "1.0"), (("good", "bad"), "'good'")]
)
def test_labelled_responses_of_a_csv_are_no_demonstrations(tmp_path: Path, field: str, cells: tuple[str, str], found: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(f"prompt,{field},label\n" + "".join(f"Why {i}?,Because.,{cell}\n" for i, cell in enumerate(cells)))
    assert f"{path}:2: a response with the `label` {found}; expected demonstrations" in message_of(read_demonstrations, path)
    assert len(read_prompts(path).records) == 2
    assert check(path).format == f"prompt + {field}{' + label' if found in ('True', 'False') else ''} (text)"


def test_true_and_false_are_text_in_other_cells(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("prompt,response,label\nTrue,false,\n")
    assert read_demonstrations(path).records == [Demonstration(Prompt("True"), "false")]
    path.write_text("prompt,chosen,rejected,label\na,b,c,True\n")
    assert f"{path}:2: `label` is True; expected a number from 0 to 1" in message_of(read_preferences, path)


def test_prompts_are_read_from_any_format_once(jsonl: Any) -> None:
    prompts = read_prompts(jsonl({"prompt": "a", "tags": {"kind": "x"}}, {"prompt": "b"}, {"prompt": "a"}))
    assert prompts.records == [Prompt("a"), Prompt("b")]
    assert prompts.records[0].tags == {"kind": "x"}
    assert [(p.line, p.message) for p in prompts.skipped] == [(3, "the prompt came before")]
    for row, expected in (
        ({"messages": [USER]}, ASKED),
        ({"messages": [USER, GOOD]}, ASKED),
        ({"prompt": [USER]}, ASKED),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, ASKED),
        ({"prompt": "x", "responses": ["a", "b"], "ranks": [1, 2]}, Prompt("x")),
    ):
        assert read_prompts(jsonl(row)).records == [expected]


def test_rows_that_say_nothing_are_skipped_and_counted(jsonl: Any) -> None:
    turn = "\n\nHuman: Hi\n\nAssistant:"
    loaded = read_preferences(
        jsonl(
            {"chosen": turn + " a", "rejected": turn + " b"},
            {"chosen": turn + " a", "rejected": turn + " a"},
            {"chosen": turn + " a", "rejected": turn},
            {"chosen": f"{turn} a\n\nHuman: x\n\nAssistant: y", "rejected": f"{turn} b\n\nHuman: x\n\nAssistant: y"},
            {"chosen": turn + " ", "rejected": turn + " a"},
            {"chosen": turn + " c", "rejected": turn + " c"},
        )
    )
    assert [(r.chosen, r.rejected) for r in loaded.records if isinstance(r, PreferencePair)] == [(" a", " b"), (" ", " a")]
    assert [(p.line, p.skipped) for p in loaded.skipped] == [(2, True), (3, True), (4, True), (6, True)]
    assert loaded.summary() == (
        "2 rows of chosen + rejected (transcripts); 2 skipped: chosen and rejected are identical; "
        "1 skipped: a response is empty; 1 skipped: the transcripts part before their last turn"
    )
    rows = [{"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]}, {"chosen": [USER, GOOD], "rejected": [USER, BAD]}]
    assert [p.line for p in read_preferences(jsonl(*rows)).skipped] == [1]
    same = [{"prompt": "a", "responses": ["x", "x"], "ranks": [1, 2]}]
    assert "data.jsonl:1: all 1 rows are skipped, the first as all responses are identical" in message_of(read_preferences, jsonl(*same))


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("rows", "line", "found", "expected"),
    [
        ([PAIR, '{"prompt": "a", \n'], 2, "property name", "one JSON object per line"),
        ([PAIR, "\n", "[1, 2]\n"], 3, "a list", "`prompt`|object"),
        ([PAIR, "nonsense\n"], 2, "Expecting value at character 1", "one JSON object per line"),
        ([PAIR, "[" * 100_000 + "\n"], 2, "recursion", "one JSON object per line"),
        ([PAIR, "7\n"], 2, "a number", "an object with fields"),
        ([PAIR, {"prompt": "a", "chosen": "b"}], 2, "`rejected` is missing", "prompt + chosen + rejected, as in the rows before"),
        ([PAIR, {**PAIR, "rejected": None}], 2, "`rejected` is missing", "prompt + chosen + rejected"),
        ([{"prompt": "a", "chosen": "b"}], 1, "the fields prompt, chosen", "prompt + chosen + rejected"),
        ([{**PAIR, "rejected": None}], 1, "rejected (null)", "prompt + chosen + rejected"),
        ([{}], 1, "(none)", "prompt + chosen + rejected"),
        ([{**PAIR, "chosen": ""}], 1, "`chosen` is empty", "text"),
        ([{**PAIR, "prompt": " \n"}], 1, "`prompt` is empty", "text"),
        ([{**PAIR, "chosen": 3}], 1, "`chosen` is a number", "text"),
        ([{**PAIR, "chosen": {"a": 1}}], 1, "`chosen` is an object", "text"),
        ([{**PAIR, "chosen": "\ud800"}], 1, "`chosen` holds half a character ('\\ud800')", "Unicode"),
        ([{**PAIR, "tags": {"k": "\ud800"}}], 1, "`tags` holds half a character ('\\ud800')", "Unicode"),
        ([{**PAIR, "tags": {"\ud800": "v"}}], 1, "`tags` holds half a character ('\\ud800')", "Unicode"),
        ([PAIR, '{"prompt": "a", "chosen": "b", "rejected": "c", "rejected": "d"}\n'], 2, "the key 'rejected' twice", "each once"),
        (['{"prompt": "a", "chosen": "b", "rejected": "c", "tags": {"k": "1", "k": "2"}}\n'], 1, "the key 'k' twice", "each once"),
        ([PAIR, {"chosen": "b", "rejected": "c"}], 2, "`prompt` is missing", "prompt + chosen + rejected"),
        (
            [{"chosen": "a b", "rejected": "a c"}, PAIR],
            2,
            "a row of prompt + chosen + rejected",
            "chosen + rejected, as in the rows before",
        ),
        ([PAIR, {**PAIR, "prompt": [USER]}], 2, "(conversations)", "(text), as in the rows before"),
        ([{"chosen": "b", "rejected": "c"}], 1, "begin differently", "a `prompt`"),
        (
            [{"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: x"}],
            1,
            "different prompts",
            "same transcript",
        ),
        ([{**PAIR, "label": 1.5}], 1, "`label` is 1.5", "from 0 to 1"),
        ([{**PAIR, "label": True}], 1, "`label` is True", "from 0 to 1"),
        ([{**PAIR, "weight": -1}], 1, "`weight` is -1", "from 0"),
        (['{"prompt": "a", "chosen": "b", "rejected": "c", "margin": NaN}\n'], 1, "`margin` is nan", "from 0"),
        ([{"prompt": "a", "responses": ["x", "y"], "ranks": [1]}], 1, "1 `ranks` for 2 `responses`", "one rank per response"),
        ([{"prompt": "a", "responses": "xy", "ranks": [1, 2]}], 1, "`responses` is text", "a list of 2 or more"),
        ([{"prompt": "a", "responses": ["x"], "ranks": [1]}], 1, "`responses` is a list of 1", "a list of 2 or more"),
        ([{"prompt": "a", "responses": ["x", "y"], "ranks": "12"}], 1, "`ranks` is text", "a list"),
        ([{"prompt": "a", "responses": ["x", "y"], "ranks": [0, 1]}], 1, "the rank 0", "from 1, which is best"),
        ([{"prompt": "a", "responses": ["x", "y"], "ranks": [1, 1.5]}], 1, "the rank 1.5", "whole numbers"),
        ([{"prompt": "a", "responses": ["x", 2], "ranks": [1, 2]}], 1, "`responses[1]` is a number", "text"),
        ([{"prompt": [USER], "chosen": [GOOD], "rejected": "x"}], 1, "`rejected` is text", "a list of messages"),
        ([{"prompt": [USER], "chosen": [], "rejected": []}], 1, "`chosen` is an empty list", "a list of messages"),
        ([{"prompt": [USER, GOOD], "chosen": "x", "rejected": "y"}], 1, "assistant speak last", "the user"),
        ([{"chosen": [GOOD], "rejected": [BAD]}], 1, "nothing before the response", "the user says"),
        ([{"chosen": [USER], "rejected": [USER]}], 1, "last message of `chosen` is of role user", "assistant"),
        ([{"prompt": "Bye", "chosen": [USER, GOOD], "rejected": [USER, BAD]}], 1, "other messages than `prompt`", "messages of `prompt`"),
        ([{"chosen": [{"from": "human", "value": "Hi"}], "rejected": [BAD]}], 1, "an object with from, value", "`role` and `content`"),
        ([{"chosen": [{**USER, "role": "human"}, GOOD], "rejected": [BAD]}], 1, "role 'human'", "system, user, assistant, tool"),
        ([{"chosen": [{**USER, "content": None}, GOOD], "rejected": [BAD]}], 1, "`chosen[0].content` is null", "text"),
        ([{"chosen": [{**USER, "content": ""}, GOOD], "rejected": [BAD]}], 1, "`chosen[0].content` is empty", "text"),
    ],
)
def test_a_wrong_row_is_one_line_with_its_place(jsonl: Any, rows: list[Any], line: int, found: str, expected: str) -> None:
    path = jsonl(*rows)
    message = message_of(read_preferences, path)
    assert message.startswith(f"{path}:{line}: ")
    assert found in message
    assert "; expected " in message
    assert any(words in message.split("; expected ")[1] for words in expected.split("|"))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "a", "response": " "}, "`response` is empty"),
        ({"messages": [USER]}, "do not end with the assistant"),
        ({"messages": [GOOD]}, "nothing before the response"),
        ({"messages": "Hi"}, "`messages` is text"),
        ({"messages": []}, "`messages` is an empty list"),
        ({"prompt": "a"}, "the fields prompt"),
    ],
)
def test_a_wrong_demonstration(jsonl: Any, row: dict[str, Any], found: str) -> None:
    assert found in message_of(read_demonstrations, jsonl(row))


def test_files_that_cannot_be_read(tmp_path: Path, jsonl: Any) -> None:
    assert "there are no rows; expected at least one" in message_of(read_prompts, jsonl())
    assert "there are no rows" in message_of(read_prompts, jsonl("\n\n"))
    assert "there are no rows" in message_of(read_prompts, jsonl(name="data.jsonl.gz"))
    assert "No such file" in message_of(read_prompts, tmp_path / "absent.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "directory" in message_of(read_prompts, tmp_path / "folder.jsonl")
    (tmp_path / "data.xml").write_text("<a/>")
    assert "organisation/name" in message_of(read_prompts, tmp_path / "data.xml")
    assert "ending in .jsonl" in message_of(read_prompts, "nothing")


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    assert f"{path}:2: byte 0xe9 is not UTF-8; expected text in UTF-8" in message_of(read_prompts, path)
    path = tmp_path / "latin.csv"
    path.write_bytes(b"prompt\na\ncaf\xe9\n")
    assert f"{path}:3: byte 0xe9" in message_of(read_prompts, path)
    path = tmp_path / "latin.json"
    path.write_bytes(b'[\n{"prompt": "a"},\n{"prompt": "caf\xe9"}]')
    assert f"{path}:3: byte 0xe9" in message_of(read_prompts, path)
    path = tmp_path / "wide.jsonl"
    path.write_bytes('{"prompt": "a"}\n'.encode("utf-16"))
    assert f"{path}:1: byte 0xff" in message_of(read_prompts, path)
    path = tmp_path / "marked.jsonl"
    path.write_bytes('{"prompt": "é"}\r\n'.encode("utf-8-sig"))
    assert read_prompts(path).records == [Prompt("é")]


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_a_line_without_end_is_not_read_to_its_end(jsonl: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 2**20)
    fits = {"prompt": "x" * (2**20 - 20)}
    path = jsonl(fits, {"prompt": "x" * 2**20}, name=name)
    assert message_of(read_prompts, path) == f"{path}:2: over 1 MB without an end of line; expected one JSON object per line"
    assert len(read_prompts(jsonl(fits, name=name)).records) == 1


def test_responses_that_nobody_ranked_are_not_left_out_in_silence(jsonl: Any) -> None:
    for row in ({"prompt": "a", "responses": ["b"]}, {"prompt": "a", "responses": ["b", "c"], "ranks": None}):
        path = jsonl(row)
        told = f"{path}:1: `responses` without `ranks`; expected `ranks` too, or a row with one `response` for each"
        assert message_of(read_prompts, path) == told
        assert told in str(next(iter(check(path).problems)))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "a", "chosen": "b", "rejcted": "c"}, "`chosen` without `rejected`; expected `rejected` too, or `response` where"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "`chosen` without `rejected`"),
        ({"prompt": "a", "rejected": "c"}, "`rejected` without `chosen`; expected `chosen` too, or the prompt alone"),
    ],
)
def test_half_a_comparison_does_not_pass_for_a_prompt(jsonl: Any, row: dict[str, Any], told: str) -> None:
    path = jsonl(row)
    assert message_of(read_prompts, path).startswith(f"{path}:1: {told}")
    assert str(next(iter(check(path).problems))).startswith(f"{path}:1: {told}")


def test_no_row_or_cell_is_read_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 2**20)
    fits, long = "x" * (2**20 - 20), "x" * 2**21
    path = tmp_path / "data.json"
    path.write_text(f'[{{"prompt": "{fits}"}},\n {{"prompt": "{long}"}}]')
    assert message_of(read_prompts, path) == f"{path}:2: a row of over 1 MB at column 2; expected a JSON list of rows"
    path.write_text(f'[{{"prompt": "{fits}"}}]')
    assert len(read_prompts(path).records) == 1
    path = tmp_path / "data.csv"
    path.write_text(f"prompt\n{fits}\n{long}\n")
    assert message_of(read_prompts, path) == f"{path}:3: over 1 MB without an end of line; expected comma-separated cells"
    quoted = "x\n" * 2**20
    path.write_text(f'prompt\n"{quoted}"\n')
    assert "broken CSV (field larger than field limit (1048576))" in message_of(read_prompts, path)
    path.write_text(f"prompt\n{fits}\n")
    assert len(read_prompts(path).records) == 1


def test_broken_gzip(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"prompt": f"{i} {'abcdefghij'[i % 10] * (i % 97)}"}) + "\n" for i in range(5000))
    packed = gzip.compress(rows.encode())
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(packed)
    assert len(read_prompts(path).records) == 5000
    path.write_bytes(packed[: len(packed) // 2])
    assert "the gzip stream breaks off; expected a whole file" in message_of(read_prompts, path)
    path.write_bytes(rows.encode())
    assert f"{path}:1: broken gzip data" in message_of(read_prompts, path)
    path.write_bytes(packed[:100] + bytes(len(packed) - 100))
    assert "gzip" in message_of(read_prompts, path)


def test_json_lists_know_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('[\n  {"prompt": "a"},\n  {\n    "prompt": "b"}\n ,{"prompt": ""}\n]\n')
    assert f"{path}:5: `prompt` is empty" in message_of(read_prompts, path)
    for text, message in (
        ('[{"prompt": "a"},\n {"prompt": }]', ":2: Expecting value at column 13"),
        ('[{"prompt": "a"}\n {"prompt": "b"}]', ":2: no comma or closing bracket"),
        ('[{"prompt": "a"}', ":1: no comma or closing bracket"),
        ('[{"prompt": "a"}] x', ":1: something after the list"),
        ('"abc"', ":1: no list at column 1; expected a JSON list"),
        ("", ": there are no rows"),
        ('[{"prompt": "a"},\n]', ":2: Expecting value at column 1"),
        ("[" * 100_000, ":1: maximum recursion depth"),
        ("[]", ": there are no rows"),
        ('[{"prompt": "a"},\n\n {"prompt": "b", "prompt": "c"}]', ":3: the key 'prompt' twice; expected each once"),
    ):
        path.write_text(text)
        assert f"{path}{message}" in message_of(read_prompts, path)
    path.write_text('\n[{"prompt": "a"}, {"prompt": "b"}]')
    assert read_prompts(path).records == [Prompt("a"), Prompt("b")]
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')  # JSON lines under the wrong name
    assert read_prompts(path).records == [Prompt("a"), Prompt("b")]


def test_json_lists_are_the_same_however_much_is_read_at_a_time(tmp_path: Path) -> None:
    prompts = [f"{'é' * (i % 300)} \\ 😀 {i}" for i in range(2000)]
    for indent, escaped in ((None, True), (2, False)):
        path = tmp_path / "data.json"
        text = json.dumps([{"prompt": prompt, "n": i * 10.5} for i, prompt in enumerate(prompts)], indent=indent, ensure_ascii=escaped)
        path.write_text(text, encoding="utf-8-sig")
        assert path.stat().st_size > 5 * 2**16
        assert [prompt.text for prompt in read_prompts(path).records] == prompts
    found = list(sources.rows(path))
    assert [row.line for row in found if isinstance(row, sources.Row)] == [2 + 4 * i for i in range(2000)]
    path.write_bytes(text.encode()[:-30])
    assert f"{path}:7999: " in message_of(read_prompts, path)
    path.write_bytes(text.encode()[:-30] + b"\xff")
    assert f"{path}:7999: byte 0xff is not UTF-8" in message_of(read_prompts, path)


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    long = 'x, "y"\n' * 40_000
    with open(path, "w", newline="", encoding="utf-8-sig") as out:
        csv.writer(out).writerows([["prompt", "chosen", "rejected", "weight"], ["a\nb", "é", long, "0.5"], [], ["c", "d", "e", ""]])
    assert read_preferences(path).records == [
        PreferencePair(Prompt("a\nb"), "é", long, weight=0.5),
        PreferencePair(Prompt("c"), "d", "e"),
    ]
    for text, message in (
        ("prompt,response\na\n", ":2: 1 cells; expected 2, as in the header"),
        ('prompt\n"a\nb"\n"c\n', ":4: broken CSV"),
        ("prompt,response\na,b\nc,\n", ":3: `response` is empty"),
        ("question,answer\na,b\n", ":2: the fields question, answer"),
        ("\nprompt,chosen,rejected,rejected\na,b,c,d\n", ":2: the column 'rejected' twice; expected each once"),
        ("prompt\n", ": there are no rows"),
        ("", ": there are no rows"),
    ):
        path.write_text(text)
        assert f"{path}{message}" in message_of(read_prompts, path)
    path.write_text("prompt,,\na,,\n")
    assert read_prompts(path).records == [Prompt("a")]
    path.write_text("prompt,chosen,rejected,label\na,b,c,good\n")
    assert "`label` is 'good'; expected a number from 0 to 1" in message_of(read_preferences, path)


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    rows = [{"chosen": [USER, GOOD], "rejected": [USER, BAD], "weight": 2.0}] * 3000 + [{"chosen": [USER, GOOD], "rejected": []}]
    parquet.write_table(arrow.Table.from_pylist(rows[:-1]), path)
    assert read_preferences(path).records == [PreferencePair(ASKED, "Hello.", "Go away.", weight=2.0)] * 3000
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    assert f"{path}:3001: `rejected` is an empty list" in message_of(read_preferences, path)
    parquet.write_table(arrow.Table.from_arrays([arrow.array(["a"])] * 2, names=["prompt", "prompt"]), path)
    assert "the column 'prompt' twice; expected each once" in message_of(read_prompts, path)
    path.write_bytes(b"PAR1 not really")
    assert "broken parquet data" in message_of(read_preferences, path)
    assert "No such file" in message_of(read_preferences, tmp_path / "absent.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "needs pyarrow; pip install 'heed-rlhf[data]'" in message_of(read_preferences, path)


def test_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str) -> list[dict[str, Any]]:
        if name != "people/questions":
            raise FileNotFoundError(f"{name} is not there")
        if split not in ("train", "test"):
            raise ValueError(f'Unknown split "{split}"')
        return [{"prompt": split, "response": None}]

    fake = ModuleType("datasets")
    fake.__dict__.update(load_dataset=load_dataset, exceptions=SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {})))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert read_prompts("people/questions").records == [Prompt("train")]
    assert read_prompts("people/questions:test").records == [Prompt("test")]
    assert 'people/questions:x: the data set cannot be loaded: Unknown split "x"' in message_of(read_prompts, "people/questions:x")
    assert "people/absent: the data set cannot be loaded" in message_of(read_prompts, "people/absent")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "needs datasets; pip install 'heed-rlhf[data]'" in message_of(read_prompts, "people/questions")


def test_real_human_preferences(hh_harmless: Path) -> None:
    loaded = read_preferences(hh_harmless)
    assert (len(loaded.records), loaded.skipped, loaded.format) == (1500, [], "chosen + rejected (transcripts)")
    with gzip.open(hh_harmless, "rt", encoding="utf-8") as lines:
        for line, pair in zip(lines, loaded.records, strict=True):
            assert isinstance(pair, PreferencePair)
            row, text = json.loads(line), str(pair.prompt.text)
            assert (text + pair.chosen, text + pair.rejected) == (row["chosen"], row["rejected"])
            assert text.endswith("\n\nAssistant:")
            assert "\n\nHuman:" not in pair.chosen + pair.rejected


def test_transcripts_become_conversations(hh_harmless: Path) -> None:
    text = "Be kind.\n\nHuman: Hi \n\nAssistant: Hello\n\nHuman: Why?\n\nBecause: x\n\nAssistant:"
    turns = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?\n\nBecause: x"))
    pair = PreferencePair(Prompt(text, {"kind": "x"}), " a", "b ", margin=2.0)
    found = to_conversation(pair)
    assert found == PreferencePair(Prompt(turns), "a", "b", margin=2.0)
    assert found.prompt.tags == {"kind": "x"}
    assert to_conversation(Demonstration(Prompt("Hi"), " a")) == Demonstration(ASKED, "a")
    assert to_conversation(Ranking(Prompt("Hi"), (" a", "b"), (1, 1))) == Ranking(ASKED, ("a", "b"), (1, 1))
    assert to_conversation(ASKED) is ASKED
    for record in read_preferences(hh_harmless).records:
        roles = [m.role for m in to_conversation(record.prompt).text if isinstance(m, Message)]
        assert roles[-1] == "user"
        assert set(roles) <= {"user", "assistant"}
