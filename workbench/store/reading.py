"""Reading a run: labelled arrays that load what is sliced, and refuse damaged or missing chunks."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import IntegrityError, OutputError
from workbench.record import RunRecord, Status
from workbench.store.backend import Backend
from workbench.store.chunk_reader import ChunkReader
from workbench.store.chunks import ChunkError
from workbench.store.liveness import observed_status
from workbench.store.records import array_layout
from workbench.store.writer import run_folder

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Origin", "StoredRun", "origin_of", "spell_region"]


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
        return observed_status(self.backend, self.record)

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
        return tuple(path for path, entry in self.record.arrays.items() if "/" not in path and not entry["coordinate"])

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
            raise OutputError(
                f"run {self.id} stored no array {name!r}.{hint} It has: {', '.join(self.outputs) or 'none'}."
            )
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
            layout = array_layout(path, entry)
            return xr.Variable(entry["dims"], np.empty(layout.shape, dtype=layout.dtype), _attributes(entry))
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


def _attributes(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("description", "units") if entry.get(name)}


def spell_region(region: tuple[slice, ...] | None) -> str:
    """A region as people write it, `[0:3, 5:9]`."""
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
            layout = array_layout(path, entry)
            self.run, self.path = run, path
            self.shape, self.dtype = layout.shape, layout.dtype
            self._reader = ChunkReader(run.backend, f"{run_folder(run.record)}/{path}", layout)

        def __getitem__(self, key: Any) -> Any:
            return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

        def _read(self, key: tuple[Any, ...]) -> np.ndarray:
            parts = tuple(_part(part, size) for part, size in zip(key, self.shape, strict=True))
            try:
                values = self._reader.read(parts)
            except ChunkError as error:
                region = spell_region(error.region) if error.region else _spell_key(parts, self.shape)
                raise IntegrityError(self.run.id, self.path, region, error.problem) from error
            single = tuple(axis for axis, part in enumerate(key) if not isinstance(part, slice | np.ndarray))
            return values.squeeze(axis=single) if single else values

    return GuardedArray


def _part(part: Any, size: int) -> slice | np.ndarray:
    """A slice or an array of non-negative indices."""
    if isinstance(part, slice):
        return part
    if isinstance(part, np.ndarray):
        return np.where(part < 0, part + size, part)
    index = int(part) + (size if part < 0 else 0)
    return slice(index, index + 1)


def _spell_key(parts: tuple[slice | np.ndarray, ...], shape: tuple[int, ...]) -> str:
    texts = []
    for part, size in zip(parts, shape, strict=True):
        if isinstance(part, slice):
            indices = range(*part.indices(size))  # as numbers only: the array may be absurdly large
            low, high = min(indices[0], indices[-1]), max(indices[0], indices[-1])
        else:
            low, high = int(part.min()), int(part.max())
        texts.append(f"{low}:{high + 1}")
    return f"[{', '.join(texts)}]"
