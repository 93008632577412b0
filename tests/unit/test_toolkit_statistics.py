"""Intervals: equal to closed forms and to scipy's, and they cover as often as they say."""

import itertools

import numpy as np
import pytest
from scipy import stats
from workbench.errors import InputError
from workbench.toolkit import bootstrap_interval, mean_interval, wilson_interval


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_the_mean_interval_is_students(level):
    value = rng().normal(3, 2, 17)
    interval = mean_interval(value, level=level)
    low, high = stats.t.interval(level, 16, loc=value.mean(), scale=stats.sem(value))
    assert (interval.value, interval.lower, interval.upper) == pytest.approx((value.mean(), low, high))
    assert interval.bounds == (interval.lower, interval.upper)
    assert interval.level == level


def test_two_values_by_hand():
    """t(0.975, 1 degree) = 12.706 (tables); s / sqrt(2) of (1, 3) is 1."""
    interval = mean_interval([1.0, 3.0])
    assert interval.upper - 2 == pytest.approx(12.7062, abs=1e-4)
    assert np.isnan(mean_interval([5.0]).lower)


@pytest.mark.parametrize(("success", "count"), [(0, 10), (1, 10), (5, 10), (10, 10), (973, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilsons_interval_is_scipys_and_solves_its_defining_equation(success, count, level):
    """Its ends are the p with |share - p| = z sqrt(p (1 - p) / n)."""
    low, high = wilson_interval(success, count, level=level)
    expected = stats.binomtest(success, count).proportion_ci(level, method="wilson")
    assert (float(low), float(high)) == pytest.approx((expected.low, expected.high), abs=1e-12)
    z = stats.norm.ppf(0.5 + level / 2)
    for end in (float(low), float(high)):
        assert abs(success / count - end) == pytest.approx(z * np.sqrt(end * (1 - end) / count), abs=1e-7)


def test_wilson_takes_arrays_and_an_empty_count_has_no_interval():
    low, high = wilson_interval([3, 0], [4, 0])
    assert low[0] == pytest.approx(0.3006, abs=1e-4)  # Brown, Cai and DasGupta's formula by hand
    assert np.isnan([low[1], high[1]]).all()


def test_wilson_covers_as_often_as_it_says():
    """Exactly, by summing the binomial law over all outcomes: mean coverage over p is 95 % within half a point."""
    n, shares = 40, np.linspace(0.02, 0.98, 97)
    low, high = wilson_interval(np.arange(n + 1), np.full(n + 1, n))
    covered = [stats.binom.pmf(np.arange(n + 1), n, p)[(low <= p) & (p <= high)].sum() for p in shares]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.005)


def test_the_percentile_bootstrap_is_that_of_all_resamples():
    """Five values have 5^5 equally likely resamples: the ends must be their quantiles, to 4 standard errors of mass."""
    value = np.array([0.0, 1.0, 3.0, 7.0, 15.0])
    means = np.array([np.mean(draw) for draw in itertools.product(value, repeat=5)])
    interval = bootstrap_interval(value, np.mean, rng=rng(), resamples=5000, level=0.8)
    assert interval.value == value.mean()
    for end, mass in zip(interval.bounds, (0.1, 0.9), strict=True):
        tolerance = 4 * np.sqrt(0.1 * 0.9 / 5000)
        assert (means < end - 1e-9).mean() - tolerance < mass < (means <= end + 1e-9).mean() + tolerance


def test_the_basic_bootstrap_reflects_the_percentiles():
    value = rng(3).exponential(size=30)
    plain = bootstrap_interval(value, np.mean, rng=rng(1), resamples=500)
    basic = bootstrap_interval(value, np.mean, rng=rng(1), resamples=500, method="basic")
    assert basic.bounds == pytest.approx((2 * value.mean() - plain.upper, 2 * value.mean() - plain.lower))


def test_bca_is_scipys_and_a_seed_fixes_it():
    value = rng(3).exponential(size=30)
    ours = bootstrap_interval(value, np.var, rng=rng(1), resamples=300, method="bca")
    theirs = stats.bootstrap((value,), np.var, n_resamples=300, rng=rng(1), method="BCa").confidence_interval
    assert ours.bounds == pytest.approx((theirs.low, theirs.high))
    assert ours == bootstrap_interval(value, np.var, rng=rng(1), resamples=300, method="bca")
    assert ours != bootstrap_interval(value, np.var, rng=rng(2), resamples=300, method="bca")


def test_paired_samples_are_drawn_together():
    """Y = 2x: the ratio of means is 2 in every resample only if pairs stay pairs."""
    x = rng().random(20) + 0.5
    interval = bootstrap_interval((x, 2 * x), lambda a, b: b.mean() / a.mean(), rng=rng(1), resamples=200)
    assert interval.bounds == pytest.approx((2.0, 2.0))


def test_intervals_cover_the_truth_as_often_as_they_say():
    """400 samples of 40 exponential values, 90 %: binomial standard error 1.5 points, percentile bootstrap 2-3 low."""
    source, hits = rng(7), np.zeros(2)
    for _ in range(400):
        value = source.exponential(size=40)
        for which, interval in enumerate(
            (mean_interval(value, level=0.9), bootstrap_interval(value, np.mean, rng=source, resamples=150, level=0.9))
        ):
            hits[which] += interval.lower <= 1.0 <= interval.upper
    assert 0.84 <= hits.min() / 400 <= hits.max() / 400 <= 0.95


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: mean_interval([]), "value"),
        (lambda: mean_interval([1.0, np.nan]), "value"),
        (lambda: mean_interval([[1.0, 2.0]]), "value"),
        (lambda: mean_interval([1.0, 2.0], level=1.0), "level"),
        (lambda: wilson_interval(5, 4), "success"),
        (lambda: wilson_interval(-1, 4), "success"),
        (lambda: wilson_interval(1, 4, level=0.0), "level"),
        (lambda: bootstrap_interval([1.0], np.mean, rng=rng()), "sample"),
        (lambda: bootstrap_interval(([1.0, 2.0], [1.0]), np.mean, rng=rng()), "sample"),
        (lambda: bootstrap_interval([1.0, 2.0], np.mean, rng=rng(), resamples=1), "resamples"),
    ],
)
def test_bad_input_is_named(call, argument):
    with pytest.raises(InputError) as failure:
        call()
    assert failure.value.argument == argument
