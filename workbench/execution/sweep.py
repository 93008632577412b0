"""A sweep: many runs, a bounded number of them on the way, failures isolated, finished ones taken from the store.

Nothing of a sweep is stored but its runs. So there is nothing to repair when the notebook or the scheduler dies: the same
call finds what is complete and computes the rest.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from workbench.errors import CancelledError, ClusterLostError, InputError
from workbench.execution.handle import Handle
from workbench.execution.points import Point, Points, shown

if TYPE_CHECKING:
    from workbench.execution.progress import Progress

__all__ = ["PointStatus", "Sweep", "SweepFailure", "SweepProgress", "pace"]

R = TypeVar("R")
PointStatus = Literal["waiting", "running", "complete", "stored", "failed", "skipped", "cancelled"]
ENDED = ("complete", "stored", "failed", "skipped", "cancelled")
LISTED = 25
"""Points that a sweep shows of itself."""
METRICS = 4
"""Metrics of each that it keeps and shows; the runs have them all."""
ATTENTION = 0.1


@dataclass(frozen=True)
class SweepProgress:
    """How many points there are, and what became of them."""

    total: int
    counts: Mapping[str, int]

    @property
    def done(self) -> int:
        """Points that ended, in whatever way."""
        return sum(self.counts.get(status, 0) for status in ENDED)

    def __str__(self) -> str:
        parts = [f"{self.counts[status]} {status}" for status in ENDED if self.counts.get(status)]
        return f"{self.done} of {self.total}" + (f": {', '.join(parts)}" if parts else "")


@dataclass(frozen=True)
class SweepFailure:
    """A point that did not become a run."""

    point: Point
    status: PointStatus
    error: BaseException
    run_id: str | None

    def __str__(self) -> str:
        return f"{self.point.label}: {self.error}"


@dataclass(slots=True)
class _Entry:
    """What is kept of a point: small, because a sweep may have a million."""

    status: PointStatus = "waiting"
    run_id: str | None = None
    error: BaseException | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Sweep(Generic[R]):
    """Runs of many points; displays itself. Made by `bench.sweep`.

    Args:
        points: what to run.
        submit: begins one point.
        facts: (run id, came from the store, metrics) of a result.
        runs: the runs of these ids.
        in_flight: at most so many points are on the way.
        study: name of the study.
        dashboard: address of dask's dashboard, where there is one.
    """

    def __init__(
        self,
        points: Points,
        submit: Callable[[Point], Handle[R]],
        facts: Callable[[R], tuple[str, bool, Mapping[str, float]]],
        runs: Callable[[Iterable[str]], Any],
        *,
        in_flight: int,
        study: str | None = None,
        dashboard: str = "",
    ) -> None:
        self.points, self.study, self.dashboard = points, study, dashboard
        self._submit, self._facts, self._runs = submit, facts, runs
        self._entries: dict[int, _Entry] = {}
        self._counts: Counter[str] = Counter()
        """Of their states; counted as they change, because a sweep that is attended asks ten times a second."""
        self._handles: dict[int, Handle[R]] = {}
        self._changed = threading.Condition()
        self._in_flight = in_flight
        self._stopped: str = ""
        self._driven = False
        self._thread = threading.Thread(target=self._drive, name="workbench-sweep", daemon=True)
        self._thread.start()

    # --- what a user sees -------------------------------------------------------------------------------------------

    @property
    def progress(self) -> SweepProgress:
        """How many points ended, and how."""
        with self._changed:
            counts = dict(+self._counts)
        counts["waiting"] = len(self.points) - sum(counts.values())
        return SweepProgress(len(self.points), counts)

    @property
    def waits_for(self) -> str:
        """What keeps all of its points from beginning, where that is more than their turn; else empty."""
        with self._changed:
            found = {handle.waits_for for handle in self._handles.values()}
        return found.pop() if len(found) == 1 else ""

    @property
    def stopped(self) -> str:
        """Why it ended before all points were tried; empty if it did not."""
        return self._stopped

    @property
    def runs(self) -> Any:
        """The complete runs, computed or found, in the order of the points."""
        return self._runs(self.run_ids)

    @property
    def run_ids(self) -> list[str]:
        """Their ids; one that two points share is there once."""
        with self._changed:
            ended = sorted(self._entries.items())
        found = [entry.run_id for _, entry in ended if entry.status in ("complete", "stored") and entry.run_id]
        return list(dict.fromkeys(found))

    @property
    def failures(self) -> list[SweepFailure]:
        """Points that failed, were declined by their method or cancelled, with the reason."""
        with self._changed:
            ended = sorted(self._entries.items())
        return [
            SweepFailure(self.points[number], entry.status, entry.error, entry.run_id)
            for number, entry in ended
            if entry.error is not None
        ]

    def done(self) -> bool:
        """Whether nothing is on the way or to come."""
        return self._driven and not self._handles

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is done, for at most `timeout` seconds; returns `done()`."""
        with self._changed:
            return self._changed.wait_for(self.done, timeout)

    def cancel(self) -> None:
        """Begin no more points and stop those on the way. Asking for the same sweep again goes on from here."""
        with self._changed:
            if self.done():
                return
            self._stopped = self._stopped or "cancelled"
            handles = list(self._handles.values())
            self._changed.notify_all()
        for handle in handles:
            handle.cancel()

    def attend(self, progress: Progress | None) -> None:
        """Wait and show progress; Ctrl-C cancels.

        Raises:
            CancelledError: on Ctrl-C. What is complete stays in the store.
        """
        try:
            while not self.wait(ATTENTION):
                if progress is not None:
                    state = self.progress
                    bad = state.counts.get("failed", 0)
                    told = (f"{state.done} of {state.total}", f"{bad} failed" if bad else "", self.waits_for)
                    progress.show(state.done, state.total, ", ".join(filter(None, told)))
        except KeyboardInterrupt:
            self.cancel()
            self.wait(10.0)
            raise CancelledError(f"the sweep was cancelled ({self.progress})") from None
        finally:
            if progress is not None:
                progress.close()

    def table(self, limit: int | None = None) -> list[dict[str, Any]]:
        """A row per point: what is swept, status, run, metrics, error; failed ones first if `limit` cuts it short."""
        with self._changed:
            entries = dict(self._entries)
        numbers: Iterable[int] = range(len(self.points))
        if limit is not None and len(self.points) > limit:
            bad = [number for number, entry in entries.items() if entry.error is not None][:limit]
            others = (number for number in range(len(self.points)) if number not in bad)
            numbers = sorted([*bad, *itertools.islice(others, limit - len(bad))])
        rows = []
        for number in numbers:
            point, entry = self.points[number], entries.get(number, _Entry())
            rows.append(
                {name: shown(value) for name, value in point.swept.items()}
                | {"status": entry.status, "run": entry.run_id or ""}
                | entry.metrics
                | ({"error": str(entry.error)} if entry.error is not None else {})
            )
        return rows

    def __repr__(self) -> str:
        study = f" {self.study}" if self.study else ""
        stopped = f" ({self._stopped})" if self._stopped else ""
        lines = [f"<Sweep{study} {self.progress}{stopped}>"]
        lines += [f"  {failure.status} {failure}" for failure in self.failures[:LISTED]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from workbench.render.sweep import sweep_html

        note = f"{self._stopped}. " if self._stopped else ""
        cut = f"{LISTED} of {len(self.points)} points are shown." if len(self.points) > LISTED else ""
        return sweep_html(self.study or "Sweep", str(self.progress), self.table(LISTED), note + cut, self.dashboard)

    # --- how it goes ------------------------------------------------------------------------------------------------

    def _drive(self) -> None:
        try:
            for number in range(len(self.points)):
                if not self._room():
                    break
                self._begin(number)
        except BaseException as error:  # a bug must not leave those who wait for it waiting
            self._stopped = self._stopped or f"{type(error).__name__}: {error}"
            raise
        finally:
            with self._changed:
                self._driven = True
                self._changed.notify_all()

    def _room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._handles) < self._in_flight)
            return not self._stopped

    def _begin(self, number: int) -> None:
        point = self.points[number]
        try:
            handle = self._submit(point)
        except Exception as error:  # whatever reading a subject raises is this point's failure, not the sweep's
            self._ended(number, error=error)
            return
        with self._changed:
            self._handles[number] = handle
            self._enter(number, _Entry("running"))
        handle.add_done_callback(lambda ended: self._ended(number, ended))
        if self._stopped:
            handle.cancel()

    def _enter(self, number: int, entry: _Entry) -> None:
        if (before := self._entries.get(number)) is not None:
            self._counts[before.status] -= 1
        self._entries[number] = entry
        self._counts[entry.status] += 1

    def _ended(self, number: int, handle: Handle[R] | None = None, *, error: BaseException | None = None) -> None:
        error = handle.error if handle is not None else error
        entry = _Entry("failed", None if handle is None else handle.run_id, error)
        if handle is not None and error is None:
            try:
                run_id, served, metrics = self._facts(handle.result())
                kept = {sys.intern(name): value for name, value in itertools.islice(metrics.items(), METRICS)}
                entry = _Entry("stored" if served else "complete", run_id, None, kept)
            except Exception as broken:  # else nobody would be told that this point ended
                entry.error = broken
        elif handle is not None and handle.status in ("skipped", "cancelled"):
            entry.status = handle.status  # type: ignore[assignment]
        with self._changed:
            self._enter(number, entry)
            self._handles.pop(number, None)
            if isinstance(error, ClusterLostError):
                self._stopped = self._stopped or str(error)
            self._changed.notify_all()


def pace(in_flight: int | None, computing: int) -> int:
    """How many points are on the way at once: enough that nobody waits for work, few enough to stop soon.

    Raises:
        InputError: fewer than one.
    """
    if in_flight is None:
        return 4 * computing + 4
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or in_flight < 1:
        raise InputError("in_flight", expected="a whole number from 1", got=repr(in_flight))
    return in_flight
