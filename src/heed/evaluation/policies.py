"""Policies on held-out prompts: what the gold preference says, how far they moved, how long, how varied they speak."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heed.core import kl
from heed.core.statistics import Interval, best_of_n_curve, best_of_n_kl
from heed.errors import UserError, require
from heed.evaluation.intervals import as_dict, mean_interval, share_interval
from heed.models.batch import collate
from heed.models.language_model import LanguageModel
from heed.records import Prompt, Rollout, Sampling
from heed.rewards.protocol import Reward
from heed.rollout.engine import Engine

Gold = Callable[[Prompt, str], Mapping[str, float]]
"""The true preference: `utility`, and attributes in `[0, 1]` where they apply (`harmful` only where
harm was asked for)."""
AMOUNTS = ("utility", "tone", "length")
"""What a gold function may say that is no share: it is left out of the rates."""


@dataclass(frozen=True, slots=True)
class GradedResponse:
    """One sampled response with everything measured on it."""

    policy: str
    """Whose it is: `base`, `sft`, `best_of_n`, `ppo`."""
    prompt: Prompt
    text: str
    num_tokens: int
    """Sampled tokens, the end-of-sequence token included."""
    ended: bool
    """True where the policy ended the response itself, before the limit."""
    utility: float | None
    """The gold preference's judgement; None where no true preference is known."""
    attributes: Mapping[str, float]
    """Gold attributes that apply to this prompt."""
    kl: float
    """KL divergence from the reference in nats, summed over the response's tokens, exact at each token."""
    kl_k1: float | None
    """The same by the estimator k1; None where there is nothing to estimate it from."""
    proxy: float | None = None
    """The reward model's score; None where there is no reward model."""

    @property
    def kind(self) -> str:
        return self.prompt.tags.get("kind", "")

    def to_dict(self) -> dict[str, object]:
        """A row of `responses.jsonl`."""
        return {
            "policy": self.policy,
            "prompt_id": self.prompt.id,
            "prompt": self.prompt.display(),
            "kind": self.kind,
            "response": self.text,
            "utility": self.utility,
            "gold": dict(self.attributes),
            "proxy": self.proxy,
            "num_tokens": self.num_tokens,
            "ended": self.ended,
            "kl": self.kl,
        }


@dataclass(frozen=True, slots=True)
class PolicyEvaluation:
    """What is known of one policy on held-out prompts; intervals are 95 %, clustered by prompt."""

    gold_reward: Interval | None
    """Mean utility; None where no true preference is known."""
    rates: Mapping[str, Interval]
    """Mean of each gold attribute over the responses it applies to."""
    proxy_reward: Interval | None
    kl_to_reference: float
    """Mean over responses of the summed exact KL, in nats."""
    kl_k1: float | None
    mean_length: float
    """In tokens."""
    eos_rate: float
    distinct_1: float
    """Different words as a share of all words, among one response to each prompt."""
    distinct_2: float
    """The same of pairs of neighbouring words."""
    num_prompts: int
    num_responses: int
    by_kind: Mapping[str, PolicyEvaluation]
    """The same for each kind of prompt; empty where prompts carry no kind."""

    def to_dict(self) -> dict[str, object]:
        """An entry of `policies` in `summary.json`."""
        entry: dict[str, object] = {"gold_reward": as_dict(self.gold_reward) if self.gold_reward else None}
        for name, rate in self.rates.items():
            entry |= {f"{name}_rate": rate.mean, f"{name}_ci95": [rate.low, rate.high]}
        return entry | {
            "proxy_reward": as_dict(self.proxy_reward) if self.proxy_reward else None,
            "kl_to_reference": self.kl_to_reference,
            "kl_k1": self.kl_k1,
            "mean_length": self.mean_length,
            "eos_rate": self.eos_rate,
            "distinct_1": self.distinct_1,
            "distinct_2": self.distinct_2,
            "num_prompts": self.num_prompts,
            "num_responses": self.num_responses,
            "by_kind": {kind: part.to_dict() for kind, part in self.by_kind.items()},
        }


@dataclass(frozen=True, slots=True)
class BestOfNPoint:
    """What keeping the best of n responses by the reward model is expected to give."""

    n: int
    kl: float
    gold: Interval
    proxy: Interval

    def to_dict(self) -> dict[str, object]:
        """An entry of `best_of_n.json`."""
        return {"n": self.n, "kl": self.kl, "gold": as_dict(self.gold), "proxy": as_dict(self.proxy)}


def evaluate_policy(
    name: str,
    policy: LanguageModel,
    engine: Engine,
    reference: LanguageModel,
    prompts: Sequence[Prompt],
    gold: Gold | None,
    n: int,
    sampling: Sampling,
    *,
    reward: Reward | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
) -> tuple[PolicyEvaluation, tuple[GradedResponse, ...]]:
    """Sample n responses to each prompt and measure them; `reward` gives the proxy scores.

    Raises `UserError` where the gold function gives no `utility`, or an attribute outside `[0, 1]`.
    """
    rollouts = engine.generate(prompts, sampling, n)
    exact, k1 = kl_to_reference(rollouts, policy, reference, max_tokens)
    proxies = reward(rollouts).tolist() if reward else None
    responses = grade(name, rollouts, gold, exact.tolist(), k1.tolist(), proxies)
    return summarise(responses, seed), responses


@torch.no_grad()
def kl_to_reference(
    rollouts: Sequence[Rollout], policy: LanguageModel, reference: LanguageModel, max_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """KL divergence of each response from the reference in nats, exact per token and by k1; both `[B]`, on the CPU.

    `exact_i = sum_t KL(pi(. | x, y_<t) || ref(. | x, y_<t))`, `k1_i = sum_t log pi(y_t) - log ref(y_t)`, at temperature 1.
    Over responses sampled at temperature 1 both average to the KL of whole responses; the first has the smaller variance.
    """
    exact, k1 = torch.zeros(len(rollouts)), torch.zeros(len(rollouts))
    sequences = [rollout.sequence() for rollout in rollouts]
    for members in policy.micro_batches(sequences, max_tokens):
        batch = collate([sequences[i] for i in members], policy.pad_id, policy.device)
        hidden, ref_hidden = (model.hidden(batch, batch.before_response) for model in (policy, reference))
        own, _ = policy.logprobs_of(hidden, batch)
        other, _ = reference.logprobs_of(ref_hidden, batch)
        exact[members] = policy.exact_kl_of(hidden, reference, ref_hidden, batch).sum(1).float().cpu()
        k1[members] = kl.k1(own, other).sum(1).float().cpu()
    return exact, k1


def grade(
    policy: str,
    rollouts: Sequence[Rollout],
    gold: Gold | None,
    kls: Sequence[float],
    kl_k1s: Sequence[float],
    proxies: Sequence[float] | None = None,
) -> tuple[GradedResponse, ...]:
    """Put what was measured on each rollout beside what the gold function says of it."""
    graded = []
    for i, rollout in enumerate(rollouts):
        judged = gold(rollout.prompt, rollout.text) if gold else {}
        if gold and "utility" not in judged:
            raise UserError(f"the gold function returned {dict(judged)} for a response of {policy}", expected="a mapping with utility")
        attributes = {name: float(value) for name, value in judged.items() if name not in AMOUNTS}
        for name, value in attributes.items():
            require(0 <= value <= 1, f"the gold attribute {name}", value, "a share from 0 to 1")
        graded.append(
            GradedResponse(
                policy=policy,
                prompt=rollout.prompt,
                text=rollout.text,
                num_tokens=len(rollout.response_ids),
                ended=rollout.finish_reason == "stop",
                utility=float(judged["utility"]) if gold else None,
                attributes=attributes,
                kl=kls[i],
                kl_k1=kl_k1s[i],
                proxy=proxies[i] if proxies else None,
            )
        )
    return tuple(graded)


def summarise(responses: Sequence[GradedResponse], seed: int = 0, *, split_kinds: bool = True) -> PolicyEvaluation:
    """Average over responses, with intervals that know which responses share a prompt."""
    prompt_ids = [r.prompt.id for r in responses]
    rates = {}
    for name in sorted({name for r in responses for name in r.attributes}):
        having = [r for r in responses if name in r.attributes]
        rates[name] = share_interval([r.attributes[name] for r in having], [r.prompt.id for r in having], seed)
    gold = [r.utility for r in responses if r.utility is not None]
    proxies = [r.proxy for r in responses if r.proxy is not None]
    k1s = [r.kl_k1 for r in responses if r.kl_k1 is not None]
    kinds = sorted({r.kind for r in responses if r.kind}) if split_kinds else []
    return PolicyEvaluation(
        gold_reward=mean_interval(gold, prompt_ids, seed) if len(gold) == len(responses) else None,
        rates=rates,
        proxy_reward=mean_interval(proxies, prompt_ids, seed) if len(proxies) == len(responses) else None,
        kl_to_reference=mean(r.kl for r in responses),
        kl_k1=mean(k1s) if k1s else None,
        mean_length=mean(r.num_tokens for r in responses),
        eos_rate=mean(r.ended for r in responses),
        distinct_1=distinct(responses, 1),
        distinct_2=distinct(responses, 2),
        num_prompts=len(set(prompt_ids)),
        num_responses=len(responses),
        by_kind={kind: summarise([r for r in responses if r.kind == kind], seed, split_kinds=False) for kind in kinds},
    )


def win_rate(a: Sequence[GradedResponse], b: Sequence[GradedResponse], seed: int = 0) -> Interval:
    """How often a response of `a` has more gold utility than one of `b` to the same prompt; a tie counts half.

    `mean over prompts of mean_(i, j) [u_i > u_j] + [u_i = u_j] / 2`, over all pairs of a prompt's responses, interval by
    bootstrap over prompts. `win_rate(b, a)` is its mirror image. What `a` was chosen from must not be `b`: the best of N wins over
    those N in `1 - 1 / 2N` of comparisons even where it wins over others in `N / (N + 1)`. Raises `ValueError` where the prompts
    differ or have no gold.
    """
    ours, theirs = utilities(a), utilities(b)
    if ours.keys() != theirs.keys():
        raise ValueError("a win rate compares responses to the same prompts")
    shares = [mean((x > y) + 0.5 * (x == y) for x in ours[prompt_id] for y in theirs[prompt_id]) for prompt_id in sorted(ours)]
    return share_interval(shares, sorted(ours), seed)


def best_of_n(responses: Sequence[GradedResponse], seed: int = 0) -> tuple[tuple[GradedResponse, ...], tuple[BestOfNPoint, ...]]:
    """The best of each prompt's N responses by proxy, and the expected gold and proxy for every n from 1 to N.

    The curve is the unbiased one over all subsets of size n. Its KL is `ln n - (n - 1) / n`, an upper bound that is tight
    while no two responses tie (Beirami et al. 2024). Raises `ValueError` where prompts have unequal numbers of responses,
    or responses no proxy or gold.
    """
    groups = list(by_prompt(responses).values())
    if len({len(group) for group in groups}) != 1 or any(r.proxy is None or r.utility is None for r in responses):
        raise ValueError("best-of-n needs equally many responses to each prompt, each with proxy and gold")
    n = len(groups[0])
    proxy = torch.tensor([[r.proxy for r in group] for group in groups], dtype=torch.float64)
    gold = torch.tensor([[r.utility for r in group] for group in groups], dtype=torch.float64)
    chosen = [group[best] for group, best in zip(groups, proxy.argmax(1).tolist(), strict=True)]
    prompt_ids = [r.prompt.id for r in chosen]
    gold_curves = torch.stack([best_of_n_curve(p[None], g[None]) for p, g in zip(proxy, gold, strict=True)])
    proxy_curves = torch.stack([best_of_n_curve(p[None], p[None]) for p in proxy])
    curve = tuple(
        BestOfNPoint(
            k,
            best_of_n_kl(k),
            mean_interval(gold_curves[:, k - 1].tolist(), prompt_ids, seed),
            mean_interval(proxy_curves[:, k - 1].tolist(), prompt_ids, seed),
        )
        for k in range(1, n + 1)
    )
    return tuple(replace(r, policy="best_of_n", kl=best_of_n_kl(n), kl_k1=None) for r in chosen), curve


def distinct(responses: Iterable[GradedResponse], n: int) -> float:
    """Different n-grams of words as a share of all n-grams (Li et al. 2016), among one response to each prompt, averaged over draws.

    The share falls as text is added, so policies compare only over like amounts of it: whatever the number of responses to a
    prompt, one of them counts at a time.
    """
    shares = []
    for draw in zip(*by_prompt(responses).values(), strict=True):
        texts = [r.text.lower().split() for r in draw]
        grams = [gram for words in texts for gram in zip(*(words[i:] for i in range(n)), strict=False)]
        shares.append(len(set(grams)) / len(grams) if grams else 0.0)
    return mean(shares)


def by_prompt(responses: Iterable[GradedResponse]) -> dict[str, list[GradedResponse]]:
    groups: dict[str, list[GradedResponse]] = {}
    for response in responses:
        groups.setdefault(response.prompt.id, []).append(response)
    return groups


def first_of_each(responses: Iterable[GradedResponse], n: int) -> tuple[GradedResponse, ...]:
    """The first n responses to each prompt."""
    return tuple(response for group in by_prompt(responses).values() for response in group[:n])


def utilities(responses: Iterable[GradedResponse]) -> dict[str, list[float]]:
    """Gold utilities by prompt; raises `ValueError` where a response has none."""
    found: dict[str, list[float]] = {}
    for response in responses:
        if response.utility is None:
            raise ValueError(f"a response of {response.policy} has no gold utility")
        found.setdefault(response.prompt.id, []).append(response.utility)
    return found


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
