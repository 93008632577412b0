"""Finding runs by their key without an index: `keys/4c/KEY/MONTH.RUN` is an empty object for every run with that key.

So whether a run was computed before, or is being computed, costs one look into a folder of its own and the records it
names, however many runs the store has. The objects are derived: each is made once, by the run's writer, before any result;
what they say counts only where the run's own record says the same. Stores of before have none; their runs are found through
the index until `mark_all` was called.

A record that cannot be read for a reason that may pass (a disk or network in trouble) is not taken for absent: somebody
would compute for a day what lies there. It is asked for again, and then an error, unless a run was found without it.
"""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from workbench.errors import StoreError
from workbench.record import RunRecord
from workbench.store.backend import Backend, RefusedError, read_document
from workbench.store.records import RecordError, read_record, safe_run_id

if TYPE_CHECKING:
    from workbench.store.store import Store

__all__ = ["is_marked", "mark", "mark_all", "marked", "marks", "tells", "unmark"]

MOST = 1000
"""Runs of one key that are looked at, the newest by their ids."""
SECOND = 15
"""Characters of an id that tell the second of its start; within it, records tell which is the newer."""
PAUSES = (0.05, 0.5)
"""Seconds between looks at a record that cannot be read. Back-ends behind a network do that by themselves."""
LASTING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, RecordError, RefusedError)
"""Why a record is none, or none for this user, now and later."""


def mark(backend: Backend, record: RunRecord) -> None:
    """Make a run findable by its key; nothing happens if it has none. Marked already, also by others, it stays so."""
    if (folder := _folder(record.key)) is not None:
        name = f"{folder}/{record.month}.{record.id}"
        # The look costs a request elsewhere. Here a colleague's mark cannot be opened for writing, and a folder that is a
        # link out of the store is refused by it.
        if backend.remote or backend.size(name) is None:
            backend.write_new_chunk(name, b"")


def unmark(backend: Backend, record: RunRecord) -> None:
    """Take back what `mark` made."""
    if (folder := _folder(record.key)) is not None:
        backend.delete_object(f"{folder}/{record.month}.{record.id}")
        backend.prune(folder)


def is_marked(backend: Backend, record: RunRecord) -> bool:
    """Whether a run can be found by its key, if it has one."""
    folder = _folder(record.key)
    return folder is None or backend.size(f"{folder}/{record.month}.{record.id}") is not None


def marks(backend: Backend) -> Iterator[tuple[str, str, str, str]]:
    """All marks of a store: the object's name, the key, month and id of the run; what is none is left out."""
    if not backend.folders("keys"):  # also where it leads out of the store
        return
    for name, _ in backend.files("keys"):
        _, _, key, mark_name, *more = [*name.split("/"), "", ""]
        month, _, run = mark_name.partition(".")
        if not any(more) and safe_run_id(month) and safe_run_id(run) and name == f"{_folder(key)}/{mark_name}":
            yield name, key, month, run


def tells(backend: Backend, name: str) -> bool:
    """Whether a mark (its object's name) tells of a run that has this key, or of one whose record cannot be read just now."""
    _, _, key, mark_name = name.split("/")
    month, _, run = mark_name.partition(".")
    try:
        record = _read(backend, month, run)
    except (OSError, StoreError):
        return True
    return record is not None and record.key == key


def marked(backend: Backend, key: str) -> Iterator[RunRecord]:
    """Records of the runs with a key, newest first, each read when it is asked for.

    Marks of runs that are gone or damaged, that this user may not read, or that have another key, count for nothing.

    Raises:
        StoreError: after all others, if a record could not be read for a reason that may pass.
    """
    if (folder := _folder(key)) is None:
        return
    try:
        names = [name.partition(".")[::2] for name in backend.names(folder)]
    except OSError as error:
        raise StoreError(f"the store {backend.url} cannot be read: {error.strerror or error}") from error
    places = sorted(((month, run) for month, run in names if safe_run_id(month) and safe_run_id(run)), reverse=True)
    unreadable = []
    for _, same_second in itertools.groupby(places[:MOST], lambda place: (place[0], place[1][:SECOND])):
        found = []
        for month, run in same_second:
            try:
                record = _read(backend, month, run)
            except (OSError, StoreError) as error:
                unreadable.append((run, error))
            else:
                found += [record] if record is not None and record.key == key else []
        yield from sorted(found, key=lambda record: (record.started, record.id), reverse=True)
    if unreadable:
        run, reason = unreadable[0]
        raise StoreError(
            f"whether the store {backend.url} has this run already cannot be told: the record of {run} cannot be read "
            f"({getattr(reason, 'strerror', None) or reason}). Try again, or compute it anew with force=True"
        ) from reason


def _read(backend: Backend, month: str, run: str) -> RunRecord | None:
    """The record of a run, None if there is none; an error that may pass is raised after some more looks."""
    for pause in (*(() if backend.remote else PAUSES), None):
        try:
            return read_record(read_document(backend, f"runs/{month}/{run}/zarr.json"), month=month, run=run)
        except LASTING:
            return None
        except (OSError, StoreError) as error:
            if getattr(error, "errno", None) == errno.ELOOP:
                return None
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("unreachable")


def mark_all(store: Store) -> int:
    """Mark every run of a store, and say in its marker that all are; how many there were.

    Raises:
        StoreError: the store cannot be written.
    """
    store.prepare()
    count = 0
    try:
        for run in store.each():
            mark(store.backend, run.record)
            count += run.record.key is not None
        store.says_keys()
    except OSError as error:
        raise StoreError(f"the store {store.url} cannot be written: {error.strerror or error}") from error
    return count


def _folder(key: str | None) -> str | None:
    return f"keys/{key[:2]}/{key}" if key is not None and safe_run_id(key) else None
