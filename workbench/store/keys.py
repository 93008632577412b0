"""Finding runs by their key without an index: `keys/4c/KEY/MONTH.RUN` is an empty object for every run with that key.

So whether a run was computed before, or is being computed, costs one look into a folder of its own and the records it
names, however many runs the store has. The objects are derived: each is made once, by the run's writer, before any result;
what they say counts only where the run's own record says the same. Stores of before have none; their runs are found through
the index until `mark_all` was called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.errors import StoreError
from workbench.record import RunRecord
from workbench.store.backend import Backend, read_document
from workbench.store.records import read_record, safe_run_id

if TYPE_CHECKING:
    from workbench.store.store import Store

__all__ = ["mark", "mark_all", "marked", "unmark"]

MOST = 1000
"""Runs of one key that are looked at, the newest by their ids."""


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


def marked(backend: Backend, key: str) -> list[RunRecord]:
    """Records of the runs with a key, newest first. Marks of runs that are gone, or have another key, count for nothing."""
    folder = _folder(key)
    found = []
    places = [name.partition(".")[::2] for name in (backend.names(folder) if folder else ())]
    places = [(month, run) for month, run in places if safe_run_id(month) and safe_run_id(run)]
    for month, run in sorted(places, reverse=True)[:MOST]:
        try:
            record = read_record(read_document(backend, f"runs/{month}/{run}/zarr.json"), month=month, run=run)
        except (OSError, StoreError):
            continue
        if record.key == key:
            found.append(record)
    return sorted(found, key=lambda record: (record.started, record.id), reverse=True)


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
