"""BiPer's runs: what is watched while training, what is stored and read back, resuming, export, reports and bad input."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import workbench
import xarray as xr
from scipy.stats import ttest_rel
from torch import nn
from workbench import InputError, SkippedError
from workbench.subjects import load_state
from workbench.subjects.models import model_state
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Recipe, fit, learning_rate

from unit.biper_cases import ALL_FACTORIES, digit_model, few_digits, noise
from unit.recording_out import RecordedResult, RecordingOut, check_report, record
from workbench_quantization import deployed_model, export_model
from workbench_quantization.biper import BiPer, Params
from workbench_quantization.biper_layers import binarise, binary_layers, packed_layers, set_weights
from workbench_quantization.biper_networks import binary_digits
from workbench_quantization.biper_report import _interval
from workbench_quantization.biper_store import packed_like
from workbench_quantization.biper_study import recipe_of
from workbench_quantization.biper_training import Watched, batches_per_epoch
from workbench_quantization.export_safetensors import read_safetensors


def test_flips_are_counted_epoch_by_epoch() -> None:
    network = binarise(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), ["1"], omega=20)
    watched = Watched(network, batches=2, epochs=2, penalty="off", tau=(0, 0)).train()
    layer = binary_layers(network)["1"]
    period = math.pi / 20
    with torch.no_grad():
        for epoch, moved in enumerate((3, 5)):
            for _ in range(2):
                watched(noise(3, 4))
            layer.weight.view(-1)[:moved] += period  # half a period turns a bit round
            if epoch == 1:
                watched.note(1)
    assert watched.flip_rate[:, 0].tolist() == [3 / 16, 5 / 16]
    assert float(watched.scale[1, 0]) == pytest.approx(20 * float(layer.weight.detach().abs().mean()), rel=1e-6)


@pytest.mark.parametrize("samples", [1, 4, 5, 6, 9])
def test_an_epoch_has_as_many_steps_as_the_training_loop_makes(samples: int) -> None:
    network = binarise(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), ["1"], omega=20)
    watched = Watched(network, batches=batches_per_epoch(samples, 4), epochs=3, penalty="off", tau=(0, 0))
    label = torch.zeros(samples, dtype=torch.int64)
    fit(watched, noise(samples, 4), label, Recipe(epochs=3, batch_size=4), generator=torch.Generator().manual_seed(0))
    assert int(watched.steps) == 3 * batches_per_epoch(samples, 4)


def test_warm_up_and_cosine_are_those_of_the_code() -> None:
    """Peak * (epoch + 1) / 5 below epoch 5, then torch's cosine over epochs - 4."""
    recipe = recipe_of(Params(epochs1=20), 1)
    rates = [learning_rate(recipe, epoch) for epoch in range(20)]
    assert rates[:5] == pytest.approx([0.021 * k / 5 for k in (1, 2, 3, 4, 5)])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.021)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16)
    expected = []
    for _ in range(16):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[4:] == pytest.approx(expected)


FAST: dict[str, Any] = {
    "epochs1": 2,
    "epochs2": 2,
    "batch": 32,
    "lr1": 0.2,
    "lr2": 0.02,
    "augmentation": "none",
    "baselines": ("sign_clipped", "biper_one_stage"),
    "baseline_rates": (1.0, 3.0),
    "omega_sweep": (5.0,),
}


@pytest.fixture(scope="module")
def trained() -> tuple[RecordingOut, RecordedResult]:
    data, test = few_digits()
    return record(BiPer, {"model": digit_model(), "data": data, "test": test}, **FAST)


def test_run_learns_and_stores_what_it_computes_with(trained: tuple[RecordingOut, RecordedResult]) -> None:
    out, result = trained
    data = out.data
    accuracy = dict(zip(data["mode"].values.tolist(), data["accuracy"].values[:, 0].tolist(), strict=True))
    assert accuracy["biper"] > 0.5
    packed = out.modules["model"]
    assert len(packed_layers(packed)) == 2
    _, test = few_digits()
    with torch.no_grad():
        logit = packed(torch.from_numpy(test["image"].values))
    np.testing.assert_allclose(logit.numpy(), data["logit"].values, atol=2e-4)
    # The accuracy of the report is that of the packed network.
    assert float((logit.argmax(1).numpy() == test["label"].values).mean()) == pytest.approx(accuracy["biper"])
    bits = np.concatenate([layer.weight.flatten().numpy() for layer in packed_layers(packed).values()])
    np.testing.assert_array_equal(bits, data["bit"].values)
    np.testing.assert_array_equal(np.where(np.sin(20 * data["latent_weight"].values) >= 0, 1, -1), bits)
    for row, layer in enumerate(packed_layers(packed).values()):
        np.testing.assert_allclose(layer.alpha.numpy(), data["alpha"].values[row, : len(layer.alpha)])
    assert set(np.unique(data["bit"].values)) == {-1, 1}
    assert (data["flip_rate"].values >= 0).all()
    assert data["flip_rate"].values.sum() > 0
    report = check_report(BiPer, result)
    assert f"{accuracy['biper']:.1%}" in report.summary


def test_size_is_what_the_state_takes(trained: tuple[RecordingOut, RecordedResult]) -> None:
    """Counted by hand: 13,824 bits, 64 scales; stem, batch norms and head in 32 bits (and 8 bytes a batch norm counts in)."""
    full, packed = trained[0].arrays["size"].tolist()
    rest = 4 * (9 * 16 + 4 * (16 + 32 + 32) + 128 * 10 + 10) + 3 * 8
    assert full == rest + 4 * 13824
    assert packed == rest + 13824 // 8 + 4 * 64


def test_a_stopped_run_goes_on_to_the_same_result(trained: tuple[RecordingOut, RecordedResult]) -> None:
    data, test = few_digits()
    inputs = {"model": digit_model(), "data": data, "test": test}
    stopped = RecordingOut(BiPer, cancel_after=60)
    with pytest.raises(workbench.CancelledError):
        record(BiPer, inputs, out=stopped, **FAST)
    assert stopped.checkpoints
    resumed, _ = record(BiPer, inputs, out=RecordingOut(BiPer, restored=stopped.checkpoints[-1]), **FAST)
    assert len(resumed.progressed) < len(trained[0].progressed)
    for name in ("accuracy", "bit", "flip_rate", "scale", "logit", "validation_accuracy", "omega_accuracy"):
        np.testing.assert_array_equal(resumed.arrays[name], trained[0].arrays[name], err_msg=name)


def test_stored_networks_are_built_again_from_their_names(trained: tuple[RecordingOut, RecordedResult]) -> None:
    image = torch.from_numpy(few_digits()[1]["image"].values[:50])
    for name in ("model", "stage1"):
        stored = trained[0].modules[name]
        again = load_state(*model_state(stored), factories=ALL_FACTORIES)
        with torch.no_grad():
            assert torch.equal(again(image), stored(image))
    facts = model_state(trained[0].modules["model"])[1]
    facts["factory_arguments"]["network"]["factory"] = "nobody"
    with pytest.raises(InputError, match="registered factory"):
        load_state({}, facts, factories=ALL_FACTORIES)


def test_stage_two_can_start_from_a_stored_stage_one(trained: tuple[RecordingOut, RecordedResult]) -> None:
    data, test = few_digits()
    first = load_state(*model_state(trained[0].modules["stage1"]), factories=ALL_FACTORIES)
    inputs = {"model": digit_model(), "data": data, "test": test, "stage1": first}
    alone = FAST | {"baselines": (), "omega_sweep": ()}
    out, result = record(BiPer, inputs, **alone)
    np.testing.assert_array_equal(out.arrays["bit"], trained[0].arrays["bit"])
    check_report(BiPer, result)
    assert any("earlier run" in note for note in BiPer().report(result).notes)
    for argument, changed in {"omega": 10.0, "pad_value": 1, "act_bits": 32, "omega_sweep": (5.0,), "seeds": 2}.items():
        untouched = RecordingOut(BiPer)
        with pytest.raises(InputError) as caught:
            record(BiPer, inputs, out=untouched, **(FAST | {"omega_sweep": (), argument: changed}))
        assert caught.value.argument == argument
        assert not untouched.progressed  # before any training
    with pytest.raises(InputError, match="after stage 1"):
        record(BiPer, inputs | {"stage1": digit_model()}, **alone)


def test_any_network_trains_and_comes_back_from_the_store(tmp_path: Any) -> None:
    """A network with ReLUs that no factory built: through a real store, evaluated, and loaded into a copy of itself."""
    data, test = few_digits()
    torch.manual_seed(0)
    network = SmallCNN(10, width=8)
    bench = workbench.open(tmp_path)
    short = {"epochs1": 1, "epochs2": 1, "batch": 128, "augmentation": "none", "baselines": (), "lr1": 0.05}
    run = bench.run("quantization.biper", model=network, data=data, test=test, **short)
    model = run.model(into=packed_like(network, run))
    with torch.no_grad():
        logit = model(torch.from_numpy(test["image"].values))
    np.testing.assert_allclose(logit.numpy(), run["logit"].values, atol=2e-4)
    assert sorted(run["bits"]["layer"].values) == ["block2.conv", "block3.conv", "block4.conv"]
    named = bench.run("quantization.biper", model="small-cnn(width=8)", data=data, test=test, **short)
    judged = bench.run("training.evaluation", model=named, data=test)
    assert judged.metrics["accuracy"] == pytest.approx(named.metrics["accuracy"])


def test_export_is_as_small_as_it_says_and_computes_the_same(tmp_path: Any) -> None:
    data, test = few_digits()
    bench = workbench.open(tmp_path / "store")
    short = {"epochs1": 1, "epochs2": 1, "batch": 32, "augmentation": "none", "baselines": (), "lr1": 0.05}
    run = bench.run("quantization.biper", model="binary-digits", data=data, test=test, **short)
    told = export_model(run, tmp_path / "model.safetensors")
    assert told.size == (tmp_path / "model.safetensors").stat().st_size
    assert told.size < run["size"].values[1] + 4096  # the state and a header
    assert told.bits == {"features.3": 1, "features.7": 1}
    with pytest.raises(InputError, match="width"):
        export_model(run, tmp_path / "other.safetensors", width=4)
    state, facts = read_safetensors(tmp_path / "model.safetensors")
    empty = packed_like(binary_digits(), run)
    empty.load_state_dict(state)
    image = torch.from_numpy(test["image"].values[:20])
    np.testing.assert_allclose(empty.eval()(image).detach().numpy(), run["logit"].values[:20], atol=2e-4)
    assert facts["binary"]["features.3"]["shape"] == [32, 16, 3, 3]
    np.testing.assert_allclose(deployed_model(run)(image).detach().numpy(), run["logit"].values[:20], atol=2e-4)
    with pytest.raises(InputError, match="width"):
        deployed_model(run, 4)
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    told = export_model(run, tmp_path / "model.onnx")
    assert told.size < told.full_precision_size / 2
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    np.testing.assert_allclose(session.run(None, {"image": image.numpy()})[0], run["logit"].values[:20], atol=2e-4)


def test_binary_weights_alone_keep_their_rectifiers() -> None:
    data, test = few_digits()
    model = SmallCNN(10, width=8).eval()
    out, result = record(BiPer, {"model": model, "data": data, "test": test}, act_bits=32, initialization="given",
                         **(FAST | {"epochs1": 1, "epochs2": 1, "baselines": (), "omega_sweep": ()}))  # fmt: skip
    packed = out.modules["model"]
    assert any(isinstance(module, nn.ReLU) for module in packed.modules())
    assert all(layer.inputs == "real" for layer in packed_layers(packed).values())
    assert out.arrays["input_bits"].tolist() == [32, 32, 32]
    # Zeros around real inputs are no third level, no rate was chosen, and the weights came from elsewhere.
    report = check_report(BiPer, result)
    notes = " ".join(report.notes)
    assert "third level" not in notes
    assert "rates are chosen" not in notes
    assert "began with the weights of the given model" in notes
    # What it cost is said beside the accuracy that the model had.
    with torch.no_grad():
        untouched = (model(torch.from_numpy(test["image"].values)).argmax(1).numpy() == test["label"].values).mean()
    assert f"against {untouched:.1%} of the model as it was given" in report.summary
    assert report.tables[0].columns == ("training", "W/A bits", "accuracy", "95 % from", "to")
    assert report.tables[0].rows[0][:3] == ("the model as it was given", "32/32", round(float(untouched), 4))


def test_what_stage_two_gains_is_judged_image_by_image(trained: tuple[RecordingOut, RecordedResult]) -> None:
    """The network of stage 1 is binarised here, and scipy says the interval of the paired difference."""
    out, result = trained
    _, test = few_digits()
    binarised = set_weights(copy.deepcopy(out.modules["stage1"]), "square").eval()
    with torch.no_grad():
        before = binarised(torch.from_numpy(test["image"].values)).argmax(1).numpy() == test["label"].values
    after = out.arrays["logit"].argmax(1) == test["label"].values
    low, high = ttest_rel(after.astype(float), before.astype(float)).confidence_interval(0.95)
    report = check_report(BiPer, result)
    gain = next(metric for metric in report.metrics if metric.name == "gain_of_stage_two")
    assert gain.value == pytest.approx(after.mean() - before.mean())
    assert gain.interval == pytest.approx((low, high))
    assert f"95 % interval over images {100 * low:+.1f} to {100 * high:+.1f}, one training of each" in report.summary


def test_a_run_of_before_single_answers_were_stored_has_no_interval(
    trained: tuple[RecordingOut, RecordedResult],
) -> None:
    earlier = copy.copy(trained[0])
    earlier.arrays = {name: values for name, values in earlier.arrays.items() if name != "correct"}
    report = check_report(BiPer, RecordedResult(earlier, trained[1].params))
    gain = next(metric for metric in report.metrics if metric.name == "gain_over_sign")
    assert gain.interval is None
    assert "points (one training of each)" in report.summary


def test_intervals_of_accuracies_stay_between_0_and_1() -> None:
    """The t interval of 0.90 and 0.99 reaches from 0.37 to 1.52."""
    result: Any = {
        "accuracy": xr.DataArray([[0.90, 0.99]], dims=("mode", "seed"), coords={"mode": ["biper"]}),
        "label": xr.DataArray(np.zeros(100), dims="sample"),
    }
    assert _interval(result, "biper") == (pytest.approx(0.3732, abs=1e-3), 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_any_precision_train_in_float32(dtype: torch.dtype) -> None:
    data, test = few_digits()
    model = SmallCNN(10, width=4).to(dtype)
    short = FAST | {"epochs1": 1, "epochs2": 1, "baselines": (), "omega_sweep": ()}
    out, result = record(BiPer, {"model": model, "data": data, "test": test}, **short)
    assert out.modules["model"].state_dict()["block1.conv.weight"].dtype == torch.float32
    assert next(model.parameters()).dtype == dtype
    share = next(metric.value for metric in BiPer().report(result).metrics if metric.name == "binary_share")
    assert share == pytest.approx(sum(out.arrays["parameter_count"]) * 4 / out.arrays["size"][0])
    assert 0.5 < share < 1


def test_a_rate_at_which_a_baseline_diverges_is_not_chosen_and_said() -> None:
    """Nothing bounds what this network computes; at a rate of 100 its full-precision training overflows."""
    data, test = few_digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
    short = FAST | {"epochs1": 1, "epochs2": 1, "lr1": 0.1, "baselines": ("full_precision",), "omega_sweep": ()}
    inputs = {"model": model, "data": data, "test": test}
    out, result = record(BiPer, inputs, **(short | {"baseline_rates": (1000.0, 1.0)}))
    assert np.isnan(out.arrays["rate_accuracy"]).tolist() == [[True, False]]
    assert out.arrays["chosen_rate"].tolist() == pytest.approx([0.1])
    assert any("diverged" in note and "full_precision at 100" in note for note in check_report(BiPer, result).notes)
    with pytest.raises(InputError, match="full_precision stays finite"):
        record(BiPer, inputs, **(short | {"baseline_rates": (1000.0,)}))


def test_bad_input_is_one_clear_error() -> None:
    data, test = few_digits()
    with pytest.raises(pydantic.ValidationError, match="baseline_rates"):
        Params(baseline_rates=(1.0, 1.0))
    with pytest.raises(pydantic.ValidationError, match="tau1"):
        Params(tau1=(0.1, 2.0))
    two = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    with pytest.raises(SkippedError, match="no layer of the model can be binary"):
        record(BiPer, {"model": two, "data": data, "test": test}, **FAST)
