"""A quantised model as ONNX in QDQ form: integer weights behind DequantizeLinear, inputs between Quantize- and Dequantize-.

Weights of up to 4 bits are int4 (two to a byte), of up to 8 int8, above int16; narrower widths keep their values and pay
for the container. Ranges per group of weights use blocked dequantisation, which opset 21 has.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from workbench import InputError, MissingDependencyError

from workbench_quantization.stored_layers import InputGrid, StoredLayer

OPSET = 21
"""The first with 4-bit integers and blocked dequantisation."""


def write_onnx(path: Path, model: nn.Module, layers: Sequence[StoredLayer], example: Tensor) -> None:
    """Write the file.

    Args:
        path: where to.
        model: the run's model in eval mode.
        layers: its quantised layers.
        example: (sample, channel, y, x), an input to trace with; the file takes any number of samples.

    Raises:
        MissingDependencyError: onnxscript is not installed.
        InputError: the model cannot be traced, or a weight reaches its layer in a way that cannot be replaced.
    """
    try:
        import onnx_ir as ir
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
        from onnxscript import optimizer
    except ImportError as error:
        raise MissingDependencyError(
            f"Exporting to ONNX needs {error.name}: pip install 'vision-workbench[onnx]'."
        ) from error
    graph_model = traced(model, example)
    graph = graph_model.graph
    for layer in layers:
        _replace_weight(ir, graph, layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of onnxscript, about itself
        optimizer.optimize(graph_model)
    # The exporter notes where in whose files each node came from.
    ClearMetadataAndDocStringPass()(graph_model)
    ir.save(graph_model, path)


def traced(model: nn.Module, example: Tensor) -> Any:
    """The model as an ONNX graph (onnx_ir), nothing folded; any number of samples.

    Raises:
        InputError: the model cannot be traced.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                # Fusing batch norms would multiply them into weights that are no longer the integers'.
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logit"],
                dynamic_shapes=({0: torch.export.Dim("sample")},),
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError("run", expected="a model that torch.export can trace", got=reason) from error
    assert program is not None
    return program.model


def _replace_weight(ir: Any, graph: Any, layer: StoredLayer) -> None:
    weight = graph.initializers.get(f"{layer.name}.weight")
    # The exporter asks for the shape of a weight where a layer has no bias; that may be asked of any weight.
    users = [] if weight is None else [use for use in weight.uses() if use.node.op_type != "Shape"]
    if not users or any(
        use.node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Transpose") for use in users
    ):
        kinds = ", ".join(sorted({use.node.op_type for use in users})) or "nothing"
        raise InputError(
            "run",
            expected="weights that convolutions and linear layers use",
            got=f"{layer.name!r}, whose weight {kinds} uses in the ONNX graph",
        )
    nodes, value = _dequantised(ir, graph, layer)
    products = []  # a layer that is called twice has two, and quantises the input of both
    for use in users:
        if use.node.op_type == "Transpose":  # x @ W.T: the products are the nodes after it
            products += [after.node for after in use.node.outputs[0].uses()]
        else:
            products.append(use.node)
    value.type, value.shape = weight.type, weight.shape
    every_use = list(weight.uses())
    for use in every_use:
        use.node.replace_input_with(use.idx, value)
    graph.insert_before(_first(graph, [use.node for use in every_use]), nodes)
    graph.initializers.pop(weight.name)
    if layer.input is not None:
        for number, product in enumerate(products):
            _quantise_input(ir, graph, layer, product, f"{layer.name}.input" + (f".{number}" if number else ""))


def _first(graph: Any, nodes: list[Any]) -> Any:
    wanted = set(map(id, nodes))
    return next(node for node in graph if id(node) in wanted)


def _constant(ir: Any, graph: Any, name: str, array: np.ndarray, kind: Any = None) -> Any:
    tensor = ir.Tensor(array, dtype=kind, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _node(ir: Any, kind: str, inputs: list[Any], name: str, **attributes: int | list[int]) -> Any:
    node = ir.Node("", kind, inputs, attributes=ir.convenience.convert_attributes(attributes), name=name)
    node.outputs[0].name = name
    return node


def _dequantised(ir: Any, graph: Any, layer: StoredLayer) -> tuple[list[Any], Any]:
    """Nodes that compute the weight from its integers, and their result."""
    signed = layer.zero is None
    name, shape = layer.name, list(layer.levels.shape)
    if layer.sharing == "group":
        # Rows of whole channels; the last block of a channel may be short.
        channels = layer.levels.movedim(layer.axis, 0)
        whole = channels.flatten(1).numpy()
        scale = layer.scale.reshape(len(whole), -1).numpy()
        zero = None if layer.zero is None else layer.zero.reshape(len(whole), -1).numpy()
        attributes = {"axis": 1, "block_size": layer.group_size}
    else:
        whole = layer.levels.numpy()
        scale = layer.scale.numpy() if layer.sharing == "channel" else layer.scale.numpy().reshape(())
        zero = None if layer.zero is None else layer.zero.numpy().reshape(scale.shape)
        attributes = {"axis": layer.axis} if layer.sharing == "channel" else {}
    inputs = [
        _integers(ir, graph, f"{name}.weight.integer", whole, layer.bits, signed),
        _constant(ir, graph, f"{name}.weight.scale", scale.astype(np.float32)),
    ]
    if zero is not None:
        inputs.append(_integers(ir, graph, f"{name}.weight.zero", zero, layer.bits, signed))
    nodes = [_node(ir, "DequantizeLinear", inputs, f"{name}.weight.dequantised", **attributes)]
    if layer.sharing == "group" and (layer.axis != 0 or len(shape) != 2):
        target = _constant(ir, graph, f"{name}.weight.shape", np.array(channels.shape, dtype=np.int64))
        nodes.append(_node(ir, "Reshape", [nodes[-1].outputs[0], target], f"{name}.weight.reshaped"))
        if layer.axis != 0:
            order = [*range(1, layer.axis + 1), 0, *range(layer.axis + 1, len(shape))]
            nodes.append(_node(ir, "Transpose", [nodes[-1].outputs[0]], f"{name}.weight.transposed", perm=order))
    return nodes, nodes[-1].outputs[0]


def _integers(ir: Any, graph: Any, name: str, values: np.ndarray, bits: int, signed: bool) -> Any:
    size = 4 if bits <= 4 else 8 if bits <= 8 else 16
    kind = ir.DataType[f"{'INT' if signed else 'UINT'}{size}"]
    return _constant(ir, graph, name, np.ascontiguousarray(values).astype(kind.numpy()), kind)


def _quantise_input(ir: Any, graph: Any, layer: StoredLayer, consumer: Any, name: str) -> None:
    grid = layer.input
    assert isinstance(grid, InputGrid)
    size = 8 if grid.highest - grid.lowest < 256 else 16
    kind = ir.DataType[f"{'INT' if grid.lowest < 0 else 'UINT'}{size}"]
    scale = _constant(ir, graph, f"{name}.scale", np.float32(grid.scale).reshape(()))
    zero = _constant(ir, graph, f"{name}.zero", np.array(grid.zero).astype(kind.numpy()), kind)
    taken = consumer.inputs[0]
    # QuantizeLinear saturates at its container; narrower grids are cut before it.
    bounds = [
        _constant(ir, graph, f"{name}.{side}", np.float32((level - grid.zero) * grid.scale).reshape(()))
        for side, level in (("lowest", grid.lowest), ("highest", grid.highest))
    ]
    clipped = _node(ir, "Clip", [taken, *bounds], f"{name}.clipped")
    integer = _node(ir, "QuantizeLinear", [clipped.outputs[0], scale, zero], f"{name}.integer")
    value = _node(ir, "DequantizeLinear", [integer.outputs[0], scale, zero], f"{name}.dequantised")
    consumer.replace_input_with(0, value.outputs[0])
    graph.insert_before(consumer, [clipped, integer, value])
