"""What a dask worker tells a client about its runs, and what it is told: progress, and the wish to cancel."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.execution.progress import CancelToken

__all__ = ["TOKENS", "Teller", "Tokens", "cancel", "topic"]

INTERVAL = 0.25
"""Least seconds between two reports of progress of one run."""


def topic(client: str) -> str:
    """The dask topic on which workers tell a client about its runs."""
    return f"workbench-{client}"


class Tokens:
    """Cancel tokens of the orders on this worker, and of those that were cancelled before they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[CancelToken, int]] = {}
        """With the number of those who use it: a run, and blocks of it."""
        self._early: OrderedDict[str, None] = OrderedDict()

    def begin(self, name: str) -> CancelToken:
        """The token of an order that begins, or of one more block of it; cancelled if the wish came first."""
        with self._lock:
            token, users = self._tokens.get(name, (CancelToken(), 0))
            self._tokens[name] = (token, users + 1)
            if name in self._early:
                token.cancel()
            return token

    def end(self, name: str) -> None:
        """One user of it less."""
        with self._lock:
            token, users = self._tokens.pop(name)
            if users > 1:
                self._tokens[name] = (token, users - 1)

    def cancel(self, names: Sequence[str]) -> None:
        """Cancel what runs of these orders, and remember the others: they may be on their way."""
        with self._lock:
            for name in names:
                if name in self._tokens:
                    self._tokens[name][0].cancel()
                self._early[name] = None
            while len(self._early) > 10_000:
                self._early.popitem(last=False)


TOKENS = Tokens()


def cancel(names: Sequence[str]) -> None:
    """Stop these orders, running or yet to come. Sent to every worker."""
    TOKENS.cancel(names)


class Teller:
    """Progress that goes to the client through dask's own event stream."""

    def __init__(self, order: str, client: str) -> None:
        self._order, self._topic = order, topic(client)
        self._last = 0.0
        self._state: dict[str, Any] = {}

    def began(self, run_id: str) -> None:
        """The run has an id."""
        self._send({"run_id": run_id})

    def show(self, done: float, total: float, message: str) -> None:
        """See Progress."""
        self._state |= {"done": done, "total": total, "message": message}
        self._sometimes()

    def values(self, step: int, values: dict[str, float]) -> None:
        """See Progress."""
        self._state |= {"step": step, "values": {**self._state.get("values", {}), **values}}
        self._sometimes()

    def close(self) -> None:
        """See Progress."""
        if self._state:
            self._send(self._state)

    def _sometimes(self) -> None:
        moment = time.monotonic()
        if moment - self._last >= INTERVAL:
            self._last = moment
            self._send(self._state)

    def _send(self, state: Mapping[str, Any]) -> None:
        from distributed import get_worker

        try:
            get_worker().log_event(self._topic, {"order": self._order, **state})
        except (ValueError, RuntimeError, OSError):
            return  # no worker here (a test), or its connection is gone: progress is a courtesy
