"""Beta and Platt calibration against closed forms, their authors' and other libraries, and properties of their optimum."""

import numpy as np
import pytest
import torch
from betacal import BetaCalibration as Betacal
from netcal.scaling import BetaCalibration as NetcalBeta
from netcal.scaling import LogisticCalibration as NetcalLogistic
from scipy import optimize
from scipy.special import betaln, expit
from sklearn.calibration import CalibratedClassifierCV, _SigmoidCalibration
from sklearn.linear_model import LogisticRegression

from unit.calibration_samples import likelihood, skewed, stored, stored_outputs
from workbench_adapters.scikit_learn import SklearnSigmoid, fit_estimator
from workbench_calibration.beta import abc, fit_beta
from workbench_calibration.logistic import TOLERANCE, class_targets, log_odds_parts
from workbench_calibration.per_class import renormalise
from workbench_calibration.platt import fit_platt
from workbench_calibration.samples import Samples

pytestmark = pytest.mark.filterwarnings("ignore:independent is deprecated:DeprecationWarning")  # of pyro, in netcal


def binary(probability, label):
    """Two classes, class 1 with the given probabilities."""
    odds = np.log(probability) - np.log1p(-np.asarray(probability))
    return Samples.of(torch.as_tensor(np.column_stack([np.zeros_like(odds), odds])), torch.as_tensor(label).long())


def log_odds(logit):
    log_p, log_rest = log_odds_parts(logit)
    return log_p - log_rest


# ------------------------------------------------------------------------------------------------------------ closed forms


def test_log_odds_are_exact_where_the_probability_rounds_to_one():
    logit = torch.tensor([[60.0, 0, 0], [0, 3, -1], [2, 2, 2]], dtype=torch.float64)
    log_p, log_rest = log_odds_parts(logit)
    assert log_rest[0].numpy() == pytest.approx([np.log(2) - 60, 0, 0], abs=1e-12)
    assert float(log_rest[0, 0]) == pytest.approx(np.log(2) - 60)
    p = torch.softmax(logit[1:], 1)
    assert log_p[1:].numpy() == pytest.approx(torch.log(p).numpy())
    assert log_rest[1:].numpy() == pytest.approx(torch.log(1 - p).numpy())


def test_curves_with_as_many_parameters_as_there_are_probabilities_go_through_the_frequencies():
    """Three probabilities, three parameters: the fit is the table of frequencies. Two for Platt, whose targets are smoothed."""
    p, frequency = np.repeat([0.2, 0.5, 0.9], 20), {0.2: 0.1, 0.5: 0.3, 0.9: 0.6}
    label = np.concatenate([np.arange(20) < 20 * frequency[value] for value in (0.2, 0.5, 0.9)])
    beta = fit_beta(binary(p, label), variant="abm")
    assert beta.curve(np.array([0.2, 0.5, 0.9]))[1] == pytest.approx([0.1, 0.3, 0.6], abs=1e-6)
    two = p != 0.5
    platt = fit_platt(binary(p[two], label[two]), targets="labels")
    assert platt.curve(np.array([0.2, 0.9]))[1] == pytest.approx([0.1, 0.6], abs=1e-6)
    smoothed = fit_platt(binary(p[two], label[two]), targets="smoothed")
    high, low = 15 / 16, 1 / 28  # 14 of 40 occurred
    expected = [0.1 * high + 0.9 * low, 0.6 * high + 0.4 * low]
    assert smoothed.curve(np.array([0.2, 0.9]))[1] == pytest.approx(expected, abs=1e-6)


def test_the_parameters_of_beta_distributed_probabilities_are_recovered():
    """Class 1 has p from Beta(3, 1.5) where it is the label and Beta(1, 2.5) where not: a = 2, b = 1, c in closed form."""
    rng = np.random.default_rng(0)
    label = rng.random(60_000) < 0.3
    p = np.where(label, rng.beta(3, 1.5, label.size), rng.beta(1, 2.5, label.size))
    fitted = fit_beta(binary(p, label), variant="abm")
    c = np.log(0.3 / 0.7) + betaln(1, 2.5) - betaln(3, 1.5)
    assert fitted.weight[1].numpy() == pytest.approx([2, 1, c], abs=0.05)
    assert fitted.weight[0].numpy() == pytest.approx([1, 2, -c], abs=0.05)


def test_calibrated_probabilities_are_left_as_they_are():
    rng = np.random.default_rng(0)
    p = rng.beta(0.6, 0.8, 40_000).clip(1e-9, 1 - 1e-9)
    samples = binary(p, rng.random(p.size) < p)
    assert fit_beta(samples, variant="abm").weight[1].numpy() == pytest.approx([1, 1, 0], abs=0.05)
    assert fit_platt(samples, targets="smoothed").weight[1].numpy() == pytest.approx([1, 0], abs=0.03)


# ------------------------------------------------------------------------------------------------------------ other libraries


@pytest.mark.parametrize("variant", ["abm", "am", "ab"])
def test_beta_curves_are_those_of_the_authors_package(variant):
    """Its optimiser stops at a slope of 1e-4 or so."""
    logit, label = skewed(800, 4)
    p = torch.softmax(logit, 1).numpy()
    fitted = fit_beta(Samples.of(logit, label), variant=variant)
    parameters = abc(fitted.weight.numpy(), variant)
    for k in range(4):
        theirs = Betacal(parameters=variant).fit(p[:, k], (label == k).numpy())
        assert fitted.curve(p[:, k])[k] == pytest.approx(theirs.predict(p[:, k]), abs=5e-4)
        a, b, middle = theirs.calibrator_.map_
        assert parameters[k, :2] == pytest.approx([a, b], abs=2e-3)
        # the authors' m is where the curve is 1/2: c = b ln(1 - m) - a ln m
        assert parameters[k, 2] == pytest.approx(b * np.log1p(-middle) - a * np.log(middle), abs=5e-3)


def test_beta_calibration_of_two_classes_is_netcals():
    logit, label = skewed(600, 2)
    p, other = torch.softmax(logit, 1).numpy(), skewed(200, 2, seed=1)[0]
    theirs = NetcalBeta().fit(p[:, 1], label.numpy()).transform(torch.softmax(other, 1)[:, 1].numpy())
    assert fit_beta(Samples.of(logit, label), variant="abm")(other)[:, 1].numpy() == pytest.approx(theirs, abs=2e-3)


def test_platt_scaling_with_plain_labels_of_two_classes_is_netcals_logistic_calibration():
    logit, label = skewed(600, 2)
    p, other = torch.softmax(logit, 1).numpy(), skewed(200, 2, seed=1)[0]
    theirs = NetcalLogistic().fit(p[:, 1], label.numpy()).transform(torch.softmax(other, 1)[:, 1].numpy())
    ours = fit_platt(Samples.of(logit, label), targets="labels")(other)[:, 1].numpy()
    assert ours == pytest.approx(theirs, abs=2e-3)


def test_sigmoids_with_platts_targets_are_scikit_learns():
    logit, label = skewed(800, 4)
    fitted, odds = fit_platt(Samples.of(logit, label), targets="smoothed"), log_odds(logit).numpy()
    for k in range(4):
        theirs = _SigmoidCalibration().fit(odds[:, k], (label == k).numpy().astype(np.int64))
        assert fitted.weight[k].numpy() == pytest.approx([-theirs.a_, -theirs.b_], abs=1e-5)


def test_platt_scaling_of_four_classes_is_scikit_learns_calibrated_classifier():
    """With the log odds as its decision function, renormalised over classes as there."""
    logit, label = skewed(800, 4)
    other = skewed(300, 4, seed=1)[0]
    theirs = fit_estimator(SklearnSigmoid(), SklearnSigmoid.Params(), log_odds(logit), label)
    assert isinstance(SklearnSigmoid().estimator(SklearnSigmoid.Params(), None, None), CalibratedClassifierCV)
    ours = fit_platt(Samples.of(logit, label), targets="smoothed")(other)
    assert ours.numpy() == pytest.approx(theirs(log_odds(other)).numpy(), abs=1e-5)


@stored_outputs
def test_beta_calibration_of_a_stored_classifier_has_the_likelihood_of_the_authors_package():
    fit_logit, fit_label, logit, label = stored("vgg16-cifar-10")
    p, q = (torch.softmax(z, 1).numpy() for z in (fit_logit, logit))
    columns = [Betacal().fit(p[:, k], (fit_label == k).numpy()).predict(q[:, k]) for k in range(10)]
    theirs = renormalise(np.stack(columns, axis=1))[np.arange(len(label)), label.numpy()]
    fitted = fit_beta(Samples.of(fit_logit, fit_label), variant="abm")
    assert likelihood(fitted, logit, label) == pytest.approx(-np.log(theirs).mean(), abs=2e-4)


# ------------------------------------------------------------------------------------------------------------ the optimum


def test_free_weights_are_the_optimum_of_logistic_regression():
    logit, label = skewed(500, 3)
    fitted = fit_beta(Samples.of(logit, label), variant="abm")
    log_p, log_rest = log_odds_parts(logit)
    assert (fitted.weight[:, :2] > 0).all()
    assert fitted.gradient <= TOLERANCE
    for k in range(3):
        x = np.column_stack([log_p[:, k], -log_rest[:, k]])
        theirs = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(x, (label == k).numpy())
        assert fitted.weight[k].numpy() == pytest.approx([*theirs.coef_[0], theirs.intercept_[0]], abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_weights_that_would_be_negative_are_the_optimum_under_their_bounds(seed):
    """L-BFGS-B minimises the same likelihood within the bounds; labels against the classifier drive the weights below 0."""
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 1, 300).clip(1e-6, 1 - 1e-6)
    wanted = ((-0.5, 1.0), (1.0, -0.5), (-0.5, -0.5), (2.0, -1.0))[seed]
    label = rng.random(300) < expit(wanted[0] * np.log(p) - wanted[1] * np.log1p(-p) + 0.3)
    x = np.column_stack([np.log(p), -np.log1p(-p), np.ones(300)])

    def objective(w):
        return float((np.logaddexp(0, x @ w) - label * (x @ w)).mean())

    best = optimize.minimize(objective, [0.5, 0.5, 0.0], bounds=[(0, None), (0, None), (None, None)],
                             options={"ftol": 1e-15, "gtol": 1e-10})  # fmt: skip
    fitted = fit_beta(binary(p, label), variant="abm").weight[1].numpy()
    assert (fitted[:2] >= 0).all()
    assert (fitted[:2] == 0).any()
    assert fitted == pytest.approx(best.x, abs=1e-3)
    assert objective(fitted) <= best.fun + 1e-9


@pytest.mark.parametrize("seed", [18, 35])
def test_a_weight_that_is_nearly_zero_does_not_hold_the_others_up(seed):
    """Few samples of ten nearly equal classes: some class comes by a step to where b is 1e-7 and wants to be negative."""
    rng = np.random.default_rng(seed)
    logit = torch.as_tensor(0.3 * rng.standard_normal((100, 10)))
    label = torch.as_tensor((rng.random((100, 1)) > torch.softmax(logit, 1).numpy().cumsum(1)).sum(1).clip(0, 9))
    fitted = fit_beta(Samples.of(logit, label), variant="abm")
    assert fitted.gradient <= TOLERANCE
    log_p, log_rest = (part.numpy() for part in log_odds_parts(logit))
    for k in range(10):
        x, occurred = np.column_stack([log_p[:, k], -log_rest[:, k], np.ones(100)]), label.numpy() == k

        def objective(w, x=x, occurred=occurred):
            return float((np.logaddexp(0, x @ w) - occurred * (x @ w)).mean())

        best = optimize.minimize(objective, [1, 1, 0], bounds=[(0, None), (0, None), (None, None)],
                                 options={"ftol": 1e-15, "gtol": 1e-10})  # fmt: skip
        assert objective(fitted.weight[k].numpy()) <= best.fun + 1e-7


def test_a_constant_added_to_the_logits_of_a_sample_changes_nothing_and_two_classes_need_no_renormalising():
    logit, label = skewed(300, 2)
    moved = logit + torch.arange(300.0)[:, None]
    grid = np.linspace(0.01, 0.99, 9)
    for fit in (lambda s: fit_beta(s, variant="abm"), lambda s: fit_platt(s, targets="smoothed")):
        fitted = fit(Samples.of(logit, label))
        assert fit(Samples.of(moved, label)).weight.numpy() == pytest.approx(fitted.weight.numpy(), abs=1e-6)
        assert fitted.curve(grid)[0] + fitted.curve(1 - grid)[1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "case", ["absent class", "separated", "one sample", "equal logits", "masked class", "one class"]
)
def test_samples_without_a_finite_optimum_give_distributions_all_the_same(case):
    logit, label = skewed(200, 3)
    if case == "absent class":
        label = label.clamp(max=1)
    elif case == "separated":
        logit = 20.0 * torch.eye(3, dtype=torch.float64)[label] + 0.1 * logit
    elif case == "one sample":
        logit, label = logit[:1], label[:1]
    elif case == "equal logits":
        logit = torch.zeros_like(logit)
    elif case == "masked class":
        logit, label = torch.cat([logit, torch.full((200, 1), -1e30)], 1), label
    else:
        label = torch.zeros_like(label)
    for variant in ("abm", "am", "ab"):
        fitted = fit_beta(Samples.of(logit, label), variant=variant)
        assert torch.isfinite(fitted.weight).all()
        assert fitted.gradient < 1e-6
        assert fitted(logit).sum(1).numpy() == pytest.approx(1)
    fitted = fit_platt(Samples.of(logit, label), targets="smoothed")
    assert torch.isfinite(fitted.weight).all()
    assert fitted.gradient < 1e-6
    assert fitted(logit).sum(1).numpy() == pytest.approx(1)
    if case == "equal logits":  # nothing but the frequencies is left; Platt's are drawn towards a half
        assert fit_beta(Samples.of(logit, label), variant="abm")(logit)[0].numpy() == pytest.approx(
            np.bincount(label, minlength=3) / 200, abs=1e-6
        )


def test_targets_are_platts():
    samples = Samples.of(torch.zeros((10, 3)), torch.tensor([0] * 7 + [1] * 3))
    low, high, frequency = class_targets(samples, "smoothed")
    assert low.numpy() == pytest.approx([1 / 5, 1 / 9, 1 / 12])
    assert high.numpy() == pytest.approx([8 / 9, 4 / 5, 1 / 2])
    assert frequency.numpy() == pytest.approx([8 / 12, 4 / 12, 1 / 12])
    assert [end.tolist() for end in class_targets(samples, "labels")[:2]] == [[0, 0, 0], [1, 1, 1]]
