"""Writing a block of rows of a run's array, from whichever process computed it.

The array was declared by the run's one writer with a layout in which no file holds rows of two blocks. So blocks are written
without locks, in any order, and again if a worker died; the run is complete only when its writer says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from workbench.errors import OutputError, StoreError
from workbench.store.backend import Backend
from workbench.store.encoding import encoded_files
from workbench.store.layout import ArrayLayout

__all__ = ["BlockWriter"]


class _Source(Protocol):
    shape: tuple[int, ...]

    def copy_into(self, target: np.ndarray) -> Callable[[], None] | None: ...


class BlockWriter:
    """Rows start..stop of one array: collected in memory, written at once by `flush`."""

    def __init__(self, backend: Backend, folder: str, path: str, layout: ArrayLayout, start: int, stop: int) -> None:
        self.shape, self.dtype, self.path = layout.shape, layout.dtype, path
        self._backend, self._key, self._layout, self._start, self._stop = (
            backend,
            f"{folder}/{path}",
            layout,
            start,
            stop,
        )
        self._values = np.empty((stop - start, *layout.shape[1:]), dtype=layout.dtype)
        self._filled = (
            np.zeros(self._values.shape, dtype=bool) if layout.shape[1:] else np.zeros(stop - start, dtype=bool)
        )

    def write(self, region: tuple[slice, ...], source: _Source) -> None:
        """Take values for a region of the whole array.

        Raises:
            OutputError: it is not within the block, or of another shape.
        """
        rows = region[0]
        if not self._start <= rows.start <= rows.stop <= self._stop:
            raise OutputError(
                f"output {self.path!r}: block {self._start}:{self._stop} wrote samples {rows.start}:{rows.stop}, "
                "which belong to another block"
            )
        here = (slice(rows.start - self._start, rows.stop - self._start), *region[1:])
        if tuple(source.shape) != self._values[here].shape:
            raise OutputError(f"output {self.path!r}: a region of shape {self._values[here].shape}, got {source.shape}")
        arrival = source.copy_into(self._values[here])
        if arrival is not None:
            arrival()
        self._filled[here] = True

    def flush(self) -> None:
        """Write the block.

        Raises:
            OutputError: a part of it was never assigned.
            StoreError: the store cannot be written.
        """
        if not self._filled.all():
            gap = np.argwhere(~self._filled)[0]
            where = ", ".join(map(str, [int(gap[0]) + self._start, *gap[1:].tolist()]))
            raise OutputError(f"output {self.path!r} was left unwritten at [{where}] by its block")
        try:
            for name, data in encoded_files(self._layout, self._values, self._start):
                self._backend.write_new_chunk(f"{self._key}/{name}", data)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(f"the store {self._backend.url} cannot be written: {reason}") from error
