"""The one implementation of `Out`: what a running method writes is checked against its `outputs` and goes to the store."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch

from workbench.errors import IntegrityError, OutputError, SkippedError
from workbench.execution.blockwise import BlockPlace, BlockSharing, run_block
from workbench.execution.checkpoint import CHECKPOINT, pack, unpack
from workbench.execution.device import seed_everything, stream_seed
from workbench.execution.progress import CancelToken
from workbench.execution.transfer import TensorSource, pinned_allocator
from workbench.method import BlockwiseMethod, Inputs, Method, Output
from workbench.store.array_writer import ArrayWriter
from workbench.store.blocks import BlockWriter
from workbench.store.layout import ArrayLayout
from workbench.store.writer import RunWriter, run_folder

__all__ = ["RunOut"]

T = TypeVar("T")
_TEXT = np.dtype(object)


class _NumpyValues:
    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    def part(self, start: int, stop: int) -> _NumpyValues:
        return _NumpyValues(self.values[start:stop])

    def copy_into(self, target: np.ndarray) -> None:
        np.copyto(target, self.values, casting="same_kind")


class StoredArray:
    """A declared array; assignment to any region of step 1 streams to the store."""

    def __init__(self, writer: ArrayWriter | BlockWriter | _LeftToBlocks, name: str) -> None:
        self._writer, self._name = writer, name
        self.shape = writer.shape

    def __setitem__(self, region: Any, values: Any) -> None:
        slices, dropped = self._region(region)
        if not isinstance(values, torch.Tensor):
            values = np.asarray(_to_numpy(values))
        if self._writer.dtype.kind in "iu":
            values = _cast(np.asarray(_to_numpy(values)), self._writer.dtype, self._name)
        source = _source(values, self._name, self._writer.dtype)
        shape = tuple(part.stop - part.start for part in slices)
        squeezed = tuple(size for axis, size in enumerate(shape) if axis not in dropped)
        if tuple(source.shape) == squeezed and dropped:
            source = _source(values.reshape(shape), self._name, self._writer.dtype)
        elif source.shape == () and math.prod(shape) != 1:
            source = _NumpyValues(np.broadcast_to(np.asarray(_to_numpy(values)), shape))
        elif source.shape == ():
            source = _NumpyValues(np.asarray(_to_numpy(values)).reshape(shape))
        self._writer.write(slices, source)

    def _region(self, region: Any) -> tuple[tuple[slice, ...], set[int]]:
        parts = list(region) if isinstance(region, tuple) else [region]
        if Ellipsis in parts:
            at = parts.index(Ellipsis)
            parts[at : at + 1] = [slice(None)] * (len(self.shape) - len(parts) + 1)
        if len(parts) > len(self.shape):
            raise OutputError(f"output {self._name!r} has {len(self.shape)} dims, indexed with {len(parts)}")
        parts += [slice(None)] * (len(self.shape) - len(parts))
        slices, dropped = [], set()
        for axis, (part, size) in enumerate(zip(parts, self.shape, strict=True)):
            if isinstance(part, slice):
                start, stop, step = part.indices(size)
                if step != 1:
                    raise OutputError(f"output {self._name!r}: regions are slices of step 1, got {part}")
                slices.append(slice(start, max(start, stop)))
                continue
            index = int(part)
            if not -size <= index < size:
                raise OutputError(f"output {self._name!r}: index {index} is out of range for length {size}")
            slices.append(slice(index % size, index % size + 1))
            dropped.add(axis)
        return tuple(slices), dropped


class _LeftToBlocks:
    """Stands for an array that only blocks may write."""

    def __init__(self, name: str, layout: ArrayLayout) -> None:
        self._name, self.shape, self.dtype = name, layout.shape, layout.dtype

    def write(self, region: tuple[slice, ...], source: Any) -> None:
        raise OutputError(f"output {self._name!r} is written by blocks: assign to out.part({self._name!r}) in `block`")


class RunOut:
    """See `workbench.method.Out` for the meaning of each member."""

    def __init__(
        self,
        method: type[Method],
        writer: RunWriter,
        *,
        device: torch.device,
        dtype: torch.dtype,
        cancel: CancelToken,
        on_progress: Callable[[float, float, str], None],
        on_values: Callable[[int, dict[str, float]], None],
        restorable: Callable[[], str | None],
        sharing: BlockSharing | None = None,
        lent: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.device, self.dtype, self.seed = device, dtype, writer.record.seed
        self._method, self._writer, self._cancel = method, writer, cancel
        self._outputs: dict[str, Output] = {output.name: output for output in method.outputs}
        self._on_progress, self._on_values, self._restorable = on_progress, on_values, restorable
        self._sharing, self._lent = sharing, lent
        self._block_rows: int | None = None
        """Samples of a block, while arrays are declared that blocks will write."""
        self._in_blocks: dict[str, ArrayLayout] = {}
        self._allocate = pinned_allocator(device)
        self._series: dict[str, dict[int, float]] = {}
        self.checkpointed = False
        """Whether a checkpoint was written."""
        self._written: set[str] = set()
        self._coordinates: set[str] = set()
        self._lock = threading.Lock()

    # --- random numbers ---------------------------------------------------------------------------------------------

    def generator(self, name: str = "") -> torch.Generator:
        """See Out."""
        return torch.Generator().manual_seed(stream_seed(self.seed, name))

    def rng(self, name: str = "") -> np.random.Generator:
        """See Out."""
        return np.random.default_rng(stream_seed(self.seed, name))

    # --- arrays -----------------------------------------------------------------------------------------------------

    def coordinate(self, name: str, values: Any, *, dim: str | None = None) -> None:
        """See Out."""
        array = _labels(values)
        if array.ndim != 1:
            raise OutputError(f"coordinate {name!r} must have one dim, got shape {array.shape}")
        if name in self._coordinates:
            raise OutputError(f"coordinate {name!r} was written twice")
        if name in self._outputs:
            raise OutputError(f"coordinate {name!r} has the name of an output")
        self._coordinates.add(name)
        self._writer.put(name, array, (dim or name,), {}, auxiliary=dim is not None and dim != name)

    def array(
        self, name: str, shape: Sequence[int], *, dims: Sequence[str] | None = None, dtype: Any = None
    ) -> StoredArray:
        """See Out."""
        output = self._output(name)
        kind = _dtype(output.dtype if dtype is None else dtype)
        self._check_dtype(output, kind)
        names = self._dims(output, len(shape), dims)
        if self._block_rows is not None and names[:1] == ("sample",):
            layout = self._writer.declare_blocks(name, shape, kind, names, _attributes(output), self._block_rows)
            self._in_blocks[name] = layout
            self._written.add(name)
            return StoredArray(_LeftToBlocks(name, layout), name)
        writer = self._writer.declare(name, shape, kind, names, _attributes(output), allocate=self._allocate)
        self._written.add(name)
        return StoredArray(writer, name)

    def write(self, name: str, values: Any, *, dims: Sequence[str] | None = None) -> None:
        """See Out."""
        output = self._output(name)
        wanted = _dtype(output.dtype)
        array = _labels(values) if wanted == _TEXT else np.asarray(_to_numpy(values))
        if array.dtype != wanted:
            if not _convertible(array.dtype, wanted):
                raise OutputError(f"output {name!r}: declared as {output.dtype}, got {array.dtype}")
            array = _cast(array, wanted, name)
        names = self._dims(output, array.ndim, dims)
        self._writer.put(name, np.ascontiguousarray(array).reshape(array.shape), names, _attributes(output))
        self._written.add(name)

    def _output(self, name: str) -> Output:
        if name not in self._outputs:
            known = ", ".join(self._outputs) or "none"
            raise OutputError(f"{self._method.id} wrote {name!r}, which it does not declare; its outputs: {known}")
        return self._outputs[name]

    def _check_dtype(self, output: Output, dtype: np.dtype[Any]) -> None:
        if dtype != _dtype(output.dtype):
            raise OutputError(f"output {output.name!r}: declared as {output.dtype}, got {dtype}")

    def _dims(self, output: Output, ndim: int, dims: Sequence[str] | None) -> tuple[str, ...]:
        names = tuple(output.dims if dims is None else dims)
        if "..." in names:
            raise OutputError(f"output {output.name!r}: name the dims that stand for '...' when writing it")
        if len(names) != ndim:
            raise OutputError(f"output {output.name!r}: dims ({', '.join(names)}) for an array of {ndim} dims")
        if not _matches(names, output.dims):
            declared = ", ".join(output.dims)
            raise OutputError(f"output {output.name!r}: declared with dims ({declared}), got ({', '.join(names)})")
        return names

    def share_blocks(self, method: BlockwiseMethod, inputs: Inputs, params: Any) -> None:
        """Run a method block by block: here, or by others where that is worthwhile. See BlockwiseMethod."""
        self._block_rows = method.block_size(inputs, params)
        method.begin(inputs, params, self)
        self._block_rows = None
        regions = method.regions(inputs, params)
        count = regions[-1].stop if regions else 0
        place = BlockPlace(self._writer.backend, self._writer.folder, self._in_blocks, self.seed)
        if self._sharing is not None and self._sharing.worthwhile(regions):
            with self._lent():
                parts = self._sharing.compute(
                    place, regions, lambda done: self.progress(done, count, "computing blocks"), self._cancel
                )
        else:
            parts = [
                run_block(
                    method, inputs, params, place, number, region,
                    device=self.device, dtype=self.dtype, cancel=self._cancel, tell=self._on_progress,
                )
                for number, region in enumerate(regions)
            ]  # fmt: skip
        seed_everything(self.seed)
        method.end(inputs, params, parts, self)

    # --- models, series ---------------------------------------------------------------------------------------------

    def model(self, module: torch.nn.Module, *, name: str = "model") -> None:
        """See Out."""
        from workbench.subjects import model_state

        arrays, metadata = model_state(module)
        for key, values in arrays.items():
            array = np.asarray(values)
            dims = tuple(f"{key}:{axis}" for axis in range(array.ndim))
            self._writer.put(f"{name}/{key}", array, dims, {})
        models = {**self._writer.record.models, name: dict(metadata)}
        self._writer.update(models=models)

    def log(self, step: int, **values: float) -> None:
        """See Out."""
        numbers = {key: float(value) for key, value in values.items()}
        with self._lock:
            for key, number in numbers.items():
                self._series.setdefault(key, {})[int(step)] = number
        self._on_values(int(step), numbers)

    # --- progress ---------------------------------------------------------------------------------------------------

    def progress(self, done: float, total: float, message: str = "") -> None:
        """See Out."""
        self._cancel.check()
        self._on_progress(float(done), float(total), message)

    def track(self, items: Iterable[T], message: str = "", total: int | None = None) -> Iterator[T]:
        """See Out."""
        count = total if total is not None else (len(items) if isinstance(items, Sized) else 0)
        self.progress(0, count or 1, message)
        for done, item in enumerate(items, start=1):
            yield item
            self.progress(done, max(count, done), message)

    def cancelled(self) -> bool:
        """See Out."""
        return self._cancel.cancelled

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """See Out."""
        with self._lock:
            series = {key: [[step, value] for step, value in points.items()] for key, points in self._series.items()}
        self.checkpointed = True
        data = pack({"state": dict(state), "series": series})
        self._writer.backend.write(f"{run_folder(self._writer.record)}/{CHECKPOINT}", data)

    def restore(self) -> dict[str, Any] | None:
        """See Out: series logged before the checkpoint come back as well."""
        folder = self._restorable()
        if folder is None:
            return None
        run = folder.rpartition("/")[2]
        try:
            content = unpack(self._writer.backend.read(f"{folder}/{CHECKPOINT}"), run)
        except (IntegrityError, OSError) as error:
            # A power cut may have cut it short. The run starts anew, or every later attempt would meet the same file.
            warnings.warn(f"the checkpoint of run {run} is not used: {error}", stacklevel=2)
            return None
        with self._lock:
            self._series = {key: {int(s): float(v) for s, v in points} for key, points in content["series"].items()}
        state: dict[str, Any] = content["state"]
        return state

    def skip(self, reason: str) -> None:
        """See Out."""
        raise SkippedError(self._method.id, reason)

    # --- the end ----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Check that everything declared was written, and write the series.

        Raises:
            OutputError: an output that is not optional, or a region of one, was never written.
        """
        missing = [o.name for o in self._outputs.values() if not o.optional and o.name not in self._written]
        if missing:
            raise OutputError(f"{self._method.id} did not write its output {', '.join(map(repr, missing))}")
        gaps = self._writer.missing_regions()
        if gaps:
            name, region = next(iter(gaps.items()))
            raise OutputError(f"{self._method.id} left output {name!r} unwritten at {region}")
        self.write_series()
        self._writer.flush()

    def write_series(self) -> None:
        """Store the logged series over their common `step`."""
        if not self._series:
            return
        steps = sorted({step for points in self._series.values() for step in points})
        self._writer.put("series/step", np.asarray(steps, dtype=np.int64), ("step",), {})
        for name, points in self._series.items():
            values = np.array([points.get(step, math.nan) for step in steps])
            self._writer.put(f"series/{name}", values, ("step",), {})
        self._series = {}


def _to_numpy(values: Any) -> Any:
    if isinstance(values, torch.Tensor):
        values = values.detach()
        return (values.float() if values.dtype is torch.bfloat16 else values).cpu().numpy()
    return getattr(values, "values", values)


def _source(values: Any, name: str, dtype: np.dtype[Any]) -> Any:
    if isinstance(values, torch.Tensor):
        source: Any = TensorSource(values)
        came = np.dtype(
            str((values.float() if values.dtype is torch.bfloat16 else values).dtype).removeprefix("torch.")
        )
    else:
        source = _NumpyValues(np.asarray(_to_numpy(values)))
        came = source.values.dtype
    if not _convertible(came, dtype):
        raise OutputError(f"output {name!r}: declared as {dtype}, got {came}")
    return source


def _cast(array: np.ndarray, wanted: np.dtype[Any], name: str) -> np.ndarray:
    """Values as another dtype; integers that do not fit are an error, not other numbers."""
    if array.dtype == wanted or not _convertible(array.dtype, wanted):
        return array  # what cannot be converted at all is refused where it is written
    cast = array.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(cast, array):
        raise OutputError(f"output {name!r}: values from {array.min()} to {array.max()} do not fit {wanted}")
    return cast


def _convertible(came: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    # Between precisions of one kind, and from integers and booleans to wider kinds; never floats to integers.
    if wanted == _TEXT or came == _TEXT:
        return bool(came.kind in "OUT") and wanted == _TEXT
    return bool(np.can_cast(came, wanted, casting="same_kind"))


def _dtype(dtype: Any) -> np.dtype[Any]:
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype in ("str", "string", str):
        return _TEXT
    return np.dtype("float32" if dtype == "bfloat16" else dtype)


def _labels(values: Any) -> np.ndarray:
    array = np.asarray(_to_numpy(values))
    if array.dtype.kind in "OUT":
        return np.array([str(item) for item in array.ravel()], dtype=object).reshape(array.shape)
    return array


def _attributes(output: Output) -> dict[str, Any]:
    attributes = {"description": output.description}
    return attributes | ({"units": output.unit} if output.unit else {})


def _matches(names: Sequence[str], declared: Sequence[str]) -> bool:
    if "..." not in declared:
        return tuple(names) == tuple(declared)
    at = list(declared).index("...")
    tail = len(declared) - at - 1
    return (
        len(names) >= len(declared) - 1
        and tuple(names[:at]) == tuple(declared[:at])
        and (tail == 0 or tuple(names[-tail:]) == tuple(declared[-tail:]))
    )
