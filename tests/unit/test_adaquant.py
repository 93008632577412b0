"""AdaQuant's integer program against brute force, and whole runs on digits."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import xarray as xr
from scipy.stats import t
from torch import nn
from workbench import InputError, Model
from workbench.toolkit import predict_all

from unit.quantization_cases import generator, noise, trained_on_digits
from unit.recording_out import RecordingOut, check_report, record
from workbench_quantization import adaquant_optimisation
from workbench_quantization.adaquant import AdaQuant, Params
from workbench_quantization.adaquant_layers import (
    Student,
    initial,
)
from workbench_quantization.adaquant_optimisation import Calibration, Problem, concurrent_layers, solve_several
from workbench_quantization.adaquant_run import budgets_of, whole_cost
from workbench_quantization.allocator import allocate_greedy, allocate_program, fits, total_cost
from workbench_quantization.folding import Unit, find_units
from workbench_quantization.hawq_solutions import Costs
from workbench_quantization.layers import find_blocks

FAST = {"iterations": 12, "batch_size": 32, "calibration_samples": 96, "bias_steps": 4}


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
    (share, budget), = budgets_of(costs, (0.2,), "size").items()  # fmt: skip
    assert budget + costs.fixed_cost("size_mb") == pytest.approx(share * 160 * 4 / 1e6)
    with pytest.raises(InputError, match=r"at least 0\.132"):
        budgets_of(costs, (0.13,), "size")  # (10 * 8 + 150 * 4) / (160 * 32) = 0.1328
    assert len(budgets_of(costs, None, "size")) == 3


def test_targets_of_bit_operations_are_those_of_the_official_code() -> None:
    """Saved MACs (base^2 - b^2) >= total (1 - C 32 / base) with total = MACs base^2, solved for what is left."""
    macs, base, share = np.array([7, 30, 12]), 8, 0.12
    costs = Costs(np.array([10, 100, 50]), macs, np.array([2, 4, 8]), np.zeros(3, dtype=np.int64), None)
    ((_, limit),) = budgets_of(costs, (share,), "bops").items()
    total = float(macs.sum() * base**2)
    for choice in itertools.product((2, 4, 8), repeat=3):
        bits = np.array(choice)
        saved = float((macs * (base**2 - bits**2)).sum())
        assert (costs.bops(bits) <= limit) == (saved >= total * (1 - share * 32 / base))
    eight = Costs(np.array([10, 100, 50]), macs, np.array([2, 4, 8]), np.array([8, 0, 0]), 8)
    assert whole_cost(eight, "bops") == macs.sum() * 32 * 8
    with pytest.raises(InputError, match=r"at least 0\.0"):
        budgets_of(eight, (0.01,), "bops")


def test_widths_are_chosen_under_a_limit_of_bit_operations(digits: Any) -> None:
    """The best of all assignments by the stored losses; a limit of the size chooses others."""
    data, test, model = digits
    runs = {
        budget: record(
            AdaQuant, {"model": copy.deepcopy(model), "data": data, "test": test},
            **{**FAST, "bits": (2, 4, 8), "budget": budget, "compression": None, "iterations": 2, "bias_steps": 0},
        )[1]
        for budget in ("size", "bops")
    }  # fmt: skip
    run = runs["bops"]
    kinds, targets = run["solution_kind"].values, run["target_share"].values
    macs, bits = run["macs"].values.astype(float), run["solution_bits"].values.astype(float)
    np.testing.assert_allclose(run["bops"].values, (macs * bits * bits).sum(1))
    free = np.flatnonzero(~run["fixed"].values)
    increase = np.maximum(run["loss_increase"].values[free], 1e-6)
    increase[:, -1] = 0
    for place in np.flatnonzero(kinds == "program"):
        limit = targets[place] * macs.sum() * 32 * 8
        best = np.inf
        for choice in itertools.product(range(3), repeat=len(free)):
            table = bits[place].copy()
            table[free] = np.array([2, 4, 8])[list(choice)]
            if (macs * table * table).sum() <= limit * (1 + 1e-9):
                best = min(best, increase[np.arange(len(free)), list(choice)].sum())
        assert run["predicted_increase"].values[place] == pytest.approx(best, rel=1e-6)
    assert not np.array_equal(run["solution_bits"].values, runs["size"]["solution_bits"].values)
    assert "Accuracy against bit operations" in [view.title for view in check_report(AdaQuant, run).views]


@pytest.mark.parametrize(
    "wrong", [{"bits": (8, 4)}, {"bits": (4, 9)}, {"act_bits": 12}, {"compression": ()}, {"parts": ("bias", "bias")}]
)
def test_parameters_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Params(**wrong)


# ----------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def digits() -> tuple[xr.Dataset, xr.Dataset, Model]:
    return trained_on_digits(epochs=6, calibration=300)


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


def test_the_map_of_rises_frames_the_stored_widths(whole_run: tuple[RecordingOut, Any]) -> None:
    out, result = whole_run
    (view,) = (v for v in check_report(AdaQuant, result).views if getattr(v, "z", "") == "loss_increase")
    framed, bits = out.arrays[view.frame], out.arrays["bits"]
    assert framed.shape == out.arrays["loss_increase"].shape
    assert (framed.sum(1) == 1).all()
    np.testing.assert_array_equal(out.coordinates["bit"][1][framed.argmax(1)], bits)
    old_out, old = copy.copy(out), copy.copy(result)
    old_out.arrays = {name: values for name, values in out.arrays.items() if name != "chosen"}
    old._out = old_out
    assert all(getattr(v, "frame", None) is None for v in check_report(AdaQuant, old).views)


def test_report_credits_norm_tuning_apart(whole_run: tuple[RecordingOut, Any]) -> None:
    out, result = whole_run
    report = check_report(AdaQuant, result)
    values = {metric.name: metric.value for metric in report.metrics}
    stage = dict(zip(out.coordinates["stage"][1].tolist(), out.arrays["accuracy"][0].tolist(), strict=True))
    assert values["norm_tuning_gain"] == stage["naive + norms"] - stage["naive"]
    assert values["adaquant_gain"] == stage["adaquant + norms"] - stage["naive + norms"]
    assert values["accuracy"] == stage["adaquant + norms + biases"]
    assert "re-estimating batch norms" in report.summary


def test_gains_of_stages_are_judged_on_the_same_images(whole_run: tuple[RecordingOut, Any]) -> None:
    """The paired interval from the counts of images that became right and wrong alone, as in McNemar's test."""
    out, result = whole_run
    correct, label = out.arrays["correct"], out.arrays["label"]
    np.testing.assert_array_equal(correct[-1], out.arrays["logit"].argmax(1) == label)
    np.testing.assert_allclose(correct.mean(1), out.arrays["accuracy"][0], rtol=1e-12)
    (metric,) = (m for m in check_report(AdaQuant, result).metrics if m.name == "adaquant_gain")
    stages, n = out.coordinates["stage"][1].tolist(), len(label)
    before, after = correct[stages.index("naive + norms")], correct[stages.index("adaquant + norms")]
    mended, broken = (after & ~before).sum(), (before & ~after).sum()
    assert mended + broken
    half = t.ppf(0.975, n - 1) * np.sqrt((mended + broken - (mended - broken) ** 2 / n) / (n - 1) / n)
    np.testing.assert_allclose(
        metric.interval, ((mended - broken) / n - half, (mended - broken) / n + half), atol=1e-12
    )


@pytest.mark.parametrize(("broken", "told"), [(60, True), (2, False)])
def test_the_report_says_where_reestimated_norms_do_harm(
    whole_run: tuple[RecordingOut, Any], broken: int, told: bool
) -> None:
    """Of as many images as there are: 60 right before and wrong after are no accident, 2 are."""
    out, result = copy.copy(whole_run[0]), copy.copy(whole_run[1])
    correct, accuracy = out.arrays["correct"].copy(), out.arrays["accuracy"].copy()
    stages = out.coordinates["stage"][1].tolist()
    before, after = stages.index("adaquant"), stages.index("adaquant + norms")
    correct[before] = True
    correct[after] = np.arange(correct.shape[1]) >= broken
    accuracy[0] = correct.mean(1)
    out.arrays = out.arrays | {"correct": correct, "accuracy": accuracy}
    result._out = out
    notes = [note for note in check_report(AdaQuant, result).notes if "better before its norms" in note]
    assert len(notes) == told
    if told:
        assert f"100.0% instead of {correct[after].mean():.1%}" in notes[0]


def test_runs_of_before_stages_were_stored_image_by_image_still_have_a_report(
    whole_run: tuple[RecordingOut, Any],
) -> None:
    out, result = copy.copy(whole_run[0]), copy.copy(whole_run[1])
    out.arrays = {name: values for name, values in out.arrays.items() if name != "correct"}
    result._out = out
    report = check_report(AdaQuant, result)
    assert {m.name: m.interval for m in report.metrics}["adaquant_gain"] is None
    assert "interval" not in report.summary


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
