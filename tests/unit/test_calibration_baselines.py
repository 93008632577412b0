"""The standard recalibrators as methods, one by one and compared."""

import numpy as np
import pytest
import xarray as xr
from scipy.special import softmax
from workbench.errors import InputError
from workbench.toolkit import kfold_indices

from unit.calibration_samples import skewed
from unit.recording_out import check_report, record
from workbench_calibration.baselines import FOLDS, Baselines, recalibrators
from workbench_calibration.bbq import BayesianBinning
from workbench_calibration.beta import BetaCalibration
from workbench_calibration.choice import CHOSEN, KEPT
from workbench_calibration.ensemble_temperature import EnsembleTemperatureScaling
from workbench_calibration.h_calibration import HCalibration
from workbench_calibration.histogram_binning import HistogramBinning
from workbench_calibration.isotonic import Isotonic
from workbench_calibration.matrix_scaling import (
    DirichletCalibration,
    MatrixScaling,
    fit_matrix,
)
from workbench_calibration.platt import PlattScaling
from workbench_calibration.samples import InMemory, Samples
from workbench_calibration.spline import SplineCalibration
from workbench_calibration.temperature import TemperatureScaling, fit_temperature
from workbench_calibration.vector_scaling import VectorScaling

FEW = {"resamples": 100, "chance_draws": 20}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (VectorScaling, {}),
        (MatrixScaling, {"odir_lambda": 1.0}),
        (DirichletCalibration, {"odir_lambda": 0.0, "odir_mu": 0.0}),
        (Isotonic, {}),
        (Isotonic, {"variant": "multi_class"}),
        (HistogramBinning, {"binning": "mass"}),
        (BayesianBinning, {}),
        (EnsembleTemperatureScaling, {"loss": "nll"}),
        (SplineCalibration, {}),
        (BetaCalibration, {}),
        (PlattScaling, {}),
    ],
)
def test_every_method_improves_an_overconfident_classifier_and_reports_it(method, params):
    logit, label = skewed(1200, 4)
    data = xr.Dataset({"logit": (("sample", "class"), 2 * logit.numpy()), "label": ("sample", label.numpy())})
    out, result = record(method, {"data": data}, **FEW, **params)
    report = check_report(method, result)
    name = str(result["value"]["recalibrator"].values[-1])
    for metric in ("ece_width_l1", "brier_score"):
        before, after = (float(result["value"].sel(recalibrator=m, metric=metric)) for m in ("uncalibrated", name))
        assert after < 0.9 * before, metric
    assert out.arrays["probability"].sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert "goes from" in report.summary
    again, _ = record(method, {"data": data}, **FEW, **params)
    assert np.array_equal(again.arrays["probability"], out.arrays["probability"])


@pytest.mark.parametrize(
    ("method", "params"),
    [(Baselines, {"methods": ("histogram_binning",)}), (MatrixScaling, {}), (DirichletCalibration, {"odir_mu": 1.0})],
)
def test_too_few_samples_to_cross_validate_are_named_as_what_the_user_gave(method, params):
    logit, label = skewed(4, 2)
    data = xr.Dataset({"logit": (("sample", "class"), logit.numpy()), "label": ("sample", label.numpy())})
    with pytest.raises(InputError) as caught:
        record(method, {"data": data}, **FEW, **params)
    assert caught.value.argument == "data"
    assert str(caught.value).startswith("data: expected at least 3 samples to fit on, one for each fold")
    assert "got 2." in str(caught.value)
    assert "fit_fraction" in caught.value.hint
    record(method, {"data": data}, **FEW, **params, fit_fraction=0.75)  # 3 of the 4


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (TemperatureScaling, {}),
        (VectorScaling, {}),
        (MatrixScaling, {"odir_lambda": 1.0, "odir_mu": 1.0}),
        (Isotonic, {}),
        (HistogramBinning, {}),
        (BayesianBinning, {}),
        (EnsembleTemperatureScaling, {}),
        (SplineCalibration, {}),
        (SplineCalibration, {"rank": 2}),
        (BetaCalibration, {}),
        (PlattScaling, {}),
    ],
)
def test_the_smallest_sets_that_are_accepted_give_probabilities(method, params):
    logit, label = skewed(4, 2)
    data = xr.Dataset({"logit": (("sample", "class"), logit.numpy()), "label": ("sample", label.numpy())})
    out, result = record(method, {"data": data}, **FEW, **params)
    assert out.arrays["probability"].sum(axis=1) == pytest.approx(1, abs=1e-5)
    check_report(method, result)


@pytest.mark.parametrize("name", sorted(recalibrators(0)))
def test_every_recalibrator_fits_blocks_that_are_read_anew_as_it_fits_samples_in_memory(monkeypatch, name):
    """A few rows and columns at a time, and none of the logits kept: the map is the same."""
    logit, label = skewed(160, 5)
    whole = recalibrators(0)[name](Samples.of(logit, label))(logit)
    largest = 0

    class Watched(InMemory):
        def read(self, rows):
            nonlocal largest
            largest = max(largest, len(rows))
            return super().read(rows)

    for module, limit in (
        ("samples", "IN_MEMORY_ENTRIES"),
        ("samples", "BLOCK_ENTRIES"),
        ("per_class", "COLUMN_ENTRIES"),
    ):
        monkeypatch.setattr(f"workbench_calibration.{module}.{limit}", 150)
    pieces = recalibrators(0)[name](Samples(Watched(logit), label, np.arange(160)))(logit)
    assert largest == 30
    assert pieces.numpy() == pytest.approx(whole.numpy(), abs=1e-6)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (TemperatureScaling, {}),
        (VectorScaling, {}),
        (MatrixScaling, {"odir_lambda": 1.0, "odir_mu": 1.0}),
        (DirichletCalibration, {"odir_lambda": 1.0, "odir_mu": 1.0}),
        (Isotonic, {}),
        (HistogramBinning, {}),
        (BayesianBinning, {}),
        (EnsembleTemperatureScaling, {}),
        (SplineCalibration, {}),
        (BetaCalibration, {}),
        (PlattScaling, {}),
        (Baselines, {"methods": ("temperature", "isotonic_multi_class")}),
        (HCalibration, {"maps": ("linear-2", "pwlinear-10"), "epochs": 3, "window": 20, "baselines": ("platt", "bbq")}),
    ],
)
def test_no_method_fits_or_selects_by_the_labels_it_is_judged_on(method, params):
    """Other labels of the report rows: the same probabilities. The rows themselves are apart."""
    logit, label = skewed(240, 3)
    data = xr.Dataset({"logit": (("sample", "class"), logit.numpy()), "label": ("sample", label.numpy())})
    fit, report = data.isel(sample=slice(120)), data.isel(sample=slice(120, None))
    turned = report.assign(label=(report["label"] + 1) % 3)
    one, other = (record(method, {"fit": fit, "data": part}, **FEW, **params)[0].arrays for part in (report, turned))
    assert np.array_equal(one["probability"], other["probability"])
    assert not np.array_equal(one["value"], other["value"])
    alone, _ = record(method, {"data": data}, **FEW, **params)
    rows = [*alone.arrays["fit_index"], *alone.arrays["sample_index"]]
    assert sorted(rows) == list(range(240))


def test_the_comparison_suggests_by_the_fit_samples_and_ranks_on_the_others():
    logit, label = skewed(600, 3)
    data = xr.Dataset({"logit": (("sample", "class"), 2 * logit.numpy()), "label": ("sample", label.numpy())})
    names = ("temperature", "vector_scaling", "histogram_binning")
    out, result = record(Baselines, {"data": data}, **FEW, methods=names)
    report = check_report(Baselines, result)
    held = dict(zip(names, out.arrays["cross_validated"][1:], strict=True))
    suggested = str(result["suggested"].values)
    assert list(out.arrays["reason"])[1 + names.index(suggested)] == CHOSEN
    assert suggested in report.summary
    fit = out.arrays["fit_index"]
    manual, folds = np.empty(len(fit)), kfold_indices(label[fit].numpy(), FOLDS, seed=0)
    for rest, fold in folds:
        map_ = fit_temperature(Samples.of(2 * logit[fit][rest], label[fit][rest]))
        manual[fold] = -np.log(map_(2 * logit[fit][fold]).numpy()[np.arange(len(fold)), label[fit][fold]])
    assert held["temperature"] == pytest.approx(manual.mean())
    assert out.arrays["fitted_numbers"].tolist()[:3] == [0, 1, 6]
    assert out.arrays["probability"] == pytest.approx(out.arrays["method_probability"][1 + names.index(suggested)])
    assert out.arrays["rank"].sum() == pytest.approx(4 * 5 / 2)
    with pytest.raises(InputError, match="softmax"):
        record(Baselines, {"data": data}, methods=("softmax",))


def test_the_comparison_says_when_no_recalibrator_is_needed():
    """Labels drawn from the very probabilities: nothing can improve them but by chance, and binning loses detail."""
    logit = 1.5 * np.random.default_rng(0).standard_normal((600, 4))
    label = (np.random.default_rng(1).random((600, 1)) > softmax(logit, axis=1).cumsum(axis=1)).sum(axis=1).clip(max=3)
    names = ("histogram_binning", "isotonic_one_vs_rest")
    for sharpness, needless in ((1, True), (4, False)):
        data = xr.Dataset({"logit": (("sample", "class"), sharpness * logit), "label": ("sample", label)})
        out, result = record(Baselines, {"data": data}, **FEW, methods=names)
        fit = out.arrays["fit_index"]
        p = softmax(sharpness * logit[fit], axis=1)
        untouched = -np.log(p[np.arange(len(fit)), label[fit]]).mean()
        assert out.arrays["cross_validated"][0] == pytest.approx(untouched)
        assert (untouched <= out.arrays["cross_validated"].min()) == needless
        report = check_report(Baselines, result)
        assert report.summary.startswith("Keep the uncalibrated probabilities") == needless
        assert (str(result["suggested"].values) == "uncalibrated") == needless
        stored = out.arrays["method_probability"][0 if needless else 1 + names.index(str(result["suggested"].values))]
        assert out.arrays["probability"] == pytest.approx(stored)
        shown = next(table for table in report.tables if table.title == "Which should I use?").rows
        assert (shown[0][0] == "uncalibrated") == needless
        assert ({row[0]: row[-1] for row in shown}["uncalibrated"] == KEPT) == needless


@pytest.mark.parametrize("name", ["matrix_scaling", "dirichlet"])
def test_the_comparison_draws_the_folds_of_matrix_penalties_by_the_seed_of_the_run(monkeypatch, name):
    """As the methods of their own do; the penalties are given here, since only the seed matters."""
    seeds = []

    def given_penalties(samples, *, kind, off_diagonal, intercept, seed):
        assert (off_diagonal, intercept) == (None, None)
        seeds.append(seed)
        return fit_matrix(samples, kind=kind, off_diagonal=1.0, intercept=1.0, seed=seed)

    monkeypatch.setattr("workbench_calibration.baselines.fit_matrix", given_penalties)
    logit, label = skewed(200, 3)
    data = xr.Dataset({"logit": (("sample", "class"), logit.numpy()), "label": ("sample", label.numpy())})
    record(Baselines, {"data": data}, seed=7, **FEW, methods=(name,))
    assert seeds == [7] * 4  # three folds and the whole


def test_every_method_of_the_family_is_listed_under_its_own_id_and_title():
    from workbench_calibration import workbench_methods

    references = workbench_methods()
    assert [reference.id for reference in references] == sorted(reference.id for reference in references)
    for reference in references:
        assert reference.load().title == reference.title
