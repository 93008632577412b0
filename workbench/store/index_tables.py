"""The tables of the index, and what a record or an annotation is in them.

A run is a short row of `runs`, its record as text in `records`, and a row of `facts` for everything else one may ask for
(metrics, parameters, inputs). Names of facts are numbers, their values numbers or texts in one column: SQLite sorts all
numbers before all texts, so one SQL index serves both.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from workbench.store.entries import Entry

__all__ = [
    "Annotation",
    "create",
    "drop_indices",
    "enter",
    "enter_annotation",
    "forget",
    "has_indices",
    "is_whole",
    "keep_log",
    "leave_log",
    "make_indices",
]

SCHEMA_VERSION = 9

MOST_AT_ONCE = 200
"""Facts of a run that one statement enters."""

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
    "runs_study": "runs (study COLLATE NOCASE, study COLLATE BINARY, status, started, finished) WHERE study IS NOT NULL",
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


def has_indices(connection: sqlite3.Connection) -> bool:
    """Whether all SQL indices are there; else a bulk build is under way, or broke off."""
    (count,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'index' AND sql NOT NULL").fetchone()
    return bool(count == len(_INDICES))


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


def keep_log(connection: sqlite3.Connection) -> None:
    """Write what changes to a log, so that others read and this process writes at the same time. It ends a transaction.

    Nothing happens while somebody else who left the log (see `leave_log`) writes: it is for them to come back to it.
    """
    connection.commit()
    with suppress(sqlite3.OperationalError):  # in use; what else may be wrong shows at the next use of the file
        connection.execute("PRAGMA journal_mode = WAL")


def leave_log(connection: sqlite3.Connection) -> None:
    """Write to the file itself until `keep_log`, if nobody else uses it: what goes into an empty one is written once then.

    Killed meanwhile, the file goes back to the last batch, as with the log.
    """
    connection.commit()
    with suppress(sqlite3.OperationalError):  # in use
        connection.execute("PRAGMA journal_mode = TRUNCATE")


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
    alike: dict[tuple[str, ...], list[Entry]] = {}
    """Runs with facts of the same names: those of one method mostly are."""
    for entry in entries:
        alike.setdefault(entry[2], []).append(entry)
    runs, records = [], []
    for names, group in alike.items():
        facts: list[tuple[Any, ...]] = []
        for row, text, _, values in group:
            number = numbers.get(row[0])
            if number is None:
                number = last = last + 1
            runs.append((number, *row, fact + 1, fact + len(values)))
            records.append((number, text))
            facts.append((number, fact, *values))
            fact += len(values)
        _enter_facts(connection, [known.setdefault(name, len(known) + 1) for name in names], facts)
    connection.executemany("INSERT INTO names (text, name) VALUES (?, ?)", list(known.items())[before:])
    connection.executemany(f"INSERT INTO runs VALUES ({', '.join('?' * 17)})", runs)
    connection.executemany("INSERT INTO records VALUES (?, ?)", records)


def _enter_facts(connection: sqlite3.Connection, names: Sequence[int], facts: Sequence[tuple[Any, ...]]) -> None:
    """Enter the facts of runs that have the same ones, given as number of the run, last fact before, and the values.

    All facts of a run in one statement: they are most of the rows of the index.
    """
    for start in range(0, len(names), MOST_AT_ONCE):
        some = names[start : start + MOST_AT_ONCE]
        rows = (f"(?2 + {start + place}, {name}, ?{place + 2}, ?1)" for place, name in enumerate(some, 1))
        values = facts if len(some) == len(names) else [(*fact[:2], *fact[2 + start :][: len(some)]) for fact in facts]
        connection.executemany(f"INSERT INTO facts VALUES {', '.join(rows)}", values)


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
