"""What a Double Rounding run keeps: integers once, scales, norms per width, their sizes, and a plain model for every width."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from workbench_quantization.nested_rounding import (
    level_range,
    shifted_levels,
    stored_levels,
    switch_errors,
    switched_levels,
)
from workbench_quantization.quantizer import FULL_PRECISION
from workbench_quantization.switchable import Switchable, table_of

if TYPE_CHECKING:
    from workbench_quantization.double_rounding_run import Study

RULES: tuple[Literal["double", "floor"], ...] = ("double", "floor")
REPEATS = 5


def model_name(bits: int) -> str:
    """Name of the stored model at one width: `run.model("model_4")`."""
    return f"model_{bits}"


def integers_of(net: Switchable) -> dict[int, Tensor]:
    """Wh of every quantised layer by place, in the dtype of the weight."""
    highest = net.widths[0]
    return {
        place: stored_levels(layer.weight, layer.weight_scale(highest)(), highest, layer.rounding)
        for place, layer in net.layers.items()
    }


@torch.no_grad()
def write_weights(study: Study, net: Switchable) -> None:
    """Integers, scales, what switching costs, how often each level occurs, sizes, time."""
    out, widths, highest = study.out, net.widths, net.widths[0]
    stored = integers_of(net)
    write_errors(study, net)
    levels = np.arange(level_range(highest)[0], level_range(highest)[1] + 1)
    count = np.zeros((len(study.names), len(widths), len(levels)), dtype=np.int64)
    for place, whole in stored.items():
        for column, bits in enumerate(widths):
            switched = switched_levels(whole, highest, bits, "double", net.layers[place].rounding)
            values, times = torch.unique(switched.to(torch.int64), return_counts=True)
            count[place, column, values.cpu().numpy() - levels[0]] = times.cpu().numpy()
    out.coordinate("level", levels)
    out.write("level_count", count)
    flat = [stored[place].to(torch.int8).flatten() if place in stored else torch.zeros(0) for place in range(net.count)]
    out.write("integer_weight", torch.cat([part.to(torch.int8).cpu() for part in flat]))
    out.write("weight_start", np.cumsum([0, *(part.numel() for part in flat)])[:-1].astype(np.int64))
    out.write(
        "scale", np.array([float(layer.weight_scale(highest)()) for layer in net.layers.values()], dtype=np.float32)
    )
    present = [int(place in stored) for place in range(net.count)]
    out.write("scale_start", np.cumsum([0, *present])[:-1].astype(np.int64))
    grid = np.full((net.count, len(widths)), np.nan, dtype=np.float32)
    signed = np.zeros(net.count, dtype=bool)
    for place, layer in net.layers.items():
        signed[place] = layer.signed
        if len(layer.input_scales):
            grid[place] = [float(layer.input_scale(bits)()) for bits in widths]
    out.write("input_scale", grid)
    out.write("input_signed", signed)
    write_norms(study, net)
    write_sizes(study, net)
    whole = torch.cat([part.to(torch.int16).flatten() for part in stored.values()])
    out.write("switch_seconds", np.array([shift_seconds(whole, highest, bits) for bits in widths]))


def write_errors(study: Study, net: Switchable) -> None:
    """Switched against directly rounded weights, for the second rounding and for floor."""
    shape = (len(RULES), net.count, len(net.widths))
    error, ratio, mean = (np.full(shape, np.nan) for _ in range(3))
    for place, layer in net.layers.items():
        scale = float(layer.weight_scale(net.widths[0])())
        for row, rule in enumerate(RULES):
            for column, bits in enumerate(net.widths):
                where = row, place, column
                error[where], ratio[where], mean[where] = switch_errors(
                    layer.weight, scale, net.widths[0], bits, rule, layer.rounding
                )
    study.out.coordinate("rule", list(RULES))
    study.out.write("switch_error", error)
    study.out.write("error_ratio", ratio)
    study.out.write("mean_error", mean)


def shift_seconds(whole: Tensor, highest: int, bits: int) -> float:
    """Time to shift all integers at once, the best of some."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        shifted_levels(whole, highest, bits)
        if whole.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def write_norms(study: Study, net: Switchable) -> None:
    """Running statistics of every width, padded with NaN to the widest norm; of equal pairs where norms are transitional."""
    norms = {
        name: [norm.sets[f"{bits}-{bits}" if net.transitional else str(bits)] for bits in net.widths]
        for name, norm in net.norms.items()
    }
    known = {name: sets for name, sets in norms.items() if sets[0].running_mean is not None}
    if not known:
        return
    widest = max(sets[0].get_buffer("running_mean").numel() for sets in known.values())
    tables = {key: np.full((len(known), len(net.widths), widest), np.nan, dtype=np.float32) for key in ("mean", "var")}
    for row, sets in enumerate(known.values()):
        for column, norm in enumerate(sets):
            for key, table in tables.items():
                values = norm.get_buffer(f"running_{key}").float().cpu().numpy()
                table[row, column, : len(values)] = values
    study.out.coordinate("norm", list(known))
    study.out.write("norm_mean", tables["mean"])
    study.out.write("norm_variance", tables["var"])


def write_sizes(study: Study, net: Switchable) -> None:
    """Bytes of the switchable model, of a model of one width each, and of the model as it came."""
    out, highest = study.out, net.widths[0]
    everything = _bytes(study.pristine)
    weights = sum(_bytes_of(layer.weight) for layer in net.layers.values())
    norms = sum(_bytes(norm.norm) for norm in net.norms.values())
    sets = sum(_bytes(one) for norm in net.norms.values() for one in norm.sets.values())
    rest = everything - weights - norms

    def packed(bits: int) -> int:
        return sum(-(-layer.weight.numel() * bits // 8) + 4 for layer in net.layers.values())

    inputs = 4 * sum(len(layer.input_scales) for layer in net.layers.values())
    one_input = inputs // len(net.widths)
    out.write("width_bytes", np.array([packed(bits) + one_input + norms + rest for bits in net.widths], dtype=np.int64))
    out.write("stored_bytes", np.int64(packed(highest) + inputs + sets + rest))
    out.write("full_precision_bytes", np.int64(everything))


def _bytes(module: nn.Module) -> int:
    return sum(_bytes_of(value) for value in module.state_dict().values())


def _bytes_of(value: Tensor) -> int:
    return value.numel() * value.element_size()


def write_model(study: Study, net: Switchable, table: int | Mapping[int, int]) -> None:
    """A plain model of every width, `model_8` and so on, and that of `table` as `model`. Their weights are integers x scale."""
    out = study.out
    for bits in net.widths:
        out.model(plain_model(study, net, bits), name=model_name(bits))
    out.model(plain_model(study, net, table))
    widths = np.array(table_of(net, table), dtype=np.int8)
    out.write("bits", widths)
    quantised = any(len(layer.input_scales) for layer in net.layers.values())
    out.write("input_bits", widths if quantised else np.full_like(widths, FULL_PRECISION))


def plain_model(study: Study, net: Switchable, table: int | Mapping[int, int]) -> nn.Module:
    """A copy of the model as it came with the weights and norms of these widths."""
    model = copy.deepcopy(study.pristine)
    net.switch(table)
    net.write_into(model)
    return model.eval()
