"""What AdaQuant tunes after the layers: batch norms and biases, against moments, and the official code's step."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unit.quantization_cases import Residual, folded, generator, random_norms
from unit.recording_out import RecordingOut
from workbench_quantization.adaquant import Params
from workbench_quantization.adaquant_layers import (
    Quantised,
    Student,
    initial,
    integers,
)
from workbench_quantization.adaquant_run import prepare
from workbench_quantization.hawq_images import Images


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
    shifts = student.tune_norms([image], passes=80, momentum=0.1)
    moved, scaled = shifts.root_mean_squares
    after = channel_moments(student, 0, image)
    assert float((before[0] - unit.mean).abs().max()) > 0.05
    torch.testing.assert_close(after[0], unit.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(after[1], unit.std, atol=0.02, rtol=0.02)
    # Channel by channel what was seen before; the running averages of 80 passes have forgotten where they began.
    by_mean, by_deviation = (before[0] - unit.mean) / unit.std, before[1] / unit.std - 1
    torch.testing.assert_close(shifts.mean[0], by_mean, atol=0.01, rtol=0.01)
    torch.testing.assert_close(shifts.deviation[0], by_deviation, atol=0.01, rtol=0.01)
    assert moved[0] == pytest.approx(float(by_mean.square().mean().sqrt()), rel=0.02)
    assert scaled[0] == pytest.approx(float(by_deviation.square().mean().sqrt()), rel=0.05)
    assert np.isnan(moved[3])
    table = shifts.table(shifts.mean)
    np.testing.assert_array_equal(table[0, : len(by_mean)], shifts.mean[0].numpy())
    assert np.isnan(table[3]).all()
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
