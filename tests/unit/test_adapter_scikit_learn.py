"""Calibrators of scikit-learn as methods: the library's own probabilities, and Platt's likelihood at its minimum."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import workbench
import xarray as xr
from scipy import optimize, special
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from workbench.errors import InputError, RunFailedError
from workbench.host import Host

from workbench_adapters.scikit_learn import GivenLogits, SklearnCalibrator, SklearnSigmoid, fit_estimator
from workbench_calibration import samples
from workbench_calibration.recalibration import recalibrate

SMALL = {"resamples": 100, "chance_draws": 20, "n_bins": 5, "progress": False}


class SklearnIsotonic(SklearnCalibrator):
    id = "calibration.sklearn_isotonic"
    title = "Isotonic calibration one class against the rest, as scikit-learn does it"

    def estimator(self, params, classifier, rows):
        return CalibratedClassifierCV(classifier, method="isotonic", ensemble=False, cv=rows)


class SklearnLogistic(SklearnCalibrator):
    id = "calibration.sklearn_logistic"
    title = "A logistic regression on the logits"

    def estimator(self, params, classifier, rows):
        return LogisticRegression()


@pytest.fixture
def bench(tmp_path):
    return workbench.open(tmp_path / "store", host=Host(found=[]))


def logits(count: int, classes: int, seed: int = 0) -> xr.Dataset:
    """Labels drawn from softmax(z), and logits three times too large."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.standard_normal((count, classes))
    label = (special.softmax(z, axis=1).cumsum(1) < rng.random((count, 1))).sum(1)
    return xr.Dataset({"logit": (("sample", "class"), 3 * z), "label": ("sample", np.minimum(label, classes - 1))})


@pytest.mark.parametrize("classes", [2, 4])
def test_probabilities_are_those_of_scikit_learn_called_directly(bench, classes):
    fit, data = logits(300, classes), logits(200, classes, seed=1)
    run = bench.run(SklearnSigmoid, data=data, fit=fit, **SMALL)
    # scikit-learn's own folds: a frozen classifier predicts the same whichever rows it was not trained on.
    direct = CalibratedClassifierCV(FrozenEstimator(GivenLogits(classes)), method="sigmoid", ensemble=False)
    direct.fit(fit["logit"].values, fit["label"].values)
    expected = direct.predict_proba(data["logit"].values)
    order = run["sample_index"].values
    assert np.allclose(run["probability"], expected[order], atol=1e-6)
    top = data["logit"].values[order].argmax(1)
    assert np.allclose(run["confidence_after"], expected[order, top])
    before = special.softmax(data["logit"].values[order], axis=1)
    assert np.allclose(run["confidence_before"], before.max(1))


def test_the_sigmoid_of_two_classes_minimises_platts_likelihood():
    data = logits(400, 2)
    decision, label = np.diff(data["logit"].values, axis=1)[:, 0], data["label"].values
    positives, negatives = (label == 1).sum(), (label == 0).sum()
    target = np.where(label == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))  # Platt 1999, section 2.2

    def likelihood(line: np.ndarray) -> float:
        p = line[0] * decision + line[1]
        return float((np.logaddexp(0, p) - target * p).mean())

    best = optimize.minimize(likelihood, np.zeros(2), method="BFGS", options={"gtol": 1e-9}).x
    calibrate = fit_estimator(
        SklearnSigmoid(), None, torch.from_numpy(data["logit"].values), torch.from_numpy(data["label"].values)
    )
    found = calibrate(torch.from_numpy(data["logit"].values))[:, 1].numpy()
    assert np.allclose(found, special.expit(best[0] * decision + best[1]), atol=1e-4)
    assert best[0] == pytest.approx(1 / 3, abs=0.1)  # the logits are three times too large


def test_calibration_helps_where_logits_are_too_large(bench):
    run = bench.run(SklearnSigmoid, data=logits(2000, 4), **SMALL)
    assert run.metrics["ece_width_l1"] < 0.7 * run.metrics["ece_width_l1_uncalibrated"]
    assert run.metrics["negative_log_likelihood_change"] < 0
    assert {str(name) for name in run["value"]["recalibrator"].values} == {"uncalibrated", "temperature", "sklearn_sigmoid"}


@pytest.mark.parametrize("method", [SklearnIsotonic, SklearnLogistic])
def test_another_calibrator_in_a_few_lines(bench, method):
    fit, data = logits(300, 3), logits(100, 3, seed=1)
    run = bench.run(method, data=data, fit=fit, **SMALL)
    direct = method().estimator(None, FrozenEstimator(GivenLogits(3)), 5).fit(fit["logit"].values, fit["label"].values)
    assert np.allclose(run["probability"], direct.predict_proba(data["logit"].values)[run["sample_index"]], atol=1e-6)


def test_a_class_without_fit_samples_is_named(bench):
    fit = logits(50, 3)
    fit["label"] = fit["label"].where(fit["label"] != 1, 0)
    with pytest.raises(RunFailedError, match="none of 1") as caught:
        bench.run(SklearnSigmoid, data=logits(50, 3, seed=1), fit=fit, **SMALL)
    assert isinstance(caught.value.__cause__, InputError)


def test_the_rows_to_judge_by_are_read_in_blocks(bench, monkeypatch):
    data = logits(200, 4)
    whole = bench.run(SklearnSigmoid, data=data, **SMALL)
    for name, entries in (("IN_MEMORY_ENTRIES", 100), ("BLOCK_ENTRIES", 40)):
        monkeypatch.setattr(samples, name, entries)
    monkeypatch.setattr(
        samples.Samples, "logit", property(lambda rows: pytest.fail("all logits were read")), raising=True
    )
    given = fit_estimator(SklearnSigmoid(), None, *(torch.from_numpy(data.isel(sample=whole["fit_index"].values)[name].values)
                                                    for name in ("logit", "label")))  # fmt: skip
    monkeypatch.setattr("workbench_adapters.scikit_learn.recalibrate", partial(fitted_as, given))
    blocks = bench.run(SklearnSigmoid, data=data, force=True, **SMALL)
    for name in ("probability", "confidence_before", "confidence_after"):
        assert np.allclose(blocks[name], whole[name], atol=1e-7)


def fitted_as(calibrate, inputs, params, out, *, name, fit):
    """`recalibrate` with a given map, so that nothing needs the fit rows at once."""
    return recalibrate(inputs, params, out, name=name, fit=lambda rows: calibrate)


def test_more_fit_logits_than_fit_into_memory_are_refused(bench):
    class Small(SklearnSigmoid):
        id = "calibration.sklearn_small"
        most_fit_logits = 399

    with pytest.raises(RunFailedError, match="fit_fraction: expected fit samples with at most 399 logits") as caught:
        bench.run(Small, data=logits(200, 4), **SMALL)
    assert isinstance(caught.value.__cause__, InputError)
    assert "100 samples of 4 classes (400 logits)" in str(caught.value)
    with pytest.raises(RunFailedError, match="fit: expected fit samples"):
        bench.run(Small, data=logits(50, 4), fit=logits(100, 4, seed=1), **SMALL)
    bench.run(Small, data=logits(198, 4), **SMALL)
