"""BiPer: closed forms against integrals and samples, gradients against their definition, storing, and training on digits."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import workbench
import xarray as xr
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from workbench import InputError, Model, SkippedError
from workbench.subjects import load_model, load_state
from workbench.subjects.builtin import FACTORIES, digits
from workbench.subjects.models import model_state
from workbench.subjects.networks import SmallCNN, resnet20
from workbench.toolkit import Recipe, fit, learning_rate

from unit.recording_out import RecordedResult, RecordingOut, check_report, record
from workbench_quantization import export_model, workbench_models
from workbench_quantization.biper import BiPer, Params
from workbench_quantization.biper_layers import (
    BinaryLayer,
    PackedLayer,
    binarise,
    binary_input,
    binary_layers,
    binary_periodic_weight,
    effective_weight,
    pack_signs,
    packed_layers,
    packed_network,
    periodic_weight,
    sign,
    sine_penalty,
    unpack_signs,
    with_hardtanh,
)
from workbench_quantization.biper_networks import binary_digits, binary_resnet18, binary_resnet20, binary_vgg_small
from workbench_quantization.biper_report import _interval
from workbench_quantization.biper_run import recipe_of
from workbench_quantization.biper_selection import select_layers
from workbench_quantization.biper_store import packed_like
from workbench_quantization.biper_theory import LIMIT, mean_absolute, mean_square, quantisation_error, worst_scale
from workbench_quantization.biper_training import Watched, batches_per_epoch, measured_errors, penalty_weight
from workbench_quantization.export_safetensors import read_safetensors

ALL_FACTORIES = {**FACTORIES, **workbench_models()}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------------------------------------- theory


@pytest.mark.parametrize("u", [0.02, 0.3, 0.954882, 3.0, 12.0])
def test_moments_are_the_integrals_over_the_laplace_density(u: float) -> None:
    """Integrated half period by half period, so that the kinks of |sin| lie at the ends."""

    def integral(function: Any) -> float:
        ends = [k * math.pi for k in range(math.ceil(45 * u / math.pi) + 1)]
        return sum(
            quad(lambda x: function(x) * math.exp(-x / u) / u, low, high, epsabs=1e-13)[0]
            for low, high in itertools.pairwise(ends)
        )

    assert float(mean_absolute(u)) == pytest.approx(integral(lambda x: abs(math.sin(x))), abs=1e-9)
    assert float(mean_square(u)) == pytest.approx(integral(lambda x: math.sin(x) ** 2), abs=1e-9)


def test_error_agrees_with_two_million_samples() -> None:
    rng = np.random.default_rng(0)
    for u in (0.2, 0.954882, 2.5):
        sine = np.sin(rng.laplace(0, u, 2_000_000))
        # The best scale by a search, not by its formula.
        found = minimize_scalar(
            lambda gamma, sine=sine: float(np.mean((sine - gamma * np.sign(sine)) ** 2)),
            bounds=(0, 1),
            method="bounded",
            options={"xatol": 1e-3},
        )
        assert float(quantisation_error(u)) == pytest.approx(found.fun, abs=3e-4)
        assert float(mean_absolute(u)) == pytest.approx(found.x, abs=2e-3)


def test_largest_error_is_the_published_one() -> None:
    u, error = worst_scale()
    assert u == pytest.approx(0.954882, abs=1e-5)
    assert error == pytest.approx(0.102835, abs=1e-6)
    assert float(quantisation_error(1e4)) == pytest.approx(LIMIT, abs=1e-6)
    assert float(quantisation_error(0.0)) == 0.0
    assert float(quantisation_error(1e-3)) < 1e-5


def test_measured_errors_of_laplace_weights_are_the_closed_form() -> None:
    layer = nn.Linear(1500, 1000, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.distributions.Laplace(0.0, 0.07).sample(layer.weight.shape))
    measured = measured_errors(nn.Sequential(BinaryLayer(layer, omega=20)))
    u = 20 * float(measured["laplace_scale"][0])
    assert u == pytest.approx(1.4, rel=0.01)
    assert measured["quantisation_error"][0] == pytest.approx(float(quantisation_error(u)), abs=5e-4)
    assert measured["sign_distance"][0] == pytest.approx(1 - float(mean_absolute(u)), abs=1e-3)


# ----------------------------------------------------------------------------------------------------------- gradients


def test_gradient_of_stage_one_is_that_of_finite_differences() -> None:
    weight = noise(4, 3, 3, 3).double() * 0.1
    picture, omega = noise(2, 3, 6, 6, seed=1).double(), 20.0

    def loss(values: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(picture, periodic_weight(values, omega)).square().mean()

    assert torch.autograd.gradcheck(loss, weight.requires_grad_(True))


def test_gradient_of_stage_two_is_that_of_the_sine() -> None:
    weight = (noise(1000) * 0.2).requires_grad_(True)
    upstream = noise(1000, seed=1)
    binary_periodic_weight(weight, 20.0).backward(upstream)
    torch.testing.assert_close(weight.grad, upstream * 20 * torch.cos(20 * weight.detach()), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("surrogate", ["identity", "clipped", "polynomial"])
def test_surrogates_are_derivatives_of_what_they_stand_for(surrogate: str) -> None:
    """The piecewise-quadratic sign of Bi-Real net, the clipped line, the line: differentiated by autograd."""
    stands_for = {
        "identity": lambda x: x,
        "clipped": lambda x: x.clamp(-1, 1),
        "polynomial": lambda x: torch.where(x < 0, 2 * x + x**2, 2 * x - x**2).where(x.abs() < 1, torch.sign(x)),
    }[surrogate]
    values = (noise(500) * 1.5).double()
    first, second = values.clone().requires_grad_(True), values.clone().requires_grad_(True)
    upstream = noise(500, seed=2).double()
    sign(first, surrogate).backward(upstream)  # type: ignore[arg-type]
    stands_for(second).backward(upstream)
    torch.testing.assert_close(first.grad, second.grad)


def test_nothing_has_a_third_level() -> None:
    zeros = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3.0])
    assert sign(zeros, "identity").tolist() == [1, 1, 1, -1, 1]
    weight = torch.cat([torch.zeros(5), noise(200), torch.arange(-3, 4) * math.pi / 20])
    for mode in ("square", "sign_clipped", "sign_polynomial"):
        assert set(effective_weight(weight, mode, 20.0).tolist()) == {-1.0, 1.0}  # type: ignore[arg-type]
    assert set(binary_input(torch.zeros(2, 3, 4, 4), "polynomial", training=False).unique().tolist()) == {1.0}


def test_inputs_are_divided_by_their_deviation_only_while_training() -> None:
    """As in the official code: the sign stays, the place where the surrogate is taken moves."""
    values = noise(4, 3, 5, 5) * 7
    for training in (True, False):
        given = values.clone().requires_grad_(True)
        out = binary_input(given, "polynomial", training=training)
        assert torch.equal(out.detach(), torch.sign(values))
        reference = values.clone().requires_grad_(True)
        scaled = reference / torch.sqrt(reference.var([1, 2, 3], keepdim=True) + 1e-5) if training else reference
        # d/dx of the surrogate at the scaled place, through the division by autograd.
        place = scaled.detach()
        (scaled * (2 - 2 * place.abs()).clamp_min(0)).sum().backward()
        out.sum().backward()
        torch.testing.assert_close(given.grad, reference.grad)


def test_penalty_is_the_mean_squared_sine_and_its_weight_rises_as_in_the_code() -> None:
    weight = noise(3, 4) * 0.1
    torch.testing.assert_close(sine_penalty(weight, 20.0), torch.sin(20 * weight).square().mean())
    assert penalty_weight(0, 200, 0.85, 0.99) == pytest.approx(0.85)
    assert penalty_weight(200, 200, 0.85, 0.99) == pytest.approx(0.99)
    assert penalty_weight(100, 200, 0.85, 0.99) == pytest.approx(0.85 + 0.14 * (math.sqrt(math.e) - 1) / (math.e - 1))
    assert penalty_weight(7, 20, 0.037, 0.037) == pytest.approx(0.037)


# --------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, 3, stride=2, padding=(2, 1), bias=True),
        nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2, groups=2),
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(3, 5, 3, padding=1),
        nn.Conv3d(2, 5, 3, padding=1, bias=False),
        nn.Linear(9, 7),
    ],
    ids=["strided", "same", "reflect", "1d", "3d", "linear"],
)
def test_layer_is_the_plain_layer_on_signs(layer: nn.Module) -> None:
    """The same module of torch, given +-1 as weight and inputs, times the scale."""
    shape = {nn.Conv1d: (2, 3, 12), nn.Conv3d: (2, 2, 5, 6, 7), nn.Linear: (2, 4, 9)}.get(type(layer))  # type: ignore[call-overload]
    values = noise(*(shape or (2, layer.in_channels, 9, 11)), seed=3)  # type: ignore[arg-type]
    binary = BinaryLayer(layer, omega=20).eval()
    with torch.no_grad():
        binary.alpha.copy_(torch.rand(len(binary.alpha)) + 0.1)
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight.copy_(torch.sign(torch.sin(20 * layer.weight)))
        bias = 0.0
        if layer.bias is not None:
            bias = layer.bias.clone()
            plain.bias.zero_()
        expected = plain(torch.sign(values))
        if isinstance(layer, nn.Linear):
            expected = expected * binary.alpha + bias
        else:
            view = (-1, *[1] * (expected.ndim - 2))
            expected = expected * binary.alpha.view(view) + (bias if isinstance(bias, float) else bias.view(view))
        torch.testing.assert_close(binary(values), expected)
        packed = packed_network(nn.Sequential(binary))
        torch.testing.assert_close(packed(values), expected)
    assert isinstance(packed[0], PackedLayer)
    assert packed[0].packed.numel() == -(-layer.weight.numel() // 8)


def test_padding_with_ones_leaves_two_levels() -> None:
    """With a kernel of ones and inputs of one, the border is as large as the middle only if the padding is one too."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(layer.weight, 0.01)
    for value, corner in ((0, 4.0), (1, 9.0), (-1, -1.0)):
        binary = BinaryLayer(layer, omega=20, pad_value=value).eval()
        assert float(binary(torch.ones(1, 1, 5, 5)).detach()[0, 0, 0, 0]) == corner


def test_bits_survive_packing() -> None:
    bit = sign(noise(7, 3, 3, 5), "identity")
    packed = pack_signs(bit)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(bit.numel() / 8)
    assert torch.equal(unpack_signs(packed, bit.shape), bit)


def test_stage_one_is_not_packed() -> None:
    network = binarise(binary_digits(), ["features.3"], omega=20, weights="sine")
    with pytest.raises(ValueError, match="real weights"):
        packed_network(network)


# ------------------------------------------------------------------------------------------------------------ selection


class Functional(nn.Module):
    """A rectifier without a module: what follows it has no negative inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, stride=2)
        self.norm, self.fourth, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.third(self.norm(self.second(torch.relu(self.first(image)))))
        return self.head(self.fourth(hidden).mean((2, 3)))


def test_what_is_not_binary_is_listed_with_its_reason() -> None:
    selection = select_layers(Functional().eval(), noise(6, 1, 12, 12))
    assert selection.names == ("fourth",)
    assert selection.reasons["first.weight"].startswith("the first layer")
    assert selection.reasons["head.weight"].startswith("the last layer")
    assert "never negative" in selection.reasons["second.weight"]
    assert "reduces the resolution" in selection.reasons["third.weight"]
    with_real_inputs = select_layers(Functional().eval(), noise(6, 1, 12, 12), keep=("fourth",), binary_inputs=False)
    assert with_real_inputs.names == ("second",)
    assert with_real_inputs.reasons["fourth.weight"] == "kept on request"
    with pytest.raises(InputError, match="nothing"):
        select_layers(Functional().eval(), noise(6, 1, 12, 12), keep=("nothing",))


def test_layers_are_counted_in_order_of_execution() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.third, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.first, self.fourth = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, values: Tensor) -> Tensor:
            return self.fourth(self.third(self.second(self.first(values))))

    network = Crossed()
    selection = select_layers(network.eval(), noise(8, 4))
    assert selection.names == ("second", "third")
    assert list(binary_layers(binarise(network, selection.names, omega=20))) == ["second", "third"]


def test_rectifiers_of_a_common_network_make_way() -> None:
    network = resnet20().eval()
    selection = select_layers(network, noise(4, 3, 32, 32))
    assert len(selection.names) == 18
    assert set(selection.reasons) == {"conv1.weight", "linear.weight"}
    assert not any(isinstance(module, nn.Hardtanh) for module in network.modules())
    assert with_hardtanh(network) == 19


def test_networks_have_the_published_sizes() -> None:
    """0.27, 11.01 and 4.66 million parameters."""
    for build, size, image in ((binary_resnet20, 0.27, 32), (binary_resnet18, 11.01, 32), (binary_vgg_small, 4.66, 32)):
        network = build()
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(size, abs=0.02)
        assert network.eval()(noise(1, 3, image, image)).shape == (1, 10)


# ------------------------------------------------------------------------------------------------------------- training


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


def split_digits(count: int = 1200) -> tuple[xr.Dataset, xr.Dataset]:
    """Images to train on, and 597 others to judge by."""
    whole = digits()
    return whole.isel(sample=slice(0, count)), whole.isel(sample=slice(1200, None))


def few_digits() -> tuple[xr.Dataset, xr.Dataset]:
    """200 images to train on, and 300 others."""
    data, test = split_digits(200)
    return data, test.isel(sample=slice(0, 300))


def digit_model() -> Model:
    return load_model("binary-digits", factories=ALL_FACTORIES, example=digits())


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
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    told = export_model(run, tmp_path / "model.onnx")
    assert told.size < told.full_precision_size / 2
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    np.testing.assert_allclose(session.run(None, {"image": image.numpy()})[0], run["logit"].values[:20], atol=2e-4)


def test_binary_weights_alone_keep_their_rectifiers() -> None:
    data, test = few_digits()
    out, _ = record(BiPer, {"model": SmallCNN(10, width=8), "data": data, "test": test}, act_bits=32, seeds=1,
                    **(FAST | {"epochs1": 1, "epochs2": 1, "baselines": (), "omega_sweep": ()}))  # fmt: skip
    packed = out.modules["model"]
    assert any(isinstance(module, nn.ReLU) for module in packed.modules())
    assert all(layer.inputs == "real" for layer in packed_layers(packed).values())
    assert out.arrays["input_bits"].tolist() == [32, 32, 32]


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


def test_bad_input_is_one_clear_error() -> None:
    data, test = few_digits()
    with pytest.raises(pydantic.ValidationError, match="baseline_rates"):
        Params(baseline_rates=(1.0, 1.0))
    with pytest.raises(pydantic.ValidationError, match="tau1"):
        Params(tau1=(0.1, 2.0))
    two = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    with pytest.raises(SkippedError, match="no layer of the model can be binary"):
        record(BiPer, {"model": two, "data": data, "test": test}, **FAST)


# ----------------------------------------------------------------------------------------------------- claims (minutes)


@pytest.mark.slow
def test_two_stages_on_digits_beside_plain_signs_of_tuned_rates() -> None:
    """Five seeds, 30 + 15 epochs, 1200 images to train on and 597 to judge by; signs with the best of three rates.

    Measured: 94.6 % after stage 2, 88.9 % merely binarised, 95.1 % after stage 1 (not binary); 92.5 % with the clipped
    and 94.4 % with the polynomial gradient. The gain over the latter (0.2 points, 95 % interval -1.8 to 2.2) is no finding,
    and none is claimed.
    """
    data, test = split_digits()
    out, result = record(
        BiPer,
        {"model": digit_model(), "data": data, "test": test},
        epochs1=30,
        epochs2=15,
        batch=64,
        augmentation="none",
        baselines=("sign_clipped", "sign_polynomial"),
        baseline_rates=(0.3, 1.0, 3.0),
        seeds=5,
    )
    accuracy = dict(zip(out.data["mode"].values.tolist(), out.data["accuracy"].values, strict=True))
    assert accuracy["biper"].mean() > accuracy["sign_clipped"].mean() + 0.005
    assert accuracy["biper"].mean() > accuracy["sign_polynomial"].mean() - 0.015
    assert accuracy["biper_binarised"].max() < accuracy["biper"].min()
    assert accuracy["biper"].min() > 0.91
    low, high = next(m.interval for m in check_report(BiPer, result).metrics if m.name == "gain_over_sign") or (0, 0)
    assert low < accuracy["biper"].mean() - accuracy["sign_polynomial"].mean() < high
