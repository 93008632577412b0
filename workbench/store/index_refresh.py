"""Bringing the index up to date: only folders that changed are listed, only what is new or unfinished is read."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from functools import partial

from workbench.errors import StoreError
from workbench.store.backend import Backend, RefusedError, documents_one_by_one
from workbench.store.entries import Batch, RecordReader, read_batch
from workbench.store.index_tables import (
    drop_indices,
    enter,
    enter_annotation,
    forget,
    has_indices,
    keep_log,
    leave_log,
    make_indices,
)
from workbench.store.records import RecordError

__all__ = ["refresh", "unheard"]

SETTLING = 2_000_000_000
"""Nanoseconds during which a folder that changed is listed again: file systems stamp with coarse clocks."""
BULK = 300
"""New runs of a month from which on the SQL indices are made afterwards, if they are a good part of all runs."""
GOOD_PART = 5
"""One in so many: making the indices anew costs as much as keeping them up to date for so many runs more."""


def refresh(connection: sqlite3.Connection, backend: Backend, *, everything: bool) -> None:
    """Make the tables say what the store says.

    Args:
        connection: the index.
        backend: the store.
        everything: also look at the months before the last two, where they are known already.
    """
    known = dict(connection.execute("SELECT month, version FROM months").fetchall())
    present = backend.folders("runs")
    marked = [f"annotations/{month}" for month in backend.folders("annotations")]
    versions: dict[str, str] = {}

    def listed() -> Iterator[tuple[str, list[str]]]:
        for month in _due(present, known, everything):
            if (version := _changed(backend, month, f"runs/{month}", known)) is not None:
                versions[month] = version
                yield month, _new_runs(connection, backend, month)

    with RecordReader(backend) as reader:
        for month, batch in reader.batches(listed()):
            if not _enter(connection, batch):
                versions[month] = ""
            if not has_indices(connection):  # a bulk build: others may ask and write meanwhile
                connection.commit()
    connection.executemany("INSERT OR REPLACE INTO months VALUES (?, ?)", versions.items())
    for folder in _due(marked, known, everything):
        if (version := _changed(backend, folder, folder, known)) is not None:
            version = version if _refresh_annotations(connection, backend, folder) else ""
            connection.execute("INSERT OR REPLACE INTO months VALUES (?, ?)", (folder, version))
    for month in set(known) - set(present) - set(marked):
        forget(connection, [row[0] for row in connection.execute("SELECT id FROM runs WHERE month = ?", (month,))])
        connection.execute("DELETE FROM months WHERE month = ?", (month,))
    unfinished = connection.execute("SELECT month, id FROM runs WHERE status = 'running'").fetchall()
    for month in {month for month, _ in unfinished}:
        runs = [run for other, run in unfinished if other == month]
        # Local ones one by one: they were listed some time ago, and what was a folder then may be a link now.
        read = backend.documents if backend.remote else partial(documents_one_by_one, backend)
        _enter(connection, read_batch(month, read(f"runs/{month}", runs, "/zarr.json")))
    keep_log(connection)  # also if a bulk build broke off before
    make_indices(connection)


def unheard(connection: sqlite3.Connection, backend: Backend) -> list[str]:
    """Annotations that lie in the store and could not be read at the last look."""
    heard = set(connection.execute("SELECT month, name FROM seen").fetchall())
    folders = [f"annotations/{month}" for month in backend.folders("annotations")]
    return [f"{folder}/{name}" for folder in folders for name in backend.names(folder) if (folder, name) not in heard]


def _due(folders: list[str], known: dict[str, str], everything: bool) -> list[str]:
    return folders if everything else [folder for folder in folders if folder not in known or folder in folders[-2:]]


def _changed(backend: Backend, name: str, folder: str, known: dict[str, str]) -> str | None:
    """The version to remember for a folder that has to be listed, None for one that did not change."""
    version = backend.folder_version(folder)
    if version is not None and known.get(name) == str(version):
        return None
    settled = isinstance(version, str) or (isinstance(version, int) and time.time_ns() - version > SETTLING)
    return str(version) if settled else ""


def _new_runs(connection: sqlite3.Connection, backend: Backend, month: str) -> list[str]:
    """Names of the runs of a month that are not in the tables; those that are gone are taken out."""
    known = {row[0] for row in connection.execute("SELECT id FROM runs WHERE month = ?", (month,))}
    present = set(backend.folders(f"runs/{month}"))
    forget(connection, list(known - present))
    new = sorted(present - known)
    (entered,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    if len(new) > max(BULK, entered // GOOD_PART):
        drop_indices(connection)
        if not entered:
            leave_log(connection)
    return new


def _enter(connection: sqlite3.Connection, batch: Batch) -> bool:
    """Enter records; false if something could not be read that may be readable later."""
    forget(connection, batch.gone)
    enter(connection, batch.entries)
    return batch.readable


def _refresh_annotations(connection: sqlite3.Connection, backend: Backend, folder: str) -> bool:
    """Enter what is new of a month; false if something could not be read that may be readable later."""
    from workbench.store.annotations import parse_annotation

    readable = True
    known = {row[0] for row in connection.execute("SELECT name FROM seen WHERE month = ?", (folder,))}
    new = [name for name in backend.names(folder) if name not in known]
    for name, data in backend.documents(folder, new, ""):
        try:
            if isinstance(data, Exception):
                raise data
            said = parse_annotation(data)
        except (RecordError, RefusedError):
            said = None
        except (OSError, StoreError):
            readable = False
            continue
        connection.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (folder, name))
        enter_annotation(connection, name, said)
    return readable
