"""Which recalibrator is suggested, and on what figures."""

import numpy as np
import pytest
import torch

from unit.calibration_samples import skewed
from workbench_calibration.baselines import held_out, judged, recalibrators, why_suggested
from workbench_calibration.choice import CHOSEN, KEPT, HeldOut, judge, suggestion
from workbench_calibration.histogram_binning import fit_histogram
from workbench_calibration.isotonic import fit_isotonic
from workbench_calibration.matrix_scaling import (
    fit_matrix,
)
from workbench_calibration.samples import Samples


def fared(likelihood, numbers, *, hit=None, confidence=None, seed=0):
    """Held-out figures of 400 samples: likelihoods that vary a little around a mean, calibrated unless said."""
    rng = np.random.default_rng(seed)
    confidence = np.full(400, 0.75) if confidence is None else confidence
    hit = np.repeat([1.0, 0.0], [300, 100]) if hit is None else hit
    return HeldOut(likelihood + 0.05 * rng.standard_normal(400), confidence, hit, numbers)


def chosen(**held):
    verdicts = judge(held, uncalibrated="uncalibrated", n_bins=15, rng=np.random.default_rng(0))
    reasons = {name: one.reason for name, one in verdicts.items()}
    assert sum(reason in (CHOSEN, KEPT) for reason in reasons.values()) == 1
    return suggestion(reasons), reasons


def test_the_rule_takes_the_smallest_of_those_that_are_as_good():
    held = {
        "uncalibrated": fared(0.9, 0),
        "one": fared(0.5, 1),
        "many": fared(0.499, 50, seed=1),
        "worse": fared(0.6, 1),
    }
    name, reasons = chosen(**held)
    assert name == "one"
    assert reasons["many"] == "as good, but fits more"
    assert reasons["worse"] == reasons["uncalibrated"] == "behind by more than its error"
    assert chosen(**(held | {"many": fared(0.48, 50, seed=1)}))[0] == "many"


def test_the_rule_drops_what_loses_accuracy_or_is_miscalibrated_beyond_chance():
    loses = np.repeat([1.0, 0.0], [260, 140])
    off = fared(0.5, 1, confidence=np.full(400, 0.9))
    name, reasons = chosen(uncalibrated=fared(0.9, 0), loses=fared(0.5, 1, hit=loses), good=fared(0.5, 9), off=off)
    assert (name, reasons["loses"], reasons["off"]) == ("good", "loses accuracy", "calibration error beyond chance")
    # without one that is calibrated the condition falls away
    assert chosen(uncalibrated=fared(0.9, 0), off=off, off_too=fared(0.5, 3, confidence=np.full(400, 0.95)))[0] == "off"


def test_the_rule_keeps_the_uncalibrated_probabilities_unless_something_is_better_beyond_noise():
    name, reasons = chosen(uncalibrated=fared(0.5, 0), one=fared(0.499, 1, seed=1), bad=fared(0.7, 1))
    assert (name, reasons["uncalibrated"]) == ("uncalibrated", KEPT)
    assert reasons["one"] == "as good, but fits more"
    assert reasons["bad"] == "behind by more than its error"
    assert chosen(uncalibrated=fared(0.5, 0), bad=fared(0.7, 1), worse=fared(0.8, 1))[0] == "uncalibrated"
    # a likelihood near the lowest does not excuse a calibration error beyond chance where another method has none
    off = fared(0.5, 0, confidence=np.full(400, 0.9))
    assert chosen(uncalibrated=off, one=fared(0.5, 1))[0] == "one"


def test_where_all_that_is_better_loses_accuracy_the_best_that_keeps_it_is_named():
    loses = np.repeat([1.0, 0.0], [100, 300])
    assert chosen(uncalibrated=fared(0.7, 0), better=fared(0.5, 1, hit=loses))[0] == "uncalibrated"
    some = chosen(uncalibrated=fared(0.7, 0), better=fared(0.5, 1, hit=loses), mild=fared(0.6, 9), off=fared(0.8, 1))
    assert some[0] == "mild"


def test_the_summary_claims_no_more_of_the_suggestion_than_its_branch_of_the_rule_gives():
    held = {"uncalibrated": 0.7, "small": 0.51, "best": 0.5}

    def text(suggested, near, **other):
        return why_suggested(suggested, held | other, near=near)

    assert "within a standard error of the lowest (best, 0.5000)" in text("small", True)
    assert "standard error" not in text("small", False)
    assert "of those that keep the accuracy" in text("small", False)
    assert text("best", True).startswith("Of 2 recalibrators best has the lowest")
    assert text("uncalibrated", True, uncalibrated=0.505).startswith(
        "Keep the uncalibrated probabilities: nothing of the 2 recalibrators tried is better beyond noise"
    )
    assert "that are better lose accuracy" in text("uncalibrated", False)


def test_held_out_figures_come_from_maps_that_did_not_see_the_sample():
    """A fit that remembers its labels is at chance on held-out samples."""
    logit, label = skewed(300, 3)

    def memory(fit):
        known = {row.numpy().tobytes(): int(k) for row, k in zip(fit.logit, fit.label, strict=True)}
        return lambda z: torch.eye(3, dtype=torch.float64)[[known.get(row.numpy().tobytes(), 0) for row in z]]

    found = held_out(memory, Samples.of(logit, label), seed=0)
    assert found.hit.mean() == pytest.approx(float((label == 0).double().mean()))
    assert judged(memory(Samples.of(logit, label)), Samples.of(logit, label))[2].mean() == 1


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("temperature", 1),
        ("ensemble_temperature", 3),
        ("vector_scaling", 8),
        ("matrix_scaling", 20),
        ("spline", 6),
        ("beta", 12),
        ("platt", 8),
    ],
)
def test_fitted_numbers_are_counted(name, numbers):
    logit, label = skewed(200, 4)
    fit = recalibrators(0)[name]
    if name == "matrix_scaling":
        found = fit_matrix(Samples.of(logit, label), kind="matrix", off_diagonal=1.0, intercept=1.0, seed=0)
    else:
        found = fit(Samples.of(logit, label))
    assert found.numbers == numbers
    steps = fit_isotonic(Samples.of(logit, label), "one_vs_rest")
    assert steps.numbers == sum(
        len(np.unique(c.predict(torch.softmax(logit, 1)[:, k]))) for k, c in enumerate(steps.curves)
    )
    assert fit_histogram(Samples.of(logit, label), n_bins=1, binning="width").numbers == 4
