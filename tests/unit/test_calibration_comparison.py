"""What the comparison of recalibrators shows beside the ranking: curves on the same axes, and the five most probable classes."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import binomtest
from sklearn.metrics import top_k_accuracy_score

from unit.calibration_samples import skewed
from unit.recording_out import check_report, record
from workbench_calibration.baselines import Baselines, recalibrators
from workbench_calibration.curves import fitted_curves
from workbench_calibration.evaluation import label_among
from workbench_calibration.samples import Samples

FEW = {"resamples": 100, "chance_draws": 20}
FITS = recalibrators(0)
PER_CLASS = ("isotonic_one_vs_rest", "isotonic_multi_class", "histogram_binning", "bbq", "beta", "platt")


@pytest.mark.parametrize("name", PER_CLASS)
def test_curves_of_single_probabilities_renormalised_are_the_map_itself(name):
    logit, label = skewed(500, 4)
    fitted, other = FITS[name](Samples.of(logit, label)), skewed(100, 4, seed=1)[0]
    p = torch.softmax(other, 1).numpy()
    value = np.stack([fitted_curves(fitted, p[:, k], 4)[k] for k in range(4)], axis=1)
    assert value / value.sum(axis=1, keepdims=True) == pytest.approx(fitted(other).numpy(), abs=1e-9)


@pytest.mark.parametrize("name", ["temperature", "ensemble_temperature"])
def test_curves_of_a_temperature_are_the_map_of_two_classes_and_of_a_rest_that_one_class_holds(name):
    logit, label = skewed(500, 2)
    fitted, other = FITS[name](Samples.of(2 * logit, label)), skewed(100, 2, seed=1)[0]
    p = torch.softmax(other, 1).numpy()
    assert fitted_curves(fitted, p[:, 1], 2)[1] == pytest.approx(fitted(other)[:, 1].numpy(), abs=1e-9)
    four = torch.cat([other, torch.full_like(other, -1e4)], dim=1)  # two classes that are out of the question
    assert fitted_curves(fitted, p[:, 0], 4)[0] == pytest.approx(fitted(four)[:, 0].numpy(), abs=1e-9)


def test_the_curve_of_the_spline_is_of_the_top_score_and_maps_of_whole_rows_have_none():
    logit, label = skewed(500, 3)
    other = skewed(100, 3, seed=1)[0]
    top, best = torch.softmax(other, 1).max(1)
    spline = FITS["spline"](Samples.of(logit, label))
    assert fitted_curves(spline, top.numpy(), 3)[1] == pytest.approx(spline(other)[range(100), best].numpy(), abs=1e-12)
    assert fitted_curves(FITS["vector_scaling"](Samples.of(logit, label)), top.numpy(), 3) is None


def test_the_comparison_draws_all_curves_of_one_class_and_leaves_out_what_is_none():
    logit, label = skewed(400, 3)
    label = torch.where(torch.arange(400) % 4 > 1, 2, label)  # the commonest
    data = xr.Dataset({"logit": (("sample", "class"), logit.numpy()), "label": ("sample", label.numpy())})
    names = ("platt", "vector_scaling", "temperature")
    out, result = record(Baselines, {"data": data}, **FEW, methods=names)
    curve, fit = out.arrays["fitted_curve"], out.arrays["fit_index"]
    grid = result["fitted_curve"]["given_probability"].values.copy()
    again = FITS["platt"](Samples.of(logit[fit], label[fit]))
    assert curve[0] == pytest.approx(np.tile(grid, (3, 1)), abs=1e-7)
    assert curve[1] == pytest.approx(again.curve(grid), abs=1e-6)
    assert np.isnan(curve[2]).all()
    view = next(view for view in check_report(Baselines, result).views if view.title.startswith("What becomes"))
    assert view.select == {"recalibrator": ["uncalibrated", "platt", "temperature"], "class": 2}
    alone, result = record(Baselines, {"data": data}, **FEW, methods=("vector_scaling",))
    assert "fitted_curve" not in alone.arrays
    check_report(Baselines, result)


def test_top_five_accuracy_is_scikit_learns_where_there_are_more_than_five_classes():
    logit, label = skewed(600, 8)
    data = xr.Dataset({"logit": (("sample", "class"), logit.numpy()), "label": ("sample", label.numpy())})
    out, result = record(Baselines, {"data": data}, **FEW, methods=("vector_scaling", "platt"))
    truth = out.arrays["label"]
    expected = [top_k_accuracy_score(truth, p, k=5, labels=range(8)) for p in out.arrays["method_probability"]]
    assert out.arrays["top5_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) > 1
    report = check_report(Baselines, result)
    table = next(table for table in report.tables if table.title == "Recalibrators")
    low, high = binomtest(round(expected[1] * len(truth)), len(truth)).proportion_ci(method="wilson")
    assert table.columns[-1] == "top-5 accuracy"
    assert table.rows[1][-1] == f"{expected[1]:.4f} ({low:.4f} to {high:.4f})"
    metric = next(metric for metric in report.metrics if metric.name == "top5_accuracy")
    assert metric.value == expected[[row[0] for row in table.rows].index(str(result["suggested"].values))]
    few = data.isel({"class": slice(5)}).isel(sample=label.numpy() < 5)
    out, result = record(Baselines, {"data": few}, **FEW, methods=("platt",))
    assert "top5_accuracy" not in out.arrays
    assert "top-5" not in str(check_report(Baselines, result).tables)


def test_of_equal_probabilities_the_lower_classes_come_first():
    rng = np.random.default_rng(0)
    p, label = rng.integers(3, size=(200, 7)) / 7, rng.integers(7, size=200)
    expected = [y in sorted(range(7), key=lambda k: (-row[k], k))[:5] for row, y in zip(p, label, strict=True)]
    assert label_among(p, label, 5).tolist() == expected
