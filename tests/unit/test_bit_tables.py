"""One table of widths, whatever method found it: any other judges it, and every run that stores integers leaves as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from workbench import Model, Run

from unit.stored_model_cases import WithModel, first_digits, onnx_logits, report_images, run_on, untrained
from workbench_quantization import export_model
from workbench_quantization.stored_layers import stored_layers


class Narrow(nn.Module):
    """Three convolutions, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.middle, self.late = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 10)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.middle(torch.relu(self.norm(self.stem(image)))))
        return self.head(torch.relu(self.late(hidden)).mean((2, 3)))


class Mixed(Narrow):
    """The same, with a matrix of its own behind the head."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.eye(10) + 0.1 * torch.randn(10, 10))

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) @ self.mixing


CALIBRATION = 100
LAYERS = ["stem", "middle", "late", "head"]
HAWQ = {
    "bits": (2, 3, 4), "hess_samples": 32, "probes": 3, "probe_mode": "gauss_newton", "power_iterations": 3, "random_orders": 1,
    "sweep": 0, "landscape_points": 0,
}  # fmt: skip
ADAQUANT = {"bits": (3, 4), "iterations": 3, "bias_steps": 2, "calibration_samples": 40, "batch_size": 16}
FINDERS: dict[str, dict[str, Any]] = {
    "quantization.hawq": HAWQ,
    "quantization.interlayer": {
        "widths": (8, 4, 3), "probes": 2, "calibration_samples": 32, "search_samples": 40, "subsets": 4, "targets": (0.9,),
        "random_orders": 1,
    },
    "quantization.adaquant": ADAQUANT,
    "quantization.uniform": {"widths": (3,), "store_width": 3},
    "quantization.gptq": {"widths": (4,), "calibration_samples": 32},
    "quantization.double_rounding": {"epochs": 1},
}  # fmt: skip
"""Methods that end in a table of widths, and the least that they do it with."""

JUDGES: dict[str, tuple[str, dict[str, Any]]] = {
    "quantization.uniform": ("bits", {"widths": (8,), "store_width": 8, "sharings": ("channel",)}),
    "quantization.gptq": ("bits", {"widths": (8,), "store_width": 8, "calibration_samples": 32}),
    "quantization.adaquant": ("table", ADAQUANT),
}
"""Methods that judge and store a given table, and the role that takes it."""


@pytest.fixture(scope="module")
def digits() -> xr.Dataset:
    return first_digits(160)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import workbench

    return workbench.open(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(digits: xr.Dataset) -> Model:
    torch.manual_seed(0)
    return untrained(Narrow(), digits)


@pytest.fixture(scope="module")
def found(bench: Any, model: Model, digits: xr.Dataset) -> Any:
    """A function: method -> its run, computed once."""
    return lambda method: run_of(bench, model, digits, method, **FINDERS[method])


def run_of(bench: Any, model: Model, digits: xr.Dataset, method: str, **params: Any) -> Run:
    return run_on(bench, model, digits, method, calibration=CALIBRATION, **params)


def widths(run: Run) -> dict[str, int]:
    return dict(zip(run["bits"]["layer"].values.tolist(), run["bits"].values.tolist(), strict=True))


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("finder", FINDERS)
def test_a_table_of_any_method_is_judged_by_any_other(
    bench: Any, model: Model, digits: xr.Dataset, found: Any, finder: str, judge: str
) -> None:
    table = found(finder)
    assert set(widths(table)) == set(LAYERS)
    role, params = JUDGES[judge]
    run = run_of(bench, model, digits, judge, **{role: table["bits"]}, **params)
    assert widths(run) == widths(table)
    for layer in stored_layers(run, run.model(into=model)):
        assert layer.bits == widths(table)[layer.name]
        assert int(layer.levels.unique().numel()) <= 2**layer.bits
    right = run["logit"].values.argmax(1) == run["label"].values
    given = (
        run["accuracy"].sel(solution="given widths")[-1] if judge.endswith("adaquant") else run["accuracy_given"][-1]
    )
    assert float(given) == right.mean()


@pytest.mark.parametrize("method", FINDERS)
def test_what_stays_in_full_precision_is_named_in_the_report_and_at_the_export(
    bench: Any, digits: xr.Dataset, tmp_path: Path, method: str
) -> None:
    """A weight of two dims that no convolution or linear layer has: stored with its reason, and told."""
    torch.manual_seed(0)
    model = untrained(Mixed(), digits)
    run = run_of(bench, model, digits, method, **FINDERS[method])
    (reason,) = run["unquantised_reason"].sel(parameter=["mixing"]).values
    assert "mixing" not in widths(run)
    shown = run.report().report
    told = [*shown.notes, *(" ".join(map(str, row)) for table in shown.tables for row in table.rows)]
    assert any("mixing" in text and str(reason) in text for text in told)
    written = export_model(WithModel(run, model), tmp_path / "model.safetensors")
    untouched = {
        f"{layer}.weight" for layer, bits in widths(run).items() if bits == 32
    }  # double rounding: first and last
    assert {name.removeprefix("network.") for name in written.kept} == {"mixing"} | untouched
    assert "; in full precision: " in str(written)


@pytest.mark.parametrize(("granularity", "finetune"), [("channel", "none"), ("layer", "joint")])
def test_hawq_stores_what_it_found_and_other_run_times_compute_its_logits(
    bench: Any, model: Model, digits: xr.Dataset, tmp_path: Path, granularity: str, finetune: str
) -> None:
    """Blocks of several layers too: their layers leave one by one."""
    run = run_of(
        bench, model, digits, "quantization.hawq",
        **HAWQ, granularity=granularity, finetune=finetune, epochs=1, blocks=(("middle", "late"),),
    )  # fmt: skip
    assert list(widths(run)) == ["stem", "middle + late", "head"]

    written = export_model(WithModel(run, model), tmp_path / "model.onnx")
    assert list(written.bits) == LAYERS
    found = onnx_logits(written.path, report_images(digits, run, CALIBRATION))
    np.testing.assert_allclose(found, run["logit"].values, rtol=1e-4, atol=1e-4)
    accuracy = float(run["accuracy"][0]) if finetune == "none" else float(run["finetuned_accuracy"][0])
    assert accuracy == (run["logit"].values.argmax(1) == run["label"].values).mean()
