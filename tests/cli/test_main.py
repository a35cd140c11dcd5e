"""What the command prints and how it ends: one line for what is the user's to mend, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heed.cli import main as cli
from heed.errors import Interrupted
from tests.pipeline.conftest import write_rows

WriteRecipe = Callable[..., Path]


@pytest.fixture(autouse=True)
def _keep_handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def heed(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "heed.cli.main", *words], input=stdin, capture_output=True, text=True, check=False)


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text.strip()


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    script = "import sys; from heed.cli.main import main; code = main(['--help']); print(sorted(sys.modules)); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)
    heavy = {"torch", "transformers", "pydantic", "tyro", "numpy", "sqlalchemy", "rich"}
    assert not heavy & set(eval(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", [*cli.COMMANDS])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"usage: heed {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], r"there is no command 'rnu'; expected run"),
        (["run", "absent.yaml"], r"absent\.yaml: there is no such file"),
        (["run", "--set", "ppo.kl_ceof=1"], r"demo\.yaml:\d+: there is no key 'kl_ceof'; expected kl_coef"),
        (["run", "--set", "ppo.clip_range=2"], r"demo\.yaml:\d+: clip_range is 2\.0; expected a number between 0 and 1"),
        (["rm", "--model", "./nowhere", "--data", "x.jsonl", "--output", "out"], r"\./nowhere: no such folder; expected a model folder"),
        (["rm", "--model", "m", "--data", "x.jsonl", "--output", "out", "--lr", "-1"], r"lr is -1\.0; expected a number above 0"),
        (
            ["ppo", "--model", "m", "--prompts", "x.jsonl", "--output", "out"],
            r"reward is None; expected one of --reward-model and --reward",
        ),
        (
            ["rm", "--model", "m", "--data", "x.jsonl", "--output", "out", "--lrr", "1"],
            r"--lrr, 1 Perhaps you meant: --lr .*`heed rm --help`",
        ),
        (["rm", "--model", "m"], r"--output STR .*--data STR .*`heed rm --help`"),
        (["rm", "--model", "m", "--data", "x.jsonl", "--output", "out", "--lr", "fast"], r"fast.*`heed rm --help`"),
        (["data", "check", "absent.jsonl"], r"absent\.jsonl: cannot be read"),
        (["report", "absent"], r"absent: is not a folder"),
        (["chat", "./nowhere"], r"\./nowhere: no such folder"),
        (["chat", "m", "--device", "foo"], r"device is 'foo'; expected auto"),
        (["rm", "--model", "m", "--data", "x.jsonl", "--output", "out", "--device", "foo"], r"device is 'foo'; expected auto"),
        (["feedback", "score", "x.db", "p", "--reward-model", "m", "--device", "foo"], r"device is 'foo'"),
        (["feedback", "sample", "x.db", "p", "--policy", "m", "--device", "foo"], r"device is 'foo'"),
        (["feedback", "curve", "x.db", "p", "--model", "m", "--device", "foo"], r"device is 'foo'"),
        (
            ["sft", "--model", "m", "--data", "x.jsonl", "--output", "out", "--seed", "-1"],
            r"stage sft: seed is -1; expected a whole number",
        ),
        (["run", "--set", "sft.lr.x=3"], r"there is no 'x' to set within 0\.0005"),
    ],
)
def test_faults_are_told_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert re.search(rf"heed: .*{message}", one_line(capsys.readouterr().err))


def test_a_real_process_exits_with_2_and_no_traceback() -> None:
    done = heed("run", "absent.yaml")
    assert done.returncode == 2
    assert one_line(done.stderr) == "heed: absent.yaml: there is no such file"
    assert done.stdout == "heed 0.1.0 run: loading torch ...\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "model.safetensors"),
            2,
            "model.safetensors could not be written: the disk is full",
        ),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), 2, "a file could not be written: the disk is full"),
        (Interrupted(signal.SIGTERM), 143, "stopped by SIGTERM; the same command goes on from here"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT; the same command goes on from here"),
    ],
)
def test_stops_and_full_disks(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: object) -> int:
        raise error

    monkeypatch.setattr(cli, "dispatch", fail)
    assert cli.main(["run"]) == code
    assert message in one_line(capsys.readouterr().err)


def test_a_fault_of_heed_itself_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "dispatch", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["run"])


def test_a_reader_that_has_gone_is_no_fault(tmp_path: Path) -> None:
    write_rows(tmp_path / "many.jsonl", [{"prompt": str(i)} for i in range(100)])
    command = f"{sys.executable} -m heed.cli.main data check {tmp_path}/many.jsonl | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_data_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "good.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert cli.main(["data", "check", str(tmp_path / "good.jsonl")]) == 0
    assert "1 rows of prompt + chosen + rejected" in capsys.readouterr().out
    write_rows(tmp_path / "bad.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}])
    assert cli.main(["data", "check", str(tmp_path / "bad.jsonl")]) == 2
    assert "bad.jsonl:2: `rejected` is missing" in capsys.readouterr().out


def test_rm_then_ppo_write_their_part_of_the_summary(tiny_model: Path, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    write_recipe()  # for its prompts
    rows = [{"prompt": f"{word} one", "chosen": f"good {word}", "rejected": f"bad {word} red"} for word in ("red", "green", "blue", "two")]
    write_rows(tmp_path / "pairs.jsonl", rows * 4)
    rm = ["rm", "--model", str(tiny_model), "--data", str(tmp_path / "pairs.jsonl"), "--output", str(tmp_path / "rm"), "--held-out", "0.25"]
    assert cli.main(rm) == 0
    summary = json.loads((tmp_path / "rm" / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert set(summary["reward_model"]) >= {"accuracy", "longer_baseline", "shorter_baseline", "noise_ceiling", "ece"}
    assert summary["reward_model"]["shorter_baseline"] == 1.0
    assert (tmp_path / "rm" / "report.html").exists()

    ppo = ["ppo", "--model", str(tiny_model), "--reward-model", str(tmp_path / "rm"), "--prompts", str(tmp_path / "prompts.jsonl")]
    ppo += ["--output", str(tmp_path / "ppo"), "--iterations", "2", "--prompts-per-iteration", "4", "--max-new-tokens", "5"]
    ppo += ["--eval-prompts", str(tmp_path / "eval_prompts.jsonl"), "--evaluate.max-new-tokens", "5"]
    assert cli.main(ppo) == 0
    summary = json.loads((tmp_path / "ppo" / "summary.json").read_text())
    assert list(summary["policies"]) == ["base", "ppo"]
    assert summary["policies"]["ppo"]["proxy_reward"]["mean"] is not None
    by_run = ["eval", "--model", str(tmp_path / "ppo"), "--gold", str(tmp_path / "rm"), "--output", str(tmp_path / "by-run")]
    assert cli.main([*by_run, "--prompts", str(tmp_path / "eval_prompts.jsonl"), "--max-new-tokens", "5"]) == 0
    summary = json.loads((tmp_path / "by-run" / "summary.json").read_text())
    assert summary["policies"]["base"]["gold_reward"]["mean"] is not None
    done = heed("chat", str(tmp_path / "ppo"), "--max-new-tokens", "5", stdin="good red\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "this run has no policy yet" in one_line(heed("chat", str(tmp_path / "rm")).stderr)


def test_eval_compares_two_models(tiny_model: Path, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    write_recipe()
    words = ["eval", "--model", str(tiny_model), "--against", str(tiny_model), "--prompts", str(tmp_path / "eval_prompts.jsonl")]
    words += ["--gold", f"{tmp_path}/gold.py:gold", "--output", str(tmp_path / "eval"), "--max-new-tokens", "5"]
    assert cli.main(words) == 0
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary["win_rate"]["model_vs_base"]["mean"] == 0.5
    assert summary["policies"]["model"]["kl_to_reference"] == pytest.approx(0, abs=1e-5)


def test_a_reward_model_that_diverged_is_told(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": word, "chosen": f"good {word}", "rejected": f"bad {word}"} for word in ("red", "green", "blue", "two")]
    write_rows(tmp_path / "pairs.jsonl", rows)
    words = ["rm", "--model", str(tiny_model), "--data", str(tmp_path / "pairs.jsonl"), "--output", str(tmp_path / "rm")]
    assert cli.main([*words, "--held-out", "0.5", "--lr", "1e30"]) == 2
    assert "no finite score; train it again with a lower lr" in one_line(capsys.readouterr().err)


def test_sample_writes_responses(tiny_model: Path, write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe()
    words = ["sample", "--model", str(tiny_model), "--prompts", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "s")]
    assert cli.main([*words, "--responses-per-prompt", "2", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.endswith(f"everything is in {tmp_path}/s: summary.json, stages/\n")
    rows = (tmp_path / "s" / "stages" / "01-sample" / "responses.jsonl").read_text().splitlines()
    assert len(rows) == 48
    assert "response" in json.loads(rows[0])


def test_dry_run_says_what_each_stage_takes_and_writes_nothing(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(write_recipe(rounds="{max: 2}")), "--dry-run"]) == 0
    told = capsys.readouterr().out
    for name in ("01-sft", "05-ppo", "r2-05-ppo", "07-report", "at most 2 rounds"):
        assert name in told
    assert not (tmp_path / "out").exists()


def test_chat_works_through_a_pipe(tiny_model: Path) -> None:
    done = heed("chat", str(tiny_model), "--max-new-tokens", "5", stdin="good red\n\nblue\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2


def test_chat_has_no_place_for_a_system_message_without_a_template(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", str(tiny_model), "--system", "be kind", "--device", "cpu"]) == 2
    told = one_line(capsys.readouterr().err)
    assert told.startswith(f"heed: {tiny_model} has no chat template, and so no place for what --system says; leave --system out")


@pytest.mark.parametrize("encoding", ["utf-8:strict", "utf-8:surrogateescape"])
def test_chat_takes_no_bytes_that_are_no_text(tiny_model: Path, encoding: str) -> None:
    command = [sys.executable, "-m", "heed.cli.main", "chat", str(tiny_model)]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, input=b"good \xff red\n", env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert one_line(done.stderr.decode()) == "heed: a line of the input is not UTF-8; expected text in UTF-8"


def test_the_guide_shows_the_help_as_it_is() -> None:
    guide = Path(__file__).resolve().parents[2] / "docs" / "guide" / "commands.md"
    assert cli.usage() in guide.read_text(encoding="utf-8")
