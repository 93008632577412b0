"""Recalibrators by curves, bins and mixtures, each against a peer library, a brute force or a property of its optimum."""

import numpy as np
import pytest
import torch
from netcal.binning import HistogramBinning as NetcalHistogram
from netcal.binning import IsotonicRegression as NetcalIsotonic
from scipy import integrate
from scipy.interpolate import CubicSpline
from sklearn.isotonic import IsotonicRegression
from workbench import InputError
from workbench.toolkit import calibration_metrics, kolmogorov_smirnov_error, negative_log_likelihood

from unit.calibration_samples import likelihood, skewed, stored, stored_outputs
from workbench_calibration.bbq import bin_numbers, fit_bbq, score_binning
from workbench_calibration.ensemble_temperature import components, fit_ensemble
from workbench_calibration.histogram_binning import fit_histogram
from workbench_calibration.isotonic import fit_isotonic
from workbench_calibration.per_class import SortedEvents, renormalise
from workbench_calibration.samples import Samples
from workbench_calibration.spline import fit_spline
from workbench_calibration.temperature import fit_temperature

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
    single, separate = (
        fit_isotonic(Samples.of(logit, label), variant)(other) for variant in ("multi_class", "one_vs_rest")
    )
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
    return (
        middle
        + integrate.quad(lambda t: t ** (hits + a - 1) * (1 - t) ** misses, 0.5, 1, weight="alg", wvar=(0, b - 1))[0]
    )


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
    assert p[rows, best] == pytest.approx(fitted.calibrate(confidence[rows, best]))
    assert (p <= 1).all()
    assert p[-2:, 2] / p[-2:, 1] == pytest.approx(np.exp(-1))  # the others keep their proportions
    assert fitted.calibrate(np.array([0.0]))[0] == fitted.calibrate(np.array([fitted.score[0]]))[0]  # constant beyond the ends


def textbook_spline(score, hit, knots):
    """Calibrated scores of sorted scores by the natural basis of truncated powers (Hastie, Tibshirani, Friedman, eq. 5.4)."""
    u, at = np.linspace(0, 1, len(score)), np.linspace(0, 1, knots)
    cube = lambda k: (np.maximum(u - at[k], 0) ** 3 - np.maximum(u - at[-1], 0) ** 3) / (at[-1] - at[k])  # noqa: E731
    square = lambda k: 3 * (np.maximum(u - at[k], 0) ** 2 - np.maximum(u - at[-1], 0) ** 2) / (at[-1] - at[k])  # noqa: E731
    basis = [np.ones_like(u), u, *(cube(k) - cube(knots - 2) for k in range(knots - 2))]
    slope = [np.zeros_like(u), np.ones_like(u), *(square(k) - square(knots - 2) for k in range(knots - 2))]
    weight = np.linalg.lstsq(np.stack(basis, 1), np.cumsum(np.array(hit) - score) / len(score), rcond=None)[0]
    return score + weight @ np.stack(slope)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_spline_of_a_rank_is_that_of_the_scores_picked_by_hand(rank):
    """Sorted in plain Python, ties by class; fitted in another basis."""
    logit, label = skewed(300, 4)
    logit = torch.round(logit)  # ties
    pairs = []
    for row, y in zip(torch.softmax(logit, 1).tolist(), label.tolist(), strict=True):
        k = sorted(range(4), key=lambda k: (-row[k], k))[rank - 1]
        pairs.append((row[k], float(k == y)))
    score, hit = (np.array(column) for column in zip(*sorted(pairs, key=lambda pair: pair[0]), strict=True))
    fitted = fit_spline(Samples.of(logit, label), knots=6, rank=rank)
    assert np.array_equal(fitted.score, score)
    assert fitted.calibrated == pytest.approx(textbook_spline(score, hit, 6), abs=1e-9)


@pytest.mark.parametrize("rank", [2, 3])
def test_the_class_of_the_rank_gets_the_calibrated_score_and_the_others_keep_their_proportions(rank):
    logit, label = skewed(400, 3)
    given = torch.softmax(logit, 1).numpy()
    fitted = fit_spline(Samples.of(2 * logit, label), knots=6, rank=rank)
    p = fitted(logit).numpy()
    assert p.sum(1) == pytest.approx(1)
    changed = 0
    for new, old in zip(p, given, strict=True):
        k, *others = np.roll(np.argsort(-old, kind="stable"), 1 - rank)
        assert new[k] == pytest.approx(fitted.calibrate(old[[k]])[0])
        assert new[others] == pytest.approx(old[others] * (1 - new[k]) / old[others].sum())
        raised = new[k] > old.max() * (1 - new[k]) / (1 - old[k])  # what the top score is scaled to
        assert (new.argmax() != old.argmax()) == raised
        changed += raised
    assert changed > 0


def test_a_rank_beyond_the_classes_is_refused():
    logit, label = skewed(20, 3)
    with pytest.raises(InputError, match="rank: expected at most the number of classes, 3, got 4"):
        fit_spline(Samples.of(logit, label), knots=6, rank=4)


@stored_outputs
@pytest.mark.parametrize("file", ["vgg16-cifar-10", "densenet-bc-100-cifar-100", "lenet-5-cifar-10"])
def test_the_spline_of_the_second_score_of_stored_classifiers_halves_its_ks_error(file):
    fit_logit, fit_label, logit, label = stored(file)
    fitted = fit_spline(Samples.of(fit_logit, fit_label), knots=6, rank=2)
    given = torch.softmax(logit, 1).numpy()
    second = np.argsort(-given, axis=1, kind="stable")[:, 1]
    score, hit = given[np.arange(len(given)), second], second == label.numpy()
    before, after = (kolmogorov_smirnov_error(one, hit) for one in (score, fitted.calibrate(score)))
    assert after < before / 2


@stored_outputs
@pytest.mark.parametrize(("file", "error"), [("densenet-bc-100-cifar-100", 0.0106), ("vgg16-cifar-10", 0.0134)])
def test_the_spline_of_stored_classifiers_has_the_reference_ks_error(file, error):
    fit_logit, fit_label, logit, label = stored(file)
    confidence, best = torch.softmax(logit, 1).max(1)
    top = fit_spline(Samples.of(fit_logit, fit_label), knots=6).calibrate(confidence.numpy())
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
