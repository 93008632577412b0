"""Quantised runs as models of torchao: the run's own integers, the run's own logits, and what torchao cannot hold."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from workbench import InputError, MissingDependencyError, Model

from unit.stored_model_cases import WithModel, first_digits, report_images, run_on, untrained
from workbench_quantization import torchao_model

pytest.importorskip("torchao", reason="needs the extra torchao")
CALIBRATION = 60


class Mostly(nn.Module):
    """A convolution, and linear layers of 96, 20 and 20 inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.first, self.second, self.head = nn.Linear(96, 20), nn.Linear(20, 20, bias=False), nn.Linear(20, 10)

    def forward(self, image: Tensor) -> Tensor:
        hidden = nn.functional.adaptive_avg_pool2d(torch.relu(self.stem(image)), 4).flatten(1)
        return self.head(torch.relu(self.second(torch.relu(self.first(hidden)))))


@pytest.fixture(scope="module")
def digits() -> xr.Dataset:
    return first_digits(120)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import workbench

    return workbench.open(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(digits: xr.Dataset) -> Model:
    torch.manual_seed(0)
    return untrained(Mostly(), digits)


def name(layer: str, names: Any) -> str:
    return next(found for found in names if found.endswith(layer))


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("quantization.uniform", {"store_width": 4}),
        ("quantization.uniform", {"store_width": 3, "store_sharing": "layer"}),
        (
            "quantization.uniform",
            {"store_width": 2, "store_sharing": "group", "group_size": 4, "first_last_bits": None},
        ),
        ("quantization.gptq", {"widths": (3,), "store_width": 3, "sharing": "group", "group_size": 4}),
        ("quantization.adaquant", {"bits": (4, 8), "iterations": 3, "bias_steps": 0, "act_bits": 32}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_its_linear_layers_hold_the_integers_and_give_the_logits(
    bench: Any, model: Model, digits: xr.Dataset, method: str, params: dict[str, Any]
) -> None:
    run = WithModel(run_on(bench, model, digits, method, calibration=CALIBRATION, **params), model)
    exported = torchao_model(run)
    assert {layer.rpartition(".")[2] for layer in exported.bits} == {"first", "second", "head"}
    assert list(exported.kept) == [name("stem", run["bits"]["layer"].values)]
    widths = dict(zip(run["bits"]["layer"].values.tolist(), run["bits"].values.tolist(), strict=True))
    plain = run.model()
    starts = dict(zip(widths, run["weight_start"].values.tolist(), strict=True))
    for layer, bits in exported.bits.items():
        assert bits == widths[layer]
        held = exported.model.get_submodule(layer).weight
        assert held.target_dtype == getattr(torch, f"int{bits}")
        stored = run["integer_weight"].values[starts[layer] : starts[layer] + held.qdata.numel()].astype(int)
        gap = np.unique(held.qdata.numpy().ravel() - stored)  # integers from 0 begin at the lowest signed one
        assert gap.tolist() == [-(2 ** (bits - 1)) if "zero" in run else 0]
        torch.testing.assert_close(held.dequantize(), plain.get_submodule(layer).weight, rtol=1e-6, atol=1e-7)
    image = torch.from_numpy(report_images(digits, run, CALIBRATION))
    with torch.no_grad():
        torch.testing.assert_close(exported.model(image), plain(image), rtol=1e-5, atol=1e-5)


def test_it_leaves_through_torch_export(bench: Any, model: Model, digits: xr.Dataset) -> None:
    run = WithModel(run_on(bench, model, digits, "quantization.uniform", calibration=CALIBRATION), model)
    exported = torchao_model(run).model
    image = torch.from_numpy(report_images(digits, run, CALIBRATION))[:4]
    program = torch.export.export(exported, (image,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image), exported(image))


def test_what_torchao_cannot_hold_is_listed_and_keeps_its_rounded_weight(
    bench: Any, model: Model, digits: xr.Dataset
) -> None:
    options = {"widths": (4, 12), "store_width": 4, "store_sharing": "group", "group_size": 8, "first_last_bits": None}
    run = WithModel(run_on(bench, model, digits, "quantization.uniform", calibration=CALIBRATION, **options), model)
    exported = torchao_model(run)  # 96 inputs are 12 groups of 8, 20 are none
    assert [layer.rpartition(".")[2] for layer in exported.bits] == ["first"]
    kept = {layer.rpartition(".")[2]: why for layer, why in exported.kept.items()}
    assert "linear layers only" in kept["stem"]
    assert kept["second"] == kept["head"] == "20 inputs are no multiple of the group of 8"
    wide = WithModel(
        run_on(bench, model, digits, "quantization.uniform", calibration=CALIBRATION, **options | {"store_width": 12}),
        model,
    )
    with pytest.raises(InputError, match="12 bits, torchao's integers have 8 at most"):
        torchao_model(wide)


def test_a_missing_torchao_is_named(
    bench: Any, model: Model, digits: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = WithModel(run_on(bench, model, digits, "quantization.uniform", calibration=CALIBRATION), model)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingDependencyError, match=r"vision-workbench\[torchao\]"):
        torchao_model(run)
