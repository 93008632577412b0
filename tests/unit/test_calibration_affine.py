"""Scales, shifts and full matrices of logits: the optimum of their likelihoods, and the search for penalties."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from unit.calibration_samples import likelihood, skewed, stored, stored_outputs
from workbench_calibration.affine import fit_diagonal, fit_full
from workbench_calibration.matrix_scaling import (
    PENALTIES,
    canonical,
    clearly_above,
    fit_matrix,
    scores,
)
from workbench_calibration.samples import Samples
from workbench_calibration.temperature import fit_temperature


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
    vector, temperature = (
        fit_diagonal(Samples.of(fit_logit, fit_label)),
        fit_temperature(Samples.of(fit_logit, fit_label)),
    )
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
