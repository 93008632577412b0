"""The standard recalibrators, each against a peer library, a brute force or a property of its optimum."""

import numpy as np
import pytest
import torch
import xarray as xr
from netcal.binning import HistogramBinning as NetcalHistogram
from netcal.binning import IsotonicRegression as NetcalIsotonic
from scipy import integrate
from scipy.interpolate import CubicSpline
from scipy.special import softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from workbench.errors import InputError
from workbench.toolkit import calibration_metrics, kfold_indices, kolmogorov_smirnov_error, negative_log_likelihood

from unit.calibration_samples import likelihood, skewed, stored, stored_outputs
from unit.recording_out import check_report, record
from workbench_calibration.affine import fit_diagonal, fit_full
from workbench_calibration.baselines import FOLDS, Baselines, held_out, judged, recalibrators, why_suggested
from workbench_calibration.bbq import BayesianBinning, bin_numbers, fit_bbq, score_binning
from workbench_calibration.beta import BetaCalibration
from workbench_calibration.choice import CHOSEN, KEPT, HeldOut, judge, suggestion
from workbench_calibration.ensemble_temperature import EnsembleTemperatureScaling, components, fit_ensemble
from workbench_calibration.h_calibration import HCalibration
from workbench_calibration.histogram_binning import HistogramBinning, fit_histogram
from workbench_calibration.isotonic import Isotonic, fit_isotonic
from workbench_calibration.matrix_scaling import (
    PENALTIES,
    DirichletCalibration,
    MatrixScaling,
    canonical,
    clearly_above,
    fit_matrix,
    scores,
)
from workbench_calibration.per_class import SortedEvents, renormalise
from workbench_calibration.platt import PlattScaling
from workbench_calibration.samples import InMemory, Samples
from workbench_calibration.spline import SplineCalibration, fit_spline
from workbench_calibration.temperature import TemperatureScaling, fit_temperature
from workbench_calibration.vector_scaling import VectorScaling

FEW = {"resamples": 100, "chance_draws": 20}


# --------------------------------------------------------------------------------------------------------- affine maps


def test_vector_scaling_undoes_known_scales_and_shifts():
    logit, label = skewed(60_000)
    fitted = fit_diagonal(Samples.of(logit, label))
    scale, shift = np.linspace(1.2, 3, 4), np.linspace(-1, 1, 4)
    assert fitted.weight.numpy() == pytest.approx(1 / scale, rel=0.05)
    expected = -shift / scale
    assert (fitted.bias - fitted.bias.mean()).numpy() == pytest.approx(expected - expected.mean(), abs=0.05)


def test_vector_scaling_is_at_the_optimum_of_a_convex_likelihood():
    """The slope, taken by automatic differentiation, vanishes: no better scales and shifts exist."""
    logit, label = skewed()
    fitted = fit_diagonal(Samples.of(logit, label))
    a, b = fitted.weight.clone().requires_grad_(), fitted.bias.clone().requires_grad_()
    torch.nn.functional.cross_entropy(logit * a + b, label).backward()
    assert max(float(a.grad.abs().max()), float(b.grad.abs().max())) < 1e-6


@pytest.mark.parametrize(("off_diagonal", "intercept"), [(0.0, 0.0), (0.5, 2.0)])
def test_a_full_matrix_is_at_the_optimum_of_its_penalised_likelihood(off_diagonal, intercept):
    logit, label = skewed(300, 3)
    fitted = fit_full(Samples.of(logit, label), off_diagonal=off_diagonal, intercept=intercept)
    w, b = fitted.weight.clone().requires_grad_(), fitted.bias.clone().requires_grad_()
    outside = ~torch.eye(3, dtype=torch.bool)
    objective = torch.nn.functional.cross_entropy(logit @ w.T + b, label)
    objective = objective + off_diagonal / 6 * (w[outside] ** 2).sum() + intercept / 3 * (b**2).sum()
    objective.backward()
    assert max(float(w.grad.abs().max()), float(b.grad.abs().max())) < 1e-6


def test_without_penalty_the_matrix_is_scikit_learns_multinomial_regression():
    logit, label = skewed(400, 3)
    theirs = LogisticRegression(C=1e12, tol=1e-10, max_iter=5000).fit(logit.numpy(), label.numpy())
    ours = fit_full(Samples.of(logit, label), off_diagonal=0, intercept=0)
    assert ours(logit).numpy() == pytest.approx(theirs.predict_proba(logit.numpy()), abs=1e-4)


def test_strong_penalties_leave_a_diagonal_matrix_without_shift():
    logit, label = skewed(300, 3)
    fitted = fit_full(Samples.of(logit, label), off_diagonal=1e6, intercept=1e6)
    assert (fitted.weight - torch.diag(fitted.weight.diagonal())).abs().max() < 1e-4
    assert fitted.bias.abs().max() < 1e-4


def test_cross_validation_takes_the_penalty_with_the_lowest_held_out_likelihood_and_respects_given_ones():
    logit, label = skewed(200, 4)
    fitted = fit_matrix(Samples.of(logit, label), kind="matrix", off_diagonal=None, intercept=None, seed=0)
    assert fitted.off_diagonal == PENALTIES[int(np.nanargmin(fitted.search[0]))]
    assert fitted.intercept == PENALTIES[int(np.nanargmin(fitted.search[1]))]
    assert np.isfinite(fitted.search).sum() < fitted.search.size  # the search ends where weaker penalties are worse
    given = fit_matrix(Samples.of(logit, label), kind="matrix", off_diagonal=0.3, intercept=None, seed=0)
    assert given.off_diagonal == 0.3
    assert np.isnan(given.search[0]).all()
    assert np.isfinite(given.search[1]).sum() >= 3


def test_the_search_for_penalties_does_not_end_where_they_are_all_alike():
    """Two classes, one of them too rare: down to 1000 nothing is fitted, so that differences of 1e-6 there say nothing."""
    rng = np.random.default_rng(25)
    logit = torch.as_tensor(3 * rng.standard_normal((800, 2)))
    odds = 0.5 * (logit[:, 1] - logit[:, 0]) - 0.73
    label = torch.as_tensor(rng.random(800) < torch.sigmoid(odds).numpy()).long()
    fitted = fit_matrix(Samples.of(logit, label), kind="matrix", off_diagonal=None, intercept=None, seed=0)
    assert fitted.intercept < 10
    assert float(fitted.map.bias[1] - fitted.map.bias[0]) == pytest.approx(-0.73, abs=0.25)


def test_a_candidate_is_clearly_worse_beyond_two_standard_errors_of_paired_samples():
    noise = np.random.default_rng(0).standard_normal(10_000)  # of the difference: its standard error is 0.01
    samples = 5 * np.random.default_rng(1).standard_normal(10_000)  # what both share
    centred = noise - noise.mean()
    assert not clearly_above(samples + centred + 0.019, samples)
    assert clearly_above(samples + centred + 0.021, samples)
    assert not clearly_above(samples, samples)


def test_dirichlet_calibration_sees_log_probabilities_only_and_prints_its_canonical_form():
    logit, label = skewed(200, 3)
    shifted = logit + torch.arange(200.0)[:, None]
    assert torch.allclose(scores(logit, "dirichlet"), scores(shifted, "dirichlet"), atol=1e-9)
    fitted = fit_matrix(Samples.of(logit, label), kind="dirichlet", off_diagonal=0.1, intercept=0.1, seed=0)
    weight = canonical(fitted.map.weight)
    assert weight.amin(dim=0).abs().max() == 0
    x = scores(logit, "dirichlet")
    assert torch.allclose(torch.softmax(x @ weight.T + fitted.map.bias, 1), fitted(logit))


@stored_outputs
def test_vector_scaling_of_a_stored_classifier_lowers_the_likelihood_below_temperature_scaling():
    fit_logit, fit_label, logit, label = stored("vgg16-cifar-10")
    vector, temperature = fit_diagonal(Samples.of(fit_logit, fit_label)), fit_temperature(Samples.of(fit_logit, fit_label))
    assert likelihood(vector, fit_logit, fit_label) < likelihood(temperature, fit_logit, fit_label)
    assert likelihood(vector, logit, label) < likelihood(temperature, logit, label)


@pytest.mark.slow
@stored_outputs
def test_an_unpenalised_matrix_overfits_a_hundred_classes_and_odir_repairs_it():
    fit_logit, fit_label, logit, label = stored("densenet-bc-100-cifar-100")
    temperature = fit_temperature(Samples.of(fit_logit, fit_label))
    free = fit_full(Samples.of(fit_logit, fit_label), off_diagonal=0, intercept=0, tolerance=1e-3)
    held = fit_matrix(Samples.of(fit_logit, fit_label), kind="matrix", off_diagonal=None, intercept=None, seed=0)
    assert likelihood(free, logit, label) > 1.5 * likelihood(temperature, logit, label)
    assert likelihood(free, fit_logit, fit_label) < 0.3 * likelihood(free, logit, label)
    assert likelihood(held, logit, label) < likelihood(temperature, logit, label)
    assert PENALTIES[-1] < held.off_diagonal < PENALTIES[0]  # the best lies within the range that is searched


# ------------------------------------------------------------------------------------------------- isotonic regression


def test_isotonic_curves_of_two_classes_are_netcals():
    logit, label = skewed(600, 2)
    p, other = torch.softmax(logit, 1).numpy(), torch.softmax(skewed(200, 2, seed=1)[0], 1)
    theirs = NetcalIsotonic().fit(p[:, 1], label.numpy()).transform(other[:, 1].numpy())
    ours = fit_isotonic(Samples.of(logit, label), "one_vs_rest").curves[1].predict(other[:, 1].numpy())
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_an_isotonic_curve_is_the_monotone_step_function_of_least_squares():
    """Max-min formula of isotonic regression, the closed form that pooling adjacent violators computes."""
    logit, label = skewed(60, 3)
    p, hit = torch.softmax(logit, 1)[:, 0].numpy(), (label == 0).numpy().astype(float)
    order = np.argsort(p)
    sums = np.concatenate([[0], np.cumsum(hit[order])])
    mean = lambda a, b: (sums[b + 1] - sums[a]) / (b + 1 - a)  # noqa: E731
    expected = [max(min(mean(a, b) for b in range(i, 60)) for a in range(i + 1)) for i in range(60)]
    ours = fit_isotonic(Samples.of(logit, label), "one_vs_rest").curves[0].predict(p[order])
    assert ours == pytest.approx(expected)


@pytest.mark.parametrize("rounded", [False, True])
def test_curves_counted_in_passes_are_those_of_all_events_at_once(rounded):
    """scikit-learn on all pairs in memory is the oracle; rounded logits make ties, one class never occurs."""
    logit, label = skewed(700, 5)
    logit = torch.round(logit) if rounded else logit
    label = torch.where(label == 4, 0, label)
    p, hit = torch.softmax(logit, 1).numpy(), np.eye(5)[label.numpy()]
    other = torch.softmax(skewed(300, 5, seed=1)[0], 1).numpy()
    regress = lambda x, y: IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, y)  # noqa: E731
    for k, curve in enumerate(fit_isotonic(Samples.of(logit, label), "one_vs_rest").curves):
        assert curve.predict(other[:, k]) == pytest.approx(regress(p[:, k], hit[:, k]).predict(other[:, k]), abs=1e-12)
    (single,) = fit_isotonic(Samples.of(logit, label), "multi_class").curves
    expected = regress(p.ravel(), hit.ravel()).predict(other.ravel())
    assert single.predict(other.ravel()) == pytest.approx(expected, abs=1e-12)


def test_a_single_curve_keeps_the_order_of_classes_and_separate_curves_need_not():
    logit, label = skewed(500, 5)
    other, _ = skewed(500, 5, seed=3)
    single, separate = (fit_isotonic(Samples.of(logit, label), variant)(other) for variant in ("multi_class", "one_vs_rest"))
    assert (single.argmax(1) == other.argmax(1)).all()
    assert (single.gather(1, other.argsort(1)).diff(dim=1) >= 0).all()
    assert (separate.argmax(1) != other.argmax(1)).any()


def test_rows_of_zeros_become_uniform():
    assert renormalise(np.array([[0.0, 0.0], [1.0, 3.0]])).tolist() == [[0.5, 0.5], [0.25, 0.75]]


# ---------------------------------------------------------------------------------------------------------- binnings


def test_histogram_binning_of_two_classes_is_netcals_where_bins_are_filled():
    logit, label = skewed(3000, 2)
    p, other = torch.softmax(logit, 1).numpy(), torch.softmax(skewed(500, 2, seed=1)[0], 1)
    theirs = NetcalHistogram(bins=10).fit(p[:, 1], label.numpy()).transform(other[:, 1].numpy())
    fitted = fit_histogram(Samples.of(logit, label), n_bins=10, binning="width")
    assert (fitted.count > 0).all()
    ours = fitted.value[1][np.searchsorted(fitted.edge[1], other[:, 1].numpy(), side="left")]
    assert ours == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_bin_values_are_frequencies_and_empty_bins_keep_their_centre(binning):
    logit, label = skewed(90, 3)
    fitted = fit_histogram(Samples.of(logit, label), n_bins=30, binning=binning)
    p = torch.softmax(logit, 1)[:, 1].numpy()
    edges = np.concatenate([[-1e-9], fitted.edge[1], [1.0]])
    for index in range(30):
        rows = (p > edges[index]) & (p <= edges[index + 1])
        assert fitted.count[1, index] == rows.sum()
        centre = (max(edges[index], 0) + edges[index + 1]) / 2
        assert fitted.value[1, index] == pytest.approx((label.numpy()[rows] == 1).mean() if rows.any() else centre)
    if binning == "mass":
        assert (fitted.count == 3).all()


def moment(hits, misses, a, b):
    """Integral of t^(hits + a - 1) (1 - t)^(misses + b - 1) over 0..1; the ends are integrated as algebraic weights."""
    middle = integrate.quad(lambda t: t**hits * (1 - t) ** (misses + b - 1), 0, 0.5, weight="alg", wvar=(a - 1, 0))[0]
    return middle + integrate.quad(lambda t: t ** (hits + a - 1) * (1 - t) ** misses, 0.5, 1, weight="alg",
                                   wvar=(0, b - 1))[0]


@pytest.mark.parametrize("bins", [1, 3])
def test_the_score_of_a_binning_is_its_marginal_likelihood_and_its_values_are_posterior_means(bins):
    """Brute force: the Beta prior of every bin is integrated numerically."""
    rng = np.random.default_rng(0)
    p = np.sort(rng.random(12))
    hit = (rng.random(12) < p).astype(float)
    edge, value, score = score_binning(SortedEvents.of(p, hit), bins, "bdeu")
    full, total = np.concatenate([[0], edge, [1]]), 0.0
    for index in range(bins):
        rows = (p > full[index]) & (p <= full[index + 1])
        k, n, m = hit[rows].sum(), rows.sum(), (full[index] + full[index + 1]) / 2
        a, b = 2 * m / bins, 2 * (1 - m) / bins
        evidence, first = moment(k, n - k, a, b), moment(k + 1, n - k, a, b)
        total += np.log(evidence / moment(0, 0, a, b))
        assert value[index] == pytest.approx(first / evidence, rel=1e-6)
    assert score == pytest.approx(total, abs=1e-6)


def test_the_numbers_of_bins_are_the_papers():
    assert bin_numbers(1000)[[0, -1]].tolist() == [1, 100]
    assert bin_numbers(100)[[0, -1]].tolist() == [1, 20]
    assert bin_numbers(10**6)[[0, -1]].tolist() == [10, 1000]


@pytest.mark.parametrize("score", ["bdeu", "bic"])
def test_predictions_average_all_binnings_by_their_weight(score):
    logit, label = skewed(150, 3)
    other = torch.softmax(skewed(20, 3, seed=5)[0], 1).numpy()
    fitted = fit_bbq(Samples.of(logit, label), score=score)
    assert fitted.weight.sum(axis=1) == pytest.approx(1)
    p, expected = torch.softmax(logit, 1).numpy(), np.zeros((20, 3))
    for k in range(3):
        for bins, weight in zip(fitted.bins, fitted.weight[k], strict=True):
            edge, value, _ = score_binning(SortedEvents.of(p[:, k], label.numpy() == k), bins, score)
            expected[:, k] += weight * value[np.searchsorted(edge, other[:, k])]
    assert fitted.values(other) == pytest.approx(expected, abs=1e-5)


# -------------------------------------------------------------------------------------------- mixtures and splines


def test_ensemble_temperature_keeps_predictions_where_the_logits_say_nothing_of_the_labels():
    """All weight would go to the uniform probabilities, which are the same for all classes."""
    rng = np.random.default_rng(0)
    logit, label = torch.as_tensor(2 * rng.normal(size=(400, 4))), torch.as_tensor(rng.integers(4, size=400))
    fitted = fit_ensemble(Samples.of(logit, label), loss="mse")
    assert fitted.weight[2] > 0.9
    assert torch.equal(fitted(logit).argmax(1), logit.argmax(1))
    against = torch.as_tensor(50.0 * np.eye(4)[(label + 1) % 4])  # sure of a wrong class, always
    for loss in ("mse", "nll"):
        fitted = fit_ensemble(Samples.of(against, label), loss=loss)
        assert fitted.weight == pytest.approx([0, 0, 1], abs=1e-5)
        assert torch.equal(fitted(against).argmax(1), against.argmax(1))


@pytest.mark.parametrize("loss", ["mse", "nll"])
def test_mixture_weights_are_the_best_of_a_fine_grid_on_the_simplex(loss):
    logit, label = skewed(400, 4)
    logit = 3 * logit
    logit[:40] = -logit[:40]  # confident errors: some uniform probability pays
    fitted = fit_ensemble(Samples.of(logit, label), loss=loss)
    parts, hit = components(logit, fitted.temperature).numpy(), np.eye(4)[label.numpy()]

    def objective(w):
        p = np.tensordot(w, parts, 1)
        return ((p - hit) ** 2).mean() if loss == "mse" else -np.log((p * hit).sum(1)).mean()

    grid = [np.array([i, j, 50 - i - j]) / 50 for i in range(51) for j in range(51 - i)]
    assert fitted.weight.sum() == pytest.approx(1)
    assert (fitted.weight >= 0).all()
    best = min(map(objective, grid))
    assert objective(fitted.weight) <= best + 1e-9
    assert objective(fitted.weight) == pytest.approx(best, rel=5e-3)


def test_the_spline_is_the_least_squares_natural_spline():
    """No other values at the knots fit better; the curve is natural: its second derivative vanishes at both ends."""
    logit, label = skewed(400, 3)
    fitted = fit_spline(Samples.of(logit, label), knots=6)
    knots = np.linspace(0, 1, 6)
    values = np.interp(knots, fitted.position, fitted.fitted)
    residual = ((fitted.fitted - fitted.cumulated) ** 2).sum()
    rebuilt = CubicSpline(knots, values, bc_type="natural")
    assert rebuilt(fitted.position) == pytest.approx(fitted.fitted, abs=1e-6)
    for knot in range(6):
        for step in (-1e-3, 1e-3):
            moved = values.copy()
            moved[knot] += step
            other = CubicSpline(knots, moved, bc_type="natural")(fitted.position)
            assert ((other - fitted.cumulated) ** 2).sum() > residual
    slope = np.gradient(fitted.fitted, fitted.position)
    assert fitted.calibrated[1:-1] == pytest.approx((fitted.score + slope)[1:-1], abs=1e-3)


def test_the_spline_gives_distributions_with_the_calibrated_top_score():
    logit, label = skewed(400, 4)
    fitted = fit_spline(Samples.of(logit, label), knots=6)
    # The last but one: what the others hold is of the size of the rounding error of the top score.
    saturated = torch.tensor([[800.0, 0, 0, 0], [36.5, 0, -1, -2], [40, 0, -1, -2]], dtype=torch.float64)
    other = torch.cat([skewed(50, 4, seed=2)[0], saturated])
    p, confidence = fitted(other).numpy(), torch.softmax(other, 1).numpy()
    assert p.sum(1) == pytest.approx(1)
    assert (p >= 0).all()
    rows, best = np.arange(53), confidence.argmax(1)
    assert p[rows, best] == pytest.approx(fitted.top(confidence[rows, best]))
    assert (p <= 1).all()
    assert p[-2:, 2] / p[-2:, 1] == pytest.approx(np.exp(-1))  # the others keep their proportions
    assert fitted.top(np.array([0.0]))[0] == fitted.top(np.array([fitted.score[0]]))[0]  # constant beyond the ends


@stored_outputs
@pytest.mark.parametrize(("file", "error"), [("densenet-bc-100-cifar-100", 0.0106), ("vgg16-cifar-10", 0.0134)])
def test_the_spline_of_stored_classifiers_has_the_reference_ks_error(file, error):
    fit_logit, fit_label, logit, label = stored(file)
    confidence, best = torch.softmax(logit, 1).max(1)
    top = fit_spline(Samples.of(fit_logit, fit_label), knots=6).top(confidence.numpy())
    assert kolmogorov_smirnov_error(top, (best == label).numpy()) == pytest.approx(error, abs=6e-5)


@stored_outputs
def test_isotonic_regression_of_a_stored_classifier_has_low_error_but_zeros_ruin_its_likelihood():
    """The reference figures, 2.04 against 0.88, come from a random split and zeros counted as 1e-30."""
    parts = stored("densenet-bc-100-cifar-100")
    logit, label = torch.stack([parts[0], parts[2]], 1).flatten(0, 1), torch.stack([parts[1], parts[3]], 1).flatten()
    rows = np.random.default_rng(0).permutation(10_000)
    fit, report = rows[:5000], rows[5000:]
    p, y = fit_isotonic(Samples.of(logit[fit], label[fit]), "one_vs_rest")(logit[report]).numpy(), label[report].numpy()
    assert negative_log_likelihood(p, y, clip=1e-30) == pytest.approx(2.04, abs=0.005)
    temperature = fit_temperature(Samples.of(logit[fit], label[fit]))
    assert likelihood(temperature, logit[report], label[report]) == pytest.approx(0.88, abs=0.005)
    assert calibration_metrics(p, y)["ece_width_l1"] < 0.05


# ------------------------------------------------------------------------------------------------------------- choice


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
    held = {"uncalibrated": fared(0.9, 0), "one": fared(0.5, 1), "many": fared(0.499, 50, seed=1), "worse": fared(0.6, 1)}
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
    [("temperature", 1), ("ensemble_temperature", 3), ("vector_scaling", 8), ("matrix_scaling", 20), ("spline", 6),
     ("beta", 12), ("platt", 8)],
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
    assert steps.numbers == sum(len(np.unique(c.predict(torch.softmax(logit, 1)[:, k]))) for k, c in enumerate(steps.curves))
    assert fit_histogram(Samples.of(logit, label), n_bins=1, binning="width").numbers == 4


# ------------------------------------------------------------------------------------------------------------ methods


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

    for module, limit in (("samples", "IN_MEMORY_ENTRIES"), ("samples", "BLOCK_ENTRIES"), ("per_class", "COLUMN_ENTRIES")):
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
        (HCalibration, {"maps": ("linear-2", "pwlinear-10"), "epochs": 3, "window": 20}),
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
