"""Runs in a background thread of this process: one thread, one run after the other, in the order of asking."""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.errors import CancelledError
from workbench.execution.handle import Handle, HandleProgress
from workbench.execution.progress import CancelToken
from workbench.execution.request import Request, SharedSubjects, fulfil, stored_already

if TYPE_CHECKING:
    from workbench.execution.inputs import Sources
    from workbench.host import Host
    from workbench.store import Store, StoredRun

__all__ = ["submit"]

R = TypeVar("R")
LAST_MOMENT = 5.0
"""Seconds a cancelled run has to write down its end when the process ends."""


def submit(
    request: Request,
    sources: Sources,
    store: Store,
    host: Host,
    wrap: Callable[[StoredRun, bool], R],
    *,
    shared: tuple[SharedSubjects, Hashable] | None = None,
) -> Handle[R]:
    """Load, check and copy the subjects now, compute in the background.

    Args:
        request: what is asked for.
        sources: where subjects named in text come from.
        store: where to look for the run and where to put it.
        host: whose plugins hear of it.
        wrap: makes what `handle.result()` returns, from a stored run and whether it came from the store.
        shared: subjects of the sweep it belongs to, and which of them it has.

    Raises:
        InputError: a subject that is none, or does not fit.
    """
    subjects, identity = shared or (SharedSubjects(), None)
    job, check = subjects.prepare(identity, request, sources, own=True)
    token = CancelToken()
    handle: Handle[R] = Handle(job.method.id)

    def stop() -> None:
        token.cancel()
        if handle.status == "pending":
            handle.ended(error=CancelledError(f"{job.method.id} was cancelled before it began"))

    handle._stop = stop
    if (found := stored_already(request, job, store)) is not None:
        handle.ended(wrap(found, True), run_id=found.id)
        return handle
    check(job)

    def work() -> None:
        if handle.done():
            return
        try:
            stored, served = fulfil(
                request,
                job,
                store,
                host,
                progress=HandleProgress(handle),
                cancel=token,
                background=True,
                on_begin=handle.began,
                check=lambda _: None,  # it was done before the run was put in the queue
            )
            handle.ended(wrap(stored, served), run_id=stored.id)
        except BaseException as error:
            handle.ended(error=error, run_id=getattr(error, "run_id", None))

    _worker().put(handle, work)
    return handle


class _Worker:
    """The thread, and what waits for it."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._unfinished: weakref.WeakSet[Handle[Any]] = weakref.WeakSet()
        # A daemon: a script or kernel that ends must not hang until the last run is computed.
        self._thread = threading.Thread(target=self._serve, name="workbench-background", daemon=True)
        self._thread.start()
        atexit.register(self._close)

    def put(self, handle: Handle[Any], work: Callable[[], None]) -> None:
        self._unfinished.add(handle)
        self._waiting.put(work)

    def _serve(self) -> None:
        while True:
            # No name is kept, so that models and data of a finished run are freed while this waits.
            self._waiting.get()()

    def _close(self) -> None:
        for handle in list(self._unfinished):
            handle.cancel()
        for handle in list(self._unfinished):
            with contextlib.suppress(Exception):
                handle.wait(LAST_MOMENT)


_LOCK = threading.Lock()
_the_worker: _Worker | None = None


def _worker() -> _Worker:
    global _the_worker
    with _LOCK:
        if _the_worker is None:
            _the_worker = _Worker()
        return _the_worker
