"""Whole runs of Double Rounding: what is stored, reloaded, exported, exchanged, resumed, refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import xarray as xr
from workbench import InputError, Model
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Recipe, fit

from unit.recording_out import RecordingOut, check_report, record
from unit.switchable_cases import digits, residual
from workbench_quantization.double_rounding import DoubleRounding, Params
from workbench_quantization.layers import find_blocks
from workbench_quantization.nested_rounding import shifted_levels


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


def test_the_highest_width_teaches_the_others_and_not_itself() -> None:
    """One batch: at 8 bits the loss is what it is without a teacher, at 2 bits it is the divergence from 8 bits alone."""
    options: dict[str, Any] = {"widths": (8, 2), "epochs": 1, "batch_size": 64, "hess_samples": 16, "distillation": 1.0}
    plain, taught = (
        record(DoubleRounding, {"model": residual(), "data": digits(0, 40)}, teacher=teacher, **options)[0].arrays
        for teacher in ("none", "highest width")
    )
    assert taught["loss_epoch"][0, 0, 0] == plain["loss_epoch"][0, 0, 0]
    assert taught["loss_epoch"][0, 0, 1] < 0.5 * plain["loss_epoch"][0, 0, 1]


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
