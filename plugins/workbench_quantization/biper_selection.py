"""Which layers become binary, and why the others stay in full precision."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from workbench import InputError
from workbench.toolkit import evaluating

from workbench_quantization.biper_layers import LAYERS, with_hardtanh
from workbench_quantization.layers import Block, find_blocks

PROBED = 32
"""Images that show whether a layer's inputs have both signs."""


@dataclass(frozen=True)
class Selection:
    """Layers to binarise, in order of execution, and per weight that stays as it is the reason."""

    blocks: tuple[Block, ...]
    reasons: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers to binarise."""
        return tuple(block.name for block in self.blocks)


def select_layers(
    model: nn.Module, image: Tensor, *, keep: Sequence[str] = (), binary_inputs: bool = True
) -> Selection:
    """All convolutions and linear layers but the first and the last, shortcuts that reduce the resolution, and misfits.

    Args:
        model: in full precision; it is not changed.
        image: a few samples on the model's device, in its precision.
        keep: names of further layers that stay in full precision.
        binary_inputs: leave out layers whose inputs are never negative, as their signs would say nothing.

    Raises:
        InputError: `keep` names a layer that the model does not have.
    """
    blocks, reasons = find_blocks(model, image[:1])
    names = [block.name for block in blocks]
    if unknown := sorted(set(keep) - set(names)):
        raise InputError("keep", expected=f"layers among {', '.join(names)}", got=", ".join(unknown))
    chosen = []
    for place, block in enumerate(blocks):
        reason = _reason(block.layers[0], place, len(blocks))
        if reason is None and block.name in keep:
            reason = "kept on request"
        if reason is None:
            chosen.append(block)
        else:
            reasons[f"{block.name}.weight"] = reason
    if binary_inputs:
        positive = _never_negative(model, [block.name for block in chosen], image)
        for name in positive:
            reasons[f"{name}.weight"] = (
                "its inputs are never negative, so their signs say nothing (behind a rectifier that is no nn.ReLU?)"
            )
        chosen = [block for block in chosen if block.name not in positive]
    return Selection(tuple(chosen), reasons)


def _reason(layer: nn.Module, place: int, count: int) -> str | None:
    if place == 0:
        return "the first layer: it sees the picture"
    if place == count - 1:
        return "the last layer: it makes the logits"
    kind = next((kind for kind in LAYERS if isinstance(layer, kind)), None)
    if kind is None:
        return f"{type(layer).__name__}, which has no binary form here"
    if type(layer).forward is not kind.forward or type(layer).__name__ != kind.__name__:
        return f"{type(layer).__name__}, a {kind.__name__} with a computation of its own"
    strides = getattr(layer, "stride", (1,))
    if max(strides) > 1 and max(layer.kernel_size) == 1:  # type: ignore[arg-type]
        return "a shortcut that reduces the resolution"
    return None


def _never_negative(model: nn.Module, names: Sequence[str], image: Tensor) -> set[str]:
    """Layers whose input has no negative entry once rectifiers are replaced; the model is left as it was."""
    probe = copy.deepcopy(model)
    with_hardtanh(probe)
    lowest: dict[str, float] = {}

    def noting(name: str):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            lowest[name] = min(lowest.get(name, 0.0), float(inputs[0].amin()))

        return hook

    handles = [probe.get_submodule(name).register_forward_pre_hook(noting(name)) for name in names]
    try:
        # In train mode batch norms centre what they see, as they will while the binary network trains.
        with evaluating(probe), torch.random.fork_rng(devices=[]):
            for module in probe.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            probe(image[:PROBED])
    finally:
        for handle in handles:
            handle.remove()
    return {name for name in names if lowest.get(name, 0.0) >= 0}
