"""Lazy data are read by the thread of the worker that wants them, not by tasks of the cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["read_here", "reading_here"]

HERE = "synchronous"
"""dask's name for the thread that reads."""

_lock = threading.Lock()
_readers = 0
_before: Any = None


@contextmanager
def reading_here() -> Iterator[None]:
    """While this lasts, dask arrays of this process are computed by the thread that reads them.

    Left alone, dask makes tasks of an array that is read within a task: pictures would pass through the scheduler, and a
    thread that waits for them with the lock of its inputs in hand stops a worker of one thread for ever. dask knows only
    one setting for the whole process; so it holds while anything of ours runs here, and other people's tasks that read
    dask arrays meanwhile read them in their own thread as well.
    """
    import dask

    global _readers, _before
    with _lock:
        if not _readers:
            _before = dask.config.get("scheduler", None)
        _readers += 1
    read_here()
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            # What somebody else has set since, e.g. by closing a client, is theirs.
            if not _readers and dask.config.get("scheduler", None) == HERE:
                dask.config.set(scheduler=_before)


def read_here() -> None:
    """The setting alone, for within `reading_here`: a client that a worker opens names itself as the place to compute."""
    import dask

    dask.config.set(scheduler=HERE)
