"""AdaQuant: quantiser, folding, layer optimisation, norm and bias tuning against kernels, closed forms and brute force."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
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
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Recipe, fit, predict_all

from unit.recording_out import RecordingOut, check_report, record
from workbench_quantization import adaquant_optimisation
from workbench_quantization.adaquant import AdaQuant, Params
from workbench_quantization.adaquant_layers import (
    PARTS,
    Quantised,
    Rates,
    Student,
    error,
    initial,
    integers,
    optimise,
    output,
)
from workbench_quantization.adaquant_optimisation import Calibration, Problem, concurrent_layers, solve_several
from workbench_quantization.adaquant_run import prepare, size_budgets
from workbench_quantization.allocator import allocate_greedy, allocate_program, fits, total_cost
from workbench_quantization.folding import Unit, find_units, fold
from workbench_quantization.hawq_images import Images
from workbench_quantization.hawq_solutions import Costs
from workbench_quantization.layers import find_blocks
from workbench_quantization.quantizer import affine_quantise

RATES = Rates(1e-3, 1e-3, 1e-3, 1e-2)
FAST = {"iterations": 12, "batch_size": 32, "calibration_samples": 96, "bias_steps": 4}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


# ------------------------------------------------------------------------------------------------------------ quantiser


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("low", "span"), [(-1.3, 3.1), (0.0, 2.0), (-2.5, 2.5)])
def test_affine_quantiser_equals_torchs_kernel(bits: int, low: float, span: float) -> None:
    values, levels = noise(500) * 1.5, 2**bits - 1
    step = np.float32(span) / levels
    zero = int(np.clip(np.round(-np.float32(low) / step), 0, levels))
    expected = torch.fake_quantize_per_tensor_affine(values, float(step), zero, 0, levels)
    found = affine_quantise(values, torch.tensor(low), torch.tensor(span), bits)
    # A value on the border of two levels may fall either way in the last bit.
    assert ((found - expected).abs() > 1e-5).float().mean() < 0.005


def test_affine_gradients_are_those_of_torchs_learnable_kernel() -> None:
    """d/d values is 1 inside and 0 outside of the range; d/d span is torch's d/d scale over n (zero-point fixed at 0)."""
    values, bits = noise(200) * 2, 4
    levels = 2**bits - 1
    span = torch.tensor(2.0, requires_grad=True)
    x = values.clone().requires_grad_(True)
    affine_quantise(x, torch.tensor(0.0), span, bits).square().sum().backward()
    scale = torch.tensor([2.0 / levels], requires_grad=True)
    other = values.clone().requires_grad_(True)
    torch._fake_quantize_learnable_per_tensor_affine(
        other, scale, torch.tensor([0.0]), 0, levels, 1.0
    ).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(span.grad, scale.grad[0] / levels, rtol=1e-4, atol=1e-4)


def test_integers_give_the_weight_that_is_computed_with() -> None:
    unit = Unit("a", nn.Conv2d(3, 5, 3))
    state = initial(unit, torch.rand(4, 3, 8, 8), 3, 8)
    whole, step, zero = integers(state)
    assert whole.dtype == torch.uint8
    assert int(whole.max()) == 7
    assert int(whole.min()) == 0
    torch.testing.assert_close((whole.float() - zero.view(-1, 1, 1, 1)) * step.view(-1, 1, 1, 1), state.rounded)


def test_input_ranges_are_means_of_the_samples_extremes() -> None:
    inputs = torch.tensor([[0.5, 2.0, -1.0], [1.0, 4.0, 3.0]])
    state = initial(Unit("a", nn.Linear(3, 2)), inputs, 8, 8)
    # Lows -1 and 1 average to 0; highs 2 and 4 to 3.
    assert (float(state.input_low), float(state.input_span)) == (0.0, 3.0)
    positive = initial(Unit("a", nn.Linear(3, 2)), inputs.abs() + 1, 8, 8)
    assert float(positive.input_low) == 0.0  # the range must contain 0


# -------------------------------------------------------------------------------------------------------------- folding


class Residual(nn.Module):
    """Adds the shortcut in place and rectifies in place, as many networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.up, self.norm3 = nn.ConvTranspose2d(4, 3, 2, stride=2), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 5)

    def forward(self, image: Tensor) -> Tensor:
        first = F.relu(self.norm1(self.conv1(image)))
        second = self.norm2(self.conv2(first))
        second += first
        second = torch.relu_(second)
        return self.head(F.relu(self.norm3(self.up(second))).mean((2, 3)))


def random_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    rng = generator(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.copy_(torch.randn(module.weight.shape, generator=rng))  # some are negative
                module.bias.copy_(torch.randn(module.bias.shape, generator=rng))
                module.running_mean.copy_(torch.randn(module.bias.shape, generator=rng))
                module.running_var.copy_(torch.rand(module.bias.shape, generator=rng) + 0.1)
    return model.eval()


def folded(model: nn.Module, image: Tensor) -> list[Unit]:
    blocks, _ = find_blocks(model, image[:1])
    units = find_units(model, blocks, image[:1])
    fold(model, units, image)
    return units


def test_folding_equals_torchs_fusion_and_keeps_the_structure() -> None:
    torch.manual_seed(0)
    model, image = random_norms(Residual()), torch.rand(3, 2, 6, 6)
    plain = copy.deepcopy(model)
    with torch.no_grad():
        expected = plain(image)
        units = folded(model, image)
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [(u.name, u.norm is not None, u.rectified) for u in units] == [
        ("conv1", True, True),
        ("conv2", True, False),  # the sum is rectified, not the output
        ("up", True, True),
        ("head", False, False),
    ]
    for unit, norm in zip(units[:2], ("norm1", "norm2"), strict=True):
        fused = nn.utils.fusion.fuse_conv_bn_eval(plain.get_submodule(unit.name), plain.get_submodule(norm))
        torch.testing.assert_close(unit.layer.weight, fused.weight)
        torch.testing.assert_close(unit.bias, fused.bias)
        torch.testing.assert_close(unit.std, plain.get_submodule(norm).weight.abs())


def test_a_norm_that_serves_two_layers_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

        def forward(self, image: Tensor) -> Tensor:
            return (self.norm(self.one(image)) + self.norm(self.two(image))).mean((2, 3))

    torch.manual_seed(0)
    with pytest.raises(InputError, match="more than once"):
        folded(random_norms(Shared()), torch.rand(2, 1, 6, 6))


# ---------------------------------------------------------------------------------------------------------- one layer


def test_collected_outputs_do_not_change_with_the_shortcut_added_in_place() -> None:
    torch.manual_seed(0)
    model, image = random_norms(Residual()), torch.rand(6, 2, 6, 6)
    units = folded(model, image)
    student = Student(model, units)
    received, returned = student.collect(1, list(image.split(4)))
    with torch.no_grad():
        first = F.relu(model.norm1(model.conv1(image)))
        torch.testing.assert_close(received, first)
        torch.testing.assert_close(returned, model.norm2(model.conv2(first)))
    state = initial(units[1], received, 32, 32)
    torch.testing.assert_close(output(units[1], state, received), returned, rtol=1e-4, atol=1e-5)


def problem(seed: int = 0) -> tuple[Unit, Tensor, Tensor]:
    torch.manual_seed(seed)
    layer = nn.Linear(6, 4)
    inputs = torch.randn(200, 6) @ torch.randn(6, 6)
    return Unit("a", layer), inputs, layer(inputs).detach()


def test_optimisation_lowers_the_error_on_other_samples() -> None:
    unit, inputs, target = problem()
    start = initial(unit, inputs[:150], 3, 4)
    end = optimise(
        unit, start, inputs[:150], target[:150], rates=RATES, parts=PARTS, iterations=120, batch=50, rectify=True,
        generator=generator(),
    )  # fmt: skip
    before = float(error(unit, start, inputs[150:], target[150:], rectify=True))
    after = float(error(unit, end, inputs[150:], target[150:], rectify=True))
    assert after < 0.8 * before


@pytest.mark.parametrize("part", PARTS)
def test_only_the_parts_asked_for_change(part: Any) -> None:
    unit, inputs, target = problem()
    start = initial(unit, inputs, 3, 4)
    end = optimise(
        unit,
        start,
        inputs,
        target,
        rates=RATES,
        parts=[part],
        iterations=5,
        batch=20,
        rectify=True,
        generator=generator(),
    )
    owner = {"weight": "weights", "bias": "bias", "weight_low": "weight_range", "weight_span": "weight_range",
             "input_low": "input_range", "input_span": "input_range"}  # fmt: skip
    changed = {of for name, of in owner.items() if not torch.equal(getattr(start, name), getattr(end, name))}
    assert changed == {part}
    assert torch.equal(unit.layer.weight, problem()[0].layer.weight)


def test_bias_alone_finds_its_closed_form() -> None:
    """With all else fixed the best bias takes off the mean error of each output."""
    unit, inputs, target = problem()
    start = initial(unit, inputs, 2, 32)
    end = optimise(
        unit, start, inputs, target, rates=Rates(1, 2e-2, 1, 1), parts=["bias"], iterations=600, batch=200, rectify=True,
        generator=generator(),
    )  # fmt: skip
    with torch.no_grad():
        best = start.bias + (target - output(unit, start, inputs)).mean(0)
    torch.testing.assert_close(end.bias, best, atol=0.15 * float(target.std()), rtol=0)
    assert float((end.bias - best).abs().max()) < float((start.bias - best).abs().max())


def test_relu_aware_errors_ignore_what_the_relu_cuts() -> None:
    unit, inputs, target = problem()
    unit.rectified = True
    state = initial(unit, inputs, 3, 4)
    with torch.no_grad():
        expected = (output(unit, state, inputs).clamp_min(0) - target.clamp_min(0)).square().mean()
        torch.testing.assert_close(error(unit, state, inputs, target, rectify=True), expected)
        assert error(unit, state, inputs, target, rectify=False) > expected


# ------------------------------------------------------------------------------------------------ statistics and biases


def quantised_residual(bits: int) -> tuple[Student, Tensor, list[Quantised]]:
    torch.manual_seed(0)
    model, image = random_norms(Residual()), torch.rand(64, 2, 6, 6)
    model.train()
    with torch.no_grad():
        for _ in range(60):
            model(image)  # norms that know the data
    model.eval()
    units = folded(model, image)
    student = Student(model, units)
    states = [initial(unit, student.collect(i, [image])[0], bits, 8) for i, unit in enumerate(units)]
    return student, image, states


def channel_moments(student: Student, place: int, image: Tensor) -> tuple[Tensor, Tensor]:
    returned = student.collect(place, [image])[1]
    return returned.mean((0, 2, 3)), returned.std((0, 2, 3), unbiased=False)


def test_norm_tuning_gives_channels_back_their_mean_and_deviation() -> None:
    student, image, states = quantised_residual(2)
    student.install_all(states)
    unit = student.units[0]
    before = channel_moments(student, 0, image)
    whole = integers(states[0])[0]
    moved, scaled = student.tune_norms([image], passes=80, momentum=0.1)
    after = channel_moments(student, 0, image)
    assert float((before[0] - unit.mean).abs().max()) > 0.05
    torch.testing.assert_close(after[0], unit.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(after[1], unit.std, atol=0.02, rtol=0.02)
    assert moved[0] > 0
    assert scaled[0] > 0
    assert np.isnan(moved[3])
    assert torch.equal(integers(student.states[0])[0], whole)  # factors went into the scales
    torch.testing.assert_close(student.states[0].rounded, unit.layer.weight.detach())


def test_norm_tuning_of_the_full_precision_model_changes_next_to_nothing() -> None:
    """The model's norms know these very images, so there is nothing to restore."""
    student, image, _ = quantised_residual(8)
    with torch.no_grad():
        before = student.model(image)
        student.tune_norms([image], passes=20, momentum=0.1)
        torch.testing.assert_close(student.model(image), before, atol=0.03 * float(before.std()), rtol=0)


def test_installing_nothing_restores_the_model_exactly() -> None:
    student, image, states = quantised_residual(2)
    with torch.no_grad():
        before = student.model(image)
        student.install_all(states)
        assert not torch.allclose(student.model(image), before)
        student.tune_norms([image], passes=2, momentum=0.1)
        student.install_all([None] * len(states))
        assert torch.equal(student.model(image), before)


def test_bias_tuning_brings_logits_nearer_and_touches_biases_only() -> None:
    student, image, states = quantised_residual(3)
    with torch.no_grad():
        teacher = student.model(image)
    student.install_all(states)
    before = {name: value.clone() for name, value in student.model.state_dict().items()}

    def distance() -> float:
        with torch.no_grad():
            return float(F.kl_div(student.model(image).log_softmax(1), teacher.softmax(1), reduction="batchmean"))

    first = distance()
    student.tune_biases(teacher, image, steps=60, batch=32, rate=0.05, generator=generator())
    assert distance() < first
    changed = {name for name, value in student.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"norm1.bias", "norm2.bias", "norm3.bias"}  # not that of the linear layer
    assert torch.equal(student.states[0].bias, student.model.norm1.bias)


def test_bias_tuning_at_a_rate_over_the_number_of_classes_takes_the_official_codes_step() -> None:
    """CalibTIP steps down `nn.KLDivLoss(reduction="mean")`, which divides by samples and classes."""
    student, image, states = quantised_residual(3)
    with torch.no_grad():
        teacher = student.model(image[:1])
    classes = teacher.shape[1]
    student.install_all(states)
    official = copy.deepcopy(student.model)
    divergence = F.kl_div(official(image[:1]).log_softmax(1), teacher.softmax(1), reduction="none")
    divergence.mean().backward()  # over samples and classes
    expected = student.model.norm1.bias.detach() - 0.1 * official.norm1.bias.grad
    student.tune_biases(teacher, image[:1], steps=1, batch=4, rate=0.1 / classes, generator=generator())
    assert classes > 1
    torch.testing.assert_close(student.model.norm1.bias.detach(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("count", "sizes"), [(21, [10, 11]), (22, [10, 10, 2]), (20, [10, 10]), (6, [6])])
def test_a_single_last_image_joins_the_batch_before(count: int, sizes: list[int]) -> None:
    images = Images(torch.rand(count, 1, 4, 4), torch.arange(count), np.arange(count))
    calibration = prepare(images, nn.Linear(1, 1), Params(batch_size=10), RecordingOut())
    assert [len(batch) for batch in calibration.batches] == sizes
    assert torch.equal(torch.cat(calibration.batches), calibration.image)


def test_norms_of_vectors_are_tuned_whatever_the_number_of_images(digits: tuple[xr.Dataset, xr.Dataset, Model]) -> None:
    """21 images in batches of 10: one image alone has no variance over a batch norm of a linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10)
    )
    data, test, _ = digits
    out, _ = record(
        AdaQuant,
        {"model": model.eval(), "data": data, "test": test},
        **(FAST | {"calibration_samples": 21, "batch_size": 10, "bias_steps": 0}),
    )
    assert np.isfinite(out.arrays["norm_mean_shift"][0])


# -------------------------------------------------------------------------------------------------------------- program


@pytest.mark.parametrize("seed", range(6))
def test_the_program_is_the_best_of_all_and_greedy_is_never_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    objective = np.sort(rng.random((5, 3)))[:, ::-1].copy()
    cost = rng.integers(1, 9, 5)[:, None] * np.array([2.0, 4.0, 8.0])
    budget = cost[:, 0].sum() + rng.random() * (cost[:, -1] - cost[:, 0]).sum()

    def value(choice: Any) -> float:
        return float(objective[np.arange(5), np.asarray(choice)].sum())

    every = [np.array(c) for c in itertools.product(range(3), repeat=5) if fits(cost, np.array(c), budget)]
    best = min(value(choice) for choice in every)
    program, greedy = allocate_program(objective, cost, budget), allocate_greedy(objective, cost, budget)
    assert value(program) == pytest.approx(best)
    assert total_cost(cost, greedy) <= budget + 1e-9
    assert value(greedy) >= best - 1e-12


def test_greedy_by_hand() -> None:
    """Per unit saved the first step costs 1/4 or 3/8: the first layer goes, and that is enough."""
    objective, cost = np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[4.0, 8.0], [8.0, 16.0]])
    assert allocate_greedy(objective, cost, 20.0).tolist() == [0, 1]
    assert allocate_greedy(objective, cost, 12.0).tolist() == [0, 0]
    with pytest.raises(InputError, match="at least 12"):
        allocate_greedy(objective, cost, 11.0)


def test_size_targets_are_shares_of_the_32_bit_size() -> None:
    costs = Costs(np.array([10, 100, 50]), np.array([1, 1, 1]), np.array([4, 8]), np.array([8, 0, 0]), None)
    (share, budget), = size_budgets(costs, (0.2,)).items()  # fmt: skip
    assert budget + costs.fixed_cost("size_mb") == pytest.approx(share * 160 * 4 / 1e6)
    with pytest.raises(InputError, match=r"at least 0\.132"):
        size_budgets(costs, (0.13,))  # (10 * 8 + 150 * 4) / (160 * 32) = 0.1328
    assert len(size_budgets(costs, None)) == 3


@pytest.mark.parametrize(
    "wrong", [{"bits": (8, 4)}, {"bits": (4, 9)}, {"act_bits": 12}, {"compression": ()}, {"parts": ("bias", "bias")}]
)
def test_parameters_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Params(**wrong)


# ----------------------------------------------------------------------------------------------------------- whole runs


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

    return dataset(slice(900, 1200)), dataset(slice(1200, None)), Model(model.eval(), mean=0.0, std=1.0)


def run_adaquant(digits: tuple[xr.Dataset, xr.Dataset, Model], **options: Any) -> tuple[RecordingOut, Any]:
    data, test, model = digits
    return record(AdaQuant, {"model": copy.deepcopy(model), "data": data, "test": test}, **{**FAST, **options})


@pytest.fixture(scope="module")
def whole_run(digits: tuple[xr.Dataset, xr.Dataset, Model]) -> tuple[RecordingOut, Any]:
    return run_adaquant(digits, bits=(2, 4, 8), rate_mode="relative", iterations=25, norm_passes=4)


def test_stages_and_solutions(
    digits: tuple[xr.Dataset, xr.Dataset, Model], whole_run: tuple[RecordingOut, Any]
) -> None:
    data = whole_run[0].data
    kinds = data["solution_kind"].values.tolist()
    assert kinds == ["program", "greedy"] * 3 + ["uniform"] * 3
    targets = data["target_share"].values
    assert (data["size_share"].values[:6] <= targets[:6] + 1e-12).all()
    increase = data["predicted_increase"].values
    assert (increase[0:6:2] <= increase[1:6:2] + 1e-12).all()  # the program against greedy
    assert increase[0] >= increase[2] >= increase[4]  # claim B: it rises as the size falls
    test, model = digits[1], digits[2]
    logit = predict_all(model, test["image"])[0].numpy()
    full = (logit.argmax(1) == test["label"].values).mean()
    assert float(data["accuracy_full_precision"]) == full
    assert data["accuracy"].values[-1].min() > full - 0.03  # 8 bits keep the accuracy at every stage
    naive = data["accuracy"].sel(stage="naive").values
    assert naive[6] < naive[7] < naive[8] + 0.02  # 2 bits, 4 bits, 8 bits
    # At 2 bits on the held-out images most layers fit better than before.
    error = data["layer_error"].values[1:-1, 0]
    assert (error[:, 1] < error[:, 0]).all()


def test_report_credits_norm_tuning_apart(whole_run: tuple[RecordingOut, Any]) -> None:
    out, result = whole_run
    report = check_report(AdaQuant, result)
    values = {metric.name: metric.value for metric in report.metrics}
    stage = dict(zip(out.coordinates["stage"][1].tolist(), out.arrays["accuracy"][0].tolist(), strict=True))
    assert values["norm_tuning_gain"] == stage["naive + norms"] - stage["naive"]
    assert values["adaquant_gain"] == stage["adaquant + norms"] - stage["naive + norms"]
    assert values["accuracy"] == stage["adaquant + norms + biases"]
    assert "re-estimating batch norms" in report.summary


def test_the_stored_model_is_its_integers_and_gives_its_logits(
    digits: tuple[xr.Dataset, xr.Dataset, Model], whole_run: tuple[RecordingOut, Any]
) -> None:
    """Weights from the stored arrays alone; logits with inputs quantised by hand."""
    out, model = whole_run[0], copy.deepcopy(whole_run[0].modules["model"])
    arrays = out.arrays
    start, first = (
        [*arrays["weight_start"], len(arrays["integer_weight"])],
        [*arrays["range_start"], len(arrays["scale"])],
    )
    for place, name in enumerate(out.coordinates["layer"][1]):
        layer = model.get_submodule(str(name))
        whole = (
            arrays["integer_weight"][start[place] : start[place + 1]].reshape(len(layer.weight), -1).astype(np.float32)
        )
        scale, zero = (arrays[key][first[place] : first[place + 1], None] for key in ("scale", "zero"))
        assert whole.max() < 2 ** int(arrays["bits"][place])
        np.testing.assert_allclose(
            (whole - zero) * scale, layer.weight.detach().numpy().reshape(len(whole), -1), rtol=1e-4, atol=1e-6
        )
        low, span = arrays["input_range"][place]
        levels = 2 ** int(arrays["input_bits"][place]) - 1
        step = max(float(span), 1e-6) / levels
        zero_point = int(np.clip(np.round(-low / step), 0, levels))
        layer.register_forward_pre_hook(
            lambda _m, i, s=step, z=zero_point, n=levels: (torch.fake_quantize_per_tensor_affine(i[0], s, z, 0, n),)
        )
    logit = predict_all(model, digits[1]["image"])[0].numpy()
    assert (logit.argmax(1) == arrays["logit"].argmax(1)).mean() > 0.99
    assert np.abs(logit - arrays["logit"]).mean() < 0.05 * arrays["logit"].std()


def test_sequential_mode_and_weights_only(digits: tuple[xr.Dataset, xr.Dataset, Model]) -> None:
    """The first layer sees the same in both modes; a later one is optimised for other inputs."""
    options = {"bits": (3, 8), "act_bits": 32, "bias_steps": 0, "first_last_bits": None}
    parallel, _ = run_adaquant(digits, mode="parallel", **options)
    sequential, result = run_adaquant(digits, mode="sequential", **options)
    one, other = parallel.arrays["layer_error"], sequential.arrays["layer_error"]
    assert np.array_equal(one[0], other[0])
    assert not np.array_equal(one[2], other[2])
    assert parallel.arrays["input_bits"].tolist() == [32] * 5
    assert "stage" in sequential.coordinates
    assert len(sequential.coordinates["stage"][1]) == 4
    check_report(AdaQuant, result)


def test_layers_solved_at_the_same_time_are_those_solved_one_by_one(
    digits: tuple[xr.Dataset, xr.Dataset, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with one thread of torch each; torch has its threads back afterwards."""
    before = torch.get_num_threads()

    def solving(at_once: int) -> RecordingOut:
        def several(pose: Any, places: Any, _at_once: int, params: Any, report: Any) -> Any:
            return solve_several(pose, places, at_once, params, report, threads=1)

        monkeypatch.setattr(adaquant_optimisation, "solve_several", several)
        return run_adaquant(digits, bits=(3, 4), first_last_bits=None)[0]

    alone, together = solving(1), solving(5)
    assert torch.get_num_threads() == before
    for name in ("layer_loss", "layer_error", "signal_to_noise", "integer_weight", "scale", "logit"):
        assert np.array_equal(alone.arrays[name], together.arrays[name]), name


def test_an_error_or_a_cancellation_ends_all_layers(digits: tuple[xr.Dataset, xr.Dataset, Model]) -> None:
    started: list[int] = []

    def pose(place: int) -> Any:
        started.append(place)
        if place == 2:
            raise InputError("data", expected="nothing", got="anything")
        unit = Unit("it", nn.Linear(4, 4))
        inputs = noise(40, 4)
        start = initial(unit, inputs, 3, 8)
        return Problem(unit, start, inputs, inputs, inputs, inputs, generator())

    params = Params(iterations=100_000, batch_size=2)
    with pytest.raises(InputError, match="anything"):
        solve_several(pose, range(5), 4, params, lambda step, count: None)
    assert started == [0, 1, 2]


def test_as_many_layers_at_a_time_as_threads_and_memory_allow(
    digits: tuple[xr.Dataset, xr.Dataset, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 10)).eval()
    image = torch.rand(10, 1, 8, 8)
    blocks, _ = find_blocks(model, image[:1])
    student = Student(model, find_units(model, blocks, image[:1]))
    calibration = Calibration([image], [image], image, torch.zeros(10), [image])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert concurrent_layers(student, calibration) == 2  # there are no more
    largest = 10 * 4 * (64 + 108)  # inputs and outputs of the convolution, 10 images in float32
    monkeypatch.setattr(adaquant_optimisation, "MEMORY", largest)
    assert concurrent_layers(student, calibration) == 1
    monkeypatch.setattr(adaquant_optimisation, "MEMORY", 0)
    assert concurrent_layers(student, calibration) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_are_refused_with_what_to_do(
    digits: tuple[xr.Dataset, xr.Dataset, Model], dtype: torch.dtype
) -> None:
    data, test, model = digits
    narrow = copy.deepcopy(model).to(dtype)
    with pytest.raises(InputError, match=str(dtype).removeprefix("torch.") + r"[\s\S]*model\.float\(\)"):
        run_adaquant((data, test, narrow))


def test_runs_repeat(digits: tuple[xr.Dataset, xr.Dataset, Model]) -> None:
    runs = [run_adaquant(digits, iterations=3)[0] for _ in range(2)]
    assert all(np.array_equal(runs[0].arrays[n], runs[1].arrays[n], equal_nan=True) for n in ("logit", "layer_error"))


# --------------------------------------------------------------------------------------------------------- on real data

DATA = Path(__file__).parents[2].parent / "shared" / "data"
IMAGES, WEIGHTS = DATA / "cifar10" / "original_subset.npz", DATA / "weights" / "cifar10_resnet20.safetensors"


@pytest.mark.slow
@pytest.mark.skipif(not (IMAGES.exists() and WEIGHTS.exists()), reason=f"CIFAR-10 and weights are not in {DATA}")
def test_norm_tuning_repairs_most_and_adaquant_adds_to_it_at_two_bits() -> None:
    """Claim A at W2A4, 200 calibration and 1000 test images: naive << naive + norms < AdaQuant + norms.

    How much the last step is worth depends on the budget. Measured with mode="sequential", iterations=300 and batch_size=50, all
    else as here and seed 0: 21.4, 73.1 and 82.6 %, a gain of 9.5 points (95 % 5.9 to 13.1, as if the two were of
    different images); with the budget of this test it is smaller.
    """
    from unit.test_hawq_cifar10 import subjects

    model, data, test = subjects()
    out, result = record(
        AdaQuant,
        {"model": model, "data": data, "test": test},
        bits=(2,), act_bits=4, calibration_samples=200, iterations=100, batch_size=32, norm_passes=5, bias_steps=0,
    )  # fmt: skip
    stage = dict(zip(out.coordinates["stage"][1].tolist(), out.arrays["accuracy"][-1].tolist(), strict=True))
    print("\n", check_report(AdaQuant, result).summary, "\n", stage)
    assert stage["naive + norms"] > stage["naive"] + 0.2
    assert stage["adaquant"] > stage["naive"] + 0.2
    assert stage["adaquant + norms"] > stage["naive + norms"]
    assert stage["adaquant + norms"] > stage["adaquant"]
    error = out.arrays["layer_error"][:, 0]
    assert (error[:, 1] < error[:, 0]).all()
