"""The kinds of stages that a recipe may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from heed.pipeline import collect, measure, train
from heed.pipeline.context import Context, Outcome
from heed.training.dpo import DPOConfig
from heed.training.ppo import PPOConfig
from heed.training.reinforce import ReinforceConfig
from heed.training.sft import SFTConfig


class StageKind(NamedTuple):
    """The settings of a kind of stage and the function that runs it."""

    config: type[Any]
    run: Callable[[Context], Outcome]
    numbers: tuple[str, ...] = ()
    """The parts of `summary.json` that it writes and that hold numbers."""


STAGES: dict[str, StageKind] = {
    "openings": StageKind(collect.OpeningsConfig, collect.openings),
    "sft": StageKind(SFTConfig, train.sft),
    "sample": StageKind(collect.SampleConfig, collect.sample),
    "judge": StageKind(collect.JudgeConfig, collect.collect_judgements, ("feedback",)),
    "reward_model": StageKind(train.RewardModelStageConfig, train.reward_model, ("reward_model",)),
    "ppo": StageKind(PPOConfig, train.ppo),
    "reinforce": StageKind(ReinforceConfig, train.reinforce),
    "dpo": StageKind(DPOConfig, train.dpo),
    "evaluate": StageKind(measure.EvaluateConfig, measure.evaluate, ("policies", "win_rate")),
    "report": StageKind(measure.ReportConfig, measure.report),
}
