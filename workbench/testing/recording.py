"""A run in memory, for unit tests of methods: `out, result = record(MyMethod, {"data": data}, probes=20)`.

`RecordingOut` keeps everything a method does and checks it against the method's `outputs`; `RecordedResult` is what its
`report` receives. `check_report` resolves every view and passes the report through JSON, as the store does.
It is the quick way to test a method's maths; the whole contract is tested by `MethodContract`, through a real store.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.errors import CancelledError, OutputError, SkippedError
from workbench.method import Inputs, Method, Output
from workbench.report import FreeForm, Report

__all__ = ["RecordedResult", "RecordingOut", "check_report", "record"]


class RecordingOut:
    """The `Out` protocol in memory.

    Without a method anything may be written; with one, names, dims and dtypes must be those it declares, and `finish`
    raises if an output (or a region of it) was not written.

    Args:
        method: whose `outputs` to hold the run to.
        seed: of the run.
        device: where the method shall compute.
        restored: what `restore` returns, e.g. the `checkpoints[-1]` of another recording.
        cancel_after: `progress` raises CancelledError at its call number `cancel_after` (0: at the first).
    """

    def __init__(
        self,
        method: type[Method] | None = None,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        restored: Mapping[str, Any] | None = None,
        cancel_after: int | None = None,
    ) -> None:
        self.method, self.seed = method, seed
        self.device, self.dtype = torch.device(device), torch.float32
        self.arrays: dict[str, np.ndarray] = {}
        """Name -> stored values."""
        self.dims: dict[str, tuple[str, ...]] = {}
        """Name -> dims of the stored values."""
        self.coordinates: dict[str, tuple[str, np.ndarray]] = {}
        """Coordinate name -> (dim, values)."""
        self.logged: dict[str, dict[int, float]] = {}
        """Series name -> step -> value."""
        self.models: dict[str, dict[str, torch.Tensor]] = {}
        """Model name -> state, copied when it was stored."""
        self.modules: dict[str, torch.nn.Module] = {}
        """Model name -> a private copy of the module, in eval mode on the CPU."""
        self.checkpoints: list[dict[str, Any]] = []
        """Every checkpoint taken, copied."""
        self.progressed: list[tuple[float, float, str]] = []
        """(done, total, message) of every report of progress."""
        self._written: dict[str, np.ndarray] = {}
        self._sizes: dict[str, int] = {}
        self._restored = restored
        self._cancel_after = cancel_after
        self._calls = 0

    @property
    def series(self) -> xr.Dataset:
        """The logged series over `step`, NaN where a series was not logged."""
        steps = sorted({step for values in self.logged.values() for step in values})
        columns = {name: ("step", [v.get(s, np.nan) for s in steps]) for name, v in self.logged.items()}
        return xr.Dataset(columns, coords={"step": np.array(steps, dtype=np.int64)})

    @property
    def data(self) -> xr.Dataset:
        """All stored arrays with their coordinates."""
        dataset = xr.Dataset({name: (self.dims[name], values) for name, values in self.arrays.items()})
        return dataset.assign_coords(
            {name: (dim, v) for name, (dim, v) in self.coordinates.items() if dim in dataset.dims}
        )

    def generator(self, name: str = "") -> torch.Generator:
        """See Out."""
        return torch.Generator().manual_seed(self._stream(name))

    def rng(self, name: str = "") -> np.random.Generator:
        """See Out."""
        return np.random.default_rng(self._stream(name))

    def _stream(self, name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:7], "big")

    def coordinate(self, name: str, values: Sequence[Any] | np.ndarray, *, dim: str | None = None) -> None:
        """See Out."""
        if name in self.coordinates:
            raise OutputError(f"coordinate {name!r} is given twice")
        labels = np.asarray(_numpy(values))
        if labels.ndim != 1:
            raise OutputError(f"coordinate {name!r} has shape {labels.shape}, not one dim")
        self._size(name, (dim or name,), labels.shape)
        self.coordinates[name] = (dim or name, labels)

    def array(
        self, name: str, shape: Sequence[int], *, dims: Sequence[str] | None = None, dtype: Any = None
    ) -> RecordedArray:
        """See Out."""
        if name in self.arrays:
            raise OutputError(f"output {name!r} is written twice")
        declared = self._declared(name)
        dims = self._dims(name, dims, len(shape))
        self._size(name, dims, tuple(shape))
        self.arrays[name] = np.zeros(tuple(shape), dtype=_dtype(dtype, declared))
        self._written[name] = np.zeros(tuple(shape), dtype=bool)
        self.dims[name] = dims
        return RecordedArray(self.arrays[name], self._written[name])

    def write(self, name: str, values: Any, *, dims: Sequence[str] | None = None) -> None:
        """See Out."""
        values = _numpy(values)
        declared = self._declared(name)
        dtype = declared.dtype if declared is not None else values.dtype
        target = self.array(name, values.shape, dims=dims, dtype=dtype)
        target[...] = values

    def model(self, module: torch.nn.Module, *, name: str = "model") -> None:
        """See Out."""
        if name in self.models:
            raise OutputError(f"model {name!r} is stored twice")
        self.modules[name] = copy.deepcopy(module).cpu().eval()
        self.models[name] = {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}

    def log(self, step: int, **values: float) -> None:
        """See Out."""
        for name, value in values.items():
            self.logged.setdefault(name, {})[int(step)] = float(value)

    def progress(self, done: float, total: float, message: str = "") -> None:
        """See Out."""
        if self._cancel_after is not None and self._calls >= self._cancel_after:
            raise CancelledError
        self._calls += 1
        assert 0 <= done <= total, f"progress of {done} out of {total}"
        self.progressed.append((float(done), float(total), message))

    def track(self, items: Iterable[Any], message: str = "", total: int | None = None) -> Iterator[Any]:
        """See Out."""
        if total is None:
            total = len(items) if isinstance(items, Sized) else 0
        for done, item in enumerate(items):
            self.progress(done, max(total, done), message)
            yield item
        if total:
            self.progress(total, total, message)

    def cancelled(self) -> bool:
        """See Out."""
        return self._cancel_after is not None and self._calls >= self._cancel_after

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """See Out."""
        self.checkpoints.append(_plain(state))

    def restore(self) -> dict[str, Any] | None:
        """See Out."""
        return None if self._restored is None else _plain(self._restored)

    def skip(self, reason: str) -> None:
        """See Out."""
        raise SkippedError(self.method.id if self.method else "", reason)

    def finish(self) -> None:
        """Raise OutputError unless everything declared was written, completely."""
        for output in self.method.outputs if self.method else ():
            if output.name not in self.arrays and not output.optional:
                raise OutputError(f"output {output.name!r} was declared but not written")
        for name, written in self._written.items():
            if not written.all():
                raise OutputError(f"{(~written).sum()} of {written.size} entries of output {name!r} were not written")
        for name, (dim, labels) in self.coordinates.items():
            if self._sizes[dim] != len(labels):
                raise OutputError(f"coordinate {name!r} has {len(labels)} labels for {self._sizes[dim]} entries")

    def _declared(self, name: str) -> Output | None:
        if self.method is None:
            return None
        for output in self.method.outputs:
            if output.name == name:
                return output
        raise OutputError(f"{self.method.id} does not declare an output {name!r}")

    def _dims(self, name: str, dims: Sequence[str] | None, ndim: int) -> tuple[str, ...]:
        declared = self._declared(name)
        if dims is None:
            if declared is None or "..." in declared.dims:
                raise OutputError(f"output {name!r} needs its dims named")
            dims = declared.dims
        dims = tuple(dims)
        if declared is not None and not _fits(dims, declared.dims):
            raise OutputError(f"output {name!r} is declared with dims {declared.dims}, got {dims}")
        if len(dims) != ndim:
            raise OutputError(f"output {name!r} has {ndim} dims, named {dims}")
        return dims

    def _size(self, name: str, dims: tuple[str, ...], shape: tuple[int, ...]) -> None:
        if len(dims) != len(shape) or len(set(dims)) != len(dims):
            raise OutputError(f"{name!r}: dims {dims} do not fit shape {shape}")
        for dim, size in zip(dims, shape, strict=True):
            if self._sizes.setdefault(dim, int(size)) != size:
                raise OutputError(f"{name!r}: dim {dim!r} has {size} entries, elsewhere in this run {self._sizes[dim]}")


class RecordedArray:
    """A declared array that remembers which entries were written."""

    def __init__(self, values: np.ndarray, written: np.ndarray) -> None:
        self._values, self._mark = values, written
        self.shape = values.shape

    def __setitem__(self, region: Any, values: Any) -> None:
        values = _numpy(values)
        self._values[region] = _cast(values, self._values.dtype)
        self._mark[region] = True


class RecordedResult:
    """The `Result` protocol over a recording."""

    def __init__(self, out: RecordingOut, params: Any, inputs: Mapping[str, Any] | None = None) -> None:
        self._out, self.params = out, params
        self.method_id = out.method.id if out.method else ""
        self.seed, self.device, self.seconds = out.seed, str(out.device), 1.0
        self.inputs = {
            role: {"label": role, "digest": "0" * 16}
            | ({"sizes": {str(k): v for k, v in value.sizes.items()}} if isinstance(value, xr.Dataset) else {})
            for role, value in (inputs or {}).items()
        }

    def __getitem__(self, name: str) -> xr.DataArray:
        return self._out.data[name]

    def __contains__(self, name: object) -> bool:
        return name in self._out.arrays

    @property
    def series(self) -> xr.Dataset:
        """See Result."""
        return self._out.series


def record(
    method: type[Method],
    inputs: Mapping[str, Any],
    *,
    seed: int = 0,
    out: RecordingOut | None = None,
    **params: Any,
) -> tuple[RecordingOut, RecordedResult]:
    """Run a method in memory as the host would: validated parameters, private models in eval mode, seeded globals.

    Args:
        method: the class.
        inputs: role -> xr.Dataset or nn.Module.
        seed: of the run (an `out` given brings its own).
        out: a prepared recording (with a checkpoint to restore, or one that cancels).
        params: parameters by name.
    """
    out = out or RecordingOut(method, seed=seed)
    out.method = method
    validated = method.Params(**params)
    given = {
        role: copy.deepcopy(value).to(out.device).eval() if isinstance(value, torch.nn.Module) else value
        for role, value in inputs.items()
    }
    torch.manual_seed(out.seed)
    np.random.seed(out.seed % 2**32)  # noqa: NPY002 - the host seeds the global generator too
    random.seed(out.seed)
    method().run(Inputs(given), validated, out)
    out.finish()
    return out, RecordedResult(out, validated, inputs)


def check_report(method: type[Method], result: RecordedResult) -> Report:
    """The method's report, after its views were resolved against the stored arrays and it survived JSON."""
    from workbench.render.resolve import resolve

    report = method().report(result)
    for view in report.views:
        if not isinstance(view, FreeForm):
            resolve(view, result)
    assert Report.from_json(report.to_json()).to_json() == report.to_json()
    assert report.summary.strip()
    return report


def _fits(dims: tuple[str, ...], declared: tuple[str, ...]) -> bool:
    if "..." not in declared:
        return dims == declared
    at = declared.index("...")
    before, after = declared[:at], declared[at + 1 :]
    if len(dims) < len(before) + len(after):
        return False
    return dims[: len(before)] == before and dims[len(dims) - len(after) :] == after


def _numpy(values: Any) -> Any:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, xr.DataArray):
        return values.to_numpy()
    return np.asarray(values)


def _dtype(dtype: Any, declared: Output | None) -> Any:
    if isinstance(dtype, torch.dtype):
        dtype = torch.empty(0, dtype=dtype).numpy().dtype
    if dtype is None:
        dtype = declared.dtype if declared is not None else "float32"
    if str(dtype) in ("str", "string") or np.dtype(dtype).kind in "UO":
        return np.dtype(object)
    if declared is not None and np.dtype(dtype) != np.dtype(declared.dtype):
        raise OutputError(f"output {declared.name!r} is declared as {declared.dtype}, got {np.dtype(dtype)}")
    return np.dtype(dtype)


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers to the declared type; a change of kind that loses something is an error of the method."""
    if dtype.kind == "O":
        return values.astype(object)
    ranks = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}
    if ranks.get(values.dtype.kind, 9) > ranks.get(dtype.kind, 9):
        raise OutputError(f"values of dtype {values.dtype} do not go into an array of dtype {dtype}")
    if dtype.kind in "iu" and values.size and not (values.astype(dtype) == values).all():
        raise OutputError(f"values of dtype {values.dtype} overflow dtype {dtype}")
    return values.astype(dtype)


def _plain(value: Any) -> Any:
    """A deep copy of a checkpoint, or TypeError: only what the store can keep without pickle."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"a checkpoint's keys are strings, got {key!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")
