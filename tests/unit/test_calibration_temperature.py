"""Temperature scaling, and how every recalibrator splits, fits and reports."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.special import softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from workbench import InputError
from workbench.toolkit import calibration_metrics

from unit.calibration_cases import dataset, overconfident, tensors
from unit.recording_out import check_report, record
from workbench_calibration import samples as samples_module
from workbench_calibration.evaluation import Evaluated
from workbench_calibration.samples import Samples, log_probability, read_parts
from workbench_calibration.temperature import (
    TemperatureScaling,
    fit_temperature,
    likelihood_curve,
    moments,
    scaled_likelihood,
)

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "classifier_outputs"
FEW = {"resamples": 100, "chance_draws": 20}


# -------------------------------------------------------------------------------------------------------- temperature


def test_the_gradient_vanishes_at_the_fitted_temperature_and_the_likelihood_is_lowest_there():
    logit, label = tensors(*overconfident())
    fitted = fit_temperature(Samples.of(logit, label))
    assert abs(fitted.gradient) < 1e-7
    best = scaled_likelihood(logit, label, fitted.temperature)
    assert all(scaled_likelihood(logit, label, float(t)) > best for t in fitted.temperature * np.array([0.98, 1.02]))


def test_scikit_learn_finds_the_same_temperature():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((800, 6))
    y = (x @ rng.standard_normal((6, 4)) + 3 * rng.gumbel(size=(800, 4))).argmax(axis=1)
    model = LogisticRegression(C=1e4, max_iter=500).fit(x[:60], y[:60])  # few samples: overconfident
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature", ensemble=False, cv=2)
    theirs.fit(x[60:], y[60:])
    ours = fit_temperature(Samples.of(*tensors(model.decision_function(x[60:]), y[60:])))
    assert ours.temperature > 1.5
    expected = theirs.predict_proba(x[60:])
    assert ours(torch.as_tensor(model.decision_function(x[60:]))).numpy() == pytest.approx(expected, abs=1e-4)


def test_the_true_temperature_is_found_and_lies_in_its_interval_as_often_as_it_should():
    covered, width = 0, []
    for seed in range(200):
        fitted = fit_temperature(Samples.of(*tensors(*overconfident(300, 4, seed=seed))))
        covered += fitted.lower <= 2.0 <= fitted.upper
        width.append(fitted.upper - fitted.lower)
    assert 180 <= covered <= 199  # 190 expected
    assert 0.1 < np.mean(width) < 2
    assert fit_temperature(Samples.of(*tensors(*overconfident(50_000, 4)))).temperature == pytest.approx(2.0, rel=0.02)


def test_samples_that_are_all_right_end_at_the_bound_and_the_report_says_so():
    rng = np.random.default_rng(0)
    logit = rng.standard_normal((60, 3))
    out, result = record(TemperatureScaling, {"data": dataset(logit, logit.argmax(axis=1))}, **FEW)
    report = check_report(TemperatureScaling, result)
    assert float(out.arrays["temperature"]) == pytest.approx(np.exp(-3), rel=1e-3)
    assert any("end of the range" in note for note in report.notes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saturated_samples_end_at_the_bound_that_they_point_to(dtype):
    """Differences of logits so large that every probability is 0 or 1: the likelihood has no curvature left."""
    label = np.tile([0, 1, 2], 40)
    right = 1e5 * np.eye(3)[label]
    wrong = right.copy()
    wrong[:30] = wrong[:30, ::-1]
    for logit, temperature in ((right, np.exp(-3)), (wrong, np.exp(3))):
        fitted = fit_temperature(Samples.of(*tensors(logit.astype(dtype), label)))
        assert fitted.temperature == pytest.approx(temperature)
        assert fitted.at_bound
        assert (fitted.lower, fitted.upper) == (0, np.inf)  # nothing is known of it
    equal = fit_temperature(Samples.of(*tensors(np.ones((120, 3), dtype), label)))
    assert equal.temperature == 1
    assert not equal.at_bound


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masked_classes_at_the_lowest_number_of_the_type_change_nothing(dtype):
    logit, label = overconfident()
    logit = np.concatenate([logit, np.full((len(logit), 1), np.finfo(dtype).min)], axis=1).astype(dtype)
    plain = logit.copy()
    plain[:, -1] = -1e4
    found, expected = (
        record(TemperatureScaling, {"data": dataset(one, label)}, **FEW)[0].arrays for one in (logit, plain)
    )
    for name in ("temperature", "temperature_lower", "temperature_upper", "report_curve", "probability", "value"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-12, err_msg=name)
    assert np.isfinite(found["temperature_upper"])


def test_predictions_never_change_and_a_map_that_changes_one_is_refused():
    logit, label = overconfident()
    _, result = record(TemperatureScaling, {"data": dataset(logit, label)}, **FEW)
    assert (result["changed_predictions"].values == 0).all()
    with pytest.raises(RuntimeError, match=r"a map keeps .* yet 1 predictions changed"):
        Evaluated({}, {"a map": 1}, {}).require_kept_predictions("a map")


# ---------------------------------------------------------------------------------------------------- fit and report


def test_one_data_set_is_split_into_stratified_parts_and_a_separate_fit_set_leaves_it_whole():
    logit, label = overconfident(200)
    data = dataset(logit, label)
    parts = read_parts({"data": data}, fit_fraction=0.3, seed=1, device=torch.device("cpu"))
    assert len(parts.fit.label) == 60
    assert sorted([*parts.fit.index, *parts.report.index]) == list(range(200))
    assert np.abs(np.bincount(label[parts.fit.index], minlength=5) - 0.3 * np.bincount(label, minlength=5)).max() <= 1
    other = dataset(*overconfident(100, seed=1))
    parts = read_parts({"data": data, "fit": other}, fit_fraction=0.3, seed=1, device=torch.device("cpu"))
    assert (len(parts.fit.label), len(parts.report.label), parts.shared) == (100, 200, 0)


def test_fitting_on_the_rows_reported_on_is_refused_and_overlap_is_noted():
    data = dataset(*overconfident(100))
    with pytest.raises(InputError, match="every row of data"):
        record(TemperatureScaling, {"data": data, "fit": data}, **FEW)
    _, result = record(TemperatureScaling, {"data": data, "fit": data.isel(sample=slice(60))}, **FEW)
    assert any("60 rows" in note for note in check_report(TemperatureScaling, result).notes)


def test_the_labels_of_the_report_rows_do_not_touch_the_fit():
    logit, label = overconfident(200)
    fit = dataset(*overconfident(100, seed=1))
    one, _ = record(TemperatureScaling, {"data": dataset(logit, label), "fit": fit}, **FEW)
    other, _ = record(TemperatureScaling, {"data": dataset(logit, (label + 1) % 5), "fit": fit}, **FEW)
    assert np.array_equal(one.arrays["probability"], other.arrays["probability"])


def test_probabilities_are_taken_as_log_p_with_zeros_raised():
    p = np.array([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25]])
    logit, raised = log_probability(torch.as_tensor(p))
    assert raised == 2
    assert logit.exp().numpy() == pytest.approx(p, abs=1e-12)
    assert torch.isfinite(logit).all()
    scores, label = overconfident(200)
    from_logit, _ = record(TemperatureScaling, {"data": dataset(scores, label)}, **FEW)
    from_p, result = record(TemperatureScaling, {"data": dataset(softmax(scores, axis=1), label, "probability")}, **FEW)
    assert from_p.arrays["temperature"] == pytest.approx(from_logit.arrays["temperature"], rel=1e-6)
    assert any("Probabilities were given" in note for note in check_report(TemperatureScaling, result).notes)


def test_one_column_is_the_second_of_two_classes():
    logit, label = overconfident(200, 2)
    two, _ = record(TemperatureScaling, {"data": dataset(logit, label)}, **FEW)
    one, _ = record(TemperatureScaling, {"data": dataset(logit[:, 1:] - logit[:, :1], label)}, **FEW)
    assert one.arrays["temperature"] == pytest.approx(two.arrays["temperature"])


def test_the_output_of_a_run_is_the_input_of_the_next():
    logit, label = overconfident(400)
    out, _ = record(TemperatureScaling, {"data": dataset(logit, label)}, **FEW)
    again, _ = record(TemperatureScaling, {"data": out.data[["logit", "label", "probability"]]}, seed=3, **FEW)
    assert float(again.arrays["temperature"]) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop_vars("logit"), "logit"),
        (
            lambda d: d.assign(label=d.label + 1),
            r"data\['label'\]: expected whole numbers of classes, 0 to 4, got 1 to 5",
        ),
        (lambda d: d.assign(label=d.label + 0.5), "got fractions among 0.5 to 4.5"),
        (lambda d: d.assign(label=d.label.where(d.label > 0)), r"data\['label'\]: .*, got NaN"),
        (lambda d: d.isel({"class": [0]}), "got 0 to 4. A single column of scores is that of class 1 of two"),
        (lambda d: d.isel(sample=slice(3)), "at least 4 samples"),
        (lambda d: d.assign(logit=d.logit * np.inf), "finite"),
        (lambda d: d.rename(logit="probability"), "probability"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(change, message):
    with pytest.raises(InputError, match=message):
        record(TemperatureScaling, {"data": change(dataset(*overconfident(40)))}, **FEW)


def test_samples_of_a_single_class_are_judged_and_the_report_says_how_little_that_tells():
    data = dataset(*overconfident(60))
    _, result = record(TemperatureScaling, {"data": data.assign(label=0 * data.label)}, **FEW)
    assert any(
        note.startswith("Every report sample is of class 0") for note in check_report(TemperatureScaling, result).notes
    )


@pytest.mark.parametrize("name", ["logit", "probability"])
def test_a_run_in_blocks_that_are_read_anew_is_the_run_in_memory(monkeypatch, name):
    """As for logits larger than memory: nothing is kept, every pass reads a few rows at a time."""
    scores, label = overconfident(403)
    data = dataset(softmax(scores, axis=1) if name == "probability" else scores, label, name)
    other = dataset(*overconfident(101, seed=1))
    for inputs in ({"data": data}, {"data": data, "fit": other}):
        monkeypatch.undo()
        whole, _ = record(TemperatureScaling, inputs, **FEW)
        monkeypatch.setattr(samples_module, "IN_MEMORY_ENTRIES", 100)
        monkeypatch.setattr(samples_module, "BLOCK_ENTRIES", 64)
        pieces, result = record(TemperatureScaling, inputs, **FEW)
        check_report(TemperatureScaling, result)
        for array, values in whole.arrays.items():
            if values.dtype.kind == "f":
                assert pieces.arrays[array] == pytest.approx(values, rel=1e-6, abs=1e-7, nan_ok=True), array
            else:
                assert np.array_equal(pieces.arrays[array], values), array


def test_many_logits_are_fitted_from_a_sketch_and_reach_the_same_optimum(monkeypatch):
    logit, label = tensors(*overconfident(3000, 5))
    expected = fit_temperature(Samples.of(logit, label))
    monkeypatch.setattr("workbench_calibration.temperature.SKETCH_ENTRIES", 500)
    found = fit_temperature(Samples.of(logit, label))
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-12)
    # the ends come from the derivatives at the last point but one
    assert (found.lower, found.upper) == pytest.approx((expected.lower, expected.upper), rel=1e-5)


def test_single_precision_costs_less_than_a_millionth_of_the_temperature():
    """Against the root of the slope in double precision, which scipy finds by bisection."""
    logit, label = overconfident(20_000, 50)
    single, label = torch.as_tensor(logit, dtype=torch.float32), torch.as_tensor(label)
    found = fit_temperature(Samples.of(single, label))
    double = Samples.of(single.double(), label)
    root = optimize.brentq(lambda b: moments(double, b).slope, 0.1, 2, xtol=1e-13)
    assert found.temperature == pytest.approx(1 / root, rel=1e-6)
    assert abs(found.temperature * root - 1) < 1e-3 * (found.upper - found.lower)
    assert fit_temperature(double).temperature == pytest.approx(1 / root, rel=1e-10)


def test_the_likelihood_its_slope_and_curvature_are_those_of_automatic_differentiation():
    logit, label = tensors(*overconfident(200, 5))
    b = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logit * b, label)
    (slope,) = torch.autograd.grad(loss, b, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, b, create_graph=True)
    (third,) = torch.autograd.grad(curvature, b)
    found = moments(Samples.of(logit, label), 0.7)
    assert (found.likelihood, found.slope, found.curvature, found.third) == pytest.approx(
        [float(value.detach()) for value in (loss, slope, curvature, third)], rel=1e-9
    )
    squares = (torch.softmax(logit * 0.7, 1) * logit).sum(1) - logit.gather(1, label[:, None])[:, 0]
    assert found.square == pytest.approx(float((squares**2).mean()), rel=1e-9)
    curve = likelihood_curve(Samples.of(logit, label), np.array([1 / 0.7]))
    assert curve == pytest.approx([found.likelihood])


# ------------------------------------------------------------------------------------------------------------- report


def test_the_report_shows_before_after_and_change_with_intervals():
    _, result = record(TemperatureScaling, {"data": dataset(*overconfident(600))}, **FEW)
    report = check_report(TemperatureScaling, result)
    metrics = {metric.name: metric for metric in report.metrics}
    before, after = metrics["ece_width_l1_uncalibrated"], metrics["ece_width_l1"]
    change = metrics["ece_width_l1_change"]
    assert change.value == pytest.approx(after.value - before.value)
    assert change.interval[1] < 0
    assert "overconfident" in report.summary
    directions = {name: metric.direction for name, metric in metrics.items()}
    assert {directions[name] for name in ("ece_width_l1", "ks_error", "negative_log_likelihood")} == {"lower"}
    # A debiased error falls below 0 by chance: there less is not better.
    assert {directions[name] for name in ("ece_mass_debiased", "squared_ce_mass_debiased")} == {"neutral"}
    low, high = metrics["temperature"].interval
    assert low < metrics["temperature"].value < high


@pytest.mark.parametrize(
    ("file", "before", "temperature", "after"),
    [
        (
            "wideresnet-16-4-cifar-10",
            (0.05150, 0.05150, 0.37263, 0.14174),
            2.06813,
            (0.00901, 0.00298, 0.27267, 0.12935),
        ),
        ("lenet-5-cifar-10", (0.11080, 0.11084, 1.36143, 0.61467), 1.40664, (0.01589, 0.01190, 1.30558, 0.59779)),
        (
            "densenet-bc-100-cifar-100",
            (0.13786, 0.13786, 1.21242, 0.37722),
            2.11968,
            (0.01647, 0.00618, 0.86871, 0.33469),
        ),
        (
            "wideresnet-16-4-cifar-100",
            (0.05684, 0.04774, 0.95412, 0.34762),
            1.11304,
            (0.03681, 0.01817, 0.94550, 0.34517),
        ),
        ("vgg16-cifar-10", (0.03561, 0.03517, 0.23325, 0.09732), 1.72243, (0.01450, 0.00862, 0.18576, 0.08918)),
    ],
)
def test_stored_classifiers_before_and_after_are_those_of_the_reference_table(file, before, temperature, after):
    """ECE, KS error, negative log likelihood and Brier score, to all digits printed."""
    if not (DATA / f"{file}.npz").exists():
        pytest.skip(f"the stored outputs {file}.npz are not beside this repository")
    with np.load(DATA / f"{file}.npz") as stored:
        p, y = stored["predictions"].astype(np.float64), stored["ground_truth"].reshape(-1).astype(np.int64)
    logit, label = log_probability(torch.as_tensor(p))[0], torch.as_tensor(y)
    fitted = fit_temperature(Samples.of(logit[::2], label[::2]))
    assert fitted.temperature == pytest.approx(temperature, abs=6e-6)
    names = ("ece_width_l1", "ks_error", "negative_log_likelihood", "brier_score")
    for calibrated, expected in ((torch.softmax(logit[1::2], 1), before), (fitted(logit[1::2]), after)):
        values = calibration_metrics(calibrated.numpy(), y[1::2], clip=1e-30)  # one label has p = 3e-14
        assert [values[name] for name in names] == pytest.approx(expected, abs=6e-6)
