"""Quantisation-aware fine-tuning: all layers together, or HAWQ's multi-stage form, one block after the other.

Recipe of the HAWQ-V3 code: start from the full-precision model, freeze the batch-norm statistics, SGD with momentum,
straight-through gradients, optionally distil from the full-precision model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench.toolkit import Recipe, fit, predict_all

from workbench_quantization.quantizer import (
    Granularity,
    InputQuantisers,
    RangeRule,
    attach_weight_quantiser,
    bake_weight_quantiser,
)


@dataclass(frozen=True)
class Plan:
    """What to quantise and how: per block its layers' names, width and width of its inputs; blocks in order of execution."""

    layers: Sequence[Sequence[str]]
    bits: Sequence[int]
    input_bits: Sequence[int]
    granularity: Granularity
    range_rule: RangeRule

    @property
    def names(self) -> list[str]:
        """All layers."""
        return [name for block in self.layers for name in block]

    @property
    def input_bits_by_layer(self) -> list[int]:
        """Width of every layer's input, in the order of `names`."""
        return [bits for block, bits in zip(self.layers, self.input_bits, strict=True) for _ in block]


class FrozenStatistics(nn.Module):
    """A model whose batch norms stay in eval mode while it trains, with the quantisers of its layers' inputs."""

    def __init__(self, model: nn.Module, inputs: InputQuantisers) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def train(self, mode: bool = True) -> FrozenStatistics:
        """Train mode for everything but batch normalisation."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """The model's logits."""
        logit: Tensor = self.model(image)
        return logit


@dataclass(frozen=True)
class Stage:
    """A stage is over: `done` of `total`; `network` holds the model with the blocks so far quantised."""

    done: int
    total: int
    network: FrozenStatistics


EpochHook = Callable[[int, int, Mapping[str, float]], None]
"""(finished epochs over all stages, all epochs, loss and accuracy of this epoch)."""


def finetune(
    model: nn.Module,
    plan: Plan,
    order: Sequence[int] | None,
    image: Tensor,
    label: Tensor,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    distillation: float = 0.0,
    temperature: float = 6.0,
    on_epoch: EpochHook | None = None,
    resume: Mapping[str, Any] | None = None,
) -> Iterator[Stage]:
    """Fine-tune a copy of `model`; yields after every stage, the last time with all of the plan quantised.

    Joint (`order` None): one stage in which every block trains through its quantiser. Sequential (HAWQ-V1): in stage k
    block order[k] trains through its quantiser, blocks of earlier stages are frozen at their quantised values, blocks of
    later stages and everything else train in full precision. Each stage takes `recipe.epochs`. Inputs are quantised all
    the time. Quantised values end up as the weights themselves.

    Args:
        model: full precision, in eval mode; not changed.
        plan: widths.
        order: blocks, first to last, or None.
        image: images to train on (and to find the first input ranges on).
        label: int64 (sample,).
        recipe: of one stage.
        generator: CPU generator of the batches.
        distillation: share of the loss that comes from the full-precision model's logits (V3 code: 0.95).
        temperature: of the distillation.
        on_epoch: called after every epoch.
        resume: `checkpoint_of` an earlier stage of the same fine-tuning.
    """
    teacher = _teacher_logits(model, image) if distillation > 0 else None
    student = copy.deepcopy(model)
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    layers = [student.get_submodule(name) for name in plan.names]
    inputs = InputQuantisers(layers, plan.range_rule)
    inputs.set_bits(plan.input_bits_by_layer)
    if any(bits < 32 for bits in plan.input_bits):
        with inputs.observing():
            predict_all(student, image, keep_on="cpu")
    network = FrozenStatistics(student, inputs)
    network.eval()
    stages = [list(range(len(plan.layers)))] if order is None else [[block] for block in order]
    done = 0
    if resume is not None:
        done = int(resume["stage"])
        network.load_state_dict({key: torch.as_tensor(value) for key, value in resume["network"].items()})
        generator.set_state(torch.as_tensor(resume["generator"], dtype=torch.uint8).cpu())
        for stage in stages[:done]:
            _freeze(student, [name for block in stage for name in plan.layers[block]])
    if done == len(stages):
        yield Stage(done, done, network)
    target, loss = _objective(label, teacher, distillation, temperature)
    for number, stage in enumerate(stages):
        if number < done:
            continue
        for block in stage:
            for name in plan.layers[block]:
                attach_weight_quantiser(student.get_submodule(name), plan.bits[block], plan.granularity)

        def epoch_over(epoch: int, _: nn.Module, row: Mapping[str, float], number: int = number) -> None:
            if on_epoch is not None:
                on_epoch(number * recipe.epochs + epoch, len(stages) * recipe.epochs, row)

        fit(network, image, target, recipe, generator=generator, loss=loss, on_epoch=epoch_over)
        for block in stage:
            for name in plan.layers[block]:
                bake_weight_quantiser(student.get_submodule(name))
        if order is not None:
            _freeze(student, plan.layers[stage[0]])
        yield Stage(number + 1, len(stages), network)


def checkpoint_of(stage: Stage, generator: torch.Generator) -> dict[str, Any]:
    """What `finetune(resume=...)` needs to go on after this stage."""
    return {
        "stage": stage.done,
        "network": {key: value.detach().cpu().clone() for key, value in stage.network.state_dict().items()},
        "generator": generator.get_state(),
    }


def distillation_loss(logit: Tensor, teacher: Tensor, label: Tensor, share: float, temperature: float) -> Tensor:
    """(1 - a) CE(logit, label) + a T^2 KL(softmax(teacher / T) || softmax(logit / T)), means over samples."""
    divergence = F.kl_div(
        F.log_softmax(logit / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - share) * F.cross_entropy(logit, label) + share * temperature**2 * divergence


def _objective(
    label: Tensor, teacher: Tensor | None, share: float, temperature: float
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor] | None]:
    """Target and loss for `fit`; with a teacher, label and logits travel in one tensor (sample, 1, 1 + class)."""
    if teacher is None:
        return label, None
    target = torch.cat([label[:, None].to(teacher), teacher], dim=1)[:, None]

    def loss(logit: Tensor, packed: Tensor) -> Tensor:
        return distillation_loss(logit, packed[:, 0, 1:], packed[:, 0, 0].long(), share, temperature)

    return target, loss


def _teacher_logits(model: nn.Module, image: Tensor) -> Tensor:
    return predict_all(model, image, keep_on=image.device)[0]


def _freeze(model: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        model.get_submodule(name).get_parameter("weight").requires_grad_(False)
