"""From labelled arrays to tensors: the one place that knows how stored pictures and labels become what a model eats."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ArrayLike", "image_batches", "to_tensor"]

ArrayLike = Any
"""An `xr.DataArray` (also a lazily read one), a numpy array, a sequence of numbers, or a tensor."""

_LABELS = frozenset({"label", "prediction"})
_NOT_A_PICTURE = _LABELS | {"mask"}
_WIDE_UNSIGNED = (np.uint16, np.uint32, np.uint64)  # torch has these types, but hardly any operation on them


def to_tensor(
    array: xr.DataArray | np.ndarray | Tensor,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A tensor of its own memory: changing it never changes `array`.

    Pictures in uint8 become float32 in 0..1 (divided by 255 on the target device, so that a quarter of the bytes
    travel); labels become int64; everything else keeps its type. A picture is a uint8 array whose last dims are
    (y, x), or an unnamed one of three or more dims; labels are arrays called `label` or `prediction` and integer arrays
    of one dim.

    Args:
        array: what to convert; only this much is read from a store, so slice first.
        device: where the tensor shall lie (the CPU unless given; a tensor stays where it is).
        dtype: overrides the type. Pictures asked for as an integer type keep their 0..255.

    Raises:
        InputError: the array does not hold numbers.
    """
    values, name, dims = _values(array)
    picture = values.dtype == torch.uint8 and _is_picture(name, dims, values.ndim)
    target = values.device if device is None else torch.device(device)
    moved = _move(values, target)
    if picture and (dtype is None or dtype.is_floating_point):
        result = moved.to(dtype or torch.float32).div_(255)
    elif dtype is not None:
        result = moved.to(dtype)
    elif not (moved.is_floating_point() or moved.dtype == torch.bool) and (name in _LABELS or moved.ndim == 1):
        result = moved.to(torch.int64)
    else:
        result = moved
    return result.clone() if result.data_ptr() == values.data_ptr() else result


def image_batches(
    array: xr.DataArray | np.ndarray | Tensor,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield `(slice, batch)` along the first dim, read slice by slice, so that the whole never lies in memory.

    The next slice is read by a thread of its own while the caller computes on the present one.

    Args:
        array: pictures (sample, channel, y, x), or anything with samples along its first dim.
        batch_size: samples per batch; the last batch may be smaller.
        device: where the batches shall lie.
        dtype: as in `to_tensor`.

    Raises:
        InputError: `batch_size` is below 1 or `array` has no dims.
    """
    if batch_size < 1:
        raise InputError("batch_size", expected="at least 1", got=str(batch_size))
    if not np.ndim(array):
        raise InputError("array", expected="samples along its first dim", got="a single number")
    return _batches(array, batch_size, device, dtype)


def _batches(array: Any, batch_size: int, device: Any, dtype: torch.dtype | None) -> Iterator[tuple[slice, Tensor]]:
    count = len(array)
    regions = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    reading = _Reading(array, regions[0]) if regions else None
    for index, region in enumerate(regions):
        assert reading is not None
        part = reading.result()
        reading = _Reading(array, regions[index + 1]) if index + 1 < len(regions) else None
        yield region, to_tensor(part, device=device, dtype=dtype)


class _Reading:
    """One slice being read: in a thread where reading means I/O, at once where it is in memory."""

    def __init__(self, array: Any, region: slice) -> None:
        self._part = array[region]
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        if not isinstance(self._part, (np.ndarray, Tensor, list, tuple)):
            self._thread = threading.Thread(target=self._load, name="workbench-read", daemon=True)
            self._thread.start()

    def _load(self) -> None:
        try:
            self._part.load()
        except BaseException as failure:
            self._failure = failure

    def result(self) -> Any:
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._part


def _values(array: Any) -> tuple[Tensor, str | None, tuple[str, ...] | None]:
    if isinstance(array, Tensor):
        return array.detach(), None, None
    name = dims = None
    if hasattr(array, "dims") and hasattr(array, "to_numpy"):
        name = None if array.name is None else str(array.name)
        dims = tuple(str(dim) for dim in array.dims)
        array = array.to_numpy()
    numbers = np.asarray(array)
    if numbers.dtype.kind not in "biufc":
        raise InputError(name or "array", expected="numbers", got=f"an array of dtype {numbers.dtype}")
    if not numbers.dtype.isnative:
        numbers = numbers.astype(numbers.dtype.newbyteorder("="))
    if numbers.dtype.type in _WIDE_UNSIGNED:
        numbers = numbers.astype(np.int64)
    if not numbers.flags.writeable or any(stride < 0 for stride in numbers.strides):
        numbers = numbers.copy()
    return torch.from_numpy(numbers), name, dims


def _is_picture(name: str | None, dims: tuple[str, ...] | None, ndim: int) -> bool:
    if name in _NOT_A_PICTURE:
        return False
    return dims[-2:] == ("y", "x") if dims is not None else ndim >= 3


def _move(values: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and values.device.type == "cpu" and values.numel():
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
