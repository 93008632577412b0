"""Metrics of class probabilities: against torchmetrics, netcal, scikit-learn, the reference table and hand-made cases."""

from pathlib import Path

import numpy as np
import pytest
import torch
from netcal.metrics import ACE, ECE, MCE
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error
from workbench.errors import InputError
from workbench.toolkit import (
    CalibrationScores,
    accuracy,
    area_under_risk_coverage_curve,
    average_calibration_error,
    binned_calibration_error,
    brier_parts,
    brier_score,
    calibration_metrics,
    classwise_calibration_error,
    clipped_probability_count,
    confidence_auroc,
    debiased_calibration_error,
    debiased_squared_calibration_error,
    expected_calibration_error,
    ks_calibration_error,
    maximum_calibration_error,
    mean_entropy,
    negative_log_likelihood,
    overconfidence,
    reliability_diagram,
    top_label,
)

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "classifier_outputs"


def classified(samples=1500, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    logit = 2 * rng.standard_normal((samples, classes))
    p = softmax(logit, axis=1)
    label = np.array([rng.choice(classes, p=row) for row in softmax(0.6 * logit, axis=1)])
    return p, label


P, Y = classified()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_bins", [5, 15])
@pytest.mark.parametrize(("norm", "theirs"), [(1, "l1"), (2, "l2"), ("max", "max")])
def test_top_label_errors_are_those_of_torchmetrics(seed, n_bins, norm, theirs):
    p, label = classified(800, 5, seed)
    expected = multiclass_calibration_error(torch.tensor(p), torch.tensor(label), 5, n_bins=n_bins, norm=theirs)
    assert expected_calibration_error(p, label, n_bins=n_bins, norm=norm) == pytest.approx(float(expected), abs=1e-6)


def test_confidences_of_exactly_one_are_a_bin_of_their_own_in_torchmetrics_alone():
    """Where the values differ: half of the last bin's samples have confidence 1."""
    p = np.repeat([[1.0, 0.0], [0.95, 0.05]], [10, 10], axis=0)
    label = np.repeat([0, 1, 0, 1], [9, 1, 4, 6])
    theirs = float(multiclass_calibration_error(torch.tensor(p), torch.tensor(label), 2, n_bins=15, norm="max"))
    assert theirs == pytest.approx(abs(0.4 - 0.95))
    assert maximum_calibration_error(p, label) == pytest.approx(abs(0.65 - 0.975)) == pytest.approx(MCE(15).measure(p, label))


def test_top_label_errors_are_those_of_netcal():
    assert expected_calibration_error(P, Y) == pytest.approx(ECE(15).measure(P, Y), abs=1e-9)
    assert maximum_calibration_error(P, Y) == pytest.approx(MCE(15).measure(P, Y), abs=1e-9)
    assert average_calibration_error(P, Y) == pytest.approx(ACE(15).measure(P, Y), abs=1e-9)


def test_accuracy_and_likelihood_are_those_of_scikit_learn():
    assert negative_log_likelihood(P, Y) == pytest.approx(log_loss(Y, P, labels=range(7)))
    for top in (1, 2, 5):
        assert accuracy(P, Y, top=top) == pytest.approx(top_k_accuracy_score(Y, P, k=top, labels=range(7)))
    expected = multiclass_accuracy(torch.tensor(P), torch.tensor(Y), 7, average="micro")
    assert accuracy(P, Y) == pytest.approx(float(expected))


def test_the_brier_score_is_the_sum_of_the_squared_distances_to_the_one_hot_label():
    """Scikit-learn's and netcal's binary scores are half of it, some libraries divide by the classes."""
    assert brier_score(P, Y) == pytest.approx(((P - np.eye(7)[Y]) ** 2).sum() / len(Y))
    assert brier_score([[1.0, 0.0]], [1]) == 2.0
    one = np.array([0.2, 0.7])
    assert brier_score(one, [0, 1]) == pytest.approx(2 * np.mean([0.04, 0.09]))


def test_brier_parts_are_those_of_the_top_label():
    parts = brier_parts(P, Y, n_bins=len(Y))
    confidence, hit = top_label(P, Y)
    assert parts.reliability - parts.resolution + parts.uncertainty == pytest.approx(((confidence - hit) ** 2).mean())


def test_classwise_errors_are_the_binary_errors_of_every_class():
    per_class = [ECE(15).measure(P[:, k], (k == Y).astype(int)) for k in range(7)]
    assert classwise_calibration_error(P, Y, reduction="none") == pytest.approx(per_class, abs=1e-9)
    assert classwise_calibration_error(P, Y) == pytest.approx(np.mean(per_class), abs=1e-9)
    assert classwise_calibration_error(P, Y, reduction="sum") == pytest.approx(np.sum(per_class), abs=1e-9)


def test_thresholded_classwise_errors_leave_small_probabilities_out():
    kept = P[:, 2] >= 1 / 7
    errors = classwise_calibration_error(P, Y, reduction="none", threshold=1 / 7)
    assert errors[2] == pytest.approx(ECE(15).measure(P[kept, 2], (Y[kept] == 2).astype(int)), abs=1e-9)
    assert classwise_calibration_error([[0.9, 0.1]] * 3, [0, 0, 0], reduction="none", threshold=0.5)[1] == 0


def test_the_ks_error_of_ranks_and_of_sets_is_that_of_their_definition():
    order = np.argsort(-P, axis=1)
    second = np.take_along_axis(P, order[:, 1:2], axis=1)[:, 0]
    hit = order[:, 1] == Y
    by_score = np.argsort(second)
    expected = np.abs(np.cumsum(second[by_score] - hit[by_score])).max() / len(Y)
    assert ks_calibration_error(P, Y, rank=2) == pytest.approx(expected)
    pair = np.take_along_axis(P, order[:, :2], axis=1).sum(axis=1)
    hit = (order[:, :2] == Y[:, None]).any(axis=1)
    by_score = np.argsort(pair)
    expected = np.abs(np.cumsum(pair[by_score] - hit[by_score])).max() / len(Y)
    assert ks_calibration_error(P, Y, rank=2, within=True) == pytest.approx(expected)
    assert ks_calibration_error(P, Y, rank=7, within=True) == pytest.approx(0, abs=1e-12)


def test_of_true_probabilities_debiasing_leaves_the_known_share_and_the_squared_error_is_zero_on_average():
    values = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        p = softmax(2 * rng.standard_normal((500, 4)), axis=1)
        y = (rng.random((500, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(max=3)
        values.append((expected_calibration_error(p, y, binning="mass"), debiased_calibration_error(p, y),
                       debiased_squared_calibration_error(p, y)))
    plain, debiased, squared = np.array(values).T
    # gaps are N(0, s^2) and the subtracted mean is that of |N(0, 2 s^2)|: 2 - sqrt 2 of the plain error remains
    assert debiased.mean() / plain.mean() == pytest.approx(2 - np.sqrt(2), abs=0.05)
    assert abs(squared.mean()) < 3 * squared.std() / np.sqrt(30)


def test_zeros_are_clipped_and_counted():
    p, y = np.array([[1.0, 0.0], [1e-15, 1 - 1e-15], [0.5, 0.5]]), np.array([1, 0, 0])
    assert clipped_probability_count(p, y) == (2, 1)
    assert negative_log_likelihood(p, y) == pytest.approx((2 * np.log(1e12) + np.log(2)) / 3)


def test_ties_go_to_the_lowest_class():
    assert accuracy([[0.5, 0.5]], [0]) == 1
    assert accuracy([[0.5, 0.5]], [1]) == 0
    assert accuracy([[0.4, 0.4, 0.2]], [1], top=2) == 1


def test_one_column_is_the_probability_of_the_second_class():
    p = np.array([0.2, 0.9, 0.6])
    for metric in (accuracy, negative_log_likelihood, expected_calibration_error, classwise_calibration_error):
        assert metric(p, [0, 1, 0]) == metric(p[:, None], [0, 1, 0]) == metric(np.stack([1 - p, p], 1), [0, 1, 0])


def test_float32_and_float64_agree_and_values_of_all_metrics_are_consistent():
    metrics, single = calibration_metrics(P, Y), calibration_metrics(P.astype(np.float32), Y)
    assert single == pytest.approx(metrics, abs=1e-5)
    assert metrics["overconfidence"] == pytest.approx(overconfidence(P, Y))
    assert metrics["confidence_auroc"] == pytest.approx(confidence_auroc(P, Y))
    assert metrics["aurc"] == pytest.approx(area_under_risk_coverage_curve(P, Y))
    assert metrics["mean_entropy"] == pytest.approx(mean_entropy(P)) == pytest.approx(-(P * np.log(P)).sum() / len(P))
    assert metrics["brier_top_uncertainty"] == pytest.approx(metrics["accuracy"] * (1 - metrics["accuracy"]))
    confidence, hit = P.max(1), (P.argmax(1) == Y).astype(float)
    parts = np.array_split(np.argsort(confidence, kind="stable"), 15)
    at_means = sum(((confidence[rows].mean() - hit[rows]) ** 2).sum() for rows in parts) / len(Y)
    assert at_means == pytest.approx(
        metrics["brier_top_reliability_mass"] - metrics["brier_top_resolution_mass"] + metrics["brier_top_uncertainty"]
    )
    assert metrics["ece_width_l1"] <= metrics["ece_width_l2"] <= metrics["ece_width_max"]
    assert metrics["classwise_ece_width_sum"] == pytest.approx(7 * metrics["classwise_ece_width_mean"])
    bins = reliability_diagram(P, Y)
    assert np.nansum(bins.count * np.abs(bins.accuracy - bins.confidence)) / len(Y) == pytest.approx(
        metrics["ece_width_l1"]
    )


@pytest.mark.parametrize("n_bins", [1, 4, 15])
def test_metrics_do_not_depend_on_how_samples_are_cut_into_blocks(n_bins):
    """Probabilities on bin edges, zeros and ties included."""
    p = np.round(P, 1)
    p = p[p.sum(axis=1) > 0.9]
    p, label = p / p.sum(axis=1, keepdims=True), Y[: len(p)]
    scores = CalibrationScores(n_bins=n_bins)
    for rows in np.array_split(np.arange(len(p)), 11):
        scores.update(p[rows].astype(np.float32), label[rows])
    assert scores.samples == len(p)
    single = p.astype(np.float32)
    expected = calibration_metrics(single, label, n_bins=n_bins)
    assert scores.metrics() == pytest.approx(expected, abs=1e-12)
    alone = {
        "accuracy": accuracy(single, label),
        "negative_log_likelihood": negative_log_likelihood(single, label),
        "brier_score": brier_score(single, label),
        "ece_width_l1": expected_calibration_error(single, label, n_bins=n_bins),
        "ece_width_l2": expected_calibration_error(single, label, n_bins=n_bins, norm=2),
        "ece_width_max": maximum_calibration_error(single, label, n_bins=n_bins),
        "ace_width": average_calibration_error(single, label, n_bins=n_bins),
        "ece_mass_l1": expected_calibration_error(single, label, n_bins=n_bins, binning="mass"),
        "classwise_ece_width_mean": classwise_calibration_error(single, label, n_bins=n_bins),
        "mean_entropy": mean_entropy(single),
    }
    assert {name: expected[name] for name in alone} == pytest.approx(alone, abs=1e-12)
    with pytest.raises(InputError, match="7 classes as before"):
        scores.update(np.full((2, 3), 1 / 3), [0, 1])


@pytest.mark.parametrize("norm", [1, 1.5, 2, 3, "max", "mean"])
@pytest.mark.parametrize("threshold", [None, 1 / 7])
def test_classwise_errors_of_any_norm_are_those_of_each_class_alone(norm, threshold):
    for binning in ("width", "mass"):
        expected = []
        for k in range(7):
            kept = P[:, k] >= (threshold or 0)
            expected.append(binned_calibration_error(P[kept, k], Y[kept] == k, binning=binning, norm=norm))
        found = classwise_calibration_error(P, Y, reduction="none", binning=binning, norm=norm, threshold=threshold)
        assert found == pytest.approx(expected, abs=1e-12)


def test_the_brier_score_is_scikit_learns_of_several_classes():
    assert brier_score(P, Y) == pytest.approx(brier_score_loss(Y, P, labels=range(7), scale_by_half=False))


def test_large_inputs_are_worked_through_in_blocks(monkeypatch):
    def several():
        mass = classwise_calibration_error(P, Y, binning="mass")
        return {**calibration_metrics(P, Y), "mass": mass, "top": accuracy(P, Y, top=3), "brier": brier_score(P, Y)}

    expected = several()
    monkeypatch.setattr("workbench.toolkit.probability.BLOCK_ENTRIES", 100)
    assert several() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([[0.5, 0.5]], [2], "label"),
        ([[0.5, 0.5]], [0, 1], "label"),
        ([[0.5, 0.5]], [0.0], "label"),
        ([[0.5, 0.6]], [0], "sum to 1"),
        ([[3.0, -2.0]], [0], "softmax"),
        ([[np.nan, 0.5]], [0], "0..1"),
        (np.zeros((0, 3)), [], "not empty"),
    ],
)
def test_bad_input_is_named(p, y, message):
    with pytest.raises(InputError, match=message):
        calibration_metrics(p, np.array(y))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: classwise_calibration_error(P, Y, reduction="median"), "reduction"),
    (lambda: accuracy(P, Y, top=8), "rank"),
])
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.skipif(not DATA.is_dir(), reason="the stored classifier outputs are not beside this repository")
@pytest.mark.parametrize(
    ("file", "ece", "ks", "nll", "brier"),
    [
        ("lenet-5-cifar-10", 0.11080, 0.11084, 1.36143, 0.61467),
        ("densenet-bc-100-cifar-100", 0.13786, 0.13786, 1.21242, 0.37722),
        ("wideresnet-16-4-cifar-100", 0.05684, 0.04774, 0.95412, 0.34762),
        ("vgg16-cifar-10", 0.03561, 0.03517, 0.23325, 0.09732),
    ],
)
def test_stored_classifiers_score_as_in_the_reference_table(file, ece, ks, nll, brier):
    with np.load(DATA / f"{file}.npz") as stored:
        p, y = stored["predictions"][1::2], stored["ground_truth"].reshape(-1).astype(np.int64)[1::2]
    values = expected_calibration_error(p, y), ks_calibration_error(p, y), negative_log_likelihood(p, y), brier_score(p, y)
    assert values == pytest.approx((ece, ks, nll, brier), abs=6e-6)
