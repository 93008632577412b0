"""Writing one run: arrays as they are computed, then one atomic step that makes the run complete.

While a run is written, its root `zarr.json` says `running` and carries a heartbeat. `complete` replaces that file by one
that lists every array with the number of its files; nothing is written after it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from workbench.errors import OutputError, StoreError
from workbench.record import RunRecord, now
from workbench.store.array_writer import ArrayWriter
from workbench.store.backend import Backend
from workbench.store.encoding import encoded_files
from workbench.store.keys import unmark
from workbench.store.layout import ArrayLayout, array_document, dump, plan, plan_blocks
from workbench.store.records import root_document
from workbench.store.zarr_access import has_fast_pipeline, open_array

__all__ = ["RunWriter", "run_folder"]


def run_folder(record: RunRecord) -> str:
    """Key of a run's group below the store's root."""
    return f"runs/{record.month}/{record.id}"


class RunWriter:
    """Writes one run; made by `Store.begin`."""

    def __init__(self, backend: Backend, record: RunRecord) -> None:
        self.backend = backend
        self.record = record
        self.folder = run_folder(record)
        self.documents: dict[str, dict[str, Any]] = {}
        """zarr documents of every array and group below the root, by path."""
        self._arrays: dict[str, ArrayWriter] = {}
        self._layouts: dict[str, ArrayLayout] = {}
        self._sizes: dict[tuple[str, str], tuple[int, str]] = {}
        self._coordinates: list[str] = []
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._slots = threading.BoundedSemaphore(2)
        self._failure: BaseException | None = None
        self._deleted = False
        self._pending: list[Future[None]] = []
        try:
            self._write_root()
        except OSError as error:
            raise self._unwritable(error) from error

    # --- arrays -----------------------------------------------------------------------------------------------------

    def declare(
        self,
        path: str,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        dims: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
        *,
        allocate: Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray] = np.empty,
        auxiliary: bool = False,
    ) -> ArrayWriter:
        """Declare an array to be written in regions. `auxiliary` marks a coordinate that is not its dim's own labels.

        Raises:
            OutputError: the array was declared before, or one of its dims has another length in this group.
        """
        layout = self._register(path, tuple(int(size) for size in shape), dtype, dims, attributes or {}, auxiliary)
        self._arrays[path] = ArrayWriter(self, path, layout, allocate)
        return self._arrays[path]

    def declare_blocks(
        self,
        path: str,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        dims: Sequence[str],
        attributes: Mapping[str, Any],
        rows: int,
    ) -> ArrayLayout:
        """Declare an array whose blocks of `rows` rows are written by others (see `workbench.store.blocks`).

        Raises:
            OutputError: as `declare`; strings.
        """
        sizes = tuple(int(size) for size in shape)
        layout = self._register(path, sizes, dtype, dims, attributes, False, plan_blocks(sizes, dtype, rows))
        try:
            self.backend.write_new_chunk(f"{self.folder}/{path}/zarr.json", dump(self.documents[path]))
        except OSError as error:
            raise self._unwritable(error) from error
        return layout

    def put(
        self,
        path: str,
        values: np.ndarray,
        dims: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
        *,
        auxiliary: bool = False,
    ) -> None:
        """Write a whole array at once."""
        layout = self._register(path, values.shape, values.dtype, dims, attributes or {}, auxiliary)
        self.write_whole(path, layout, values)

    def _register(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        dims: Sequence[str],
        attributes: Mapping[str, Any],
        auxiliary: bool,
        layout: ArrayLayout | None = None,
    ) -> ArrayLayout:
        if path in self.documents:
            raise OutputError(f"output {path!r} was written twice")
        group, _, name = path.rpartition("/")
        if len(set(dims)) != len(dims):
            raise OutputError(f"output {path!r}: dims ({', '.join(dims)}) name one dim twice")
        for dim, size in zip(dims, shape, strict=True):
            known, owner = self._sizes.setdefault((group, dim), (size, path))
            if known != size:
                raise OutputError(
                    f"output {path!r}: dim {dim!r} has length {size}, but {known} in {owner!r}; "
                    "a dim has one length in a run"
                )
        if group:
            self._ensure_group(group)
        layout = layout or plan(shape, dtype)
        if auxiliary:
            self._coordinates.append(name)
        self.documents[path] = array_document(layout, dims, attributes)
        self._layouts[path] = layout
        return layout

    def _ensure_group(self, group: str) -> None:
        parts = group.split("/")
        for end in range(1, len(parts) + 1):
            path = "/".join(parts[:end])
            if path not in self.documents:
                document = {"zarr_format": 3, "node_type": "group", "attributes": {}}
                self.documents[path] = document
                self.backend.write_new_chunk(f"{self.folder}/{path}/zarr.json", dump(document))

    def write_whole(self, path: str, layout: ArrayLayout, values: np.ndarray) -> None:
        """Write all of an array: by hand if it is one chunk, else through zarr."""
        key = f"{self.folder}/{path}"
        try:
            self.backend.write_new_chunk(f"{key}/zarr.json", dump(self.documents[path]))
            if layout.files == 1 or (layout.files and self.by_hand):
                self.write_files(path, layout, values)
            elif layout.files:
                open_array(self.backend, key)[...] = values
        except (OSError, RuntimeError) as error:
            raise self._unwritable(error) from error

    @property
    def by_hand(self) -> bool:
        """Whether whole files are faster made here than by zarr's pipeline."""
        return self.backend.remote or not has_fast_pipeline()

    def write_files(self, path: str, layout: ArrayLayout, values: np.ndarray, first_row: int = 0) -> None:
        """Write whole files of an array: see `encoded_files`."""
        for name, data in encoded_files(layout, values, first_row):
            self.backend.write_new_chunk(f"{self.folder}/{path}/{name}", data)

    # --- background writing -----------------------------------------------------------------------------------------

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work` on the writing thread; at most two pieces wait, so memory stays bounded."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="workbench-writer")
        self._slots.acquire()

        def guarded() -> None:
            try:
                if self._failure is None:
                    work()
            except BaseException as error:
                self._failure = error
            finally:
                self._slots.release()

        self._pending = [future for future in self._pending if not future.done()]
        self._pending.append(self._pool.submit(guarded))

    def raise_background_error(self) -> None:
        """Raise what went wrong on the writing thread, if anything did."""
        if self._failure is not None:
            error, self._failure = self._failure, None
            # Only writing happens on that thread; the Rust pipeline reports a full disk as a RuntimeError.
            raise self._unwritable(error) if isinstance(error, OSError | RuntimeError) else error

    def drain(self) -> None:
        """Wait until everything handed to the writing thread lies in the store."""
        for future in self._pending:
            future.result()
        self._pending.clear()
        self.raise_background_error()

    def _unwritable(self, error: OSError | RuntimeError) -> StoreError:
        reason = getattr(error, "strerror", None) or error
        return StoreError(f"the store {self.backend.url} cannot be written: {reason}")

    # --- the record -------------------------------------------------------------------------------------------------

    def update(self, **changes: Any) -> None:
        """Rewrite the running record (heartbeat, progress). Safe to call from another thread."""
        with self._lock:
            if self.record.status == "running" and not self._gone():
                self.record = self.record.replace(heartbeat=now(), **changes)
                self._write_root()

    def flush(self) -> None:
        """Write everything declared so far to the store."""
        for array in self._arrays.values():
            array.finish()
        self.drain()
        self._arrays = {}

    def missing_regions(self) -> dict[str, str]:
        """Declared arrays that were not written completely, with the first gap of each. Call before `flush`."""
        gaps = {path: array.missing() for path, array in self._arrays.items()}
        return {path: gap for path, gap in gaps.items() if gap is not None}

    def complete(self, **changes: Any) -> RunRecord:
        """Make the run complete: one atomic step, after which nothing is written."""
        return self._close("complete", changes)

    def fail(self, **changes: Any) -> RunRecord:
        """Close the run as failed; what was written stays readable."""
        return self._close("failed", changes)

    def cancel(self, **changes: Any) -> RunRecord:
        """Close the run as cancelled; what was written stays readable."""
        return self._close("cancelled", changes)

    def abandon(self) -> None:
        """Remove every trace of the run."""
        self._shutdown()
        with self._lock:
            self.record = self.record.replace(status="cancelled")
            self.backend.delete(self.folder)
            unmark(self.backend, self.record)

    def _close(self, status: str, changes: Mapping[str, Any]) -> RunRecord:
        if status == "complete":
            self.flush()
        self._shutdown()
        with self._lock:
            if status == "complete" and self._gone():
                self._discard_arrays()  # those that were written since
                raise StoreError(
                    f"run {self.record.id} was deleted from the store {self.backend.url} while it was running, "
                    "so its results are lost; run it again"
                )
            self.record = self.record.replace(status=status, finished=now(), heartbeat=now(), progress={}, **changes)
            self.record = self.record.replace(arrays=self.inventory())
            try:
                self._write_root()
            except OSError as error:
                if status == "complete":
                    raise self._unwritable(error) from error
                # Most likely the disk is full: what this run wrote is no result, so it may make room for its record.
                self._discard_arrays()
                self.record = self.record.replace(arrays={})
                self._write_root()
        return self.record

    def _gone(self) -> bool:
        """Whether somebody deleted the run, e.g. as garbage while this machine slept. It stays so: nothing revives it.

        A run deleted (by force, for it is alive) in the moment between this look and the record's last writing reads as
        complete and its arrays as missing: IntegrityError, which `verify` names too, never wrong numbers.
        """
        with suppress(OSError):  # not known: writing, which comes next, says what is wrong
            self._deleted = self._deleted or self.backend.size(f"{self.folder}/zarr.json") is None
        return self._deleted

    def _discard_arrays(self) -> None:
        for path in list(self._layouts):
            self.backend.delete(f"{self.folder}/{path}")
        self.documents, self._layouts, self._coordinates = {}, {}, []

    def _shutdown(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def inventory(self) -> dict[str, dict[str, Any]]:
        """What the record says of every array declared so far."""
        return {
            path: {
                "dims": self.documents[path]["dimension_names"],
                "shape": list(layout.shape),
                "dtype": "string" if layout.dtype.kind == "O" else layout.dtype.name,
                "chunk": list(layout.chunk),
                "shard": None if layout.shard is None else list(layout.shard),
                "bytes": math.prod(layout.shape) * layout.dtype.itemsize,
                "files": layout.files,
                "description": self.documents[path]["attributes"].get("description", ""),
                "units": self.documents[path]["attributes"].get("units", ""),
                "coordinate": path in self._coordinates or self.documents[path]["dimension_names"] == [_name(path)],
            }
            for path, layout in self._layouts.items()
        }

    def _write_root(self) -> None:
        documents = None if self.record.status == "running" else self.documents
        data = root_document(self.record, " ".join(self._coordinates), documents)
        self.backend.write(f"{self.folder}/zarr.json", data)


def _name(path: str) -> str:
    return path.rpartition("/")[2]
