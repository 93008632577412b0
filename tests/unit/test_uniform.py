"""Round-to-nearest: integers and scales against torch's kernels and loops by hand, and whole runs on a small CNN."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import xarray as xr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from workbench import InputError, Model
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Recipe, fit, predict_all

from unit.recording_out import RecordingOut, check_report, record
from workbench_quantization.bit_table import table_of_widths
from workbench_quantization.integer_weights import (
    from_rows,
    integer_weight,
    restore_weight,
    scale_count,
    to_rows,
)
from workbench_quantization.layers import find_blocks
from workbench_quantization.quantizer import channel_axis, quantise_weight
from workbench_quantization.uniform import Params, Uniform
from workbench_quantization.uniform_report import narrowest

SHARINGS = ["layer", "channel", "group"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.ConvTranspose2d(6, 4, 3), nn.Linear(10, 7)]


# ------------------------------------------------------------------------------------------------- integers and scales


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("position", range(4))
def test_rows_and_back(sharing: Any, position: int) -> None:
    layer = layers()[position]
    weight, axis = layer.get_parameter("weight").detach(), channel_axis(layer)
    rows = to_rows(weight, sharing, axis, 4)
    assert len(rows) == scale_count(tuple(weight.shape), sharing, axis, 4)
    assert torch.equal(from_rows(rows, weight.shape, sharing, axis), weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sharing", ["layer", "channel"])
@pytest.mark.parametrize("position", range(4))
def test_layer_and_channel_are_the_fake_quantiser(bits: int, sharing: Any, position: int) -> None:
    layer = layers()[position]
    stored = integer_weight(layer, bits, sharing, 4)
    assert int(stored.levels.abs().max()) == 2 ** (bits - 1) - 1  # the largest weight is on the outermost level
    expected = quantise_weight(layer.get_parameter("weight"), bits, sharing, channel_axis(layer)).detach()
    assert torch.equal(restore_weight(stored, layer, sharing, 4), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("position", range(4))
def test_groups_against_a_loop_and_torchs_kernel(bits: int, position: int) -> None:
    """Each channel is cut into runs of 4; the last run of a channel may be shorter."""
    layer = layers()[position]
    weight, axis = layer.get_parameter("weight").detach(), channel_axis(layer)
    restored = restore_weight(integer_weight(layer, bits, "group", 4), layer, "group", 4)
    top = 2 ** (bits - 1) - 1
    for channel in range(weight.shape[axis]):
        flat, found = weight.select(axis, channel).flatten(), restored.select(axis, channel).flatten()
        for start in range(0, len(flat), 4):
            run = flat[start : start + 4]
            scale = float(run.abs().max()) / top
            expected = torch.fake_quantize_per_tensor_affine(run, scale, 0, -top - 1, top)
            torch.testing.assert_close(found[start : start + 4], expected)


def test_groups_by_hand() -> None:
    layer = nn.Linear(5, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -1.2, 0.4, 0.26, 0.0]]))
    stored = integer_weight(layer, 3, "group", 2)
    # Groups (3, -1.2), (0.4, 0.26), (0): scales max / 3, and 1 where all is zero.
    assert stored.levels.tolist() == [[3, -1, 3, 2, 0]]
    torch.testing.assert_close(stored.scale, torch.tensor([1.0, 0.4 / 3, 1.0]))


def test_full_precision_stores_no_integers_and_keeps_the_weight() -> None:
    layer = layers()[0]
    stored = integer_weight(layer, 32, "group", 4)
    assert stored.levels.numel() == stored.scale.numel() == 0
    assert torch.equal(restore_weight(stored, layer, "group", 4), layer.get_parameter("weight"))


def test_finer_ranges_round_better() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 64)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-1, 0, 64)[:, None])
    errors = [
        float((restore_weight(integer_weight(layer, 3, s, 16), layer, s, 16) - layer.weight.detach()).square().sum())
        for s in SHARINGS
    ]
    assert errors[0] > errors[1] > errors[2]


# ------------------------------------------------------------------------------------------------------ given tables


def bits_table(bits: list[int], names: list[str] | None = None) -> xr.Dataset:
    return xr.Dataset({"bits": ("layer", np.array(bits, dtype=np.int8))}, {} if names is None else {"layer": names})


def test_tables_are_read_by_name_by_position_and_by_block() -> None:
    names = ["a", "b", "c"]
    assert table_of_widths(bits_table([2, 3, 4]), names).tolist() == [2, 3, 4]
    assert table_of_widths(bits_table([2, 3, 32], ["c", "a", "b"]), names).tolist() == [3, 32, 2]
    assert table_of_widths(bits_table([2, 3], ["a + c", "b"]), names).tolist() == [2, 3, 2]


@pytest.mark.parametrize(
    ("bits", "names", "problem"),
    [
        ([2, 3], None, "2 widths"),
        ([2, 3, 4], ["a", "b", "d"], "c, d"),
        ([2, 3, 4, 5], ["a", "b", "c", "a"], "twice"),
        ([2, 1, 4], ["a", "b", "c"], "1 for 'b'"),
        ([2, 20, 4], None, "20 for 'b'"),
    ],
)
def test_tables_that_do_not_fit_are_named(bits: list[int], names: list[str] | None, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        table_of_widths(bits_table(bits, names), ["a", "b", "c"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"widths": (4, 2)},
        {"widths": (1, 4)},
        {"store_width": 5},
        {"sharings": ("layer",), "store_sharing": "channel"},
        {"act_bits": 1},
        {"first_last_bits": 20},
    ],
)
def test_parameters_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Params(**wrong)


def test_narrowest_width_must_hold_for_all_wider_ones() -> None:
    assert narrowest(np.array([0.2, 0.89, 0.5, 0.9]), (2, 3, 4, 8), 0.9) == 8
    assert narrowest(np.array([0.2, 0.89, 0.91, 0.9]), (2, 3, 4, 8), 0.9) == 3
    assert narrowest(np.array([0.2, 0.3, 0.4, 0.5]), (2, 3, 4, 8), 0.9) is None


# --------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def digits() -> tuple[xr.Dataset, xr.Dataset, Model]:
    source = load_digits()
    image, label = (source.images / 16).astype(np.float32)[:, None], source.target.astype(np.int64)
    torch.manual_seed(0)
    model = SmallCNN(10, width=8)
    recipe = Recipe(epochs=6, learning_rate=0.05, batch_size=64)
    fit(model, torch.from_numpy(image[:900]), torch.from_numpy(label[:900]), recipe, generator=generator())

    def dataset(part: slice) -> xr.Dataset:
        return xr.Dataset({"image": (("sample", "channel", "y", "x"), image[part]), "label": ("sample", label[part])})

    return dataset(slice(900, 1200)), dataset(slice(1200, None)), Model(model, mean=0.0, std=1.0)


def kernel_quantised(model: nn.Module, bits: list[int], per_channel: bool) -> nn.Module:
    """A copy whose weights went through torch's own fake-quantise kernels."""
    other = copy.deepcopy(model)
    convolutions = [m for m in other.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer, width in zip(convolutions, bits, strict=True):
        top = 2 ** (width - 1) - 1
        weight = layer.weight.detach()
        if per_channel:
            scale = weight.flatten(1).abs().amax(1) / top
            zero = torch.zeros(len(scale), dtype=torch.int32)
            new = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -top - 1, top)
        else:
            new = torch.fake_quantize_per_tensor_affine(weight, float(weight.abs().max()) / top, 0, -top - 1, top)
        layer.weight.data.copy_(new)
    return other


def accuracy(model: nn.Module, test: xr.Dataset) -> float:
    logit = predict_all(model, test["image"])[0]
    return float((logit.argmax(1).numpy() == test["label"].values).mean())


def run_uniform(digits: tuple[xr.Dataset, xr.Dataset, Model], **options: Any) -> tuple[RecordingOut, Any]:
    data, test, model = digits
    roles = {"model": model, "data": data, "test": test} | {k: options.pop(k) for k in ("bits",) if k in options}
    return record(Uniform, roles, **options)


def test_accuracies_are_those_of_torchs_kernels(digits: tuple[xr.Dataset, xr.Dataset, Model]) -> None:
    out, result = run_uniform(digits, widths=(2, 3, 4, 8))
    _, test, model = digits
    assert float(out.arrays["accuracy_full_precision"]) == accuracy(model, test) > 0.9
    for column, width in enumerate((2, 3, 4, 8)):
        for row, per_channel in enumerate((False, True)):
            expected = accuracy(kernel_quantised(model, [8, width, width, width, 8], per_channel), test)
            # A weight on the border of two levels may fall either way: at most one image of 597 may differ.
            assert out.arrays["accuracy"][row, column] == pytest.approx(expected, abs=1.5 / test.sizes["sample"])
    assert out.arrays["accuracy"][:, -1].min() > 0.9
    report = check_report(Uniform, result)
    assert "within 1%" in report.summary
    assert {"accuracy", "agreement", "size", "average_bits"} <= {metric.name for metric in report.metrics}


def test_sizes_by_hand(digits: tuple[xr.Dataset, xr.Dataset, Model]) -> None:
    out, _ = run_uniform(digits, widths=(4,), group_size=16)
    sizes, channels = [8 * 9, 16 * 72, 16 * 144, 32 * 144, 10 * 32], [8, 16, 16, 32, 10]
    assert out.arrays["parameter_count"].tolist() == sizes
    weights = sum(n * b for n, b in zip(sizes, [8, 4, 4, 4, 8], strict=True))
    groups = 8 * 1 + 16 * 5 + 16 * 9 + 32 * 9 + 10 * 2
    for row, scales in enumerate((5, sum(channels), groups)):
        assert out.arrays["size_mb"][row, 0] == pytest.approx((weights + 32 * scales) / 8e6)
        assert out.arrays["average_bits"][row, 0] == pytest.approx((weights + 32 * scales) / sum(sizes))


@pytest.mark.parametrize("sharing", SHARINGS)
def test_integers_times_scales_are_the_stored_model(digits: tuple[xr.Dataset, xr.Dataset, Model], sharing: str) -> None:
    """Read back as somebody would who exports the model: from the stored arrays alone."""
    out, _ = run_uniform(digits, store_sharing=sharing, store_width=3, group_size=16, widths=(3,))
    assert out.arrays["bits"].tolist() == [8, 3, 3, 3, 8]
    model, arrays = out.modules["model"], out.arrays
    start = [*arrays["weight_start"], len(arrays["integer_weight"])]
    first = [*arrays["scale_start"], len(arrays["scale"])]
    for place, name in enumerate(out.coordinates["layer"][1]):
        weight = model.get_submodule(str(name)).get_parameter("weight").detach().numpy()
        levels = arrays["integer_weight"][start[place] : start[place + 1]].reshape(len(weight), -1)
        scale = arrays["scale"][first[place] : first[place + 1]]
        if sharing == "group":
            spread = np.repeat(scale.reshape(len(weight), -1), 16, axis=1)[:, : levels.shape[1]]
        else:
            spread = scale[:, None]
        assert np.array_equal(levels.astype(np.float32) * spread, weight.reshape(len(weight), -1))
    # Kernels sum in another order for weights of another memory layout.
    np.testing.assert_allclose(predict_all(model, digits[1]["image"])[0].numpy(), arrays["logit"], atol=1e-4)


def test_a_table_of_widths_is_judged_and_stored(digits: tuple[xr.Dataset, xr.Dataset, Model]) -> None:
    _, test, model = digits
    blocks, _ = find_blocks(model, torch.zeros(1, 1, 8, 8))
    names = [block.name for block in blocks]
    widths = [8, 4, 2, 3, 8]
    given = bits_table(widths[::-1], names[::-1])  # in another order, with names
    out, result = run_uniform(digits, bits=given)
    assert out.arrays["bits"].tolist() == widths
    expected = accuracy(kernel_quantised(model, widths, per_channel=True), test)
    assert out.arrays["accuracy_given"][1] == pytest.approx(expected, abs=1.5 / test.sizes["sample"])
    report = check_report(Uniform, result)
    values = {metric.name: metric.value for metric in report.metrics}
    assert values["accuracy"] == out.arrays["accuracy_given"][1]
    assert "The given widths reach" in report.summary
    assert "gain_over_uniform" in values


def test_the_table_of_a_uniform_solution_gives_its_figures(digits: tuple[xr.Dataset, xr.Dataset, Model]) -> None:
    out, _ = run_uniform(digits, bits=bits_table([8, 3, 3, 3, 8]), widths=(3, 4))
    for name in ("accuracy", "negative_log_likelihood", "agreement", "size_mb", "average_bits"):
        assert np.array_equal(out.arrays[f"{name}_given"], out.arrays[name][:, 0])


def test_errors_by_layer_are_sums_of_squares(digits: tuple[xr.Dataset, xr.Dataset, Model]) -> None:
    out, _ = run_uniform(digits, widths=(2, 4))
    weight = dict(digits[2].named_modules())[str(out.coordinates["layer"][1][1])].weight.detach()
    top = 2**3 - 1
    expected = torch.fake_quantize_per_tensor_affine(weight, float(weight.abs().max()) / top, 0, -top - 1, top)
    error = float((expected - weight).double().square().sum())
    assert out.arrays["weight_error"][1, 0, 1] == pytest.approx(error, rel=1e-5)
    assert out.arrays["relative_error"][1, 0, 1] == pytest.approx(error / float(weight.square().sum()), rel=1e-5)


def test_inputs_are_quantised_too(digits: tuple[xr.Dataset, xr.Dataset, Model]) -> None:
    """At 2 bits the inputs cost accuracy that weights alone do not; at 8 bits next to nothing. Ranges are those seen."""
    free, _ = run_uniform(digits, widths=(8,), store_width=8)
    wide, _ = run_uniform(digits, widths=(8,), store_width=8, act_bits=8)
    narrow, _ = run_uniform(digits, widths=(8,), store_width=8, act_bits=2, first_last_bits=None)
    assert wide.arrays["agreement"].min() > 0.98
    assert narrow.arrays["agreement"].max() < free.arrays["agreement"].min()
    assert wide.arrays["input_bits"].tolist() == [8] * 5
    assert narrow.arrays["input_bits"].tolist() == [2] * 5
    data, _, model = digits
    conv = str(wide.coordinates["layer"][1][2])
    seen = predict_all(model, data["image"][:], layers=[conv], inputs=True)[1][conv]
    assert wide.arrays["input_range"][2, 0] == 0.0
    assert wide.arrays["input_range"][2, 1] <= float(seen.max())
    follow, result = run_uniform(digits, widths=(4,), act_bits="weight")
    assert follow.arrays["input_bits"].tolist() == follow.arrays["bits"].tolist() == [8, 4, 4, 4, 8]
    assert any("quantised inputs" in note for note in check_report(Uniform, result).notes)


def test_the_model_given_is_only_read_where_it_is_measured(digits: tuple[xr.Dataset, xr.Dataset, Model]) -> None:
    """Without test images a share of data is reported on, disjoint from the calibration images and reproducible."""
    data, _, model = digits
    first, _ = record(Uniform, {"model": copy.deepcopy(model), "data": data}, widths=(4,))
    second, _ = record(Uniform, {"model": copy.deepcopy(model), "data": data}, widths=(4,))
    assert len(first.arrays["sample_index"]) == 150
    assert np.array_equal(first.arrays["logit"], second.arrays["logit"])


def test_a_model_without_layers_is_skipped() -> None:
    from workbench.errors import SkippedError

    class Mean(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.mean((2, 3))

    data = xr.Dataset(
        {"image": (("sample", "channel", "y", "x"), np.random.default_rng(0).random((8, 2, 4, 4), np.float32)),
         "label": ("sample", np.arange(8) % 2)}
    )  # fmt: skip
    with pytest.raises(SkippedError, match="no convolution"):
        record(Uniform, {"model": Mean(), "data": data}, widths=(4,))


@pytest.mark.parametrize("count", [1, 2])
def test_a_model_whose_layers_all_have_a_given_width_is_skipped(
    digits: tuple[xr.Dataset, xr.Dataset, Model], count: int
) -> None:
    """Else every width would score as 8 bits, and the report would claim that 2 bits keep the accuracy."""
    from workbench.errors import SkippedError

    hidden = [nn.Linear(64, 8), nn.ReLU()] if count == 2 else []
    model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(8 if hidden else 64, 10))
    data, test, _ = digits
    roles = {"model": model, "data": data, "test": test}
    with pytest.raises(SkippedError, match="first_last_bits=None"):
        record(Uniform, roles, widths=(2, 4))
    out, _ = record(Uniform, roles, widths=(2, 4), first_last_bits=None)
    assert out.arrays["bits"].tolist() == [4] * count
    assert (np.diff(out.arrays["size_mb"], axis=1) > 0).all()


def test_widths_found_by_hawq_are_judged_through_the_store(bench: Any) -> None:
    """As a user does it: the array of one run is the input of the next, and scalars come back as they were written."""
    from workbench.testing import sample_inputs

    from workbench_quantization.hawq import Hawq

    inputs = sample_inputs(Hawq, optional=False)
    quick = {"hess_samples": 16, "probes": 4, "power_iterations": 3, "landscape_points": 0, "sweep": 1}
    found = bench.run(Hawq, random_orders=1, **quick, **inputs)
    judged = bench.run(Uniform, bits=found["bits"], **inputs)
    assert judged["bits"].values.tolist() == found["bits"].values.tolist()
    logit = predict_all(judged.model(), inputs["data"]["image"][judged["sample_index"].values])[0].numpy()
    np.testing.assert_allclose(logit, judged["logit"].values, atol=1e-4)
    full = predict_all(inputs["model"], inputs["data"]["image"][judged["sample_index"].values])[0].numpy()
    assert float(judged["accuracy_full_precision"]) == (full.argmax(1) == judged["label"].values).mean()
    assert judged.metrics["accuracy"] == (logit.argmax(1) == judged["label"].values).mean()


# ------------------------------------------------------------------------------------------------------- on real data

DATA = Path(__file__).parents[2].parent / "shared" / "data"
IMAGES, WEIGHTS = DATA / "cifar10" / "original_subset.npz", DATA / "weights" / "cifar10_resnet20.safetensors"


@pytest.mark.slow
@pytest.mark.skipif(not (IMAGES.exists() and WEIGHTS.exists()), reason=f"CIFAR-10 and weights are not in {DATA}")
def test_resnet20_keeps_its_accuracy_at_8_bits_and_loses_it_at_2() -> None:
    """1000 test images: channels beat layers where bits are few, groups beat channels at 3 bits."""
    from unit.test_hawq_cifar10 import subjects

    model, data, test = subjects()
    out, result = record(Uniform, {"model": model, "data": data, "test": test}, widths=(2, 3, 4, 8))
    accuracies, full = out.arrays["accuracy"], float(out.arrays["accuracy_full_precision"])
    print("\n", check_report(Uniform, result).summary, "\n", accuracies, "\n", out.arrays["average_bits"])
    assert full == pytest.approx(0.916, abs=0.005)
    assert (accuracies[:, 3] > full - 0.01).all()
    assert (accuracies[:, 0] < full - 0.3).all()
    assert accuracies[0, 1] < accuracies[1, 1] < accuracies[2, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "reached"), [(20, 0.916), (56, 0.927)])
def test_full_precision_is_that_of_the_checkpoints(
    depth: int, reached: float, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, on all 1,017 test images: anything much lower is another image encoding, in which every claim drowns."""
    import workbench

    monkeypatch.setenv("WORKBENCH_DATA", str(shared_data))
    run = workbench.open(tmp_path).run(
        "training.evaluation", model=f"cifar10-resnet{depth}", data="cifar10(split=test)", progress=False
    )
    assert run["label"].size == 1017
    assert run.metrics["accuracy"] == pytest.approx(reached, abs=0.001)
