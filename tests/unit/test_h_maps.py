"""Maps of h-calibration: all keep the order of classes, and each is the function that it says."""

import numpy as np
import pytest
import torch
from scipy import integrate
from workbench import InputError

from unit.h_cases import overconfident
from workbench_calibration.h_maps import CANDIDATES, PiecewiseLinear, make_map
from workbench_calibration.h_monotone import MonotoneNetwork


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_map_gives_probabilities_and_keeps_the_order_of_classes(name):
    logit, _ = overconfident(40, 6)
    z = torch.log_softmax(torch.as_tensor(logit), 1)
    map_ = make_map(name, torch.Generator().manual_seed(1), z)
    with torch.no_grad():
        for parameter in map_.parameters():  # as after training: anything
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        p = map_(z)
    assert torch.allclose(p.exp().sum(1), torch.ones(40, dtype=torch.float64))
    order = z.argsort(1)
    assert (p.gather(1, order).diff(dim=1) >= -1e-9).all()
    assert (p.argmax(1) == z.argmax(1)).all()


def test_the_piecewise_linear_map_starts_as_the_identity_and_interpolates_its_knots():
    map_ = PiecewiseLinear(4)
    z = torch.linspace(-130, 0, 261, dtype=torch.float64)
    assert torch.allclose(map_.curve(z), z)
    with torch.no_grad():
        map_.slope.copy_(torch.tensor([2.0, -0.5, 1.0, 3.0]))
    knots = [-100, -75, -50, -25, 0]
    expected = np.interp(z[z >= -100], knots, [-(50 + 12.5 + 25 + 75), -(50 + 12.5 + 25), -(50 + 12.5), -50, 0])
    assert map_.curve(z[z >= -100]).detach().numpy() == pytest.approx(expected)
    assert float(map_.curve(torch.tensor(-110.0, dtype=torch.float64)).detach()) == pytest.approx(-162.5 - 30)


def test_the_official_piecewise_linear_map_is_not_monotone_and_ours_is():
    """Why it was rebuilt: the official formula measures within a segment from the knot's value, not its position."""
    slope = torch.tensor([2.0, 0.3, 1.5, 1.0, 1.0], dtype=torch.float64)
    steps, delta = torch.linspace(0, 100, 5, dtype=torch.float64), 25.0
    z = torch.linspace(-99, 0, 400, dtype=torch.float64)
    v1 = (((-z[:, None] >= steps) * slope).sum(1) - 1) * delta
    v2 = (((-z[:, None] + delta >= steps) * slope).sum(1) - 1) * delta
    official = -(v1 + (v2 - v1) / delta * (-z - v1))
    map_ = PiecewiseLinear(4)
    with torch.no_grad():
        map_.slope.copy_(slope[:4])
    assert (official.diff() < 0).any()
    assert (map_.curve(z).diff() > 0).all()


def network(size, spread, seed=0):
    """A map whose network has parameters larger than at the start by `spread`, as training may leave them."""
    z = torch.log_softmax(torch.as_tensor(overconfident(50, 5)[0]), 1)
    map_ = MonotoneNetwork(size, torch.Generator().manual_seed(seed), z)
    with torch.no_grad():
        for parameter in map_.parameters():
            parameter *= spread
    return map_, z


@pytest.mark.parametrize(("size", "spread"), [(2, 1), (10, 1), (10, 6), (50, 3)])
def test_the_network_is_the_integral_of_its_integrand(size, spread):
    map_, z = network(size, spread)
    for x in (float(z.min() - map_.mean) / float(map_.deviation), -0.4, 0.0, 0.9):
        value = torch.tensor(x, dtype=torch.float64) * map_.deviation + map_.mean
        grid = torch.linspace(0, x, 20_001, dtype=torch.float64)
        exact = integrate.simpson(map_.integrand(grid).detach().numpy(), x=grid.numpy())
        assert float(map_.curve(value).detach()) == pytest.approx(exact, rel=1e-6, abs=1e-9)


def test_the_slope_of_the_network_in_its_parameters_is_that_of_the_written_out_integral():
    map_, z = network(10, 2)
    value = z.reshape(-1)[::10]
    middle = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    x = (value - map_.mean) / map_.deviation
    written_out = (map_.integrand(x[:, None] * middle).mean(1) * x).square().sum()
    expected = torch.autograd.grad(written_out, list(map_.parameters()))
    found = torch.autograd.grad(map_.curve(value).square().sum(), list(map_.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("seed", range(3))
def test_the_network_is_monotone_and_finite_where_its_integrand_nearly_vanishes_or_explodes(seed):
    map_, _ = network(10, 40, seed)
    curve = map_.curve(torch.linspace(-90, 0, 5001, dtype=torch.float64))
    assert torch.isfinite(curve).all()
    assert (curve.diff() >= -1e-12 * curve.abs().max()).all()
    slope = torch.autograd.grad(curve.sum(), list(map_.parameters()))
    assert all(torch.isfinite(part).all() for part in slope)


def test_a_network_with_no_crossing_and_entries_all_alike_is_integrated_too():
    map_, _ = network(2, 1)
    with torch.no_grad():
        map_.net[4].weight.zero_()
        map_.net[4].bias.fill_(-0.5)  # the integrand is exp(-0.5)
        value = torch.full((4,), -3.0, dtype=torch.float64)
        expected = float((value[0] - map_.mean) / map_.deviation) * np.exp(-0.5)
        assert map_.curve(value).tolist() == pytest.approx([expected] * 4, rel=1e-12)


def test_the_mixture_is_the_logarithm_of_mixed_softmaxes_in_any_blocks(monkeypatch):
    z = torch.log_softmax(torch.as_tensor(overconfident(30, 4)[0]), 1)
    map_ = make_map("linear-16", torch.Generator().manual_seed(0), z)
    share = map_.weight.abs() / map_.weight.abs().sum()
    expected = torch.log(sum(w * torch.softmax(s.abs() * z, 1) for w, s in zip(share, map_.scale, strict=True)))
    assert torch.allclose(map_(z), expected)
    slope = torch.autograd.grad(expected[:, 0].sum(), list(map_.parameters()))
    monkeypatch.setattr("workbench_calibration.h_maps.MIXTURE_ENTRIES", 7 * 16 * 4)
    assert torch.allclose(map_(z), expected)
    for one, other in zip(torch.autograd.grad(map_(z)[:, 0].sum(), list(map_.parameters())), slope, strict=True):
        assert torch.allclose(one, other)


def test_the_mixture_with_equal_scales_is_temperature_scaling():
    z = torch.as_tensor(overconfident(30, 4)[0])
    map_ = make_map("linear-16", torch.Generator().manual_seed(0), z)
    with torch.no_grad():
        map_.scale.fill_(-0.4)
    expected = torch.log_softmax(0.4 * z, 1)
    assert torch.allclose(map_(torch.log_softmax(z, 1)), expected)


@pytest.mark.parametrize("name", ["cubic-3", "linear", "linear-0", "pwlinear-x"])
def test_unknown_maps_are_named(name):
    with pytest.raises(InputError, match=name):
        make_map(name, torch.Generator(), torch.zeros(2, 2, dtype=torch.float64))
