"""Is a running run alive? Told without trusting the clock of the machine that computes it.

A live run rewrites its record every ten seconds. Whoever looks at it decides, in this order:

1. The process of a run on this very machine is gone: interrupted.
2. This process looked before. A record rewritten since means alive; one not rewritten for `STALE_AFTER` seconds of this
   process's monotonic clock means interrupted. No clock of another machine is involved.
3. Looked at for the first time: the age of the record by the clock of the file system or bucket itself (on a file system
   the stamp of a file made now) against `STALE_AFTER`. The writer's clock, which may be hours off, is never used.
"""

from __future__ import annotations

import socket
import threading
import time

from workbench.record import STALE_AFTER, RunRecord, Status
from workbench.store.backend import Backend
from workbench.store.writer import run_folder

__all__ = ["age", "observed_status", "silence"]

_LOCK = threading.Lock()
_SEEN: dict[tuple[str, str], tuple[float, float, bool]] = {}
"""Per store and run: the stamp last seen, when it was first seen (monotonic), and whether it was seen to change."""


def observed_status(backend: Backend, record: RunRecord) -> Status:
    """The record's status, except that a running run that shows no sign of life is interrupted."""
    if record.status != "running":
        return record.status
    if _process_gone(record):
        return "interrupted"
    try:
        stamp = backend.written(f"{run_folder(record)}/zarr.json")
    except OSError:  # a disk in trouble says nothing against it
        return "running"
    if stamp is None:
        return "interrupted"
    key, moment = (backend.url, record.id), time.monotonic()
    with _LOCK:
        before = _SEEN.get(key)
        if before is None or before[0] != stamp:
            _SEEN[key] = (stamp, moment, before is not None)
        _, since, changed = _SEEN[key]
    if moment - since > STALE_AFTER:
        return "interrupted"
    return "running" if changed or backend.now() - stamp <= STALE_AFTER else "interrupted"


def silence(backend: Backend, record: RunRecord) -> float:
    """Seconds since the run wrote its record, by the clock of the place it lies in; infinite if the record is gone."""
    return age(backend, f"{run_folder(record)}/zarr.json")


def age(backend: Backend, key: str) -> float:
    """Seconds since an object was written, by the clock of the place; infinite if there is none, 0 if it cannot be told."""
    try:
        stamp = backend.written(key)
    except OSError:
        return 0.0
    return float("inf") if stamp is None else backend.now() - stamp


def _process_gone(record: RunRecord) -> bool:
    if record.host != socket.gethostname():
        return False
    import psutil

    try:
        return not psutil.pid_exists(record.pid)
    except (OverflowError, ValueError):
        return True
