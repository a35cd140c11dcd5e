"""`heed feedback score` as it is typed, with a tiny reward model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from sqlalchemy import select

from heed.cli import score
from heed.cli.main import main
from heed.errors import Interrupted
from heed.evaluation.reward_model import score_pairs
from heed.feedback.database import Database
from heed.feedback.reward_scores import reward_models
from heed.feedback.schema import ItemRow, ResponseRow, RewardScoreRow
from heed.models.loading import load_policy, load_reward_model
from heed.models.scalar_model import new_scalar_model
from heed.pipeline.sources import make_renderer
from heed.records import PreferencePair, Prompt, Response
from tests.feedback.team import Team
from tests.tiny import WORDS

ITEMS = [(Prompt(f"{WORDS[i]} {WORDS[i + 1]}"), [Response(f"{word} {WORDS[i]}") for word in ("good", "bad", "red")]) for i in range(6)]


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two reward models with different heads."""
    folder = tmp_path_factory.mktemp("reward models")
    for seed in (1, 2):
        new_scalar_model(load_policy(tiny_model), "reward", seed).save(folder / str(seed))
    return [folder / "1", folder / "2"]


@pytest.fixture
def location(tmp_path: Path) -> str:
    """A database with a project that someone has half judged."""
    team = Team(Database(tmp_path / "feedback.db"))
    project = team.project("Kind answers", items=0, strategy="uncertain", control_share=0.0)
    team.projects.add_items(project.id, ITEMS, None)
    team.work(project.id, team.annotator("ann"), 3)
    team.database.close()
    return str(tmp_path / "feedback.db")


def scores(location: str, model_id: int) -> dict[tuple[str, str], float]:
    """By the prompt's id and the response's text."""
    with Database(location).read() as session:
        query = select(ResponseRow.prompt_id, ResponseRow.text, RewardScoreRow.score).join(
            RewardScoreRow, RewardScoreRow.response_id == ResponseRow.id
        )
        return {(row[0], row[1]): row[2] for row in session.execute(query.where(RewardScoreRow.reward_model_id == model_id))}


def make_run(folder: Path, stages: Mapping[str, Path | None]) -> Path:
    """The folder of a run with these reward models; one without a model is under way."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: tone\nmodel: testbed\nstages: [reward_model]\n")
    for name, model in stages.items():
        stage = folder / "stages" / name
        stage.mkdir(parents=True)
        if model is not None:
            shutil.copytree(model, stage / "model")
            (stage / "stage.json").write_text(json.dumps({"kind": "reward_model"}))
    return folder


def test_it_scores_says_how_far_it_agrees_and_orders_the_work(location: str, models: list[Path], capsys: pytest.CaptureFixture[str]):
    words = ["feedback", "score", location, "Kind answers", "--reward-model", str(models[0]), "--device", "cpu"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"{models[0]}: 18 responses scored; agrees with people in " in told
    assert "3 answers" in told
    assert "3 items have a new priority" in told
    assert "annotators get items at random" not in told
    model = load_reward_model(models[0])
    pairs = [PreferencePair(prompt, responses[0].text, other.text) for prompt, responses in ITEMS for other in responses[1:]]
    expected = {}
    for scored in score_pairs(model, make_renderer(model, 1024), pairs):
        expected[scored.pair.prompt.id, scored.pair.chosen] = scored.chosen_score
        expected[scored.pair.prompt.id, scored.pair.rejected] = scored.rejected_score
    assert scores(location, 1) == pytest.approx(expected, abs=1e-5)
    team = Team(Database(location))
    with team.database.read() as session:
        waiting = session.scalars(select(ItemRow).where(ItemRow.remaining > 0).order_by(ItemRow.priority.desc())).all()
    assert team.take(1, team.annotator("ben")).prompt.id == waiting[0].prompt_id
    assert waiting[0].priority > waiting[-1].priority
    assert main(words) == 0
    again = capsys.readouterr().out
    assert "0 responses scored" in again
    assert "0 items have a new priority" in again


def test_several_models_are_an_ensemble(location: str, models: list[Path], capsys: pytest.CaptureFixture[str]):
    named = [word for model in models for word in ("--reward-model", str(model))]
    assert main(["feedback", "score", location, "Kind answers", *named]) == 0
    assert [model.name for model in reward_models(Database(location), 1)] == [str(model) for model in models]
    with Database(location).read() as session:
        priorities = [row.priority for row in session.scalars(select(ItemRow).where(ItemRow.remaining > 0))]
    assert all(0 < priority <= 0.5 for priority in priorities)


def test_watching_goes_on_with_later_items_and_newer_models(
    location: str, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path / "run", {"04-reward_model": models[0]})
    told = []

    def look_away(seconds: float) -> None:
        told.append(capsys.readouterr().out)
        if len(told) == 1:
            new = [(Prompt("three good"), [Response("alpha"), Response("beta")])]
            Team(Database(location)).projects.add_items(1, new, None)
        elif len(told) == 3:
            newer = run / "stages" / "r2-04-reward_model"
            shutil.copytree(models[1], newer / "model")
            (newer / "stage.json").write_text(json.dumps({"kind": "reward_model"}))
        elif len(told) == 4:
            raise Interrupted(2)

    monkeypatch.setattr(score.time, "sleep", look_away)
    assert main(["feedback", "score", location, "Kind answers", "--reward-model", str(run), "--watch"]) == 130
    assert "18 responses scored" in told[0]
    assert "2 responses scored" in told[1]
    assert told[2] == ""
    assert "20 responses scored" in told[3]
    assert told[3].count("loading") == 1
    assert [model.name for model in reward_models(Database(location), 1)] == [
        f"{run}/stages/04-reward_model/model",
        f"{run}/stages/r2-04-reward_model/model",
    ]


def test_a_project_that_chooses_at_random_is_told_so(location: str, models: list[Path], capsys: pytest.CaptureFixture[str]):
    Team(Database(location)).change(1, strategy="random")
    assert main(["feedback", "score", location, "Kind answers", "--reward-model", str(models[0])]) == 0
    assert "choose the strategy `uncertain`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DB", "Kind answers"], "reward-model"),
        (["DB", "Kind answers", "--reward-model", "absent"], "absent: there is no such folder"),
        (["DB", "Kind answers", "--reward-model", "empty"], "empty: no *.safetensors weights here"),
        (["DB", "Kind answers", "--reward-model", "run"], "run: this run has no reward model yet"),
        (["DB", "Kind answers", "--reward-model", "POLICY"], "has no weights for score"),
        (["DB", "Unkind answers", "--reward-model", "MODEL"], "there is no project 'Unkind answers'"),
        (["absent.db", "Kind answers", "--reward-model", "MODEL"], "absent.db: there is no such file"),
        (["DB", "Kind answers", "--reward-model", "MODEL", "--max-length", "1"], "max_length"),
    ],
)
def test_faults_are_told_in_one_line_and_write_nothing(
    location: str,
    models: list[Path],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "run", {"04-reward_model": None})
    names = {"DB": location, "MODEL": str(models[0]), "POLICY": str(tiny_model)}
    assert main(["feedback", "score", *(names.get(word, word) for word in words)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not Path("absent.db").exists()
    assert reward_models(Database(location), 1) == []


def test_the_command_is_known_without_torch():
    code = "import sys, heed.cli.feedback, heed.cli.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
