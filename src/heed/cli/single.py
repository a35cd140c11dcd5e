"""Commands that run a single stage: each is a recipe of one stage, so that it resumes, skips and reports like any run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes

from heed.models.backbone import LoRAConfig
from heed.pipeline.collect import SampleConfig
from heed.pipeline.measure import EvaluateConfig, ReportConfig
from heed.pipeline.recipe import Data, Recipe, Stage
from heed.pipeline.runner import run
from heed.pipeline.train import RewardModelStageConfig
from heed.training.dpo import DPOConfig
from heed.training.ppo import PPOConfig
from heed.training.reinforce import ReinforceConfig
from heed.training.sft import SFTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class OneStage:
    """What every command of one stage is told."""

    model: str
    """The model to start from: its folder or that of the run that trained it, a Hugging Face id, or `testbed` for the built-in one."""
    output: str
    """The folder for everything that is made; the same command on the same folder goes on."""
    lora_rank: int | None = None
    """Train low-rank adapters of this rank instead of all weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """How weights are held in memory."""
    device: str = "auto"
    """`auto` takes a GPU where there is one."""
    max_length: int = 1024
    """Tokens of prompt and response together; the model's own context where that is shorter."""

    def run(self, name: str, stages: dict[str, Any], **recipe: Any) -> None:
        """Run these stages, and the report, as a recipe."""
        planned = tuple(Stage(kind=kind, config=config) for kind, config in stages.items())
        lora = None if self.lora_rank is None else LoRAConfig(rank=self.lora_rank, alpha=2 * self.lora_rank)
        options = {"lora": lora, "dtype": self.dtype, "device": self.device, "max_length": self.max_length}
        seed = next(iter(stages.values())).seed
        made = Recipe(**{"name": name, "model": self.model, "output": self.output, "seed": seed, "stages": planned, **options, **recipe})
        run(made)
        there = (name for name in ("summary.json", "report.html", "stages/") if (made.folder / name).exists())
        print(f"everything is in {made.folder}: {', '.join(there)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SFT(OneStage):
    """Fine-tune a model on demonstrations; the loss is on responses only."""

    data: str
    """Demonstrations: a file or a Hugging Face data set id."""
    config: OmitArgPrefixes[SFTConfig] = field(default_factory=SFTConfig)

    def __call__(self) -> None:
        self.run("sft", {"sft": self.config, "report": ReportConfig()}, data=Data(demonstrations=self.data))


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel(OneStage):
    """Train a reward model on comparisons, and measure it on held-out prompts beside both length heuristics."""

    data: str
    """Comparisons: a file, a Hugging Face data set id, or a feedback store (.db)."""
    config: OmitArgPrefixes[RewardModelStageConfig] = field(default_factory=RewardModelStageConfig)

    def __call__(self) -> None:
        self.run("rm", {"reward_model": self.config, "report": ReportConfig()}, data=Data(preferences=self.data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(OneStage):
    """What a command is told that measures the policy it has made."""

    eval_prompts: str | None = None
    """Held-out prompts to measure on; none measures nothing."""
    gold: str | None = None
    """The true preference, where it is known: `testbed`, `module:function`, `file.py:function`, or a reward model, as --reward-model."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def optimise(self, name: str, config: Any, *, reward: str | None = None, **data: str | None) -> None:
        """Run the stage `name`, then measure where there is something to measure on."""
        measuring = {"evaluate": self.evaluate} if self.eval_prompts else {}
        stages = {name: config, **measuring, "report": ReportConfig()}
        self.run(name, stages, reward=reward, gold=self.gold, data=Data(eval_prompts=self.eval_prompts, **data))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstReward(Measured):
    """What a command is told that optimises against a reward."""

    prompts: str
    """What the policy answers: a file, a Hugging Face data set id, or `testbed:prompts`."""
    reward_model: str | None = None
    """A trained reward model: its folder or that of the run that trained it, or a Hugging Face id."""
    reward: str | None = None
    """A reward written in Python, in place of a model: `module:function` or `file.py:function`."""

    def against_reward(self, name: str, config: Any) -> None:
        from heed.errors import require

        require((self.reward_model is None) != (self.reward is None), "reward", self.reward, "one of --reward-model and --reward")
        self.optimise(name, config, reward=self.reward_model or self.reward, prompts=self.prompts)


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO(AgainstReward):
    """Optimise a model against a reward by PPO, held near where it started."""

    config: OmitArgPrefixes[PPOConfig] = field(default_factory=PPOConfig)

    def __call__(self) -> None:
        self.against_reward("ppo", self.config)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reinforce(AgainstReward):
    """Optimise a model against a reward by REINFORCE, held near where it started."""

    config: OmitArgPrefixes[ReinforceConfig] = field(default_factory=ReinforceConfig)

    def __call__(self) -> None:
        self.against_reward("reinforce", self.config)


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO(Measured):
    """Optimise a model on comparisons directly, without a reward model."""

    data: str
    """Comparisons: a file, a Hugging Face data set id, or a feedback store (.db)."""
    config: OmitArgPrefixes[DPOConfig] = field(default_factory=DPOConfig)

    def __call__(self) -> None:
        self.optimise("dpo", self.config, preferences=self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(OneStage):
    """Answer prompts with a model, K responses each."""

    prompts: str
    """A file, a Hugging Face data set id, or `testbed:prompts`."""
    config: OmitArgPrefixes[SampleConfig] = field(default_factory=SampleConfig)

    def __call__(self) -> None:
        self.run("sample", {"sample": self.config}, data=Data(prompts=self.prompts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Eval(OneStage):
    """Measure a model on held-out prompts, beside another one where that is given."""

    prompts: str
    """Held-out prompts: a file, a Hugging Face data set id, or `testbed:heldout`."""
    against: str | None = None
    """The model to compare with, which is also where KL is measured from."""
    gold: str | None = None
    """The true preference: `testbed`, `module:function`, `file.py:function`, or a reward model, as --reward-model."""
    reward_model: str | None = None
    """A reward model, by its folder or that of the run that trained it, or id, which measures too, and picks the best of n."""
    config: OmitArgPrefixes[EvaluateConfig] = field(default_factory=EvaluateConfig)

    def __call__(self) -> None:
        stages = {"evaluate": self.config, "report": ReportConfig()}
        models = {"model": self.against, "compare": {"model": self.model}} if self.against else {}
        self.run("eval", stages, gold=self.gold, reward=self.reward_model, data=Data(eval_prompts=self.prompts), **models)
