"""Means with 95 % intervals over things that come in clusters: several responses or pairs share a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heed.core.statistics import Interval, bootstrap_interval, wilson_interval


def mean_interval(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Interval:
    """Mean of `values` with a bootstrap interval that draws whole clusters, so that answers to one prompt never pass for independent."""
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    groups = torch.tensor([numbers[cluster] for cluster in clusters])
    return bootstrap_interval(torch.tensor(values, dtype=torch.float64), groups=groups, generator=torch.Generator().manual_seed(seed))


def share_interval(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Interval:
    """`mean_interval` for shares in `[0, 1]`.

    Where all values are equal the bootstrap collapses to a point and would claim certainty; Wilson's interval over the
    clusters stands in for it.
    """
    if min(values) < max(values):
        return mean_interval(values, clusters, seed)
    num_clusters = len(set(clusters))
    return wilson_interval(values[0] * num_clusters, num_clusters)


def as_dict(interval: Interval) -> dict[str, object]:
    """The interval as `summary.json` writes it."""
    return {"mean": interval.mean, "ci95": [interval.low, interval.high]}
