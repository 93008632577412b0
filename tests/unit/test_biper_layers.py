"""BiPer: binary layers beside torch's own on signs, packing, which layers become binary, and the published networks."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from workbench import InputError
from workbench.subjects.networks import resnet20

from unit.biper_cases import noise
from workbench_quantization.biper_layers import (
    BinaryLayer,
    PackedLayer,
    binarise,
    binary_layers,
    pack_signs,
    packed_network,
    sign,
    unpack_signs,
    with_hardtanh,
)
from workbench_quantization.biper_networks import binary_digits, binary_resnet18, binary_resnet20, binary_vgg_small
from workbench_quantization.biper_selection import select_layers

# --------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, 3, stride=2, padding=(2, 1), bias=True),
        nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2, groups=2),
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(3, 5, 3, padding=1),
        nn.Conv3d(2, 5, 3, padding=1, bias=False),
        nn.Linear(9, 7),
    ],
    ids=["strided", "same", "reflect", "1d", "3d", "linear"],
)
def test_layer_is_the_plain_layer_on_signs(layer: nn.Module) -> None:
    """The same module of torch, given +-1 as weight and inputs, times the scale."""
    shape = {nn.Conv1d: (2, 3, 12), nn.Conv3d: (2, 2, 5, 6, 7), nn.Linear: (2, 4, 9)}.get(type(layer))  # type: ignore[call-overload]
    values = noise(*(shape or (2, layer.in_channels, 9, 11)), seed=3)  # type: ignore[arg-type]
    binary = BinaryLayer(layer, omega=20).eval()
    with torch.no_grad():
        binary.alpha.copy_(torch.rand(len(binary.alpha)) + 0.1)
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight.copy_(torch.sign(torch.sin(20 * layer.weight)))
        bias = 0.0
        if layer.bias is not None:
            bias = layer.bias.clone()
            plain.bias.zero_()
        expected = plain(torch.sign(values))
        if isinstance(layer, nn.Linear):
            expected = expected * binary.alpha + bias
        else:
            view = (-1, *[1] * (expected.ndim - 2))
            expected = expected * binary.alpha.view(view) + (bias if isinstance(bias, float) else bias.view(view))
        torch.testing.assert_close(binary(values), expected)
        packed = packed_network(nn.Sequential(binary))
        torch.testing.assert_close(packed(values), expected)
    assert isinstance(packed[0], PackedLayer)
    assert packed[0].packed.numel() == -(-layer.weight.numel() // 8)


def test_padding_with_ones_leaves_two_levels() -> None:
    """With a kernel of ones and inputs of one, the border is as large as the middle only if the padding is one too."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(layer.weight, 0.01)
    for value, corner in ((0, 4.0), (1, 9.0), (-1, -1.0)):
        binary = BinaryLayer(layer, omega=20, pad_value=value).eval()
        assert float(binary(torch.ones(1, 1, 5, 5)).detach()[0, 0, 0, 0]) == corner


def test_bits_survive_packing() -> None:
    bit = sign(noise(7, 3, 3, 5), "identity")
    packed = pack_signs(bit)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(bit.numel() / 8)
    assert torch.equal(unpack_signs(packed, bit.shape), bit)


def test_stage_one_is_not_packed() -> None:
    network = binarise(binary_digits(), ["features.3"], omega=20, weights="sine")
    with pytest.raises(ValueError, match="real weights"):
        packed_network(network)


# ------------------------------------------------------------------------------------------------------------ selection


class Functional(nn.Module):
    """A rectifier without a module: what follows it has no negative inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, stride=2)
        self.norm, self.fourth, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.third(self.norm(self.second(torch.relu(self.first(image)))))
        return self.head(self.fourth(hidden).mean((2, 3)))


def test_what_is_not_binary_is_listed_with_its_reason() -> None:
    selection = select_layers(Functional().eval(), noise(6, 1, 12, 12))
    assert selection.names == ("fourth",)
    assert selection.reasons["first.weight"].startswith("the first layer")
    assert selection.reasons["head.weight"].startswith("the last layer")
    assert "never negative" in selection.reasons["second.weight"]
    assert "reduces the resolution" in selection.reasons["third.weight"]
    with_real_inputs = select_layers(Functional().eval(), noise(6, 1, 12, 12), keep=("fourth",), binary_inputs=False)
    assert with_real_inputs.names == ("second",)
    assert with_real_inputs.reasons["fourth.weight"] == "kept on request"
    with pytest.raises(InputError, match="nothing"):
        select_layers(Functional().eval(), noise(6, 1, 12, 12), keep=("nothing",))


def test_layers_are_counted_in_order_of_execution() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.third, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.first, self.fourth = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, values: Tensor) -> Tensor:
            return self.fourth(self.third(self.second(self.first(values))))

    network = Crossed()
    selection = select_layers(network.eval(), noise(8, 4))
    assert selection.names == ("second", "third")
    assert list(binary_layers(binarise(network, selection.names, omega=20))) == ["second", "third"]


def test_rectifiers_of_a_common_network_make_way() -> None:
    network = resnet20().eval()
    selection = select_layers(network, noise(4, 3, 32, 32))
    assert len(selection.names) == 18
    assert set(selection.reasons) == {"conv1.weight", "linear.weight"}
    assert not any(isinstance(module, nn.Hardtanh) for module in network.modules())
    assert with_hardtanh(network) == 19


def test_networks_have_the_published_sizes() -> None:
    """0.27, 11.01 and 4.66 million parameters."""
    for build, size, image in ((binary_resnet20, 0.27, 32), (binary_resnet18, 11.01, 32), (binary_vgg_small, 4.66, 32)):
        network = build()
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(size, abs=0.02)
        assert network.eval()(noise(1, 3, image, image)).shape == (1, 10)
