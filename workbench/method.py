"""The contract of a method: what an author writes, and what the host hands to it.

A method is one class (`Method`) around pure torch functions. It names its parameters (`Params`), the roles of its
inputs (`DataRole`, `ModelRole`) and every array it stores (`Output`); `run` does the work and writes through `Out`,
`report` turns the stored `Result` into a `Report`. Methods never open files, print, or pick a device or a seed.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, final

import pydantic

from workbench.errors import PluginError

if TYPE_CHECKING:
    import numpy as np
    import torch
    import xarray as xr

    from workbench.report import Report

__all__ = [
    "BlockOut",
    "BlockwiseMethod",
    "DataRole",
    "Inputs",
    "Method",
    "MethodReference",
    "ModelRole",
    "Out",
    "OutArray",
    "Output",
    "Paper",
    "Params",
    "Result",
    "Role",
]

T = TypeVar("T")


class Params(pydantic.BaseModel):
    """Base of every method's parameters: frozen, no unknown names, finite numbers.

    Give each field a description, a range (`ge`, `le`, `Literal`) and the paper's default:
    `probes: int = Field(50, ge=2, le=10_000, description="Hutchinson probe vectors")`.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Paper:
    """Where a method comes from. `code` is the official repository, as `owner/name (licence)`."""

    title: str
    authors: str
    year: int
    arxiv: str = ""
    venue: str = ""
    code: str = ""

    @property
    def citation(self) -> str:
        """One line: authors (year), title, venue, arXiv id."""
        parts = [f"{self.authors} ({self.year}): {self.title}"]
        parts += [self.venue] if self.venue else []
        parts += [f"arXiv:{self.arxiv}"] if self.arxiv else []
        return ", ".join(parts)


@dataclass(frozen=True)
class DataRole:
    """A data input. `variables` maps each required variable to its dims, e.g. `{"image": ("sample", "channel", "y", "x")}`.

    The host checks names, dims, a common `sample` length, finiteness (unless `allow_nan`) and label ranges before the
    run starts. `optional_variables` are handed on when present. An `optional` role may be left out.
    """

    description: str
    variables: Mapping[str, tuple[str, ...]]
    optional_variables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: bool = False
    allow_nan: bool = False


@dataclass(frozen=True)
class ModelRole:
    """A model input: maps `image` (float32 in 0..1; sample, channel, y, x) to `logit` (sample, class) unless `task` differs.

    With the task "language" it maps `token_id` (sample, token) to logits of the next token (sample, token, vocabulary), or
    to an object that has them as `logits`.

    `data` names the data role whose first samples the host feeds to the model to see that they fit.
    """

    description: str
    task: str = "classifier"
    data: str | None = "data"
    optional: bool = False


Role = DataRole | ModelRole


@dataclass(frozen=True)
class Output:
    """One array a method stores. A dim of `"..."` stands for any number of dims named when the array is written."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    description: str
    unit: str = ""
    optional: bool = False


class Inputs(Mapping[str, Any]):
    """What a method receives: `inputs["data"]` is an xarray Dataset (read lazily), `inputs["model"]` an `nn.Module`.

    Models are private copies in eval mode on the run's device, so a method may change them. Roles that were left out
    are absent (`inputs.get("fit")` is None).
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, role: str) -> Any:
        return self._values[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class OutArray(Protocol):
    """A declared array: assign regions as they are computed, in any order, `array[start:stop] = tensor`."""

    shape: tuple[int, ...]

    def __setitem__(self, region: Any, values: Any) -> None: ...


class Out(Protocol):
    """Everything a running method may do to the world. See `workbench.execution.out` for the one implementation."""

    device: torch.device
    """Where to compute; models in `inputs` are already there."""
    dtype: torch.dtype
    """Precision policy of the run (float32 unless asked otherwise); part of the run's key."""
    seed: int
    """Seed of the run. torch's, numpy's and Python's global generators are seeded with it before `run`."""

    def generator(self, name: str = "") -> torch.Generator:
        """A CPU generator seeded by (seed, name): same name, same stream, independent of other names."""

    def rng(self, name: str = "") -> np.random.Generator:
        """The numpy counterpart of `generator`."""

    def coordinate(self, name: str, values: Sequence[Any] | np.ndarray, *, dim: str | None = None) -> None:
        """Label a dim (layer names, bit widths, thresholds), or with `dim` add a second labelling of it under `name`."""

    def array(
        self, name: str, shape: Sequence[int], *, dims: Sequence[str] | None = None, dtype: Any = None
    ) -> OutArray:
        """Declare an output to be written region by region; dims and dtype default to those of its `Output`."""

    def write(self, name: str, values: Any, *, dims: Sequence[str] | None = None) -> None:
        """Write a whole output at once: torch tensor on any device, numpy array, number or (for strings) a list."""

    def model(self, module: torch.nn.Module, *, name: str = "model") -> None:
        """Store a model's state as labelled arrays, so that a later run can take this run as its `model`."""

    def log(self, step: int, **values: float) -> None:
        """Append to time series (`loss`, `accuracy`, ...), kept in the run's `series` and shown live."""

    def progress(self, done: float, total: float, message: str = "") -> None:
        """Report progress; raises `CancelledError` when the user asked to stop."""

    def track(self, items: Iterable[T], message: str = "", total: int | None = None) -> Iterator[T]:
        """Iterate with progress and cancellation: `for batch in out.track(batches, "probing")`."""

    def cancelled(self) -> bool:
        """Whether the user asked to stop (for loops that clean up by themselves)."""

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Save what is needed to go on after a kill: nested dicts and lists of tensors, arrays, numbers, strings."""

    def restore(self) -> dict[str, Any] | None:
        """The newest checkpoint of an interrupted run with the same key, or None."""

    def skip(self, reason: str) -> None:
        """Stop because these inputs do not suit the method: raises `SkippedError`, nothing is stored."""


class Result(Protocol):
    """What `report` receives: a finished run, read lazily from the store."""

    @property
    def method_id(self) -> str:
        """Id of the method that made the run."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    @property
    def device(self) -> str:
        """Device the run was computed on."""

    @property
    def seconds(self) -> float:
        """Wall time of the computation; 0 while the run is not complete."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Per role a small dict: `label` (how a person calls it), `digest`, and for data `sizes`."""

    @property
    def params(self) -> Any:
        """The validated `Params` of the run."""

    def __getitem__(self, name: str) -> xr.DataArray:
        """A stored output with its coordinates; only what is sliced is read."""

    def __contains__(self, name: object) -> bool: ...

    @property
    def series(self) -> xr.Dataset:
        """Logged time series over the dim `step`; a series not logged at a step is NaN there."""


class Method(abc.ABC):
    """Base of every method. Subclasses set the class attributes and implement `run` and `report`; nothing else is overridden."""

    id: ClassVar[str]
    """`family.name`, e.g. `quantization.hawq`."""
    title: ClassVar[str]
    """What it tells a practitioner, one line."""
    paper: ClassVar[Paper | None] = None
    version: ClassVar[str] = "1"
    """Raise it when results change: it is part of every run's key."""
    Params: ClassVar[type[Params]] = Params
    inputs: ClassVar[Mapping[str, Role]] = {}
    outputs: ClassVar[tuple[Output, ...]] = ()
    requires: ClassVar[Mapping[str, str]] = {}
    """Optional packages: import name -> extra of the distribution that brings it, e.g. `{"kornia": "restoration"}`."""

    @abc.abstractmethod
    def run(self, inputs: Inputs, params: Any, out: Out) -> None:
        """Do the work and write every declared output through `out`."""

    @abc.abstractmethod
    def report(self, result: Result) -> Report:
        """Say what was found, as a pure function of what was stored."""


class BlockOut(Protocol):
    """What one block of a `BlockwiseMethod` may do to the world."""

    device: torch.device
    """Where to compute; models in `inputs` are already there."""
    dtype: torch.dtype
    """Precision policy of the run."""
    seed: int
    """Seed of the run; the global generators are seeded from it and the number of the block."""

    def generator(self, name: str = "") -> torch.Generator:
        """A CPU generator seeded by (seed, name, block)."""

    def rng(self, name: str = "") -> np.random.Generator:
        """The numpy counterpart of `generator`."""

    def part(self, name: str) -> OutArray:
        """An array that `begin` declared, with `sample` first; only the block's own samples may be assigned."""

    def progress(self, done: float, total: float, message: str = "") -> None:
        """Report progress within the run (`done` of `total` samples); raises `CancelledError` when asked to stop."""

    def cancelled(self) -> bool:
        """Whether the user asked to stop."""


class BlockwiseMethod(Method):
    """A method whose work splits over `sample`: blocks are computed one after the other here, or by many workers at once.

    The blocks depend on the data and the parameters only, and what they return is combined in their order, so the result is
    the same wherever they were computed. A block must not depend on another one, nor on what `begin` left in `self`.
    Subclasses implement these four steps instead of `run`.
    """

    over: ClassVar[str] = "data"
    """The data role whose samples are split."""

    @abc.abstractmethod
    def block_size(self, inputs: Inputs, params: Any) -> int:
        """Samples of a block: some seconds of work, a multiple of the batch size."""

    @abc.abstractmethod
    def begin(self, inputs: Inputs, params: Any, out: Out) -> None:
        """Check what `Params` cannot check, label dims, and declare with `out.array` what blocks write: `sample` first."""

    @abc.abstractmethod
    def block(self, inputs: Inputs, params: Any, region: slice, out: BlockOut) -> Mapping[str, Any]:
        """Compute the samples of `region`, write them, and return small things to be combined: arrays and numbers by name."""

    @abc.abstractmethod
    def end(self, inputs: Inputs, params: Any, parts: Sequence[Mapping[str, Any]], out: Out) -> None:
        """Combine what the blocks returned, in their order, and write the rest."""

    @final
    def run(self, inputs: Inputs, params: Any, out: Out) -> None:
        """The steps in order; an `Out` that can share out blocks does so."""
        share = getattr(out, "share_blocks", None)
        if share is not None:
            share(self, inputs, params)
            return
        declaring = _Declaring(out)
        self.begin(inputs, params, declaring)  # type: ignore[arg-type]
        regions = self.regions(inputs, params)
        parts = [self.block(inputs, params, region, declaring) for region in regions]  # type: ignore[arg-type]
        self.end(inputs, params, parts, out)

    @final
    def regions(self, inputs: Inputs, params: Any) -> list[slice]:
        """The blocks, in order."""
        count, size = int(inputs[self.over].sizes["sample"]), self.block_size(inputs, params)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class _Declaring:
    """An `Out` that remembers the arrays it declared, so that blocks find them."""

    def __init__(self, out: Out) -> None:
        self._out, self._arrays = out, dict[str, OutArray]()

    def array(self, name: str, *arguments: Any, **named: Any) -> OutArray:
        self._arrays[name] = self._out.array(name, *arguments, **named)
        return self._arrays[name]

    def part(self, name: str) -> OutArray:
        return self._arrays[name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


@dataclass(frozen=True)
class MethodReference:
    """A method named without importing it, so that listing methods does not import torch.

    `target` is `package.module:Class`; id and title repeat those of the class (a contract test compares them).
    """

    id: str
    target: str
    title: str

    def load(self) -> type[Method]:
        """Import the class.

        Raises:
            PluginError: the target is not a Method, or its id differs from this reference's.
        """
        from importlib import import_module

        module_name, _, attribute = self.target.partition(":")
        cls = getattr(import_module(module_name), attribute, None)
        if not (isinstance(cls, type) and issubclass(cls, Method)):
            raise PluginError(f"{self.target} is not a workbench Method")
        if cls.id != self.id:
            raise PluginError(f"{self.target} calls itself {cls.id!r}, but its plugin lists it as {self.id!r}")
        return cls
