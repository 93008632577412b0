"""Quantised models as files: what another run time and a plain state dict compute from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor, nn
from workbench import InputError, Model
from workbench.cli import cli

from unit.stored_model_cases import WithModel, first_digits, onnx_logits, report_images, run_on, untrained
from workbench_quantization import export_model
from workbench_quantization.export_safetensors import pack, read_safetensors, unpack

CALIBRATION = 150


class Everything(nn.Module):
    """Convolutions plain, in groups and transposed, with and without bias and norm, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.hidden = nn.Linear(6 * 4 * 4, 20, bias=False)
        self.head = nn.Linear(20, 10)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.stem(image)))
        hidden = torch.relu(self.up(torch.tanh(self.grouped(hidden))))
        return self.head(self.hidden(nn.functional.adaptive_avg_pool2d(hidden, 4).flatten(1)))


@pytest.fixture(scope="module")
def digits() -> xr.Dataset:
    return first_digits(300)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import workbench

    return workbench.open(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(digits: xr.Dataset) -> Model:
    torch.manual_seed(0)
    return untrained(Everything(), digits)


def run_of(bench: Any, model: Any, digits: xr.Dataset, method: str = "quantization.uniform", **params: Any) -> Any:
    return run_on(bench, model, digits, method, calibration=CALIBRATION, **params)


class Twice(nn.Module):
    """A convolution and a linear layer that are called twice each, on inputs of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.head, self.deep = nn.Linear(4, 10), nn.Linear(10, 10, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.tanh(self.again(torch.tanh(self.again(torch.relu(self.stem(image))))))
        return self.deep(torch.sin(3 * self.deep(self.head(hidden.mean((2, 3))))))


CASES = [
    ("quantization.uniform", {}),
    ("quantization.uniform", {"store_sharing": "layer", "store_width": 3}),
    ("quantization.uniform", {"store_sharing": "group", "store_width": 2, "group_size": 5}),
    ("quantization.uniform", {"widths": (4, 12), "store_width": 12, "first_last_bits": None}),
    ("quantization.uniform", {"act_bits": 8, "store_width": 8}),
    ("quantization.uniform", {"act_bits": 4}),
    ("quantization.adaquant", {"bits": (3, 4, 8), "iterations": 5, "bias_steps": 5}),
    ("quantization.gptq", {"sharing": "group", "group_size": 7, "widths": (3,), "store_width": 3}),
]


@pytest.mark.parametrize(("method", "params"), CASES, ids=[f"{m.partition('.')[2]}-{p}" for m, p in CASES])
def test_another_run_time_computes_the_stored_logits(
    bench: Any, model: Model, digits: xr.Dataset, tmp_path: Path, method: str, params: dict[str, Any]
) -> None:
    run = run_of(bench, model, digits, method, **params)
    written = export_model(WithModel(run, model), tmp_path / "model.onnx")
    held = report_images(digits, run, CALIBRATION)
    expected = run["logit"].values
    gap = np.abs(onnx_logits(written.path, held) - expected).max(axis=1) / np.abs(expected).max()
    # Inputs on a grid: a value at the border of two levels may fall to the other side, and moves a few samples' logits.
    assert np.median(gap) < 1e-5
    assert gap.max() < (0.02 if params.get("act_bits") or method.endswith("adaquant") else 1e-5)


def test_a_model_in_half_precision_leaves_the_store_and_foreign_weights_do_not(
    bench: Any, model: Model, digits: xr.Dataset, tmp_path: Path
) -> None:
    run = WithModel(run_of(bench, model, digits), model)

    class Half(WithModel):
        def model(self) -> nn.Module:
            return run.model().half()

    class Foreign(WithModel):
        def model(self) -> nn.Module:
            other = run.model().half()
            with torch.no_grad():
                other.get_submodule(str(run["bits"]["layer"].values[0])).weight.mul_(1.05)
            return other

    state, _ = read_safetensors(export_model(Half(run, model), tmp_path / "half.safetensors").path)
    stored = run.model().state_dict()
    assert all(
        torch.allclose(value.float(), stored[name].float(), rtol=2e-3, atol=1e-4) for name, value in state.items()
    )
    with pytest.raises(InputError, match="integers that give the weights"):
        export_model(Foreign(run, model), tmp_path / "foreign.safetensors")
    written = export_model(Half(run, model), tmp_path / "half.onnx")  # as float32: integers and scales are the same
    held = report_images(digits, run, CALIBRATION)
    expected = run["logit"].values
    assert np.abs(onnx_logits(written.path, held) - expected).max() < 5e-3 * np.abs(expected).max()


def test_language_models_leave_as_integers_alone(bench: Any, model: Model, digits: xr.Dataset, tmp_path: Path) -> None:
    class Words(WithModel):
        def model(self) -> nn.Module:
            network = super().model()
            network.embedding = nn.Embedding(5, 3)
            network.input_shape = None
            return network

    run = Words(run_of(bench, model, digits), model)
    with pytest.raises(InputError, match=r"a model of images.*\.safetensors"):
        export_model(run, tmp_path / "model.onnx")


def test_a_table_that_leaves_everything_in_full_precision_is_written_and_says_so(
    bench: Any, model: Model, digits: xr.Dataset, tmp_path: Path
) -> None:
    layers = run_of(bench, model, digits)["bits"]
    run = run_of(bench, model, digits, bits=xr.full_like(layers, 32))
    written = export_model(WithModel(run, model), tmp_path / "model.safetensors")
    assert "; no layer is quantised; in full precision: " in str(written)


def test_a_layer_that_is_called_twice_quantises_both_inputs(bench: Any, digits: xr.Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    twice = Model(Twice().eval(), input_shape=digits["image"].shape[1:])
    run = run_of(bench, twice, digits, act_bits=3, store_width=8)
    written = export_model(WithModel(run, twice), tmp_path / "model.onnx")
    held = report_images(digits, run, CALIBRATION)
    gap = np.abs(onnx_logits(written.path, held) - run["logit"].values).max(axis=1)
    assert np.median(gap) < 1e-5 * np.abs(run["logit"].values).max()


@pytest.mark.parametrize(("method", "params"), CASES, ids=[f"{m.partition('.')[2]}-{p}" for m, p in CASES])
def test_a_file_gives_the_state_back_and_is_as_small_as_its_bits(
    bench: Any, model: Model, digits: xr.Dataset, tmp_path: Path, method: str, params: dict[str, Any]
) -> None:
    run = WithModel(run_of(bench, model, digits, method, **params), model)
    written = export_model(run, tmp_path / "model.safetensors")
    state, facts = read_safetensors(written.path)
    stored = run.model().state_dict()
    assert state.keys() == stored.keys()
    for name, value in stored.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
    assert facts["run"] == run.id
    sizes = {name: stored[f"{name}.weight"].numel() for name in written.bits}
    packed = sum(-(-sizes[name] * bits // 8) for name, bits in written.bits.items())
    rest = sum(v.numel() * v.element_size() for n, v in stored.items() if n.removesuffix(".weight") not in sizes)
    scales = 4 * run["scale"].size * (2 if "zero" in run else 1)
    header = int.from_bytes(written.path.read_bytes()[:8], "little") + 8
    assert written.size == header + packed + rest + scales
    assert written.full_precision_size == sum(v.numel() * v.element_size() for v in stored.values())


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8, 12, 16])
def test_packing_against_digits_written_out(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, 101)
    packed = pack(values, bits)
    written = "".join(format(value, f"0{bits}b")[::-1] for value in values)
    written += "0" * (-len(written) % 8)
    assert packed.tolist() == [int(written[start : start + 8][::-1], 2) for start in range(0, len(written), 8)]
    assert np.array_equal(unpack(packed, bits, 101), values)


def test_runs_and_names_that_do_not_fit_are_refused(
    bench: Any, model: Model, digits: xr.Dataset, tmp_path: Path
) -> None:
    run = WithModel(run_of(bench, model, digits), model)
    with pytest.raises(InputError, match=r"\.onnx or \.safetensors"):
        export_model(run, tmp_path / "model.pt")
    with pytest.raises(InputError, match="folder that exists"):
        export_model(run, tmp_path / "nowhere" / "model.onnx")
    other = bench.run("training.evaluation", model=model, data=digits, progress=False)
    with pytest.raises(InputError, match=r"integer weights.*without bits"):
        export_model(WithModel(other, model), tmp_path / "model.onnx")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="written by `workbench export`"):
        read_safetensors(tmp_path / "other.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.safetensors"]


def test_integers_that_do_not_give_the_model_are_noticed(
    bench: Any, model: Model, digits: xr.Dataset, tmp_path: Path
) -> None:
    run = WithModel(run_of(bench, model, digits), model)
    changed = run.model()
    with torch.no_grad():
        changed.get_parameter("head.weight").add_(0.1)
    run.model = lambda: changed  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"'head'.* differ by"):
        export_model(run, tmp_path / "model.safetensors")


def test_the_command_line_writes_both_and_a_table_of_another_method_is_one_step_away(
    bench: Any, digits: xr.Dataset, tmp_path: Path
) -> None:
    run = run_of(bench, "small-cnn", digits)
    store = ["--store", str(bench.store.url)]
    for suffix in ("onnx", "safetensors"):
        result = CliRunner().invoke(cli, [*store, "export", run.id, "-o", str(tmp_path / f"model.{suffix}")])
        assert result.exit_code == 0, result.output
        assert f"{(tmp_path / f'model.{suffix}').stat().st_size:,} bytes" in result.output
    assert str(tmp_path) not in json.dumps(list(read_safetensors(tmp_path / "model.safetensors")[1]))
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "model.onnx").read_bytes()
    bits = xr.Dataset({"bits": ("layer", run["bits"].values)}, {"layer": run["bits"]["layer"].values})
    again = run_of(bench, "small-cnn", digits, bits=bits)
    assert export_model(again, tmp_path / "again.safetensors").bits == {
        str(name): int(width) for name, width in zip(run["bits"]["layer"].values, run["bits"].values, strict=True)
    }
