"""What every TRL trainer is told, and a clock for it."""

from __future__ import annotations

import importlib
import tempfile
from typing import Any

from measure import Meter
from transformers import TrainerCallback

LEARNING_RATE = 1e-5


def trl(name: str) -> Any:
    """A class of TRL, which is not installed beside heed's own dependencies."""
    module = importlib.import_module("trl.experimental.ppo" if name.startswith("PPO") else "trl")
    return getattr(module, name)


def settings(**own: Any) -> dict[str, Any]:
    """Settings that every trainer shares: fp32 on the CPU, nothing written or evaluated, no checkpointing of activations.

    TRL's own defaults are bf16, which these processors do slowly or in another precision than heed here, and checkpointing, which trades
    a quarter of the speed for memory. Whoever wants that trade sets `gradient_checkpointing`.
    """
    return {
        "output_dir": tempfile.mkdtemp(prefix="bench-trl-"),
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "max_grad_norm": 1.0,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "report_to": [],
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 0,
        **own,
    }


class Clock(TrainerCallback):
    """Marks the end of every update and keeps the losses."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.meter.mark()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def quieten(trainer: Any) -> None:
    """Take the printer of metrics off."""
    trainer.remove_callback(importlib.import_module("transformers.trainer_callback").PrinterCallback)
