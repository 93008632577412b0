"""The index: one SQLite file per store in the user's cache folder, so that finding runs never reads the whole store.

It is derived data. It is brought up to date before every question (only folders that changed are listed, only what is
new or unfinished is read), and may be deleted at any time. Several processes may use it at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import StoreError
from workbench.record import RunRecord
from workbench.store.backend import Backend, read_document
from workbench.store.query import COLUMNS, Condition
from workbench.store.records import RecordError, read_record

__all__ = ["Annotation", "Index"]

SCHEMA_VERSION = 6

_SCHEMA = """
CREATE TABLE runs (
    n INTEGER PRIMARY KEY, id TEXT UNIQUE, month TEXT, key TEXT, status TEXT, method TEXT, family TEXT, user TEXT, host TEXT,
    device TEXT, started TEXT, finished TEXT, seconds REAL, seed INTEGER, study TEXT, record TEXT
);
CREATE TABLE facts (run INTEGER, name TEXT, text TEXT, number REAL);
CREATE TABLE annotations (
    id TEXT PRIMARY KEY, run TEXT, kind TEXT, text TEXT, user TEXT, time TEXT, holds INTEGER
) WITHOUT ROWID;
CREATE INDEX annotations_run ON annotations (run, kind);
CREATE INDEX annotations_kind ON annotations (kind, text);
CREATE TABLE taken_back (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE seen (month TEXT, name TEXT, PRIMARY KEY (month, name)) WITHOUT ROWID;
CREATE VIRTUAL TABLE notes USING fts5 (id UNINDEXED, text);
CREATE TABLE months (month TEXT PRIMARY KEY, version TEXT) WITHOUT ROWID;
"""
_INDICES = {
    "runs_month": "runs (month)",
    "runs_key": "runs (key, status)",
    "runs_started": "runs (started, id)",
    "runs_table": "runs (started, id, status, family, method, user, host, device, study, seed, seconds, finished)",
    "runs_study": "runs (study COLLATE NOCASE) WHERE study IS NOT NULL",
    "runs_open": "runs (status) WHERE status = 'running'",
    "facts_number": "facts (name, number, run) WHERE number IS NOT NULL",
    "facts_text": "facts (name, text, run) WHERE text IS NOT NULL",
    "facts_run": "facts (run)",
}

SETTLING = 2_000_000_000
"""Nanoseconds during which a folder that changed is listed again: file systems stamp with coarse clocks."""
PATIENCE = 2.0
"""Seconds for which the listing of a store behind a network is taken as current."""
OLD_MONTHS = 600.0
"""Seconds after which such a store's months before the last two are listed again."""
DAMAGED = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR)
"""SQLite's codes for a file that is not, or no longer, an index (the first: tables are missing). Others say that it is in
use, that the disk is full, that it must not be written: then it stays for those who can use it."""
BULK = 300
"""New runs of a month from which on the SQL indices are made afterwards."""


@dataclass(frozen=True)
class Annotation:
    """Something said about a run (`run` is empty for saved views)."""

    id: str
    run: str
    kind: str
    text: str
    user: str
    time: str


class Index:
    """Searchable copy of all run records and annotations of one store."""

    def __init__(self, backend: Backend, folder: Path | None = None) -> None:
        self._backend = backend
        name = hashlib.sha256(backend.url.encode()).hexdigest()[:24]
        self.path = (folder or cache_folder()) / f"index-{name}.sqlite"
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._refreshed: float | None = None
        self._old_refreshed: float | None = None

    # --- questions --------------------------------------------------------------------------------------------------

    def complete_run(self, key: str) -> RunRecord | None:
        """The newest complete run with this key."""
        rows = self._ask(
            "SELECT record FROM runs WHERE key = ? AND status = 'complete' ORDER BY started DESC LIMIT 1", [key]
        )
        return RunRecord.from_json(json.loads(rows[0][0])) if rows else None

    def running_with_key(self, key: str) -> list[RunRecord]:
        """Runs with this key that have not ended, as of the last question (the store is not looked at again)."""
        rows = self._ask("SELECT record FROM runs WHERE key = ? AND status = 'running'", [key], look=False)
        return [RunRecord.from_json(json.loads(row[0])) for row in rows]

    def runs_with_key(self, key: str) -> list[RunRecord]:
        """All runs with this key, newest first."""
        return self.select(("key = ?", [key]))

    def select(self, condition: Condition, *, limit: int | None = None, offset: int = 0) -> list[RunRecord]:
        """Records that meet the condition, newest first."""
        sql, values = condition
        rows = self._ask(
            f"SELECT record FROM runs WHERE {sql} ORDER BY started DESC, id DESC LIMIT ? OFFSET ?",
            [*values, -1 if limit is None else limit, offset],
        )
        return [RunRecord.from_json(json.loads(row[0])) for row in rows]

    def count(self, condition: Condition) -> int:
        """How many runs meet the condition."""
        sql, values = condition
        return int(self._ask(f"SELECT count(*) FROM runs WHERE {sql}", values)[0][0])

    def ids_like(self, text: str) -> list[str]:
        """Ids that contain `text`."""
        rows = self._ask("SELECT id FROM runs WHERE instr(id, ?) ORDER BY id", [text])
        return [row[0] for row in rows]

    def users_of(self, run: str) -> list[str]:
        """Ids of the runs that were made from this run's output, directly."""
        rows = self._ask(
            "SELECT DISTINCT runs.id FROM facts JOIN runs ON runs.n = facts.run WHERE name = 'uses' AND text = ?"
            " ORDER BY runs.id",
            [run],
        )
        return [row[0] for row in rows]

    def memberships(self) -> list[tuple[str, str, str, str]]:
        """Study, run, status of the run, and when it last began, ended or joined; a run may be in several studies."""
        rows: list[tuple[str, str, str, str]] = self._ask(
            "SELECT study, id, status, max(started, coalesce(finished, '')) FROM runs WHERE study IS NOT NULL"
            " UNION ALL"
            " SELECT said.text, runs.id, status, max(started, coalesce(finished, ''), said.time)"
            " FROM annotations AS said JOIN runs ON runs.id = said.run WHERE said.holds AND said.kind = 'study'",
            [],
        )
        return rows

    def annotations(self, kind: str, run: str | None = None) -> list[Annotation]:
        """Annotations of a kind that hold, oldest first; of one run or of all."""
        sql = "SELECT id, run, kind, text, user, time FROM annotations WHERE holds AND kind = ?"
        values = [kind]
        if run is not None:
            sql, values = sql + " AND run = ?", [kind, run]
        rows = self._ask(sql + " ORDER BY time, id", values)
        return [Annotation(*row) for row in rows]

    def ask(
        self,
        sql: str,
        values: Sequence[object] = (),
        *,
        look: bool = True,
        read: Callable[[sqlite3.Cursor], Any] = sqlite3.Cursor.fetchall,
    ) -> Any:
        """Answer a question of `workbench.store.table`.

        Args:
            sql: the question; what comes from elsewhere is in `values`.
            values: its parameters.
            look: bring the index up to date first; else only if that was never done.
            read: turns the cursor into the answer; called while the index is held, so it asks nothing itself.
        """
        return self._ask(sql, values, look=look, read=read)

    def put(self, record: RunRecord) -> None:
        """Enter a record at once (the writer knows it without reading it back).

        A copy that cannot be written (home folder full, cache read-only) is no reason to fail a run: the next question
        finds the record in the store.
        """
        with suppress(sqlite3.Error), self._lock, self._open() as connection:
            self._store(connection, record)

    def forget(self, run: str) -> None:
        """Take a run out at once (it was deleted); else as `put`."""
        with suppress(sqlite3.Error), self._lock, self._open() as connection:
            self._forget(connection, run)

    def expire(self) -> None:
        """Look at the store before the next question, however recently that was done."""
        self._refreshed = self._old_refreshed = None

    # --- keeping up -------------------------------------------------------------------------------------------------

    def _ask(
        self,
        sql: str,
        values: Sequence[object],
        *,
        look: bool = True,
        read: Callable[[sqlite3.Cursor], Any] = sqlite3.Cursor.fetchall,
    ) -> Any:
        """Rows that answer, after a look at the store (unless that is not wished, and was done before).

        What is wrong with the file must not keep anybody from an answer: the second try opens it anew (damaged, it was
        removed), the third does without.
        """
        with self._lock:
            for attempt in range(3):
                if attempt == 2:
                    self._connection = self._prepare(":memory:")
                try:
                    with self._open() as connection:
                        self._keep_up(connection, look=look)
                        return read(connection.execute(sql, values))
                except sqlite3.Error:
                    if attempt == 2:
                        raise
        raise AssertionError("unreachable")

    def _keep_up(self, connection: sqlite3.Connection, *, look: bool) -> None:
        moment = time.monotonic()
        recent = self._refreshed is not None and (
            not look or (self._backend.remote and moment - self._refreshed <= PATIENCE)
        )
        if not recent:
            self._refresh(connection)
            self._refreshed = moment

    def _refresh(self, connection: sqlite3.Connection) -> None:
        known_months = dict(connection.execute("SELECT month, version FROM months").fetchall())
        present = self._backend.folders("runs")
        marked = [f"annotations/{month}" for month in self._backend.folders("annotations")]
        moment = time.monotonic()
        # Over a network every month is a request, so old ones are listed now and then only.
        everything = (
            not self._backend.remote or self._old_refreshed is None or moment - self._old_refreshed > OLD_MONTHS
        )
        if everything:
            self._old_refreshed = moment
        for month in present if everything else [m for m in present if m not in known_months or m in present[-2:]]:
            if (version := self._changed(month, f"runs/{month}", known_months)) is not None:
                version = version if self._refresh_month(connection, month) else ""
                connection.execute("INSERT OR REPLACE INTO months VALUES (?, ?)", (month, version))
        for folder in marked if everything else [m for m in marked if m not in known_months or m in marked[-2:]]:
            if (version := self._changed(folder, folder, known_months)) is not None:
                self._refresh_annotations(connection, folder)
                connection.execute("INSERT OR REPLACE INTO months VALUES (?, ?)", (folder, version))
        for month in set(known_months) - set(present) - set(marked):
            for (run,) in connection.execute("SELECT id FROM runs WHERE month = ?", (month,)).fetchall():
                self._forget(connection, run)
            connection.execute("DELETE FROM months WHERE month = ?", (month,))
        unfinished = connection.execute("SELECT month, id FROM runs WHERE status = 'running'").fetchall()
        for month in {month for month, _ in unfinished}:
            self._read(connection, month, [run for other, run in unfinished if other == month])
        _make_indices(connection)  # a bulk build may have broken off

    def _changed(self, name: str, folder: str, known: dict[str, str]) -> str | None:
        """The version to remember for a folder that has to be listed, None for one that did not change."""
        version = self._backend.folder_version(folder)
        if version is not None and known.get(name) == str(version):
            return None
        settled = isinstance(version, str) or (isinstance(version, int) and time.time_ns() - version > SETTLING)
        return str(version) if settled else ""

    def _refresh_month(self, connection: sqlite3.Connection, month: str) -> bool:
        """Bring one month up to date; false if something could not be read that may be readable later."""
        known = {row[0] for row in connection.execute("SELECT id FROM runs WHERE month = ?", (month,))}
        present = set(self._backend.folders(f"runs/{month}"))
        new = sorted(present - known)
        if len(new) > BULK:
            for index in _INDICES:
                connection.execute(f"DROP INDEX IF EXISTS {index}")
        readable = self._read(connection, month, new)
        for run in known - present:
            self._forget(connection, run)
        return readable

    def _read(self, connection: sqlite3.Connection, month: str, runs: list[str]) -> bool:
        """Read records and enter them. What is no record is left out; what is wrong with it `verify` tells."""
        readable = True
        for run, data in self._documents(f"runs/{month}", runs, "/zarr.json"):
            try:
                if isinstance(data, Exception):
                    raise data
                self._store(connection, read_record(data, month=month, run=run))
            except RecordError:
                self._forget(connection, run)
            except FileNotFoundError:
                self._forget(connection, run)
                readable = False  # a run or copy that is just beginning
            except (OSError, StoreError):
                readable = False  # a disk or network that hiccups takes no known run away
        return readable

    def _documents(self, folder: str, names: list[str], file: str) -> Iterable[tuple[str, bytes | Exception]]:
        published = self._backend.documents(folder) if names else None
        if published is not None:
            wanted = set(names)
            return ((name, data) for name, data in published if name in wanted)

        def read(name: str) -> tuple[str, bytes | Exception]:
            try:
                return name, read_document(self._backend, f"{folder}/{name}{file}")
            except (OSError, StoreError) as error:
                return name, error

        if not self._backend.remote or len(names) < 2:
            return map(read, names)
        return _in_parallel(read, names)

    def _refresh_annotations(self, connection: sqlite3.Connection, folder: str) -> None:
        from workbench.store.annotations import parse_annotation

        known = {row[0] for row in connection.execute("SELECT name FROM seen WHERE month = ?", (folder,))}
        new = [name for name in self._backend.names(folder) if name not in known]
        for name, data in self._documents(folder, new, ""):
            try:
                if isinstance(data, Exception):
                    raise data
                said = parse_annotation(data)
            except OSError:
                continue  # it may be readable the next time
            except StoreError:
                said = None
            connection.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (folder, name))
            if isinstance(said, Annotation):
                self._enter(connection, name, said)
            elif said is not None:
                connection.executemany("INSERT OR IGNORE INTO taken_back VALUES (?)", [(item,) for item in said])
                connection.executemany("UPDATE annotations SET holds = 0 WHERE id = ?", [(item,) for item in said])

    def _enter(self, connection: sqlite3.Connection, name: str, said: Annotation) -> None:
        gone = connection.execute("SELECT 1 FROM taken_back WHERE id = ?", (name,)).fetchone()
        connection.execute(
            "INSERT OR REPLACE INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?)",
            (name, said.run, said.kind, said.text, said.user, said.time, gone is None),
        )
        if said.kind == "note":
            connection.execute("INSERT INTO notes VALUES (?, ?)", (name, said.text))

    def _store(self, connection: sqlite3.Connection, record: RunRecord) -> None:
        number = self._forget(connection, record.id)  # a run keeps its number while its record changes
        family = record.method.partition(".")[0]
        columns = (record.status, record.method, family, record.user, record.host, record.device, record.started)
        cursor = connection.execute(
            f"INSERT INTO runs VALUES ({', '.join('?' * 16)})",
            (number, record.id, record.month, record.key, *columns, record.finished, float(record.seconds),
             max(0, min(record.seed, 2**63 - 1)), record.study, json.dumps(record.to_json(), separators=(",", ":"))),
        )  # fmt: skip
        number = cursor.lastrowid
        connection.executemany("INSERT INTO facts VALUES (?, ?, ?, ?)", [(number, *fact) for fact in _facts(record)])

    def _forget(self, connection: sqlite3.Connection, run: str) -> int | None:
        """Take a run out; the number it had."""
        row = connection.execute("SELECT n FROM runs WHERE id = ?", (run,)).fetchone()
        if row is None:
            return None
        connection.execute("DELETE FROM runs WHERE n = ?", row)
        connection.execute("DELETE FROM facts WHERE run = ?", row)
        return int(row[0])

    # --- the file ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        if self._connection is None:
            self._connection = self._connect()
        try:
            with self._connection:
                yield self._connection
        except sqlite3.Error as error:
            self._connection.close()
            self._connection = None
            self.expire()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED:  # derived data: made anew for the next question
                with suppress(OSError):
                    self._remove_file()
            raise

    def _remove_file(self) -> None:
        for suffix in ("-wal", "-shm", ""):  # a log left behind would be replayed into the new file
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = self._prepare(str(self.path))
        except (OSError, sqlite3.DatabaseError):
            try:
                self._remove_file()
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
            connection.execute("BEGIN IMMEDIATE")  # two processes may find the file old at the same time
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != SCHEMA_VERSION:
                _drop_all(connection)
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                _make_indices(connection)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.commit()
        return connection


def _drop_all(connection: sqlite3.Connection) -> None:
    for kind, name in connection.execute(
        "SELECT type, name FROM sqlite_master WHERE type IN ('view', 'table')"
    ).fetchall():
        if not name.startswith(("sqlite_", "notes_")):  # the last are parts of the full-text table
            connection.execute(f"DROP {kind} IF EXISTS {name}")


def _make_indices(connection: sqlite3.Connection) -> None:
    present = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    for name, definition in _INDICES.items():
        if name not in present:
            connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {definition}")


def _in_parallel(read: object, names: list[str]) -> Iterator[tuple[str, bytes | Exception]]:
    with ThreadPoolExecutor(max_workers=16, thread_name_prefix="workbench-index") as pool:
        for start in range(0, len(names), 256):  # a few at a time: a document may be large
            yield from pool.map(read, names[start : start + 256])  # type: ignore[arg-type]


def cache_folder() -> Path:
    """Where derived data of this user lie: $WORKBENCH_CACHE, else the platform's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ["WORKBENCH_CACHE"]) if os.environ.get("WORKBENCH_CACHE") else user_cache_path("workbench")


def _facts(record: RunRecord) -> Iterator[tuple[str, str | None, float | None]]:
    """What can be asked for beside the columns of `runs`: metrics, parameters, inputs."""
    for described in record.inputs.values():
        yield "input", str(described.get("label", "")), None
        for run in described.get("runs", ()):
            yield "uses", run, None
    for name, value in record.metrics.items():
        if name.lower() not in COLUMNS:
            yield name.lower(), None, float(value)
    for name, value in record.params.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"params.{name.lower()}", None, float(value) if abs(value) < 1e300 else None
        else:
            yield f"params.{name.lower()}", value if isinstance(value, str) else json.dumps(value), None
