"""`heed feedback curve` on a tiny model."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

from heed.cli.main import main
from heed.feedback.database import Database
from heed.feedback.learning_curve import curves
from heed.feedback.projects import Projects, ProjectSettings
from heed.records import Prompt, Response
from tests.feedback.team import Team, alphabetical
from tests.tiny import WORDS, save_tiny_llama


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    """Two people have ranked the responses to 40 prompts alphabetically, which anyone can learn."""
    location = str(tmp_path / "team.db")
    with closing(Database(location)) as database:
        team = Team(database)
        made = team.projects.create("Words", ProjectSettings(num_responses=2, overlap=2), None)
        colours, rest = ("red", "green", "blue"), [word for word in WORDS if word not in ("alpha", "two")]
        prompts = [Prompt(f"{a} {b} {c}") for a in colours for b in rest for c in ("one", "good")][:40]
        team.projects.add_items(made.id, [(prompt, [Response("alpha alpha"), Response("two two")]) for prompt in prompts], None)
        for name in ("ann", "ben"):
            account = team.annotator(name)
            for _ in prompts:
                task = team.take(made.id, account)
                team.tasks.answer(task.lease_id, account, alphabetical(task))
    return location


def test_a_curve_is_measured_kept_and_told(labelled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "run"  # of which the policy is taken that it has trained
    save_tiny_llama(model / "stages" / "01-sft" / "model", initializer_range=0.02)
    (model / "recipe.yaml").write_text("name: run\nmodel: testbed\n")
    (model / "stages" / "01-sft" / "stage.json").write_text("{}")
    words = ["feedback", "curve", labelled, "Words", "--model", str(model), "--lr", "1e-2", "--epochs", "3", "--batch-size", "8"]
    assert main([*words, "--max-length", "32", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "measured on 16 pairs of 8 items that no model is trained on" in told
    rows = [list(map(int, found)) for found in re.findall(r"(\d+) items +(\d+) answers +(\d+) pairs: ", told)]
    assert rows == [[4, 8, 8], [8, 16, 16], [16, 32, 32], [32, 64, 64]]
    assert "noise ceiling: 100.0 %" in told
    with closing(Database(labelled)) as database:
        (curve,) = curves(database, Projects(database).get("Words").id)
    assert [[p.items, p.answers, p.pairs] for p in curve.points] == rows
    assert curve.model == str(model)
    assert curve.points[-1].accuracy == 1.0, "alphabetical order was learned"
    assert curve.points[0].ceiling == 1.0
