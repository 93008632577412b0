"""Writing one array in regions: small ones are gathered in memory, large ones stream to the store shard by shard."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from workbench.errors import OutputError
from workbench.store.coverage import Coverage
from workbench.store.layout import ArrayLayout, dump
from workbench.store.zarr_access import open_array

if TYPE_CHECKING:
    from workbench.store.writer import RunWriter

__all__ = ["ArrayWriter", "NumpySource", "Source"]

BUFFERED_BYTES = 32 * 1024 * 1024
"""Arrays up to this size are kept in memory and written at the end; larger ones stream shard by shard."""
OPEN_BUFFERS = 4
"""Shards of one array that may be partly filled at a time before the oldest is written as it is."""


class Source(Protocol):
    """Values that know how to copy themselves, e.g. from a GPU through pinned memory."""

    shape: tuple[int, ...]

    def part(self, start: int, stop: int) -> Source:
        """Rows start..stop of the first axis."""

    def copy_into(self, target: np.ndarray) -> Callable[[], None] | None:
        """Copy to `target`; a returned function blocks until an asynchronous copy has arrived."""


class NumpySource:
    """Values that are in memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    def part(self, start: int, stop: int) -> NumpySource:
        """See Source."""
        return NumpySource(self.values[start:stop])

    def copy_into(self, target: np.ndarray) -> None:
        """See Source."""
        np.copyto(target, self.values, casting="same_kind")


class _Buffer:
    """Rows of one shard row that are being filled."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.filled = np.zeros(len(values), dtype=bool)
        self.arrivals: list[Callable[[], None]] = []

    def wait(self) -> None:
        for arrival in self.arrivals:
            arrival()
        self.arrivals.clear()


class ArrayWriter:
    """One declared array, written in regions. Not thread-safe: one run, one thread."""

    def __init__(
        self,
        run: RunWriter,
        path: str,
        layout: ArrayLayout,
        allocate: Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray],
    ) -> None:
        self.run, self.path, self.layout, self._allocate = run, path, layout, allocate
        self.shape, self.dtype = layout.shape, layout.dtype
        self._whole: np.ndarray | None = None
        self._written: np.ndarray | None = None
        """Which elements (small arrays) or rows (streamed ones) have been written."""
        self._parts: Coverage | None = None
        """What was written of a streamed array by regions that do not span whole rows."""
        self._zarr: Any = None
        self._buffers: OrderedDict[int, _Buffer] = OrderedDict()
        self._streams = math.prod(self.shape) * max(self.dtype.itemsize, 1) > BUFFERED_BYTES and self.dtype.kind != "O"
        if self._streams:
            self._written = np.zeros(self.shape[0], dtype=bool)
            run.backend.write_new_chunk(f"{run.folder}/{path}/zarr.json", dump(run.documents[path]))
            self._zarr = open_array(run.backend, f"{run.folder}/{path}")
        else:
            self._whole = np.empty(self.shape, dtype=self.dtype)
            self._written = np.zeros(self.shape, dtype=bool)

    def write(self, region: tuple[slice, ...], source: Source) -> None:
        """Write `source` to `region` (slices of step 1, one per dim)."""
        self.run.raise_background_error()
        expected = tuple(part.stop - part.start for part in region)
        if tuple(source.shape) != expected:
            raise OutputError(f"output {self.path!r}: region {_spell(region)} has shape {expected}, got {source.shape}")
        assert self._written is not None
        if not self._streams:
            assert self._whole is not None
            arrival = source.copy_into(self._whole[region] if region else self._whole)
            if arrival is not None:
                arrival()
            self._written[region] = True
        elif all(part.stop - part.start == size for part, size in zip(region[1:], self.shape[1:], strict=True)):
            self._write_rows(region[0].start, region[0].stop, source)
        else:
            values = np.empty(expected, dtype=self.dtype)
            arrival = source.copy_into(values)
            if arrival is not None:
                arrival()
            # Rows that were written before this region must not be written after it.
            depth = self.layout.file_shape[0]
            for index in list(self._buffers):
                if index * depth < region[0].stop and region[0].start < (index + 1) * depth:
                    self._flush(index)
            if self._parts is None:
                self._parts = Coverage(self.shape)
            self._parts.add(region)
            self.run.submit(lambda: self._zarr.__setitem__(region, values))

    def _write_rows(self, start: int, stop: int, source: Source) -> None:
        assert self._written is not None
        depth = self.layout.file_shape[0]
        first = start
        while start < stop:
            index = start // depth
            end = min(stop, (index + 1) * depth)
            low = index * depth
            buffer = self._buffers.get(index)
            if buffer is None:
                if len(self._buffers) >= OPEN_BUFFERS:
                    self._flush(next(iter(self._buffers)))
                height = min(depth, self.shape[0] - low)
                buffer = self._buffers[index] = _Buffer(self._allocate((height, *self.shape[1:]), self.dtype))
            arrival = source.part(start - first, end - first).copy_into(buffer.values[start - low : end - low])
            if arrival is not None:
                buffer.arrivals.append(arrival)
            buffer.filled[start - low : end - low] = True
            self._written[start:end] = True
            if buffer.filled.all():
                self._flush(index)
            start = end

    def _flush(self, index: int) -> None:
        buffer = self._buffers.pop(index)
        low = index * self.layout.file_shape[0]

        def write() -> None:
            buffer.wait()
            if buffer.filled.all() and self.run.by_hand:
                self.run.write_files(self.path, self.layout, buffer.values, low)
                return
            if buffer.filled.all():
                self._zarr[low : low + len(buffer.values)] = buffer.values
                return
            edges = np.flatnonzero(np.diff(np.concatenate(([0], buffer.filled.view(np.int8), [0]))))
            for start, stop in edges.reshape(-1, 2):
                self._zarr[low + int(start) : low + int(stop)] = buffer.values[start:stop]

        self.run.submit(write)

    def missing(self) -> str | None:
        """The first region never written, or None."""
        assert self._written is not None
        written = self._written if self._parts is None else self._written | self._parts.complete_rows()
        if written.all():
            return None
        where = tuple(int(index) for index in np.argwhere(~written)[0])
        rest = self._parts.first_gap_in_row(where[0]) if self._parts is not None else None
        if rest is not None and any(rest):
            return f"[{', '.join(map(str, where + rest))}]"
        return f"[{', '.join(map(str, where))}{', ...' if self._streams and len(self.shape) > 1 else ''}]"

    def finish(self) -> None:
        """Hand everything still in memory to the writing thread."""
        for index in list(self._buffers):
            self._flush(index)
        if self._whole is not None:
            self.run.write_whole(self.path, self.layout, self._whole)
            self._whole = None


def _spell(region: tuple[slice, ...]) -> str:
    return "[" + ", ".join(f"{part.start}:{part.stop}" for part in region) + "]"
