"""How sure, how well calibrated, how far from where it began: numbers about numbers."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from heed.core.masking import masked_mean

RESAMPLED_ELEMENTS = 2**22
"""How many resampled clusters exist at a time: 32 MB of indices."""


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Tensor,
    *,
    groups: Tensor | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    generator: torch.Generator,
) -> Interval:
    """The mean with its percentile bootstrap interval, resampling whole clusters where values of one group depend on each other.

    Quantiles `(1 -+ confidence) / 2` of the mean of `num_resamples` draws of clusters with replacement; values `[N]`, groups `[N]`
    (any integer names of clusters; default: each value is its own). Raises ValueError where there are no values. Efron & Tibshirani
    1993, "An introduction to the bootstrap", section 13.3.
    """
    if len(values) == 0:
        raise ValueError("there are no values to resample")
    values = values.to(generator.device, torch.float64)
    cluster = torch.arange(len(values)) if groups is None else groups.unique(return_inverse=True)[1]
    counts = cluster.bincount().to(values)
    sums = torch.zeros_like(counts).index_add_(0, cluster.to(values.device), values)
    means = []
    step = max(1, RESAMPLED_ELEMENTS // len(sums))
    for start in range(0, num_resamples, step):
        size = (min(step, num_resamples - start), len(sums))
        drawn = torch.randint(len(sums), size, generator=generator, device=generator.device)
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    tail = (1 - confidence) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail]).to(values)).tolist()
    return Interval(values.mean().item(), low, high)


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """A proportion with its score interval, which stays within 0 to 1 and is sound for few trials.

    `(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`; `successes` may count ties as halves. Raises ValueError
    where n is 0. Wilson 1927.
    """
    if n < 1:
        raise ValueError("a proportion of no trials is unknown")
    p, z2 = successes / n, NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = p + z2 / (2 * n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    return Interval(p, max(0.0, (centre - half) / (1 + z2 / n)), min(1.0, (centre + half) / (1 + z2 / n)))


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """How much of the returns the critic foresees: 1 is all, 0 no more than their mean would, below 0 worse.

    `1 - var(returns - values) / var(returns)` over the counted entries, 0 where the returns do not vary; everything `[B, T]` -> scalar.
    """

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)).square(), mask)

    total = variance(returns)
    return torch.where(total > 0, 1 - variance(returns - values) / total, 0)


class Calibration(NamedTuple):
    """Predicted against observed frequency in equal bins of the prediction."""

    counts: Tensor
    """Predictions in each bin, `[num_bins]`."""
    predicted: Tensor
    """Mean predicted probability in each bin, 0 where it is empty."""
    observed: Tensor
    """Mean outcome in each bin, 0 where it is empty."""
    ece: float
    """Expected calibration error: the mean of |predicted - observed|, each bin weighed by its count."""


def calibration(probabilities: Tensor, outcomes: Tensor, num_bins: int = 10) -> Calibration:
    """Whether events given probability p happen a share p of the time.

    `ECE = sum_b |B_b| / N |mean outcome in b - mean probability in b|` over `num_bins` equal bins of [0, 1]; probabilities and outcomes
    (0 or 1, a tie 0.5) `[N]`. Raises ValueError where there are no predictions. Naeini et al. 2015; Guo et al. 2017, equation 3.
    """
    if len(probabilities) == 0:
        raise ValueError("there are no predictions to calibrate")
    bins = (probabilities * num_bins).long().clamp(max=num_bins - 1)
    probabilities, outcomes = probabilities.double(), outcomes.double()
    counts, predicted, observed = (
        torch.zeros(num_bins, dtype=torch.float64, device=bins.device).index_add_(0, bins, x)
        for x in (torch.ones_like(probabilities), probabilities, outcomes)
    )
    ece = ((predicted - observed).abs().sum() / len(bins)).item()
    filled = counts.clamp(min=1)
    return Calibration(counts.long(), predicted / filled, observed / filled, ece)


def best_of_n_kl(n: int) -> float:
    """The KL in nats from a policy to the best of n of its samples, `ln n - (n - 1) / n` (an upper bound where samples repeat).

    Stiennon et al. 2020, "Learning to summarize from human feedback", appendix G.3; Beirami et al. 2024 on the bound.
    """
    return math.log(n) - (n - 1) / n


def best_of_n_curve(proxy: Tensor, gold: Tensor) -> Tensor:
    """The expected gold score of the best of n samples by the proxy, for every n up to N, unbiased, from N samples of each prompt.

    `sum_i C(i - 1, n - 1) / C(N, n) gold_(i)` with the samples sorted by rising proxy, mean over prompts; samples that the proxy cannot
    tell apart share their mean gold. proxy and gold `[prompts, N]` -> `[N]`, entry n - 1 for n. Nakano et al. 2021 (WebGPT), appendix I.
    """
    num_samples = proxy.shape[1]
    tied = (proxy[:, :, None] == proxy[:, None, :]).double()
    gold = (tied @ gold.double()[:, :, None]).squeeze(2) / tied.sum(2)
    by_rank = gold.gather(1, proxy.argsort(1)).mean(0)
    i = torch.arange(1, num_samples + 1, dtype=torch.float64, device=proxy.device)
    n = i[:, None]
    weights = (_log_choose(i - 1, n - 1) - _log_choose(torch.full_like(i, num_samples), n)).exp()
    return torch.where(i >= n, weights, 0) @ by_rank


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
