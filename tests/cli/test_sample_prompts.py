"""`heed feedback sample` and `heed label --policy` as real processes, with real models."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from heed.cli.label import sampler_words
from heed.cli.main import main
from heed.cli.sample_prompts import SamplePrompts
from heed.feedback.database import Database
from heed.feedback.projects import Projects, ProjectSettings
from heed.feedback.store import FeedbackStore
from heed.feedback.waiting import WaitingPrompts
from heed.records import Prompt
from tests.cli.test_label import serving
from tests.tiny import WORDS, save_tiny_llama

SECONDS = 90.0
PROMPTS = [Prompt(f"{first} {second}") for first in WORDS for second in WORDS][:40]


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """With a project whose prompts wait."""
    made = Database(tmp_path / "team.db")
    project = Projects(made).create("tone", ProjectSettings(num_responses=2), None)
    WaitingPrompts(made).add(project.id, PROMPTS, None)
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has trained nothing yet."""
    folder = tmp_path / "run"
    folder.mkdir()
    base = save_tiny_llama(tmp_path / "base")
    (folder / "recipe.yaml").write_text(f"name: a run\nmodel: {base}\n")
    return folder


def until(happened: Callable[[], bool]) -> None:
    for _ in range(int(SECONDS / 0.1)):
        if happened():
            return
        time.sleep(0.1)
    raise AssertionError(f"it has not happened in {SECONDS} seconds")


def models(database: Database) -> dict[str, int]:
    """How many prompts each policy has answered."""
    store, found = FeedbackStore(database), dict[str, int]()
    for prompt in PROMPTS:
        for model in {(r.model, r.run) for r in store.responses(prompt)}:
            found[str(model)] = found.get(str(model), 0) + 1
    return found


def sampler(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "heed.cli.main", "feedback", "sample", "team.db", "tone", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_is_sampled_as_it_goes_on_and_a_stop_gives_prompts_back(database: Database, run: Path, tmp_path: Path) -> None:
    process = sampler(tmp_path, "--policy", str(run), "--ahead", "6", "--max-new-tokens", "8")
    try:
        until(lambda: sum(models(database).values()) >= 6)
        base = str(tmp_path / "base")
        assert models(database) == {str((base, "a run")): 6}
        stage = run / "stages" / "01-sft"
        save_tiny_llama(stage / "model", seed=1)
        (stage / "stage.json").write_text("{}")
        Projects(database).change(1, ProjectSettings(num_responses=2, overlap=1, guidelines="new"), 1, None)
        with database.write() as session:  # as if annotators had done all there is
            session.connection().exec_driver_sql("UPDATE items SET remaining = 0")
        until(lambda: sum(models(database).values()) >= 12)
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert err == "heed: stopped by SIGTERM; the same command goes on from here\n"
    assert out.splitlines()[0] == f"loading {base}"
    newest = models(database)[str((str(stage / "model"), "a run"))]
    assert newest + models(database)[str((base, "a run"))] == 12
    assert newest >= 1
    batch = WaitingPrompts(database).take(1, 100)
    assert batch is not None
    assert len(batch.prompts) == len(PROMPTS) - 12


def test_once_lets_prompts_of_a_file_wait_and_answers_all(database: Database, tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"How do I clean a kettle, {i}?"}]} for i in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Projects(database).create("chats", ProjectSettings(), None)
    words = ["feedback", "sample", str(tmp_path / "team.db"), "chats", "--policy", "testbed", "--prompts", str(tmp_path / "prompts.jsonl")]
    assert main([*words, "--once", "--max-new-tokens", "24"]) == 0
    assert WaitingPrompts(database).count(2) == 0
    assert Projects(database).progress()[2].items == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.db", "tone", "--policy", "testbed"], "absent.db: there is no such file"),
        (["team.db", "voice", "--policy", "testbed"], "there is no project 'voice'"),
        (["team.db", "tone", "--policy", "."], ".: neither config.json nor recipe.yaml is here"),
        (["team.db", "tone", "--policy", "./absent"], "./absent: no such folder"),
        (["team.db", "tone", "--policy", "testbed", "--ahead", "0"], "ahead is 0"),
        (["team.db", "tone", "--policy", "testbed", "--temperature", "0"], "temperature is 0.0; expected above 0"),
        (["team.db", "tone", "--policy", "base", "--max-new-tokens", "64"], "max_new_tokens is 64; expected fewer than the 64"),
        (["team.db", "tone", "--policy", "base", "--prompts", "absent.jsonl"], "absent.jsonl: cannot be read"),
    ],
)
def test_faults_are_told_in_one_line(
    database: Database,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["feedback", "sample", *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_sampler_begins_and_ends_with_the_server(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt.text}) + "\n" for prompt in PROMPTS))
    with serving(tmp_path, "--data", "prompts.jsonl", "--project=-tone", "--policy", "testbed") as app:
        assert any("40 new prompts wait for a policy" in line for line in app.told)
        database = Database(tmp_path / "feedback.db")
        until(lambda: sum(models(database).values()) >= 1)
        children = Path(f"/proc/{app.process.pid}/task/{app.process.pid}/children").read_text().split()
        assert len(children) == 1
        app.process.send_signal(number)
        app.process.wait(SECONDS)
        until(lambda: not running(int(children[0])))
    count = WaitingPrompts(database).count(1)
    batch = WaitingPrompts(database).take(1, 100)
    assert batch is not None
    assert len(batch.prompts) == count


@pytest.mark.parametrize("name", ["tone", "-tone", "--once", "--", "-1", "-h", "--my_tone=x y"])
def test_the_servers_sampler_gets_the_project_whatever_its_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    started: list[SamplePrompts] = []
    monkeypatch.setattr(SamplePrompts, "__call__", lambda command: started.append(command))
    assert main(sampler_words("-team.db", name, "-run")) == 0
    assert started == [SamplePrompts(database="-team.db", project=name, policy="-run")]


def test_prompts_without_a_policy_wait_and_the_command_says_what_answers_them(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Why?"}) + "\n")
    with serving(tmp_path, "--data", "prompts.jsonl") as app:
        assert "prompts: 1 prompts wait; --policy FOLDER answers them" in app.told


def running(process: int) -> bool:
    """Whether it is there, and no zombie."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
