"""HAWQ's parts: blocks, curvature, rounding errors, costs and budgets against closed forms and counts by hand."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import InputError
from workbench.subjects.networks import SmallCNN

from unit.quantization_cases import generator
from unit.recording_out import RecordingOut
from workbench_quantization.hawq import Hawq
from workbench_quantization.hawq_curvature import (
    calibration_loss,
    landscape,
    loss_increases,
    mean_loss,
    trace_until,
    weight_errors,
)
from workbench_quantization.hawq_measure import Curvature, measure_rounding
from workbench_quantization.hawq_report import _low_width_note
from workbench_quantization.hawq_solutions import Costs, free_budget
from workbench_quantization.layers import Block, find_blocks, multiply_accumulates
from workbench_quantization.quantizer import quantise_weight, weight_scale


class Branched(nn.Module):
    """Registered in another order than executed, with a layer that is never called and two that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(4, 4)
        self.first = nn.Conv2d(1, 4, 3)
        self.twin_a, self.twin_b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.twin_b.weight = self.twin_a.weight
        self.table = nn.Parameter(torch.ones(4, 4))
        self.last_norm = nn.BatchNorm1d(4)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.first(image).mean((2, 3)) @ self.table
        return self.head(self.last_norm(self.twin_b(self.twin_a(hidden))))


def test_blocks_come_in_order_of_execution_and_what_is_left_out_is_named() -> None:
    blocks, reasons = find_blocks(Branched().eval(), torch.rand(1, 1, 8, 8))
    assert [block.name for block in blocks] == ["first", "head"]
    assert set(reasons) == {"unused.weight", "twin_a.weight", "twin_b.weight", "table"}
    assert "not called" in reasons["unused.weight"]
    assert "shared by twin_a.weight and twin_b.weight" in reasons["twin_a.weight"]


def test_groups_make_one_block_and_unknown_names_are_errors() -> None:
    model = SmallCNN(10, width=4).eval()
    blocks, _ = find_blocks(model, torch.rand(1, 1, 8, 8), [("block2.conv", "block4.conv")])
    assert [block.layer_names for block in blocks][1] == ("block2.conv", "block4.conv")
    assert sum(block.size for block in blocks) == sum(p.numel() for p in model.parameters() if p.ndim > 1)
    with pytest.raises(InputError, match="block9"):
        find_blocks(model, torch.rand(1, 1, 8, 8), [("block9",)])


def test_macs_by_hand() -> None:
    model = SmallCNN(10, width=4).eval()
    blocks, _ = find_blocks(model, torch.rand(1, 1, 8, 8))
    expected = [64 * 9 * 4, 16 * 9 * 4 * 8, 16 * 9 * 8 * 8, 4 * 9 * 8 * 16, 160]
    assert multiply_accumulates(model, blocks, (1, 8, 8)).tolist() == expected


def quadratic() -> tuple[nn.Linear, Block, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(1)
    model = nn.Linear(5, 3).double()
    batch = (torch.randn(12, 5, dtype=torch.float64), torch.randint(0, 3, (12,)))
    return model, Block("it", ("",), (model,)), [batch]


def test_weight_errors_are_sums_of_squares_that_shrink_fourfold_per_bit() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(400, 50)
    errors = weight_errors([Block("a", ("a",), (layer,))], [2, 4, 6, 8], "layer")[0]
    expected = float((quantise_weight(layer.weight, 4, "layer") - layer.weight).detach().square().sum())
    assert errors[1] == pytest.approx(expected)
    # Uniform weights in a range much wider than a step: mean squared error is step^2 / 12.
    step = float(weight_scale(layer.weight, 8, "layer"))
    assert errors[3] == pytest.approx(layer.weight.numel() * step**2 / 12, rel=0.05)


def test_landscape_is_the_loss_at_displaced_weights_and_its_curvature_the_rayleigh_quotient() -> None:
    model, block, batches = quadratic()
    loss = calibration_loss(model)
    direction = torch.randn(3, 5, dtype=torch.float64)
    direction /= direction.norm()
    before = model.weight.detach().clone()
    step = 1e-3
    values = landscape(loss, batches, block, [[direction]], [-step, 0.0, step])
    assert torch.equal(before, model.weight)
    assert values[1] == pytest.approx(mean_loss(loss, batches))

    def at(weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(batches[0][0], weight, model.bias), batches[0][1])

    matrix = torch.func.hessian(at)(before).reshape(15, 15).detach()
    rayleigh = float(direction.flatten() @ matrix @ direction.flatten())
    assert (values[0] - 2 * values[1] + values[2]) / step**2 == pytest.approx(rayleigh, rel=1e-3)
    plane = landscape(loss, batches, block, [[direction], [direction]], [-step, 0.0, step])
    assert plane[0, 2] == pytest.approx(values[1], rel=1e-12)


def test_loss_increase_is_that_of_this_layer_alone() -> None:
    model, block, batches = quadratic()
    loss = calibration_loss(model)
    base = mean_loss(loss, batches)
    rises = loss_increases(loss, batches, block, [2, 8], "channel", base)
    image, label = batches[0]
    expected = F.cross_entropy(F.linear(image, quantise_weight(model.weight, 2), model.bias), label) - base
    assert rises[0] == pytest.approx(float(expected))
    assert abs(rises[1]) < abs(rises[0])


def test_probing_stops_as_soon_as_every_error_is_small_enough() -> None:
    noise = torch.randn(500, 2, generator=generator(), dtype=torch.float64)
    probes = torch.tensor([10.0, 1.0]) + noise * torch.tensor([1.0, 0.5])
    estimate = trace_until(iter(probes), 0.1)
    taken = estimate.probes.shape[1]
    assert 20 <= taken < 60
    assert (estimate.standard_error <= 0.1 * estimate.mean).all()
    assert trace_until(iter(probes), 0.0).probes.shape[1] == 500
    before = trace_until(iter(probes[: taken - 1]), 0.0)
    assert taken == 20 or not (before.standard_error <= 0.1 * before.mean).all()


COSTS = Costs(
    sizes=np.array([100, 1000, 3000, 50]),
    macs=np.array([5000, 8000, 3000, 50]),
    widths=np.array([2, 4, 8]),
    fixed=np.array([8, 0, 0, 8]),
    activation_bits=4,
)


def test_costs_by_hand() -> None:
    bits = COSTS.complete(np.array([2, 0]))
    assert bits.tolist() == [8, 8, 2, 8]
    assert COSTS.size_mb(bits) == pytest.approx((800 + 8000 + 6000 + 400) / 8e6)
    assert COSTS.average_bits(bits) == pytest.approx(15200 / 4150)
    assert COSTS.input_bits(bits).tolist() == [8, 4, 4, 8]
    assert COSTS.bops(bits) == 5000 * 64 + 8000 * 32 + 3000 * 8 + 50 * 64


@pytest.mark.parametrize("kind", ["avg_bits", "size_mb", "bops"])
@pytest.mark.parametrize("activation_bits", [4, 32, None])
def test_budget_tables_agree_with_the_costs_of_whole_models(kind: Any, activation_bits: int | None) -> None:
    costs = Costs(COSTS.sizes, COSTS.macs, COSTS.widths, COSTS.fixed, activation_bits)
    whole = {"avg_bits": costs.average_bits, "size_mb": costs.size_mb, "bops": costs.bops}[kind]
    for choice in itertools.product(range(3), repeat=2):
        bits = costs.complete(np.array(choice))
        assert costs.total(kind, bits) == pytest.approx(whole(bits), rel=1e-12)


def test_budgets() -> None:
    assert free_budget(COSTS, "avg_bits", 4.0, None) == pytest.approx(4.0 - 1200 / 4150)
    low, high = 8000 / 4150, 32000 / 4150
    assert free_budget(COSTS, "avg_bits", None, 0.25) == pytest.approx(low + 0.25 * (high - low))
    assert free_budget(COSTS, "avg_bits", None, None) == pytest.approx(3.0 - 1200 / 4150)
    with pytest.raises(InputError, match="budget_value"):
        free_budget(COSTS, "avg_bits", 2.0, None)
    # First and last layer so large that 3 bits are out of reach: the default gives way, a stated budget does not.
    heavy = Costs(np.array([5000, 100, 100, 5000]), COSTS.macs, COSTS.widths, COSTS.fixed, 32)
    assert free_budget(heavy, "avg_bits", None, None) == pytest.approx((400 + 0.25 * 1200) / 10200)


@pytest.mark.parametrize("margin", [False, True])
def test_program_sees_trace_plus_one_standard_error_and_no_negative_trace(margin: bool) -> None:
    model = SmallCNN(10, width=4).eval()
    image = torch.rand(6, 1, 8, 8, generator=generator())
    blocks, _ = find_blocks(model, image[:1])
    sizes = np.array([block.size for block in blocks])
    trace, error = np.array([4.0, -3.0, 2.0, 1.0, 5.0]), np.array([14.0, 1.0, 0.5, 2.0, 0.0])
    curvature = Curvature(np.ones((5, 1)), trace, error, trace, trace, error)
    costs = Costs(sizes, sizes, np.array([2, 4]), np.zeros(5, dtype=np.int64), 32)
    params = Hawq.Params(bits=(2, 4), mean_plus_error=margin)
    batches = [(image, torch.zeros(6, dtype=torch.int64))]
    evidence = measure_rounding(model, blocks, batches, curvature, costs, params, RecordingOut(Hawq))
    expected = np.array([18.0, 0.0, 2.5, 3.0, 5.0] if margin else [4.0, 0.0, 2.0, 1.0, 5.0])
    dw2 = weight_errors(blocks, (2, 4), "channel")
    np.testing.assert_allclose(evidence.objective, expected[:, None] / sizes[:, None] * dw2)
    np.testing.assert_allclose(evidence.trace_objective, evidence.objective)


@pytest.mark.parametrize(
    ("accuracy", "average", "verdict"),
    [
        ((0.70, 0.80), (3.0, 3.02), True),
        ((0.79, 0.80), (3.0, 3.02), False),  # 1,000 images know 80 % to 2.5 points
        ((0.70, 0.80), (2.9, 4.0), False),  # more accurate, and larger by a third
        ((0.81, 0.80), (3.0, 3.02), False),
    ],
)
def test_mixing_is_said_not_to_pay_where_one_width_is_clearly_better_and_no_larger(
    accuracy: tuple[float, float], average: tuple[float, float], verdict: bool
) -> None:
    facts: Any = SimpleNamespace(
        read={"solution_bits": np.array([[8, 2, 4, 8], [8, 3, 3, 8]])}.get, free=np.array([False, True, True, False]),
        accuracy=np.array(accuracy), uniform=1, widths=[2, 3, 4], average=average, names=["chosen", "uniform 3 bit"],
        samples=1000, result={"finetuned_accuracy": 0.9},
    )  # fmt: skip
    (note,) = _low_width_note(facts)
    assert ("does not pay" in note) == verdict
    assert f"uniform 3 bit gives {accuracy[1]:.1%} at {average[1]:.2f}" in note
