"""Means with 95 % intervals over things that come in clusters: several responses or pairs share a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch

from heed.core.statistics import Interval, bootstrap_interval, wilson_interval


def mean_interval(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Interval:
    """Mean of `values` with a bootstrap interval that draws whole clusters, so that answers to one prompt never pass for independent.

    Of one cluster the interval draws its values: it speaks of that prompt alone.
    """
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    groups = torch.tensor([numbers[cluster] for cluster in clusters]) if len(numbers) > 1 else None
    return bootstrap_interval(torch.tensor(values, dtype=torch.float64), groups=groups, generator=torch.Generator().manual_seed(seed))


def share_interval(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Interval:
    """`mean_interval` for shares in `[0, 1]`.

    Where all clusters have one share, or there is but one, the bootstrap collapses to a point and would claim certainty; Wilson's
    interval over the clusters stands in for it.
    """
    of_each: dict[str, list[float]] = {}
    for cluster, value in zip(clusters, values, strict=True):
        of_each.setdefault(cluster, []).append(value)
    shares = [fmean(each) for each in of_each.values()]
    if min(shares) < max(shares):
        return mean_interval(values, clusters, seed)
    return wilson_interval(shares[0] * len(shares), len(shares))


def as_dict(interval: Interval) -> dict[str, object]:
    """The interval as `summary.json` writes it."""
    return {"mean": interval.mean, "ci95": [interval.low, interval.high]}
