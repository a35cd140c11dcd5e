"""The numbers of a run in plain words: what people gained, what it cost, and what looks like over-optimisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Numbers = Mapping[str, Any]
GOOD = frozenset({"helpful", "honest", "harmless", "polite", "positive", "correct", "safe"})
"""Attributes of which more is better."""
BAD = frozenset({"harmful", "fabrication", "rude", "toxic", "negative", "broken"})
"""Attributes of which less is better."""
NAMES = {
    "sft": "SFT",
    "ppo": "PPO",
    "dpo": "DPO",
    "reinforce": "REINFORCE",
    "kl": "KL (k1)",
    "kl_exact": "KL (exact)",
    "kl_coef": "KL coefficient",
    "eos_rate": "ends by itself",
    "lr": "learning rate",
}
SHORTEST, LONGEST = 0.7, 1.5
"""How far a policy's mean length may move from the reference's before it looks like a trick of length."""
LEAST_VARIETY = 0.5
"""The share of the reference's distinct word pairs below which variety has collapsed."""
LARGEST_EOS_DROP = 0.1


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about a run."""

    kind: Literal["gain", "loss", "cost", "note", "warning"]
    text: str


def read_results(summary: Numbers, best_of_n: Sequence[Numbers] = ()) -> list[Finding]:
    """Everything worth saying of a summary, warnings first; empty where nothing was measured."""
    found = [*_policies(summary), *_reward_model(summary.get("reward_model") or {}), *_best_of_n(best_of_n)]
    order = ("warning", "gain", "loss", "cost", "note")
    return sorted(found, key=lambda finding: order.index(finding.kind))


def reference_name(summary: Numbers) -> str | None:
    """The policy that others are compared with: the one that optimisation started from."""
    policies = summary.get("policies") or {}
    return next((name for name in (summary.get("reference"), "sft", "base") if name in policies), None)


def optimised_names(summary: Numbers) -> list[str]:
    """The policies that learned from preferences, oldest first."""
    return [name for name in summary.get("policies") or {} if name not in ("base", "sft", "best_of_n", reference_name(summary))]


def attributes(policies: Numbers) -> list[str]:
    """The gold attributes for which any policy has a rate, good ones first."""
    names = dict.fromkeys(key.removesuffix("_rate") for p in policies.values() for key in p if key.endswith("_rate") and key != "eos_rate")
    return sorted(names, key=lambda name: (name not in GOOD, name not in BAD))


def mean_of(value: Any) -> float | None:
    """The number itself, or the mean of an estimate; None where it was not measured."""
    return value.get("mean") if isinstance(value, Mapping) else value


def spoken(name: str) -> str:
    """A policy, metric or attribute as people call it."""
    return NAMES.get(name, name.replace("_", " "))


def percent(share: float) -> str:
    """A share as people say it: whole per cents, and tenths where a whole one would hide a small rest."""
    return f"{100 * share:.1f}\u00a0%" if 0 < share < 0.01 or 0.99 < share < 1 else f"{100 * share:.0f}\u00a0%"


def percents(low: float, high: float) -> str:
    """An interval of shares."""
    return percent(low).rstrip("\u00a0%") + "–" + percent(high)


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _policies(summary: Numbers) -> Iterator[Finding]:
    policies, start, names = summary.get("policies") or {}, reference_name(summary), optimised_names(summary)
    if not start or not names:
        return
    newest = names[-1]
    for name in names:
        yield from _win(summary, name, start)
    first = "base" if "base" in policies else start
    for attribute in attributes(policies):
        yield from _change(attribute, [(p, policies[p].get(f"{attribute}_rate")) for p in dict.fromkeys((first, start, newest))])
    yield from _price(policies[newest], policies[start], spoken(newest), spoken(start))
    warnings = [w for name in names for w in over_optimisation(policies[name], policies[start], spoken(name), spoken(start))]
    yield from warnings
    falls = [fall for name in names for fall in gold_fall(policies[name], policies[start], spoken(name), spoken(start))]
    yield from falls
    if policies[newest].get("gold_reward") is None:
        yield Finding("warning", "No true preference was named, so this says what the reward model thinks, not what people gain.")
    elif not warnings and not falls:
        yield Finding("note", "No sign of over-optimisation: gold reward, length, variety and endings all held.")


def _win(summary: Numbers, name: str, start: str) -> Iterator[Finding]:
    rate = (summary.get("win_rate") or {}).get(f"{name}_vs_{start}")
    if rate:
        low, high = rate["ci95"]
        kind = "gain" if low > 0.5 else "loss" if high < 0.5 else "note"
        verdict = "" if kind != "note" else ": no clear difference"
        yield Finding(
            kind,
            f"{spoken(name)} gives the preferred answer in {percent(rate['mean'])} of comparisons with {spoken(start)} "
            f"(95 % interval {percents(low, high)}){verdict}.",
        )


def _change(attribute: str, steps: list[tuple[str, float | None]]) -> Iterator[Finding]:
    known = [(name, rate) for name, rate in steps if rate is not None]
    if len(known) < 2:
        return
    before, after = known[0][1], known[-1][1]
    better = (after - before) * (1 if attribute in GOOD else -1 if attribute in BAD else 0)
    kind = "gain" if better > 0 else "loss" if better < 0 else "note"
    path = " → ".join(f"{percent(rate)} ({spoken(name)})" for name, rate in known)
    yield Finding(kind, f"{spoken(attribute).capitalize()}: {path}.")


def _price(policy: Numbers, start: Numbers, name: str, start_name: str) -> Iterator[Finding]:
    if policy.get("kl_to_reference") is not None:
        yield Finding("cost", f"{name} moved {policy['kl_to_reference']:.1f} nats of KL per response away from {start_name}.")
    if policy.get("mean_length") and start.get("mean_length"):
        ratio = policy["mean_length"] / start["mean_length"]
        yield Finding("cost", f"Responses are {ratio:.2f} × as long as those of {start_name} ({policy['mean_length']:.0f} tokens).")
    if policy.get("distinct_2") and start.get("distinct_2"):
        yield Finding("cost", f"Variety, as the share of distinct word pairs: {start['distinct_2']:.2f} → {policy['distinct_2']:.2f}.")


def over_optimisation(policy: Numbers, start: Numbers, name: str, start_name: str) -> list[Finding]:
    """The known signs that a policy pleases the reward model rather than people, as warnings.

    Proxy up while gold is down (Gao et al. 2022); mean length outside 0.7 to 1.5 of the reference's; less than half of its
    distinct word pairs; at least 10 points fewer responses that end by themselves.
    """

    def change(key: str) -> float | None:
        now, before = mean_of(policy.get(key)), mean_of(start.get(key))
        return None if now is None or before is None else now - before

    def ratio(key: str) -> float | None:
        return policy[key] / start[key] if policy.get(key) is not None and start.get(key) else None

    warnings = []
    gold, proxy, eos = change("gold_reward"), change("proxy_reward"), change("eos_rate")
    length, variety = ratio("mean_length"), ratio("distinct_2")
    if gold is not None and proxy is not None and proxy > 0 > gold:
        warnings.append(
            f"the reward model likes {name} more than {start_name} ({signed(proxy)}), the true preference less ({signed(gold)})"
        )
    if length is not None and not SHORTEST <= length <= LONGEST:
        warnings.append(f"responses of {name} are {length:.2f} × as long as those of {start_name}")
    if variety is not None and variety < LEAST_VARIETY:
        warnings.append(f"{name} keeps only {percent(variety)} of the distinct word pairs of {start_name}: it repeats itself")
    if eos is not None and eos <= -LARGEST_EOS_DROP:
        warnings.append(f"{name} ends {percent(-eos)} fewer of its responses by itself than {start_name}")
    return [Finding("warning", f"Over-optimisation: {text}.") for text in warnings]


def gold_fall(policy: Numbers, start: Numbers, name: str, start_name: str) -> list[Finding]:
    """That the true preference likes a policy less than what it started from, by more than the noise of its mean, or nothing."""
    after, before = policy.get("gold_reward"), start.get("gold_reward")
    now, then = mean_of(after), mean_of(before)
    if now is None or then is None:
        return []
    highest = after["ci95"][1] if isinstance(after, Mapping) and "ci95" in after else now
    return [Finding("loss", f"Gold reward fell: {signed(then)} ({start_name}) → {signed(now)} ({name}).")] if highest < then else []


def _reward_model(measured: Numbers) -> Iterator[Finding]:
    if not measured:
        return
    (low, high), mean = measured["accuracy"]["ci95"], measured["accuracy"]["mean"]
    rules = {name: measured[f"{name}_baseline"] for name in ("longer", "shorter") if measured.get(f"{name}_baseline") is not None}
    text = f"The reward model is right on {percent(mean)} of held-out pairs ({percents(low, high)})"
    if rules:
        best = max(rules, key=lambda name: rules[name])
        text += f"; always choosing the {best} answer is right on {percent(rules[best])}"
    if measured.get("noise_ceiling") is not None:
        text += f"; annotators' own agreement caps it near {percent(measured['noise_ceiling'])}"
    yield Finding("note", text + ".")
    if rules and low <= max(rules.values()):
        yield Finding("warning", "The reward model is not reliably better than a rule about length.")


def _best_of_n(curve: Sequence[Numbers]) -> Iterator[Finding]:
    if not curve:
        return
    peak = max(curve, key=lambda point: point["gold"]["mean"])
    if peak["n"] < curve[-1]["n"] and curve[-1]["gold"]["ci95"][1] < peak["gold"]["mean"]:
        yield Finding(
            "warning",
            f"Over-optimisation: best-of-n pleases people most at n = {peak['n']}, and less at n = {curve[-1]['n']}, "
            "although the reward model's score still rises.",
        )
