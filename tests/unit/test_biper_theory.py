"""BiPer: closed forms of the quantisation error against integrals and samples, gradients against their definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from unit.biper_cases import noise
from workbench_quantization.biper_layers import (
    BinaryLayer,
    binary_input,
    binary_periodic_weight,
    effective_weight,
    periodic_weight,
    sign,
    sine_penalty,
)
from workbench_quantization.biper_theory import LIMIT, mean_absolute, mean_square, quantisation_error, worst_scale
from workbench_quantization.biper_training import measured_errors, penalty_weight

# -------------------------------------------------------------------------------------------------------------- theory


@pytest.mark.parametrize("u", [0.02, 0.3, 0.954882, 3.0, 12.0])
def test_moments_are_the_integrals_over_the_laplace_density(u: float) -> None:
    """Integrated half period by half period, so that the kinks of |sin| lie at the ends."""

    def integral(function: Any) -> float:
        ends = [k * math.pi for k in range(math.ceil(45 * u / math.pi) + 1)]
        return sum(
            quad(lambda x: function(x) * math.exp(-x / u) / u, low, high, epsabs=1e-13)[0]
            for low, high in itertools.pairwise(ends)
        )

    assert float(mean_absolute(u)) == pytest.approx(integral(lambda x: abs(math.sin(x))), abs=1e-9)
    assert float(mean_square(u)) == pytest.approx(integral(lambda x: math.sin(x) ** 2), abs=1e-9)


def test_error_agrees_with_two_million_samples() -> None:
    rng = np.random.default_rng(0)
    for u in (0.2, 0.954882, 2.5):
        sine = np.sin(rng.laplace(0, u, 2_000_000))
        # The best scale by a search, not by its formula.
        found = minimize_scalar(
            lambda gamma, sine=sine: float(np.mean((sine - gamma * np.sign(sine)) ** 2)),
            bounds=(0, 1),
            method="bounded",
            options={"xatol": 1e-3},
        )
        assert float(quantisation_error(u)) == pytest.approx(found.fun, abs=3e-4)
        assert float(mean_absolute(u)) == pytest.approx(found.x, abs=2e-3)


def test_largest_error_is_the_published_one() -> None:
    u, error = worst_scale()
    assert u == pytest.approx(0.954882, abs=1e-5)
    assert error == pytest.approx(0.102835, abs=1e-6)
    assert float(quantisation_error(1e4)) == pytest.approx(LIMIT, abs=1e-6)
    assert float(quantisation_error(0.0)) == 0.0
    assert float(quantisation_error(1e-3)) < 1e-5


def test_measured_errors_of_laplace_weights_are_the_closed_form() -> None:
    layer = nn.Linear(1500, 1000, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.distributions.Laplace(0.0, 0.07).sample(layer.weight.shape))
    measured = measured_errors(nn.Sequential(BinaryLayer(layer, omega=20)))
    u = 20 * float(measured["laplace_scale"][0])
    assert u == pytest.approx(1.4, rel=0.01)
    assert measured["quantisation_error"][0] == pytest.approx(float(quantisation_error(u)), abs=5e-4)
    assert measured["sign_distance"][0] == pytest.approx(1 - float(mean_absolute(u)), abs=1e-3)


# ----------------------------------------------------------------------------------------------------------- gradients


def test_gradient_of_stage_one_is_that_of_finite_differences() -> None:
    weight = noise(4, 3, 3, 3).double() * 0.1
    picture, omega = noise(2, 3, 6, 6, seed=1).double(), 20.0

    def loss(values: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(picture, periodic_weight(values, omega)).square().mean()

    assert torch.autograd.gradcheck(loss, weight.requires_grad_(True))


def test_gradient_of_stage_two_is_that_of_the_sine() -> None:
    weight = (noise(1000) * 0.2).requires_grad_(True)
    upstream = noise(1000, seed=1)
    binary_periodic_weight(weight, 20.0).backward(upstream)
    torch.testing.assert_close(weight.grad, upstream * 20 * torch.cos(20 * weight.detach()), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("surrogate", ["identity", "clipped", "polynomial"])
def test_surrogates_are_derivatives_of_what_they_stand_for(surrogate: str) -> None:
    """The piecewise-quadratic sign of Bi-Real net, the clipped line, the line: differentiated by autograd."""
    stands_for = {
        "identity": lambda x: x,
        "clipped": lambda x: x.clamp(-1, 1),
        "polynomial": lambda x: torch.where(x < 0, 2 * x + x**2, 2 * x - x**2).where(x.abs() < 1, torch.sign(x)),
    }[surrogate]
    values = (noise(500) * 1.5).double()
    first, second = values.clone().requires_grad_(True), values.clone().requires_grad_(True)
    upstream = noise(500, seed=2).double()
    sign(first, surrogate).backward(upstream)  # type: ignore[arg-type]
    stands_for(second).backward(upstream)
    torch.testing.assert_close(first.grad, second.grad)


def test_nothing_has_a_third_level() -> None:
    zeros = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3.0])
    assert sign(zeros, "identity").tolist() == [1, 1, 1, -1, 1]
    weight = torch.cat([torch.zeros(5), noise(200), torch.arange(-3, 4) * math.pi / 20])
    for mode in ("square", "sign_clipped", "sign_polynomial"):
        assert set(effective_weight(weight, mode, 20.0).tolist()) == {-1.0, 1.0}  # type: ignore[arg-type]
    assert set(binary_input(torch.zeros(2, 3, 4, 4), "polynomial", training=False).unique().tolist()) == {1.0}


def test_inputs_are_divided_by_their_deviation_only_while_training() -> None:
    """As in the official code: the sign stays, the place where the surrogate is taken moves."""
    values = noise(4, 3, 5, 5) * 7
    for training in (True, False):
        given = values.clone().requires_grad_(True)
        out = binary_input(given, "polynomial", training=training)
        assert torch.equal(out.detach(), torch.sign(values))
        reference = values.clone().requires_grad_(True)
        scaled = reference / torch.sqrt(reference.var([1, 2, 3], keepdim=True) + 1e-5) if training else reference
        # d/dx of the surrogate at the scaled place, through the division by autograd.
        place = scaled.detach()
        (scaled * (2 - 2 * place.abs()).clamp_min(0)).sum().backward()
        out.sum().backward()
        torch.testing.assert_close(given.grad, reference.grad)


def test_penalty_is_the_mean_squared_sine_and_its_weight_rises_as_in_the_code() -> None:
    weight = noise(3, 4) * 0.1
    torch.testing.assert_close(sine_penalty(weight, 20.0), torch.sin(20 * weight).square().mean())
    assert penalty_weight(0, 200, 0.85, 0.99) == pytest.approx(0.85)
    assert penalty_weight(200, 200, 0.85, 0.99) == pytest.approx(0.99)
    assert penalty_weight(100, 200, 0.85, 0.99) == pytest.approx(0.85 + 0.14 * (math.sqrt(math.e) - 1) / (math.e - 1))
    assert penalty_weight(7, 20, 0.037, 0.037) == pytest.approx(0.037)
