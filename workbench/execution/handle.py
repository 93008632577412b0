"""The handle of a run that somebody else computes: a background thread or a worker. It tells, waits and cancels."""

from __future__ import annotations

import html
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from workbench.errors import CancelledError, SkippedError

if TYPE_CHECKING:
    from workbench.execution.progress import CancelToken, Progress

__all__ = ["Handle", "HandleProgress", "HandleStatus", "ProgressState"]

R = TypeVar("R")
HandleStatus = Literal["pending", "running", "complete", "failed", "cancelled", "skipped"]
ATTENTION = 0.1
"""Seconds between two looks at a run that is attended."""
LAST_MOMENT = 10.0
"""Seconds for which a run that was interrupted with Ctrl-C is waited for."""
ENDED = ("complete", "failed", "cancelled", "skipped")


@dataclass(frozen=True)
class ProgressState:
    """How far a run is."""

    done: float = 0.0
    total: float = 0.0
    """0 until the method has said how much there is to do."""
    message: str = ""
    step: int | None = None
    """Step of the newest logged values."""
    values: Mapping[str, float] = field(default_factory=dict)


class Handle(Generic[R]):
    """A run on its way. Made by `bench.submit`; all members may be used from any thread.

    Args:
        title: id of the method.
        stop: called once when somebody cancels.
    """

    def __init__(self, title: str, stop: Callable[[], object] = lambda: None) -> None:
        self.title = title
        self._stop = stop
        self._changed = threading.Condition()
        self._status: HandleStatus = "pending"
        self._run_id: str | None = None
        self._progress = ProgressState()
        self._waits_for: Callable[[], str] = _nothing
        self._result: R | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Handle[R]], object]] = []
        self._asked_to_stop = False

    # --- what a user sees -------------------------------------------------------------------------------------------

    @property
    def status(self) -> HandleStatus:
        """pending, running, complete, failed, cancelled or skipped (the method declined; see `result`)."""
        return self._status

    @property
    def run_id(self) -> str | None:
        """Id of the run; None until it has begun."""
        return self._run_id

    @property
    def progress(self) -> ProgressState:
        """How far it is, and the newest values it logged."""
        return self._progress

    @property
    def waits_for(self) -> str:
        """What keeps it from beginning, where that is more than its turn; else empty."""
        return self._waits_for() if self._status == "pending" else ""

    def done(self) -> bool:
        """Whether it ended, in whatever way."""
        return self._status in ENDED

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it ended, for at most `timeout` seconds; returns `done()`."""
        with self._changed:
            return self._changed.wait_for(self.done, timeout)

    def result(self, timeout: float | None = None) -> R:
        """The run, once it is complete.

        Raises:
            TimeoutError: it did not end within `timeout` seconds.
            SkippedError, CancelledError, RunFailedError, InputError, StoreError: what `bench.run` would have raised.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"{self.title} is {self._status} after {timeout:g} seconds")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def attend(self, progress: Progress | None, cancel: CancelToken | None) -> R:
        """Wait as `bench.run` does: show progress, pass on the wish to stop (from a token or Ctrl-C), give the result."""
        shown: ProgressState | None = None
        waited = False
        try:
            while not self.wait(ATTENTION):
                if cancel is not None and cancel.cancelled:
                    self.cancel()
                state = self._progress
                obstacle = self.waits_for
                if progress is not None and (obstacle or waited or (state is not shown and state.total)):
                    progress.show(state.done, state.total, obstacle or state.message)
                    if state.step is not None:
                        progress.values(state.step, dict(state.values))
                shown, waited = state, bool(obstacle)
        except KeyboardInterrupt:
            self.cancel()
            self.wait(LAST_MOMENT)
            raise CancelledError(f"{self.title} was cancelled") from None
        finally:
            if progress is not None:
                progress.close()
        return self.result()

    @property
    def error(self) -> BaseException | None:
        """What `result` raises; None while it goes on and if it is complete."""
        return self._error

    def cancel(self) -> None:
        """Ask it to stop: at once if it has not begun, else at its next report of progress. Twice does no harm."""
        with self._changed:
            if self.done() or self._asked_to_stop:
                return
            self._asked_to_stop = True
        self._stop()

    def add_done_callback(self, call: Callable[[Handle[R]], object]) -> None:
        """Call `call(handle)` when it ended, from the thread that notices; at once if it has ended."""
        with self._changed:
            if not self.done():
                self._callbacks.append(call)
                return
        _call(call, self)

    def __repr__(self) -> str:
        return f"<Handle {self.title} {self._status}{self._detail()}>"

    def _repr_html_(self) -> str:
        text = html.escape(f"{self._status}{self._detail()}")
        return f"<div><code>{html.escape(self.title)}</code> {text}</div>"

    def _detail(self) -> str:
        state = self._progress
        if self.waits_for:
            return f": {self.waits_for}"
        if self._status == "running" and state.total:
            message = f" {state.message}" if state.message else ""
            return f" {state.done / state.total:.0%}{message}"
        if self._error is not None:
            return f": {self._error}"
        return f" {self._run_id}" if self._run_id else ""

    # --- what the executor tells it ---------------------------------------------------------------------------------

    def held_up(self, reason: Callable[[], str]) -> None:
        """It cannot begin as long as this gives a reason."""
        self._waits_for = reason

    def began(self, run_id: str) -> None:
        """The run has an id and computes."""
        with self._changed:
            if not self.done():
                self._status, self._run_id = "running", run_id
                self._changed.notify_all()

    def progressed(self, done: float, total: float, message: str) -> None:
        """`done` of `total` units."""
        self._progress = replace(self._progress, done=done, total=total, message=message)

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Newest values of the logged series."""
        self._progress = replace(self._progress, step=step, values={**self._progress.values, **values})

    def ended(self, result: R | None = None, error: BaseException | None = None, *, run_id: str | None = None) -> None:
        """It is complete with a result, or over with an error. Only the first end counts."""
        with self._changed:
            if self.done():
                return
            self._result, self._error, self._waits_for = result, error, _nothing
            self._status = _ending(error)
            self._run_id = None if self._status == "skipped" else run_id or self._run_id  # a skipped run leaves nothing
            callbacks, self._callbacks = self._callbacks, []
            self._changed.notify_all()
        for call in callbacks:
            _call(call, self)


def _nothing() -> str:
    return ""


def _ending(error: BaseException | None) -> HandleStatus:
    if error is None:
        return "complete"
    if isinstance(error, CancelledError):
        return "cancelled"
    return "skipped" if isinstance(error, SkippedError) else "failed"


def _call(call: Callable[[Handle[R]], object], handle: Handle[R]) -> None:
    # A listener that raises must not end the thread that serves everybody.
    try:
        call(handle)
    except Exception:
        logging.getLogger("workbench").exception("a callback of %r raised", handle)


class HandleProgress(Generic[R]):
    """`workbench.execution.progress.Progress` that tells a handle."""

    def __init__(self, handle: Handle[R]) -> None:
        self._handle = handle

    def show(self, done: float, total: float, message: str) -> None:
        """See Progress."""
        self._handle.progressed(done, total, message)

    def values(self, step: int, values: dict[str, float]) -> None:
        """See Progress."""
        self._handle.logged(step, values)

    def close(self) -> None:
        """See Progress."""
