"""AdaQuant of one layer: quantiser, folding and optimisation against kernels, torch's fusion and closed forms."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import InputError

from unit.quantization_cases import Residual, folded, generator, noise, random_norms
from workbench_quantization.adaquant_layers import (
    PARTS,
    Rates,
    Student,
    error,
    initial,
    integers,
    optimise,
    output,
)
from workbench_quantization.folding import Unit
from workbench_quantization.quantizer import affine_quantise

RATES = Rates(1e-3, 1e-3, 1e-3, 1e-2)


# ------------------------------------------------------------------------------------------------------------ quantiser


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("low", "span"), [(-1.3, 3.1), (0.0, 2.0), (-2.5, 2.5)])
def test_affine_quantiser_equals_torchs_kernel(bits: int, low: float, span: float) -> None:
    values, levels = noise(500) * 1.5, 2**bits - 1
    step = np.float32(span) / levels
    zero = int(np.clip(np.round(-np.float32(low) / step), 0, levels))
    expected = torch.fake_quantize_per_tensor_affine(values, float(step), zero, 0, levels)
    found = affine_quantise(values, torch.tensor(low), torch.tensor(span), bits)
    # A value on the border of two levels may fall either way in the last bit.
    assert ((found - expected).abs() > 1e-5).float().mean() < 0.005


def test_affine_gradients_are_those_of_torchs_learnable_kernel() -> None:
    """d/d values is 1 inside and 0 outside of the range; d/d span is torch's d/d scale over n (zero-point fixed at 0)."""
    values, bits = noise(200) * 2, 4
    levels = 2**bits - 1
    span = torch.tensor(2.0, requires_grad=True)
    x = values.clone().requires_grad_(True)
    affine_quantise(x, torch.tensor(0.0), span, bits).square().sum().backward()
    scale = torch.tensor([2.0 / levels], requires_grad=True)
    other = values.clone().requires_grad_(True)
    torch._fake_quantize_learnable_per_tensor_affine(
        other, scale, torch.tensor([0.0]), 0, levels, 1.0
    ).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(span.grad, scale.grad[0] / levels, rtol=1e-4, atol=1e-4)


def test_integers_give_the_weight_that_is_computed_with() -> None:
    unit = Unit("a", nn.Conv2d(3, 5, 3))
    state = initial(unit, torch.rand(4, 3, 8, 8), 3, 8)
    whole, step, zero = integers(state)
    assert whole.dtype == torch.uint8
    assert int(whole.max()) == 7
    assert int(whole.min()) == 0
    torch.testing.assert_close((whole.float() - zero.view(-1, 1, 1, 1)) * step.view(-1, 1, 1, 1), state.rounded)


def test_input_ranges_are_means_of_the_samples_extremes() -> None:
    inputs = torch.tensor([[0.5, 2.0, -1.0], [1.0, 4.0, 3.0]])
    state = initial(Unit("a", nn.Linear(3, 2)), inputs, 8, 8)
    # Lows -1 and 1 average to 0; highs 2 and 4 to 3.
    assert (float(state.input_low), float(state.input_span)) == (0.0, 3.0)
    positive = initial(Unit("a", nn.Linear(3, 2)), inputs.abs() + 1, 8, 8)
    assert float(positive.input_low) == 0.0  # the range must contain 0


# -------------------------------------------------------------------------------------------------------------- folding


def test_folding_equals_torchs_fusion_and_keeps_the_structure() -> None:
    torch.manual_seed(0)
    model, image = random_norms(Residual()), torch.rand(3, 2, 6, 6)
    plain = copy.deepcopy(model)
    with torch.no_grad():
        expected = plain(image)
        units = folded(model, image)
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [(u.name, u.norm is not None, u.rectified) for u in units] == [
        ("conv1", True, True),
        ("conv2", True, False),  # the sum is rectified, not the output
        ("up", True, True),
        ("head", False, False),
    ]
    for unit, norm in zip(units[:2], ("norm1", "norm2"), strict=True):
        fused = nn.utils.fusion.fuse_conv_bn_eval(plain.get_submodule(unit.name), plain.get_submodule(norm))
        torch.testing.assert_close(unit.layer.weight, fused.weight)
        torch.testing.assert_close(unit.bias, fused.bias)
        torch.testing.assert_close(unit.std, plain.get_submodule(norm).weight.abs())


def test_a_norm_that_serves_two_layers_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

        def forward(self, image: Tensor) -> Tensor:
            return (self.norm(self.one(image)) + self.norm(self.two(image))).mean((2, 3))

    torch.manual_seed(0)
    with pytest.raises(InputError, match="more than once"):
        folded(random_norms(Shared()), torch.rand(2, 1, 6, 6))


# ---------------------------------------------------------------------------------------------------------- one layer


def test_collected_outputs_do_not_change_with_the_shortcut_added_in_place() -> None:
    torch.manual_seed(0)
    model, image = random_norms(Residual()), torch.rand(6, 2, 6, 6)
    units = folded(model, image)
    student = Student(model, units)
    received, returned = student.collect(1, list(image.split(4)))
    with torch.no_grad():
        first = F.relu(model.norm1(model.conv1(image)))
        torch.testing.assert_close(received, first)
        torch.testing.assert_close(returned, model.norm2(model.conv2(first)))
    state = initial(units[1], received, 32, 32)
    torch.testing.assert_close(output(units[1], state, received), returned, rtol=1e-4, atol=1e-5)


def problem(seed: int = 0) -> tuple[Unit, Tensor, Tensor]:
    torch.manual_seed(seed)
    layer = nn.Linear(6, 4)
    inputs = torch.randn(200, 6) @ torch.randn(6, 6)
    return Unit("a", layer), inputs, layer(inputs).detach()


def test_optimisation_lowers_the_error_on_other_samples() -> None:
    unit, inputs, target = problem()
    start = initial(unit, inputs[:150], 3, 4)
    end = optimise(
        unit, start, inputs[:150], target[:150], rates=RATES, parts=PARTS, iterations=120, batch=50, rectify=True,
        generator=generator(),
    )  # fmt: skip
    before = float(error(unit, start, inputs[150:], target[150:], rectify=True))
    after = float(error(unit, end, inputs[150:], target[150:], rectify=True))
    assert after < 0.8 * before


@pytest.mark.parametrize("part", PARTS)
def test_only_the_parts_asked_for_change(part: Any) -> None:
    unit, inputs, target = problem()
    start = initial(unit, inputs, 3, 4)
    end = optimise(
        unit,
        start,
        inputs,
        target,
        rates=RATES,
        parts=[part],
        iterations=5,
        batch=20,
        rectify=True,
        generator=generator(),
    )
    owner = {"weight": "weights", "bias": "bias", "weight_low": "weight_range", "weight_span": "weight_range",
             "input_low": "input_range", "input_span": "input_range"}  # fmt: skip
    changed = {of for name, of in owner.items() if not torch.equal(getattr(start, name), getattr(end, name))}
    assert changed == {part}
    assert torch.equal(unit.layer.weight, problem()[0].layer.weight)


def test_bias_alone_finds_its_closed_form() -> None:
    """With all else fixed the best bias takes off the mean error of each output."""
    unit, inputs, target = problem()
    start = initial(unit, inputs, 2, 32)
    end = optimise(
        unit, start, inputs, target, rates=Rates(1, 2e-2, 1, 1), parts=["bias"], iterations=600, batch=200, rectify=True,
        generator=generator(),
    )  # fmt: skip
    with torch.no_grad():
        best = start.bias + (target - output(unit, start, inputs)).mean(0)
    torch.testing.assert_close(end.bias, best, atol=0.15 * float(target.std()), rtol=0)
    assert float((end.bias - best).abs().max()) < float((start.bias - best).abs().max())


def test_relu_aware_errors_ignore_what_the_relu_cuts() -> None:
    unit, inputs, target = problem()
    unit.rectified = True
    state = initial(unit, inputs, 3, 4)
    with torch.no_grad():
        expected = (output(unit, state, inputs).clamp_min(0) - target.clamp_min(0)).square().mean()
        torch.testing.assert_close(error(unit, state, inputs, target, rectify=True), expected)
        assert error(unit, state, inputs, target, rectify=False) > expected
