"""Calibration errors without bins and tests for calibration: against sums over all pairs, peers and simulation."""

import itertools

import numpy as np
import pytest
from netcal.metrics import MMCE
from scipy import stats
from scipy.special import softmax
from workbench.errors import InputError
from workbench.toolkit import (
    binned_calibration_error,
    canonical_calibration_error,
    consistency_test,
    density_calibration_error,
    expected_calibration_error,
    kernel_calibration_error,
    kernel_calibration_test,
    maximum_mean_calibration_error,
    sweep_calibration_error,
)


def events(n=400, seed=0, power=1.5):
    rng = np.random.default_rng(seed)
    score = rng.beta(3, 1.5, n)
    return score, (rng.random(n) < score**power).astype(float)


def classified(n, seed, sharpness=1.0, classes=4):
    """Probabilities that are true at sharpness 1, in random order, and labels drawn from the true ones."""
    rng = np.random.default_rng(seed)
    logit = 1.5 * rng.standard_normal((n, classes))
    label = (rng.random((n, 1)) > softmax(logit, axis=1).cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return softmax(sharpness * logit, axis=1), label


@pytest.mark.parametrize("width", [0.05, 0.4, 2.0])
def test_the_kernel_error_of_events_is_the_sum_over_all_pairs(width):
    score, outcome = events()
    d = outcome - score
    pairs = np.exp(-np.abs(score[:, None] - score) / width) * np.outer(d, d)
    assert maximum_mean_calibration_error(score, outcome, width=width) == pytest.approx(np.sqrt(pairs.sum()) / 400)


def test_the_kernel_error_of_events_is_netcals():
    p, label = classified(500, 0, sharpness=2)
    confidence, hit = p.max(axis=1), p.argmax(axis=1) == label
    assert maximum_mean_calibration_error(confidence, hit) == pytest.approx(MMCE().measure(p, label))


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_the_density_error_is_the_integral_of_directly_summed_kernels(norm, seed):
    score, outcome = events(300, seed)
    width = 3 * np.std(score[outcome == 1]) * 600**-0.2
    low = score < 0.5
    points = np.concatenate([score, -score[low], 2 - score[~low]])
    weight = np.concatenate([outcome, outcome[low], outcome[~low]])
    grid = np.linspace(0, 1, 4001)
    kernels = np.clip(1 - ((grid[:, None] - points) / width) ** 2, 0, None) ** 3
    every, found = kernels.sum(1), kernels @ weight
    gap = np.abs(grid - found / np.maximum(every, 1e-300)) ** norm
    expected = (gap * every).sum() / every.sum()
    assert density_calibration_error(score, outcome, norm=norm) == pytest.approx(expected, rel=2e-3)


def test_the_density_error_approaches_the_true_error():
    score, outcome = events(200_000, power=1.5)
    truth = np.abs(score - score**1.5).mean()
    assert density_calibration_error(score, outcome) == pytest.approx(truth, rel=0.05)
    assert density_calibration_error([0.7] * 10, [1] * 4 + [0] * 6) == pytest.approx(0.3)


def test_the_sweep_uses_the_most_bins_before_rates_first_fall():
    score, outcome = events(300, power=1.0)
    order = np.argsort(score)
    bins = 1
    for number in range(2, 301):
        rates = [outcome[rows].mean() for rows in np.array_split(order, number)]
        if any(b < a for a, b in itertools.pairwise(rates)):
            break
        bins = number
    assert bins > 1
    assert sweep_calibration_error(score, outcome) == pytest.approx(
        binned_calibration_error(score, outcome, n_bins=bins, binning="mass")
    )
    assert sweep_calibration_error(score, outcome, norm=2) == pytest.approx(
        binned_calibration_error(score, outcome, n_bins=bins, binning="mass", norm=2)
    )
    assert sweep_calibration_error([0.1, 0.9], [0, 1]) == pytest.approx(0.1)  # every number of bins rises
    assert sweep_calibration_error([0.8, 0.5, 0.9], [1, 1, 1]) == pytest.approx(0.8 / 3)
    confidence = np.random.default_rng(0).uniform(
        0.5, 1, 100_000
    )  # all right: trying every number of bins takes a minute
    assert sweep_calibration_error(confidence, np.ones(100_000)) == pytest.approx(1 - confidence.mean())


def test_the_kernel_error_of_distributions_is_the_mean_over_pairs(monkeypatch):
    p, label = classified(60, 0, sharpness=2)
    onehot = np.eye(4)[label]
    terms = [
        np.exp(-np.linalg.norm(p[i] - p[j])) * (onehot[i] - p[i]) @ (onehot[j] - p[j])
        for i in range(60)
        for j in range(i)
    ]
    assert kernel_calibration_error(p, label) == pytest.approx(np.mean(terms))
    monkeypatch.setattr("workbench.toolkit.kernels._BLOCK_PAIRS", 200)
    assert kernel_calibration_error(p, label) == pytest.approx(np.mean(terms))


def test_the_kernel_error_of_distributions_is_unbiased():
    values = np.array([kernel_calibration_error(*classified(100, seed)) for seed in range(200)])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(200)
    assert (values < 0).any()


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("bandwidth", [0.05, 1.0])
def test_the_canonical_error_compares_with_neighbours_weighed_by_dirichlet_densities(norm, bandwidth, monkeypatch):
    """Scipy's Dirichlet density is the oracle; zeros stand in the probabilities as float32 softmax gives them."""
    p, label = classified(60, 0, sharpness=2)
    p[5] = [1, 0, 0, 0]
    onehot, errors = np.eye(4)[label], []
    for j in range(60):
        inside = np.maximum(p[j], 1e-25)
        others = [i for i in range(60) if i != j]
        weight = np.array([stats.dirichlet.logpdf(inside / inside.sum(), p[i] / bandwidth + 1) for i in others])
        weight = np.exp(weight - weight.max())
        errors.append((np.abs(weight @ onehot[others] / weight.sum() - p[j]) ** norm).sum())
    found = canonical_calibration_error(p, label, norm=norm, bandwidth=bandwidth)
    assert found == pytest.approx(np.mean(errors), rel=1e-9)
    monkeypatch.setattr("workbench.toolkit.kernels._BLOCK_PAIRS", 200)
    assert canonical_calibration_error(p, label, norm=norm, bandwidth=bandwidth) == pytest.approx(found)


def test_the_canonical_error_approaches_the_true_error_as_its_kernel_narrows():
    """Of two classes the true error is known: |p - P(class | p)|, once for each of them."""
    p, label = classified(4000, 0, sharpness=2, classes=2)
    truth = softmax(np.log(p) / 2, axis=1)
    expected = np.abs(p - truth).sum(axis=1).mean()
    assert canonical_calibration_error(p, label, norm=1, bandwidth=0.005) == pytest.approx(expected, rel=0.1)
    calibrated = canonical_calibration_error(*classified(4000, 0, classes=2), norm=1, bandwidth=0.005)
    assert calibrated < 0.25 * expected


def test_the_kernel_test_holds_its_level_and_finds_sharpened_probabilities_in_many_samples():
    level = np.mean([kernel_calibration_test(*classified(400, seed)).p_value < 0.05 for seed in range(400)])
    assert 0.02 < level < 0.09
    for seed in range(3):
        assert kernel_calibration_test(*classified(40_000, seed, sharpness=3)).p_value < 0.01


def test_the_consistency_test_has_uniform_p_values_under_calibration_and_small_ones_otherwise():
    rng = np.random.default_rng(0)
    p_values = [
        consistency_test(*classified(150, seed), expected_calibration_error, rng=rng, draws=39).p_value
        for seed in range(120)
    ]
    # jitter turns the discrete p-values into uniform ones
    jittered = np.array(p_values) - rng.random(120) / 40
    assert stats.kstest(jittered, "uniform").pvalue > 0.01
    tested = consistency_test(*classified(600, 0, sharpness=2), expected_calibration_error, rng=rng, draws=99)
    assert tested.p_value == 0.01
    assert tested.statistic == pytest.approx(expected_calibration_error(*classified(600, 0, sharpness=2)))


def test_the_consistency_test_with_the_kernel_error_needs_few_samples():
    rng = np.random.default_rng(0)
    sharp, true = (
        consistency_test(*classified(400, 0, sharpness=s), kernel_calibration_error, rng=rng, draws=50).p_value
        for s in (2, 1)
    )
    assert sharp < 0.05 < true


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: maximum_mean_calibration_error([0.5], [1], width=0), "width"),
        (lambda: density_calibration_error([0.5], [1], norm=3), "norm"),
        (lambda: kernel_calibration_error([[0.5, 0.5]], [0]), "2 samples"),
        (lambda: canonical_calibration_error([[0.5, 0.5]], [0]), "2 samples"),
        (lambda: canonical_calibration_error([[0.5, 0.5]] * 3, [0, 1, 1], norm=3), "norm"),
        (lambda: canonical_calibration_error([[0.5, 0.5]] * 3, [0, 1, 1], bandwidth=0), "bandwidth"),
        (lambda: kernel_calibration_test([[0.5, 0.5]] * 3, [0, 1, 1]), "4 samples"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
