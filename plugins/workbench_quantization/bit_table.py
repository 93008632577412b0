"""A table of widths applied to a model: what it computes, what it costs, and how it is stored.

Every method that ends in one width per layer goes through here, so that all of them mean the same by a quantised model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn
from workbench import InputError, Out, Output
from workbench.toolkit import predict_all

from workbench_quantization.hawq_images import Images
from workbench_quantization.hawq_solutions import MEGABYTE, Costs
from workbench_quantization.integer_weights import (
    SCALE_BITS,
    Sharing,
    integer_weight,
    restore_weight,
    scale_count,
)
from workbench_quantization.layers import BLOCK_SEPARATOR, Block
from workbench_quantization.quantizer import FULL_PRECISION, InputQuantisers, channel_axis, weights_replaced

WIDEST = 16
"""Largest width below full precision: integers are stored in 16 bits."""

STORED = (
    Output("bits", ("layer",), "int8", "widths of the stored model", unit="bit"),
    Output("input_bits", ("layer",), "int8", "widths of the layers' inputs in it", unit="bit"),
    Output("integer_weight", ("weight",), "int16", "integers of the stored model, layer after layer"),
    Output("weight_start", ("layer",), "int64", "where a layer's integers start"),
    Output("scale", ("range",), "float32", "scales of the stored model, layer after layer"),
    Output("scale_start", ("layer",), "int64", "where a layer's scales start"),
    Output("logit", ("sample", "class"), "float32", "of the stored model on the report images"),
    Output("label", ("sample",), "int64", "labels of the report images"),
    Output("sample_index", ("sample",), "int64", "position of the report images in `test`, or in `data`"),
)
"""What `write_stored` writes."""


@dataclass
class Subject:
    """The model under study, what of it is quantised, and its costs. `inputs` has a quantiser for every layer of every block."""

    model: nn.Module
    blocks: list[Block]
    inputs: InputQuantisers
    costs: Costs
    group_size: int
    autocast: torch.dtype | None

    def rounded(self, bits: np.ndarray, sharing: Sharing) -> dict[nn.Module, Tensor]:
        """The weight of every layer after a round trip through its integers."""
        return {
            layer: restore_weight(
                integer_weight(layer, int(width), sharing, self.group_size), layer, sharing, self.group_size
            )
            for block, width in zip(self.blocks, bits, strict=True)
            for layer in block.layers
        }

    def logits(self, image: Any, out: Out) -> Tensor:
        """Logits (sample, class) on the CPU."""
        return predict_all(self.model, image, device=out.device, dtype=self.autocast, keep_on="cpu")[0].float()

    def quantised_logits(self, bits: np.ndarray, sharing: Sharing, image: Any, out: Out) -> Tensor:
        """The same with weights and inputs quantised; the model is left as it was."""
        widths = zip(self.costs.input_bits(bits).tolist(), self.blocks, strict=True)
        self.inputs.set_bits([width for width, block in widths for _ in block.layers])
        try:
            with weights_replaced(self.rounded(bits, sharing)):
                return self.logits(image, out)
        finally:
            self.inputs.set_bits([FULL_PRECISION] * sum(len(block.layers) for block in self.blocks))

    def scale_mb(self, bits: np.ndarray, sharing: Sharing) -> float:
        """Size of the scales in MB of 10^6 bytes."""
        counts = [
            scale_count(tuple(weight.shape), sharing, channel_axis(layer), self.group_size)
            for block, width in zip(self.blocks, bits, strict=True)
            for layer, weight in zip(block.layers, block.weights, strict=True)
            if width < FULL_PRECISION
        ]
        return sum(counts) * SCALE_BITS / 8 / MEGABYTE


def table_of_widths(given: xr.Dataset, names: Sequence[str]) -> np.ndarray:
    """(layer,) int64 in the order of `names`, from variable `bits`: by layer names, or by position where it has none.

    A label such as "conv1 + conv2" stands for several layers of one width, as in HAWQ's blocks.

    Raises:
        InputError: layers are missing, unknown or named twice, or a width is not 2 to 16, or 32.
    """
    bits = given["bits"]
    if "layer" not in bits.coords:
        if bits.sizes["layer"] != len(names):
            raise InputError(
                "bits", expected=f"one width for each of {len(names)} layers", got=f"{bits.sizes['layer']} widths"
            )
        found = dict(zip(names, bits.values.tolist(), strict=True))
    else:
        pairs = [
            (name, int(width))
            for label, width in zip(bits["layer"].values.tolist(), bits.values.tolist(), strict=True)
            for name in str(label).split(BLOCK_SEPARATOR)
        ]
        found = dict(pairs)
        wrong = sorted(set(found) ^ set(names))
        if wrong or len(pairs) != len(found):
            raise InputError(
                "bits",
                expected=f"a width for each of the layers {', '.join(names)}",
                got=f"a table that disagrees about {', '.join(wrong)}" if wrong else "a layer twice",
                hint="Take a table that was made for this model.",
            )
    for name in names:
        if not 2 <= found[name] <= WIDEST and found[name] < FULL_PRECISION:
            raise InputError("bits", expected=f"widths from 2 to {WIDEST}, or 32", got=f"{found[name]} for {name!r}")
    return np.array([min(int(found[name]), FULL_PRECISION) for name in names], dtype=np.int64)


def rounding_errors(subject: Subject, bits: np.ndarray, sharing: Sharing) -> np.ndarray:
    """||Q_b(W_i) - W_i||^2 of every layer: (layer,) float64."""
    rounded = subject.rounded(bits, sharing)
    return np.array(
        [
            sum(
                float((rounded[layer].double() - weight.detach().double()).square().sum())
                for layer, weight in zip(block.layers, block.weights, strict=True)
            )
            for block in subject.blocks
        ]
    )


def score(logit: Tensor, full: Tensor, label: Tensor) -> dict[str, float]:
    """Accuracy, negative log-likelihood, and how often the prediction is that of the full-precision model."""
    return {
        "accuracy": float((logit.argmax(1) == label).double().mean()),
        "negative_log_likelihood": float(F.cross_entropy(logit.double(), label)),
        "agreement": float((logit.argmax(1) == full.argmax(1)).double().mean()),
    }


def cost_of(subject: Subject, bits: np.ndarray, sharing: Sharing) -> dict[str, float]:
    """Size of weights and scales in MB of 10^6 bytes, and bits per weight."""
    size = subject.costs.size_mb(bits) + subject.scale_mb(bits, sharing)
    return {"size_mb": size, "average_bits": size * 8 * MEGABYTE / float(subject.costs.sizes.sum())}


def write_stored(subject: Subject, bits: np.ndarray, sharing: Sharing, held_out: Images, out: Out) -> Tensor:
    """Integers and scales of one solution, its logits, and the model that computes with them. Returns the logits.

    A block of several layers has their integers, and their scales, one layer after the other.
    """
    out.write("bits", bits.astype(np.int8))
    out.write("input_bits", subject.costs.input_bits(bits).astype(np.int8))
    logit = subject.quantised_logits(bits, sharing, held_out.image, out)
    stored = [
        [integer_weight(layer, int(width), sharing, subject.group_size) for layer in block.layers]
        for block, width in zip(subject.blocks, bits, strict=True)
    ]
    levels = [torch.cat([part.levels.flatten() for part in block]) for block in stored]
    scales = [torch.cat([part.scale for part in block]).float() for block in stored]
    for name, start, parts in (("integer_weight", "weight_start", levels), ("scale", "scale_start", scales)):
        out.write(name, torch.cat(parts))
        out.write(start, np.cumsum([0, *(part.numel() for part in parts)])[:-1].astype(np.int64))
    weights = subject.rounded(bits, sharing)
    with torch.no_grad():
        for layer, values in weights.items():
            layer.get_parameter("weight").copy_(values)
    out.model(subject.model)
    out.write("logit", logit)
    out.write("label", held_out.label)
    out.write("sample_index", held_out.index)
    return logit
