"""A quantised run as a model of torchao, whose linear layers hold the run's own integers, scales and zero-points.

    exported = torchao_model(run)
    torch.export.export(exported.model, (image,))

torchao's `quantize_` would choose scales of its own and round a second time. torchao has linear layers only: all others, and
those that its tensors cannot hold, keep the run's rounded weights as plain numbers and are listed with the reason. Inputs of
layers stay in full precision, as in `run.model()`.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from workbench import InputError, MissingDependencyError

from workbench_quantization.export_binary import is_binary
from workbench_quantization.stored_layers import QuantisedRun, StoredLayer, model_at, stored_layers

WIDEST = 8
"""torchao keeps an integer in a byte."""


@dataclass(frozen=True)
class TorchaoModel:
    """What `torchao_model` made.

    Attributes:
        model: on the CPU in eval mode; its logits are those of `run.model()`.
        bits: width of each layer whose weight is a tensor of torchao.
        kept: why each other quantised layer keeps its rounded weight as plain numbers.
    """

    model: nn.Module
    bits: dict[str, int]
    kept: dict[str, str]


def torchao_model(run: QuantisedRun, width: int | None = None) -> TorchaoModel:
    """The model of a run with tensors of torchao in its linear layers (weights only).

    Args:
        run: of any method of this family that stored integers (not `biper`, whose bits have no zero).
        width: of a model that switches; default: the widths in `bits`.

    Raises:
        InputError: the run stored no integers, its model does not switch to this width, or it has no quantised linear layer.
        MissingDependencyError: torchao is not installed.
    """
    if is_binary(run):
        raise InputError(
            "run",
            expected="a run that stored integers",
            got=f"run {run.id}, whose weights are -1 and +1",
            hint="`run.model()` computes with them packed, `export_model` writes them as a file.",
        )
    tensors = _tensors()
    model = model_at(run, width)
    layers = stored_layers(run, model, width)
    bits: dict[str, int] = {}
    kept: dict[str, str] = {}
    for layer in layers:
        module = model.get_submodule(layer.name)
        reason = _reason(layer, module)
        if reason:
            kept[layer.name] = reason
            continue
        held = _held(tensors, layer, module.get_parameter("weight"))
        module.weight = nn.Parameter(held, requires_grad=False)
        bits[layer.name] = layer.bits
    if not bits:
        raise InputError(
            "run",
            expected="at least one quantised linear layer, the only kind that torchao has",
            got="; ".join(f"{name}: {why}" for name, why in kept.items()) or f"run {run.id} without quantised layers",
            hint="`export_model` writes convolutions too, as ONNX or safetensors.",
        )
    return TorchaoModel(model, bits, kept)


def _reason(layer: StoredLayer, module: nn.Module) -> str:
    """Why torchao cannot hold this layer's weight; empty where it can."""
    if type(module) is not nn.Linear:
        return f"{type(module).__name__}, torchao has linear layers only"
    if layer.bits > WIDEST:
        return f"{layer.bits} bits, torchao's integers have {WIDEST} at most"
    if layer.sharing == "group" and layer.levels.shape[1] % layer.group_size:
        return f"{layer.levels.shape[1]} inputs are no multiple of the group of {layer.group_size}"
    return ""


def _held(tensors: Any, layer: StoredLayer, weight: Tensor) -> Tensor:
    """The layer's integers as torchao's tensor. Those from 0 are shifted to the signed range, and their zero-points with them."""
    outputs, inputs = layer.levels.shape
    block = {"layer": (outputs, inputs), "channel": (1, inputs), "group": (1, layer.group_size)}[layer.sharing]
    shape = (outputs // block[0], inputs // block[1])
    shift = 0 if layer.zero is None else 2 ** (layer.bits - 1)
    zero = torch.zeros(shape, dtype=torch.int8) if layer.zero is None else (layer.zero - shift).to(torch.int8)
    held: Tensor = tensors.IntxUnpackedToInt8Tensor(
        qdata=(layer.levels - shift).to(torch.int8),
        scale=layer.scale.reshape(shape).to(weight.dtype),
        zero_point=zero.reshape(shape),
        target_dtype=getattr(torch, f"int{layer.bits}"),
        block_size=block,
        dtype=weight.dtype,
        activation_quantization=None,
    )
    return held


def _tensors() -> Any:
    """The module `torchao.quantization`, without what it logs when it is imported."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise MissingDependencyError(
            f"A model of torchao needs {error.name or 'torchao'}: pip install 'vision-workbench[torchao]'."
        ) from error
    finally:
        logging.disable(level)
