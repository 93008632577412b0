"""A quantised weight as hardware keeps it: integers and their scales, for one range per layer, channel or group.

A weight is cut into rows that share a range: the whole layer, an output channel, or a run of `group_size` weights of one
output channel (its inputs, then kernel rows and columns, in order). A row is rounded by the fake quantiser of
`quantizer`, so integers times scales are bit for bit what a model with fake quantisation computes with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from workbench_quantization.quantizer import FULL_PRECISION, channel_axis, weight_levels, weight_scale

Sharing = Literal["layer", "channel", "group"]
SHARINGS: tuple[Sharing, ...] = ("layer", "channel", "group")

SCALE_BITS = 32
"""Size of a stored scale."""


@dataclass(frozen=True)
class IntegerWeight:
    """Integers of the weight's shape (int16) and one float32 scale per row. Both are empty from 32 bits on."""

    levels: Tensor
    scale: Tensor


def to_rows(weight: Tensor, sharing: Sharing, axis: int, group_size: int) -> Tensor:
    """(row, entry): the weights that share a range in one row; groups that are not full are filled up with zeros."""
    if sharing == "layer":
        return weight.reshape(1, -1)
    rows = weight.movedim(axis, 0).flatten(1)
    if sharing == "channel":
        return rows
    missing = -rows.shape[1] % group_size
    return nn.functional.pad(rows, (0, missing)).reshape(-1, group_size)


def from_rows(rows: Tensor, shape: Sequence[int], sharing: Sharing, axis: int) -> Tensor:
    """The inverse of `to_rows`: a tensor of the weight's shape."""
    if sharing == "layer":
        return rows.reshape(tuple(shape))
    others = [size for dim, size in enumerate(shape) if dim != axis]
    entries = int(torch.Size(others).numel())
    whole = rows.reshape(shape[axis], -1)[:, :entries]
    return whole.reshape(shape[axis], *others).movedim(0, axis)


def integer_weight(layer: nn.Module, bits: int, sharing: Sharing, group_size: int) -> IntegerWeight:
    """round(w / s) and s = max|w| / (2^(b-1) - 1) of every row of the layer's weight."""
    weight, axis = layer.get_parameter("weight").detach(), channel_axis(layer)
    if bits >= FULL_PRECISION:
        return IntegerWeight(weight.new_zeros(0, dtype=torch.int16), weight.new_zeros(0))
    rows = to_rows(weight, sharing, axis, group_size)
    scale = weight_scale(rows, bits)
    levels = from_rows(weight_levels(rows, scale, bits), weight.shape, sharing, axis)
    return IntegerWeight(levels.to(torch.int16), scale.flatten())


def restore_weight(stored: IntegerWeight, layer: nn.Module, sharing: Sharing, group_size: int) -> Tensor:
    """Integers times scales, in the weight's shape and dtype; the layer's own weight where nothing was quantised."""
    weight, axis = layer.get_parameter("weight").detach(), channel_axis(layer)
    if not stored.levels.numel():
        return weight.clone()
    rows = to_rows(stored.levels.to(weight.dtype), sharing, axis, group_size) * stored.scale[:, None]
    return from_rows(rows, weight.shape, sharing, axis).contiguous()


def scale_count(shape: Sequence[int], sharing: Sharing, axis: int, group_size: int) -> int:
    """How many ranges a weight of this shape has."""
    if sharing == "layer":
        return 1
    channels = shape[axis]
    return channels if sharing == "channel" else channels * -(-torch.Size(shape).numel() // channels // group_size)
