"""What a run stores of a fitted curve is the map itself: rebuilt from it by numpy alone, it gives the run's probabilities."""

import numpy as np
import pytest
import xarray as xr
from scipy.special import softmax

from unit.calibration_samples import skewed
from unit.recording_out import record
from workbench_calibration.bbq import BayesianBinning
from workbench_calibration.isotonic import Isotonic
from workbench_calibration.spline import SplineCalibration

FEW = {"resamples": 100, "chance_draws": 20}


def curves(arrays):
    """Score and value of the knots of every curve."""
    owner = arrays["knot_curve"]
    return [(arrays["knot_score"][owner == k], arrays["knot_value"][owner == k]) for k in range(owner.max() + 1)]


def ran(method, **params):
    """Arrays of a run, and the given probabilities of its report samples."""
    logit, label = skewed(400, 3)
    data = xr.Dataset({"logit": (("sample", "class"), 2 * logit.numpy()), "label": ("sample", label.numpy())})
    out, _ = record(method, {"data": data}, **FEW, **params)
    return out.arrays, softmax(2 * logit.numpy()[out.arrays["sample_index"]], axis=1)


def shares(value):
    return value / value.sum(axis=1, keepdims=True)


def test_isotonic_curves():
    arrays, p = ran(Isotonic)
    found = curves(arrays)
    assert len(found) == 3
    rebuilt = shares(np.stack([np.interp(p[:, k], *knots) for k, knots in enumerate(found)], axis=1))
    assert arrays["probability"] == pytest.approx(rebuilt, abs=1e-6)
    arrays, p = ran(Isotonic, variant="multi_class")
    ((score, value),) = curves(arrays)
    assert arrays["probability"] == pytest.approx(shares(np.interp(p, score, value) + 1e-9 * p), abs=1e-6)


@pytest.mark.parametrize("score", ["bdeu", "bic"])
def test_means_over_binnings(score):
    arrays, p = ran(BayesianBinning, score=score)
    found = curves(arrays)
    assert all(upper[-1] == 1 and (np.diff(upper) > 0).all() for upper, _ in found)
    steps = [value[np.searchsorted(upper, p[:, k], side="left")] for k, (upper, value) in enumerate(found)]
    assert arrays["probability"] == pytest.approx(shares(np.stack(steps, axis=1)), abs=1e-6)


@pytest.mark.parametrize("rank", [1, 2])
def test_the_curve_of_the_score_of_a_rank(rank):
    arrays, p = ran(SplineCalibration, rank=rank)
    ((score, value),) = curves(arrays)
    given = np.sort(p, axis=1)[:, -rank]
    assert arrays["top_score"] == pytest.approx(np.clip(np.interp(given, score, value), 0, 1), abs=1e-12)
    assert arrays["curve"][-1] == np.clip(np.interp(1 / rank, score, value), 0, 1)  # the largest that a score can be
