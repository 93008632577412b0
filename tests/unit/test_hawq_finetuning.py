"""HAWQ's fine-tuning: all blocks at once or one after the other, stages that go on bit for bit, distillation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Recipe, predict_all

from unit.quantization_cases import generator, trained_on_digits
from unit.recording_out import check_report, record
from workbench_quantization.finetuning import Plan, distillation_loss, finetune
from workbench_quantization.hawq import Hawq
from workbench_quantization.quantizer import quantise_weight, weight_scale

FAST = {"hess_samples": 48, "probes": 20, "power_iterations": 8, "random_orders": 4, "sweep": 1, "landscape_points": 3}


@pytest.fixture(scope="module")
def digits() -> tuple[xr.Dataset, xr.Dataset, nn.Module]:
    return trained_on_digits(epochs=8, calibration=400)


@pytest.mark.parametrize(("mode", "epochs"), [("joint", 3), ("sequential", 1)])
def test_fine_tuning_repairs_low_widths_and_leaves_weights_on_the_grid(
    digits: tuple[xr.Dataset, xr.Dataset, nn.Module], mode: str, epochs: int
) -> None:
    calibration, test, model = digits
    out, result = record(
        Hawq,
        {"model": model, "data": calibration, "test": test},
        finetune=mode,
        finetune_uniform=mode == "joint",
        epochs=epochs,
        learning_rate=0.01,
        batch_size=32,
        act_bits=4,
        bits=(2, 3),
        budget_value=2.4,
        **(FAST | {"landscape_points": 0}),
    )
    data = out.data
    assert data["finetuned_accuracy"].values[0] > data["accuracy_before"].values[0]
    assert data["accuracy_before"].values[0] == data["accuracy"].values[0]
    state = out.models["model"]
    for name, bits in zip(data["layer"].values, data["bits"].values, strict=True):
        stored = state[f"{name}.weight"]
        levels = stored / weight_scale(stored, int(bits))
        assert torch.allclose(levels, levels.round(), atol=1e-4)
    # Batch-norm statistics stay those of the full-precision model.
    assert torch.equal(state["block2.bn.running_mean"], model.state_dict()["block2.bn.running_mean"])
    assert set(state) == set(model.state_dict())
    assert len(out.series["step"]) == epochs * (1 if mode == "joint" else 5)
    assert data["logit"].shape == (len(test["label"]), 10)
    report = check_report(Hawq, result)
    assert "after fine-tuning" in report.summary
    # Equals are compared: the uniform widths as fine-tuned, or marked where they were not.
    uniform = f"; {data['finetuned_solution'].values[-1]} (" if mode == "joint" else "; uniform "
    said = report.summary[report.summary.rindex(uniform) :]
    if mode == "joint":
        assert data["accuracy_before"].values[1] != data["finetuned_accuracy"].values[1]
        assert said.endswith(f"reaches {data['finetuned_accuracy'].values[1]:.1%} after the same fine-tuning.")
    else:
        assert said.endswith("without fine-tuning.")


def plan(names: list[str], bits: int) -> Plan:
    return Plan([(name,) for name in names], [bits] * len(names), [32] * len(names), "channel", "extremes")


def test_sequential_fine_tuning_freezes_each_block_once_it_is_quantised() -> None:
    torch.manual_seed(0)
    model = SmallCNN(4, width=4).eval()
    image, label = torch.rand(40, 1, 8, 8, generator=generator()), torch.randint(0, 4, (40,), generator=generator(1))
    names = ["block2.conv", "block3.conv", "block4.conv"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recipe = Recipe(epochs=1, batch_size=20, learning_rate=0.05, schedule="constant")
    seen: dict[str, Tensor] = {}
    order = [2, 0, 1]
    for stage in finetune(model, plan(names, 3), order, image, label, recipe, generator=generator()):
        student = stage.network.model
        for block in order[: stage.done]:
            values = student.get_submodule(names[block]).weight.detach()
            assert torch.equal(seen.setdefault(names[block], values.clone()), values)
            levels = values / weight_scale(values, 3)
            assert torch.allclose(levels, levels.round(), atol=1e-4)
        for block in order[stage.done :]:
            values = student.get_submodule(names[block]).weight
            assert not torch.equal(values, before[f"{names[block]}.weight"])
            assert values.unique().numel() > 8 * values.shape[0]
    assert stage.done == 3
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_fine_tuning_goes_on_from_a_stage_bit_for_bit() -> None:
    from workbench_quantization.finetuning import checkpoint_of

    torch.manual_seed(0)
    model = SmallCNN(4, width=4).eval()
    image, label = torch.rand(40, 1, 8, 8, generator=generator()), torch.randint(0, 4, (40,), generator=generator(1))
    recipe = Recipe(epochs=1, batch_size=20, learning_rate=0.05, schedule="constant")
    options = (model, plan(["block2.conv", "block3.conv"], 3), [1, 0], image, label, recipe)
    source = generator(5)
    stages = finetune(*options, generator=source)
    kept = checkpoint_of(next(stages), source)
    final = next(stages).network.state_dict()
    (resumed,) = finetune(*options, generator=generator(99), resume=kept)
    assert all(torch.equal(final[key], value) for key, value in resumed.network.state_dict().items())
    (done,) = finetune(*options, generator=generator(), resume=checkpoint_of(resumed, source))
    assert done.done == 2
    assert all(torch.equal(final[key], value) for key, value in done.network.state_dict().items())


def test_distillation_loss_by_definition() -> None:
    logit, teacher = torch.randn(6, 4, generator=generator()), torch.randn(6, 4, generator=generator(1))
    label = torch.randint(0, 4, (6,), generator=generator(2))
    p, log_q = (teacher / 6).softmax(1), (logit / 6).log_softmax(1)
    divergence = (p * (p.log() - log_q)).sum(1).mean()
    expected = 0.05 * F.cross_entropy(logit, label) + 0.95 * 36 * divergence
    torch.testing.assert_close(distillation_loss(logit, teacher, label, 0.95, 6.0), expected)


def test_distilling_alone_pulls_towards_the_teacher(digits: tuple[xr.Dataset, xr.Dataset, nn.Module]) -> None:
    calibration, _, model = digits
    image, label = torch.from_numpy(calibration["image"].values), torch.from_numpy(calibration["label"].values)
    names = ["block2.conv", "block3.conv", "block4.conv"]
    wrong = (label + 1) % 10  # with a share of 1 the labels have no part in it
    recipe = Recipe(epochs=4, batch_size=32, learning_rate=0.005, schedule="constant")
    (stage,) = finetune(model, plan(names, 2), None, image, wrong, recipe, generator=generator(), distillation=1.0)
    logit = predict_all(stage.network.eval(), image)[0]
    teacher = predict_all(model, image)[0]
    twin = SmallCNN(10, width=8)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name in names:
            twin.get_submodule(name).weight.copy_(quantise_weight(twin.get_submodule(name).weight, 2))
    before = predict_all(twin.eval(), image)[0]
    assert (logit - teacher).square().mean() < 0.5 * (before - teacher).square().mean()
