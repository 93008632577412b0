"""OPIS and retrieval scores against brute force over pairs and thresholds, torchmetrics and pytorch-metric-learning."""

import itertools
import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torchmetrics.functional.classification import binary_roc
from workbench import InputError

from workbench_calibration import opis as module
from workbench_calibration.opis import (
    acceptance,
    grid,
    hardest_pairs,
    normalised,
    opis,
    opis_by_class,
    quantiles,
    retrieval,
    tail_opis,
    thresholds_at,
    utility,
    utility_with_own_thresholds,
    with_partners,
)


def sample(seed=0, sizes=(5, 2, 9, 4), dims=3):
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat([3, 0, 8, 5][: len(sizes)], sizes))
    centre = rng.standard_normal((9, dims))
    return normalised(
        torch.from_numpy(centre[label] + 0.7 * rng.standard_normal((len(label), dims)))
    ), torch.from_numpy(label)


def pairs_of(unit, label, name):
    """Similarities of a class's pairs, by the definition."""
    x, y = unit.numpy(), label.numpy()
    found = {True: [], False: []}
    for i, j in itertools.combinations(range(len(y)), 2):
        members = int(y[i] == name) + int(y[j] == name)
        if members:
            found[members == 2].append(x[i] @ x[j])
    return np.array(found[True]), np.array(found[False])


@pytest.mark.parametrize("block", [1, 30, 4_000_000])
def test_rates_are_those_of_all_pairs_one_by_one(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    unit, label = sample()
    threshold = np.linspace(-0.9, 0.9, 17)
    counted = acceptance(unit, label, threshold)
    assert counted.names.tolist() == [0, 3, 5, 8]
    everything = []
    for k, name in enumerate(counted.names):
        positive, negative = pairs_of(unit, label, name)
        everything.append(negative)
        assert (counted.positive[k], counted.negative[k]) == (len(positive), len(negative))
        for t, at in enumerate(threshold):
            assert counted.far[k, t] == pytest.approx((negative >= at).mean())
            assert counted.frr[k, t] == pytest.approx((positive < at).mean())
    pooled = np.concatenate(everything)
    assert counted.pooled_far == pytest.approx([(pooled >= at).mean() for at in threshold])


def test_pooled_rates_are_those_of_torchmetrics():
    unit, label = sample(1, sizes=(12, 15, 9, 20))
    upper = torch.triu_indices(len(label), len(label), 1)
    score = (unit @ unit.T)[upper[0], upper[1]]
    same = (label[upper[0]] == label[upper[1]]).long()
    threshold = np.linspace(-0.95, 0.95, 20)
    far, psi, _ = binary_roc((score + 1) / 2, same, thresholds=torch.from_numpy((threshold + 1) / 2))
    counted = acceptance(unit, label, threshold)
    assert counted.pooled_far == pytest.approx(far.flip(0).numpy(), abs=1e-6)
    accepted = counted.accepted_positive.sum(0) / counted.positive.sum()
    assert accepted == pytest.approx(psi.flip(0).numpy(), abs=1e-6)


@pytest.mark.parametrize("far", [(0.01, 0.1), (0.05, 0.5), (1e-9, 0.3)])
def test_the_range_ends_where_the_pooled_rate_has_fallen_to_the_targets(far):
    unit, label = sample(2, sizes=(12, 15, 9, 20))
    upper = torch.triu_indices(len(label), len(label), 1)
    negative = np.sort((unit @ unit.T)[upper[0], upper[1]][label[upper[0]] != label[upper[1]]].numpy())
    low, high = thresholds_at(unit, label, far[::-1])
    for end, wanted in ((low, far[1]), (high, far[0])):
        assert (negative >= end).mean() <= wanted
        # just below the next smaller similarity the rate would be too high
        next_one = negative[negative < end].max()
        assert (negative >= next_one).mean() > wanted
        assert 0 <= end - next_one <= 2.1e-6


def test_opis_is_the_formula_one_sum_at_a_time():
    unit, label = sample(3)
    low, high = thresholds_at(unit, label, (0.4, 0.05))
    threshold = grid(low, high, 11, "cosine")
    counted = acceptance(unit, label, threshold)
    table = []
    for name in counted.names:
        positive, negative = pairs_of(unit, label, name)
        row = []
        for at in threshold:
            psi, phi = (positive >= at).mean(), (negative < at).mean()
            row.append(2 * phi * psi / (phi + psi) if phi + psi else 0.0)
        table.append(row)
    classes = len(table)
    mean = [sum(row[t] for row in table) / classes for t in range(11)]
    expected = sum((row[t] - mean[t]) ** 2 for row in table for t in range(11)) / 11 / classes
    value = utility(counted.far, counted.frr)
    assert value == pytest.approx(np.array(table))
    assert opis(value) == pytest.approx(expected)
    assert opis_by_class(value).mean() == pytest.approx(expected)
    assert expected > 1e-3


def test_opis_in_closed_form():
    """One class accepts nothing, one everything, at every threshold: utilities 0 and 1."""
    assert opis(np.array([[0.0] * 5, [1.0] * 5])) == 0.25
    assert opis(np.full((7, 5), 0.3)) == pytest.approx(0)
    # utilities a + b t on [0, 1] of two classes that differ by 2 d t: variance d^2 t^2, mean d^2 / 3
    t = np.linspace(0, 1, 20_001)
    assert opis(np.stack([0.5 + 0.2 * t, 0.5 - 0.2 * t])) == pytest.approx(0.2**2 / 3, rel=1e-3)


@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_the_utility_is_an_f_score_of_the_two_rates(c):
    far, frr = np.array([[0.0, 1.0, 0.2, 1.0]]), np.array([[0.0, 0.3, 0.4, 1.0]])
    got = utility(far, frr, c)[0]
    assert got[:2].tolist() == [1.0, 0.0]
    assert got[2] == pytest.approx((1 + c**2) * 0.8 * 0.6 / (c**2 * 0.8 + 0.6))
    assert got[3] == 0  # 0 / 0


def test_the_tails_are_whole_classes_rounded_up():
    value = np.array([[0.1], [0.2], [0.5], [0.8], [1.0]])
    assert tail_opis(value, 0.1) == pytest.approx(0.9**2)
    assert tail_opis(value, 0.2) == pytest.approx(0.9**2)
    assert tail_opis(value, 0.21) == pytest.approx((0.9 - 0.15) ** 2)
    # groups are formed anew at each threshold
    assert tail_opis(np.array([[0.0, 1.0], [1.0, 0.0]]), 0.5) == 1.0


def test_grids_are_uniform_in_what_they_say():
    assert np.diff(grid(0.2, 0.9, 8, "cosine")) == pytest.approx(np.full(7, 0.1))
    s = grid(0.2, 0.9, 8, "distance")
    assert s[[0, -1]] == pytest.approx([0.2, 0.9])
    distance = np.sqrt(2 - 2 * s)
    assert np.diff(distance) == pytest.approx(np.full(7, np.diff(distance)[0]))


def test_own_thresholds_give_every_class_the_same_rate():
    unit, label = sample(4, sizes=(12, 15, 9, 20))
    fine = acceptance(unit, label, np.linspace(-1, 1, 401))
    wanted = np.array([0.5, 0.2, 0.05, 0.0])
    value = utility_with_own_thresholds(fine, wanted)
    for k, name in enumerate(fine.names):
        positive, negative = pairs_of(unit, label, name)
        for t, far in enumerate(wanted):
            at = next(x for x in fine.threshold if (negative >= x).mean() <= far)
            phi, psi = (negative < at).mean(), (positive >= at).mean()
            assert value[k, t] == pytest.approx(2 * phi * psi / (phi + psi) if phi + psi else 0)


def test_quantiles_are_numpys_to_the_step_of_the_grid():
    unit, label = sample(5, sizes=(12, 15, 9, 20))
    fine = acceptance(unit, label, np.linspace(-1, 1, 401))
    got = quantiles(fine.accepted_positive, fine.positive, fine.threshold, (0.05, 0.5, 0.95))
    for k, name in enumerate(fine.names):
        expected = np.quantile(pairs_of(unit, label, name)[0], (0.05, 0.5, 0.95), method="inverted_cdf")
        assert np.abs(got[k] - expected).max() <= 0.0051 + np.diff(np.sort(pairs_of(unit, label, name)[0])).max()


@pytest.mark.parametrize("block", [1, 4_000_000])
def test_retrieval_is_what_the_library_measures(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    unit, label = sample(6, sizes=(12, 3, 9, 20), dims=2)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"), k="max_bin_count", device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )  # fmt: skip
    expected = calculator.get_accuracy(unit, label)
    recall, map_r = retrieval(unit, label, (1, 2, 4))
    assert recall[1] == pytest.approx(expected["precision_at_1"])
    assert map_r == pytest.approx(expected["mean_average_precision_at_r"], abs=1e-6)
    similarity = (unit @ unit.T - 2 * torch.eye(len(label))).numpy()
    for k in (2, 4):
        hits = [any(label[j] == label[i] for j in np.argsort(-row)[:k]) for i, row in enumerate(similarity)]
        assert recall[k] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("block", [1, 4_000_000])
def test_the_hardest_pairs_are_the_ends_of_the_lists(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    unit, label = sample(7)
    for name in (0, 8):
        positive, negative = hardest_pairs(unit, label, name, 3)
        own, other = pairs_of(unit, label, name)
        x, y = unit.numpy(), label.numpy()
        assert [x[i] @ x[j] for i, j in positive] == pytest.approx(np.sort(own)[:3])
        assert [x[i] @ x[j] for i, j in negative] == pytest.approx(np.sort(other)[::-1][:3])
        assert all(y[i] == y[j] == name and i != j for i, j in positive)
        assert all(y[i] == name != y[j] for i, j in negative)


def test_lonely_samples_are_left_out_and_directionless_ones_refused():
    index, dropped = with_partners(np.array([5, 7, 5, 9, 9, 2]))
    assert (index.tolist(), dropped) == ([0, 2, 3, 4], 2)
    with pytest.raises(InputError, match="two classes"):
        with_partners(np.array([1, 1, 2]))
    for bad in (0.0, math.nan, math.inf):
        with pytest.raises(InputError, match="other than zero"):
            normalised(torch.tensor([[1.0, 0.0], [bad, 0.0]]))
