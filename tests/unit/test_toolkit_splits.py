"""Splits keep fit, selection and report data apart, reproducibly, with every class in its share."""

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from workbench.errors import InputError
from workbench.toolkit.splits import kfold_indices, split_indices

SHARES = {"fit": 0.5, "selection": 0.2, "report": 0.3}


def labels(n, classes, seed=0):
    weight = np.random.default_rng(seed).dirichlet(np.ones(classes) * 2)
    return np.random.default_rng(seed + 1).choice(classes, n, p=weight)


@pytest.mark.parametrize("n", [4, 10, 101, 1797])
@pytest.mark.parametrize("shares", [SHARES, {"a": 0.9, "b": 0.1}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, {"all": 1.0}])
@pytest.mark.parametrize("stratified", [True, False])
def test_parts_are_sorted_disjoint_and_cover_everything_in_the_sizes_asked_for(n, shares, stratified):
    if n == 4 and "b" in shares and shares["b"] == 0.1:
        with pytest.raises(InputError, match="none in 'b' of 4 samples"):
            split_indices(labels(n, 5), shares, stratify=stratified)
        return
    parts = split_indices(labels(n, 5), shares, seed=3, stratify=stratified)
    assert list(parts) == list(shares)
    for name, index in parts.items():
        assert index.dtype == np.int64
        assert (np.diff(index) > 0).all()
        assert abs(len(index) - shares[name] * n) < 1
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(n))


@pytest.mark.parametrize("seed", range(5))
def test_every_class_keeps_its_share_in_every_part(seed):
    label = labels(500, 8, seed)
    parts = split_indices(label, SHARES, seed=seed)
    for name, index in parts.items():
        count, expected = np.bincount(label[index], minlength=8), SHARES[name] * np.bincount(label, minlength=8)
        assert np.abs(count - expected).max() < 2


@pytest.mark.parametrize("seed", range(5))
def test_class_counts_of_a_two_part_split_are_those_of_scikit_learn(seed):
    """Balanced classes whose shares have no ties: there the largest-remainder rounding leaves no choice."""
    label = np.repeat([0, 1, 2], [53, 31, 17])
    ours = split_indices(label, {"train": 0.7, "test": 0.3}, seed=seed)
    theirs, _ = train_test_split(np.arange(101), train_size=len(ours["train"]), stratify=label, random_state=seed)
    np.testing.assert_array_equal(np.bincount(label[ours["train"]]), np.bincount(label[theirs]))


def test_the_split_is_pinned():
    """These indices must be the same on every platform and in every release."""
    parts = split_indices(np.arange(20) % 3, seed=7)
    assert {name: index.tolist() for name, index in parts.items()} == PINNED
    assert split_indices(10, {"a": 0.5, "b": 0.5}, seed=1)["a"].tolist() == PINNED_PLAIN


PINNED = {
    "fit": [0, 1, 2, 7, 8, 10, 11, 15, 18, 19],
    "selection": [6, 12, 13, 14],
    "report": [3, 4, 5, 9, 16, 17],
}
PINNED_PLAIN = [0, 1, 4, 7, 8]  # the first five of numpy's PCG64(1) permutation of ten


def test_seeds_matter_and_the_kind_of_label_array_does_not():
    label = labels(60, 3)
    base = split_indices(label, seed=1)
    assert any((base[name] != index).any() for name, index in split_indices(label, seed=2).items())
    for same in (torch.from_numpy(label), xr.DataArray(label, dims="sample"), label.astype(np.uint8), label.astype(str)):
        for name, index in split_indices(same, seed=1).items():
            np.testing.assert_array_equal(index, base[name])


def test_every_sample_reaches_every_part_equally_often():
    """800 seeds: each of 12 samples is in the fit part in half of them, to within 5 standard errors (0.088)."""
    hits = np.zeros(12)
    for seed in range(800):
        hits[split_indices(np.arange(12) % 3, seed=seed)["fit"]] += 1
    assert np.abs(hits / 800 - 0.5).max() < 5 * 0.5 / np.sqrt(800)


@pytest.mark.parametrize(
    ("shares", "n", "message"),
    [
        ({"a": 0.5, "b": 0.4}, 10, "add up to 1"),
        ({"a": 1.2, "b": -0.2}, 10, "positive"),
        ({}, 10, "positive"),
        ({"a": 0.99, "b": 0.01}, 10, "at least one sample in every part, got none in 'b' of 10"),
        (SHARES, 0, "at least one sample"),
    ],
)
def test_bad_shares_are_refused(shares, n, message):
    with pytest.raises(InputError, match=message):
        split_indices(n, shares)


def test_too_few_samples_are_reported_of_the_argument_that_the_caller_names():
    with pytest.raises(InputError, match="data: expected at least one sample in every part, got none in 'b' of 2 samples"):
        split_indices(2, {"a": 0.9, "b": 0.1}, argument="data")


def test_labels_that_cannot_be_stratified_by_are_refused():
    with pytest.raises(InputError, match="stratify=False"):
        split_indices(np.linspace(0, 1, 10))
    assert len(split_indices(np.linspace(0, 1, 10), stratify=False)["fit"]) == 5
    with pytest.raises(InputError, match="shape"):
        split_indices(np.zeros((4, 2), int))


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
@pytest.mark.parametrize("stratified", [True, False])
def test_folds_partition_the_samples_like_scikit_learns(folds, stratified):
    label = labels(103, 4)
    ours = kfold_indices(label, folds, seed=5, stratify=stratified)
    splitter = (StratifiedKFold if stratified else KFold)(folds, shuffle=True, random_state=0)
    theirs = list(splitter.split(label, label))
    assert sorted(len(fold) for _, fold in ours) == sorted(len(fold) for _, fold in theirs)
    np.testing.assert_array_equal(np.sort(np.concatenate([fold for _, fold in ours])), np.arange(103))
    for rest, fold in ours:
        np.testing.assert_array_equal(np.sort(np.concatenate([rest, fold])), np.arange(103))
        assert (np.diff(rest) > 0).all()
        assert (np.diff(fold) > 0).all()
    if stratified:
        counts = np.array([np.bincount(label[fold], minlength=4) for _, fold in ours])
        reference = np.array([np.bincount(label[fold], minlength=4) for _, fold in theirs])
        np.testing.assert_array_equal(np.sort(counts, axis=0), np.sort(reference, axis=0))


@pytest.mark.parametrize("folds", [1, 11])
def test_a_number_of_folds_out_of_range_is_refused(folds):
    with pytest.raises(InputError, match="folds: expected 2 to 10"):
        kfold_indices(10, folds)
