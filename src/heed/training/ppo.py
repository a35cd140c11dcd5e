"""Proximal policy optimisation against a reward, held near a frozen reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from heed.core.advantages import gae, shape_rewards
from heed.core.losses import entropy_loss, ppo_policy_loss, ppo_value_loss
from heed.core.masking import masked_sum, masked_whiten
from heed.core.statistics import explained_variance
from heed.data.render import Renderer
from heed.errors import require
from heed.models.language_model import LanguageModel
from heed.models.scalar_model import ScalarModel, ValueHead
from heed.records import Experience, Prompt
from heed.rewards.protocol import Reward
from heed.rollout.local import LocalEngine
from heed.training import experience as gather
from heed.training import loop
from heed.training.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOConfig(gather.PolicyGradientConfig):
    """Settings of PPO."""

    critic: Literal["separate", "shared"] = "separate"
    """A model of its own (with LoRA, an adapter of its own), or a head on the policy's trunk, which takes half the passes of an
    update but lets the value loss move the policy."""
    value_lr: float | None = None
    """Learning rate of the critic; none takes 5 times `lr`."""
    value_coef: float = 0.1
    """Weight of the value loss where the critic is shared; a separate one has nothing to weigh it against."""
    epochs: int = 4
    """Passes over each iteration's rollouts."""
    clip_range: float = 0.2
    """How far the probability ratio may move from 1 before its gradient is cut."""
    value_clip_range: float | None = 0.2
    """How far a value may move from the old one before its gradient is cut; none never cuts."""
    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 0.95
    """Trades bias (0) against variance (1) in the advantages."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    whiten_advantages: bool = True
    """Scale advantages to mean 0 and variance 1 over all response tokens of an iteration."""

    def __post_init__(self) -> None:
        gather.PolicyGradientConfig.__post_init__(self)
        require(self.value_lr is None or self.value_lr > 0, "value_lr", self.value_lr, "a number above 0, or none")
        require(self.value_coef > 0, "value_coef", self.value_coef, "a number above 0")
        require(0 < self.clip_range < 1, "clip_range", self.clip_range, "a number between 0 and 1")
        require(self.value_clip_range is None or self.value_clip_range > 0, "value_clip_range", self.value_clip_range, "above 0, or none")
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "a share from 0 to 1")
        require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "a share from 0 to 1")
        require(self.entropy_coef >= 0, "entropy_coef", self.entropy_coef, "0 or above")


def train_ppo(
    policy: LanguageModel,
    reference: LanguageModel,
    critic: ScalarModel,
    renderer: Renderer,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: PPOConfig,
    run: Run,
) -> dict[str, float]:
    """Maximise the reward less the KL to the reference (Schulman et al. 2017; Ziegler et al. 2019).

    Each iteration samples responses, places the score on the last token and the KL on each, estimates advantages with
    the critic, and takes clipped policy and value steps over them; a shared critic (`ValueHead`) learns in the policy's own
    passes. Returns the last iteration's metrics.
    """
    shared = config.critic == "shared"
    if shared != isinstance(critic, ValueHead):
        raise ValueError(f"critic: {config.critic}, but the critic is a {type(critic).__name__}")
    engine = LocalEngine(policy, renderer, seed=config.seed)
    lrs = {"value": config.value_lr or 5 * config.peak_lr(policy)}
    state = loop.TrainState.create({"policy": policy, "value": critic}, config, config.num_updates, lrs)

    def iteration(kl_coef: float) -> dict[str, float]:
        rollouts, scores = gather.sample_and_score(engine, reward, gather.draw_prompts(prompts, state.step, config), config)
        scored = gather.measure(state, rollouts, scores, policy, reference, critic, config)
        mask = scored.batch.response_mask
        rewards = shape_rewards(scored.scores, scored.kl, mask, kl_coef)
        advantages, returns = gae(rewards, scored.values, mask, config.gamma, config.gae_lambda)
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        metrics = gather.rollout_metrics(rollouts, scored, rewards, config)
        metrics["explained_variance"] = float(explained_variance(scored.values, returns, mask))
        experience = scored.experience(advantages, returns)
        return metrics | gather.take_updates(state, experience, policy, config, partial(losses, kl_coef))

    def losses(kl_coef: float, batch: Experience, num_tokens: int, stats: loop.Stats) -> Iterator[Tensor]:
        """The policy's loss, then the critic's, or both in one; terms whose coefficient is 0 are not computed."""
        mask = batch.response_mask
        terms = gather.policy_terms(policy, reference, batch, kl_coef, config, with_entropy=config.entropy_coef > 0)
        loss, seen = ppo_policy_loss(terms.logprobs, batch.old_logprobs, batch.advantages, mask, config.clip_range, num_tokens)
        stats.add("policy_loss", loss * num_tokens, mask.sum())
        stats.add("clip_fraction", seen.clipped, mask.sum())
        stats.add("ratio", seen.ratio, mask.sum())
        stats.add("update_kl", seen.approx_kl, mask.sum())
        if terms.entropy is not None:
            loss = loss + config.entropy_coef * entropy_loss(terms.entropy, mask, num_tokens)
        if terms.kl is not None:
            loss = loss + kl_coef * masked_sum(terms.kl, mask) / num_tokens
        if not shared:
            yield loss
        values = critic.values_of(terms.hidden) if shared else critic.values(gather.tokens(batch))
        value_loss = ppo_value_loss(values, batch.values, batch.returns, mask, config.value_clip_range, num_tokens)
        stats.add("value_loss", value_loss * num_tokens, mask.sum())
        yield loss + config.value_coef * value_loss if shared else value_loss

    return gather.iterate(state, engine, config, run, iteration)
