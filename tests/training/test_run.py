from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from heed.errors import Interrupted, UserError
from heed.training.run import Run, load_tensors, save_atomically


def steps(run: Run) -> list[int]:
    return [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()]


def test_metrics_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    with Run(tmp_path / "a", display=False) as run:
        for step in range(1, 6):
            run.log(step, 10, {"loss": 1.0 / step})
            if step == 3:
                run.save({"w": torch.ones(2)}, {"step": 3})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    tensors, values = Run(tmp_path / "a", display=False).load() or ({}, {})
    assert values["step"] == 3
    assert torch.equal(tensors["w"], torch.ones(2))
    assert steps(run) == [1, 2, 3]


def test_without_a_checkpoint_the_metrics_start_afresh(tmp_path: Path) -> None:
    with Run(tmp_path, display=False) as run:
        run.log(1, 2, {"loss": 1.0})
    assert Run(tmp_path, display=False).load() is None
    assert steps(run) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_after_the_update_at_hand(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    saved = []
    with pytest.raises(Interrupted) as stop, Run(tmp_path, display=False) as run:
        run.checkpoint_if_due(False, lambda: saved.append("not asked for"))
        os.kill(os.getpid(), number)
        run.checkpoint_if_due(False, lambda: saved.append("saved"))
    assert saved == ["saved"]
    assert stop.value.signal_number == number
    assert signal.getsignal(number) == before


def test_a_failed_write_leaves_the_old_file_and_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_atomically(path, {"w": torch.zeros(1)}, {})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("heed.training.run.save_file", full)
    with pytest.raises(UserError, match="No space left") as error:
        save_atomically(path, {"w": torch.ones(1)}, {})
    assert "\n" not in str(error.value)
    assert torch.equal(load_tensors(path)[0]["w"], torch.zeros(1))
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"checkpoint\.safetensors: is not a readable checkpoint"):
        load_tensors(path)


def test_plain_progress_tells_the_time_left(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr("heed.training.run.time.monotonic", lambda: next(clock))
    with Run(tmp_path, label="sft") as run:
        for step in range(1, 5):
            run.progress(step, 4, f"loss {step}")
    printed = capfd.readouterr().out.splitlines()
    assert printed == ["  sft 1/4  loss 1", "  sft 2/4  ETA 40 s  loss 2", "  sft 3/4  ETA 20 s  loss 3", "  sft 4/4  loss 4"]


def test_tensorboard_receives_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Run(tmp_path, display=False, trackers=("tensorboard",)) as run:
        run.log(1, 1, {"loss": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("loss")[0].value == pytest.approx(0.5)
