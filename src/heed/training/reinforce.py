"""REINFORCE with a baseline: the plain policy gradient, with leave-one-out and group baselines for sampled groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

from torch import Tensor

from heed.core.advantages import group_normalised, leave_one_out, shape_rewards
from heed.core.losses import reinforce_loss
from heed.core.masking import masked_sum
from heed.data.render import Renderer
from heed.errors import require
from heed.models.language_model import LanguageModel
from heed.records import Experience, Prompt
from heed.rewards.protocol import Reward
from heed.rollout.local import LocalEngine
from heed.training import experience as gather
from heed.training import loop
from heed.training.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforceConfig(gather.PolicyGradientConfig):
    """Settings of REINFORCE. Every rollout is used once, so that the gradient is on-policy within an update."""

    samples_per_prompt: int = 4
    """Responses sampled for each prompt: the group that a baseline is taken over."""
    baseline: Literal["none", "running_mean", "leave_one_out", "group"] = "leave_one_out"
    """What is taken from the return: nothing, the mean of past iterations, the mean of the group's other responses
    (RLOO), or the group's own mean, scaled by its spread (GRPO)."""
    baseline_decay: float = 0.9
    """How slowly the running mean forgets."""

    def __post_init__(self) -> None:
        gather.PolicyGradientConfig.__post_init__(self)
        needs_group = self.baseline in ("leave_one_out", "group")
        require(
            not needs_group or self.samples_per_prompt > 1,
            "samples_per_prompt",
            self.samples_per_prompt,
            f"2 or more with baseline: {self.baseline}",
        )
        require(self.epochs == 1, "epochs", self.epochs, "1: REINFORCE uses each rollout once")
        require(0 <= self.baseline_decay < 1, "baseline_decay", self.baseline_decay, "a share from 0 to below 1")


def train_reinforce(
    policy: LanguageModel,
    reference: LanguageModel,
    renderer: Renderer,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: ReinforceConfig,
    run: Run,
) -> dict[str, float]:
    """Follow `(R - b) grad log pi(y | x)`, where R is the score less the KL to the reference (Williams 1992; Ahmadian et al. 2024)."""
    engine = LocalEngine(policy, renderer, seed=config.seed)
    state = loop.TrainState.create({"policy": policy}, config, config.num_updates)
    state.values["mean_return"] = None

    def iteration(kl_coef: float) -> dict[str, float]:
        rollouts, scores = gather.sample_and_score(engine, reward, gather.draw_prompts(prompts, state.step, config), config)
        scored = gather.measure(state, rollouts, scores, policy, reference, None, config)
        mask = scored.batch.response_mask
        rewards = shape_rewards(scored.scores, scored.kl, mask, kl_coef)
        returns = masked_sum(rewards, mask, dim=1)
        mean_return = cast(float | None, state.values["mean_return"])
        advantages = baselined(returns, mean_return, config)[:, None] * mask
        state.values["mean_return"] = running_mean(mean_return, float(returns.mean()), config.baseline_decay)
        metrics = gather.rollout_metrics(rollouts, scored, rewards, config)
        experience = scored.experience(advantages, rewards)
        return metrics | gather.take_updates(state, experience, policy, config, partial(losses, kl_coef))

    def losses(kl_coef: float, batch: Experience, num_tokens: int, stats: loop.Stats) -> Iterator[Tensor]:
        mask = batch.response_mask
        terms = gather.policy_terms(policy, reference, batch, kl_coef, config, with_entropy=False)
        loss = reinforce_loss(terms.logprobs, batch.advantages, mask, num_tokens)
        stats.add("policy_loss", loss * num_tokens, mask.sum())
        if terms.kl is not None:
            loss = loss + kl_coef * masked_sum(terms.kl, mask) / num_tokens
        yield loss

    return gather.iterate(state, engine, config, run, iteration)


def baselined(returns: Tensor, mean_return: float | None, config: ReinforceConfig) -> Tensor:
    """Returns less their baseline, `[B]`; the running mean starts with the first iteration's own."""
    if config.baseline == "leave_one_out":
        return leave_one_out(returns, config.samples_per_prompt)
    if config.baseline == "group":
        return group_normalised(returns, config.samples_per_prompt)
    if config.baseline == "running_mean":
        return returns - (returns.mean() if mean_return is None else mean_return)
    return returns


def running_mean(old: float | None, new: float, decay: float) -> float:
    return new if old is None else decay * old + (1 - decay) * new
