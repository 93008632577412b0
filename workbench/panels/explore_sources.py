"""What the explorer reads from: one stored array, or one array of several runs; bytes are counted where they are read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from workbench.errors import InputError
from workbench.panels.explore_overview import Overviews
from workbench.render.markup import visible
from workbench.render.texts import label_text
from workbench.store import StoredRun

if TYPE_CHECKING:
    import xarray as xr

    from workbench.store.backend import Backend

__all__ = ["MeteredBackend", "RunArrays", "Source", "StackedSource", "StoredSource"]

KEPT = 64 * 1024 * 1024
"""Packed bytes kept for the next step: neighbours often lie in the chunk that was just read."""


class MeteredBackend:
    """A store's back-end that counts the bytes it reads and keeps the newest ones. Everything else is passed through."""

    def __init__(self, backend: Backend, keep: int = KEPT) -> None:
        self._backend, self._keep = backend, keep
        self._parts: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self.bytes_read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def read(self, key: str, limit: int | None = None) -> bytes:
        """See `Backend.read`."""
        found = self._kept((key, 0, -1))
        return found if found is not None else self._put((key, 0, -1), self._backend.read(key, limit))

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See `Backend.read_tail`; a reader of chunks asks once and keeps the answer itself."""
        data, total = self._backend.read_tail(key, size)
        with self._lock:
            self.bytes_read += len(data)
        return data, total

    def read_parts(self, key: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Backend.read_parts`."""
        found = {part: self._kept((key, *part)) for part in parts}
        missing = [part for part in parts if found[part] is None]
        if missing:
            for part, data in zip(missing, self._backend.read_parts(key, missing), strict=True):
                found[part] = self._put((key, *part), data)
        return [found[part] or b"" for part in parts]

    def _kept(self, place: tuple[str, int, int]) -> bytes | None:
        with self._lock:
            if place in self._parts:
                self._parts.move_to_end(place)
            return self._parts.get(place)

    def _put(self, place: tuple[str, int, int], data: bytes) -> bytes:
        with self._lock:
            self.bytes_read += len(data)
            if place not in self._parts:
                self._parts[place] = data
                self._held += len(data)
            while self._held > self._keep and len(self._parts) > 1:
                self._held -= len(self._parts.popitem(last=False)[1])
        return data


class Source(Protocol):
    """An n-d array to look at. Nothing is read but what `read` is asked for."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    units: str
    description: str

    def read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        """The region at one index or slice per dim; dims with an index are dropped."""

    def labels(self, dim: str) -> np.ndarray | None:
        """Coordinate labels of a dim, or None."""

    def opening(self) -> str:
        """Python that gives this array as `xarray.DataArray`, e.g. `run["restored"]`, after the lines it needs."""


def sizes_of(source: Source) -> dict[str, int]:
    """Sizes by dim."""
    return dict(zip(source.dims, source.shape, strict=True))


class StoredSource:
    """One array of a run."""

    def __init__(self, run: StoredRun, name: str) -> None:
        self.run, self.name = run, name
        self.array: xr.DataArray = run[name]
        self.dims = tuple(str(dim) for dim in self.array.dims)
        self.shape, self.dtype = self.array.shape, self.array.dtype
        self.units = str(self.array.attrs.get("units", ""))
        self.description = str(self.array.attrs.get("description", ""))

    def read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        """See Source."""
        return np.asarray(self.array.variable[key].values)

    def labels(self, dim: str) -> np.ndarray | None:
        """See Source."""
        return np.asarray(self.array.coords[dim].values) if dim in self.array.coords else None

    def opening(self) -> str:
        """See Source."""
        return f"run = bench[{self.run.id!r}]\nrun[{self.name!r}]"


class StackedSource:
    """The same array of several runs, with the dim `run` in front."""

    def __init__(self, sources: Sequence[StoredSource], names: Sequence[str]) -> None:
        first = sources[0]
        for other in sources[1:]:
            if (other.dims, other.shape) != (first.dims, first.shape):
                raise InputError(
                    "runs",
                    expected=f"{first.name!r} of the same dims and sizes in every run: {spell_sizes(first)}",
                    got=f"{spell_sizes(other)} in run {other.run.id}",
                )
        self.sources, self.names = list(sources), list(names)
        self.name, self.units, self.description = first.name, first.units, first.description
        self.dims, self.shape = ("run", *first.dims), (len(sources), *first.shape)
        self.dtype = np.result_type(*[source.dtype for source in sources]) if first.dtype.kind != "O" else first.dtype

    def read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        """See Source."""
        where, rest = key[0], key[1:]
        if isinstance(where, slice):
            return np.stack([source.read(rest) for source in self.sources[where]])
        return self.sources[where].read(rest)

    def labels(self, dim: str) -> np.ndarray | None:
        """See Source."""
        return np.asarray(self.names, dtype=object) if dim == "run" else self.sources[0].labels(dim)

    def opening(self) -> str:
        """See Source."""
        runs = ", ".join(repr(source.run.id) for source in self.sources)
        return f"compared = bench.compare([{runs}], variables=[{self.name!r}])\ncompared[{self.name!r}]"


def spell_sizes(source: Source) -> str:
    """`sample 100 × y 32 × x 32`."""
    return " × ".join(f"{dim} {size:,}" for dim, size in sizes_of(source).items()) or "one number"


class RunArrays:
    """The arrays of one run, or those that several runs share: which there are, and what fits to which."""

    def __init__(self, runs: Sequence[StoredRun], names: Sequence[str] = ()) -> None:
        self.meters = [MeteredBackend(run.backend) for run in runs]
        self.runs = [StoredRun(meter, run.record) for meter, run in zip(self.meters, runs, strict=True)]  # type: ignore[arg-type]
        self.labels = list(names) or [run.id for run in runs]
        self._sources: dict[str, StoredSource | StackedSource] = {}
        self.overviews = Overviews()

    @property
    def names(self) -> list[str]:
        """Arrays that can be shown: in every run, with the same dims and sizes."""
        first, *others = self.runs
        return [
            name
            for name in first.outputs
            if all(name in run and self._form(run, name) == self._form(first, name) for run in others)
        ]

    @staticmethod
    def _form(run: StoredRun, name: str) -> tuple[Any, Any]:
        entry = run.record.arrays[name]
        return list(entry["dims"]), list(entry["shape"])

    @property
    def bytes_read(self) -> int:
        """Bytes read from the store so far."""
        return sum(meter.bytes_read for meter in self.meters)

    def entry(self, name: str) -> dict[str, Any]:
        """What the record says of an array."""
        return self.runs[0].record.arrays[name]

    def chunk(self, name: str) -> dict[str, int]:
        """The size of an array's chunks along each dim; a run is read by itself."""
        entry = self.entry(name)
        return {"run": 1} | dict(zip(entry["dims"], entry["chunk"], strict=True))

    def source(self, name: str) -> StoredSource | StackedSource:
        """An array, opened once: its reader remembers where chunks lie.

        Raises:
            OutputError: there is none of this name.
        """
        if name not in self._sources:
            found = [StoredSource(run, name) for run in self.runs]
            self._sources[name] = found[0] if len(found) == 1 else StackedSource(found, self.labels)
        return self._sources[name]

    def overlays(self, source: Source, x: str, y: str) -> list[str]:
        """Arrays that can lie over pictures of `source`: same y and x, and no dim that it lacks."""
        sizes = sizes_of(source)
        found = []
        for name in self.names:
            entry = self.entry(name)
            own = dict(zip(entry["dims"], entry["shape"], strict=True))
            lies_over = {x, y} <= set(own) and all(sizes.get(dim) == size for dim, size in own.items())
            if name != source.name and entry["dtype"] != "string" and lies_over:
                found.append(name)
        return found

    def captions(self, source: Source, dim: str) -> list[str]:
        """Arrays over just this dim (labels, predictions, scores), to print beside each picture."""
        size = sizes_of(source)[dim]
        record = self.runs[0].record.arrays
        return [
            path
            for path, entry in record.items()
            if "/" not in path and path != dim and list(entry["dims"]) == [dim] and list(entry["shape"]) == [size]
        ]

    def caption_texts(self, name: str, part: slice) -> list[str]:
        """Texts of an array over one dim."""
        array = self.runs[0][name].variable[(part,)]
        return [visible(label_text(value), 300) for value in np.asarray(array.values)]
