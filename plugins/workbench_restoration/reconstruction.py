"""Training image-to-image networks under one image loss: what `restoration.ms_ssim` repeats for every loss.

A network, its loss and its extra terms are wrapped in one `Objective` that maps a batch of pictures to one number per
picture, so that autoencoders, VAEs and super-resolution nets all train in the workbench's one loop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from workbench import InputError, Out
from workbench.toolkit import Recipe, Stages, fit, image_batches

from workbench_restoration import metrics
from workbench_restoration.networks import SRCNN, Autoencoder, ExpectedLossVAE, gaussian_divergence
from workbench_restoration.resize import crop_to_multiple, downscale, upscale

__all__ = [
    "Calibrated",
    "ImageLoss",
    "LossName",
    "Objective",
    "Trained",
    "Trainings",
    "divergence",
    "enlarged_pair",
    "random_patches",
    "reconstruct",
    "train_at_best_rate",
    "train_to_divergence",
    "turn_and_flip",
]

LossName = Literal["mse", "mae", "ssim", "ms_ssim", "mix"]

CHECKPOINT_SECONDS = 30.0
"""Least time between two checkpoints inside one training."""


@dataclass(frozen=True)
class ImageLoss:
    """A loss between images, one value per image: (sample, channel, y, x) twice to (sample,).

    mse and mae are means over pixels; ssim and ms_ssim are 1 - score; mix is a (1 - MS-SSIM) + (1 - a) MAE.
    """

    name: LossName
    window: int = 11
    sigma: float = 1.5
    k1: float = 0.01
    k2: float = 0.03
    scales: int | None = None
    """Scales of MS-SSIM; None takes as many as fit."""
    mix_weight: float = 0.84
    """a of the mix (a later paper's value)."""

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """The loss of each image."""
        if self.name == "mse":
            return metrics.mean_squared_error(image, target)
        if self.name == "mae":
            return metrics.mean_absolute_error(image, target)
        window = {"window": self.window, "sigma": self.sigma, "k1": self.k1, "k2": self.k2}
        if self.name == "ssim":
            return 1 - metrics.ssim(image, target, **window)
        multi_scale = 1 - metrics.ms_ssim(image, target, scales=self.scales, **window)
        if self.name == "ms_ssim":
            return multi_scale
        return self.mix_weight * multi_scale + (1 - self.mix_weight) * metrics.mean_absolute_error(image, target)


class Objective(nn.Module):
    """A network with what is minimised over it: pictures (sample, channel, y, x) to one number each, (sample,).

    Autoencoder: loss(decode(encode(x)), x). Expected-loss VAE: KL(q(z | x) || N(0, I)) + weight loss(decode(z), x) with
    one z ~ q(z | x) per image. SRCNN: the picture holds the enlarged image in channel 0 and the sharp one in channel 1;
    only pixels whose whole neighbourhood lies in the patch are compared.
    """

    def __init__(self, network: nn.Module, loss: ImageLoss, weight: float = 1.0) -> None:
        super().__init__()
        self.network, self.loss, self.weight = network, loss, weight

    def forward(self, image: Tensor) -> Tensor:
        """The objective of each picture."""
        if isinstance(self.network, ExpectedLossVAE):
            mean, log_variance = self.network.distribution(image)
            code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            loss = self.loss(self.network.decode(code), image)
            return gaussian_divergence(mean, log_variance) + self.weight * loss
        if isinstance(self.network, SRCNN):
            enlarged, clean = image.split(1, dim=1)
            reach = self.network.reach
            return self.loss(metrics.crop_border(self.network(enlarged), reach), metrics.crop_border(clean, reach))
        return self.loss(self.network(image), image)


@dataclass(frozen=True)
class Trained:
    """A trained network and how it came about."""

    network: nn.Module
    rate: float
    """The learning rate kept: the one with the lowest final validation objective."""
    train_loss: tuple[float, ...]
    """Mean objective per epoch, as it was trained, at that rate."""
    validation_loss: tuple[float, ...]
    candidate_loss: tuple[float, ...]
    """Final validation objective per candidate rate; infinite where the training diverged."""


class Trainings:
    """The trainings of one run, one after another: one progress bar, and after a kill none is done twice.

    Args:
        out: the run's `Out`.
        count: number of trainings the run will do at most, for progress; judging counts as one more.
    """

    def __init__(self, out: Out, count: int) -> None:
        self.out, self.stages = out, Stages(out, count + 1)

    def fit(self, name: str, objective: Objective, **options: Any) -> Mapping[str, Sequence[float]]:
        """`toolkit.fit` on the objective, or what an interrupted run made of it; returns the history."""
        if (kept := self.stages.result(name)) is not None:
            objective.load_state_dict(kept["state"])
            history: Mapping[str, Sequence[float]] = kept["history"]
            return history
        nothing = torch.zeros(len(options["image"]), 1, 1)  # `fit` wants targets; the objective has its own
        history = fit(
            objective,
            label=nothing,
            loss=lambda value, _: value.mean(),
            out=self.stages.begin(name),
            name=name,
            checkpoint_seconds=CHECKPOINT_SECONDS,
            **options,
        ).history
        state = {key: value.detach().cpu().clone() for key, value in objective.state_dict().items()}
        self.stages.finish(name, {"state": state, "history": {key: list(row) for key, row in history.items()}})
        return history


def train_at_best_rate(
    network: nn.Module,
    loss: ImageLoss,
    image: Tensor,
    validation: Tensor,
    recipe: Callable[[float], Recipe],
    rates: Sequence[float],
    trainings: Trainings,
    *,
    name: str,
    weight: float = 1.0,
    transform: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]] | None = None,
    stream: str = "training",
) -> Trained:
    """Train a copy of `network` at each rate for the full budget and keep the one that validates best.

    Every call with one run and `stream` starts from the given weights and sees the same batches in the same order, so
    that networks differ by their loss alone.

    Args:
        network: untrained, on the device to train on; it is not changed.
        loss: what to train by; its own validation value chooses the rate.
        image: pictures to train on, float in 0..1 (see `Objective` for super-resolution).
        validation: pictures that choose the rate and are never trained on.
        recipe: the budget at a learning rate.
        rates: learning rates to try.
        trainings: of the run.
        name: tells this training from others in logs and checkpoints.
        weight: C of an expected-loss VAE.
        transform: augmentation of a batch.
        stream: name of the random stream of batches, augmentation and codes; repetitions take another.

    Raises:
        InputError: the training diverged at every rate.
    """
    best: tuple[float, nn.Module, Mapping[str, Sequence[float]]] | None = None
    candidates: list[float] = []
    for rate in rates:
        objective = Objective(copy.deepcopy(network), loss, weight)
        own_name = name if len(rates) == 1 else f"{name}_rate_{rate:g}"
        try:
            history = trainings.fit(
                own_name,
                objective,
                image=image,
                recipe=recipe(rate),
                generator=trainings.out.generator(stream),
                transform=transform,
                validation=(validation, torch.zeros(len(validation), 1, 1)),
            )
        except InputError as error:
            if error.argument != "recipe.learning_rate":
                raise
            candidates.append(math.inf)
            trainings.stages.done += 1
            continue
        candidates.append(history["validation_loss"][-1])
        if best is None or candidates[-1] < best[2]["validation_loss"][-1]:
            best = rate, objective.network, history
    if best is None:
        raise InputError(
            "learning_rates",
            expected=f"a rate at which training by {loss.name} stays finite",
            got=", ".join(f"{rate:g}" for rate in rates),
        )
    rate, trained, history = best
    trained.eval()
    return Trained(trained, rate, tuple(history["loss"]), tuple(history["validation_loss"]), tuple(candidates))


@dataclass(frozen=True)
class Calibrated:
    """An expected-loss VAE whose weight C was tuned to a divergence."""

    trained: Trained
    weight: float
    """C, in nats per unit of loss."""
    divergence: float
    """Mean KL(q(z | x) || N(0, I)) on the validation images, in nats."""
    trace: tuple[tuple[float, float], ...]
    """(C, divergence) in the order tried."""


def train_to_divergence(
    train: Callable[[float, int], Trained],
    validation: Tensor,
    *,
    target: float,
    bracket: tuple[float, float],
    steps: int,
    tolerance: float,
    device: torch.device,
) -> Calibrated:
    """Find by bisection in log C the weight at which the mean validation divergence is `target`.

    The divergence grows with C, because a decoder that is trusted more is told more. Comparing VAEs of different losses
    at one C would compare nothing; at one divergence they spend the same number of nats.

    Args:
        train: (C, number of trainings before) to a trained network.
        validation: images the divergence is measured on.
        target: mean divergence wanted, in nats.
        bracket: lower and upper end for C.
        steps: largest number of trainings.
        tolerance: relative deviation from the target that is good enough.
        device: where the networks are.

    Returns:
        The training that came nearest to the target.
    """
    low, high = (math.log(end) for end in bracket)
    trace: list[tuple[float, float]] = []
    best: Calibrated | None = None
    for step in range(steps):
        weight = math.exp((low + high) / 2)
        trained = train(weight, step)
        reached = divergence(trained.network, validation, device)
        trace.append((weight, reached))
        if best is None or abs(math.log(reached / target)) < abs(math.log(best.divergence / target)):
            best = Calibrated(trained, weight, reached, ())
        if abs(reached / target - 1) <= tolerance:
            break
        low, high = ((low + high) / 2, high) if reached < target else (low, (low + high) / 2)
    assert best is not None
    return Calibrated(best.trained, best.weight, best.divergence, tuple(trace))


@torch.no_grad()
def divergence(network: ExpectedLossVAE, image: Tensor, device: torch.device, batch_size: int = 256) -> float:
    """Mean KL(q(z | x) || N(0, I)) over images, in nats."""
    parts = [
        gaussian_divergence(*network.distribution(batch)).double().sum()
        for _, batch in image_batches(image, batch_size, device)
    ]
    return max(float(torch.stack(parts).sum()) / len(image), 1e-12)


@torch.no_grad()
def reconstruct(network: Autoencoder, image: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction (sample, channel, y, x) and code (sample, latent) of a batch; a VAE decodes the mean code."""
    code = network.encode(image)
    return network.decode(code), code


def enlarged_pair(image: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """What super-resolution starts from and aims at: (bicubically enlarged, clean), each (sample, 1, y, x) in 0..1.

    Y of the image, cropped to multiples of the factor; the small image is rounded to 8 bits, as a file would be.
    """
    clean = metrics.luma(crop_to_multiple(image, factor))
    return upscale(metrics.quantize(downscale(clean, factor)), factor), clean


def random_patches(image: Tensor, size: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` random squares of every image: (sample, channel, y, x) to (sample * count, channel, size, size)."""
    height, width = image.shape[-2:]
    tops = torch.randint(height - size + 1, (len(image), count), generator=generator).tolist()
    lefts = torch.randint(width - size + 1, (len(image), count), generator=generator).tolist()
    return torch.stack(
        [
            picture[:, top : top + size, left : left + size]
            for picture, row, column in zip(image, tops, lefts, strict=True)
            for top, left in zip(row, column, strict=True)
        ]
    )


def turn_and_flip(image: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Augmentation: one of the eight symmetries of the square for the whole batch; targets are returned as they are."""
    symmetry = int(torch.randint(8, (), generator=generator))
    image = image.rot90(symmetry % 4, (-2, -1))
    return (image.flip(-1) if symmetry >= 4 else image), target
