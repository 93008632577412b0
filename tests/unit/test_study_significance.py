"""Statistics of studies against scipy, scikit-learn and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from workbench.study.significance import (
    auroc,
    calibration_error,
    disagreement,
    draws,
    holm,
    judge_difference,
    mean,
    paired_bootstrap,
    pareto_front,
    repetitions_interval,
)
from workbench.toolkit import binned_calibration_error


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_the_interval_is_that_of_scipy(rng: np.random.Generator):
    first = rng.exponential(size=400)
    second = 0.8 * first + 0.3 * rng.normal(size=400)
    ours = paired_bootstrap(mean(first), mean(second), 400, seed=1, resamples=20_000)
    theirs = stats.bootstrap(
        (first, second), lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True, vectorized=True,
        n_resamples=20_000, method="percentile", rng=np.random.default_rng(2),
    )  # fmt: skip
    assert ours.value == pytest.approx(first.mean() - second.mean())
    error = theirs.standard_error
    assert ours.lower == pytest.approx(theirs.confidence_interval.low, abs=0.1 * error)
    assert ours.upper == pytest.approx(theirs.confidence_interval.high, abs=0.1 * error)


def test_the_p_value_is_near_that_of_a_paired_t_test(rng: np.random.Generator):
    first, second = rng.normal(size=500), rng.normal(size=500)
    for shift in (0.0, 0.08, 0.15):
        ours = paired_bootstrap(mean(first + shift), mean(second), 500, resamples=20_000).p_value
        assert ours == pytest.approx(stats.ttest_rel(first + shift, second).pvalue, abs=0.02)


def test_no_difference_has_p_one_and_is_found_seldom(rng: np.random.Generator):
    same = rng.random(50)
    assert paired_bootstrap(mean(same), mean(same), 50, resamples=200).p_value == 1.0
    found = 0
    for trial in range(300):
        pair = rng.normal(size=(2, 60))
        found += paired_bootstrap(mean(pair[0]), mean(pair[1]), 60, seed=trial, resamples=400).p_value <= 0.05
    assert (
        3 <= found <= 33
    )  # 15 expected; beyond 4.7 standard deviations above, percentile intervals being slightly short


def test_statistics_are_those_of_repeated_samples(rng: np.random.Generator):
    confidence, correct = rng.random(80), (rng.random(80) < 0.6).astype(float)
    score, positive = np.round(rng.random(80), 1), rng.random(80) < 0.4
    for _ in range(5):
        index = rng.integers(0, 80, 80)
        counts = np.bincount(index, minlength=80)[None].astype(float)
        assert mean(correct)(counts)[0] == pytest.approx(correct[index].mean())
        expected = binned_calibration_error(confidence[index], correct[index], n_bins=15)
        assert calibration_error(confidence, correct, n_bins=15)(counts)[0] == pytest.approx(expected)
        assert auroc(score, positive)(counts)[0] == pytest.approx(roc_auc_score(positive[index], score[index]))


def test_strata_keep_their_size():
    strata = np.array([0] * 3 + [1] * 7)
    seen = []
    paired_bootstrap(lambda c: seen.append(c) or c[:, 0], lambda c: 0 * c[:, 0], strata, resamples=50)
    counts = seen[-1]
    assert (counts[:, :3].sum(axis=1) == 3).all()
    assert (counts[:, 3:].sum(axis=1) == 7).all()


def test_holm_is_the_closed_test_of_bonferroni(rng: np.random.Generator):
    for size in (1, 2, 5):
        p = rng.random(size) ** 3
        subsets = [s for n in range(1, size + 1) for s in itertools.combinations(range(size), n)]
        local = {s: min(1.0, len(s) * min(p[i] for i in s)) for s in subsets}
        expected = [max(value for s, value in local.items() if i in s) for i in range(size)]
        assert holm(p) == pytest.approx(expected)
    assert holm([]) == []


def test_the_front_is_that_of_brute_force(rng: np.random.Generator):
    first, second = rng.integers(0, 6, 40).astype(float), rng.integers(0, 6, 40).astype(float)
    first[3] = np.nan
    for higher in itertools.product((True, False), repeat=2):
        a, b = (values if up else -values for values, up in zip((first, second), higher, strict=True))

        def beaten(i: int, a: np.ndarray = a, b: np.ndarray = b) -> bool:
            return any(a[j] >= a[i] and b[j] >= b[i] and (a[j] > a[i] or b[j] > b[i]) for j in range(40))

        expected = [np.isfinite(a[i]) and not beaten(i) for i in range(40)]
        assert pareto_front(first, second, higher=higher).tolist() == expected


def test_disagreement_has_its_closed_form(rng: np.random.Generator):
    sure = 200 * np.eye(3)
    assert disagreement([sure[[0]], sure[[1]], sure[[2]]])[0] == pytest.approx(np.log(3))
    same = rng.normal(size=(4, 3))
    assert disagreement([same, same + 5]) == pytest.approx(0, abs=1e-12)
    p, q = np.array([[0.7, 0.3]]), np.array([[0.2, 0.8]])
    middle = (p + q) / 2
    expected = (stats.entropy(p[0], middle[0]) + stats.entropy(q[0], middle[0])) / 2
    assert disagreement([np.log(p), np.log(q)])[0] == pytest.approx(expected)


def test_a_p_value_below_what_resamples_can_tell_is_that_of_a_normal_variable(rng: np.random.Generator):
    first, second = rng.normal(0.45, 1, 500), rng.normal(size=500)
    ours = paired_bootstrap(mean(first), mean(second), 500, resamples=2000).p_value
    theirs = stats.ttest_rel(first, second).pvalue
    assert theirs < 2 / 2001
    assert np.log10(ours) == pytest.approx(np.log10(theirs), abs=1)


def test_variances_of_samples_and_of_seeds_add_up(rng: np.random.Generator):
    drawn, between = 0.3 + 0.05 * rng.normal(size=100_000), [0.2, 0.3, 0.4]
    found = judge_difference(0.3, drawn, between)
    samples, seeds = 0.05**2, 0.1**2 / 3
    freedom = (samples + seeds) ** 2 / (seeds**2 / 2)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(samples + seeds)
    assert (found.lower, found.upper) == pytest.approx((0.3 - half, 0.3 + half), rel=0.01)
    assert found.p_value == pytest.approx(2 * stats.t.sf(0.3 / np.sqrt(samples + seeds), freedom), rel=0.03)
    # Without variance between seeds only the samples count, without that of samples it is the paired t test over seeds.
    assert judge_difference(0.3, drawn, [0.3, 0.3]).upper == pytest.approx(0.3 + 1.96 * 0.05, rel=0.01)
    alone = judge_difference(0.3, np.full(100, 0.3), between)
    assert alone.p_value == pytest.approx(stats.ttest_1samp(between, 0).pvalue)


def test_intervals_over_samples_and_seeds_cover_the_difference(rng: np.random.Generator):
    """Two-way chance: every sample has an effect of its own, every seed too; neither alone would cover it."""
    covered, trials, samples, seeds = 0, 300, 60, 3
    for trial in range(trials):
        effect = rng.normal(0, 1, samples)[None] + rng.normal(0, 0.15, seeds)[:, None]
        effect = effect + rng.normal(0, 0.3, (seeds, samples))
        drawn = np.concatenate([counts @ effect.mean(axis=0) / samples
                                for counts in draws(np.zeros(samples, dtype=np.int64), 300, trial)])  # fmt: skip
        found = judge_difference(float(effect.mean()), drawn, effect.mean(axis=1))
        covered += found.lower <= 0 <= found.upper
    assert 0.90 * trials <= covered <= 0.99 * trials


def crossed(first: int, second: int) -> list[dict[str, int]]:
    return [{"quantiser": one, "split": other} for one in range(first) for other in range(second)]


def test_one_repeated_step_has_the_interval_of_student(rng: np.random.Generator):
    values = rng.normal(size=5).tolist()
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    for seeds in ([], [{"made": seed} for seed in range(5)], [{"made": seed, "again": seed + 7} for seed in range(5)]):
        assert repetitions_interval(values, seeds) == pytest.approx(expected)
    assert repetitions_interval([0.5, 0.5]) == (0.5, 0.5)


def test_several_repeated_steps_count_by_their_means(rng: np.random.Generator):
    values = rng.normal(size=(3, 4))
    rows, columns = values.mean(axis=1).var(ddof=1) / 3, values.mean(axis=0).var(ddof=1) / 4
    freedom = (rows + columns) ** 2 / (rows**2 / 2 + columns**2 / 3)
    lower, upper = repetitions_interval(values.ravel().tolist(), crossed(3, 4))
    assert upper - lower == pytest.approx(2 * stats.t.ppf(0.975, freedom) * np.sqrt(rows + columns))
    found = judge_difference(0.4, np.full(10, 0.4), values.ravel().tolist(), crossed(3, 4))
    assert found.p_value == pytest.approx(2 * stats.t.sf(0.4 / np.sqrt(rows + columns), freedom))


def test_three_models_with_three_splits_each_are_not_nine_models(rng: np.random.Generator):
    """Every quantiser's seed has an effect, every split a smaller one: nine runs as nine repetitions cover far too seldom."""
    trials, kept, naive = 1500, 0, 0
    for _ in range(trials):
        values = rng.normal(0, 1, (3, 1)) + rng.normal(0, 0.5, (1, 3)) + rng.normal(0, 0.2, (3, 3))
        lower, upper = repetitions_interval(values.ravel().tolist(), crossed(3, 3))
        kept += lower <= 0 <= upper
        lower, upper = repetitions_interval(values.ravel().tolist())
        naive += lower <= 0 <= upper
    assert naive < 0.85 * trials
    assert 0.93 * trials < kept < 0.99 * trials


def test_means_per_seed_that_happen_to_be_equal_are_no_certainty():
    """Each quantiser and each split has the mean 2, the runs differ by 2: that leaves the runs to go by, not p = 0."""
    values = [1.0, 3.0, 3.0, 1.0]
    expected = stats.t.interval(0.95, 3, 2.0, stats.sem(values))
    assert repetitions_interval(values, crossed(2, 2)) == pytest.approx(expected)
    found = judge_difference(2.0, np.full(10, 2.0), values, crossed(2, 2))
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
