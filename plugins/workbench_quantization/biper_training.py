"""Training with binary layers: the schedule of the regulariser, and what is watched of the weights epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from workbench import Out
from workbench.toolkit import Recipe, Transform, fit, predict_all, soft_cross_entropy

from workbench_quantization.biper_layers import binary_layers, periodic_weight, sine_penalty, weight_bits

Penalty = Literal["sin2", "cos2", "off"]


def penalty_weight(epoch: int, epochs: int, lowest: float, highest: float) -> float:
    """tau_e = A e^(epoch / epochs) + B with A = (tau_max - tau_min) / (e - 1), B = tau_min - A (official code).

    It rises from `lowest` at epoch 0 towards `highest`, which epoch number `epochs` would have.
    """
    slope = (highest - lowest) / (math.e - 1)
    return slope * math.exp(epoch / epochs) + lowest - slope


def batches_per_epoch(samples: int, batch_size: int) -> int:
    """Steps that `fit` makes in an epoch: a single last sample joins the batch before."""
    batches = -(-samples // batch_size)
    return batches - 1 if batches > 1 and samples % batch_size == 1 else batches


class Watched(nn.Module):
    """A network with binary layers that trains, with what is noted of its weights; all of it in buffers, for checkpoints.

    Attributes:
        flip_rate: (epoch, layer), share of weight bits that an epoch changed.
        scale: (epoch, layer), u = omega * mean|w| after an epoch.
    """

    steps: Tensor
    before: Tensor
    flip_rate: Tensor
    scale: Tensor

    def __init__(
        self, network: nn.Module, *, batches: int, epochs: int, penalty: Penalty, tau: tuple[float, float]
    ) -> None:
        super().__init__()
        self.network, self.batches, self.epochs, self.penalty, self.tau = network, batches, epochs, penalty, tau
        layers = len(binary_layers(network))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("before", self._bits())
        self.register_buffer("flip_rate", torch.zeros(epochs, layers))
        self.register_buffer("scale", torch.zeros(epochs, layers))

    def _bits(self) -> Tensor:
        parts = [bits.flatten() for bits in weight_bits(binary_layers(self.network))]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)

    def forward(self, image: Tensor) -> Tensor:
        """The network's logits. In train mode a call is a step, and the first one of an epoch notes the epoch before."""
        if self.training:
            done, rest = divmod(int(self.steps), self.batches)
            if rest == 0 and done > 0:
                self.note(done - 1)
            self.steps += 1
        logit: Tensor = self.network(image)
        return logit

    @torch.no_grad()
    def note(self, epoch: int) -> None:
        """Compare the bits with those of one epoch before."""
        bits, place = self._bits(), 0
        for column, layer in enumerate(binary_layers(self.network).values()):
            part = slice(place, place + layer.weight.numel())
            self.flip_rate[epoch, column] = (bits[part] != self.before[part]).float().mean()
            self.scale[epoch, column] = layer.omega * layer.weight.abs().mean()
            place = part.stop
        self.before.copy_(bits)

    def regulariser(self) -> Tensor | float:
        """tau_e times the sum over layers of mean(sin^2(omega w)), or of mean(cos^2(omega w))."""
        layers = [layer for layer in binary_layers(self.network).values() if layer.weights in ("sine", "square")]
        if self.penalty == "off" or self.tau == (0, 0) or not layers:
            return 0.0
        lowest, highest = self.tau
        epoch = 0 if lowest == highest else max(int(self.steps) - 1, 0) // self.batches
        squares = torch.stack([sine_penalty(layer.weight, layer.omega) for layer in layers])
        value = squares if self.penalty == "sin2" else 1 - squares
        return penalty_weight(epoch, self.epochs, lowest, highest) * value.sum()


@dataclass(frozen=True)
class Training:
    """What all trainings of a run share: data on the run's device, augmentation, and the judges' images."""

    image: Tensor
    label: Tensor
    validation: tuple[Tensor, Tensor]
    report_image: Any
    transform: Transform | None
    amp: bool

    def __call__(
        self,
        network: nn.Module,
        recipe: Recipe,
        *,
        generator: torch.Generator,
        out: Out,
        name: str,
        penalty: Penalty = "off",
        tau: tuple[float, float] = (0.0, 0.0),
    ) -> dict[str, Any]:
        """Train the network in place; what came of it, as a checkpoint can keep it.

        Returns:
            `state` (of the network), `logit` (sample, class) on the report images, `validation_accuracy`, `history`
            (curves by name), `flip_rate` and `scale` (epoch, layer).
        """
        batches = batches_per_epoch(len(self.image), recipe.batch_size)
        watched = Watched(network, batches=batches, epochs=recipe.epochs, penalty=penalty, tau=tau)
        watched.to(self.label.device)

        def loss(logit: Tensor, target: Tensor) -> Tensor:
            return soft_cross_entropy(logit, target) + watched.regulariser()

        result = fit(
            watched,
            self.image,
            self.label,
            recipe,
            generator=generator,
            transform=self.transform,
            loss=loss,
            validation=self.validation,
            out=out,
            amp=self.amp,
            name=name,
        )
        watched.note(recipe.epochs - 1)
        return {
            "state": {key: value.detach().cpu().clone() for key, value in network.state_dict().items()},
            "logit": self.logits(network),
            "validation_accuracy": float(result.history["validation_accuracy"][-1]),
            "history": {
                key: np.array(result.history[key])
                for key in ("loss", "accuracy", "validation_loss", "validation_accuracy")
            },
            "flip_rate": watched.flip_rate.cpu().numpy(),
            "scale": watched.scale.cpu().numpy(),
        }

    def logits(self, network: nn.Module) -> np.ndarray:
        """(sample, class) float32 of the report images."""
        return predict_all(network, self.report_image, device=self.label.device, keep_on="cpu")[0].float().numpy()


def measured_errors(network: nn.Module) -> dict[str, np.ndarray]:
    """Per binary layer, (layer,) each, of its latent weights w.

    Returns:
        `quantisation_error`: mean sin^2 - (mean|sin|)^2; `sign_distance`: mean |sin - sign sin|, what the official script
        calls QE, without the best scale; `laplace_scale`: mean|w|, the maximum-likelihood b of a Laplace distribution.
    """
    rows = []
    for layer in binary_layers(network).values():
        weight = layer.weight.detach().double()
        wave = periodic_weight(weight, layer.omega)
        largest = wave.abs().mean()
        rows.append(
            [float(wave.square().mean() - largest**2), float(1 - wave.abs().mean()), float(weight.abs().mean())]
        )
    table = np.array(rows).reshape(-1, 3)
    return dict(zip(("quantisation_error", "sign_distance", "laplace_scale"), table.T, strict=True))


def state_of(result: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's state that a training left, also out of a checkpoint."""
    return {key: torch.as_tensor(value) for key, value in result["state"].items()}
