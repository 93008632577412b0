"""The index: one SQLite file per store in the user's cache folder, so that finding runs never reads the whole store.

It is derived data. It is brought up to date before every question (only folders that changed are listed, only what is
new or unfinished is read), and may be deleted at any time. Several processes may use it at once. Its tables are in
`index_tables`, how they are brought up to date in `index_refresh`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from workbench.errors import InputError, StoreError
from workbench.record import RunRecord
from workbench.store.backend import Backend
from workbench.store.entries import entry_of
from workbench.store.index_refresh import refresh, unheard
from workbench.store.index_tables import Annotation, create, enter, forget, is_whole, keep_log
from workbench.store.query import Condition, Order, compile_order

__all__ = ["Annotation", "Index", "cache_folder"]

T = TypeVar("T")
NEWEST_FIRST = compile_order("")
PATIENCE = 2.0
"""Seconds for which the listing of a store behind a network is taken as current."""
OLD_MONTHS = 600.0
"""Seconds after which such a store's months before the last two are listed again."""
DAMAGED = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR)
"""SQLite's codes for a file that is not, or no longer, an index (the first: tables are missing). Others say that it is in
use, that the disk is full, that it must not be written: then it stays for those who can use it."""
CACHE_KIBIBYTES = 32 * 1024
"""Memory that SQLite may take for pages of the file."""
FEW = 3000
"""Runs up to which those that meet a condition are sorted, instead of going through an order in search of them."""
SHORT_WALK, STRIDE = 60_000, 1000
"""Steps of SQLite's machine (about two milliseconds) for which an order is gone through on trial, and how often to count."""
FACT = "n IN (SELECT run FROM facts WHERE "
"""How `workbench.store.query` asks for runs with a fact; a test holds that pages are the same however it is asked for."""
OWN_FACT = "EXISTS (SELECT 1 FROM facts AS own NOT INDEXED WHERE own.fact BETWEEN first_fact AND last_fact AND "
"""The same as `FACT` by looking at the run's own facts, without making anything of all runs that have it."""
_FACT = re.compile(re.escape(FACT) + r"(?:[^()]|\([^()]*\))*\)")
MOST_COUNTED = 20_000
"""Facts that are counted to find the rarest."""
PAGE = 1000
"""Records that `each` keeps in memory at a time."""


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
        found = self.select(("key = ? AND status = 'complete'", [key]), limit=1)
        return found[0] if found else None

    def runs_with_key(self, key: str) -> list[RunRecord]:
        """All runs with this key, newest first."""
        return self.select(("key = ?", [key]))

    def select(
        self, condition: Condition, *, order: Order = NEWEST_FIRST, limit: int | None = None, offset: int = 0
    ) -> list[RunRecord]:
        """Records that meet the condition, in an order; those without a value for it come last, newest first."""

        def work(connection: sqlite3.Connection) -> list[str]:
            return _records(connection, _numbers(connection, condition, order, limit, offset))

        return _parsed(self._ask(work))

    def known(self, run: str) -> RunRecord | None:
        """The record of a run as of the last question (the store is not looked at again)."""
        condition: Condition = ("id = ?", [run])
        found = _parsed(self._ask(lambda connection: _records(connection, _numbers(connection, condition)), look=False))
        return found[0] if found else None

    def each(self, condition: Condition) -> Iterator[RunRecord]:
        """Records that meet the condition, newest first; a few at a time in memory, however many there are."""
        numbers = self._ask(lambda connection: _numbers(connection, condition))
        for start in range(0, len(numbers), PAGE):
            page = numbers[start : start + PAGE]
            yield from _parsed(self._ask(lambda connection, page=page: _records(connection, page), look=False))  # type: ignore[misc]

    def count(self, condition: Condition) -> int:
        """How many runs meet the condition."""
        sql, values = condition
        return int(self._rows(f"SELECT count(*) FROM runs WHERE {sql}", values)[0][0])

    def ids_like(self, text: str) -> list[str]:
        """Ids that contain `text`."""
        rows = self._rows("SELECT id FROM runs WHERE instr(id, ?) ORDER BY id", [text])
        return [row[0] for row in rows]

    def users_of(self, run: str) -> list[str]:
        """Ids of the runs that were made from this run's output, directly."""
        rows = self._rows(
            "SELECT DISTINCT runs.id FROM facts JOIN runs ON runs.n = facts.run"
            " WHERE name = (SELECT name FROM names WHERE text = 'uses') AND value = ? AND value = ? COLLATE BINARY"
            " ORDER BY runs.id",
            [run, run],
        )
        return [row[0] for row in rows]

    def study_counts(self) -> list[tuple[str, str, int, str]]:
        """Study that runs were computed for, status, number of ended runs, and when one of them last began or ended."""
        return self._rows(
            # In the order of the SQL index `runs_study`, which has all that is asked for.
            "SELECT study, status, count(*), max(max(started), coalesce(max(finished), '')) FROM runs"
            " WHERE study IS NOT NULL AND status != 'running' GROUP BY study COLLATE NOCASE, study, status",
            [],
        )

    def joined(self) -> list[tuple[str, str, str | None, str, str]]:
        """Study that a run joined, run, the study it was computed for, status, and when it last began, ended or joined."""
        return self._rows(
            "SELECT said.text, runs.id, study, status, max(started, coalesce(finished, ''), said.time)"
            " FROM annotations AS said JOIN runs ON runs.id = said.run WHERE said.holds AND said.kind = 'study'",
            [],
        )

    def annotations(self, kind: str, run: str | None = None) -> list[Annotation]:
        """Annotations of a kind that hold, oldest first; of one run or of all."""
        sql = "SELECT id, run, kind, text, user, time FROM annotations WHERE holds AND kind = ?"
        values = [kind]
        if run is not None:
            sql, values = sql + " AND run = ?", [kind, run]
        rows = self._rows(sql + " ORDER BY time, id", values)
        return [Annotation(*row) for row in rows]

    def unheard(self) -> list[str]:
        """Annotations that cannot be read just now, whatever they say; damaged ones, which say nothing, do not count."""
        return self._ask(lambda connection: unheard(connection, self._backend))

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
        return self._ask(lambda connection: read(connection.execute(sql, values)), look=look)

    def put(self, record: RunRecord) -> None:
        """Enter a record at once (the writer knows it without reading it back).

        A copy that cannot be written (home folder full, cache read-only) is no reason to fail a run: the next question
        finds the record in the store.
        """
        with suppress(sqlite3.Error), self._lock, self._open() as connection:
            value = record.to_json()
            enter(connection, [entry_of(value, json.dumps(value, separators=(",", ":")), record.metrics)])

    def forget(self, run: str) -> None:
        """Take a run out at once (it was deleted); else as `put`."""
        with suppress(sqlite3.Error), self._lock, self._open() as connection:
            forget(connection, [run])

    def expire(self) -> None:
        """Look at the store before the next question, however recently that was done."""
        self._refreshed = self._old_refreshed = None

    # --- keeping up -------------------------------------------------------------------------------------------------

    def _rows(self, sql: str, values: Sequence[object]) -> list[Any]:
        return self._ask(lambda connection: connection.execute(sql, values).fetchall())

    def _ask(self, work: Callable[[sqlite3.Connection], T], *, look: bool = True) -> T:
        """The answer of `work`, after a look at the store (unless that is not wished, and was done before).

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
                        connection.commit()  # whatever becomes of the question
                        try:
                            return work(connection)
                        except sqlite3.OperationalError as error:
                            if _code(error) == sqlite3.SQLITE_ERROR and is_whole(connection):
                                raise InputError(
                                    "where", expected="a query that SQLite takes", got=str(error)
                                ) from error
                            raise
                except sqlite3.Error:
                    if attempt == 2:
                        raise
        raise AssertionError("unreachable")

    def _keep_up(self, connection: sqlite3.Connection, *, look: bool) -> None:
        moment, remote = time.monotonic(), self._backend.remote
        if self._refreshed is not None and (not look or (remote and moment - self._refreshed <= PATIENCE)):
            return
        # Over a network every month is a request, so old ones are listed now and then only.
        everything = not remote or self._old_refreshed is None or moment - self._old_refreshed > OLD_MONTHS
        if everything:
            self._old_refreshed = moment
        try:
            refresh(connection, self._backend, everything=everything)
        except OSError as error:
            raise StoreError(f"the store {self._backend.url} cannot be read: {error.strerror or error}") from error
        self._refreshed = moment

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
            if _code(error) in DAMAGED:  # derived data: made anew for the next question
                with suppress(OSError):
                    self._remove_file()
            raise

    def _remove_file(self) -> None:
        for suffix in ("-wal", "-shm", "-journal", ""):  # a log left behind would be replayed into the new file
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        with suppress(OSError, sqlite3.Error):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return self._prepare(str(self.path))
            except sqlite3.Error as error:
                if _code(error) not in DAMAGED:  # in use: whoever builds it would go on with a file without a name
                    raise
                self._remove_file()
                return self._prepare(str(self.path))
        return self._prepare(":memory:")  # no cache folder, or not for us: slower to start, else the same

    def _prepare(self, target: str) -> sqlite3.Connection:
        connection = sqlite3.connect(target, timeout=30, check_same_thread=False)
        keep_log(connection)
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIBIBYTES}")
        connection.execute("PRAGMA threads = 1")  # sorts for new SQL indices beside the one that reads
        create(connection)
        return connection


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _numbers(
    connection: sqlite3.Connection,
    condition: Condition,
    order: Order = NEWEST_FIRST,
    limit: int | None = None,
    offset: int = 0,
) -> list[int]:
    """Numbers of the runs that meet a condition, in an order.

    If a short walk along the order fills the page, that is it. Else few runs are found first and sorted then; of many, the
    order is gone through to the end of the page.
    """
    sql, values = condition
    most = -1 if limit is None else limit
    if sql == "1" and limit and not order.is_column and (shared := _shared_value(connection, order, offset + limit)):
        # Thousands of runs share a parameter: not sorted by age, but the newest looked through for those that have it.
        name = _name_of(connection, order)
        return _numbers(connection, (f"{FACT}name = ? AND value = ?)", [name, *shared]), NEWEST_FIRST, limit, offset)
    if limit is not None and sql != "1":
        with _at_most(connection, SHORT_WALK):
            page = _walk(connection, (sql.replace(FACT, OWN_FACT), values), order, most, offset)
            if len(page) == limit:
                return page
        text = f"SELECT n FROM runs WHERE {_rarest_first(connection, condition)} LIMIT ?"
        found = connection.execute(text, [*values, FEW + 1]).fetchall()
        if len(found) <= FEW:
            return _sorted(connection, [row[0] for row in found], order)[offset : offset + limit]
    # SQLite is kept from starting with the subqueries: the plus takes a column out of the choice of SQL indices.
    sql = sql.replace("n IN (SELECT", "+n IN (SELECT").replace("id IN (SELECT", "+id IN (SELECT")
    page = _walk(connection, (sql, values), order, most, offset)
    if order.is_column or 0 <= most <= len(page):
        return page
    # There is room on the page for those without a value.
    name = _name_of(connection, order)
    having = f"FROM facts JOIN runs ON runs.n = facts.run WHERE facts.name = ? AND facts.value IS NOT NULL AND {sql}"
    (count,) = connection.execute(f"SELECT count(*) {having}", [name, *values]).fetchone()
    text = (
        f"SELECT n FROM runs WHERE {sql} AND n NOT IN (SELECT run FROM facts WHERE facts.name = ? AND facts.value IS NOT NULL)"
        " ORDER BY started DESC, id DESC LIMIT ? OFFSET ?"
    )
    rest = [*values, name, most if most < 0 else most - len(page), max(0, offset - count)]
    return page + [row[0] for row in connection.execute(text, rest)]


def _shared_value(connection: sqlite3.Connection, order: Order, count: int) -> list[str | float]:
    """The one value (in a list) that the first `count` runs along an order of facts have; empty if they have several."""
    text = (
        "SELECT value FROM facts WHERE name = ? AND value IS NOT NULL"
        f" ORDER BY value {'DESC' if order.descending else 'ASC'} LIMIT 1 OFFSET ?"
    )
    name = _name_of(connection, order)
    ends = [row[0] for at in (0, count - 1) for row in connection.execute(text, (name, at))]
    same = len(ends) == 2 and connection.execute("SELECT ? = ? COLLATE NOCASE", ends).fetchone()[0]
    return ends[:1] if same else []


def _rarest_first(connection: sqlite3.Connection, condition: Condition) -> str:
    """The condition, such that of several facts which all must be there only the rarest is looked for among all runs."""
    sql, values = condition
    facts = list(_FACT.finditer(sql))
    if len(facts) < 2 or " OR " in sql or "NOT " in sql:
        return sql
    sizes = []
    for fact in facts:
        before, own = sql.count("?", 0, fact.start()), fact[0].count("?")
        text = f"SELECT count(*) FROM ({fact[0][len('n IN (') : -1]} LIMIT ?)"
        (size,) = connection.execute(text, [*values[before : before + own], MOST_COUNTED]).fetchone()
        sizes.append(size)
    rarest = facts[sizes.index(min(sizes))]
    head, tail = sql[: rarest.start()], sql[rarest.end() :]
    return head.replace(FACT, OWN_FACT) + rarest[0] + tail.replace(FACT, OWN_FACT)


def _walk(connection: sqlite3.Connection, condition: Condition, order: Order, most: int, offset: int) -> list[int]:
    """A page of the runs that meet a condition and have a value for the order, along the SQL index of the order."""
    sql, values = condition
    direction = "DESC" if order.descending else "ASC"
    if order.is_column:
        text = f"SELECT n FROM runs WHERE {sql} ORDER BY {order.name} {direction}, id {direction} LIMIT ? OFFSET ?"
    else:
        text = (
            "SELECT run FROM facts JOIN runs ON runs.n = facts.run"
            f" WHERE facts.name = ? AND facts.value IS NOT NULL AND {sql}"
            f" ORDER BY facts.value {direction}, runs.started DESC, runs.id DESC LIMIT ? OFFSET ?"
        )
        values = [_name_of(connection, order), *values]
    return [row[0] for row in connection.execute(text, [*values, most, offset])]


def _name_of(connection: sqlite3.Connection, order: Order) -> int | None:
    (name,) = connection.execute("SELECT max(name) FROM names WHERE text = ?", (order.name,)).fetchone()
    return None if name is None else int(name)


@contextmanager
def _at_most(connection: sqlite3.Connection, steps: int) -> Iterator[None]:
    """Break off, without an error, questions that take more steps of SQLite's machine than this."""
    left = steps // STRIDE

    def count() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    connection.set_progress_handler(count, STRIDE)
    try:
        yield
    except sqlite3.OperationalError as error:
        if _code(error) != sqlite3.SQLITE_INTERRUPT:
            raise
    finally:
        connection.set_progress_handler(None, 0)


def _sorted(connection: sqlite3.Connection, numbers: list[int], order: Order) -> list[int]:
    direction = "DESC" if order.descending else "ASC"
    if order.is_column:
        text = f"SELECT n FROM runs WHERE n IN (SELECT value FROM json_each(?)) ORDER BY {order.name} {direction}, id {direction}"
        return [row[0] for row in connection.execute(text, (json.dumps(numbers),))]
    text = (
        "SELECT n FROM runs LEFT JOIN facts ON fact BETWEEN first_fact AND last_fact"
        " AND name = (SELECT name FROM names WHERE text = ?) WHERE n IN (SELECT value FROM json_each(?))"
        f" ORDER BY facts.value IS NULL, facts.value {direction}, started DESC, id DESC"
    )
    return [row[0] for row in connection.execute(text, (order.name, json.dumps(numbers)))]


def _records(connection: sqlite3.Connection, numbers: Sequence[int]) -> list[str]:
    found = (connection.execute("SELECT record FROM records WHERE n = ?", (number,)).fetchone() for number in numbers)
    return [row[0] for row in found if row is not None]


def _parsed(texts: Sequence[str]) -> list[RunRecord]:
    from pydantic_core import from_json  # three times as fast as the json module

    return [RunRecord.from_json(from_json(text)) for text in texts]


def cache_folder() -> Path:
    """Where derived data of this user lie: $WORKBENCH_CACHE, else the platform's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ["WORKBENCH_CACHE"]) if os.environ.get("WORKBENCH_CACHE") else user_cache_path("workbench")
