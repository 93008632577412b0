"""Intervals that cover the noise of the fit: draws of fit and report samples by hand, what they keep, and how wide they are."""

import numpy as np
import pytest
import torch
import xarray as xr
from workbench.toolkit import calibration_metrics

from unit.calibration_samples import skewed
from unit.recording_out import check_report, record
from workbench_calibration.affine import fit_diagonal
from workbench_calibration.baselines import Baselines
from workbench_calibration.matrix_scaling import fit_matrix
from workbench_calibration.refitting import refit_change, refit_interval, refitted_metrics
from workbench_calibration.resampling import RESAMPLED, ResampleCounts, metric_interval
from workbench_calibration.samples import Parts, Samples, Scores
from workbench_calibration.temperature import fit_temperature

FEW = {"resamples": 100, "chance_draws": 20}


def halves(samples=120, classes=3):
    logit, label = skewed(samples, classes)
    half = samples // 2
    return Parts(Samples.of(logit[:half], label[:half]), Samples.of(logit[half:], label[half:]), -1, 0)


@pytest.mark.parametrize("kept", [True, False])
def test_samples_that_are_drawn_twice_are_read_twice(monkeypatch, kept):
    """As many rows as their span holds, and yet not that span: 0, 0, 2."""
    logit, label = skewed(40, 3)
    rows = np.array([0, 0, 2, 5, 5, 5])
    monkeypatch.setattr("workbench_calibration.samples.IN_MEMORY_ENTRIES", 10_000 if kept else 10)
    data = xr.Dataset({"logit": (("sample", "class"), logit.numpy())})
    stored = Scores("data", data, torch.device("cpu"))
    list(stored.scan())
    for samples in (Samples.of(logit, label), Samples(stored, label, np.arange(40))):
        found = torch.cat([block for block, _ in samples.subset(rows).stored_blocks()])
        assert torch.equal(found, logit[rows])
        assert torch.equal(samples.subset(rows[:3]).logit, logit[[0, 0, 2]])


def test_a_draw_fits_resampled_samples_and_judges_by_resampled_others():
    """By hand, from the same stream of random numbers; the metrics are the toolkit's on the repeated rows."""
    parts, rng = halves(), np.random.default_rng(3)
    drawn = refitted_metrics(
        parts, {"vector": fit_diagonal}, uncalibrated="none", n_bins=7, draws=3, rng=np.random.default_rng(3)
    )
    for draw in range(3):
        rows = rng.integers(60, size=60)
        map_ = fit_diagonal(Samples.of(parts.fit.logit[rows], parts.fit.label[rows]))
        counts = ResampleCounts(60, 1, rng).of_samples(slice(0, 60))[0]
        judged = np.repeat(np.arange(60), counts)
        for name, calibrate in (("vector", map_), ("none", lambda logit: torch.softmax(logit, 1))):
            expected = calibration_metrics(
                calibrate(parts.report.logit)[judged].numpy(), parts.report.label[judged].numpy(), n_bins=7
            )
            for metric in RESAMPLED:
                assert drawn[name][metric][draw] == pytest.approx(expected[metric], abs=1e-6), (name, metric)


def test_what_fits_more_numbers_to_few_samples_is_less_sure():
    """Twelve numbers from 60 samples against one: their likelihoods vary more than those of maps that are held fixed."""
    parts = halves(classes=6)
    spread = {}
    for name, fit in (("temperature", fit_temperature), ("vector", fit_diagonal)):
        map_ = fit(parts.fit)
        for kind, one in (("anew", fit), ("fixed", lambda _, m=map_: m)):
            drawn = refitted_metrics(parts, {name: one}, uncalibrated="none", n_bins=15, draws=30,
                                     rng=np.random.default_rng(0))  # fmt: skip
            gain = drawn[name]["negative_log_likelihood"] - drawn["none"]["negative_log_likelihood"]
            spread[name, kind] = gain.std()
    assert spread["vector", "anew"] > 1.3 * spread["vector", "fixed"]
    assert spread["vector", "anew"] / spread["vector", "fixed"] > spread["temperature", "anew"] / spread["temperature", "fixed"]


def test_intervals_are_centred_at_the_value_and_those_of_errors_hold_the_reflected_one():
    draws = np.linspace(0.5, 0.7, 2001)  # mean 0.6: above the value, as of maps fitted on fewer different samples
    assert refit_interval("negative_log_likelihood", 0.55, draws) == pytest.approx((0.455, 0.645), abs=1e-3)
    assert refit_interval("accuracy", 0.97, draws)[1] == 1
    low, high = refit_interval("ks_error", 0.55, draws)
    reflected = metric_interval("ks_error", 0.55, draws)
    assert (low, high) == pytest.approx((min(0.455, reflected[0]), max(0.645, reflected[1])), abs=1e-3)
    assert refit_interval("ks_error", 0.01, draws)[0] == 0
    assert refit_interval("overconfidence", 0.01, draws)[0] < 0
    zero = {"brier_score": np.zeros(2001)}
    change = refit_change({"brier_score": draws}, zero, "brier_score", -0.1)
    assert change == pytest.approx((-0.195, -0.005), abs=1e-3)


def test_the_comparison_shows_them_beside_those_of_the_fitted_maps(monkeypatch):
    """Penalties are kept as they were chosen: samples that occur twice would stand in both parts of a fold."""
    penalties = []

    def watched(samples, *, kind, off_diagonal, intercept, seed):
        penalties.append((off_diagonal, intercept))
        first, second = (1.0, 2.0) if off_diagonal is None else (off_diagonal, intercept)  # found without a search, for speed
        return fit_matrix(samples, kind=kind, off_diagonal=first, intercept=second, seed=seed)

    monkeypatch.setattr("workbench_calibration.baselines.fit_matrix", watched)
    logit, label = skewed(120, 2)
    data = xr.Dataset({"logit": (("sample", "class"), logit.numpy()), "label": ("sample", label.numpy())})
    names = ("temperature", "matrix_scaling")
    out, result = record(Baselines, {"data": data}, methods=names, fit_draws=4, **FEW)
    assert penalties == [(None, None)] * 4 + [(1.0, 2.0)] * 4  # the whole and three folds, then the draws
    assert out.arrays["refit_draw"].shape == (3, len(RESAMPLED), 4)
    low, high = out.arrays["refit_lower"], out.arrays["refit_upper"]
    value = result["value"].sel(metric=list(RESAMPLED)).values
    assert ((low <= value) & (value <= high)).all()
    assert (out.arrays["refit_change_lower"][0] == 0).all()
    report = check_report(Baselines, result)
    table = next(table for table in report.tables if table.title == "Fitted anew")
    assert [row[0] for row in table.rows] == ["uncalibrated", *names]
    assert table.rows[0][-1] == ""
    assert any("but those of the table of methods fitted anew" in note for note in report.notes)
    plain, result = record(Baselines, {"data": data}, methods=("temperature",), **FEW)
    assert "refit_draw" not in plain.arrays
    assert "Fitted anew" not in [table.title for table in check_report(Baselines, result).tables]
    assert float(plain.arrays["temperature"]) == pytest.approx(float(out.arrays["temperature"]))


def test_every_resample_is_stored_and_gives_the_intervals_that_are_printed():
    logit, label = skewed(200, 3)
    data = xr.Dataset({"logit": (("sample", "class"), logit.numpy()), "label": ("sample", label.numpy())})
    out, _ = record(Baselines, {"data": data}, methods=("temperature", "platt"), **FEW)
    draws = out.arrays["metric_draw"].astype(np.float64)
    assert draws.shape == (3, len(RESAMPLED), 100)
    metrics = list(out.coordinates["metric"][1])
    for row in range(3):
        for column, name in enumerate(RESAMPLED):
            at = metrics.index(name)
            expected = metric_interval(name, out.arrays["value"][row, at], draws[row, column])
            assert (out.arrays["lower"][row, at], out.arrays["upper"][row, at]) == pytest.approx(expected, abs=1e-6)


def test_labels_without_any_probability_are_counted_apart_from_those_with_little():
    logit, label = skewed(400, 4)
    data = xr.Dataset({"logit": (("sample", "class"), 3 * logit.numpy()), "label": ("sample", label.numpy())})
    out, result = record(Baselines, {"data": data}, methods=("temperature", "isotonic_one_vs_rest"), **FEW)
    p, own = out.arrays["method_probability"], out.arrays["label"]
    at_label = p[:, np.arange(len(own)), own]
    assert out.arrays["zeros"].tolist() == (at_label <= 0).sum(axis=1).tolist()
    assert out.arrays["zeros"][2] > 0
    assert (out.arrays["zeros"] <= out.arrays["clipped"]).all()
    rows = next(table for table in check_report(Baselines, result).tables if table.title == "Fit against report samples").rows
    assert [row[-1] for row in rows] == out.arrays["zeros"].tolist()


def test_values_that_chance_alone_can_give_are_marked():
    rng = np.random.default_rng(0)
    logit = 1.5 * rng.standard_normal((300, 3))
    label = (logit + rng.gumbel(size=logit.shape)).argmax(axis=1)  # drawn from the softmax of the logits
    data = xr.Dataset({"logit": (("sample", "class"), 3 * logit), "label": ("sample", label)})
    _, result = record(Baselines, {"data": data}, methods=("temperature",), **FEW)
    table = next(table for table in check_report(Baselines, result).tables if table.title == "Before and after")
    at = table.columns.index("by chance alone")
    found = {}
    for row in table.rows:
        low, high = (float(result[f"chance_{end}"].sel(recalibrator=row[1], metric=row[0])) for end in ("lower", "upper"))
        value = float(result["value"].sel(recalibrator=row[1], metric=row[0]))
        found[row[0], row[1]] = row[at].endswith(", within")
        is_error = row[0] in ("ece_width_l1", "ece_mass_l1", "ks_error", "classwise_ece_width_mean")
        assert found[row[0], row[1]] == (value <= high and (is_error or low <= value))
    assert not found["ece_width_l1", "uncalibrated"]
    assert any(within for (_, name), within in found.items() if name == "temperature")
