"""Networks that switch: widths computed by hand, norms that follow their layers, the plain model of a width."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unit.switchable_cases import residual, switchable
from workbench_quantization.nested_rounding import shifted_levels, stored_levels


def test_before_a_switch_the_network_computes_what_the_model_did() -> None:
    model, image = residual(), torch.rand(5, 1, 8, 8)
    expected = model(image)
    net = switchable(copy.deepcopy(model))
    torch.testing.assert_close(net(image), expected)
    assert list(net.layers) == [1, 2, 3]  # stem and head stay
    assert [net.norms[name].place for name in ("before", "after")] == [0, 1]


def test_a_width_is_computed_as_by_hand() -> None:
    """Weights from integers, inputs on their own grid, the norms of the width."""
    net = switchable(residual(), start="lsq_lowest")
    image = torch.rand(5, 1, 8, 8)
    for norm in net.norms.values():
        norm.sets["4"].bias.data += 0.1
    net.switch(4)
    model = net.model
    hidden = F.relu(model.before.sets["4"](model.stem(image)))

    def at_four(name: str, values: Tensor) -> tuple[Tensor, Tensor]:
        layer = getattr(model, name)
        scale, own = layer.weight_scale(8)(), layer.input_scale(4)()
        whole = stored_levels(layer.weight, scale, 8).to(torch.int16)
        low, high = (-8, 7) if layer.signed else (0, 15)
        return shifted_levels(whole, 8, 4) * scale * 16, (values / own).clamp(low, high).round() * own

    weight, taken = at_four("first", hidden)
    hidden = hidden + F.relu(model.after.sets["4"](F.conv2d(taken, weight, padding=1)))
    weight, taken = at_four("up", hidden)
    raised = F.conv_transpose2d(taken, weight, model.up.layer.bias, stride=2)
    weight, taken = at_four("deep", torch.tanh(raised).mean((2, 3)) @ model.odd)
    assert model.deep.signed
    assert not model.first.signed
    expected = model.head(F.relu(F.linear(taken, weight, model.deep.layer.bias)))
    torch.testing.assert_close(net(image), expected)


def test_norms_follow_their_layers_and_transitional_ones_the_layer_before_too() -> None:
    net = switchable(residual())
    net.switch({1: 8, 2: 4, 3: 2})
    assert net.norms["after"].active == "8"
    assert net.norms["before"].active == "8"  # behind a layer in full precision: the next one's
    net.to_transitional()
    assert len(net.norms["after"].sets) == 16
    net.switch({1: 2, 2: 4, 3: 8})
    assert net.norms["after"].active == "2-2"
    block = nn.Sequential(
        *(m for _ in range(4) for m in (nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))), nn.Flatten(), nn.Linear(64, 2)
    )
    chain = switchable(block.eval())
    chain.to_transitional()
    chain.switch({1: 8, 2: 4, 3: 2})
    assert [chain.norms[name].active for name in ("1", "3", "5", "7")] == ["8-8", "8-8", "8-4", "4-2"]


def test_the_plain_model_of_a_width_has_its_weights_and_norms() -> None:
    model, image = residual(), torch.rand(4, 1, 8, 8)
    plain = copy.deepcopy(model)
    net = switchable(model, inputs=None)
    net.norms["after"].sets["2"].bias.data += 0.3
    net.switch(2)
    net.write_into(plain)
    torch.testing.assert_close(plain(image), net(image))
    assert len(plain.deep.weight.unique()) <= 4
