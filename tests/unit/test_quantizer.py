"""Fake quantisation against closed forms and torch's own fake-quantise kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from workbench_quantization.quantizer import (
    ActivationQuantiser,
    InputQuantisers,
    attach_weight_quantiser,
    bake_weight_quantiser,
    channel_axis,
    quantise_weight,
    weight_scale,
    weights_replaced,
)


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_per_channel_equals_torchs_kernel(bits: int) -> None:
    values = weight(7, 5, 3, 3)
    scale = weight_scale(values, bits).flatten()
    expected = torch.fake_quantize_per_channel_affine(
        values, scale, torch.zeros(7, dtype=torch.int32), 0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    )
    torch.testing.assert_close(quantise_weight(values, bits), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_per_layer_equals_torchs_kernel(bits: int) -> None:
    values = weight(7, 5)
    scale = float(weight_scale(values, bits, "layer"))
    expected = torch.fake_quantize_per_tensor_affine(values, scale, 0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    torch.testing.assert_close(quantise_weight(values, bits, "layer"), expected)


def test_by_hand() -> None:
    values = torch.tensor([[1.0, -0.4, 0.2], [0.0, 0.0, 0.0], [-3.0, 1.0, 1.6]])
    # 3 bits: s = max / 3 per row, levels -3..3.
    expected = torch.tensor([[1.0, -1 / 3, 1 / 3], [0.0, 0.0, 0.0], [-3.0, 1.0, 2.0]])
    torch.testing.assert_close(quantise_weight(values, 3), expected)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_two_bits_use_three_levels(granularity: str) -> None:
    values = weight(6, 40)
    levels = quantise_weight(values, 2, granularity) / weight_scale(values, 2, granularity)
    assert sorted(levels.unique().tolist()) == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_error_is_at_most_half_a_step_and_a_second_rounding_changes_nothing(bits: int) -> None:
    values = weight(4, 9, 3, 3)
    quantised = quantise_weight(values, bits)
    assert ((quantised - values).abs() <= weight_scale(values, bits) * 0.5001).all()
    torch.testing.assert_close(quantise_weight(quantised, bits), quantised)


def test_channels_never_do_worse_than_one_range() -> None:
    values = weight(16, 30) * torch.logspace(-2, 0, 16)[:, None]
    errors = [(quantise_weight(values, 4, g) - values).square().sum() for g in ("channel", "layer")]
    assert errors[0] < errors[1]


def test_transposed_convolutions_have_their_channels_in_the_second_dim() -> None:
    layer = nn.ConvTranspose2d(3, 5, 2)
    assert channel_axis(layer) == 1
    assert channel_axis(nn.Conv2d(3, 5, 2)) == 0
    assert weight_scale(layer.weight, 4, "channel", channel_axis(layer)).shape == (1, 5, 1, 1)


def test_gradient_goes_straight_through() -> None:
    values = weight(3, 4).requires_grad_()
    direction = weight(3, 4, seed=1)
    (quantise_weight(values, 3) * direction).sum().backward()
    torch.testing.assert_close(values.grad, direction)


def test_full_precision_is_untouched() -> None:
    values = weight(3, 4)
    assert quantise_weight(values, 32) is values


def test_attached_quantiser_trains_the_original_and_bakes_the_quantised_values() -> None:
    layer = nn.Linear(6, 3)
    before = layer.weight.detach().clone()
    attach_weight_quantiser(layer, 2, "channel")
    torch.testing.assert_close(layer.weight, quantise_weight(before, 2))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    image = weight(8, 6)
    layer(image).square().mean().backward()
    # Straight-through: the gradient of the quantised network, applied to the original weight.
    twin = nn.Linear(6, 3)
    with torch.no_grad():
        twin.weight.copy_(quantise_weight(before, 2))
        twin.bias.copy_(layer.bias)
    twin(image).square().mean().backward()
    optimizer.step()
    original = before - 0.1 * twin.weight.grad
    bake_weight_quantiser(layer)
    torch.testing.assert_close(layer.weight.detach(), quantise_weight(original, 2))
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_replaced_weights_come_back_bit_for_bit_even_after_an_error() -> None:
    layer = nn.Conv2d(2, 3, 3)
    before = copy.deepcopy(layer.state_dict())

    def fail_inside() -> None:
        with weights_replaced({layer: torch.zeros_like(layer.weight)}):
            assert (layer.weight == 0).all()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def observed(values: torch.Tensor, bits: int, rule: str = "extremes") -> ActivationQuantiser:
    quantiser = ActivationQuantiser(bits, rule).eval()
    quantiser.observing = True
    assert torch.equal(quantiser(values), values)
    quantiser.observing = False
    return quantiser


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_activations_after_relu_are_unsigned_with_zero_point_zero(bits: int) -> None:
    values = weight(200).relu()
    expected = torch.fake_quantize_per_tensor_affine(values, float(values.max()) / (2**bits - 1), 0, 0, 2**bits - 1)
    torch.testing.assert_close(observed(values, bits)(values), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_signed_activations_are_symmetric(bits: int) -> None:
    values = weight(200)
    scale = float(values.abs().max()) / (2 ** (bits - 1) - 1)
    expected = torch.fake_quantize_per_tensor_affine(values, scale, 0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    torch.testing.assert_close(observed(values, bits)(values), expected)


def test_values_beyond_the_observed_range_are_clamped() -> None:
    quantiser = observed(torch.tensor([0.0, 1.0]), 4)
    assert quantiser(torch.tensor([3.0])).item() == pytest.approx(1.0)


def test_percentiles_ignore_outliers() -> None:
    values = torch.cat([torch.rand(9999, generator=torch.Generator().manual_seed(0)), torch.tensor([1000.0])])
    assert float(observed(values, 8, "percentile").high) < 1.0 < float(observed(values, 8).high)


def test_ranges_follow_with_momentum_in_training() -> None:
    quantiser = ActivationQuantiser(8).train()
    quantiser(torch.tensor([0.0, 1.0]))
    quantiser(torch.tensor([0.0, 2.0]))
    assert float(quantiser.high) == pytest.approx(0.99 * 1.0 + 0.01 * 2.0)


def test_input_quantisers_pass_through_until_they_get_a_width_and_can_be_removed() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    image = weight(50, 4)
    plain = model(image)
    inputs = InputQuantisers([model[0], model[2]])
    assert torch.equal(model(image), plain)
    with inputs.observing():
        assert torch.equal(model(image), plain)
    hidden = torch.relu(model[0](image)).detach()
    assert inputs.ranges[1].tolist() == [float(hidden.min()), float(hidden.max())]
    inputs.set_bits([32, 3])
    step = float(hidden.max()) / 7
    expected = model[2].weight @ (torch.round(hidden / step).clamp(0, 7) * step).T + model[2].bias[:, None]
    torch.testing.assert_close(model(image), expected.T)
    inputs.remove()
    assert torch.equal(model(image), plain)
