"""Fine-tuning all weights end to end, AdaQuant's comparison: its step against torch's quantisers, and whole runs on digits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import t
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unit.quantization_cases import Residual, folded, generator, random_norms, trained_on_digits
from unit.recording_out import RecordingOut, check_report, record
from workbench_quantization.adaquant import AdaQuant
from workbench_quantization.adaquant_end_to_end import fine_tune
from workbench_quantization.adaquant_layers import Quantised, Student, initial, integers
from workbench_quantization.folding import Unit

FAST = {"bits": (2, 8), "iterations": 12, "batch_size": 32, "calibration_samples": 96, "bias_steps": 4}
TUNED = {"end_to_end_steps": 120, "end_to_end_rate": 1e-3}


def quantised_residual(bits: int) -> tuple[Student, Tensor, list[Quantised]]:
    torch.manual_seed(0)
    model, image = random_norms(Residual()), torch.rand(1, 2, 6, 6)
    units = folded(model, image)
    student = Student(model, units)
    return student, image, [initial(unit, student.collect(i, [image])[0], bits, 8) for i, unit in enumerate(units)]


class FakeQuantised(nn.Module):
    """A layer's weight through torch's kernel."""

    def __init__(self, unit: Unit, state: Quantised) -> None:
        super().__init__()
        _, self.step, zero = integers(state)
        self.zero, self.axis, self.levels = zero.int(), unit.axis, 2**state.weight_bits - 1

    def forward(self, weight: Tensor) -> Tensor:
        return torch.fake_quantize_per_channel_affine(weight, self.step, self.zero, self.axis, 0, self.levels)


def peer_gradients(student: Student, states: list[Quantised], image: Tensor, label: Tensor) -> tuple[Any, Any]:
    """Of the cross-entropy for the weights and biases of every layer, all quantisers torch's own kernels."""
    places = {id(module): name for name, module in student.model.named_modules()}
    peer = copy.deepcopy(student.model)
    for module in peer.modules():
        module._forward_pre_hooks.clear()
    for unit, state in zip(student.units, states, strict=True):
        levels = 2**state.input_bits - 1
        step = float(state.input_span) / levels
        zero = int(np.clip(np.round(-float(state.input_low) / step), 0, levels))
        layer = peer.get_submodule(unit.name)
        layer.register_forward_pre_hook(
            lambda _m, i, s=step, z=zero, n=levels: (torch.fake_quantize_per_tensor_affine(i[0], s, z, 0, n),)
        )
        parametrize.register_parametrization(layer, "weight", FakeQuantised(unit, state))
    F.cross_entropy(peer(image), label).backward()
    weights = [peer.get_submodule(unit.name).parametrizations.weight.original.grad for unit in student.units]
    return weights, [peer.get_submodule(places[id(unit.output)]).bias.grad for unit in student.units]


def test_the_first_step_is_adams_on_gradients_of_torchs_kernels() -> None:
    """Adam's first step is rate * g / (|g| + 1e-8), whatever the size of g."""
    student, image, starts = quantised_residual(3)
    label, rate = torch.tensor([3]), 1e-3
    weights, biases = peer_gradients(student, starts, image, label)
    ends = fine_tune(student, starts, image, label, steps=1, batch=4, rate=rate, generator=generator())
    for start, end, weight, bias in zip(starts, ends, weights, biases, strict=True):
        for before, after, gradient in ((start.weight, end.weight, weight), (start.bias, end.bias, bias)):
            expected = -rate * gradient / (gradient.abs() + 1e-8)
            # Rounding in the last bit decides the sign of gradients that are nothing but that.
            clear = (gradient.abs() > 1e-5) | (gradient == 0)
            assert clear.float().mean() > 0.8
            torch.testing.assert_close((after - before)[clear], expected[clear], atol=1e-5, rtol=1e-3)
        for name in ("weight_low", "weight_span", "input_low", "input_span"):
            assert torch.equal(getattr(start, name), getattr(end, name))


def test_the_student_is_left_as_the_states_say_and_its_parameters_as_they_were() -> None:
    student, image, starts = quantised_residual(2)
    wanted = [parameter.requires_grad for parameter in student.model.parameters()]
    losses: list[float] = []
    ends = fine_tune(
        student, starts, image, torch.tensor([1]), steps=40, batch=2, rate=1e-2, generator=generator(),
        on_step=lambda _step, loss: losses.append(loss),
    )  # fmt: skip
    assert losses[-1] < 0.5 * losses[0]
    assert [parameter.requires_grad for parameter in student.model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in student.model.parameters())
    for unit, end in zip(student.units, ends, strict=True):
        assert torch.equal(unit.layer.weight, end.rounded)
        assert torch.equal(unit.bias, end.bias)
    with torch.no_grad():
        assert float(F.cross_entropy(student.model(image), torch.tensor([1]))) < losses[0]


# ----------------------------------------------------------------------------------------------------------- whole runs


def run_adaquant(**options: Any) -> tuple[RecordingOut, Any]:
    data, test, model = trained_on_digits(epochs=6, calibration=300)
    return record(AdaQuant, {"model": copy.deepcopy(model), "data": data, "test": test}, **{**FAST, **options})


@pytest.fixture(scope="module")
def compared() -> tuple[RecordingOut, Any]:
    return run_adaquant(**TUNED)


def test_without_steps_nothing_changes_and_nothing_is_added(compared: tuple[RecordingOut, Any]) -> None:
    out, result = run_adaquant()
    added = {name for name in compared[0].arrays if name.startswith("fit_")}
    assert added == {"fit_accuracy", "fit_correct"}
    assert set(out.arrays) == set(compared[0].arrays) - added
    for name, values in out.arrays.items():
        equal_nan = np.asarray(values).dtype.kind == "f"
        assert np.array_equal(values, compared[0].arrays[name], equal_nan=equal_nan), name
    report = check_report(AdaQuant, result)
    assert "end to end" not in str(report.to_json())


def test_fits_are_the_stored_solutions_stages_and_training_on_the_labels(compared: tuple[RecordingOut, Any]) -> None:
    out = compared[0]
    fits, stages = out.coordinates["fit"][1].tolist(), out.coordinates["stage"][1].tolist()
    correct, accuracy = out.arrays["fit_correct"], out.arrays["fit_accuracy"]
    np.testing.assert_allclose(accuracy[:, 0], correct.mean(1))
    for name in ("naive + norms", "adaquant", "adaquant + norms"):  # judged a second time, by other code
        np.testing.assert_array_equal(correct[fits.index(name)], out.arrays["correct"][stages.index(name)])
    own = dict(zip(fits, accuracy[:, 1].tolist(), strict=True))
    assert own["end to end"] > own["naive + norms"]
    assert own["end to end"] > 0.97  # 96 images learnt by heart


def test_the_report_sets_both_beside_each_other(compared: tuple[RecordingOut, Any]) -> None:
    out, result = compared
    report = check_report(AdaQuant, result)
    fits, correct = out.coordinates["fit"][1].tolist(), out.arrays["fit_correct"]
    metrics = {metric.name: metric for metric in report.metrics}
    ours, theirs = correct[fits.index("adaquant")], correct[fits.index("end to end")]
    assert metrics["accuracy_end_to_end"].value == theirs.mean()
    ahead, behind, n = (ours & ~theirs).sum(), (theirs & ~ours).sum(), len(ours)
    half = t.ppf(0.975, n - 1) * np.sqrt((ahead + behind - (ahead - behind) ** 2 / n) / (n - 1) / n)
    middle = (ahead - behind) / n
    assert ahead + behind
    assert metrics["gain_over_end_to_end"].value == pytest.approx(middle)
    np.testing.assert_allclose(metrics["gain_over_end_to_end"].interval, (middle - half, middle + half))
    (table,) = (table for table in report.tables if "end to end" in table.title)
    np.testing.assert_allclose([[row[1], row[3]] for row in table.rows], out.arrays["fit_accuracy"], atol=6e-5)
    assert any("Fine-tuned end to end" in note for note in report.notes)
    assert "AdaQuant beside fine-tuning end to end" in [view.title for view in report.views]
