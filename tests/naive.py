"""Slow, obvious references, written from the papers and independently of the package: loops over floats, sums over whole vocabularies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

Floats = Sequence[float]


def log_softmax(logits: Floats) -> list[float]:
    top = max(logits)
    total = sum(math.exp(z - top) for z in logits)
    return [z - top - math.log(total) for z in logits]


def entropy(logits: Floats) -> float:
    return -sum(math.exp(lp) * lp for lp in log_softmax(logits))


def kl(logits: Floats, ref_logits: Floats) -> float:
    p, q = log_softmax(logits), log_softmax(ref_logits)
    return sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def logits(hidden: Floats, weight: Sequence[Floats], bias: Floats | None = None, temperature: float = 1.0) -> list[float]:
    found = []
    for v, row in enumerate(weight):
        z = sum(h * w for h, w in zip(hidden, row, strict=True)) + (bias[v] if bias else 0.0)
        found.append(z / temperature)
    return found


def sequence_logprobs(states: Sequence[Floats], weight: Sequence[Floats], ids: Sequence[int], mask: Sequence[bool]) -> list[float]:
    """Of one sequence: the state at t - 1 predicts token t."""
    found = []
    for t in range(len(ids)):
        found.append(log_softmax(logits(states[t - 1], weight))[ids[t]] if mask[t] else 0.0)
    return found


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def counted(values: Floats, mask: Sequence[bool]) -> list[float]:
    return [x for x, counts in zip(values, mask, strict=True) if counts]


def shaped_rewards(score: float, kls: Floats, mask: Sequence[bool], kl_coef: float) -> list[float]:
    """Of one sequence: walk to the last response token."""
    rewards, last = [0.0] * len(kls), -1
    for t, counts in enumerate(mask):
        if counts:
            rewards[t] = -kl_coef * kls[t]
            last = t
    rewards[last] += score
    return rewards


def gae(rewards: Floats, values: Floats, mask: Sequence[bool], gamma: float, gae_lambda: float) -> tuple[list[float], list[float]]:
    """Of one sequence, by the definition: a double sum over the tokens that count, as if the others were not there."""
    steps = [t for t, counts in enumerate(mask) if counts]
    deltas = []
    for k, t in enumerate(steps):
        following = values[steps[k + 1]] if k + 1 < len(steps) else 0.0
        deltas.append(rewards[t] + gamma * following - values[t])
    advantages, returns = [0.0] * len(rewards), [0.0] * len(rewards)
    for k, t in enumerate(steps):
        for j in range(k, len(steps)):
            advantages[t] += (gamma * gae_lambda) ** (j - k) * deltas[j]
        returns[t] = advantages[t] + values[t]
    return advantages, returns


def pair_nll(chosen: float, rejected: float, label: float = 1.0, margin: float = 0.0) -> float:
    d = chosen - rejected
    return -(label * math.log(sigmoid(d - margin)) + (1 - label) * math.log(sigmoid(margin - d)))


def ranking_nll(scores: Floats, ranks: Sequence[int]) -> float:
    """The mean over all pairs of one ranking; a tie is half of each order."""
    losses = []
    for i, j in combinations(range(len(scores)), 2):
        label = 0.5 if ranks[i] == ranks[j] else float(ranks[i] < ranks[j])
        losses.append(pair_nll(scores[i], scores[j], label))
    return sum(losses) / len(losses)


def ppo_policy(logprobs: Floats, old: Floats, advantages: Floats, mask: Sequence[bool], clip: float) -> float:
    """The sum over the tokens of one sequence, by cases: once the ratio has moved past the clip in the advantage's favour, it is fixed."""
    total = 0.0
    for lp, lo, a, counts in zip(logprobs, old, advantages, mask, strict=True):
        if not counts:
            continue
        ratio = math.exp(lp - lo)
        if a > 0 and ratio > 1 + clip:
            ratio = 1 + clip
        if a < 0 and ratio < 1 - clip:
            ratio = 1 - clip
        total -= ratio * a
    return total


def ppo_value(values: Floats, old: Floats, returns: Floats, mask: Sequence[bool], clip: float | None) -> float:
    total = 0.0
    for v, o, r, counts in zip(values, old, returns, mask, strict=True):
        if not counts:
            continue
        error = (v - r) ** 2
        if clip is not None:
            near = min(max(v, o - clip), o + clip)
            error = max(error, (near - r) ** 2)
        total += error / 2
    return total


def best_of_n(proxy: Floats, gold: Floats, n: int) -> float:
    """The mean over every subset of n samples of the gold score of its best by the proxy; equals by the proxy share."""
    found = []
    for subset in combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        best = [gold[i] for i in subset if proxy[i] == top]
        found.append(sum(best) / len(best))
    return sum(found) / len(found)


def calibration_error(probabilities: Floats, outcomes: Floats, num_bins: int) -> float:
    total = 0.0
    for b in range(num_bins):
        inside = [i for i, p in enumerate(probabilities) if b / num_bins <= p < (b + 1) / num_bins or (p == 1 and b == num_bins - 1)]
        total += abs(sum(outcomes[i] - probabilities[i] for i in inside))
    return total / len(probabilities)
