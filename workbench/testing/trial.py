"""One method on trial: its runs, each made once when first asked for, in a store of their own and under watch."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from workbench.errors import InputError, MissingDependencyError, RunFailedError, SkippedError
from workbench.execution.progress import CancelToken
from workbench.method import DataRole, Inputs, Method, Out
from workbench.testing.samples import sample_inputs
from workbench.testing.watch import Seen, watching

if TYPE_CHECKING:
    from workbench.bench import Workbench
    from workbench.host import Host
    from workbench.runs import Run

__all__ = ["Attempt", "Trial", "first_line", "package_folder"]


@dataclass
class Attempt:
    """What came of one run."""

    run: Run | None = None
    error: BaseException | None = None
    seen: Seen = field(default_factory=Seen)
    """What was watched inside `run` of the method."""
    asks: int = 0
    """How often the method asked whether it was cancelled (every progress report asks)."""
    longest: float = 0.0
    """Most seconds of computing between two asks."""
    seed_kept: bool = True
    """Whether torch's generator still had the run's seed at the end."""
    seeded: list[str] = field(default_factory=list)
    """Other libraries whose global generators were seeded."""
    checkpoints: int = 0
    """How many checkpoints were taken."""
    restored: bool = False
    """Whether it went on from a checkpoint."""

    @property
    def declined(self) -> bool:
        """Whether the method refused in the way the contract wants: a clear error or a skip."""
        cause = self.error.__cause__ if isinstance(self.error, RunFailedError) else self.error
        return isinstance(cause, InputError | SkippedError | MissingDependencyError)

    @property
    def problem(self) -> str:
        """The error in one line; empty if there is none."""
        return "" if self.error is None else f"{type(self.error).__name__}: {self.error}"

    @property
    def undignified(self) -> str:
        """The error, in its first line, of a run that ended neither complete nor with a clear refusal."""
        return "" if self.run is not None or self.declined else first_line(self.problem)

    @property
    def completed(self) -> Run:
        """The run, where it is known to be complete."""
        assert self.run is not None
        return self.run


class _Countdown(CancelToken):
    """Counts how often it is asked, measures the computing between two asks, and cancels at ask number `at`."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.asks, self.longest, self._at = 0, 0.0, at
        self._last: float | None = None

    def mark(self) -> None:
        """The work begins, is asked, or ends: time of this thread, so that a busy machine is not blamed on the method."""
        moment = time.thread_time()
        if self._last is not None:
            self.longest = max(self.longest, moment - self._last)
        self._last = moment

    @property
    def cancelled(self) -> bool:
        """Whether the count is reached."""
        self.mark()
        self.asks += 1
        return self._at is not None and self.asks > self._at


class Trial:
    """A method, inputs and parameters to try it with, and the runs that the rules look at.

    Args:
        method: the class.
        inputs: role -> whatever `bench.run` takes; roles left out get a generated sample, unless they are given as None.
        params: parameters, small enough for a run of about a second.
        folder: an empty folder for the store.
        bench: where names and runs in `inputs` come from.
        device_tolerance: greatest difference between CPU and GPU, as a share of an array's greatest value.
    """

    def __init__(
        self,
        method: type[Method],
        *,
        folder: Path,
        inputs: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        bench: Workbench | None = None,
        device_tolerance: float = 1e-2,
    ) -> None:
        import workbench
        from workbench.host import Host

        self.method, self.params, self.folder = method, dict(params or {}), folder
        self.device_tolerance = device_tolerance
        self._given, self._source = dict(inputs or {}), bench
        # No plugins: a mirror to a tracker must not see these runs.
        self.bench = workbench.open(folder, host=Host(found=[]))

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Role -> data in memory or a module."""
        given = {name: value for name, value in self._given.items() if value is not None}
        missing = {name: role for name, role in self.method.inputs.items() if name not in self._given}
        made = sample_inputs(_with_roles(self.method, missing)) if missing else {}
        if self._source is not None:
            given = {name: self._resolved(name, value) for name, value in given.items()}
        values = {name: copy.deepcopy(value) for name, value in {**made, **given}.items()}
        return {name: values[name] for name in self.method.inputs if name in values}

    def _resolved(self, name: str, value: Any) -> Any:
        if not isinstance(value, str) or self._source is None:
            return value
        if isinstance(self.method.inputs.get(name), DataRole):
            return self._source.data(value)
        return self._source.model(value)

    @property
    def host(self) -> Host | None:
        """The plugins among which the method was found, where it was looked up."""
        return self._source.host if self._source is not None else None

    def data_roles(self) -> list[str]:
        """Roles whose input is a Dataset."""
        import xarray as xr

        return [name for name, value in self.inputs.items() if isinstance(value, xr.Dataset)]

    # --- runs -------------------------------------------------------------------------------------------------------

    @cached_property
    def first(self) -> Attempt:
        """The run that the others are compared with: seed 0, on the CPU, data in memory."""
        return self.attempt(inputs=self.handed_over)

    @cached_property
    def handed_over(self) -> dict[str, Any]:
        """A copy of the inputs for the first run, to see afterwards whether the method wrote into it."""
        return {
            name: value.copy(deep=True) if name in self.data_roles() else value for name, value in self.inputs.items()
        }

    @cached_property
    def again(self) -> Attempt:
        """The same in another thread and with data that are read lazily."""
        return self.attempt(inputs=self.lazy(), threaded=True)

    @cached_property
    def plain_again(self) -> Attempt:
        """The same once more and nothing else changed; made only where `again` differs from `first`."""
        return self.attempt()

    @cached_property
    def other_seed(self) -> Attempt:
        """The same with seed 1."""
        return self.attempt(seed=1)

    @cached_property
    def stopped(self) -> Attempt:
        """The first run again, cancelled half way."""
        return self.attempt(cancel_at=self.first.asks // 2)

    @property
    def completed(self) -> bool:
        """Whether there is a complete run to look at."""
        return self.first.run is not None

    @property
    def unavailable(self) -> str:
        """Why the method cannot be tried here at all (an optional package is missing); empty if it can."""
        return str(self.first.error) if isinstance(self.first.error, MissingDependencyError) else ""

    def lazy(self) -> dict[str, Any]:
        """The inputs, with data as dask arrays in blocks of a third of the samples."""
        chunked = {}
        for name in self.data_roles():
            samples = self.inputs[name].sizes.get("sample", 0)
            chunked[name] = self.inputs[name].chunk({"sample": max(1, samples // 3)} if samples else {})
        return {**self.inputs, **chunked}

    def attempt(
        self,
        *,
        inputs: Mapping[str, Any] | None = None,
        seed: int = 0,
        device: str = "cpu",
        cancel_at: int | None = None,
        threaded: bool = False,
    ) -> Attempt:
        """Run the method once, watched."""
        attempt, token = Attempt(), _Countdown(cancel_at)
        # The host itself writes the run, and its index of the store in the user's cache folder.
        watched = _watched(self.method, attempt, token, (self.folder, self.bench.store.index.path.parent))
        arguments = {**(self.inputs if inputs is None else inputs), **self.params}

        def work() -> Run:
            return self.bench.run(
                watched, seed=seed, device=device, force=True, progress=False, cancel=token, **arguments
            )

        try:
            if threaded:
                import dask

                # Blocks are read in the run's own thread, so that threads of dask are not taken for the method's.
                with dask.config.set(scheduler="synchronous"), ThreadPoolExecutor(1, "workbench-trial") as pool:
                    attempt.run = pool.submit(work).result()
            else:
                attempt.run = work()
        except Exception as error:  # the rules say which errors are welcome
            attempt.error = error
        attempt.asks, attempt.longest = token.asks, token.longest
        return attempt


def _with_roles(method: type[Method], roles: Mapping[str, Any]) -> type[Method]:
    return type(method.__name__, (method,), {"inputs": dict(roles), "__module__": method.__module__})


def _watched(method: type[Method], attempt: Attempt, token: _Countdown, own: tuple[Path, ...]) -> type[Method]:
    """The method with `run` under watch; the host's own work around it is not watched."""

    def run(self: Method, inputs: Inputs, params: Any, out: Out) -> None:
        import torch

        with watching(own=own, package=package_folder(method)) as seen, _seeding(attempt), _checkpointing(attempt, out):
            attempt.seen = seen
            token.mark()
            try:
                method.run(self, inputs, params, out)
            finally:
                token.mark()
                attempt.seed_kept = torch.initial_seed() == out.seed

    body: dict[str, Any] = {"run": run, "__module__": method.__module__, "__doc__": method.__doc__}
    return type(method.__name__, (method,), body)


@contextmanager
def _seeding(attempt: Attempt) -> Iterator[None]:
    """Note who seeds the global generators of numpy and Python; torch's tells its seed by itself."""
    import random

    import numpy as np

    def noting(name: str, seed: Any) -> Any:
        def noted(*arguments: Any, **named: Any) -> Any:
            attempt.seeded.append(name)
            return seed(*arguments, **named)

        return noted

    with (
        mock.patch.object(random, "seed", noting("Python", random.seed)),
        mock.patch.object(np.random, "seed", noting("numpy", np.random.seed)),
    ):
        yield


@contextmanager
def _checkpointing(attempt: Attempt, out: Out) -> Iterator[None]:
    """Note checkpoints that are taken and gone on from."""
    take, give = out.checkpoint, out.restore

    def checkpoint(state: Mapping[str, Any]) -> None:
        take(state)
        attempt.checkpoints += 1

    def restore() -> dict[str, Any] | None:
        state = give()
        attempt.restored = state is not None
        return state

    with mock.patch.object(out, "checkpoint", checkpoint), mock.patch.object(out, "restore", restore):
        yield


def first_line(text: object) -> str:
    """The first line of a message, cut to a length that can be read."""
    return str(text).strip().partition("\n")[0][:300]


def package_folder(method: type[Method]) -> Path | None:
    """Folder of the top package (or lone module) that a method comes from."""
    import sys

    module = sys.modules.get(method.__module__.partition(".")[0])
    file = getattr(module, "__file__", None)
    return Path(file).resolve().parent if file else None
