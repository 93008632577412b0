"""AdaQuant beside what the same images could be used for instead: fine-tuning all weights and biases together.

A few hundred images are enough to fit layers one by one, and few for all weights at once: accuracies are therefore taken on the
images that were fitted on too, where a model that knows them by heart looks best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from workbench import Out
from workbench.toolkit import predict_all

from workbench_quantization.adaquant_layers import Quantised, Student
from workbench_quantization.adaquant_optimisation import Calibration
from workbench_quantization.hawq_images import Images

if TYPE_CHECKING:
    from workbench_quantization.adaquant import Params

FITS = ("naive + norms", "adaquant", "adaquant + norms", "end to end", "end to end + norms")
SPLITS = ("report", "calibration")


@dataclass(frozen=True)
class Fits:
    """Right or wrong on the report images, (fit, sample) in the order of `FITS`, and accuracy on those fitted on, (fit,)."""

    correct: np.ndarray
    on_calibration: np.ndarray


def fine_tune(
    student: Student,
    starts: Sequence[Quantised],
    image: Tensor,
    label: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    generator: torch.Generator,
    on_step: Callable[[int, float], Any] = lambda step, loss: None,
) -> list[Quantised]:
    """Adam on the cross-entropy of the quantised model over weights and biases of all layers; ranges stay as they are.

    Gradients pass the rounding of weights and inputs straight through. Norms stay folded and are no part of it.

    Args:
        student: model to train; quantised as `starts` at first, as what is returned in the end.
        starts: one state per layer.
        image: (sample, ...) on the student's device.
        label: int64 (sample,).
        steps: Adam steps.
        batch: samples per step, drawn with replacement.
        rate: Adam's learning rate, one for all.
        generator: draws the batches.
        on_step: called with step and loss.
    """
    student.install_all(starts)
    model, units = student.model, student.units
    weights = [state.weight.clone().requires_grad_(True) for state in starts]
    biases = [unit.bias for unit in units if unit.bias is not None]
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(any(parameter is bias for bias in biases))
    optimiser = torch.optim.Adam([*weights, *biases], lr=rate)
    for step in range(steps):
        drawn = torch.randint(len(image), (batch,), generator=generator).to(image.device)
        rounded = {
            f"{unit.name}.weight": replace(state, weight=weight).rounded
            for unit, state, weight in zip(units, starts, weights, strict=True)
        }
        loss = F.cross_entropy(functional_call(model, rounded, (image[drawn],)), label[drawn])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        on_step(step, float(loss.detach()))
    for parameter, wanted in before:
        parameter.requires_grad_(wanted)
        parameter.grad = None
    ends = [
        replace(state, weight=weight.detach(), bias=None if unit.bias is None else unit.bias.detach().clone())
        for unit, state, weight in zip(units, starts, weights, strict=True)
    ]
    student.install_all(ends)
    return ends


def judge_fits(
    student: Student,
    naive: Sequence[Quantised],
    tuned: Sequence[Quantised],
    calibration: Calibration,
    held_out: Images,
    params: Params,
    out: Out,
    name: str = "end to end",
) -> Fits:
    """Accuracies of `FITS` at one width per layer, end-to-end fine-tuning from the naive ranges; leaves the student unquantised.

    Args:
        student: of any state.
        naive: layers before AdaQuant.
        tuned: layers after it.
        calibration: what is fitted on.
        held_out: images to report on.
        params: of the run.
        out: generators and progress.
        name: of the generator that draws the batches.
    """
    rows: list[tuple[np.ndarray, float]] = []

    def measure() -> None:
        logit = predict_all(student.model, held_out.image, device=out.device, keep_on="cpu")[0]
        own = predict_all(student.model, calibration.image, device=out.device)[0]
        right = (logit.argmax(1) == held_out.label).numpy()
        rows.append((right, float((own.argmax(1) == calibration.label).double().mean())))

    def renormalise() -> None:
        student.tune_norms(calibration.batches, passes=params.norm_passes, momentum=params.norm_momentum)

    student.install_all(naive)
    renormalise()
    measure()
    student.install_all(tuned)
    measure()
    renormalise()
    measure()
    fine_tune(
        student,
        naive,
        calibration.image,
        calibration.label,
        steps=params.end_to_end_steps,
        batch=params.batch_size,
        rate=params.end_to_end_rate,
        generator=out.generator(name),
        on_step=lambda step, _loss: out.progress(step, params.end_to_end_steps, "fine-tuning end to end"),
    )
    measure()
    renormalise()
    measure()
    student.install_all([None] * len(naive))
    return Fits(np.stack([right for right, _ in rows]), np.array([own for _, own in rows]))


def write_fits(fits: Fits, out: Out) -> None:
    """Accuracies of all fits on both kinds of images, and image by image on those of the report."""
    out.coordinate("fit", list(FITS))
    out.coordinate("split", list(SPLITS))
    out.write("fit_accuracy", np.stack([fits.correct.mean(1), fits.on_calibration], axis=1))
    out.write("fit_correct", fits.correct)
