from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateTable

from heed.errors import UserError
from heed.feedback import FeedbackStore
from heed.feedback.database import Database
from heed.feedback.schema import Base
from heed.records import Judgement, Message, Prompt, Response

PROMPT = Prompt("Why is the sky blue?", {"kind": "question"})
TEXTS = ("Rayleigh scattering.", "It is not", "Because.", "Ask at night.")


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    made = FeedbackStore(tmp_path / "feedback.db")
    made.add_responses(PROMPT, [Response(t, model="m", sampling={"temperature": 1.0}, run="r") for t in TEXTS])
    return made


def judged(ranks: tuple[int, ...] = (1, 2, 2, 4), *, annotator: str = "ada", **fields) -> Judgement:
    return Judgement(PROMPT, TEXTS[: len(ranks)], ranks, annotator, **fields)


def start(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Another process, with this one's import path, that runs `code`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


# What comes back


def test_a_judgement_comes_back_as_it_was_given_from_a_new_connection(store: FeedbackStore, tmp_path: Path):
    given_ = [
        judged(order_shown=(2, 0, 3, 1), seconds=12.5, note="höchst knapp\n二番目"),
        judged((2, 1), annotator="bob"),
        judged((1, 1, 1), annotator="ada", seconds=0.0),
    ]
    for judgement in given_:
        store.add_judgement(judgement)
    store.close()
    again = FeedbackStore(f"sqlite:///{tmp_path}/feedback.db")
    assert again.judgements() == given_
    assert again.judgements()[0].prompt.tags == {"kind": "question"}


def test_responses_of_a_judgement_keep_their_own_order(store: FeedbackStore):
    backwards = Judgement(PROMPT, TEXTS[::-1], (4, 3, 1, 2), "ada", order_shown=(3, 1, 0, 2))
    store.add_judgement(backwards)
    assert store.judgements() == [backwards]


def test_conversations_and_odd_texts_survive(tmp_path: Path):
    store = FeedbackStore(tmp_path / "new" / "folder" / "odd ?&%.db")
    prompts = [
        Prompt((Message("system", "be brief"), Message("user", "hi\r\n\t'\"; DROP TABLE prompts;--"))),
        Prompt(""),
        Prompt('["json", "like"]'),
        Prompt("🦊" * 10_000),
    ]
    store.add_items([(p, [Response("", model="a"), Response(" "), Response("x" * 100_000)]) for p in prompts])
    assert store.prompts() == prompts
    assert [r.text for r in store.responses(prompts[0])] == ["", " ", "x" * 100_000]
    assert (tmp_path / "new" / "folder" / "odd ?&%.db").is_file()


def test_prompts_and_responses_come_in_the_order_they_were_added(tmp_path: Path):
    store = FeedbackStore(tmp_path / "f.db")
    items = [(Prompt(f"p{i}"), [Response(f"r{(i * 7 + k) % 11}") for k in range(3)]) for i in range(1200)]
    store.add_items(items[:700])
    store.add_items(items)  # the first 700 are known
    assert store.prompts() == [p for p, _ in items]
    for prompt, responses in (items[0], items[699], items[1199]):
        assert store.responses(prompt) == responses
    assert store.counts() == {"prompts": 1200, "responses": 3600, "judgements": 0, "annotators": 0}


# Identity and provenance


def test_adding_again_changes_nothing(store: FeedbackStore):
    responses = [Response(t, model="m", sampling={"temperature": 1.0}, run="r") for t in TEXTS]
    ids = store.add_responses(PROMPT, responses)
    assert store.add_responses(PROMPT, responses[::-1]) == ids[::-1]
    assert store.add_prompt(PROMPT) == PROMPT.id
    assert store.responses(PROMPT) == responses
    assert store.counts()["responses"] == len(TEXTS)


def test_one_text_from_two_models_is_one_response_with_two_sources(store: FeedbackStore):
    first = store.add_responses(PROMPT, [Response(TEXTS[0], model="m", sampling={"temperature": 1.0}, run="r")])
    other = Response(TEXTS[0], model="other", sampling={"top_k": 5, "temperature": 0.5}, run="round-2")
    assert store.add_responses(PROMPT, [other, other]) == first * 2
    assert store.counts()["responses"] == len(TEXTS)
    found = [r for r in store.responses(PROMPT) if r.text == TEXTS[0]]
    assert [(r.model, r.run, dict(r.sampling)) for r in found] == [
        ("m", "r", {"temperature": 1.0}),
        ("other", "round-2", {"top_k": 5, "temperature": 0.5}),
    ]


def test_the_same_text_to_two_prompts_is_two_responses(store: FeedbackStore):
    other = Prompt("another")
    assert store.add_responses(other, [Response(TEXTS[0])]) != store.add_responses(PROMPT, [Response(TEXTS[0])])
    with pytest.raises(UserError, match="unknown response 'It is not'"):
        store.add_judgement(Judgement(other, TEXTS[:2], (1, 2), "ada"))


def test_tags_are_merged(store: FeedbackStore):
    store.add_prompt(Prompt(PROMPT.text, {"split": "train", "kind": "fact"}))
    store.add_prompt(Prompt(PROMPT.text))
    assert store.prompts()[0].tags == {"kind": "fact", "split": "train"}


# What is refused


@pytest.mark.parametrize(
    ("judgement", "says"),
    [
        (Judgement(PROMPT, (TEXTS[0], "unheard of"), (1, 2), "ada"), "unknown response 'unheard of'"),
        (Judgement(Prompt("unheard of"), TEXTS[:2], (1, 2), "ada"), "unknown response"),
        (Judgement(PROMPT, TEXTS[:2], (1, 2), ""), "no annotator"),
        (Judgement(PROMPT, TEXTS[:3], (1, 2), "ada"), "one whole number for each response"),
        (Judgement(PROMPT, TEXTS[:2], (0, 1), "ada"), "1 the best"),
        (Judgement(PROMPT, TEXTS[:2], (2, 3), "ada"), "1 the best"),
        (Judgement(PROMPT, TEXTS[:2], (1, 1.5), "ada"), "whole number"),  # pyright: ignore[reportArgumentType]
        (Judgement(PROMPT, (TEXTS[0],) * 2, (1, 2), "ada"), "1 of them different"),
        (Judgement(PROMPT, TEXTS[:1], (1,), "ada"), "2 or more"),
        (Judgement(PROMPT, TEXTS[:2], (1, 2), "ada", order_shown=(1, 1)), "each of 0 to 1 once"),
        (Judgement(PROMPT, TEXTS[:2], (1, 2), "ada", order_shown=(0,)), "each of 0 to 1 once"),
        (Judgement(PROMPT, TEXTS[:2], (1, 2), "ada", seconds=-1.0), "0 or more"),
        (Judgement(PROMPT, TEXTS[:2], (1, 2), "ada", seconds=float("nan")), "0 or more"),
    ],
)
def test_a_bad_judgement_is_refused_and_none_of_its_batch_is_added(store: FeedbackStore, judgement: Judgement, says: str):
    with pytest.raises(UserError, match=says):
        store.add_judgements([judged(), judgement])
    assert store.judgements() == []


def test_what_is_no_store_is_told_in_one_line(tmp_path: Path):
    (tmp_path / "text.db").write_text("these are just words, and rather more of them than a header would hold\n" * 20)
    with pytest.raises(UserError, match="file is not a database"):
        FeedbackStore(tmp_path / "text.db")
    with pytest.raises(UserError, match="cannot make it"):
        FeedbackStore(tmp_path / "text.db" / "below" / "f.db")
    with pytest.raises(UserError, match="expected a file or a URL"):
        FeedbackStore("nonsense://host/name")


def test_the_database_itself_refuses_dangling_references(store: FeedbackStore):
    with pytest.raises(IntegrityError), store.database.engine.begin() as connection:
        connection.execute(text("INSERT INTO responses (prompt_id, digest, text) VALUES ('nowhere', 'd', 't')"))


@pytest.mark.parametrize("dialect", [postgresql.dialect(), mysql.dialect()])
def test_the_tables_can_be_made_in_other_databases(dialect):
    for table in Base.metadata.sorted_tables:
        assert table.name in str(CreateTable(table).compile(dialect=dialect))


def test_ten_thousand_judgements_go_in_at_once(tmp_path: Path):
    store = FeedbackStore(tmp_path / "f.db")
    items = [(Prompt(f"p{i}"), [Response(t) for t in TEXTS]) for i in range(1000)]
    store.add_items(items)
    judgements = [Judgement(p, TEXTS, (1, 2, 2, 4), name, (3, 1, 0, 2)) for name in "abcdefghij" for p, _ in items]
    ids = store.add_judgements(judgements)
    assert len(set(ids)) == 10_000
    assert store.judgements() == judgements
    assert store.counts() == {"prompts": 1000, "responses": 4000, "judgements": 10_000, "annotators": 10}


# Several processes, and crashes

WRITER = """
import os, sys
from itertools import count
from heed.feedback import FeedbackStore
from heed.records import Judgement, Prompt, Response
store, size = FeedbackStore(sys.argv[1]), int(sys.argv[2])
prompt = Prompt("p")
store.add_responses(prompt, [Response("a"), Response("b")])
for i in count():
    store.add_judgements([Judgement(prompt, ("a", "b"), (1, 2), "ada", note=f"{i}") for _ in range(size)])
    os.write(1, f"{i}\\n".encode())
"""


@pytest.mark.parametrize(("size", "num_acknowledged"), [(1, 1), (1, 120), (400, 3)])
def test_kill_9_loses_nothing_acknowledged_and_leaves_no_half_batch(tmp_path: Path, size: int, num_acknowledged: int):
    path = tmp_path / "f.db"
    writer = start(WRITER, path, size)
    assert writer.stdout is not None
    acknowledged, reader = -1, None
    while acknowledged < num_acknowledged - 1:
        acknowledged = int(writer.stdout.readline())
        reader = reader or FeedbackStore(path)
        assert reader.counts()["judgements"] >= (acknowledged + 1) * size  # readable while it is being written
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
    assert writer.wait() == -signal.SIGKILL

    notes = [int(j.note) for j in FeedbackStore(path).judgements()]
    assert notes == [i for i in range(max(notes) + 1) for _ in range(size)]
    assert max(notes) in (acknowledged, acknowledged + 1)  # one may be on disk without its acknowledgement
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


OPENER = """
import sys
from heed.feedback import FeedbackStore
from heed.records import Judgement, Prompt, Response
store = FeedbackStore(sys.argv[1])
for i in range(20):
    store.add_responses(Prompt(f"p{i}"), [Response("a", model=sys.argv[2]), Response("b")])
    store.add_judgement(Judgement(Prompt(f"p{i}"), ("a", "b"), (1, 2), sys.argv[2]))
"""


def test_processes_may_make_and_fill_one_store_at_the_same_time(tmp_path: Path):
    writers = [start(OPENER, tmp_path / "f.db", name) for name in ("ada", "bob", "eve")]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    store = FeedbackStore(tmp_path / "f.db")
    assert store.counts() == {"prompts": 20, "responses": 40, "judgements": 60, "annotators": 3}
    assert {r.model for r in store.responses(Prompt("p7")) if r.text == "a"} == {"ada", "bob", "eve"}


def test_threads_may_share_one_store(store: FeedbackStore):
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda i: store.add_judgement(judged(annotator=f"a{i}")), range(64)))
    assert len(set(ids)) == 64
    assert store.counts()["annotators"] == 64


@pytest.mark.parametrize("item", [(Prompt("x" * 1_000_001), ()), (Prompt("Q?"), [Response("a"), Response("x" * 1_000_001)])])
def test_a_text_that_nobody_could_read_is_refused(store: FeedbackStore, item: tuple[Prompt, list[Response]]):
    before = store.counts()
    with pytest.raises(UserError, match="a text of 1,000,001 characters; expected at most 1,000,000"):
        store.add_items([(Prompt("fine"), [Response("a")]), item])
    assert store.counts() == before


def test_of_those_who_add_the_same_texts_at_once_none_fails(database: Database):
    store = FeedbackStore(database)
    with ThreadPoolExecutor(4) as pool:
        for turn in range(10):
            items = [(Prompt(f"{turn} {i}?"), [Response("yes", model="m"), Response("no")]) for i in range(20)]
            first, *others = pool.map(store.add_items, [items] * 4)
            assert others == [first] * 3
    assert store.counts()["responses"] == 400


def test_feedback_and_records_never_import_torch():
    listing = start("import heed.feedback, sys; print(*sys.modules)")
    output, _ = listing.communicate()
    loaded = set(output.decode().split())
    assert "heed.feedback.store" in loaded
    assert not loaded & {"torch", "transformers", "scipy", "pandas"}
