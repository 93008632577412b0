"""The maths of Double Rounding: integers, gradients, rates, first scales, against brute force, closed forms, torch's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unit.quantization_cases import noise
from unit.switchable_cases import WIDTHS
from workbench_quantization.nested_rounding import (
    initial_scale,
    learned_step_start,
    least_error_step,
    level_range,
    nested_weight,
    scale_rate,
    shifted_levels,
    switch_errors,
    switched_levels,
    transfer_curves,
    width_factor,
)
from workbench_quantization.quantizer import learned_scale_quantise
from workbench_quantization.switchable import SwitchableLayer

INT8 = torch.arange(-128, 128)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_shift_of_the_stored_integers_is_the_second_rounding_bit_for_bit(bits: int) -> None:
    """All 256 integers, against exact arithmetic: the nearest level, halves up, cut to the range."""
    distance = 8 - bits
    exact = [
        min(max((2 * int(q) + 2**distance) // 2 ** (distance + 1), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
        for q in INT8
    ]
    assert shifted_levels(INT8, 8, bits).tolist() == exact
    assert switched_levels(INT8.float(), 8, bits).tolist() == exact


def test_half_to_even_differs_from_the_shift_where_halves_are() -> None:
    """32, 8 and 2 of the 256 integers for 6, 4 and 2 bits."""
    differ = {
        bits: int((switched_levels(INT8.float(), 8, bits, rounding="half_even") != shifted_levels(INT8, 8, bits)).sum())
        for bits in (6, 4, 2)
    }
    assert differ == {6: 32, 4: 8, 2: 2}


def test_two_bits_have_four_levels() -> None:
    assert sorted(set(shifted_levels(INT8, 8, 2).tolist())) == [-2, -1, 0, 1]
    assert sorted(set(switched_levels(INT8.float(), 8, 2, "floor").tolist())) == [-2, -1, 0, 1]


def test_switching_in_two_steps_is_not_switching_at_once() -> None:
    """Rounding 8 to 4 to 2 bits rounds twice; that is why every width is made from the stored one."""
    twice = switched_levels(switched_levels(INT8.float(), 8, 4), 4, 2)
    assert int((twice != switched_levels(INT8.float(), 8, 2)).sum()) == 24


@pytest.mark.parametrize("rule", ["double", "floor"])
@pytest.mark.parametrize("bits", [6, 4, 2])
def test_errors_of_switching_are_those_of_a_loop(bits: int, rule: Any) -> None:
    weight, scale = noise(400) * 0.3, 0.011
    step = scale * 2 ** (8 - bits)
    low, high = level_range(bits)
    switched, direct = [], []
    for value in weight.double().tolist():
        whole = min(max(int(np.floor(value / scale + 0.5)), -128), 127)
        cut = np.floor(whole / 2 ** (8 - bits) + (0.5 if rule == "double" else 0))
        switched.append(min(max(cut, low), high) * step)
        direct.append(min(max(np.floor(value / step + 0.5), low), high) * step)
    switched, direct, exact = np.array(switched), np.array(direct), weight.double().numpy()
    found = switch_errors(weight, scale, 8, bits, rule, "half_up")
    expected = (
        ((switched - direct) ** 2).sum() / (direct**2).sum(),
        ((switched - exact) ** 2).sum() / ((direct - exact) ** 2).sum(),
        (switched - direct).mean() / step,
    )
    assert found == pytest.approx(expected, rel=1e-9)


def test_switching_costs_what_the_paper_s_rule_costs_on_trained_weights(shared_data: Path) -> None:
    """ResNet-20, 8-bit store with the largest weight as range: errors over direct rounding, for rounding and for floor."""
    from safetensors.torch import load_file

    state = load_file(shared_data / "weights" / "cifar10_resnet20.safetensors")
    convolutions = [value for name, value in state.items() if value.ndim == 4 and name != "conv1.weight"]
    assert len(convolutions) == 18
    rows = {
        rule: np.array(
            [
                [switch_errors(w, initial_scale(w, 8, 2, "max"), 8, b, rule, "half_up") for b in (6, 4, 2)]
                for w in convolutions
            ]
        ).mean(0)
        for rule in ("double", "floor")
    }
    assert rows["double"][:, 1] == pytest.approx([1.19, 1.012, 1.0006], abs=0.02)
    # On the 8-bit grid of these layers; the paper's direction, and magnitudes between 2.5 and 6.
    assert rows["floor"][:, 1] == pytest.approx([2.7, 3.7, 5.7], rel=0.15)
    assert rows["floor"][:, 2] == pytest.approx([-0.35, -0.43, -0.46], abs=0.04)
    assert abs(rows["double"][:, 2]).max() < 0.15


def test_staircases_are_those_of_the_four_schemes() -> None:
    values = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    curves = dict(zip(("LSQ", "floor", "AdaBits", "double"), transfer_curves(values, 8, (8, 2)), strict=True))
    assert np.unique(curves["AdaBits"][1]).tolist() == [-0.75, -0.25, 0.25, 0.75]
    step = 64 / 127
    for name in ("LSQ", "double"):
        assert np.allclose(np.unique(curves[name][1]), [-2 * step, -step, 0, step])
    apart = (curves["LSQ"][1] - curves["double"][1]).abs() > 1e-9
    assert 0 < float(apart.double().mean()) < 0.01  # next to the borders of cells only
    assert float((curves["floor"][1] - values).mean()) < -0.2 < float((curves["double"][1] - values).mean())
    assert torch.equal(curves["LSQ"][0], curves["double"][0])  # the stored width is switched to itself


# ------------------------------------------------------------------------------------------------------------ gradients


class StraightRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, down: bool) -> Tensor:
        return torch.floor(values) if down else torch.floor(values + 0.5)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def by_definition(weight: Tensor, scale: Tensor, highest: int, bits: int) -> Tensor:
    """The definition as a graph: two roundings that pass gradients, two clips; clips of integers commute with rounding."""
    multiple = 2 ** (highest - bits)
    stored = StraightRound.apply((weight / scale).clamp(*level_range(highest)), False)
    return StraightRound.apply((stored / multiple).clamp(*level_range(bits)), False) * scale * multiple


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
def test_gradients_are_autograd_s_of_the_definition(bits: int) -> None:
    weight, upstream = noise(600) * 0.5, noise(600, seed=1)
    given: list[list[Tensor]] = []
    for function in (by_definition, nested_weight):
        w, s = weight.clone().requires_grad_(True), torch.tensor(0.007, requires_grad=True)
        value = function(w, s, 8, bits)
        value.backward(upstream)
        given.append([value.detach(), w.grad, s.grad])
    for mine, theirs in zip(*given, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert 0 < float((given[0][1] == 0).float().mean()) < 1  # some weights lie outside


@pytest.mark.parametrize("bits", [6, 4, 2])
def test_the_gradient_of_the_scale_is_the_paper_s(bits: int) -> None:
    """Wl 2^D - W / s inside the range, 2^D times its bound outside, one weight at a time."""
    scale, multiple = 0.01, 2 ** (8 - bits)
    low, high = level_range(bits)
    for value in (0.0, 0.003, 0.2, -0.35, 0.9, 1.26, -1.27, -3.0, 3.0):
        s = torch.tensor(scale, requires_grad=True)
        nested_weight(torch.tensor([value]), s, 8, bits).sum().backward()
        whole = min(max(np.floor(value / scale + 0.5), -128), 127)
        if value / scale < -128 or whole / multiple > high:
            expected = multiple * (low if value < 0 else high)
        else:
            expected = min(max(np.floor(whole / multiple + 0.5), low), high) * multiple - value / scale
        assert float(s.grad) == pytest.approx(expected, abs=1e-3), value


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_scale_is_moved_by_the_derivative_that_was_asked_for(bits: int) -> None:
    """By the width's own step t = 2^D s with autograd, by s, and by t times LSQ's 1 / sqrt(N Qp); the weight does not change."""
    layer, upstream = nn.Conv2d(4, 3, 3), noise(3, 4, 3, 3, seed=2)
    options: dict[str, Any] = {"rule": "double", "rounding": "half_up", "start": "max", "relative": True}
    found = {}
    for kind in ("own step", "lsq", "stored step"):
        net = SwitchableLayer(layer, WIDTHS, gradient=kind, shown=None, input_start="lsq", signed=False, **options)
        net.weight_at(bits).backward(upstream)
        found[kind] = float(net.weight_scale(bits).gradient)
    step = (net.weight_scale(bits)().detach() * 2 ** (8 - bits)).requires_grad_(True)
    nested_weight(layer.weight.detach(), step / 2 ** (8 - bits), 8, bits).backward(upstream)
    assert found["own step"] == pytest.approx(float(step.grad), rel=1e-4)
    assert found["stored step"] == pytest.approx(float(step.grad) * 2 ** (8 - bits), rel=1e-4)
    assert found["lsq"] == pytest.approx(float(step.grad) / (108 * (2 ** (bits - 1) - 1)) ** 0.5, rel=1e-4)
    # A scale that belongs to one width is its own step.
    own = SwitchableLayer(
        layer,
        WIDTHS,
        gradient="own step",
        shown=None,
        input_start="lsq",
        signed=False,
        **(options | {"rule": "direct"}),
    )
    own.weight_at(bits).backward(upstream)
    scale = own.weight_scale(bits)().detach().requires_grad_(True)
    nested_weight(layer.weight.detach(), scale, 8, bits, "direct").backward(upstream)
    assert float(own.weight_scale(bits).gradient) == pytest.approx(float(scale.grad), rel=1e-4)


def test_gradients_at_the_stored_width_are_those_of_torchs_kernel() -> None:
    """LSQ: torch's learnable per-tensor fake quantisation, forward and both gradients; also for the inputs' unsigned range."""
    for low, high, function in (
        (-8, 7, lambda v, s: nested_weight(v, s, 4, 4, "direct", "half_even")),
        (0, 15, lambda v, s: learned_scale_quantise(v, s, 0, 15)),
    ):
        values = noise(500) * 1.4
        scale = 0.31
        # Torch asks whether the rounded value is inside, LSQ whether the value is: they differ in the last half step.
        steps = values / scale
        values = values[~(((steps > high) & (steps < high + 0.5)) | ((steps < low) & (steps > low - 0.5)))]
        mine, theirs = values.clone().requires_grad_(True), values.clone().requires_grad_(True)
        own, other = torch.tensor(scale, requires_grad=True), torch.tensor([scale], requires_grad=True)
        first = function(mine, own)
        second = torch._fake_quantize_learnable_per_tensor_affine(theirs, other, torch.zeros(1), low, high, 1.0)
        torch.testing.assert_close(first, second)
        for value in (first, second):
            (value * noise(*value.shape, seed=3)).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad)
        torch.testing.assert_close(own.grad, other.grad[0], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------- rates


def test_factors_of_the_widths_are_those_printed() -> None:
    assert [width_factor(8, bits) for bits in WIDTHS] == pytest.approx([1, 0.1, 0.01, 0.001])
    assert [width_factor(4, bits) for bits in (4, 3, 2)] == pytest.approx([1, 0.5, 0.1])


def test_the_rate_of_the_scales_follows_the_formula() -> None:
    gradients = torch.tensor([0.02, -0.5, 7.0])  # absolute, cut at 1: mean (0.02 + 0.5 + 1) / 3
    assert scale_rate("multiplicative", 5e-4, gradients, 0.1) == pytest.approx(0.1 * 5e-4 * (1 - 1.52 / 3))
    assert scale_rate("multiplicative", 5e-4, gradients, 0.1, clip=0.1) == pytest.approx(0.1 * 5e-4 * (1 - 0.22 / 3))
    assert scale_rate("paper", 0.6, gradients, 0.1) == pytest.approx(0.1 * (0.6 - 1.52 / 3))
    assert scale_rate("paper", 5e-4, gradients, 0.1) == 0.0  # as printed it would be negative
    assert scale_rate("off", 5e-4, gradients, 0.1) == 5e-4


@pytest.mark.parametrize(("low", "high"), [(0, 3), (0, 15), (-2, 1), (-8, 7)])
def test_the_first_step_of_an_input_has_nearly_the_least_squared_error(low: int, high: int) -> None:
    """Against a hundred times finer search; LSQ's formula is no better, and much worse where few values are far from 0."""

    def error(step: float) -> float:
        return float((torch.round(values / step).clamp(low, high) * step - values).square().mean())

    for sparse in (0.0, 1.5):
        values = F.relu(noise(4000) - sparse) if low == 0 else noise(4000)
        found, largest = error(least_error_step(values, low, high)), float(values.abs().max())
        best = min(error(float(step)) for step in largest / high * torch.logspace(-1.5, 0, 1000))
        assert best <= found < 1.05 * best
        formula = error(learned_step_start(values, high))
        assert found <= formula
        assert formula > 2 * found or not (sparse and high == 3)
