"""A binary network in the store: bits, scales and pictures of kernels as arrays, and models that can be built again.

The network of a run is `packed_network` of its last stage, and `run.model()` gives it back. A network that no registered
factory built needs `run.model(into=packed_like(my_network, run))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn
from workbench import Model, Out

from workbench_quantization.biper_layers import (
    BinaryLayer,
    InputMode,
    binarise,
    empty_packed_network,
    periodic_weight,
    with_hardtanh,
)
from workbench_quantization.biper_selection import Selection
from workbench_quantization.biper_theory import quantisation_error
from workbench_quantization.layers import multiply_accumulates

if TYPE_CHECKING:
    import xarray as xr

    from workbench_quantization.biper import Params

PACKED, STAGE_ONE_FACTORY = "binary-packed", "binary-stage1"
"""Names of the factories below, as `workbench_models` registers them."""

SHOWN_KERNELS = 24
PHASES = 48
CURVE = np.geomspace(0.02, 20.0, 241)
"""u of the stored curve of the quantisation error."""


class BinaryRun(Protocol):
    """What of a `workbench.Run` is read here."""

    record: Any

    def __getitem__(self, name: str) -> xr.DataArray: ...


def packed_factory(
    network: nn.Module, *, layers: Sequence[str], inputs: InputMode = "polynomial", pad_value: float = 0.0
) -> nn.Module:
    """The network with room for packed weights in these layers, and Hardtanh for ReLU where inputs are binary."""
    network = Model(network).network
    if inputs != "real":
        with_hardtanh(network)
    return empty_packed_network(network, layers, inputs=inputs, pad_value=pad_value)


def stage_one_factory(
    network: nn.Module, *, layers: Sequence[str], inputs: InputMode, pad_value: float, omega: float
) -> nn.Module:
    """The network with binary inputs and sine weights in these layers, as stage 1 trains it."""
    network = Model(network).network
    if inputs != "real":
        with_hardtanh(network)
    return binarise(network, layers, omega=omega, weights="sine", inputs=inputs, pad_value=pad_value)


def packed_like(network: nn.Module, run: BinaryRun) -> nn.Module:
    """A copy of `network` into which the model of a run can be loaded: `run.model(into=packed_like(network, run))`."""
    import copy

    params = run.record.params
    inputs = params["act_grad"] if params["act_bits"] == 1 else "real"
    names = [str(name) for name in run["bits"]["layer"].values]
    copied = copy.deepcopy(network.network if isinstance(network, Model) else network)
    return packed_factory(copied, layers=names, inputs=inputs, pad_value=float(params["pad_value"]))


def _facts(names: Sequence[str], params: Params) -> dict[str, Any]:
    inputs = params.act_grad if params.act_bits == 1 else "real"
    return {"layers": list(names), "inputs": inputs, "pad_value": float(params.pad_value)}


def stored_model(model: nn.Module, packed: nn.Module, names: Sequence[str], params: Params) -> nn.Module:
    """The packed network with the normalisation and the names of the model it was made of, and how to build it again."""
    return _as_model(model, packed, PACKED, _facts(names, params))


def stage_one_model(model: nn.Module, network: nn.Module, names: Sequence[str], params: Params) -> nn.Module:
    """The same for the network after stage 1."""
    return _as_model(model, network, STAGE_ONE_FACTORY, _facts(names, params) | {"omega": float(params.omega)})


def _as_model(model: nn.Module, changed: nn.Module, factory: str, facts: Mapping[str, Any]) -> nn.Module:
    if not isinstance(model, Model):
        return changed
    assert isinstance(changed, Model)
    inner = {"factory": model.factory, "arguments": model.factory_arguments}
    return Model(
        changed.network,
        mean=model.mean,
        std=model.std,
        input_shape=model.input_shape,
        classes=model.classes,
        factory=factory if model.factory else "",
        factory_arguments={"network": inner, **facts} if model.factory else {},
        label=model.label,
    ).to(next(iter(changed.state_dict().values())).device)


def write_layers(
    model: nn.Module, selection: Selection, layers: Mapping[str, BinaryLayer], params: Params, out: Out
) -> None:
    """Weights, bits and scales of every binary layer, the closed form beside them, and kernels as pictures."""
    blocks = selection.blocks
    flat = [layer.weight.detach().flatten().cpu() for layer in layers.values()]
    sine = [periodic_weight(weight, params.omega) for weight in flat]
    out.write("bits", np.ones(len(layers), dtype=np.int8))
    out.write("input_bits", np.full(len(layers), params.act_bits, dtype=np.int8))
    out.write("latent_weight", torch.cat(flat).float())
    out.write("sine_weight", torch.cat(sine).float())
    out.write("bit", torch.cat([torch.where(wave >= 0, 1, -1) for wave in sine]).to(torch.int8))
    out.write("weight_start", np.cumsum([0, *(len(weight) for weight in flat)])[:-1].astype(np.int64))
    out.write("parameter_count", np.array([block.size for block in blocks], dtype=np.int64))
    out.write("weight_shape", [block.shape for block in blocks])
    shape = getattr(model, "input_shape", None)
    if shape is not None:
        out.write("macs", multiply_accumulates(model, blocks, shape))
    alpha = np.full((len(layers), max(len(layer.alpha) for layer in layers.values())), np.nan, dtype=np.float32)
    for row, layer in enumerate(layers.values()):
        alpha[row, : len(layer.alpha)] = layer.alpha.detach().float().cpu().numpy()
    out.write("alpha", alpha)
    phase = (torch.cat(flat).double() * params.omega) % (2 * np.pi)
    count, edges = np.histogram(phase.numpy(), bins=PHASES, range=(0, 2 * np.pi))
    out.coordinate("phase", (edges[:-1] + edges[1:]) / 2)
    out.write("phase_count", count.astype(np.int64))
    out.coordinate("u", CURVE)
    out.write("quantisation_error_curve", quantisation_error(CURVE))
    _write_waves(params, out)
    _write_kernels(layers, out)


def _write_waves(params: Params, out: Out) -> None:
    """The four functions of a weight, over a period and a half to each side."""
    weight = np.linspace(-3 * np.pi / params.omega, 3 * np.pi / params.omega, 361)
    sine = np.sin(params.omega * weight)
    waves = {
        "sign": np.where(weight >= 0, 1.0, -1.0),
        "square wave": np.where(sine >= 0, 1.0, -1.0),
        "sine": sine,
        "derivative of the sine / omega": np.cos(params.omega * weight),
    }
    out.coordinate("wave", list(waves))
    out.coordinate("weight_value", weight)
    out.write("waveform", np.stack(list(waves.values())))


def _write_kernels(layers: Mapping[str, BinaryLayer], out: Out) -> None:
    """The first kernels of each layer with kernels of the most frequent size, 1 where the weight is positive."""
    flat = [layer for layer in layers.values() if layer.weight.ndim == 4 and min(layer.weight.shape[2:]) > 1]
    if not flat:
        return
    sizes = [tuple(layer.weight.shape[2:]) for layer in flat]
    size = max(set(sizes), key=sizes.count)
    chosen = {name: layer for name, layer in layers.items() if tuple(layer.weight.shape[2:]) == size}
    shown = min([SHOWN_KERNELS, *(layer.weight.shape[0] * layer.weight.shape[1] for layer in chosen.values())])
    pictures = [(layer.effective.detach().flatten(0, 1)[:shown] > 0).float() for layer in chosen.values()]
    out.coordinate("kernel_layer", list(chosen))
    out.write("kernel", torch.stack(pictures))
