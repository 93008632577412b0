"""Weights on an asymmetric grid: integers from 0, with one scale and one zero-point per layer, channel or group.

    s = (max - min) / (2^b - 1),    z = round(-min / s),    Q_b(w) = (clamp(round(w / s) + z, 0, 2^b - 1) - z) * s

with 0 between min and max, so that it is a level. All 2^b levels are used, which matters at 2 bits: a symmetric grid has three
there. The formulas are those of `quantizer.affine_quantise`, kept here as the integers that are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from workbench import InputError, Out

from workbench_quantization.integer_weights import SCALE_BITS, Sharing, from_rows, scale_count, to_rows
from workbench_quantization.quantizer import FULL_PRECISION, channel_axis

WIDEST = 8
"""Largest width below full precision: integers are stored in a byte."""
SMALLEST_SPAN = 1e-6
"""Range of a row of equal weights, as in `affine_quantise`."""


@dataclass(frozen=True)
class AffineWeight:
    """Integers of the weight's shape (uint8), and per row a float32 scale and the integer that stands for 0 (uint8)."""

    levels: Tensor
    scale: Tensor
    zero: Tensor


def affine_grid(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero-point of every row, (row, 1) each, from its extremes.

    Args:
        rows: (row, entry), any float dtype.
        bits: width, 2 to 8.
    """
    low, high = rows.amin(1, keepdim=True).clamp_max(0), rows.amax(1, keepdim=True).clamp_min(0)
    top = 2**bits - 1
    scale = (high - low).clamp_min(SMALLEST_SPAN) / top
    return scale, (-low / scale).round().clamp(0, top)


def affine_levels(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """clamp(round(w / s + z), 0, 2^b - 1), in the dtype of the values."""
    return (values / scale + zero).round().clamp(0, 2**bits - 1)


@torch.no_grad()
def round_affine(layer: nn.Module, bits: int, sharing: Sharing, group_size: int) -> AffineWeight:
    """The layer's weight, each entry on the nearest level of its row.

    Args:
        layer: with a `weight`.
        bits: 2 to 8.
        sharing: what shares a scale: layer, output channel, or `group_size` consecutive weights of one.
        group_size: see `integer_weights.to_rows`.
    """
    weight, axis = layer.get_parameter("weight").detach(), channel_axis(layer)
    rows = to_rows(weight.float(), sharing, axis, group_size)
    scale, zero = affine_grid(rows, bits)
    levels = from_rows(affine_levels(rows, scale, zero, bits), weight.shape, sharing, axis)
    return AffineWeight(levels.to(torch.uint8), scale.flatten(), zero.flatten().to(torch.uint8))


@torch.no_grad()
def restore_affine(stored: AffineWeight, layer: nn.Module, sharing: Sharing, group_size: int) -> Tensor:
    """(integer - zero) * scale, in the shape and dtype of the layer's weight."""
    weight, axis = layer.get_parameter("weight"), channel_axis(layer)
    rows = to_rows(stored.levels.float(), sharing, axis, group_size)
    rows = (rows - stored.zero.float()[:, None]) * stored.scale[:, None]
    return from_rows(rows, weight.shape, sharing, axis).to(weight.dtype).contiguous()


def narrow_widths(bits: np.ndarray) -> np.ndarray:
    """The table itself, where every width is at most 8, or 32.

    Raises:
        InputError: a width in between, whose integers a byte does not hold.
    """
    if (wide := (bits > WIDEST) & (bits < FULL_PRECISION)).any():
        raise InputError("bits", expected=f"widths from 2 to {WIDEST}, or 32", got=str(int(bits[wide][0])))
    return bits


def affine_size(shape: Sequence[int], bits: int, sharing: Sharing, axis: int, group_size: int) -> int:
    """Bits that a stored weight takes: integers, 32-bit scales and zero-points of the width itself.

    A layer in full precision takes 32 bits a weight.
    """
    count = torch.Size(shape).numel()
    if bits >= FULL_PRECISION:
        return count * FULL_PRECISION
    return count * bits + scale_count(shape, sharing, axis, group_size) * (SCALE_BITS + bits)


def write_affine(weights: Sequence[AffineWeight | None], out: Out) -> None:
    """Integers, scales and zero-points of a model's layers, one after the other (None: in full precision), and their places.

    Written are `integer_weight` and `weight_start`, `scale`, `zero` and `range_start`, as `stored_layers` reads them.
    """
    empty = AffineWeight(torch.zeros(0, dtype=torch.uint8), torch.zeros(0), torch.zeros(0, dtype=torch.uint8))
    found = [empty if weight is None else weight for weight in weights]
    for start, columns in (
        ("weight_start", {"integer_weight": [weight.levels.flatten().cpu() for weight in found]}),
        ("range_start", {"scale": [w.scale.cpu() for w in found], "zero": [w.zero.cpu() for w in found]}),
    ):
        for name, values in columns.items():
            out.write(name, torch.cat(values))
        out.write(start, np.cumsum([0, *(len(value) for value in values)])[:-1].astype(np.int64))
