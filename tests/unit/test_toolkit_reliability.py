"""Reliability of single events: bins, errors and chance, against hand-made cases, peers and simulation."""

import numpy as np
import pytest
import torch
from netcal.metrics import ACE, ECE, MCE
from scipy.integrate import quad
from scipy.stats import binom
from scipy.stats import norm as normal
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score
from torchmetrics.functional.classification import binary_calibration_error
from workbench.errors import InputError
from workbench.toolkit import (
    area_under_risk_coverage,
    area_under_roc,
    binned_calibration_error,
    consistency_band,
    debiased_error,
    debiased_squared_error,
    expected_under_calibration,
    kolmogorov_smirnov_error,
    murphy_parts,
    reliability_bins,
)


def events(n=2000, seed=0, power=1.4):
    rng = np.random.default_rng(seed)
    score = rng.beta(2, 1, n)
    return score, (rng.random(n) < score**power).astype(float)


# --------------------------------------------------------------------------------------------------------------- bins


def test_bins_of_equal_width_are_open_below_and_closed_above_and_the_first_holds_zero():
    bins = reliability_bins([0.0, 0.25, 0.25001, 0.5, 1.0], [0, 1, 0, 1, 1], n_bins=4)
    assert bins.count.tolist() == [2, 2, 0, 1]
    assert bins.confidence[0] == pytest.approx(0.125)
    assert bins.accuracy.tolist()[:2] == [0.5, 0.5]
    assert np.isnan([bins.accuracy[2], bins.accuracy_lower[2], bins.confidence[2]]).all()
    assert bins.lower.tolist() == [0, 0.25, 0.5, 0.75]


def test_bins_of_equal_mass_are_those_of_array_split_after_a_stable_sort():
    score, outcome = events(103)
    score = np.round(score, 1)  # many ties
    order = np.argsort(score, kind="stable")
    bins = reliability_bins(score, outcome, n_bins=10, binning="mass")
    for index, rows in enumerate(np.array_split(order, 10)):
        assert bins.count[index] == len(rows)
        assert bins.confidence[index] == pytest.approx(score[rows].mean())
        assert bins.accuracy[index] == pytest.approx(outcome[rows].mean())
        assert (bins.lower[index], bins.upper[index]) == (score[rows].min(), score[rows].max())


def test_more_mass_bins_than_events_leave_bins_empty():
    bins = reliability_bins([0.2, 0.9], [0, 1], n_bins=5, binning="mass")
    assert bins.count.tolist() == [1, 1, 0, 0, 0]
    assert binned_calibration_error([0.2, 0.9], [0, 1], n_bins=5, binning="mass") == pytest.approx(0.15)


def test_bin_means_are_those_of_scikit_learn():
    score, outcome = events()
    bins = reliability_bins(score, outcome, n_bins=12)
    accuracy, confidence = calibration_curve(outcome, score, n_bins=12, strategy="uniform")
    filled = bins.count > 0
    assert bins.accuracy[filled] == pytest.approx(accuracy)
    assert bins.confidence[filled] == pytest.approx(confidence)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("norm", "theirs"), [(1, "l1"), (2, "l2"), ("max", "max")])
def test_errors_of_equal_width_are_those_of_torchmetrics(seed, norm, theirs):
    score, outcome = events(seed=seed)
    expected = binary_calibration_error(torch.tensor(score), torch.tensor(outcome).long(), n_bins=15, norm=theirs)
    assert binned_calibration_error(score, outcome, norm=norm) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(("norm", "theirs"), [(1, ECE), ("max", MCE), ("mean", ACE)])
def test_errors_of_equal_width_are_those_of_netcal(norm, theirs):
    """Netcal scores the positive class of binary events in the same way."""
    score, outcome = events()
    expected = theirs(bins=15).measure(score, outcome.astype(int))
    assert binned_calibration_error(score, outcome, norm=norm) == pytest.approx(expected, abs=1e-9)


def test_errors_by_hand():
    score, outcome = [0.1, 0.1, 0.6, 0.8], [0, 1, 1, 1]
    by_hand = {1: (2 * 0.4 + 2 * 0.3) / 4, 2: np.sqrt((2 * 0.16 + 2 * 0.09) / 4), "max": 0.4, "mean": 0.35,
               3: np.cbrt((2 * 0.064 + 2 * 0.027) / 4)}  # fmt: skip
    for norm, expected in by_hand.items():
        assert binned_calibration_error(score, outcome, n_bins=2, norm=norm) == pytest.approx(expected)


def test_the_ks_error_is_the_supremum_over_all_thresholds():
    score, outcome = events(500)
    below = [abs((score[score <= t] - outcome[score <= t]).sum()) / 500 for t in score]
    assert kolmogorov_smirnov_error(score, outcome) == pytest.approx(max(below))


def test_the_debiased_error_takes_off_the_mean_of_folded_normals():
    score, outcome = events(300, seed=3)
    total, folded = 0.0, []
    for rows in np.array_split(np.argsort(score, kind="stable"), 15):
        gap, rate = outcome[rows].mean() - score[rows].mean(), outcome[rows].mean()
        spread = np.sqrt(rate * (1 - rate) / len(rows))
        total += len(rows) / 300 * abs(gap)
        folded.append(
            quad(lambda x, g=gap, s=spread: abs(x) * normal.pdf(x, g, s), gap - 12 * spread, gap + 12 * spread,
                 points=[0.0])[0] if spread else abs(gap)
        )
    assert debiased_error(score, outcome, n_bins=15) == pytest.approx(2 * total - np.mean(folded), abs=1e-7)


def test_the_debiased_squared_error_is_unbiased_where_the_plain_one_is_not():
    """Constant score in one bin: the expected squared gap is known in closed form."""
    rng = np.random.default_rng(0)
    truth, n = (0.7 - 0.6) ** 2, 40
    draws = (rng.random((20_000, n)) < 0.6).astype(float)
    score = np.full(n, 0.7)
    debiased = np.array([debiased_squared_error(score, draw, n_bins=1) for draw in draws[:2000]])
    plain = (draws.mean(1) - 0.7) ** 2
    assert debiased.mean() == pytest.approx(truth, abs=4 * debiased.std() / np.sqrt(2000))
    assert plain.mean() == pytest.approx(truth + 0.6 * 0.4 / n, rel=0.02)
    assert plain.mean() > 1.4 * truth


# ----------------------------------------------------------------------------------------- decomposition and ranking


def test_murphys_parts_add_up_to_the_brier_score_when_scores_are_constant_in_bins():
    rng = np.random.default_rng(1)
    score = rng.choice([0.1, 0.4, 0.65, 0.9], 1000)
    outcome = (rng.random(1000) < score**2).astype(float)
    parts = murphy_parts(score, outcome, n_bins=10, binning="width")
    total = parts.reliability - parts.resolution + parts.uncertainty
    assert total == pytest.approx(brier_score_loss(outcome, score))


def test_the_area_under_risk_coverage_by_hand_and_independent_of_the_order_of_ties():
    assert area_under_risk_coverage([0.9, 0.8, 0.3], [1, 0, 1]) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    rng = np.random.default_rng(0)
    score, outcome = np.round(rng.random(60), 1), (rng.random(60) < 0.5).astype(float)
    value = area_under_risk_coverage(score, outcome)
    order = rng.permutation(60)
    assert area_under_risk_coverage(score[order], outcome[order]) == pytest.approx(value)
    shuffled = []
    for _ in range(3000):
        order = rng.permutation(60)
        ranked = 1 - outcome[order][np.argsort(-score[order], kind="stable")]
        shuffled.append((np.cumsum(ranked) / np.arange(1, 61)).mean())
    assert value == pytest.approx(np.mean(shuffled), abs=4 * np.std(shuffled) / np.sqrt(3000))


def test_the_area_under_roc_is_scikit_learns_with_ties_and_nan_without_contrast():
    score, outcome = events(400)
    score = np.round(score, 1)
    assert area_under_roc(score, outcome) == pytest.approx(roc_auc_score(outcome, score))
    assert np.isnan(area_under_roc([0.2, 0.4], [1, 1]))


# ------------------------------------------------------------------------------------------------------------- chance


def test_chance_covers_a_calibrated_classifier_and_not_a_sharpened_one():
    rng = np.random.default_rng(5)
    inside = 0
    for seed in range(60):
        score, outcome = events(300, seed=seed, power=1.0)
        band = expected_under_calibration(score, binned_calibration_error, rng=rng, draws=60)
        inside += band.lower <= binned_calibration_error(score, outcome) <= band.upper
    assert inside >= 50  # 57 expected of 60; the seeds are fixed
    score, outcome = events(3000, power=2.0)
    band = expected_under_calibration(score, binned_calibration_error, rng=rng, draws=100)
    assert binned_calibration_error(score, outcome) > 2 * band.upper
    assert band.lower <= band.mean <= band.upper


@pytest.mark.parametrize("n_bins", [3, 10])
def test_the_consistency_band_of_a_bin_is_that_of_its_binomial_distribution(n_bins):
    """Equal scores in a bin make its number of hits binomial; the band's ends are the quantiles of that."""
    score = np.repeat([0.25, 0.55, 0.95], [40, 200, 500])
    low, high = consistency_band(score, rng=np.random.default_rng(0), n_bins=n_bins, draws=4000)
    member = np.searchsorted(np.linspace(0, 1, n_bins + 1)[1:], score)
    for value, count in ((0.25, 40), (0.55, 200), (0.95, 500)):
        place = member[score == value][0]
        exact = binom.ppf([0.025, 0.975], count, value) / count
        assert (low[place], high[place]) == pytest.approx(tuple(exact), abs=1.01 / count)
    empty = np.bincount(member, minlength=n_bins) == 0
    assert (np.isnan(low) == empty).all()
    assert (np.isnan(high) == empty).all()


def test_the_consistency_band_holds_its_level():
    inside, total = 0, 0
    for seed in range(60):
        score, outcome = events(1000, seed=seed, power=1.0)
        low, high = consistency_band(score, rng=np.random.default_rng(seed), n_bins=10, binning="mass", draws=300)
        rate = reliability_bins(score, outcome, n_bins=10, binning="mass").accuracy
        inside, total = inside + int(((rate >= low) & (rate <= high)).sum()), total + 10
    assert 0.92 * total <= inside <= 0.985 * total


# -------------------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("score", "outcome", "message"),
    [([0.2], [1, 0], "equal"), ([], [], "non-zero"), ([1.2], [1], "0..1"), ([np.nan], [1], "0..1"),
     ([0.5, 0.5], [0, 2], "0 or 1")],
)
def test_bad_events_are_named(score, outcome, message):
    with pytest.raises(InputError, match=message):
        binned_calibration_error(score, outcome)


@pytest.mark.parametrize("argument", [{"n_bins": 0}, {"binning": "depth"}, {"norm": 0.5}, {"norm": "mass"}, {"norm": np.inf}])
def test_bad_arguments_are_named(argument):
    with pytest.raises(InputError, match=next(iter(argument))):
        binned_calibration_error([0.5], [1], **argument)
