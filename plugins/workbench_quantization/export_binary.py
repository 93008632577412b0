"""A binary network (`quantization.biper`) as one file: eight weights to a byte, in safetensors and in ONNX.

safetensors: for every binary layer L `L.packed` (uint8, lowest bit first, 1 for +1), `L.alpha` (float32, one per output channel)
and perhaps `L.bias`, everything else as it is; the metadata entry `workbench` has the shapes under `binary`. A network with room
for them is `biper_store.packed_factory(network, layers=...)`, into which `read_safetensors(path)[0]` loads. ONNX: the graph
unpacks the bytes itself, so that any run time computes the same, with ordinary convolutions of +1 and -1: the file is small,
the run time no faster than with real weights unless it has kernels of its own.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from workbench import InputError, MissingDependencyError

from workbench_quantization.biper_layers import PackedLayer, packed_layers


def is_binary(run: Any) -> bool:
    """Whether a run stored a binary network."""
    return "bit" in run and "alpha" in run


def write_binary_safetensors(path: Path, model: nn.Module, run_id: str) -> None:
    """Write the file (see the module)."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    described = {name: _facts(layer) for name, layer in packed_layers(model).items()}
    facts = {"format": 1, "run": run_id, "layers": {}, "binary": described}
    save_file(state, path, metadata={"workbench": json.dumps(facts)})


def _facts(layer: PackedLayer) -> dict[str, Any]:
    return {
        "shape": list(layer.shape),
        "operation": layer.operation.kind,
        "inputs": 32 if layer.inputs == "real" else 1,
        "pad_value": layer.operation.pad_value,
    }


def write_binary_onnx(path: Path, model: nn.Module, example: Tensor) -> None:
    """Write the file (see the module).

    Raises:
        MissingDependencyError: onnxscript is not installed.
        InputError: the model cannot be traced.
    """
    try:
        import onnx_ir as ir
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    except ImportError as error:
        raise MissingDependencyError(
            f"Exporting to ONNX needs {error.name}: pip install 'vision-workbench[onnx]'."
        ) from error
    from workbench_quantization.export_onnx import traced

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # No optimiser afterwards: it would fold the unpacked weights into the file.
        graph_model = traced(model, example)
    ClearMetadataAndDocStringPass()(graph_model)
    ir.save(graph_model, path)


def binary_bits(model: nn.Module) -> dict[str, int]:
    """Width per binary layer.

    Raises:
        InputError: the model has none.
    """
    bits = dict.fromkeys(packed_layers(model), 1)
    if not bits:
        raise InputError("run", expected="a stored model with packed layers", got=type(model).__name__)
    return bits
