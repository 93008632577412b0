"""The index: one SQLite file per store in the user's cache folder, so that finding runs never reads the whole store.

It is derived data. It is brought up to date before every question (only folders that changed are listed, only runs that
are new or unfinished are read), and may be deleted at any time. Several processes may use it at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.record import RunRecord
from workbench.store.backend import Backend
from workbench.store.query import Condition

__all__ = ["Index"]

SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE runs (id TEXT PRIMARY KEY, month TEXT, key TEXT, status TEXT, started TEXT, record TEXT) WITHOUT ROWID;
CREATE INDEX runs_key ON runs (key, status);
CREATE INDEX runs_started ON runs (started);
CREATE INDEX runs_open ON runs (status) WHERE status = 'running';
CREATE TABLE facts (run TEXT, name TEXT, text TEXT, number REAL);
CREATE INDEX facts_name_number ON facts (name, number);
CREATE INDEX facts_name_text ON facts (name, text);
CREATE INDEX facts_run ON facts (run);
CREATE TABLE months (month TEXT PRIMARY KEY, version TEXT) WITHOUT ROWID;
"""

SETTLING = 2_000_000_000
"""Nanoseconds during which a folder that changed is listed again: file systems stamp with coarse clocks."""


class Index:
    """Searchable copy of all run records of one store."""

    def __init__(self, backend: Backend, folder: Path | None = None) -> None:
        self._backend = backend
        name = hashlib.sha256(backend.url.encode()).hexdigest()[:24]
        self.path = (folder or cache_folder()) / f"index-{name}.sqlite"
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    # --- questions --------------------------------------------------------------------------------------------------

    def complete_run(self, key: str) -> RunRecord | None:
        """The newest complete run with this key."""
        with self._current() as connection:
            row = connection.execute(
                "SELECT record FROM runs WHERE key = ? AND status = 'complete' ORDER BY started DESC LIMIT 1", (key,)
            ).fetchone()
        return None if row is None else RunRecord.from_json(json.loads(row[0]))

    def runs_with_key(self, key: str) -> list[RunRecord]:
        """All runs with this key, newest first."""
        return self.select(("key = ?", [key]))

    def select(self, condition: Condition, *, limit: int | None = None, offset: int = 0) -> list[RunRecord]:
        """Records that meet the condition, newest first."""
        sql, values = condition
        with self._current() as connection:
            rows = connection.execute(
                f"SELECT record FROM runs WHERE {sql} ORDER BY started DESC, id DESC LIMIT ? OFFSET ?",
                [*values, -1 if limit is None else limit, offset],
            ).fetchall()
        return [RunRecord.from_json(json.loads(row[0])) for row in rows]

    def count(self, condition: Condition) -> int:
        """How many runs meet the condition."""
        sql, values = condition
        with self._current() as connection:
            return int(connection.execute(f"SELECT count(*) FROM runs WHERE {sql}", values).fetchone()[0])

    def ids_like(self, text: str) -> list[str]:
        """Ids that contain `text`."""
        with self._current() as connection:
            rows = connection.execute("SELECT id FROM runs WHERE instr(id, ?) ORDER BY id", (text,)).fetchall()
        return [row[0] for row in rows]

    def put(self, record: RunRecord) -> None:
        """Enter a record at once (the writer knows it without reading it back)."""
        with self._lock, self._open() as connection:
            self._store(connection, record)

    # --- keeping up -------------------------------------------------------------------------------------------------

    @contextmanager
    def _current(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._open() as connection:
            self._refresh(connection)
            yield connection

    def _refresh(self, connection: sqlite3.Connection) -> None:
        known_months = dict(connection.execute("SELECT month, version FROM months").fetchall())
        for month in self._backend.folders("runs"):
            version = self._backend.folder_version(f"runs/{month}")
            if version is not None and known_months.get(month) == str(version):
                continue
            known = {row[0] for row in connection.execute("SELECT id FROM runs WHERE month = ?", (month,))}
            present = set(self._backend.folders(f"runs/{month}"))
            for run in present - known:
                self._read(connection, month, run)
            for run in known - present:
                self._forget(connection, run)
            settled = isinstance(version, int) and time.time_ns() - version > SETTLING
            connection.execute(
                "INSERT OR REPLACE INTO months VALUES (?, ?)", (month, str(version) if settled else "")
            )
        for month in set(known_months) - set(self._backend.folders("runs")):
            for (run,) in connection.execute("SELECT id FROM runs WHERE month = ?", (month,)).fetchall():
                self._forget(connection, run)
            connection.execute("DELETE FROM months WHERE month = ?", (month,))
        unfinished = connection.execute("SELECT month, id FROM runs WHERE status = 'running'").fetchall()
        for month, run in unfinished:
            self._read(connection, month, run)

    def _read(self, connection: sqlite3.Connection, month: str, run: str) -> None:
        try:
            attributes = json.loads(self._backend.read(f"runs/{month}/{run}/zarr.json"))["attributes"]
            record = RunRecord.from_json(attributes["workbench"])
        except (OSError, ValueError, KeyError, TypeError):
            self._forget(connection, run)
            return
        self._store(connection, record)

    def _store(self, connection: sqlite3.Connection, record: RunRecord) -> None:
        self._forget(connection, record.id)
        connection.execute(
            "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?)",
            (record.id, record.month, record.key, record.status, record.started, json.dumps(record.to_json())),
        )
        connection.executemany("INSERT INTO facts VALUES (?, ?, ?, ?)", [(record.id, *fact) for fact in _facts(record)])

    def _forget(self, connection: sqlite3.Connection, run: str) -> None:
        connection.execute("DELETE FROM runs WHERE id = ?", (run,))
        connection.execute("DELETE FROM facts WHERE run = ?", (run,))

    # --- the file ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        if self._connection is None:
            self._connection = self._connect()
        try:
            with self._connection:
                yield self._connection
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise
            # Damaged or deleted under us: it is derived data, so make it anew for the next question.
            self._connection.close()
            self._connection = None
            self.path.unlink(missing_ok=True)
            raise

    def _connect(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = self._prepare(str(self.path))
        except (OSError, sqlite3.DatabaseError):
            try:
                self.path.unlink(missing_ok=True)
                connection = self._prepare(str(self.path))
            except (OSError, sqlite3.DatabaseError):
                connection = self._prepare(":memory:")  # no cache folder: slower to start, else the same
        return connection

    def _prepare(self, target: str) -> sqlite3.Connection:
        connection = sqlite3.connect(target, timeout=30, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                connection.execute(f"DROP TABLE {table}")
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.commit()
        return connection


def cache_folder() -> Path:
    """Where derived data of this user lie: $WORKBENCH_CACHE, else the platform's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ["WORKBENCH_CACHE"]) if os.environ.get("WORKBENCH_CACHE") else user_cache_path("workbench")


def _facts(record: RunRecord) -> Iterator[tuple[str, str | None, float | None]]:
    for name in ("id", "method", "status", "user", "host", "device", "started", "finished", "key"):
        value = getattr(record, name)
        if value is not None:
            yield name, str(value), None
    yield "family", record.method.partition(".")[0], None
    yield "seed", str(record.seed), float(record.seed)
    yield "seconds", None, record.seconds
    for described in record.inputs.values():
        yield "input", str(described.get("label", "")), None
    for name, value in record.metrics.items():
        yield name.lower(), None, float(value)
    for name, value in record.params.items():
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
        yield f"params.{name.lower()}", value if isinstance(value, str) else json.dumps(value), number
