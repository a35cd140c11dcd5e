"""`heed feedback` as it is typed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from heed.cli.main import main
from heed.data.readers import read_preferences
from heed.feedback.database import Database
from heed.feedback.projects import Projects, ProjectSettings
from tests.feedback.panel import panel
from tests.feedback.team import Team


@pytest.fixture
def location(tmp_path: Path) -> str:
    """A database with a project that two people have half judged."""
    path = tmp_path / "feedback.db"
    team = Team(Database(path))
    project = team.project("Kind answers", items=4, overlap=2)
    for name in ("ann", "ben"):
        team.work(project.id, team.annotator(name), 2)
    team.projects.archive(team.project("Old", items=0).id, None)
    team.database.close()
    return str(path)


def test_status(location: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["feedback", "status", location]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Kind answers: answers: 4 of 8, items: 4, annotators: 2",
        "Old (archived): no items",
    ]


def test_pairs_with_a_card(location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, card = str(tmp_path / "pairs.jsonl.gz"), tmp_path / "card.md"
    words = ["feedback", "export", location, "--project", "Kind answers", "--kind", "pairs", "--output", output]
    assert main([*words, "--annotator", "ann", "--annotator", "ben", "--since", "2020-01-01", "--card", str(card)]) == 0
    records = read_preferences(output).records
    assert capsys.readouterr().out.splitlines() == [f"{len(records)} pairs: {output}", f"card: {card}"]
    assert f"- rows: {len(records)}" in card.read_text()


def test_labels_that_are_weighed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("crowdkit")
    database, output, card = Database(tmp_path / "team.db"), str(tmp_path / "rankings.jsonl"), tmp_path / "card.md"
    panel(database)
    database.close()
    words = ["feedback", "export", str(tmp_path / "team.db"), "--project", "panel", "--kind", "rankings", "--weights"]
    assert main([*words, "--output", output, "--card", str(card)]) == 0
    weights = {row["annotator"]: row["weight"] for row in map(json.loads, Path(output).read_text().splitlines())}
    assert weights["ann"] > 0.95
    assert weights["eve"] < 0.9
    assert f"| ann | 30 | {weights['ann']:.3f} |" in card.read_text()
    assert {record.weight for record in read_preferences(output).records} == set(weights.values())


def test_a_file_with_its_own_rankings_is_what_a_named_annotator_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    location, file = str(tmp_path / "team.db"), tmp_path / "pairs.jsonl"
    database = Database(location)
    Projects(database).create("pairs", ProjectSettings(compare="pairwise", num_responses=2), None)
    database.close()
    file.write_text("".join(json.dumps({"prompt": f"{i}?", "chosen": "yes", "rejected": "no"}) + "\n" for i in range(3)))
    for told in (
        ("pairs: 3 new items of prompt + chosen + rejected (text)", "Paper: 3 answers"),
        ("pairs: 0 new items of prompt + chosen + rejected (text), 3 known", "Paper: 0 answers, 3 known"),
    ):
        assert main(["feedback", "add", location, "pairs", str(file), "--annotator", "Paper"]) == 0
        assert capsys.readouterr().out.splitlines() == list(told)
    assert main(["feedback", "status", location]) == 0
    assert capsys.readouterr().out == "pairs: answers: 3 of 3, items: 3, annotators: 1\n"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hi?"}\n')
    assert main(["feedback", "add", location, "pairs", str(prompts), "--annotator", "Paper"]) == 2
    assert "rank nothing" in capsys.readouterr().err


def test_a_whole_project_comes_back_equal(location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "here.jsonl", tmp_path / "there.jsonl.gz"]
    there = str(tmp_path / "new" / "there.db")
    words = ["--project", "Kind answers", "--kind", "full", "--output"]
    assert main(["feedback", "export", location, *words, str(files[0])]) == 0
    assert main(["feedback", "import", there, str(files[0])]) == 0
    assert "Kind answers: answers: 4 of 8, items: 4, annotators: 2" in capsys.readouterr().out
    assert main(["feedback", "export", there, *words, str(files[1])]) == 0
    assert files[0].read_bytes() == gzip.decompress(files[1].read_bytes())
    assert main(["feedback", "import", str(tmp_path / "third.db"), str(files[1])]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status", "absent.db"], "absent.db: there is no such file; expected a feedback database"),
        (["export", "absent.db", "--project", "x", "--kind", "pairs", "--output", "o"], "absent.db: there is no such file"),
        (["export", "DB", "--project", "x", "--kind", "pairs", "--output", "o"], "there is no project 'x'"),
        (["export", "DB", "--project", "x", "--kind", "full", "--output", "o"], "there is no project 'x'"),
        (["export", "DB", "--project", "Old", "--kind", "pairs", "--output", "o"], "there are no pairs to export"),
        (["export", "DB", "--project", "Old", "--kind", "pears", "--output", "o"], "pears"),
        (["export", "DB", "--project", "Old", "--kind", "full", "--output", "o", "--checks"], "filters, weights or a card for kind full"),
        (["export", "DB", "--project", "Old", "--kind", "full", "--output", "o", "--weights"], "filters, weights or a card for kind full"),
        (["export", "DB", "--project", "Kind answers", "--kind", "pairs", "--output", "o", "--weights"], "nobody has compared 20 items"),
        (["curve", "absent.db", "x", "--model", "m"], "absent.db: there is no such file; expected a feedback database"),
        (["curve", "DB", "x", "--model", "m"], "there is no project 'x'"),
        (["curve", "DB", "Kind answers", "--model", "m"], "items of 'Kind answers' have a ranking; expected 10 or more"),
        (["export", "DB", "--project", "Kind answers", "--kind", "pairs", "--output", "o", "--since", "soon"], "the time 'soon'"),
        (["export", "DB", "--project", "Kind answers", "--kind", "pairs", "--output", "no/such/o"], "no/such/o: cannot be written"),
        (["export", "DB", "--project", "Kind answers", "--kind", "pairs", "--output", "o", "--card", "no/such/c"], "no/such/c: cannot be"),
        (["import", "DB", "absent.jsonl"], "absent.jsonl: cannot be read: No such file"),
        (["import", "DB", "other.jsonl"], "other.jsonl:1: this is no export of a whole project"),
        (["import", "DB", "broken.jsonl.gz"], "broken.jsonl.gz: cannot be read"),
        (["import", "DB", "damaged.jsonl.gz"], "damaged.jsonl.gz: cannot be read: Error -3 while decompressing"),
        (["status", "other.jsonl"], "cannot open sqlite:///other.jsonl"),
    ],
)
def test_faults_are_told_in_one_line_and_write_nothing(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "other.jsonl").write_text(json.dumps({"prompt": "x"}) + "\n" * 3000)
    (folder / "broken.jsonl.gz").write_bytes(b"no gzip")
    (folder / "damaged.jsonl.gz").write_bytes(gzip.compress(b"{}")[:10] + b"\xff" * 40)
    assert main(["feedback", *(location if word == "DB" else word for word in words)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert {path.name for path in folder.iterdir()} <= {
        "other.jsonl",
        "broken.jsonl.gz",
        "damaged.jsonl.gz",
        *(["o"] if "--card" in words else []),
    }
