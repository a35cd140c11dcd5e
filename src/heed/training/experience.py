"""What PPO and REINFORCE share: sampling prompts, scoring rollouts, and the KL leash to the frozen reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor

from heed.core import kl as kl_estimators
from heed.core.kl import next_kl_coef
from heed.core.masking import masked_sum
from heed.errors import require
from heed.models.batch import TokenBatch, collate
from heed.models.language_model import LanguageModel
from heed.models.scalar_model import ScalarModel
from heed.records import Experience, Prompt, Rollout, Sampling
from heed.rewards.protocol import Reward, checked_scores
from heed.rollout.engine import Engine
from heed.rollout.local import LocalEngine
from heed.training import loop
from heed.training.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradientConfig(loop.TrainConfig):
    """Settings that PPO and REINFORCE share. `batch_size` counts rollouts per update: as many whole prompts as it holds, one at least."""

    DEFAULT_LR: ClassVar[tuple[float, float]] = (1e-6, 1e-5)

    iterations: int = 50
    """Rounds of sampling and updating."""
    prompts_per_iteration: int = 64
    """Prompts drawn in one iteration."""
    samples_per_prompt: int = 1
    """Responses sampled for each of them."""
    max_new_tokens: int = 64
    """Longest response."""
    temperature: float = 1.0
    """Of sampling, and of the policy that is trained: they are one distribution."""
    kl_coef: float = 0.05
    """Weight of the KL to the reference; 0 turns the leash off."""
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "k1"
    """k1 is the log-ratio of the sampled token; `exact` sums over the whole vocabulary."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL enters. In the loss only `exact` and `k2` have the gradient of the KL."""
    kl_target: float | None = None
    """Nats per response that the adaptive controller steers to; none keeps `kl_coef` fixed."""
    kl_horizon: int = 10_000
    """Rollouts over which the adaptive controller acts."""
    missing_eos_penalty: float = 1.0
    """Taken from the score of a response that did not end by itself."""
    kl_sample: int | None = None
    """Rollouts per iteration on which exact KL, entropy and log-probability gap are measured, in whole groups; none takes a
    quarter of them, 32 at most."""
    old_logprobs: Literal["auto", "engine", "trainer"] = "auto"
    """Whose log-probabilities the ratio starts from: the engine's, which cost nothing; the trainer's, for one more pass; `auto` takes the
    engine's in fp32, where the two are equal but for rounding, and the trainer's under bf16."""
    checkpoint_every: int = 10
    """Iterations between checkpoints."""

    def __post_init__(self) -> None:
        loop.TrainConfig.__post_init__(self)
        for name in ("iterations", "prompts_per_iteration", "samples_per_prompt", "max_new_tokens", "kl_horizon"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a whole number above 0")
        require(self.kl_sample is None or self.kl_sample > 0, "kl_sample", self.kl_sample, "a whole number above 0, or none")
        require(self.temperature > 0, "temperature", self.temperature, "a number above 0: a greedy policy has no gradient")
        require(self.kl_coef >= 0, "kl_coef", self.kl_coef, "0 or above")
        require(self.kl_target is None or self.kl_target > 0, "kl_target", self.kl_target, "nats above 0, or none")
        steered = self.kl_target is not None
        require(not steered or self.kl_coef > 0, "kl_coef", self.kl_coef, "a number above 0 to begin with, where kl_target steers it")
        least = self.rollouts_per_iteration
        require(not steered or self.kl_horizon >= least, "kl_horizon", self.kl_horizon, f"{least} (the rollouts of an iteration) or more")
        require(self.missing_eos_penalty >= 0, "missing_eos_penalty", self.missing_eos_penalty, "0 or above")
        right_gradient = self.kl_in == "reward" or self.kl_estimator in ("exact", "k2")
        require(right_gradient, "kl_estimator", self.kl_estimator, "exact or k2 with kl_in: loss; others lack the KL's gradient there")

    @property
    def rollouts_per_iteration(self) -> int:
        return self.prompts_per_iteration * self.samples_per_prompt

    @property
    def prompts_per_update(self) -> int:
        return max(1, self.batch_size // self.samples_per_prompt)

    @property
    def num_updates(self) -> int:
        return self.iterations * self.epochs * math.ceil(self.prompts_per_iteration / self.prompts_per_update)

    @property
    def sampling(self) -> Sampling:
        return Sampling(max_new_tokens=self.max_new_tokens, temperature=self.temperature)


class Observed(NamedTuple):
    """What some of an iteration's rollouts show of the policy, over its whole vocabulary."""

    kl: float
    """KL(policy || reference), nats per response."""
    entropy: float
    """Nats per token."""
    logprob_gap: float
    """The largest difference between what the engine and the trainer say of a sampled token."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One iteration's rollouts with all that was measured on them before any update; tensors on the CPU."""

    batch: TokenBatch
    scores: Tensor
    """From the reward, less the penalty for a missing end, `[B]`."""
    old_logprobs: Tensor
    """`[B, T]`."""
    ref_logprobs: Tensor
    """`[B, T]`; the engine's own where no KL is asked for."""
    kl: Tensor
    """The estimate that enters the reward, `[B, T]`."""
    values: Tensor
    """`[B, T]`; zeros without a critic."""
    observed: Observed

    def experience(self, advantages: Tensor, returns: Tensor) -> Experience:
        batch = self.batch
        return Experience(
            batch.ids, batch.attention_mask, batch.response_mask, self.old_logprobs, self.ref_logprobs, self.values, advantages, returns
        )


def draw_prompts(prompts: Sequence[Prompt], iteration: int, config: PolicyGradientConfig) -> list[Prompt]:
    """The prompts of one iteration: passes over all of them in an order that depends on the seed alone."""
    order = loop.Batches(len(prompts), 1, 1 + (iteration + 1) * config.prompts_per_iteration // len(prompts), config.seed)
    start = iteration * config.prompts_per_iteration
    return [prompts[order[i][0]] for i in range(start, start + config.prompts_per_iteration)]


def sample_and_score(
    engine: Engine,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: PolicyGradientConfig,
) -> tuple[list[Rollout], Tensor]:
    """Rollouts of the current policy, n adjacent per prompt, and their scores `[B]` less the missing-end penalty."""
    rollouts = engine.generate(prompts, config.sampling, config.samples_per_prompt)
    scores = checked_scores(reward(rollouts), rollouts, "the reward")
    unfinished = torch.tensor([r.finish_reason == "length" for r in rollouts])
    return rollouts, scores - config.missing_eos_penalty * unfinished


@torch.no_grad()
def measure(
    state: loop.TrainState,
    rollouts: Sequence[Rollout],
    scores: Tensor,
    policy: LanguageModel,
    reference: LanguageModel,
    critic: ScalarModel | None,
    config: PolicyGradientConfig,
) -> Scored:
    """Reference log-probabilities, KL and values of every sampled token, and what some rollouts show, in micro-batches of similar length.

    The engine's own log-probabilities serve as `old_logprobs`, or are computed again the way the update will see them.
    """
    sequences = [r.sequence() for r in rollouts]
    whole = collate(sequences, policy.pad_id, torch.device("cpu"))
    mask = whole.response_mask
    of_engine = torch.zeros(whole.ids.shape)
    of_engine[mask] = torch.tensor([p for r in rollouts for p in r.logprobs])
    rounded = state.use_bf16 or policy.head()[0].dtype != torch.float32
    recompute = config.old_logprobs == "trainer" or (config.old_logprobs == "auto" and rounded)
    leashed = uses_reference(config)
    shaped = leashed and config.kl_in == "reward"
    exact = shaped and config.kl_estimator == "exact"
    asking = {"values": critic is not None, "ref_logprobs": leashed, "logprobs": recompute, "kl": exact}
    of_all = {name for name, asked in asking.items() if asked}
    observed = observed_rows(len(rollouts), config)
    others = sorted({*range(len(rollouts))} - {*observed}) if of_all else []
    found = {name: torch.zeros_like(of_engine) for name in (*asking, "entropy")}
    for rows, asked in ((observed, of_all | {"logprobs", "entropy", "kl"}), (others, of_all)):
        for group in policy.micro_batches([sequences[i] for i in rows], config.max_tokens):
            members = [rows[i] for i in group]
            batch = collate([sequences[i] for i in members], policy.pad_id, policy.device)
            place = torch.tensor(members)[:, None], torch.arange(batch.ids.shape[1])[None]
            with state.autocast():
                for name, each in look(asked, batch, policy, reference, critic, config.temperature):
                    found[name][place] = each.float().cpu()
    old = found["logprobs"] if recompute else of_engine
    ref = found["ref_logprobs"] if leashed else of_engine
    kl = torch.zeros_like(old)
    if shaped:
        kl = found["kl"] if exact else getattr(kl_estimators, config.kl_estimator)(old, ref) * mask
    entropy, gaps = found["entropy"][observed][mask[observed]], (found["logprobs"] - of_engine)[observed].abs()
    sample = Observed(float(found["kl"][observed].sum(1).mean()), float(entropy.mean()), float(gaps.max()))
    return Scored(whole, scores, old, ref, kl, found["values"], sample)


def look(
    asked: Set[str], batch: TokenBatch, policy: LanguageModel, reference: LanguageModel, critic: ScalarModel | None, temperature: float
) -> Iterator[tuple[str, Tensor]]:
    """What is asked of each response token, by name, `[B, T]`; no model runs twice, and none for nothing."""
    if critic is not None:
        yield "values", critic.values(batch)
    ref_hidden = reference.hidden(batch, batch.before_response) if asked & {"ref_logprobs", "kl"} else None
    if ref_hidden is not None and "ref_logprobs" in asked:
        yield "ref_logprobs", reference.logprobs_of(ref_hidden, batch, temperature)[0]
    hidden = policy.hidden(batch, batch.before_response) if asked & {"logprobs", "entropy", "kl"} else None
    if hidden is not None and "logprobs" in asked:
        logprobs, entropy = policy.logprobs_of(hidden, batch, temperature, with_entropy="entropy" in asked)
        yield "logprobs", logprobs
        if entropy is not None:
            yield "entropy", entropy
    if hidden is not None and ref_hidden is not None and "kl" in asked:
        yield "kl", policy.exact_kl_of(hidden, reference, ref_hidden, batch, temperature)


def observed_rows(num_rollouts: int, config: PolicyGradientConfig) -> list[int]:
    """Rollouts of `kl_sample` that are spread over an iteration: whole groups, since they share their prompt."""
    n, wanted = config.samples_per_prompt, config.kl_sample or min(32, math.ceil(num_rollouts / 4))
    every = math.ceil(num_rollouts / n / math.ceil(wanted / n))
    return [i for i in range(num_rollouts) if i // n % every == 0]


def minibatches(experience: Experience, policy: LanguageModel, iteration: int, config: PolicyGradientConfig) -> Iterator[list[Experience]]:
    """For every update of an iteration, its micro-batches: `epochs` passes over the prompts in shuffled order.

    The responses to a prompt stay together, so that they can share it.
    """
    sequences = tokens(experience).sequences()
    n = config.samples_per_prompt
    # Each iteration's epochs follow on from the last one's, so that no permutation comes twice.
    batches = loop.Batches(len(sequences) // n, config.prompts_per_update, (iteration + 1) * config.epochs, config.seed)
    for index in range(iteration * config.epochs * batches.per_epoch, len(batches)):
        members = [row for prompt in batches[index] for row in range(prompt * n, (prompt + 1) * n)]
        groups = policy.micro_batches([sequences[i] for i in members], config.max_tokens)
        yield [experience.rows(torch.tensor([members[i] for i in group])) for group in groups]


class PolicyTerms(NamedTuple):
    """What the losses of a micro-batch are made of, from one forward pass of the policy."""

    hidden: Tensor
    """At the tokens that predict the response, `[B, T, D]`."""
    logprobs: Tensor
    """Of every response token, `[B, T]`."""
    entropy: Tensor | None
    """`[B, T]`; none unless asked for."""
    kl: Tensor | None
    """`[B, T]`, where it belongs in the loss: over the whole vocabulary, or k2, whose gradient is the KL's in expectation."""


def policy_terms(
    policy: LanguageModel, reference: LanguageModel, batch: Experience, kl_coef: float, config: PolicyGradientConfig, *, with_entropy: bool
) -> PolicyTerms:
    """The terms of a micro-batch; those that nothing asks for are not computed.

    The reference runs before the policy, since with LoRA it is the same backbone with its adapter off, and an adapter may not
    change between a forward pass and its backward.
    """
    kl_in_loss = config.kl_in == "loss" and kl_coef > 0
    sampled = tokens(batch)
    ref_hidden = None
    if kl_in_loss and config.kl_estimator == "exact":
        with torch.no_grad():
            ref_hidden = reference.hidden(sampled, sampled.before_response)
    hidden = policy.hidden(sampled, sampled.before_response)
    logprobs, entropy = policy.logprobs_of(hidden, sampled, config.temperature, with_entropy)
    kl = None
    if ref_hidden is not None:
        kl = policy.exact_kl_of(hidden, reference, ref_hidden, sampled, config.temperature)
    elif kl_in_loss:
        kl = kl_estimators.k2(logprobs, batch.ref_logprobs)
    return PolicyTerms(hidden, logprobs, entropy, kl)


def take_updates(
    state: loop.TrainState,
    experience: Experience,
    policy: LanguageModel,
    config: PolicyGradientConfig,
    losses: Callable[[Experience, int, loop.Stats], Iterator[Tensor]],
) -> dict[str, float]:
    """All updates of one iteration; `losses` gets a micro-batch and the token count of its whole update."""
    stats = loop.Stats()
    for minibatch in minibatches(experience, policy, state.step, config):
        num_tokens = sum(int(part.response_mask.sum()) for part in minibatch)
        loop.update(state, (part.to(state.device) for part in minibatch), lambda part, stats, n=num_tokens: losses(part, n, stats), stats)
    return stats.means()


def iterate(
    state: loop.TrainState, engine: LocalEngine, config: PolicyGradientConfig, run: Run, iteration: Callable[[float], dict[str, float]]
) -> dict[str, float]:
    """All iterations, from wherever the run's checkpoint is; `iteration` takes the KL coefficient and returns its metrics.

    The KL controller, the engine's random state and the data cursor are part of every checkpoint.
    """
    state.values |= {"kl_coef": config.kl_coef, "engine": engine.state()}
    state.resume(run)
    engine.load_state(cast(dict[str, int], state.values["engine"]))
    while state.step < config.iterations:
        kl_coef = cast(float, state.values["kl_coef"])
        metrics = iteration(kl_coef) | {"kl_coef": kl_coef}
        state.step += 1
        state.values |= {"kl_coef": leash(kl_coef, metrics, config), "engine": engine.state()}
        run.log(state.step, config.iterations, metrics, show=("score", "kl_exact", "response_length"))
        due = state.step % config.checkpoint_every == 0 or state.step == config.iterations
        run.checkpoint_if_due(due, lambda: state.save(run))
    return run.last_metrics()


def tokens(experience: Experience) -> TokenBatch:
    return TokenBatch(experience.ids, experience.attention_mask, experience.response_mask)


def rollout_metrics(rollouts: Sequence[Rollout], scored: Scored, rewards: Tensor, config: PolicyGradientConfig) -> dict[str, float]:
    """What an iteration reports of its rollouts: means over responses, but the entropy per token."""
    mask = scored.batch.response_mask
    k1 = masked_sum(scored.old_logprobs - scored.ref_logprobs, mask, dim=1).mean()
    return {
        "score": float(scored.scores.mean()),
        "shaped_reward": float(rewards.sum(dim=1).mean()),
        **({"kl": float(k1)} if uses_reference(config) else {}),
        "kl_exact": scored.observed.kl,
        "entropy": scored.observed.entropy,
        "logprob_gap": scored.observed.logprob_gap,
        "response_length": float(mask.sum(dim=1).float().mean()),
        "eos_rate": sum(r.finish_reason == "stop" for r in rollouts) / len(rollouts),
    }


def uses_reference(config: PolicyGradientConfig) -> bool:
    return config.kl_coef > 0 or config.kl_target is not None


def leash(kl_coef: float, metrics: Mapping[str, float], config: PolicyGradientConfig) -> float:
    """The KL coefficient of the next iteration."""
    if config.kl_target is None:
        return kl_coef
    return next_kl_coef(kl_coef, metrics["kl"], config.kl_target, config.kl_horizon, config.rollouts_per_iteration)
