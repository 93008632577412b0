"""Metrics on resampled rows and on labels drawn by chance, what they keep in memory, and intervals of them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax
from workbench.toolkit import calibration_metrics, expected_calibration_error

from unit.calibration_cases import overconfident
from workbench_calibration.resampling import (
    RESAMPLED,
    ResampleCounts,
    ResampledScores,
    metric_interval,
)


def resampled(p, label, n_bins=15, *, counts=None, draws=2, blocks=1, seed=0):
    counts = counts or ResampleCounts(len(p), 1, np.random.default_rng(0))
    scores = ResampledScores(*p.shape, n_bins, counts, draws, np.random.default_rng(seed))
    for rows in np.array_split(np.arange(len(p)), blocks):
        scores.add(p[rows], label[rows])
    return scores


def test_counts_of_a_resample_are_those_of_drawing_with_replacement_in_any_part_of_the_table():
    """Tiles and groups are only how the table is made: its parts agree, and its moments are the multinomial ones."""
    samples, resamples = 2500, 400
    counts = ResampleCounts(samples, resamples, np.random.default_rng(0))
    table = np.concatenate([part for _, part in counts.groups()])
    assert table.shape == (resamples, samples)
    assert (table.sum(axis=1) == samples).all()
    for rows in (slice(0, 2500), slice(1000, 1100), slice(2047, 2500), slice(5, 6)):
        assert np.array_equal(counts.of_samples(rows), table[:, rows])
    assert table.mean(axis=0) == pytest.approx(1, abs=5 / np.sqrt(resamples))
    assert table.var() == pytest.approx(1 - 1 / samples, rel=0.01)
    shares = np.bincount(table.ravel(), minlength=4)[:4] / table.size
    assert shares == pytest.approx(stats.binom.pmf(range(4), samples, 1 / samples), abs=0.002)
    # the number that falls into a part of the samples varies as it must, across a border of tiles as within one
    for part in (slice(0, 1250), slice(900, 1200)):
        share = (part.stop - part.start) / samples
        drawn = table[:, part].sum(axis=1)
        assert drawn.var() == pytest.approx(samples * share * (1 - share), rel=4 * np.sqrt(2 / resamples))


@pytest.mark.parametrize("blocks", [1, 7])
@pytest.mark.parametrize("n_bins", [4, 15])
def test_resampled_metrics_are_the_toolkits_on_the_rows_drawn(n_bins, blocks):
    logit, label = overconfident(120, 4)
    p = np.round(softmax(logit, axis=1), 2)
    p = p / p.sum(axis=1, keepdims=True)  # ties, zeros and bin edges
    counts = ResampleCounts(120, 20, np.random.default_rng(0))
    drawn = resampled(p, label, n_bins, counts=counts, blocks=blocks).metrics()
    for row, count in enumerate(counts.of_samples(slice(0, 120))):
        rows = np.repeat(np.arange(120), count)
        expected = calibration_metrics(p[rows], label[rows], n_bins=n_bins)
        for name in RESAMPLED:
            assert drawn[name][row] == pytest.approx(expected[name], abs=1e-12), name


PEAKS = """
import json, tracemalloc
import numpy as np
from workbench_calibration import resampling
from workbench_calibration.resampling import ResampleCounts, ResampledScores

resampling.SOME_COUNTS = 5_000
rng = np.random.default_rng(0)


def peak(samples, classes, resamples, draws):
    tracemalloc.start()
    counts = ResampleCounts(samples, resamples, np.random.default_rng(0))
    scores = ResampledScores(samples, classes, 15, counts, draws, rng)
    for _ in range(0, samples, 500):
        scores.add(rng.dirichlet(np.ones(classes) / 20, 500), rng.integers(classes, size=500))
    scores.metrics()
    scores.chance()
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


peak(1_000, 100, 300, 64)  # what is imported and kept on first use
few = {samples: peak(samples, 100, 300, 64) for samples in (3_000, 12_000)}
many = {samples: peak(samples, 100, 600, 64) for samples in (3_000, 12_000)}
scores = ResampledScores(60_000, 2, 15, ResampleCounts(60_000, 500, rng), 20, rng)
p = rng.dirichlet(np.ones(2), 60_000)
tracemalloc.start()
scores.add(p, rng.integers(2, size=60_000))
print(json.dumps([few, many, tracemalloc.get_traced_memory()[1]]))
"""


def test_what_resampling_keeps_does_not_grow_with_classes_or_resamples_and_blocks_are_not_multiplied_by_them():
    """Peak memory as Python's allocator counts it, which numpy tells of its arrays: what a further sample costs.

    In a process of its own: threads of other tests allocate too. Blocks are cut by their number of logits, so those of two
    classes have many rows; counts of all of these would take 240 MB.
    """
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    few, many, block = json.loads(done.stdout)
    grown, grown_with_twice_the_resamples = ((peak["12000"] - peak["3000"]) / 9_000 for peak in (few, many))
    assert 50 < grown < 500  # one row of probabilities alone has 800 bytes, counts would have 600
    assert grown_with_twice_the_resamples < grown + 20
    assert block < 120e6


@pytest.mark.parametrize("blocks", [1, 5])
def test_chance_metrics_are_the_toolkits_on_labels_drawn_by_inverting_the_distribution(blocks):
    """The labels are drawn again here, row by row, from the same stream of uniform numbers."""
    p = softmax(overconfident(90, 4)[0], axis=1)
    chance = resampled(p, overconfident(90, 4)[1], 15, draws=20, blocks=blocks, seed=3).chance()
    uniform = np.random.default_rng(3).random((90, 20))
    for draw in range(20):
        label = (uniform[:, draw, None] >= np.cumsum(p, axis=1)[:, :-1]).sum(axis=1)
        expected = calibration_metrics(p, label)
        for name in RESAMPLED:
            assert chance[name][draw] == pytest.approx(expected[name], abs=1e-12), name


def test_chance_metrics_have_the_known_means():
    p = np.full((400, 2), [0.3, 0.7])
    chance = resampled(p, np.zeros(400, dtype=np.int64), draws=400).chance()
    assert chance["accuracy"].mean() == pytest.approx(0.7, abs=0.01)
    assert chance["accuracy"].std() == pytest.approx(np.sqrt(0.21 / 400), rel=0.15)
    assert chance["ece_width_l1"].mean() == pytest.approx(np.sqrt(2 / np.pi * 0.21 / 400), rel=0.1)
    entropy = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7))
    assert chance["negative_log_likelihood"].mean() == pytest.approx(entropy, rel=0.01)


def test_intervals_of_means_stay_in_their_range_and_errors_are_cut_at_zero():
    """197 of 200 right: a reflected interval would end above 1."""
    p, label = np.full((200, 2), [0.01, 0.99]), np.repeat([1, 0], [197, 3])
    drawn = resampled(p, label, counts=ResampleCounts(200, 4000, np.random.default_rng(0))).metrics()
    value = calibration_metrics(p, label)
    low, high = metric_interval("accuracy", value["accuracy"], drawn["accuracy"])
    # binomial quantiles of 200 draws at 0.985, an independent closed form
    assert (low, high) == pytest.approx(stats.binom.ppf([0.025, 0.975], 200, 0.985) / 200, abs=0.0051)
    assert high <= 1
    assert metric_interval("negative_log_likelihood", value["negative_log_likelihood"],
                              drawn["negative_log_likelihood"])[0] > 0  # fmt: skip
    low, high = metric_interval("ece_width_l1", value["ece_width_l1"], drawn["ece_width_l1"])
    assert 0 == low < high
    quantile = np.quantile(drawn["ece_width_l1"], 0.025)
    assert high == pytest.approx(2 * value["ece_width_l1"] - quantile)


@pytest.mark.slow
def test_reflected_intervals_cover_the_true_calibration_error_and_percentiles_do_not():
    """A calibrated classifier with errors in known bins; the true binned error is that of a very large sample."""
    rng = np.random.default_rng(0)
    logit, label = overconfident(400_000, 3, temperature=1.15)
    truth = calibration_metrics(softmax(logit, axis=1), label)["ece_width_l1"]
    reflected = percentile = 0
    for trial in range(300):
        rows = slice(1000 * trial, 1000 * trial + 1000)
        p = softmax(logit[rows], axis=1)
        drawn = resampled(p, label[rows], counts=ResampleCounts(1000, 300, rng)).metrics()["ece_width_l1"]
        value = expected_calibration_error(p, label[rows])
        low, high = metric_interval("ece_width_l1", value, drawn)
        reflected += low <= truth <= high
        percentile += np.quantile(drawn, 0.025) <= truth <= np.quantile(drawn, 0.975)
    assert reflected > percentile
    assert reflected >= 0.8 * 300
