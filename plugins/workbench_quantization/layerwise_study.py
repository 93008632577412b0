"""What a layer-wise run works on: the model with its blocks and matrices, two texts, and how widths are given to matrices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from workbench import InputError, Inputs, Out

from workbench_quantization.affine_weights import AffineWeight, affine_size, restore_affine, round_affine
from workbench_quantization.gptq_solver import Settings, solve_in_turn
from workbench_quantization.language_models import (
    Prediction,
    ResidualBlock,
    Text,
    check_language_model,
    find_residual_blocks,
    forget_between_calls,
    next_token_logits,
    predict_text,
    split_text,
)
from workbench_quantization.layers import Block, find_blocks
from workbench_quantization.quantizer import FULL_PRECISION, channel_axis

if TYPE_CHECKING:
    from workbench_quantization.layerwise import Params


@dataclass
class Study:
    """The model under study, its blocks and their matrices, and the two texts."""

    model: nn.Module
    residual: list[ResidualBlock]
    layers: list[Block]
    owner: np.ndarray
    """(layer,) position of the residual block that has the layer."""
    shown: Text
    held_out: Text
    params: Params
    out: Out
    autocast: torch.dtype | None
    originals: dict[nn.Module, Tensor] = field(default_factory=dict)
    now: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(layer,) widths the model has at present."""
    damping: dict[nn.Module, float] = field(default_factory=dict)
    """By matrix that GPTQ solved for the present widths: what its H was damped with."""

    @property
    def count(self) -> int:
        """Number of residual blocks."""
        return len(self.residual)

    @property
    def settings(self) -> Settings:
        """How matrices are solved."""
        return Settings(self.params.sharing, self.params.group_size, self.params.damping, self.params.by_activation)

    def spread(self, block_bits: np.ndarray) -> np.ndarray:
        """Widths of layers from widths of blocks."""
        return np.asarray(block_bits)[self.owner]

    @torch.no_grad()
    def install(self, bits: np.ndarray) -> dict[nn.Module, AffineWeight]:
        """Give every matrix its width; integers are handed back for those that were computed now.

        Rounding to nearest touches only what changes. GPTQ starts anew, as every block sees those before it.
        """
        modules = [layer.layers[0] for layer in self.layers]
        fresh = self.params.backend == "gptq"
        stored: dict[nn.Module, AffineWeight] = {}
        for module, width, before in zip(modules, bits, self.now, strict=True):
            if fresh or width >= FULL_PRECISION:
                module.get_parameter("weight").copy_(self.originals[module])
            elif width != before:
                stored[module] = self.rounded(module, int(width))
        if fresh:
            self.damping.clear()  # a matrix that has its full precision back was damped with nothing
            places = [np.flatnonzero(self.owner == block) for block in range(self.count)]
            stored = solve_in_turn(
                self.model,
                [[modules[place] for place in group] for group in places],
                [[int(bits[place]) for place in group] for group in places],
                self.shown.batches(self.params.batch),
                next_token_logits,
                self.settings,
                lambda layer, _curvature, _weight, damping: self.damping.update({layer: damping}),
            )
        self.now = np.array(bits)
        return stored

    def rounded(self, module: nn.Module, width: int) -> AffineWeight:
        """Round the original weight to nearest and compute with it from now on."""
        module.get_parameter("weight").copy_(self.originals[module])
        weight = round_affine(module, width, self.params.sharing, self.params.group_size)
        module.get_parameter("weight").copy_(
            restore_affine(weight, module, self.params.sharing, self.params.group_size)
        )
        return weight

    def predict(self, text: Text) -> Prediction:
        """With the weights as they are."""
        return predict_text(self.model, text, self.params.batch, self.autocast)

    def sizes(self, bits: np.ndarray) -> np.ndarray:
        """(layer,) bits that each matrix takes with its scales."""
        return np.array([
            affine_size(tuple(layer.weights[0].shape), int(width), self.params.sharing, channel_axis(layer.layers[0]),
                        self.params.group_size)
            for layer, width in zip(self.layers, bits, strict=True)
        ], dtype=np.float64)  # fmt: skip

    @property
    def weights(self) -> np.ndarray:
        """(layer,) number of weights."""
        return np.array([layer.size for layer in self.layers], dtype=np.int64)


def prepare(inputs: Inputs, params: Params, out: Out) -> Study:
    """Texts, blocks and matrices, checked before any work."""
    model = inputs["model"]
    forget_between_calls(model)
    residual = find_residual_blocks(model, params.blocks)
    shown, held_out = split_text(
        inputs, out, calibration_tokens=params.calibration_tokens, report_fraction=params.report_fraction
    )
    check_language_model(model, shown, held_out)
    found, reasons = find_blocks(model, shown.token_id[:1])
    layers, owner = [], []
    for layer in found:
        inside = [place for place, block in enumerate(residual) if layer.name.startswith(f"{block.name}.")]
        if inside:
            layers.append(layer)
            owner.append(inside[0])
        else:
            reasons[f"{layer.name}.weight"] = "outside the residual blocks"
    missing = [block.name for place, block in enumerate(residual) if place not in owner]
    if missing:
        out.skip(f"no convolution or linear layer with a weight of its own in {', '.join(missing)}")
    if len(residual) < 2:
        out.skip("a model with one residual block has nothing to order")
    steps = len(residual) * (len(params.widths) - 1)
    if params.points is not None and params.points and params.points[-1] > steps:
        raise InputError("points", expected=f"at most {steps} steps", got=str(params.points[-1]))
    half = out.dtype if out.dtype in (torch.float16, torch.bfloat16) else None
    study = Study(model, residual, layers, np.array(owner), shown, held_out, params, out, half)
    study.originals = {layer.layers[0]: layer.weights[0].detach().clone() for layer in layers}
    study.now = np.full(len(layers), FULL_PRECISION)
    out.coordinate("layer", [layer.name for layer in layers])
    out.coordinate("block", [block.name for block in residual])
    out.write("parameter_count", study.weights)
    out.write("block_of_layer", study.owner.astype(np.int16))
    out.write("block_parameter_count", np.bincount(study.owner, weights=study.weights).astype(np.int64))
    out.write("sample_index", held_out.index)
    if reasons:
        out.coordinate("parameter", list(reasons))
        out.write("unquantised_reason", list(reasons.values()))
    return study
