"""Double Rounding: integers, gradients, rates and roulette against brute force, closed forms and torch's own kernels."""

from __future__ import annotations

import copy
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from workbench import InputError, Model
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Recipe, fit

from unit.recording_out import RecordingOut, check_report, record
from workbench_quantization.double_rounding import DoubleRounding, Params
from workbench_quantization.double_rounding_search import program_objective
from workbench_quantization.double_rounding_training import (
    Lesson,
    Variant,
    draw_widths,
    train,
    variant_of,
    width_probability,
)
from workbench_quantization.layers import find_blocks
from workbench_quantization.nested_rounding import (
    initial_scale,
    learned_step_start,
    least_error_step,
    level_range,
    nested_weight,
    scale_rate,
    shifted_levels,
    stored_levels,
    switch_errors,
    switched_levels,
    transfer_curves,
    width_factor,
)
from workbench_quantization.quantizer import learned_scale_quantise
from workbench_quantization.switchable import Switchable, SwitchableLayer

WIDTHS = (8, 6, 4, 2)
INT8 = torch.arange(-128, 128)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------- integers


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


# ------------------------------------------------------------------------------------------------------------- networks


class Residual(nn.Module):
    """Norms behind, before and without a layer, a shortcut, a transposed convolution, and a weight that cannot be quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.before = nn.BatchNorm2d(6)
        self.first, self.after = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.odd = nn.Parameter(torch.randn(4, 4) * 0.1 + torch.eye(4))
        self.deep, self.head = nn.Linear(4, 8), nn.Linear(8, 10)

    def forward(self, image: Tensor) -> Tensor:
        hidden = F.relu(self.before(self.stem(image)))
        hidden = hidden + F.relu(self.after(self.first(hidden)))
        pooled = torch.tanh(self.up(hidden)).mean((2, 3)) @ self.odd
        return self.head(F.relu(self.deep(pooled)))


def residual(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Residual()
    model.train()
    model(torch.rand(32, 1, 8, 8))
    return model.eval()


def switchable(model: nn.Module, widths: tuple[int, ...] = WIDTHS, rule: Any = "double", **options: Any) -> Switchable:
    image = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    blocks, _ = find_blocks(model, image[:1])
    fixed = [place in (0, len(blocks) - 1) for place in range(len(blocks))]
    defaults = {
        "rounding": "half_up",
        "start": "max",
        "relative": True,
        "gradient": "own step",
        "inputs": "least error",
    }
    return Switchable(model, blocks, fixed, image, widths, rule=rule, **(defaults | options)).eval()


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


# ------------------------------------------------------------------------------------------------------------- training


def lesson(count: int = 24, epochs: int = 1, batch: int = 8, rate: float = 1e-3) -> Lesson:
    image, label = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 10
    recipe = Recipe(
        epochs=epochs, batch_size=batch, optimizer="adam", learning_rate=rate, weight_decay=0.01, schedule="constant"
    )
    return Lesson(image, label, image, label, recipe, 0, False, None, 0.0, 1.0)


@pytest.mark.parametrize("update", ["each", "accumulated"])
def test_training_is_algorithm_1_written_out(update: Any) -> None:
    """Two Adam optimisers, one for weights with decay and one for scales without, stepped per width or once per batch."""
    variant = Variant("double", update, "multiplicative" if update == "each" else "off")
    mine, theirs = switchable(residual(), (8, 4, 2)), switchable(residual(), (8, 4, 2))
    task = lesson()
    out = RecordingOut()
    recorded = train(mine, task, variant, out, "x", torch.Generator().manual_seed(5))

    generator = torch.Generator().manual_seed(5)
    torch.randint(2**62, (), generator=generator)
    order = torch.randperm(24, generator=generator)
    scales = [scale.factor for layer in theirs.scales for scale in layer]
    weights = [p for p in theirs.parameters() if all(p is not scale for scale in scales)]
    for parameter in weights:
        parameter.requires_grad_(True)
    of_weights = torch.optim.Adam(weights, lr=1e-3, weight_decay=0.01)
    of_scales = torch.optim.Adam(scales, lr=1e-3)
    theirs.train()
    for number, batch in enumerate(order.split(8)):
        for column, bits in enumerate((8, 4, 2)):
            theirs.switch(bits)
            before = [layer.weight_scale(8).gradient.clone() for layer in theirs.layers.values()]
            F.cross_entropy(theirs(task.image[batch]), task.label[batch]).backward()
            gradients = torch.stack([layer.weight_scale(8).gradient for layer in theirs.layers.values()])
            gradients = gradients - torch.stack(before)
            torch.testing.assert_close(recorded.gradient[number, :, column], gradients.abs(), rtol=1e-4, atol=1e-5)
            if update == "each":
                pace = scale_rate("multiplicative", 1e-3, gradients, width_factor(8, bits))
                assert float(recorded.rate[number, column]) == pytest.approx(pace, rel=1e-5)
                of_scales.param_groups[0]["lr"] = pace
            if update == "each" or bits == 2:
                for optimizer in (of_weights, of_scales):
                    optimizer.step()
                    optimizer.zero_grad()
    for (name, one), two in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, msg=name, rtol=1e-4, atol=1e-6)


def test_a_sample_left_over_counts_as_the_training_loop_counts_it() -> None:
    for count, batch, steps in ((24, 8, 3), (25, 8, 3), (26, 8, 4), (1, 8, 1), (5, 8, 1)):
        assert lesson(count, batch=batch).steps == steps


def test_the_roulette_favours_high_widths_for_sensitive_layers() -> None:
    assert width_probability(WIDTHS, True) == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert width_probability(WIDTHS, False) == pytest.approx([0.25] * 4)
    net = switchable(residual())
    roulette = torch.tensor(np.stack([width_probability(WIDTHS, high) for high in (True, False, False)]))
    torch.manual_seed(0)
    assert all(draw_widths(net, 6, 0.0, roulette) == dict.fromkeys(net.layers, 6) for _ in range(20))
    drawn = [draw_widths(net, 6, 0.5, roulette) for _ in range(4000)]
    for row, place in enumerate(net.layers):
        shares = np.array([np.mean([table[place] == bits for table in drawn]) for bits in WIDTHS])
        expected = 0.5 * roulette[row].numpy() + 0.5 * (np.array(WIDTHS) == 6)
        assert np.abs(shares - expected).max() < 0.03  # 4 standard errors


def test_the_program_gives_bits_to_sensitive_layers_and_the_printed_objective_would_not() -> None:
    """Against all 64 tables of a network of three quantised layers."""
    from workbench_quantization.allocator import allocate_program

    net = switchable(residual())
    trace, widths = np.array([5.0, 0.01, 0.2]), np.array([2, 4, 6, 8])
    sizes = np.array([layer.weight.numel() for layer in net.layers.values()])
    cost = sizes[:, None] * widths / sizes.sum()
    objective = program_objective(net, trace, widths, "perturbation")
    for row, layer in enumerate(net.layers.values()):
        for column, bits in enumerate(widths):
            error = float((layer.weight_at(int(bits)) - layer.weight).detach().double().square().sum())
            assert objective[row, column] == pytest.approx(trace[row] * error, rel=1e-6)
    rows = np.arange(3)
    best = min(
        (c for c in itertools.product(range(4), repeat=3) if cost[rows, c].sum() <= 5 + 1e-9),
        key=lambda c: objective[rows, c].sum(),
    )
    assert allocate_program(objective, cost, 5.0).tolist() == list(best)
    # One width each of 8, 2 and 2, or of what else adds up to 12 bits: the paper's objective, greatest and as printed.
    weighted = -program_objective(net, trace, widths, "paper_max")
    assert weighted == pytest.approx(trace[:, None] * widths)
    same = np.tile(widths / 3, (3, 1))
    exact = [c for c in itertools.product(range(4), repeat=3) if same[rows, c].sum() == pytest.approx(4)]
    assert widths[allocate_program(-weighted, same, 4.0)].tolist() == [8, 2, 2]
    assert widths[list(min(exact, key=lambda c: weighted[rows, c].sum()))][0] == 2


# ----------------------------------------------------------------------------------------------------------- whole runs


def digits(start: int, stop: int) -> xr.Dataset:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[start:stop]
    image = (data.images[order] / 16).astype(np.float32)[:, None]
    return xr.Dataset(
        {"image": (("sample", "channel", "y", "x"), image), "label": ("sample", data.target[order].astype(np.int64))}
    )


@pytest.fixture(scope="module")
def trained() -> Model:
    torch.manual_seed(0)
    network, data = SmallCNN(10, width=8), digits(0, 800)
    recipe = Recipe(epochs=12, optimizer="adamw", learning_rate=3e-3, weight_decay=0.01, batch_size=64)
    generator = torch.Generator().manual_seed(0)
    fit(
        network,
        torch.from_numpy(data["image"].values),
        torch.from_numpy(data["label"].values),
        recipe,
        generator=generator,
    )
    return Model(
        network,
        input_shape=(1, 8, 8),
        factory="small-cnn",
        factory_arguments={"n_classes": 10, "channels": 1, "width": 8},
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import workbench

    return workbench.open(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def mixed(bench: Any, trained: Model) -> Any:
    """A supernet of widths 8, 4 and 2 with everything that can be compared in it, trained for some seconds."""
    return bench.run(
        "quantization.double_rounding",
        model=trained,
        data=digits(0, 800),
        test=digits(800, 1300),
        widths=(8, 4, 2),
        mode="mixed",
        epochs=4,
        mixed_epochs=3,
        batch_size=64,
        learning_rate=1e-3,
        compare=("floor", "uniform roulette"),
        hess_samples=64,
        probes=4,
        search_points=3,
        random_subnets=2,
        progress=False,
    )


def test_digits_keep_their_accuracy_at_every_width(mixed: Any) -> None:
    accuracy = mixed["accuracy"].sel(variant="double rounding")
    full = float(mixed["accuracy_full_precision"])
    assert full > 0.95
    assert float(accuracy.sel(bit=8)) > full - 0.02
    assert float(accuracy.sel(bit=4)) > full - 0.02
    assert float(accuracy.sel(bit=2)) > 0.8
    gradient = mixed["grad_scale_absmax"].mean(("step", "layer"))
    assert float(gradient.sel(bit=2)) > 3 * float(gradient.sel(bit=8))
    # With LSQ's factor gradients stay below 1, so that ALRS leaves a rate at every width and scales move.
    assert float(mixed["lr_scale"].isel(step=0).min()) > 0
    assert "stand still" not in " ".join(mixed.report_data().notes)


def test_every_width_is_reloaded_and_is_what_the_integers_say(bench: Any, mixed: Any) -> None:
    from workbench_quantization import deployed_model

    for width in (8, 4, 2):
        model = mixed.model(f"model_{width}")
        layer = model.get_submodule("block2.conv")
        start, stop = mixed["weight_start"].values[1:3]
        whole = torch.from_numpy(mixed["integer_weight"].values[start:stop])
        scale = float(mixed["scale"].values[0]) * 2 ** (8 - width)
        torch.testing.assert_close(layer.weight.flatten(), shifted_levels(whole, 8, width) * scale)
        run = bench.run(
            "training.evaluation", model=deployed_model(mixed, width), data=digits(800, 1300), progress=False
        )
        # Uniform widths of the supernet: as judged in the table of networks.
        names = mixed["subnet_accuracy"]["subnet"].values.tolist()
        expected = float(mixed["subnet_accuracy"].values[0, names.index(f"uniform {width}")])
        assert run.metrics["accuracy"] == pytest.approx(expected, abs=2.1 / 500)
    logit = deployed_model(mixed)(torch.from_numpy(digits(800, 1300)["image"].values))
    assert float((logit.argmax(1).numpy() == mixed["logit"].values.argmax(1)).mean()) > 0.995


def test_mixed_widths_are_searched_and_exchanged(bench: Any, mixed: Any, trained: Model) -> None:
    average, names = mixed["subnet_average_bits"].values, mixed["subnet_accuracy"]["subnet"].values.tolist()
    assert average[0] <= 4 + 1e-9
    assert names[0] == "program at 4.00"
    assert mixed["bits"].values.tolist() == mixed["subnet_bits"].values[0].tolist()
    assert set(mixed["bits"].values[[0, -1]]) == {32}
    assert mixed["width_probability"].values[1:-1].sum(1) == pytest.approx(1)
    subjects = {"model": trained, "data": digits(0, 800), "test": digits(800, 1300), "progress": False}
    judged = bench.run("quantization.uniform", bits=mixed["bits"], **subjects)
    assert judged["bits"].values.tolist() == mixed["bits"].values.tolist()
    back = bench.run("quantization.double_rounding", bits=judged["bits"], mode="ptq", hess_samples=64, **subjects)
    assert back["bits"].values.tolist() == mixed["bits"].values.tolist()
    assert float(back["accuracy_given"]) == back.metrics["accuracy"]


@pytest.mark.parametrize("width", [None, 4, 2])
def test_a_width_leaves_the_store_as_a_file_of_its_size(mixed: Any, tmp_path: Path, width: int | None) -> None:
    from workbench_quantization import export_model
    from workbench_quantization.export_safetensors import read_safetensors

    written = export_model(mixed, tmp_path / "model.safetensors", width=width)
    state, _ = read_safetensors(written.path)
    model = mixed.model() if width is None else mixed.model(f"model_{width}")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state[name], value, msg=name)
    if width is not None:
        # What the report says, without the inputs' scales, plus the names and numbers in the file's header.
        said = int(mixed["width_bytes"].sel(bit=width))
        assert said < written.size < said + 6000
    assert set(written.bits.values()) == ({width} if width else set(mixed["bits"].values[1:-1].tolist()))


def test_another_run_time_computes_a_width(mixed: Any, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from workbench_quantization import deployed_model, export_model

    written = export_model(mixed, tmp_path / "model.onnx", width=4)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(written.path, options, providers=["CPUExecutionProvider"])
    image = digits(800, 1000)["image"].values
    found = session.run(["logit"], {"image": image})[0]
    expected = deployed_model(mixed, 4)(torch.from_numpy(image)).detach().numpy()
    gap = np.abs(found - expected).max(1) / np.abs(expected).max()
    assert np.median(gap) < 1e-5
    assert (gap > 0.02).mean() < 0.05  # inputs at the border of two levels


def test_a_width_the_model_has_not_is_refused_before_anything_is_written(mixed: Any, tmp_path: Path) -> None:
    from workbench_quantization import export_model

    with pytest.raises(InputError, match="one of 8, 4, 2"):
        export_model(mixed, tmp_path / "model.safetensors", width=6)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_quantised_is_listed() -> None:
    out, result = record(
        DoubleRounding, {"model": residual(), "data": digits(0, 60)}, mode="ptq", hess_samples=32, batch_size=16
    )
    assert out.arrays["unquantised_reason"].shape == (1,)
    assert out.arrays["quantised"].tolist() == [False, True, True, True, False]
    assert "odd (a parameter of Residual" in " ".join(check_report(DoubleRounding, result).notes)
    assert out.arrays["error_ratio"][0, 1:4, 0] == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_trained_in_float32(dtype: torch.dtype) -> None:
    results = []
    for model in (residual().to(dtype), residual().to(dtype).float()):
        options: dict[str, Any] = {"widths": (8, 2), "epochs": 1, "batch_size": 16, "hess_samples": 16}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results.append(record(DoubleRounding, {"model": model, "data": digits(0, 40)}, **options)[0].arrays)
    for name in ("loss_epoch", "scale", "integer_weight", "accuracy"):
        np.testing.assert_array_equal(results[0][name], results[1][name], err_msg=name)


@pytest.mark.parametrize("alrs", ["off", "paper"])
def test_every_rival_trains(alrs: Any) -> None:
    out, result = record(
        DoubleRounding,
        {"model": residual(), "data": digits(0, 80)},
        widths=(4, 3, 2),
        epochs=1,
        batch_size=32,
        alrs=alrs,
        teacher="full precision",
        scale_steps="absolute",
        scale_gradient="own step",
        scale_init="max",
        input_init="lsq",
        augmentation="flip_crop",
        first_last="quantised",
        compare=("floor", "constant rate", "accumulated", "independent scales", "separate"),
    )
    assert out.arrays["accuracy"].shape == (6, 3)
    assert np.isfinite(out.arrays["loss_epoch"]).all()
    assert np.isfinite(out.arrays["accuracy_epoch"]).all()
    # Equation 6, cut off at 0, gives no rate where gradients are above it, and the report says how often that was.
    assert ("stand still" in " ".join(check_report(DoubleRounding, result).notes)) == (alrs == "paper")
    assert len(check_report(DoubleRounding, result).tables[0].rows) == 19


def test_an_interrupted_run_goes_on_in_the_epoch_it_was_in(trained: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.toolkit.training._Keeper.due", lambda keeper, last: True)
    inputs = {"model": trained, "data": digits(0, 120)}
    params: dict[str, Any] = {"widths": (8, 2), "mode": "mixed", "epochs": 2, "mixed_epochs": 1, "batch_size": 32}
    params |= {"probes": 2, "hess_samples": 32, "average_bits": 5.0, "search_points": 1, "random_subnets": 1}
    params["compare"] = ("floor",)
    whole, _ = record(DoubleRounding, inputs, **params)
    assert len(whole.checkpoints) == 3 + 3 + 2
    for checkpoint in whole.checkpoints:
        again = RecordingOut(DoubleRounding, restored=checkpoint)
        record(DoubleRounding, inputs, out=again, **params)
        for name, values in whole.arrays.items():
            if name != "switch_seconds":
                np.testing.assert_array_equal(values, again.arrays[name], err_msg=name)


@pytest.mark.parametrize(
    "params",
    [
        {"widths": (2, 4)},
        {"widths": (8, 8, 2)},
        {"widths": (9, 2)},
        {"store_width": 3},
        {"mode": "ptq", "compare": ("floor",)},
        {"compare": ("uniform roulette",)},
        {"mode": "mixed", "widths": (4, 2), "average_bits": 6.0},
    ],
)
def test_parameters_that_contradict_each_other_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Params(**params)


def test_a_table_with_other_widths_is_refused_before_training() -> None:
    model = residual()
    names = [block.name for block in find_blocks(model, torch.rand(1, 1, 8, 8))[0]]
    table = xr.Dataset({"bits": ("layer", np.array([8, 5, 4, 4, 8]))}, coords={"layer": names})
    with pytest.raises(InputError, match="5 for 'first'"):
        record(DoubleRounding, {"model": model, "data": digits(0, 40), "bits": table}, epochs=1)


def test_variants_differ_in_one_thing() -> None:
    main = variant_of("double rounding", "multiplicative")
    assert variant_of("floor", "multiplicative") == Variant("floor", main.update, main.alrs)
    assert variant_of("constant rate", "paper") == Variant("double", "each", "off")
    assert variant_of("accumulated", "paper") == Variant("double", "accumulated", "off")
