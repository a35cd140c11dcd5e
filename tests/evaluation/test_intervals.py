from __future__ import annotations

import random
import statistics

import pytest

from heed.core.statistics import wilson_interval
from heed.evaluation.intervals import mean_interval, share_interval


def test_interval_matches_a_cluster_bootstrap_written_with_lists() -> None:
    draw = random.Random(0)
    clusters = {f"p{i}": [draw.gauss(i % 5, 1.0) for _ in range(1 + i % 3)] for i in range(40)}
    values = [v for vs in clusters.values() for v in vs]
    names = [name for name, vs in clusters.items() for _ in vs]
    means = []
    for _ in range(4000):
        chosen = draw.choices(list(clusters.values()), k=len(clusters))
        means.append(statistics.fmean([v for vs in chosen for v in vs]))
    means.sort()
    interval = mean_interval(values, names)
    assert interval.mean == pytest.approx(statistics.fmean(values))
    assert interval.low == pytest.approx(means[100], abs=0.08)
    assert interval.high == pytest.approx(means[3900], abs=0.08)


def test_answers_to_one_prompt_do_not_pass_for_independent() -> None:
    values = [float(i % 2) for i in range(20) for _ in range(8)]
    clustered = share_interval(values, [f"p{i}" for i in range(20) for _ in range(8)])
    naive = share_interval(values, [str(i) for i in range(160)])
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)


def test_a_rate_of_zero_is_not_certain() -> None:
    interval = share_interval([0.0] * 60, [f"p{i // 2}" for i in range(60)])
    assert interval.mean == interval.low == 0
    assert interval.high == pytest.approx(0.1135, abs=1e-3)  # Wilson's upper bound for 0 of 30


def test_prompts_with_one_share_among_them_are_not_certain_either() -> None:
    for values, clusters, of_wilson in (
        ([1.0, 0.0, 1.0, 0.0], ["a", "a", "b", "b"], wilson_interval(1, 2)),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 0.0], ["a"] * 6, wilson_interval(5 / 6, 1)),
        ([0.5, 0.5], ["a", "b"], wilson_interval(1, 2)),
    ):
        assert share_interval(values, clusters) == pytest.approx(of_wilson)


def test_a_mean_over_one_prompt_is_as_sure_as_its_values() -> None:
    interval = mean_interval([0.1, 3.0], ["a", "a"])
    assert (interval.low, interval.mean, interval.high) == pytest.approx((0.1, 1.55, 3.0))


def test_the_order_of_names_changes_nothing() -> None:
    values = [1.0, 5.0, 2.0, 4.0]
    assert mean_interval(values, ["a", "b", "a", "c"]) == mean_interval(values, ["z", "x", "z", "y"])
