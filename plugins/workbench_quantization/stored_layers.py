"""Quantised layers as a run stored them: integers, scales, zero-points and the ranges of inputs, ready to leave the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from workbench import InputError

from workbench_quantization.integer_weights import Sharing, from_rows, scale_count, to_rows
from workbench_quantization.layers import BLOCK_SEPARATOR
from workbench_quantization.nested_rounding import Rounding, input_range, switched_levels
from workbench_quantization.quantizer import FULL_PRECISION, channel_axis

NEEDED = ("bits", "input_bits", "integer_weight", "weight_start", "scale")


class QuantisedRun(Protocol):
    """What of a `workbench.Run` is read here."""

    id: str
    record: object

    def __getitem__(self, name: str) -> xr.DataArray: ...
    def __contains__(self, name: object) -> bool: ...
    def model(self, name: str = "model") -> nn.Module:
        """A stored model."""
        ...


@dataclass(frozen=True)
class InputGrid:
    """Levels of a layer's input: (clamp(round(x / scale) + zero, lowest, highest) - zero) * scale."""

    scale: float
    zero: int
    lowest: int
    highest: int


@dataclass(frozen=True)
class StoredLayer:
    """A layer whose weight is (levels - zero) * scale, row by row.

    Attributes:
        name: of the module.
        bits: width of the weight.
        levels: integers of the weight's shape.
        scale: (row,) float32; a row is the layer, an output channel or a group of it (see `integer_weights`).
        zero: (row,) integers that stand for 0; None where all are 0 and integers are signed.
        axis: dim of the weight that counts output channels.
        sharing: what a row is.
        group_size: weights of a row, where rows are groups.
        input: levels of the layer's input, None where it stays in full precision.
    """

    name: str
    bits: int
    levels: Tensor
    scale: Tensor
    zero: Tensor | None
    axis: int
    sharing: Sharing
    group_size: int
    input: InputGrid | None

    @property
    def weight(self) -> Tensor:
        """The weight that the run's model computes with, float32."""
        rows = to_rows(self.levels.float(), self.sharing, self.axis, self.group_size)
        if self.zero is not None:
            rows = rows - self.zero.float()[:, None]
        return from_rows(rows * self.scale[:, None], self.levels.shape, self.sharing, self.axis).contiguous()


def require_integers(run: QuantisedRun) -> None:
    """Raise InputError unless the run stored integers."""
    missing = [name for name in NEEDED if name not in run]
    if missing:
        raise InputError(
            "run",
            expected="a run that stored integer weights, as those of most methods of the family quantization do",
            got=f"run {run.id} without {', '.join(missing)}",
            hint='Give a table of widths to plain rounding first: bench.run("quantization.uniform", bits=run["bits"], ...).',
        )


def switching_widths(run: QuantisedRun) -> tuple[int, ...]:
    """Widths between which the stored integers switch, highest first; empty for a model of fixed widths."""
    return tuple(int(bits) for bits in run["input_scale"]["bit"].values) if "input_scale" in run else ()


def model_at(run: QuantisedRun, width: int | None = None) -> nn.Module:
    """The stored model of a run, or that of one of its widths, on the CPU in eval mode.

    Raises:
        InputError: the run's model does not switch to this width.
    """
    if width is None:
        return run.model().cpu().eval()
    known = switching_widths(run)
    if width not in known:
        raise InputError(
            "width",
            expected=f"one of {', '.join(map(str, known))}" if known else "none: the model has the widths it has",
            got=str(width),
            hint="" if known else "Models that switch are made by `quantization.double_rounding`.",
        )
    return run.model(f"model_{width}").cpu().eval()


def stored_layers(run: QuantisedRun, model: nn.Module, width: int | None = None) -> list[StoredLayer]:
    """The quantised layers of a run that stored integers, in order of execution.

    Args:
        run: a complete run of `quantization.uniform`, `hawq`, `interlayer`, `gptq`, `adaquant` or `double_rounding`.
        model: the model of the run, as `model_at` gives it.
        width: of all layers, for a model that switches; None takes the widths in `bits`.

    Raises:
        InputError: the run stored no integers, or they do not give the weights of its model.
    """
    require_integers(run)
    if switching_widths(run):
        return _switched_layers(run, model, width)
    params: Mapping[str, object] = run.record.params  # type: ignore[attr-defined]
    modules = dict(model.named_modules())
    bits, integers, scales = run["bits"], run["integer_weight"].values, run["scale"].values
    zeros = run["zero"].values if "zero" in run else None
    starts = run["weight_start"].values
    range_starts = run["range_start" if "range_start" in run else "scale_start"].values
    found: list[StoredLayer] = []
    group_size = int(params.get("group_size", 1))  # type: ignore[call-overload]
    for place, label in enumerate(map(str, bits["layer"].values)):
        width = int(bits.values[place])
        if width >= FULL_PRECISION:
            continue
        names = label.split(BLOCK_SEPARATOR)
        weights = [modules[name].get_parameter("weight") for name in names]
        axes = [channel_axis(modules[name]) for name in names]
        after = range_starts[place + 1] if place + 1 < len(range_starts) else len(scales)
        sharing = _sharing(
            int(after - range_starts[place]), [w.shape[axis] for w, axis in zip(weights, axes, strict=True)]
        )
        grid = _input_grid(run, place, zeros is not None)
        if grid is not None and len(names) > 1:
            raise InputError(
                "run",
                expected="quantised inputs with a range for every layer",
                got=f"one range for the block {label!r} in run {run.id}",
                hint='Give its widths to plain rounding: bench.run("quantization.uniform", bits=run["bits"], ...).',
            )
        start, first = int(starts[place]), int(range_starts[place])
        for name, weight, axis in zip(names, weights, axes, strict=True):
            count = scale_count(tuple(weight.shape), sharing, axis, group_size)
            levels = torch.from_numpy(integers[start : start + weight.numel()].astype(np.int32))
            found.append(
                StoredLayer(
                    name=name,
                    bits=width,
                    levels=levels.reshape(weight.shape),
                    scale=torch.from_numpy(scales[first : first + count].astype(np.float32)),
                    zero=None if zeros is None else torch.from_numpy(zeros[first : first + count].astype(np.int32)),
                    axis=axis,
                    sharing=sharing,
                    group_size=group_size,
                    input=grid,
                )
            )
            _check_weight(run, found[-1], weight)
            start, first = start + weight.numel(), first + count
    return found


def _switched_layers(run: QuantisedRun, model: nn.Module, width: int | None) -> list[StoredLayer]:
    widths, modules = switching_widths(run), dict(model.named_modules())
    params: Mapping[str, object] = run.record.params  # type: ignore[attr-defined]
    rounding: Rounding = params.get("rounding", "half_up")  # type: ignore[assignment]
    integers, scales, grid = run["integer_weight"].values, run["scale"].values, run["input_scale"].values
    starts, ranges, signed = run["weight_start"].values, run["scale_start"].values, run["input_signed"].values
    found: list[StoredLayer] = []
    for place, (name, own) in enumerate(zip(run["bits"]["layer"].values, run["bits"].values, strict=True)):
        if own >= FULL_PRECISION:
            continue
        layer, bits = modules[str(name)], int(width or own)
        shape = layer.get_parameter("weight").shape
        whole = torch.from_numpy(integers[starts[place] : starts[place] + shape.numel()].astype(np.float32))
        levels = switched_levels(whole.reshape(shape), widths[0], bits, "double", rounding)
        scale = float(grid[place, widths.index(bits)])
        lowest, highest = input_range(bits, bool(signed[place]))
        found.append(
            StoredLayer(
                name=str(name),
                bits=bits,
                levels=levels.to(torch.int32),
                scale=torch.from_numpy(scales[ranges[place] : ranges[place] + 1] * np.float32(2 ** (widths[0] - bits))),
                zero=None,
                axis=channel_axis(layer),
                sharing="layer",
                group_size=1,
                input=None if np.isnan(scale) else InputGrid(scale, 0, lowest, highest),
            )
        )
        _check_weight(run, found[-1], layer.get_parameter("weight"))
    return found


def _sharing(ranges: int, channels: Sequence[int]) -> Sharing:
    """What a range belongs to, from the number of ranges of a block and the output channels of its layers."""
    if ranges == sum(channels):
        return "channel"
    return "layer" if ranges == len(channels) else "group"


def _check_weight(run: QuantisedRun, stored: StoredLayer, weight: Tensor) -> None:
    given = weight.detach().float().cpu()
    gap = float((stored.weight - given).abs().max())
    # A model in half precision computes with the product rounded to its own type.
    allowed = max(1e-5 * float(stored.scale.max()), torch.finfo(weight.dtype).eps * float(given.abs().max()))
    if gap > allowed:
        raise InputError(
            "run",
            expected="integers that give the weights of the stored model",
            got=f"weights of {stored.name!r} in run {run.id} that differ by {gap:.3g}",
        )


def _input_grid(run: QuantisedRun, place: int, affine: bool) -> InputGrid | None:
    bits = int(run["input_bits"].values[place])
    if bits >= FULL_PRECISION or "input_range" not in run:
        return None
    low, second = map(float, run["input_range"].values[place])
    top = 2**bits - 1
    if affine:  # `affine_quantise`: lowest value and length of the range
        scale = max(second, 1e-6) / top
        return InputGrid(scale, int(np.clip(np.round(-low / scale), 0, top)), 0, top)
    if low >= 0:  # `ActivationQuantiser`: lowest and highest value
        return InputGrid(second / top if second > 0 else 1.0, 0, 0, top)
    half = 2 ** (bits - 1)
    return InputGrid(max(-low, second) / (half - 1), 0, -half, half - 1)
