"""Trainings of `calibration.bang`: fine-tuning with the losses that BANG compares, and networks for MultiColorMNIST."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from workbench import Out
from workbench.toolkit import Recipe, Stages, Transform, fit, mixup_batch, numpy_generator, reinitialise, soft_labels

from workbench_calibration.multicolor import Frame, paint
from workbench_calibration.overlap_training import CHECKPOINT_SECONDS

FinetuningLoss = Literal["ce", "ls", "mixup", "mixup_ls"]


def mixup(alpha: float, classes: int) -> Transform:
    """Mixup of a batch: one lambda ~ Beta(alpha, alpha) for all of it, labels mixed alike (so cross entropies are, too)."""

    def transform(image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mixed = mixup_batch(image, alpha, numpy_generator(generator))
        return mixed.image, soft_labels(label, label[mixed.partner], mixed.label_share, classes)

    return transform


def finetuning(
    loss: FinetuningLoss, recipe: Recipe, *, smoothing: float, alpha: float, classes: int
) -> tuple[Recipe, Transform | None]:
    """Recipe and transform of a fine-tuning loss.

    `ce` is WiSE-FT's; label smoothing puts `smoothing` / class on every class; `mixup_ls`, both, is BANG's strongest.
    """
    smooth = replace(recipe, label_smoothing=smoothing) if loss in ("ls", "mixup_ls") else recipe
    return smooth, mixup(alpha, classes) if loss in ("mixup", "mixup_ls") else None


def fresh_colours(frame: Frame) -> Transform:
    """Frames whose colours say nothing (p = 1), new ones in every batch, for grey digits (sample, side, side) in 0..1."""

    def transform(digit: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rng = numpy_generator(generator)
        painted = paint((digit * 255).round().to(torch.uint8), frame.colours(label.cpu().numpy(), 1.0, rng))
        return painted.to(digit.device).float() / 255, label

    return transform


def small_network(side: int, classes: int) -> nn.Module:
    """Two hidden layers of 64 ReLU units, for pictures (3, side, side)."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * side * side, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes)
    )


class Trainings:
    """All trainings of a run by name: each is done once, and a stopped run goes on where it was."""

    def __init__(self, out: Out, total: int) -> None:
        self.out, self.stages = out, Stages(out, total, checkpoint_seconds=CHECKPOINT_SECONDS)

    def train(
        self,
        name: str,
        model: nn.Module,
        image: Tensor,
        label: Tensor,
        recipe: Recipe,
        transform: Transform | None,
        order: str,
    ) -> nn.Module:
        """Train `model` in place, or load what a training of this name has led to before.

        Args:
            name: of the training.
            model: on the device, with its initial weights.
            image: (sample, ...) what to train on.
            label: (sample,) int64.
            recipe: how.
            transform: of a batch.
            order: name of the random numbers: trainings with the same see the same batches if they draw alike.
        """
        if (state := self.stages.result(name)) is not None:
            model.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()})
        else:
            fit(
                model,
                image,
                label,
                recipe,
                generator=self.out.generator(order),
                transform=transform,
                out=self.stages.begin(name, series=("loss",)),
                amp=self.out.dtype == torch.bfloat16,
                name=name,
                checkpoint_seconds=CHECKPOINT_SECONDS,
            )
            self.stages.finish(name, {key: value.detach().cpu() for key, value in model.state_dict().items()})
        return model.eval()

    def train_new(
        self,
        name: str,
        network: nn.Module,
        image: Tensor,
        label: Tensor,
        recipe: Recipe,
        transform: Transform | None = None,
    ) -> nn.Module:
        """The same for a copy of `network` with weights of its own."""
        model = copy.deepcopy(network).to(self.out.device)
        reinitialise(model, int(torch.randint(2**31, (), generator=self.out.generator(f"weights {name}"))))
        return self.train(name, model, image, label, recipe, transform, f"order {name}")
