"""What of a model can be quantised: its convolutions and linear layers, in order of execution, grouped into blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from workbench import InputError
from workbench.toolkit import count_operations, evaluating

from workbench_quantization.quantizer import is_transposed_linear

QUANTISABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


BLOCK_SEPARATOR = " + "
"""Between the names of the layers of one block, in the name of the block."""


def is_quantisable(module: nn.Module | None) -> bool:
    """Whether a module is a convolution or a linear layer, also in the form GPT-2 has it in transformers."""
    return isinstance(module, QUANTISABLE) or (module is not None and is_transposed_linear(module))


@dataclass(frozen=True)
class Block:
    """One or several layers that are measured together and get one width.

    `first` and `last` are the places of its earliest and latest layer in the order of execution.
    """

    name: str
    layer_names: tuple[str, ...]
    layers: tuple[nn.Module, ...]
    first: int = 0
    last: int = 0

    @property
    def weights(self) -> list[Tensor]:
        """The layers' weights; biases are never quantised."""
        return [layer.get_parameter("weight") for layer in self.layers]

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self.weights)

    @property
    def shape(self) -> str:
        """Shapes of the weights, as a person writes them."""
        return " + ".join("x".join(map(str, weight.shape)) for weight in self.weights)


def find_blocks(
    model: nn.Module, image: Tensor, groups: Sequence[Sequence[str]] = ()
) -> tuple[list[Block], dict[str, str]]:
    """Every convolution and linear layer that the model runs, in order of execution, and what had to be left out.

    Args:
        model: any model; it is run once on `image`.
        image: (1, channel, y, x), or whatever one sample of the model's input is.
        groups: names of layers that form one block; all others are blocks of their own.

    Returns:
        The blocks, and per weight (a parameter of two or more dims) that stays as it is the reason why.

    Raises:
        InputError: a group names a layer that cannot be quantised, or names one twice.
    """
    modules = dict(model.named_modules())
    called = _call_order(model, image)
    layers: dict[str, nn.Module] = {}
    reasons: dict[str, str] = {}
    users = _users_of_parameters(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        if parameter.ndim < 2:
            continue
        module = modules.get(owner)
        if module is None or not is_quantisable(module) or leaf != "weight":
            parametrized = owner.endswith("parametrizations.weight")
            kind = type(modules.get(owner, model)).__name__
            reasons[name] = (
                "its layer computes it by a parametrization"
                if parametrized
                else f"a parameter of {kind}, which is neither a convolution nor a linear layer"
            )
        elif not parameter.is_floating_point():
            reasons[name] = f"of dtype {parameter.dtype}"
        elif len(users[id(parameter)]) > 1:
            reasons[name] = "shared by " + " and ".join(users[id(parameter)])
        elif owner not in called:
            reasons[name] = "its layer is not called in the forward pass"
        elif parametrize.is_parametrized(module):
            reasons[name] = "its layer has parametrizations"
        else:
            layers[owner] = module
    ordered = sorted(layers, key=called.__getitem__)
    return _group(ordered, layers, groups), reasons


def multiply_accumulates(model: nn.Module, blocks: Sequence[Block], input_shape: Sequence[int]) -> np.ndarray:
    """MACs of each block for one sample: (block,) int64."""
    macs = {count.name: count.macs for count in count_operations(model, input_shape)}
    return np.array([sum(macs.get(name, 0) for name in block.layer_names) for block in blocks], dtype=np.int64)


def _call_order(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Position at which each quantisable layer is first called."""
    order: dict[str, int] = {}

    def noting(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object) -> None:
            order.setdefault(name, len(order))

        return hook

    handles = [
        module.register_forward_pre_hook(noting(name))
        for name, module in model.named_modules()
        if is_quantisable(module)
    ]
    # The fused encoder kernels of torch bypass the layers, and with them every hook.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model):
            model(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
    return order


def _users_of_parameters(model: nn.Module) -> dict[int, list[str]]:
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    return users


def _group(ordered: Sequence[str], layers: dict[str, nn.Module], groups: Sequence[Sequence[str]]) -> list[Block]:
    group_of: dict[str, int] = {}
    for index, group in enumerate(groups):
        for name in group:
            if name not in layers or name in group_of:
                raise InputError(
                    "blocks",
                    expected="names of quantisable layers, each at most once",
                    got=f"{name!r}" + (" twice" if name in group_of else ""),
                    hint=f"Quantisable are {', '.join(ordered)}.",
                )
            group_of[name] = index
    blocks: list[Block] = []
    seen: set[int] = set()
    for name in ordered:
        index = group_of.get(name, -1)
        if index in seen:
            continue
        if index >= 0:
            seen.add(index)
        members = [other for other in ordered if other == name or (index >= 0 and group_of.get(other) == index)]
        blocks.append(
            Block(
                BLOCK_SEPARATOR.join(members),
                tuple(members),
                tuple(layers[member] for member in members),
                ordered.index(members[0]),
                ordered.index(members[-1]),
            )
        )
    return blocks
