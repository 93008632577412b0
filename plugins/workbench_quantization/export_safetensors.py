"""A quantised model as a safetensors file: packed integers of exactly their width, scales, and everything else as it is.

The file holds, for every quantised layer L, `L.weight.packed` (uint8, the integers shifted to be non-negative and packed
at their width, lowest bit first), `L.weight.scale` (float32, one per row) and, where the grid is not symmetric,
`L.weight.zero` (int32); all other parameters and buffers under their own names. The metadata entry `workbench` says in
JSON which width, shape, sharing and offset each layer has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from workbench import InputError

from workbench_quantization.stored_layers import StoredLayer

METADATA = "workbench"


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Non-negative integers below 2^bits as a stream of bits, lowest first: uint8 of ceil(n * bits / 8)."""
    planes = (values.reshape(-1, 1) >> np.arange(bits)) & 1
    return np.packbits(planes.astype(np.uint8).reshape(-1), bitorder="little")


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack`: (count,) int32."""
    stream = np.unpackbits(packed, bitorder="little", count=count * bits).reshape(count, bits).astype(np.int32)
    return (stream << np.arange(bits, dtype=np.int32)).sum(1, dtype=np.int32)


def write_safetensors(path: Path, model: nn.Module, layers: Sequence[StoredLayer], facts: dict[str, Any]) -> None:
    """Write the file (see the module)."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    described: dict[str, dict[str, Any]] = {}
    for layer in layers:
        state.pop(f"{layer.name}.weight")
        offset = 0 if layer.zero is not None else 2 ** (layer.bits - 1)
        values = layer.levels.numpy() + offset
        state[f"{layer.name}.weight.packed"] = torch.from_numpy(pack(values, layer.bits))
        state[f"{layer.name}.weight.scale"] = layer.scale.clone()
        if layer.zero is not None:
            state[f"{layer.name}.weight.zero"] = layer.zero.to(torch.int32)
        described[layer.name] = {
            "bits": layer.bits,
            "shape": list(layer.levels.shape),
            "sharing": layer.sharing,
            "group_size": layer.group_size,
            "channel_axis": layer.axis,
            "offset": offset,
            "input": None if layer.input is None else vars(layer.input),
        }
    save_file(state, path, metadata={METADATA: json.dumps(facts | {"layers": described})})


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state dict with the weights multiplied out, for `module.load_state_dict`, and the metadata.

    Raises:
        InputError: the file was not written by this package.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if METADATA not in metadata:
            raise InputError("path", expected="a safetensors file written by `workbench export`", got=str(path))
        facts = json.loads(metadata[METADATA])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    for name, about in facts["layers"].items():
        count = int(np.prod(about["shape"]))
        levels = unpack(state.pop(f"{name}.weight.packed").numpy(), about["bits"], count) - about["offset"]
        stored = StoredLayer(
            name=name,
            bits=about["bits"],
            levels=torch.from_numpy(levels).reshape(about["shape"]),
            scale=state.pop(f"{name}.weight.scale"),
            zero=state.pop(f"{name}.weight.zero", None),
            axis=about["channel_axis"],
            sharing=about["sharing"],
            group_size=about["group_size"],
            input=None,
        )
        state[f"{name}.weight"] = stored.weight
    return state, facts
