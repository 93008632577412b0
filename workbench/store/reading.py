"""Reading a run: labelled arrays that load what is sliced, and refuse damaged or missing chunks."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import IntegrityError, OutputError
from workbench.record import STALE_AFTER, RunRecord, Status
from workbench.store.backend import Backend
from workbench.store.layout import ArrayLayout, chunk_files
from workbench.store.writer import run_folder
from workbench.store.zarr_access import open_array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Origin", "StoredRun", "observed_status", "origin_of"]


@dataclass(frozen=True)
class Origin:
    """Which run's output a DataArray is, untouched."""

    run: StoredRun
    variable: str


# xarray attributes survive slicing, so they cannot carry identity. This table knows the very objects handed out; an
# entry counts only while the object still holds the lazy array it was made with (loading or assigning replaces it).
_ORIGIN_OF: dict[int, tuple[weakref.ref[Any], object, tuple[Any, ...], Origin]] = {}


def _remember(array: xr.DataArray, origin: Origin) -> None:
    key = id(array)
    _ORIGIN_OF[key] = (
        weakref.ref(array, lambda _: _ORIGIN_OF.pop(key, None)),
        array.variable._data,
        _surface(array),
        origin,
    )


def _surface(array: xr.DataArray) -> tuple[Any, ...]:
    return (
        array.name,
        array.dims,
        tuple(sorted((name, id(variable)) for name, variable in array._coords.items())),
    )


def origin_of(array: xr.DataArray) -> Origin | None:
    """The run output that `array` is, if it is one handed out by `run[...]` and has not been changed since."""
    entry = _ORIGIN_OF.get(id(array))
    if entry is None:
        return None
    reference, data, surface, origin = entry
    if reference() is not array or array.variable._data is not data or _surface(array) != surface:
        return None
    return None if getattr(data, "_copied", False) else origin


def observed_status(record: RunRecord) -> Status:
    """The record's status, except that a running run whose heartbeat is stale, or whose process is gone, is interrupted."""
    if record.status != "running":
        return record.status
    beat = datetime.fromisoformat(record.heartbeat)
    if (datetime.now(UTC) - beat).total_seconds() > STALE_AFTER:
        return "interrupted"
    import os
    import socket

    if record.host == socket.gethostname():
        try:
            os.kill(record.pid, 0)
        except ProcessLookupError:
            return "interrupted"
        except PermissionError:
            pass
    return "running"


class StoredRun:
    """A run in a store, read lazily. This is also the `Result` that a method's `report` receives (see `with_params`)."""

    def __init__(self, backend: Backend, record: RunRecord, params: Any = None) -> None:
        self.backend = backend
        self.record = record
        self._params = params

    @property
    def id(self) -> str:
        """Run id."""
        return self.record.id

    @property
    def status(self) -> Status:
        """running, complete, failed, cancelled or interrupted."""
        return observed_status(self.record)

    @property
    def method_id(self) -> str:
        """Id of the method that made the run."""
        return self.record.method

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.record.seed

    @property
    def device(self) -> str:
        """Device the run was computed on."""
        return self.record.device

    @property
    def seconds(self) -> float:
        """Wall time of the computation."""
        return self.record.seconds

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Per role: label, digest, kind and sizes."""
        return self.record.inputs

    @property
    def params(self) -> Any:
        """The method's `Params` where the method is at hand, else the parameters as a dict."""
        return self.record.params if self._params is None else self._params

    def with_params(self, params: Any) -> StoredRun:
        """The same run with validated parameters."""
        return StoredRun(self.backend, self.record, params)

    # --- arrays -----------------------------------------------------------------------------------------------------

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the stored outputs, coordinates left out."""
        return tuple(
            path for path, entry in self.record.arrays.items() if "/" not in path and not entry["coordinate"]
        )

    def __contains__(self, name: object) -> bool:
        return name in self.record.arrays

    def __getitem__(self, name: str) -> xr.DataArray:
        """A stored array with its coordinates.

        Raises:
            OutputError: the run stored no array of this name.
        """
        import difflib

        import xarray as xr

        if name not in self.record.arrays:
            close = difflib.get_close_matches(name, self.record.arrays, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise OutputError(f"run {self.id} stored no array {name!r}.{hint} It has: {', '.join(self.outputs) or 'none'}.")
        variable = self._variable(name)
        group = name.rpartition("/")[0]
        array = xr.DataArray(variable, coords=self._coordinates(group, variable.dims), name=name.rpartition("/")[2])
        _remember(array, Origin(self, name))
        return array

    def _variable(self, path: str) -> Any:
        import xarray as xr
        from xarray.core import indexing

        entry = self.record.arrays[path]
        if entry["files"] == 0:
            dtype = np.dtype(object if entry["dtype"] == "string" else entry["dtype"])
            return xr.Variable(entry["dims"], np.empty(entry["shape"], dtype=dtype), _attributes(entry))
        guarded = _backend_array()(self, path)
        lazy = indexing.CopyOnWriteArray(indexing.LazilyIndexedArray(guarded))  # type: ignore[arg-type]
        return xr.Variable(entry["dims"], lazy, _attributes(entry))

    def _coordinates(self, group: str, dims: tuple[Any, ...]) -> dict[str, Any]:
        found = {}
        for path, entry in self.record.arrays.items():
            parent, _, name = path.rpartition("/")
            if parent == group and entry["coordinate"] and set(entry["dims"]) <= set(dims):
                found[name] = self._loaded(path)
        return found

    def _loaded(self, path: str) -> Any:
        cache = self.__dict__.setdefault("_labels", {})
        if path not in cache:
            cache[path] = self._variable(path).load()
        return cache[path]

    @property
    def series(self) -> xr.Dataset:
        """Logged time series over `step`; a series that was not logged at a step is NaN there."""
        return self._dataset("series")

    def dataset(self, variables: Iterator[str] | tuple[str, ...] | None = None) -> xr.Dataset:
        """The outputs (or some of them) as one Dataset, read lazily."""
        return self._dataset("", variables)

    def _dataset(self, group: str, variables: Any = None) -> xr.Dataset:
        import xarray as xr

        prefix = f"{group}/" if group else ""
        names = [
            path[len(prefix) :]
            for path in self.record.arrays
            if path.startswith(prefix) and "/" not in path[len(prefix) :]
        ]
        if variables is not None:
            wanted = set(variables)
            names = [name for name in names if name in wanted]
        data = {name: self._variable(prefix + name) for name in names}
        coords: dict[str, Any] = {}
        for variable in data.values():
            coords |= self._coordinates(group, variable.dims)
        return xr.Dataset({name: variable for name, variable in data.items() if name not in coords}, coords=coords)

    @property
    def tree(self) -> xr.DataTree:
        """Everything stored, as an xarray DataTree (outputs at the root, `series` and models below)."""
        import xarray as xr

        groups = {path.rpartition("/")[0] for path in self.record.arrays} | {""}
        return xr.DataTree.from_dict({f"/{group}": self._dataset(group) for group in sorted(groups)}, name=self.id)

    def model_state(self, name: str = "model") -> dict[str, np.ndarray]:
        """Arrays of a stored model by parameter name.

        Raises:
            OutputError: the run stored no model of this name.
        """
        if name not in self.record.models:
            known = ", ".join(self.record.models) or "none"
            raise OutputError(f"run {self.id} ({self.method_id}) stored no model {name!r}; it has: {known}")
        prefix = f"{name}/"
        return {
            path[len(prefix) :]: np.asarray(self._variable(path).values)
            for path in self.record.arrays
            if path.startswith(prefix)
        }

    # --- integrity --------------------------------------------------------------------------------------------------

    def layout(self, path: str) -> ArrayLayout:
        """Chunks and shards of a stored array, read from its own document."""
        document = self.open_zarr(path).metadata.to_dict()
        entry = self.record.arrays[path]
        file_shape = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
        codecs = document["codecs"]
        chunk = file_shape
        if codecs and codecs[0]["name"] == "sharding_indexed":
            chunk = tuple(codecs[0]["configuration"]["chunk_shape"])
        dtype = np.dtype(object if entry["dtype"] == "string" else entry["dtype"])
        return ArrayLayout(tuple(entry["shape"]), dtype, chunk, file_shape if chunk != file_shape else None)

    def open_zarr(self, path: str, *, fast: bool = False) -> Any:
        """The zarr array, with errors that name run and array; `fast` is for reads of whole files only."""
        try:
            return open_array(self.backend, f"{run_folder(self.record)}/{path}", writable=False, fast=fast)
        except Exception as error:
            raise IntegrityError(self.id, path, "all", f"cannot be opened ({error})") from error

    def check_files(self, path: str, layout: ArrayLayout, region: tuple[slice, ...] | None = None) -> None:
        """Raise IntegrityError if a file of `region` is missing."""
        for name in chunk_files(layout, region):
            if not self.backend.exists(f"{run_folder(self.record)}/{path}/{name}"):
                raise IntegrityError(self.id, path, _spell(region), f"chunk file {name} is missing")


def _attributes(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("description", "units") if entry.get(name)}


def _spell(region: Any) -> str:
    if region is None:
        return "all"
    return "[" + ", ".join(f"{part.start}:{part.stop}" for part in region) + "]"


@cache
def _backend_array() -> Any:
    """The class of guarded arrays; made on first use because xarray takes half a second to import."""
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class GuardedArray(BackendArray):
        """Reads regions of one stored array and turns damage into IntegrityError."""

        def __init__(self, run: StoredRun, path: str) -> None:
            entry = run.record.arrays[path]
            self.run, self.path = run, path
            self.shape = tuple(entry["shape"])
            self.dtype = np.dtype(object if entry["dtype"] == "string" else entry["dtype"])
            self._layout: ArrayLayout | None = None
            self._arrays: dict[bool, Any] = {}

        def __getitem__(self, key: Any) -> Any:
            return indexing.explicit_indexing_adapter(
                key, self.shape, indexing.IndexingSupport.OUTER, self._read
            )

        def _read(self, key: tuple[Any, ...]) -> np.ndarray:
            if self._layout is None:
                self._layout = self.run.layout(self.path)
            region = tuple(_hull(part, size) for part, size in zip(key, self.shape, strict=True))
            self.run.check_files(self.path, self._layout, region)
            # Only reads of whole files may take the fast way: it checks no checksum on the others.
            whole = all(isinstance(part, slice) and part.step in (None, 1) for part in key)
            fast = whole and _covers_files(region, self._layout)
            if fast not in self._arrays:
                self._arrays[fast] = self.run.open_zarr(self.path, fast=fast)
            array = self._arrays[fast]
            try:
                values = array.oindex[key] if any(isinstance(part, np.ndarray) for part in key) else array[key]
            except Exception as error:
                raise IntegrityError(self.run.id, self.path, _spell(region), f"damaged ({error})") from error
            return np.asarray(values, dtype=self.dtype)

    return GuardedArray


def _covers_files(region: tuple[slice, ...], layout: ArrayLayout) -> bool:
    """Whether a region consists of whole files (chunks or shards)."""
    return all(
        limits.start % part == 0 and (limits.stop % part == 0 or limits.stop == size)
        for limits, part, size in zip(region, layout.file_shape, layout.shape, strict=True)
    )


def _hull(part: Any, size: int) -> slice:
    """The smallest slice of step 1 that holds an index, slice or index array."""
    if isinstance(part, slice):
        indices = range(*part.indices(size))
        return slice(min(indices[0], indices[-1]), max(indices[0], indices[-1]) + 1) if indices else slice(0, 0)
    if isinstance(part, np.ndarray):
        return slice(int(part.min()), int(part.max()) + 1) if part.size else slice(0, 0)
    index = int(part) + (size if part < 0 else 0)
    return slice(index, index + 1)
