"""The stages that train: thin calls of `heed.training`, whose configurations they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heed.data.split import split_by_prompt
from heed.errors import UserError, require
from heed.evaluation import evaluate_reward_model
from heed.feedback import FeedbackStore, noise_ceiling, pairwise_agreement
from heed.models.language_model import LanguageModel
from heed.models.scalar_model import critic_from, new_scalar_model, value_head
from heed.pipeline import sources
from heed.pipeline.context import Context, Outcome
from heed.records import PreferencePair, Ranking
from heed.training.dpo import train_dpo
from heed.training.ppo import PPOConfig, train_ppo
from heed.training.reinforce import ReinforceConfig, train_reinforce
from heed.training.reward_model import RewardModelConfig, train_reward_model
from heed.training.sft import train_sft


def sft(ctx: Context) -> Outcome:
    """Fine-tune the newest policy on demonstrations."""
    policy = ctx.policy(train=True)
    renderer = ctx.renderer(policy)
    metrics = train_sft(policy, renderer, ctx.read("demonstrations", "demonstrations"), ctx.config, ctx.run)
    policy.save(ctx.folder / "model")
    return ctx.done(renderer, metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelStageConfig(RewardModelConfig):
    """Settings of `reward_model`, which also measures the model, on prompts it was not trained on."""

    held_out: float = 0.2
    """Share of the prompts kept for measurement."""

    def __post_init__(self) -> None:
        RewardModelConfig.__post_init__(self)
        require(0 < self.held_out < 1, "held_out", self.held_out, "a share between 0 and 1")


def reward_model(ctx: Context) -> Outcome:
    """Train a reward model on all comparisons so far, and measure it on held-out prompts."""
    config: RewardModelStageConfig = ctx.config
    train, held_out = split_by_prompt(ctx.preferences(), config.held_out, config.seed)
    measured_on = pairs(held_out)
    if all(pair.label == 0.5 for pair in measured_on):
        raise UserError(
            f"the {len(measured_on)} held-out comparisons are all ties",
            expected="one at least that people decided, to measure the reward model on",
            fix="raise held_out, or gather more comparisons",
        )
    policy = ctx.policy(train=True)
    model = new_scalar_model(policy, "reward", config.seed)
    renderer = ctx.renderer(model)
    metrics = train_reward_model(model, renderer, train, config, ctx.run)
    model.save(ctx.folder / "model")
    ceiling = _noise_ceiling(ctx)
    measured = evaluate_reward_model(
        model, renderer, measured_on, gold=ctx.gold(), noise_ceiling=ceiling, max_tokens=config.max_tokens, seed=config.seed
    )
    shown = {"held_out_accuracy": measured.accuracy.mean, "longer": measured.longer_baseline, "shorter": measured.shorter_baseline}
    shown |= {"noise_ceiling": ceiling} if ceiling is not None else {}
    return ctx.done(renderer, {**shown, **metrics}, {"reward_model": measured.to_dict()})


def pairs(items: Sequence[PreferencePair | Ranking]) -> list[PreferencePair]:
    return [pair for item in items for pair in (item.pairs() if isinstance(item, Ranking) else (item,))]


def _noise_ceiling(ctx: Context) -> float | None:
    """What annotators' agreement allows, where the comparisons come from stores in which two annotators judged the same."""
    stores = [FeedbackStore(spec) for name, spec in ctx.inputs.items() if name.startswith("preferences.") and sources.names_store(spec)]
    judgements = [judgement for store in stores for judgement in store.judgements()]
    try:
        return noise_ceiling(pairwise_agreement(judgements))
    except UserError:
        return None


def dpo(ctx: Context) -> Outcome:
    """Optimise the newest policy on all comparisons so far, directly."""
    policy = ctx.policy(train=True)
    renderer = ctx.renderer(policy)
    metrics = train_dpo(policy, renderer, pairs(ctx.preferences()), ctx.config, ctx.run)
    policy.save(ctx.folder / "model")
    return ctx.done(renderer, metrics)


def _reference(ctx: Context, policy: LanguageModel) -> LanguageModel:
    """The policy that the first round started from, so that rounds do not drift: as it is now in the first, loaded in later ones."""
    if ctx.inputs["reference"] == ctx.inputs["policy"]:
        return policy.reference()
    reference = ctx.policy("reference")
    reference.freeze()
    return reference


def reinforce(ctx: Context) -> Outcome:
    """Optimise the newest policy against the reward, held near the one that optimisation started from, without a critic."""
    config: ReinforceConfig = ctx.config
    policy = ctx.policy(train=True)
    renderer = ctx.renderer(policy, config.max_new_tokens)
    reward, _ = ctx.reward(policy)
    metrics = train_reinforce(policy, _reference(ctx, policy), renderer, reward, ctx.read("prompts", "prompts"), config, ctx.run)
    policy.save(ctx.folder / "model")
    return ctx.done(renderer, metrics)


def ppo(ctx: Context) -> Outcome:
    """Optimise the newest policy against the reward, held near the one that optimisation started from.

    A separate critic starts from the reward model where that reads the policy's tokens, and from the policy otherwise.
    """
    config: PPOConfig = ctx.config
    policy = ctx.policy(train=True)
    renderer = ctx.renderer(policy, config.max_new_tokens)
    reward, model = ctx.reward(policy)
    if config.critic == "shared":
        critic = value_head(policy)
    elif model is not None and not model.is_encoder and sources.reads_tokens_of(model, policy):
        critic = critic_from(model, policy)
    else:
        critic = new_scalar_model(policy, "value", config.seed)
    prompts = ctx.read("prompts", "prompts")
    metrics = train_ppo(policy, _reference(ctx, policy), critic, renderer, reward, prompts, config, ctx.run)
    policy.save(ctx.folder / "model")
    return ctx.done(renderer, metrics)
