from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heed.core import statistics
from heed.core.statistics import bootstrap_interval, calibration, explained_variance, wilson_interval
from tests import naive
from tests.core.strategies import Batch, batches, close, seeds


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_bootstrap_agrees_with_the_normal_interval_of_many_values() -> None:
    values = torch.randn(400, generator=generator(), dtype=torch.float64)
    found = bootstrap_interval(values, num_resamples=4000, confidence=0.9, generator=generator(1))
    error = values.std(unbiased=False).item() / 20
    assert found.mean == pytest.approx(values.mean().item())
    assert found.high - found.mean == pytest.approx(1.645 * error, rel=0.1)
    assert found.mean - found.low == pytest.approx(1.645 * error, rel=0.1)


def test_the_bootstrap_resamples_whole_clusters() -> None:
    """Each value four times over: as 400 values the interval is half as wide as it should be, as 100 clusters it is right."""
    values = torch.randn(100, generator=generator(), dtype=torch.float64)
    right = bootstrap_interval(values, generator=generator(1))
    clustered = bootstrap_interval(values.repeat(4), groups=torch.arange(100).repeat(4) * 7 - 3, generator=generator(1))
    naive_interval = bootstrap_interval(values.repeat(4), generator=generator(1))
    assert clustered == pytest.approx(right)
    assert naive_interval.high - naive_interval.low == pytest.approx((right.high - right.low) / 2, rel=0.15)


def test_clusters_of_unequal_size_weigh_by_their_values() -> None:
    values, groups = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([5, 5, 5, 2])
    found = bootstrap_interval(values, groups=groups, generator=generator())
    assert found == (0.25, 0.0, 1.0)
    means = {0.0, 0.25, 1.0}
    inner = bootstrap_interval(values, groups=groups, confidence=0.2, generator=generator())
    assert {inner.low, inner.high} <= means


def test_the_bootstrap_is_reproducible_and_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(30, generator=generator())
    once = bootstrap_interval(values, generator=generator(4))
    assert bootstrap_interval(values, generator=generator(4)) == once
    assert bootstrap_interval(values, generator=generator(5)) != once
    monkeypatch.setattr(statistics, "RESAMPLED_ELEMENTS", 100)
    assert bootstrap_interval(values, generator=generator(4)) == once


def test_a_bootstrap_of_equal_values_is_a_point_and_of_none_an_error() -> None:
    assert bootstrap_interval(torch.ones(5), generator=generator()) == (1, 1, 1)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval(torch.ones(0), generator=generator())


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.8, 0.95]))
def test_wilson_bounds_are_where_the_score_test_is_just_significant(n: int, share: float, confidence: float) -> None:
    successes = round(share * n)
    z = {0.8: 1.2815515655446004, 0.95: 1.959963984540054}[confidence]
    mean, low, high = wilson_interval(successes, n, confidence)
    assert mean == successes / n
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1
    for bound in (low, high):
        if 1e-9 < bound < 1 - 1e-9:
            assert abs(mean - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n))


def test_a_proportion_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no trials"):
        wilson_interval(0, 0)


@given(batches())
def test_explained_variance_of_perfect_constant_and_opposite_critics(batch: Batch) -> None:
    returns, noise = batch.draw(), batch.draw()
    elsewhere = torch.where(batch.mask, 0.0, noise)
    counted = returns[batch.mask]
    if len(counted) < 2:
        assert explained_variance(returns + 3, returns, batch.mask).item() == 0
        return
    close(explained_variance(returns + 3 + elsewhere, returns, batch.mask), 1)
    close(explained_variance(elsewhere, returns, batch.mask), 0)
    close(explained_variance(-returns, returns, batch.mask), -3)


@given(st.lists(st.tuples(st.integers(0, 64), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30), st.sampled_from([1, 4, 8]))
def test_calibration_error_is_that_of_the_definition(pairs: list[tuple[int, float]], num_bins: int) -> None:
    probabilities, outcomes = [p / 64 for p, _ in pairs], [o for _, o in pairs]
    found = calibration(torch.tensor(probabilities), torch.tensor(outcomes), num_bins)
    assert found.ece == pytest.approx(naive.calibration_error(probabilities, outcomes, num_bins), abs=1e-9)
    assert found.counts.sum().item() == len(pairs)
    assert (found.predicted @ found.counts.double()).item() == pytest.approx(sum(probabilities))
    assert (found.observed @ found.counts.double()).item() == pytest.approx(sum(outcomes))


def test_calibration_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        calibration(torch.ones(0), torch.ones(0))


def test_best_of_n_kl() -> None:
    assert statistics.best_of_n_kl(1) == 0
    assert statistics.best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


@given(seeds, st.integers(1, 7), st.booleans())
def test_the_best_of_n_curve_is_the_mean_over_all_subsets(seed: int, num_samples: int, with_ties: bool) -> None:
    proxy, gold = torch.randn(2, 3, num_samples, generator=generator(seed), dtype=torch.float64)
    proxy = proxy.round() if with_ties else proxy
    rows = list(zip(proxy.tolist(), gold.tolist(), strict=True))
    expected = [sum(naive.best_of_n(p, g, n) for p, g in rows) / 3 for n in range(1, num_samples + 1)]
    close(statistics.best_of_n_curve(proxy, gold), expected)


def test_the_best_of_n_curve_stands_many_samples() -> None:
    proxy = torch.randn(2, 300, generator=generator())
    curve = statistics.best_of_n_curve(proxy, proxy)
    assert curve.isfinite().all()
    assert curve[0].item() == pytest.approx(proxy.mean().item(), abs=1e-6)
    assert curve[-1].item() == pytest.approx(proxy.max(1).values.mean().item(), abs=1e-6)
    assert (curve.diff() >= -1e-9).all()
