"""Progress and cancellation: one bar in a terminal or notebook, one token that anyone may pull."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from workbench.errors import CancelledError

__all__ = ["CancelToken", "NoProgress", "Progress", "ProgressBar", "Throttle"]


class CancelToken:
    """Set from any thread; the running method notices at its next progress report."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the run to stop."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise CancelledError if somebody asked."""
        if self.cancelled:
            raise CancelledError


class Progress(Protocol):
    """Something that shows how far a run is."""

    def show(self, done: float, total: float, message: str) -> None:
        """`done` of `total` units."""

    def values(self, step: int, values: dict[str, float]) -> None:
        """Newest values of the logged series."""

    def close(self) -> None:
        """The run ended."""


class NoProgress:
    """Shows nothing."""

    def show(self, done: float, total: float, message: str) -> None:
        """See Progress."""

    def values(self, step: int, values: dict[str, float]) -> None:
        """See Progress."""

    def close(self) -> None:
        """See Progress."""


class ProgressBar:
    """One tqdm bar per run (text in a terminal, a widget in a notebook); short runs never show one."""

    def __init__(self, title: str, *, delay: float = 0.7) -> None:
        self.title, self._delay = title, delay
        self._started = time.perf_counter()
        self._bar: Any = None
        self._values = ""

    def show(self, done: float, total: float, message: str) -> None:
        """See Progress."""
        if self._bar is None:
            if time.perf_counter() - self._started < self._delay:
                return
            self._bar = _make_bar(self.title)
        bar = self._bar
        bar.total = max(total, done) or 1
        bar.n = done
        text = ", ".join(part for part in (message, self._values) if part)
        bar.set_postfix_str(text, refresh=False)  # also nothing: what it waited for is over
        bar.refresh()

    def values(self, step: int, values: dict[str, float]) -> None:
        """See Progress."""
        self._values = " ".join(f"{name}={value:.4g}" for name, value in list(values.items())[:3])

    def close(self) -> None:
        """See Progress."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _make_bar(title: str) -> Any:
    import sys
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm warns where a notebook lacks widgets, and falls back to text by itself
        from tqdm.auto import tqdm

    layout = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
    # Redrawing a line makes sense on a terminal and in a notebook, not in a log file.
    shown = "ipykernel" in sys.modules or sys.stderr.isatty()
    return tqdm(total=1, desc=title, leave=False, bar_format=layout, dynamic_ncols=True, disable=not shown)


class Throttle:
    """Calls through at most once per `interval` seconds, and always when the work is done."""

    def __init__(self, call: Callable[[float, float, str], None], interval: float) -> None:
        self._call, self._interval, self._last = call, interval, 0.0

    def __call__(self, done: float, total: float, message: str) -> None:
        """Pass on, or drop."""
        moment = time.monotonic()
        if done >= total or moment - self._last >= self._interval:
            self._last = moment
            self._call(done, total, message)
