"""HAWQ: its steps against closed forms, dense Hessians and brute force, and whole runs on a small CNN."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import xarray as xr
from torch import nn
from workbench import InputError
from workbench.errors import SkippedError
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import predict_all

from unit.quantization_cases import trained_on_digits
from unit.recording_out import RecordingOut, check_report, record
from workbench_quantization.hawq import Hawq
from workbench_quantization.quantizer import quantise_weight

FAST = {"hess_samples": 48, "probes": 20, "power_iterations": 8, "random_orders": 4, "sweep": 1, "landscape_points": 3}


@pytest.fixture(scope="module")
def digits() -> tuple[xr.Dataset, xr.Dataset, nn.Module]:
    return trained_on_digits(epochs=8, calibration=400)


@pytest.fixture(scope="module")
def whole_run(digits: tuple[xr.Dataset, xr.Dataset, nn.Module]) -> tuple[RecordingOut, Any]:
    calibration, test, model = digits
    options = FAST | {"spectrum": True, "lanczos_steps": 5, "grid_points": 50, "activation_trace": True}
    return record(Hawq, {"model": model, "data": calibration, "test": test}, budget_value=3.0, **options)


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
