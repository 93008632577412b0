"""HAWQ: its steps against closed forms, dense Hessians and brute force, and whole runs on a small CNN."""

from __future__ import annotations

import copy
import itertools
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
from workbench.errors import SkippedError
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Recipe, fit, predict_all

from unit.recording_out import RecordingOut, check_report, record
from workbench_quantization.finetuning import Plan, distillation_loss, finetune
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
from workbench_quantization.hawq_solutions import Costs, free_budget
from workbench_quantization.layers import Block, find_blocks, multiply_accumulates
from workbench_quantization.quantizer import quantise_weight, weight_scale

FAST = {"hess_samples": 48, "probes": 20, "power_iterations": 8, "random_orders": 4, "sweep": 1, "landscape_points": 3}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits() -> tuple[xr.Dataset, xr.Dataset, nn.Module]:
    """Calibration and report digits, and a small CNN trained on others, wrapped as the host hands models over."""
    source = load_digits()
    image, label = (source.images / 16).astype(np.float32)[:, None], source.target.astype(np.int64)
    torch.manual_seed(0)
    model = SmallCNN(10, width=8)
    recipe = Recipe(epochs=8, learning_rate=0.05, batch_size=64)
    fit(model, torch.from_numpy(image[:900]), torch.from_numpy(label[:900]), recipe, generator=generator())

    def dataset(part: slice) -> xr.Dataset:
        return xr.Dataset({"image": (("sample", "channel", "y", "x"), image[part]), "label": ("sample", label[part])})

    return dataset(slice(900, 1300)), dataset(slice(1300, None)), Model(model, mean=0.0, std=1.0)


@pytest.fixture(scope="module")
def whole_run(digits: tuple[xr.Dataset, xr.Dataset, nn.Module]) -> tuple[RecordingOut, Any]:
    calibration, test, model = digits
    options = FAST | {"spectrum": True, "lanczos_steps": 5, "grid_points": 50, "activation_trace": True}
    return record(Hawq, {"model": model, "data": calibration, "test": test}, budget_value=3.0, **options)


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
    expected = float((quantise_weight(layer.weight, 4, "layer") - layer.weight).square().sum())
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


def test_whole_run_measures_what_it_says(digits: tuple[xr.Dataset, xr.Dataset, nn.Module], whole_run: Any) -> None:
    """Sensitivities, Omega, costs and accuracies recomputed from the model, independently of the run."""
    _, test, model = digits
    out, _ = whole_run
    data = out.data
    names = [str(name) for name in data["layer"].values]
    assert names == ["block1.conv", "block2.conv", "block3.conv", "block4.conv", "head"]
    n = np.array([model.get_submodule(name).weight.numel() for name in names])
    np.testing.assert_array_equal(data["parameter_count"], n)
    np.testing.assert_allclose(data["sensitivity"], np.abs(data["eigenvalue"][:, 0]) / n)
    np.testing.assert_allclose(data["trace"], data["trace_probe"].mean("probe"))
    omega = data["trace"].values[:, None] / n[:, None] * data["weight_error"].values
    np.testing.assert_allclose(data["omega"], omega)
    for position, bits in enumerate(data["solution_bits"].values):
        assert data["average_bits"].values[position] == pytest.approx((bits * n).sum() / n.sum())
    within = data["within_budget"].values
    assert (data["cost"].values[within] <= 3.0 + 1e-9).all()
    # The accuracy of the chosen widths, from weights quantised by hand.
    twin = SmallCNN(10, width=8)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, bits in zip(names, data["bits"].values, strict=True):
            layer = twin.get_submodule(name)
            layer.weight.copy_(quantise_weight(layer.weight, int(bits)))
    logit = predict_all(twin.eval(), test["image"])[0]
    np.testing.assert_allclose(data["logit"], logit, atol=1e-5)
    assert float((logit.argmax(1).numpy() == test["label"].values).mean()) == data["accuracy"].values[0]
    stored = out.modules["model"]
    assert torch.equal(predict_all(stored, test["image"])[0], logit)


def test_walk_gives_more_bits_to_sharper_layers(whole_run: Any) -> None:
    data = whole_run[0].data
    free = ~data["fixed"].values
    bits, sharpness = data["bits"].values[free], data["sensitivity"].values[free]
    assert (np.diff(bits[np.argsort(sharpness)]) >= 0).all()
    reverse = data["solution_bits"].values[list(data["solution_kind"].values).index("reversed")][free]
    assert (np.diff(reverse[np.argsort(sharpness)]) <= 0).all()


def test_fine_tuning_order_is_descending_eigenvalue_times_error(whole_run: Any) -> None:
    data = whole_run[0].data
    order = data["order"].values
    assert sorted(order.tolist()) == [1, 2, 3, 4, 5]
    omega = data["order_omega"].values
    assert (np.diff(omega[np.argsort(order)]) <= 0).all()
    widths = data["bit"].values.tolist()
    for row, bits in enumerate(data["bits"].values):
        error = data["weight_error"].values[row, widths.index(bits)]
        assert omega[row] == pytest.approx(abs(data["eigenvalue"].values[row, 0]) * error)


@pytest.mark.parametrize("margin", [False, True])
def test_program_minimises_omega_over_all_assignments(
    digits: tuple[xr.Dataset, xr.Dataset, nn.Module], margin: bool
) -> None:
    """Against every assignment within the budget; with the margin the program sees trace + 1 standard error."""
    calibration, test, model = digits
    options = FAST | {"landscape_points": 0, "trace_tolerance": 0.0, "random_orders": 0, "sweep": 0}
    inputs = {"model": model, "data": calibration, "test": test}
    out, result = record(Hawq, inputs, criterion="trace", mean_plus_error=margin, **options)
    data = out.data
    free = np.flatnonzero(~data["fixed"].values)
    n, widths = data["parameter_count"].values, data["bit"].values
    trace = data["trace"].values + (data["trace_standard_error"].values if margin else 0.0)
    objective = np.maximum(trace, 0.0)[:, None] / n[:, None] * data["weight_error"].values
    best = np.inf
    for choice in itertools.product(range(len(widths)), repeat=len(free)):
        bits = np.full(len(n), 8)
        bits[free] = widths[list(choice)]
        if (bits * n).sum() / n.sum() <= 3.0 + 1e-9:
            best = min(best, objective[free, list(choice)].sum())
    chosen = np.searchsorted(widths, data["bits"].values[free])
    assert objective[free, chosen].sum() == pytest.approx(best, rel=1e-6)
    if not margin:
        assert data["omega_total"].values[0] == pytest.approx(best, rel=1e-6)
    check_report(Hawq, result)


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


def test_budget_fraction_bops_ties_and_blocks(digits: tuple[xr.Dataset, xr.Dataset, nn.Module]) -> None:
    calibration, test, model = digits
    out, result = record(
        Hawq,
        {"model": model, "data": calibration, "test": test},
        criterion="trace",
        budget="bops",
        budget_fraction=0.4,
        bits=(4, 8),
        act_bits="weight",
        first_last_bits=None,
        blocks=(("block1.conv", "head"),),
        ties=(("block2.conv", "block4.conv"),),
        **(FAST | {"landscape_points": 0}),
    )
    data = out.data
    bits = data["solution_bits"]
    assert data["layer"].values.tolist() == ["block1.conv + head", "block2.conv", "block3.conv", "block4.conv"]
    assert (bits.values[:, 1] == bits.values[:, 3]).all()
    macs = data["macs"].values.astype(float)
    assert data["bops"].values == pytest.approx((macs * bits.values.astype(float) ** 2).sum(1))
    limit = (macs * 16).sum() + 0.4 * (macs * 48).sum()
    assert float(data["budget_limit"]) == pytest.approx(limit)
    assert (data["bops"].values[data["within_budget"].values] <= limit * (1 + 1e-9)).all()
    assert "input_range" in data
    check_report(Hawq, result)


def test_latency_budget(digits: tuple[xr.Dataset, xr.Dataset, nn.Module]) -> None:
    calibration, test, model = digits
    table = {"block2.conv": (1.0, 5.0), "block3.conv": (1.0, 1.0), "block4.conv": (1.0, 2.0)}
    options = FAST | {"landscape_points": 0, "bits": (2, 8), "criterion": "empirical_fisher", "budget": "latency_ms"}
    inputs = {"model": model, "data": calibration, "test": test}
    out, result = record(Hawq, inputs, latency=table, budget_value=4.0, **options)
    # 8 bits cost nothing in block3 and 1 ms in block4; block2 cannot have them.
    assert out.data["bits"].values.tolist() == [8, 2, 8, 8, 8]
    assert out.data["cost"].values[0] == 4.0
    assert "fisher_trace" in out.data
    check_report(Hawq, result)
    with pytest.raises(InputError, match=r"latency.*block4.conv"):
        record(
            Hawq, inputs, latency={k: v for k, v in table.items() if k != "block4.conv"}, budget_value=4.0, **options
        )


def test_without_test_images_the_report_is_on_images_that_were_not_calibrated_on(
    digits: tuple[xr.Dataset, xr.Dataset, nn.Module],
) -> None:
    calibration, _, model = digits
    data = calibration.assign(image=(calibration["image"] * 255).astype(np.uint8))
    out, result = record(
        Hawq, {"model": model, "data": data}, **(FAST | {"landscape_points": 0, "report_fraction": 0.3})
    )
    index = out.arrays["sample_index"]
    assert len(index) == len(out.arrays["logit"]) == 120
    np.testing.assert_array_equal(out.arrays["label"], data["label"].values[index])
    logit = predict_all(out.modules["model"], data["image"].isel(sample=index))[0]
    np.testing.assert_allclose(out.arrays["logit"], logit, atol=1e-5)
    assert "share of `data`" in " ".join(check_report(Hawq, result).notes)


@pytest.mark.parametrize(("mode", "epochs"), [("joint", 3), ("sequential", 1)])
def test_fine_tuning_repairs_low_widths_and_leaves_weights_on_the_grid(
    digits: tuple[xr.Dataset, xr.Dataset, nn.Module], mode: str, epochs: int
) -> None:
    calibration, test, model = digits
    out, result = record(
        Hawq,
        {"model": model, "data": calibration, "test": test},
        finetune=mode,
        finetune_uniform=mode == "joint",
        epochs=epochs,
        learning_rate=0.01,
        batch_size=32,
        act_bits=4,
        bits=(2, 3),
        budget_value=2.4,
        **(FAST | {"landscape_points": 0}),
    )
    data = out.data
    assert data["finetuned_accuracy"].values[0] > data["accuracy_before"].values[0]
    assert data["accuracy_before"].values[0] == data["accuracy"].values[0]
    state = out.models["model"]
    for name, bits in zip(data["layer"].values, data["bits"].values, strict=True):
        stored = state[f"{name}.weight"]
        levels = stored / weight_scale(stored, int(bits))
        assert torch.allclose(levels, levels.round(), atol=1e-4)
    # Batch-norm statistics stay those of the full-precision model.
    assert torch.equal(state["block2.bn.running_mean"], model.state_dict()["block2.bn.running_mean"])
    assert set(state) == set(model.state_dict())
    assert len(out.series["step"]) == epochs * (1 if mode == "joint" else 5)
    assert data["logit"].shape == (len(test["label"]), 10)
    report = check_report(Hawq, result)
    assert "after fine-tuning" in report.summary
    # Equals are compared: the uniform widths as fine-tuned, or marked where they were not.
    uniform = f"; {data['finetuned_solution'].values[-1]} (" if mode == "joint" else "; uniform "
    said = report.summary[report.summary.rindex(uniform) :]
    if mode == "joint":
        assert data["accuracy_before"].values[1] != data["finetuned_accuracy"].values[1]
        assert said.endswith(f"reaches {data['finetuned_accuracy'].values[1]:.1%} after the same fine-tuning.")
    else:
        assert said.endswith("without fine-tuning.")


def plan(names: list[str], bits: int) -> Plan:
    return Plan([(name,) for name in names], [bits] * len(names), [32] * len(names), "channel", "extremes")


def test_sequential_fine_tuning_freezes_each_block_once_it_is_quantised() -> None:
    torch.manual_seed(0)
    model = SmallCNN(4, width=4).eval()
    image, label = torch.rand(40, 1, 8, 8, generator=generator()), torch.randint(0, 4, (40,), generator=generator(1))
    names = ["block2.conv", "block3.conv", "block4.conv"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recipe = Recipe(epochs=1, batch_size=20, learning_rate=0.05, schedule="constant")
    seen: dict[str, Tensor] = {}
    order = [2, 0, 1]
    for stage in finetune(model, plan(names, 3), order, image, label, recipe, generator=generator()):
        student = stage.network.model
        for block in order[: stage.done]:
            values = student.get_submodule(names[block]).weight.detach()
            assert torch.equal(seen.setdefault(names[block], values.clone()), values)
            levels = values / weight_scale(values, 3)
            assert torch.allclose(levels, levels.round(), atol=1e-4)
        for block in order[stage.done :]:
            values = student.get_submodule(names[block]).weight
            assert not torch.equal(values, before[f"{names[block]}.weight"])
            assert values.unique().numel() > 8 * values.shape[0]
    assert stage.done == 3
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_fine_tuning_goes_on_from_a_stage_bit_for_bit() -> None:
    from workbench_quantization.finetuning import checkpoint_of

    torch.manual_seed(0)
    model = SmallCNN(4, width=4).eval()
    image, label = torch.rand(40, 1, 8, 8, generator=generator()), torch.randint(0, 4, (40,), generator=generator(1))
    recipe = Recipe(epochs=1, batch_size=20, learning_rate=0.05, schedule="constant")
    options = (model, plan(["block2.conv", "block3.conv"], 3), [1, 0], image, label, recipe)
    source = generator(5)
    stages = finetune(*options, generator=source)
    kept = checkpoint_of(next(stages), source)
    final = next(stages).network.state_dict()
    (resumed,) = finetune(*options, generator=generator(99), resume=kept)
    assert all(torch.equal(final[key], value) for key, value in resumed.network.state_dict().items())
    (done,) = finetune(*options, generator=generator(), resume=checkpoint_of(resumed, source))
    assert done.done == 2
    assert all(torch.equal(final[key], value) for key, value in done.network.state_dict().items())


def test_distillation_loss_by_definition() -> None:
    logit, teacher = torch.randn(6, 4, generator=generator()), torch.randn(6, 4, generator=generator(1))
    label = torch.randint(0, 4, (6,), generator=generator(2))
    p, log_q = (teacher / 6).softmax(1), (logit / 6).log_softmax(1)
    divergence = (p * (p.log() - log_q)).sum(1).mean()
    expected = 0.05 * F.cross_entropy(logit, label) + 0.95 * 36 * divergence
    torch.testing.assert_close(distillation_loss(logit, teacher, label, 0.95, 6.0), expected)


def test_distilling_alone_pulls_towards_the_teacher(digits: tuple[xr.Dataset, xr.Dataset, nn.Module]) -> None:
    calibration, _, model = digits
    image, label = torch.from_numpy(calibration["image"].values), torch.from_numpy(calibration["label"].values)
    names = ["block2.conv", "block3.conv", "block4.conv"]
    wrong = (label + 1) % 10  # with a share of 1 the labels have no part in it
    recipe = Recipe(epochs=4, batch_size=32, learning_rate=0.005, schedule="constant")
    (stage,) = finetune(model, plan(names, 2), None, image, wrong, recipe, generator=generator(), distillation=1.0)
    logit = predict_all(stage.network.eval(), image)[0]
    teacher = predict_all(model, image)[0]
    twin = SmallCNN(10, width=8)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name in names:
            twin.get_submodule(name).weight.copy_(quantise_weight(twin.get_submodule(name).weight, 2))
    before = predict_all(twin.eval(), image)[0]
    assert (logit - teacher).square().mean() < 0.5 * (before - teacher).square().mean()


def test_same_seed_same_numbers_and_model_is_left_alone(
    digits: tuple[xr.Dataset, xr.Dataset, nn.Module], whole_run: Any
) -> None:
    calibration, test, model = digits
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options = FAST | {"spectrum": True, "lanczos_steps": 5, "grid_points": 50, "activation_trace": True}
    again, _ = record(Hawq, {"model": model, "data": calibration, "test": test}, budget_value=3.0, **options)
    for name, values in whole_run[0].arrays.items():
        np.testing.assert_array_equal(values, again.arrays[name], err_msg=name)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_keeping_the_graph_changes_no_number_beyond_rounding(digits: tuple[xr.Dataset, xr.Dataset, nn.Module]) -> None:
    calibration, test, model = digits
    values = []
    for keep in (False, True):
        options = FAST | {"landscape_points": 0, "random_orders": 0, "hess_batch": 20, "keep_graph": keep, "sweep": 0}
        options |= {"power_iterations": 3, "probes": 4}
        out, _ = record(Hawq, {"model": model, "data": calibration, "test": test}, **options)
        values.append((out.arrays["eigenvalue"], out.arrays["trace"]))
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-3)
    np.testing.assert_allclose(values[0][1], values[1][1], rtol=1e-2)


def test_report_shows_errors_baselines_and_what_mixing_brought(whole_run: Any) -> None:
    report = check_report(Hawq, whole_run[1])
    metrics = {metric.name: metric for metric in report.metrics}
    data = whole_run[0].data
    low, high = metrics["accuracy"].interval
    assert low < metrics["accuracy"].value < high
    assert metrics["accuracy"].value == data["accuracy"].values[0]
    drawn = data["accuracy"].values[data["solution_kind"].values == "random"]
    assert metrics["accuracy_random_median"].value == np.median(drawn)
    beaten = np.mean(
        [1.0 if metrics["accuracy"].value > a else 0.5 if metrics["accuracy"].value == a else 0.0 for a in drawn]
    )
    assert metrics["beaten_random_orders"].value == pytest.approx(beaten)
    layers = report.tables[0]
    assert {"residual", "± standard error"} <= set(layers.columns)
    assert any("mixing" in note.lower() for note in report.notes)
    assert len(report.views) >= 12


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(digits: tuple[xr.Dataset, xr.Dataset, nn.Module], dtype: torch.dtype) -> None:
    """The host hands a double model over for float64; half precisions are for inference alone."""
    calibration, test, model = digits
    given = copy.deepcopy(model).double() if dtype is torch.float64 else model
    out = RecordingOut()
    out.dtype = dtype
    options = FAST | {"landscape_points": 0, "random_orders": 0, "sweep": 0, "finetune": "joint", "epochs": 1}
    record(Hawq, {"model": given, "data": calibration, "test": test}, out=out, **options)
    assert out.arrays["logit"].dtype == np.float32
    assert out.arrays["accuracy_full_precision"] == pytest.approx(out.arrays["accuracy_calibration"], abs=0.2)


def test_unsuitable_models_are_skipped_with_a_reason(digits: tuple[xr.Dataset, xr.Dataset, nn.Module]) -> None:
    calibration, _, _ = digits
    two_layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    with pytest.raises(SkippedError, match="first_last_bits=None"):
        record(Hawq, {"model": two_layers, "data": calibration}, **FAST)
    out, _ = record(Hawq, {"model": two_layers, "data": calibration}, first_last_bits=None, **FAST)
    assert len(out.arrays["bits"]) == 2
    with pytest.raises(SkippedError, match="no convolution"):
        record(Hawq, {"model": nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)), "data": calibration}, **FAST)


def test_bad_labels_and_parameters_are_refused(digits: tuple[xr.Dataset, xr.Dataset, nn.Module]) -> None:
    calibration, _, model = digits
    wrong = calibration.assign(label=calibration["label"] + 5)
    with pytest.raises(InputError, match=r"data\['label'\].*0 to 9.*5 to 14"):
        record(Hawq, {"model": model, "data": wrong}, **FAST)
    with pytest.raises(InputError, match="ties"):
        record(Hawq, {"model": model, "data": calibration}, ties=(("head", "block2.conv"),), **FAST)
    for bad in (
        {"bits": (4, 2)},
        {"bits": (1, 2)},
        {"criterion": "eig", "allocator": "program"},
        {"budget": "size_mb"},
        {"budget_value": 3.0, "budget_fraction": 0.5},
        {"budget": "latency_ms", "budget_value": 3.0},
        {"act_bits": 1},
    ):
        with pytest.raises(pydantic.ValidationError):
            Hawq.Params(**bad)


def test_runs_can_be_cancelled(digits: tuple[xr.Dataset, xr.Dataset, nn.Module]) -> None:
    from workbench.errors import CancelledError

    calibration, _, model = digits
    with pytest.raises(CancelledError):
        record(Hawq, {"model": model, "data": calibration}, out=RecordingOut(cancel_after=3), **FAST)
