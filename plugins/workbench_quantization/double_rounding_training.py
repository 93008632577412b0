"""Training one set of weights for several widths at once (ALRS), its rivals, and the mixed-precision stage (HASB)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import Out
from workbench.toolkit import Recipe, Step, Transform, evaluating, fit, flip_crop, predict_all

from workbench_quantization.finetuning import distillation_loss
from workbench_quantization.nested_rounding import RateRule, Rule, scale_rate, width_factor
from workbench_quantization.switchable import Switchable

Update = Literal["each", "accumulated"]
RECORDED_STEPS = 500
"""Steps whose rates and gradients are kept, evenly spread over a training."""
MAIN, FLOOR, CONSTANT = "double rounding", "floor", "constant rate"
ACCUMULATED, INDEPENDENT, SEPARATE = "accumulated", "independent scales", "separate"


@dataclass(frozen=True)
class Variant:
    """How a training differs: how narrow weights come about, when the optimiser steps, how scales are paced."""

    rule: Rule
    update: Update
    alrs: RateRule


def variant_of(name: str, alrs: RateRule) -> Variant:
    """By name: `double rounding` and what it is compared with."""
    main = Variant("double", "each", alrs)
    return {
        MAIN: main,
        FLOOR: replace(main, rule="floor"),
        CONSTANT: replace(main, alrs="off"),
        ACCUMULATED: Variant("double", "accumulated", "off"),
        INDEPENDENT: replace(main, rule="direct"),
        SEPARATE: Variant("direct", "each", alrs),
    }[name]


class Recorded(nn.Module):
    """A switchable network with what is noted while it trains: buffers, so that a checkpoint holds them.

    Args:
        network: trained.
        epochs, steps: of the training, `steps` per epoch.
        passes: forward passes of a step: the widths, or those of a sandwich.
    """

    done: Tensor
    loss: Tensor
    accuracy: Tensor
    rate: Tensor
    gradient: Tensor

    def __init__(self, network: Switchable, epochs: int, steps: int, passes: int) -> None:
        super().__init__()
        self.network = network
        self.steps = steps
        self.kept = np.unique(np.linspace(0, epochs * steps - 1, min(epochs * steps, RECORDED_STEPS)).astype(np.int64))
        rows, layers = len(self.kept), len(network.layers)
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        self.register_buffer("loss", torch.zeros(epochs, passes))
        self.register_buffer("accuracy", torch.full((epochs, passes), torch.nan))
        self.register_buffer("rate", torch.zeros(rows, passes))
        self.register_buffer("gradient", torch.zeros(rows, layers, passes))

    def forward(self, image: Tensor) -> Tensor:
        """Of the network at its present widths."""
        result: Tensor = self.network(image)
        return result

    def note(self, column: int, loss: Tensor, share: float, rate: float, gradient: Tensor) -> None:
        """Keep what pass number `column` of the present step gave; `share` is that of the batch in the epoch."""
        step = int(self.done)
        self.loss[step // self.steps, column] += loss * share
        row = int(np.searchsorted(self.kept, step))
        if row < len(self.kept) and self.kept[row] == step:
            self.rate[row, column] = rate
            self.gradient[row, :, column] = gradient


@dataclass(frozen=True)
class Lesson:
    """Images to train on and to watch, and the recipe.

    With `self_taught` the logits of a batch's first pass, that of the highest width, teach the passes after it.
    """

    image: Tensor
    label: Tensor
    watched: Tensor
    watched_label: Tensor
    recipe: Recipe
    padding: int
    flip: bool
    teacher: nn.Module | None
    distillation: float
    clip: float
    self_taught: bool = False

    @property
    def steps(self) -> int:
        """Batches of an epoch; a lone last sample joins the batch before."""
        full, rest = divmod(len(self.image), self.recipe.batch_size)
        return max(1, full + (rest > 1 or (rest == 1 and full == 0)))

    @property
    def transform(self) -> Transform | None:
        """The augmentation."""
        return flip_crop(self.padding, flip=self.flip) if self.padding or self.flip else None


def optimizer_of(network: Switchable) -> Callable[[nn.Module, Recipe], torch.optim.Optimizer]:
    """Adam for the weights with the recipe's decay, and a group for the scales of each layer without decay.

    Adam keeps its moments per parameter, so groups of one optimiser step as optimisers of their own would.
    """

    def make(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        scales = [[scale.factor for scale in layer] for layer in network.scales]
        known = {id(factor) for layer in scales for factor in layer}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": others, "weight_decay": recipe.weight_decay}]
        groups += [{"params": layer, "weight_decay": 0.0} for layer in scales]
        return torch.optim.Adam(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999))

    return make


def train(
    network: Switchable, lesson: Lesson, variant: Variant, out: Out, name: str, generator: torch.Generator
) -> Recorded:
    """Multi-precision training in place (algorithm 1); the network's own widths, one pass each per batch."""
    recorded = Recorded(network, lesson.recipe.epochs, lesson.steps, len(network.widths)).to(device_of(network))

    def passes() -> Sequence[tuple[int, Mapping[int, int]]]:
        return [(bits, dict.fromkeys(network.layers, bits)) for bits in network.widths]

    _fit(recorded, lesson, variant, passes, out, name, generator, watch=True)
    return recorded


def train_mixed(
    network: Switchable,
    lesson: Lesson,
    variant: Variant,
    sensitive: Sequence[bool],
    sigma: float,
    out: Out,
    name: str,
    generator: torch.Generator,
) -> Recorded:
    """The supernet (algorithm A.3): sandwich passes, highest, random, lowest; layers redraw their width by roulette.

    Args:
        network: with transitional norms, trained for several widths; changed in place.
        lesson: images and recipe.
        variant: pace of the scales.
        sensitive: (quantised layer,) whose roulette favours high widths; all False is the uniform roulette.
        sigma: probability of a redraw in the last epoch; it grows linearly from sigma / epochs.
        out: of the run.
        name: of the training.
        generator: of the batches.
    """
    epochs, widths = lesson.recipe.epochs, network.widths
    recorded = Recorded(network, epochs, lesson.steps, 3).to(device_of(network))
    roulette = torch.tensor(np.stack([width_probability(widths, bool(s)) for s in sensitive]))

    def passes() -> Sequence[tuple[int, Mapping[int, int]]]:
        threshold = sigma * (int(recorded.done) // lesson.steps + 1) / epochs
        random = widths[int(torch.randint(len(widths), ()))]
        return [(base, draw_widths(network, base, threshold, roulette)) for base in (widths[0], random, widths[-1])]

    _fit(recorded, lesson, variant, passes, out, name, generator, watch=False)
    return recorded


def width_probability(widths: Sequence[int], sensitive: bool) -> np.ndarray:
    """(width,) of the roulette: b / sum of all widths for a sensitive layer, else equal (HASB, eq. 10)."""
    values = np.array(widths, dtype=float) if sensitive else np.ones(len(widths))
    return np.asarray(values / values.sum())


def draw_widths(network: Switchable, base: int, threshold: float, roulette: Tensor) -> dict[int, int]:
    """Each layer keeps the width of its pass, or with probability `threshold` draws one; from torch's global generator."""
    places = list(network.layers)
    redraw = torch.rand(len(places)) < threshold
    drawn = torch.multinomial(roulette, 1)[:, 0]
    return {place: network.widths[int(drawn[row])] if redraw[row] else base for row, place in enumerate(places)}


def device_of(network: nn.Module) -> torch.device:
    """Where the network lies."""
    return next(network.parameters()).device


def _fit(
    recorded: Recorded,
    lesson: Lesson,
    variant: Variant,
    passes: Callable[[], Sequence[tuple[int, Mapping[int, int]]]],
    out: Out,
    name: str,
    generator: torch.Generator,
    *,
    watch: bool,
) -> None:
    for parameter in recorded.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    fit(
        recorded,
        lesson.image,
        lesson.label,
        lesson.recipe,
        generator=generator,
        transform=lesson.transform,
        step=_step_of(recorded, lesson, variant, passes, watch),
        optimizer_of=optimizer_of(recorded.network),
        out=out,
        name=name,
    )


def _step_of(
    recorded: Recorded,
    lesson: Lesson,
    variant: Variant,
    passes: Callable[[], Sequence[tuple[int, Mapping[int, int]]]],
    watch: bool,
) -> Step:
    network, highest = recorded.network, recorded.network.widths[0]

    def step(model: nn.Module, picture: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        teacher = None
        if lesson.teacher is not None:
            with evaluating(lesson.teacher):
                teacher = lesson.teacher(picture)
        rate = float(optimizer.param_groups[0]["lr"])
        drawn, share = passes(), len(picture) / len(lesson.image)
        losses, hits = picture.new_zeros(()), picture.new_zeros(())
        before = torch.zeros(len(network.layers), device=picture.device)
        optimizer.zero_grad(set_to_none=True)
        for column, (base, bits) in enumerate(drawn):
            network.switch(bits)
            logit = model(picture)
            loss = _loss(logit, target, teacher, lesson)
            if lesson.self_taught and column == 0:
                teacher = logit.detach()
            loss.backward()  # type: ignore[no-untyped-call]
            gradients = torch.stack(
                [layer.weight_scale(layer.bits or highest).gradient for layer in network.layers.values()]
            )
            own = gradients - before
            pace = scale_rate(variant.alrs, rate, own, width_factor(highest, base), lesson.clip)
            recorded.note(column, loss.detach(), share, pace, own.abs())
            if variant.update == "each":
                for group, layer in zip(optimizer.param_groups[1:], network.layers.values(), strict=True):
                    # The pace of a pass, with the factor of the layer's own width where widths are mixed.
                    group["lr"] = pace * _relative_factor(variant, highest, base, layer.bits or highest)
                _advance(network, optimizer)
            elif variant.rule != "direct":
                before = gradients
            losses, hits = losses + loss.detach(), hits + (logit.detach().argmax(1) == target).sum()
        if variant.update == "accumulated":
            _advance(network, optimizer)
        recorded.done += 1
        if watch and int(recorded.done) % recorded.steps == 0:
            _watch(recorded, lesson)
        return torch.stack([losses * len(picture), hits.to(losses)]) / len(drawn)

    return step


def _relative_factor(variant: Variant, highest: int, base: int, bits: int) -> float:
    return 1.0 if variant.alrs == "off" else width_factor(highest, bits) / width_factor(highest, base)


def _advance(network: Switchable, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    network.keep_scales_positive()


def _loss(logit: Tensor, target: Tensor, teacher: Tensor | None, lesson: Lesson) -> Tensor:
    if teacher is None:
        return F.cross_entropy(logit, target)
    return distillation_loss(logit, teacher, target, lesson.distillation, 1.0)


def _watch(recorded: Recorded, lesson: Lesson) -> None:
    """Accuracy of every width on the watched images at the end of an epoch. Nothing is decided by it."""
    epoch = int(recorded.done) // recorded.steps - 1
    for column, bits in enumerate(recorded.network.widths):
        recorded.network.switch(bits)
        logit = predict_all(recorded.network, lesson.watched, device=device_of(recorded), keep_on="cpu")[0]
        recorded.accuracy[epoch, column] = float((logit.argmax(1) == lesson.watched_label).double().mean())
