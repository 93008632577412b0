"""The tables of the index, and what a record or an annotation is in them.

A run is a short row of `runs`, its record as text in `records`, and a row of `facts` for everything else one may ask for
(metrics, parameters, inputs). Names of facts are numbers, their values numbers or texts in one column: SQLite sorts all
numbers before all texts, so one SQL index serves both.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from workbench.store.entries import Entry

__all__ = [
    "Annotation",
    "create",
    "drop_indices",
    "enter",
    "enter_annotation",
    "forget",
    "is_whole",
    "make_indices",
]

SCHEMA_VERSION = 8

_TABLES = {
    "runs": """TABLE runs (
        n INTEGER PRIMARY KEY, id TEXT UNIQUE, month TEXT, key TEXT, status TEXT, method TEXT, family TEXT, user TEXT, host TEXT,
        device TEXT, started TEXT, finished TEXT, seconds REAL, seed INTEGER, study TEXT, first_fact INTEGER, last_fact INTEGER
    )""",
    "records": "TABLE records (n INTEGER PRIMARY KEY, record TEXT)",
    "names": "TABLE names (name INTEGER PRIMARY KEY, text TEXT UNIQUE)",
    "facts": "TABLE facts (fact INTEGER PRIMARY KEY, name INTEGER, value COLLATE NOCASE, run INTEGER)",
    "annotations": """TABLE annotations (
        id TEXT PRIMARY KEY, run TEXT, kind TEXT, text TEXT, user TEXT, time TEXT, holds INTEGER
    ) WITHOUT ROWID""",
    "taken_back": "TABLE taken_back (id TEXT PRIMARY KEY) WITHOUT ROWID",
    "seen": "TABLE seen (month TEXT, name TEXT, PRIMARY KEY (month, name)) WITHOUT ROWID",
    "notes": "VIRTUAL TABLE notes USING fts5 (id UNINDEXED, text)",
    "months": "TABLE months (month TEXT PRIMARY KEY, version TEXT) WITHOUT ROWID",
}
_INDICES = {
    "runs_month": "runs (month)",
    "runs_key": "runs (key, status)",
    "runs_started": "runs (started, id)",
    "runs_table": "runs (started, id, status, family, method, user, host, device, study, seed, seconds, finished)",
    "runs_study": "runs (study COLLATE NOCASE) WHERE study IS NOT NULL",
    "runs_open": "runs (status) WHERE status = 'running'",
    "facts_value": "facts (name, value, run) WHERE value IS NOT NULL",
    "annotations_run": "annotations (run, kind)",
    "annotations_kind": "annotations (kind, text)",
}


@dataclass(frozen=True)
class Annotation:
    """Something said about a run (`run` is empty for saved views)."""

    id: str
    run: str
    kind: str
    text: str
    user: str
    time: str


# ------------------------------------------------------------------------------------------------------------- the file


def create(connection: sqlite3.Connection) -> None:
    """Make the tables if the file has none, or those of another version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")  # two processes may find the file old at the same time
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        _drop_all(connection)
        for definition in _TABLES.values():
            connection.execute(f"CREATE {definition}")
        make_indices(connection)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.commit()


def is_whole(connection: sqlite3.Connection) -> bool:
    """Whether all tables can be read."""
    try:
        for name in _TABLES:
            connection.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone()
    except sqlite3.Error:
        return False
    return True


def _drop_all(connection: sqlite3.Connection) -> None:
    for kind, name in connection.execute(
        "SELECT type, name FROM sqlite_master WHERE type IN ('view', 'table')"
    ).fetchall():
        if not name.startswith(("sqlite_", "notes_")):  # the last are parts of the full-text table
            connection.execute(f"DROP {kind} IF EXISTS {name}")


def make_indices(connection: sqlite3.Connection) -> None:
    """Make the SQL indices that are missing."""
    present = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    for name, definition in _INDICES.items():
        if name not in present:
            connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {definition}")


def drop_indices(connection: sqlite3.Connection) -> None:
    """Leave the SQL indices out for a while: made afterwards, they cost a fraction."""
    for name in _INDICES:
        connection.execute(f"DROP INDEX IF EXISTS {name}")


# ----------------------------------------------------------------------------------------------------------------- runs


def enter(connection: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    """Enter records, each in place of an earlier state of the same run, whose number it keeps. Not two of one run."""
    if not entries:
        return
    if not connection.in_transaction:
        connection.execute("BEGIN IMMEDIATE")  # numbers are given out below
    numbers = forget(connection, [row[0] for row, *_ in entries])
    (last,) = connection.execute("SELECT coalesce(max(n), 0) FROM runs").fetchone()
    last = max(last, *numbers.values(), 0)
    (fact,) = connection.execute("SELECT coalesce(max(fact), 0) FROM facts").fetchone()
    known: dict[str, int] = dict(connection.execute("SELECT text, name FROM names").fetchall())
    before = len(known)
    spelled: dict[tuple[str, ...], list[int]] = {}
    """Numbers of names that go together: runs of one method have the same."""
    runs, records = [], []
    facts: list[tuple[Any, ...]] = []
    for row, text, names, values in entries:
        number = numbers.get(row[0])
        if number is None:
            number = last = last + 1
        if (name_numbers := spelled.get(names)) is None:
            name_numbers = spelled[names] = [known.setdefault(name, len(known) + 1) for name in names]
        first, fact = fact + 1, fact + len(values)
        facts.extend(zip(range(first, fact + 1), name_numbers, values, repeat(number)))
        runs.append((number, *row, first, fact))
        records.append((number, text))
    connection.executemany("INSERT INTO names (text, name) VALUES (?, ?)", list(known.items())[before:])
    connection.executemany(f"INSERT INTO runs VALUES ({', '.join('?' * 17)})", runs)
    connection.executemany("INSERT INTO records VALUES (?, ?)", records)
    connection.executemany("INSERT INTO facts VALUES (?, ?, ?, ?)", facts)


def forget(connection: sqlite3.Connection, runs: Sequence[str]) -> dict[str, int]:
    """Take runs out; nothing happens to those that are not there. Returns the numbers they had."""
    found = connection.execute(
        "SELECT id, n, first_fact, last_fact FROM runs WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(runs)),),
    ).fetchall()
    for _, number, first, last in found:
        connection.execute("DELETE FROM runs WHERE n = ?", (number,))
        connection.execute("DELETE FROM records WHERE n = ?", (number,))
        connection.execute("DELETE FROM facts WHERE fact BETWEEN ? AND ?", (first, last))
    return {run: number for run, number, *_ in found}


# ---------------------------------------------------------------------------------------------------------- annotations


def enter_annotation(connection: sqlite3.Connection, name: str, said: Annotation | tuple[str, ...] | None) -> None:
    """Enter what the annotation object `name` says: something, that others are taken back, or nothing known here."""
    if isinstance(said, Annotation):
        gone = connection.execute("SELECT 1 FROM taken_back WHERE id = ?", (name,)).fetchone()
        connection.execute(
            "INSERT OR REPLACE INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?)",
            (name, said.run, said.kind, said.text, said.user, said.time, gone is None),
        )
        if said.kind == "note":
            connection.execute("INSERT INTO notes VALUES (?, ?)", (name, said.text))
    elif said is not None:
        connection.executemany("INSERT OR IGNORE INTO taken_back VALUES (?)", [(item,) for item in said])
        connection.executemany("UPDATE annotations SET holds = 0 WHERE id = ?", [(item,) for item in said])
