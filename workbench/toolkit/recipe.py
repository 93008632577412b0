"""What a training is told: optimiser, learning rate over the epochs, batch size, regularisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from workbench.errors import InputError

__all__ = ["Recipe", "learning_rate", "make_optimizer"]


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are those of a small CNN on small images.

    Raises:
        InputError: a value is out of range or two values contradict each other.
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw", "adam"] = "sgd"
    learning_rate: float = 0.1
    """The peak, reached after the warm-up."""
    momentum: float = 0.9
    """sgd: momentum; adam and adamw: beta 1 (beta 2 is 0.999)."""
    nesterov: bool = False
    weight_decay: float = 5e-4
    """sgd and adam: L2 term in the gradient; adamw: decoupled. It acts on every parameter."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """By epoch. cosine: half a period from the peak towards zero; step: times `decay` at each of `milestones`."""
    warmup_epochs: int = 0
    """Epochs of linear increase before the schedule starts."""
    milestones: tuple[int, ...] = ()
    """step: numbers of finished epochs (warm-up included) after which the learning rate is multiplied by `decay`."""
    decay: float = 0.1
    label_smoothing: float = 0.0
    gradient_clip: float | None = None
    """Largest 2-norm of the whole gradient."""

    def __post_init__(self) -> None:
        for name, expected, right in (
            ("epochs", "at least 1", self.epochs >= 1),
            ("batch_size", "at least 1", self.batch_size >= 1),
            ("optimizer", "sgd, adamw or adam", self.optimizer in ("sgd", "adamw", "adam")),
            ("learning_rate", "a finite number above 0", 0 < self.learning_rate < math.inf),
            ("momentum", "a number in [0, 1)", 0 <= self.momentum < 1),
            ("nesterov", "False without sgd and momentum", not self.nesterov or self._has_momentum),
            ("weight_decay", "a finite number, at least 0", 0 <= self.weight_decay < math.inf),
            ("schedule", "cosine, step or constant", self.schedule in ("cosine", "step", "constant")),
            ("warmup_epochs", "0 to epochs - 1", 0 <= self.warmup_epochs < self.epochs),
            ("milestones", "increasing epochs, only with step", self._milestones_fit),
            ("decay", "a number in (0, 1]", 0 < self.decay <= 1),
            ("label_smoothing", "a number in [0, 1)", 0 <= self.label_smoothing < 1),
            ("gradient_clip", "None or a number above 0", self.gradient_clip is None or self.gradient_clip > 0),
        ):
            if not right:
                raise InputError(f"recipe.{name}", expected=expected, got=repr(getattr(self, name)))

    @property
    def _has_momentum(self) -> bool:
        return self.optimizer == "sgd" and self.momentum > 0

    @property
    def _milestones_fit(self) -> bool:
        ordered = sorted(set(self.milestones))
        inside = all(self.warmup_epochs <= epoch and epoch > 0 for epoch in ordered)
        return list(self.milestones) == ordered and inside and bool(ordered) == (self.schedule == "step")


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Learning rate of epoch 0, 1, ..., `recipe.epochs - 1`.

    Warm-up over w epochs: peak * (epoch + 1) / (w + 1). Then, t epochs after it, out of T: cosine
    peak * (1 + cos(pi t / T)) / 2 (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5 with one period), step
    peak * decay ** (number of milestones <= epoch), or the peak itself.
    """
    peak, warmup = recipe.learning_rate, recipe.warmup_epochs
    if epoch < warmup:
        return peak * (epoch + 1) / (warmup + 1)
    if recipe.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * (epoch - warmup) / (recipe.epochs - warmup))) / 2
    if recipe.schedule == "step":
        return peak * recipe.decay ** sum(epoch >= milestone for milestone in recipe.milestones)
    return peak


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the parameters that need a gradient.

    Raises:
        InputError: no parameter needs one.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("model", expected="at least one parameter that needs a gradient", got="none")
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=decay
        )
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, betas=(recipe.momentum, 0.999), weight_decay=decay)
