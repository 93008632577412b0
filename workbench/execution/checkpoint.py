"""Checkpoints: nested dicts and lists of tensors, arrays, numbers and strings as safetensors with a checksum. No pickle.

Leaves that are arrays become tensors of the file; the tree around them is JSON in the file's header.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.errors import IntegrityError, OutputError
from workbench.store.verify import CHECKPOINT

__all__ = ["CHECKPOINT", "pack", "unpack"]

CHECKSUM = 4
"""Bytes of the CRC-32 behind the safetensors content."""


def pack(state: Mapping[str, Any]) -> bytes:
    """Serialise a checkpoint.

    Raises:
        OutputError: a leaf is neither tensor, array, number, string, bool nor None, or a key is neither str nor int.
    """
    from safetensors.torch import save

    tensors: dict[str, Any] = {}
    tree = _encode(state, tensors, "checkpoint")
    data = save(tensors, metadata={"tree": json.dumps(tree)})
    return data + zlib.crc32(data).to_bytes(CHECKSUM, "little")


def unpack(data: bytes, run_id: str) -> dict[str, Any]:
    """The inverse of `pack`; tensors come back on the CPU.

    Raises:
        IntegrityError: the bytes are not a checkpoint.
    """
    from safetensors.torch import load

    data, checksum = data[:-CHECKSUM], data[-CHECKSUM:]
    if zlib.crc32(data).to_bytes(CHECKSUM, "little") != checksum:
        raise IntegrityError(run_id, CHECKPOINT, "all", "damaged: its checksum differs")
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        state = _decode(json.loads(header["__metadata__"]["tree"]), load(data))
    except Exception as error:
        raise IntegrityError(run_id, CHECKPOINT, "all", f"damaged ({error})") from error
    assert isinstance(state, dict)
    return state


def _encode(value: Any, tensors: dict[str, Any], path: str) -> Any:
    import torch

    if isinstance(value, torch.Tensor | np.ndarray):
        is_array = isinstance(value, np.ndarray)
        tensor = (
            value.detach().cpu() if isinstance(value, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(value))
        )
        name = str(len(tensors))
        # A copy of its own: safetensors refuses tensors that share memory.
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        return {"array" if is_array else "tensor": name}
    if isinstance(value, np.generic):
        return _encode(value.item(), tensors, path)
    if value is None or isinstance(value, bool | int | str):
        return {"value": value}
    if isinstance(value, float):
        return {"value": value} if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str | int) for key in value):
            raise OutputError(f"{path}: keys of a checkpoint must be strings or integers")
        return {"dict": [[key, _encode(item, tensors, f"{path}[{key!r}]")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(item, tensors, f"{path}[{index}]") for index, item in enumerate(value)]}
    raise OutputError(f"{path}: a checkpoint cannot hold {type(value).__name__}")


def _decode(node: Any, tensors: Mapping[str, Any]) -> Any:
    ((kind, body),) = node.items()
    if kind == "tensor":
        return tensors[body]
    if kind == "array":
        return tensors[body].numpy()
    if kind == "float":
        return float(body)
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in body}
    if kind in ("list", "tuple"):
        items = [_decode(item, tensors) for item in body]
        return tuple(items) if kind == "tuple" else items
    return body
