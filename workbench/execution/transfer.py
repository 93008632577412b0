"""Getting tensors off their device while the next batch is computed.

A CUDA tensor is cloned on its own stream (the method may overwrite it), copied to pinned memory on a side stream, and
the writing thread waits for the copy's event. On the CPU a tensor is copied at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

__all__ = ["TensorSource", "pinned_allocator"]

_SIDE_STREAMS: dict[int, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _SIDE_STREAMS:
        _SIDE_STREAMS[index] = torch.cuda.Stream(device=index)  # type: ignore[no-untyped-call]
    return _SIDE_STREAMS[index]


def pinned_allocator(device: torch.device) -> Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray]:
    """An allocator of host buffers: page-locked if `device` is a CUDA device, ordinary memory otherwise."""

    def pinned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        # The tensor is the array's base, so the pinned block lives as long as the array.
        return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(shape)

    return pinned if device.type == "cuda" else np.empty


class TensorSource:
    """A tensor as a `Source` of the store's writer."""

    def __init__(self, tensor: torch.Tensor, *, owned: bool = False) -> None:
        tensor = tensor.detach()
        if tensor.dtype is torch.bfloat16:
            tensor, owned = tensor.float(), True  # numpy has no bfloat16
        self._tensor = tensor if owned or tensor.device.type != "cuda" else tensor.clone()
        self.shape = tuple(tensor.shape)

    def part(self, start: int, stop: int) -> TensorSource:
        """See Source."""
        return TensorSource(self._tensor[start:stop], owned=True)

    def copy_into(self, target: np.ndarray) -> Callable[[], None] | None:
        """See Source."""
        tensor = self._tensor
        if tensor.device.type != "cuda" or not target.flags.c_contiguous:
            np.copyto(target, tensor.cpu().numpy(), casting="same_kind")
            return None
        host = torch.from_numpy(target)
        stream = _side_stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            host.copy_(tensor.to(host.dtype), non_blocking=True)
            tensor.record_stream(stream)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event.synchronize
