"""Batch norms folded into the layers before them, in place: the model keeps its structure and computes the same.

A folded norm has running mean 0, running variance 1 - eps and weight 1, so that in eval mode it only adds its bias. The
model can still be stored and built again by its factory, and the layer's weight is what hardware would multiply with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from workbench import InputError
from workbench.toolkit import evaluating

from workbench_quantization.layers import Block
from workbench_quantization.quantizer import channel_axis

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

TOLERANCE = 1e-3
"""How far folding may move a logit, relative to the largest: more means the layer's output is used elsewhere too."""


@dataclass
class Unit:
    """A layer with the norm that was folded into it, if any. `mean` and `std` are those of its output, per channel.

    `rectified` says that a ReLU takes the output as it is.
    """

    name: str
    layer: nn.Module
    norm: Norm | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    rectified: bool = False

    @property
    def axis(self) -> int:
        """Output channels in the weight."""
        return channel_axis(self.layer)

    @property
    def output(self) -> nn.Module:
        """The module that returns what the unit returns."""
        return self.layer if self.norm is None else self.norm

    @property
    def bias(self) -> nn.Parameter | None:
        """What is added to each output channel."""
        bias = self.output.bias
        return bias if isinstance(bias, nn.Parameter) else None


class _Rectified(TorchFunctionMode):
    """Notes the tensors that a ReLU takes, whether it is called as a module or as a function."""

    RECTIFIERS = (torch.relu, torch.relu_, torch.nn.functional.relu, Tensor.relu, Tensor.relu_)

    def __init__(self) -> None:
        super().__init__()
        self.taken: set[tuple[int, int]] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self.RECTIFIERS and args:
            self.taken.add(_moment(args[0]))
        return func(*args, **(kwargs or {}))


def find_units(model: nn.Module, blocks: Sequence[Block], image: Tensor) -> list[Unit]:
    """One unit per block (of one layer each), with the norm that takes its output and whether a ReLU does."""
    units = [Unit(block.name, block.layers[0]) for block in blocks]
    kept: dict[tuple[int, int], Unit] = {}
    returned: dict[str, tuple[int, int]] = {}  # in the end that of the norm, where there is one
    alive: list[Tensor] = []  # so that no two tensors of the pass share an id

    def note(unit: Unit) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            kept[_moment(output)] = unit
            returned[unit.name] = _moment(output)
            alive.append(output)

        return hook

    def pair(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        unit = kept.get(_moment(inputs[0]))
        if unit is not None and unit.norm is None and _foldable(unit.layer, module):
            unit.norm = module  # type: ignore[assignment]
            returned[unit.name] = _moment(output)
            alive.append(output)

    handles = [unit.layer.register_forward_hook(note(unit)) for unit in units]
    handles += [m.register_forward_hook(pair) for m in model.modules() if isinstance(m, Norm)]
    watch = _Rectified()
    try:
        with evaluating(model), watch:
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    for unit in units:
        unit.rectified = returned.get(unit.name) in watch.taken
    return units


def _moment(value: Tensor) -> tuple[int, int]:
    """A tensor and how often it was changed in place: `out += shortcut` makes another value of the same tensor."""
    return id(value), value._version


def _foldable(layer: nn.Module, norm: nn.Module) -> bool:
    # The weight of a transposed convolution in groups has no dim that counts its output channels.
    grouped = channel_axis(layer) == 1 and layer.groups != 1
    return isinstance(norm, Norm) and norm.affine and norm.running_mean is not None and not grouped


def fold(model: nn.Module, units: Sequence[Unit], image: Tensor) -> None:
    """Fold every unit's norm into its layer, in place.

    Raises:
        InputError: the model computes something else afterwards, because a layer's output is used without its norm.
    """
    with evaluating(model):
        before = model(image)
        for unit in units:
            if unit.norm is not None:
                _fold_one(unit, unit.norm)
        after = model(image)
    gap = float((after - before).abs().max() / before.abs().max().clamp_min(1e-6))
    if not gap <= TOLERANCE:
        raise InputError(
            "model",
            expected="a model whose batch norms can be folded into the layers before them",
            got=f"one whose logits move by {gap:.2g} of the largest when they are",
            hint="A layer's output, or a norm, is used more than once.",
        )


def _fold_one(unit: Unit, norm: Norm) -> None:
    unit.mean, unit.std = norm.bias.detach().clone(), norm.weight.detach().abs().clone()
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    factor = norm.weight / torch.sqrt(variance + norm.eps)
    own = torch.zeros_like(mean)
    if unit.layer.bias is not None:  # one bias per unit is enough: the norm's
        own = unit.layer.get_parameter("bias").detach().clone()
        unit.layer.get_parameter("bias").zero_()
    norm.bias.copy_(norm.bias + (own - mean) * factor)
    weight = unit.layer.get_parameter("weight")
    weight.copy_(weight * by_channel(unit, factor))
    mean.zero_()
    variance.fill_(1 - norm.eps)
    norm.weight.fill_(1)


def by_channel(unit: Unit, values: Tensor) -> Tensor:
    """Values of the output channels, shaped to broadcast against the layer's weight."""
    dims = unit.layer.get_parameter("weight").ndim
    return values.reshape([-1 if dim == unit.axis else 1 for dim in range(dims)])
