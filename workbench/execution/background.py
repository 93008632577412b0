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
from workbench.execution.request import Request, SharedSubjects, fulfil, named_models, owned, prepare, stored_already
from workbench.execution.turn import taken

if TYPE_CHECKING:
    from workbench.execution.inputs import Sources
    from workbench.execution.lifecycle import Job
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

    Building a model that is named needs the process's turn (its factory draws from the global generators). While a run has
    that, named models are built in the background too, so that this returns at once; what is wrong with them is then told by
    `handle.result()`.

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
    token = CancelToken()
    handle: Handle[R] = Handle(request.method.id)

    def stop() -> None:
        token.cancel()
        if handle.status == "pending":
            handle.ended(error=CancelledError(f"{handle.title} was cancelled before it began"))

    handle._stop = stop
    if shared is None and taken() and (named := named_models(request)):
        kept = owned(request, sources, set(request.roles) - named)

        def make() -> Job:
            return prepare(request, sources, resolved=kept)

        check = None
    else:
        subjects, identity = shared or (SharedSubjects(), None)
        ready, check = subjects.prepare(identity, request, sources, own=True)
        if (found := stored_already(request, ready, store)) is not None:
            handle.ended(wrap(found, True), run_id=found.id)
            return handle
        check(ready)

        def make() -> Job:
            return ready

    def work() -> None:
        if handle.done():
            return
        try:
            job = make()
            token.check()
            stored, served = fulfil(
                request,
                job,
                store,
                host,
                progress=HandleProgress(handle),
                cancel=token,
                background=True,
                on_begin=handle.began,
                check=check,  # does nothing the second time
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
