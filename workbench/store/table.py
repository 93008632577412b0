"""All runs of a store as one table: their order, the cells of a page, how often values occur. What a browser asks of the index.

The order of the rows and the columns with few different values are held in memory as numpy arrays (less than 100 bytes a
run), so that sorting and counting 100,000 runs take milliseconds. All other cells are read for the rows on view only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.record import RunRecord
from workbench.store.liveness import observed_status
from workbench.store.observing import interrupted, unfinished
from workbench.store.query import Condition, compile_query
from workbench.store.table_columns import (
    CATEGORIES,
    Columns,
    first_cells,
    pairs,
    ranks_of,
    read_columns,
    several_of,
    with_those_above,
)

if TYPE_CHECKING:
    from workbench.store.backend import Backend
    from workbench.store.index import Index

__all__ = ["FACETS", "Question", "Row", "RunTable"]

FACETS = ("status", "family", "method", "subject", "user", "study", "tag")
"""What runs are counted by; a subject is an input that is no run, by its label."""
MOST_SUBJECTS = 500
"""Subjects that are counted, the most frequent."""
PLAIN = ("finished", "key")
"""Columns read from the index when somebody sorts by them."""
LONGEST = 400
"""Characters of a text that are read for a cell; the run itself has all of them."""
MOST_NAMES = 2_000

_NAME = "(SELECT name FROM names WHERE text = ?)"
"""The number of a fact's name."""


@dataclass(frozen=True)
class Question:
    """Which runs, in which order."""

    query: str = ""
    """In the language of `workbench.store.query`."""
    facets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Per facet the values wanted, any of them; all facets must agree."""
    sort: str = "started"
    """A column, a metric, `params.NAME` or `tag`; runs without it come last."""
    descending: bool = True


@dataclass(frozen=True)
class Row:
    """One run as the table shows it; `cells` has only what was asked for and is there."""

    number: int
    id: str
    status: str
    cells: Mapping[str, Any]
    progress: Mapping[str, Any] | None = None
    """Of a running run: done, total, message."""
    failure: str = ""
    """Of a failed run: the first line of what went wrong."""


class RunTable:
    """The table over one store. Its methods may be called from any thread."""

    def __init__(self, index: Index, backend: Backend, user: str) -> None:
        self._index, self._backend, self._user = index, backend, user
        self._lock = threading.RLock()
        self._columns: Columns | None = None
        self._seen: object = None

    # --- keeping up -------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Look at the store; true if runs came, went, ended or were annotated since the last look."""
        with self._lock:
            (facts,) = self._index.ask(
                "SELECT count(*), max(n), (SELECT id FROM runs ORDER BY n DESC LIMIT 1),"
                " (SELECT count(*) FROM annotations), (SELECT count(*) FROM annotations WHERE holds) FROM runs"
            )
            seen = (tuple(facts), tuple(sorted(self._running().items())))
            changed = self._seen is not None and seen != self._seen
            self._seen = seen
            if changed:
                self._columns = None
            return changed

    @property
    def live(self) -> bool:
        """Whether any run was running at the last look."""
        return bool(self._seen) and "running" in dict(self._seen[1]).values()  # type: ignore[index]

    def _running(self) -> dict[int, str]:
        """Runs that have not ended, and what is observed of them."""
        return {**unfinished(self._index, self._backend)}

    # --- order ------------------------------------------------------------------------------------------------------

    def first(self, question: Question, count: int) -> tuple[np.ndarray, int]:
        """Numbers of the first runs and how many there are, without reading all: for the moment a table opens.

        Raises:
            InputError: the query is not understood.
        """
        if question.facets or question.sort != "started" or not question.descending:
            order = self.order(question)
            return order[:count], len(order)
        sql, values = self._condition(question)
        rows = self._index.ask(
            f"SELECT n FROM runs WHERE {sql} ORDER BY started DESC, id DESC LIMIT ?", [*values, count], look=False
        )
        ((total,),) = self._index.ask(f"SELECT count(*) FROM runs WHERE {sql}", values, look=False)
        return np.array([n for (n,) in rows], dtype=np.int64), int(total)

    def order(self, question: Question) -> np.ndarray:
        """Numbers of all runs that are asked for, in order.

        Raises:
            InputError: the query is not understood.
        """
        with self._lock:
            columns = self._fresh()
            wanted = self._matching(question)
            for name, chosen in question.facets.items():
                wanted = wanted & self._facet(name, chosen)
            order = self._ordered(question.sort, question.descending)
            found: np.ndarray = columns.number[order[wanted[order]]]
            return found

    def counts(self, question: Question) -> dict[str, list[tuple[str, int]]]:
        """Per facet its values and how many runs have them, most frequent first.

        A value counts runs that meet the query and the *other* facets, so that it says what choosing it would give.

        Raises:
            InputError: the query is not understood.
        """
        with self._lock:
            columns = self._fresh()
            matching = self._matching(question)
            masks = {name: self._facet(name, chosen) for name, chosen in question.facets.items()}
            found = {}
            for name in FACETS:
                wanted = matching
                for other, mask in masks.items():
                    wanted = wanted if other == name else wanted & mask
                words, codes = self._codes(name)
                codes = codes[wanted[columns.several[name][0]]] if name in columns.several else codes[wanted]
                amounts = np.bincount(codes[codes >= 0], minlength=len(words))
                chosen = question.facets.get(name, ())
                shown = [(word, int(n)) for word, n in zip(words, amounts, strict=True) if n or word in chosen]
                found[name] = sorted(shown, key=lambda item: (-item[1], item[0]))
            return found

    def position(self, order: np.ndarray, run_id: str) -> int | None:
        """Where a run stands in an order."""
        rows = self._index.ask("SELECT n FROM runs WHERE id = ?", [run_id], look=False)
        if not rows:
            return None
        places = np.nonzero(order == rows[0][0])[0]
        return int(places[0]) if len(places) else None

    def _condition(self, question: Question) -> Condition:
        return compile_query(
            question.query, user=self._user, interrupted=lambda: interrupted(self._index, self._backend)
        )

    def _matching(self, question: Question) -> np.ndarray:
        columns = self._held()
        sql, values = self._condition(question)
        wanted = np.ones(len(columns.number), bool)
        if sql != "1":
            numbers = self._index.ask(f"SELECT n FROM runs WHERE {sql}", values, look=False, read=first_cells)
            wanted[:] = False
            wanted[self._positions(numbers)[0]] = True
        return wanted

    def _facet(self, name: str, chosen: Sequence[str]) -> np.ndarray:
        columns = self._held()
        words, codes = self._codes(name)
        hit = np.isin(codes, [words.index(word) for word in chosen if word in words])
        if name not in columns.several:
            return hit
        mask = np.zeros(len(columns.number), bool)
        mask[columns.several[name][0][hit]] = True
        return mask

    def _codes(self, name: str) -> tuple[list[str], np.ndarray]:
        columns = self._held()
        if name in columns.several:
            _, codes, words = columns.several[name]
            return words, codes
        return columns.word[name], columns.code[name]

    def _ordered(self, name: str, descending: bool) -> np.ndarray:
        """Positions in an order: what is equal newest first, what has no value last."""
        columns = self._held()
        if name in ("started", "id"):
            return columns.recent if descending else columns.recent[::-1]
        if (name, descending) not in columns.order:
            keys = self._keys(name)[columns.recent]
            columns.order[name, descending] = columns.recent[np.argsort(-keys if descending else keys, kind="stable")]
        return columns.order[name, descending]

    def _keys(self, name: str) -> np.ndarray:
        """Numbers that sort as the values do; NaN where there is none."""
        columns = self._held()
        if name in columns.value:
            return columns.value[name]
        if name in CATEGORIES:
            ranks = np.append(ranks_of(columns.word[name]), np.nan)  # code -1: none
            keys: np.ndarray = ranks[columns.code[name]]
            return keys
        if name == "tag":
            place, codes, words = columns.several["tag"]
            keys = np.full(len(columns.number), np.nan)
            np.fmin.at(keys, place, ranks_of(words)[codes])
            return keys
        if name in PLAIN:
            return self._text_keys(self._index.ask(f"SELECT n, {name} FROM runs", look=False))
        numbers = self._index.ask(
            f"SELECT run, value FROM facts WHERE name = {_NAME} AND value < ''", [name], look=False, read=pairs
        )
        if not len(numbers):
            texts = f"SELECT run, substr(value, 1, ?) FROM facts WHERE name = {_NAME} AND value >= ''"
            return self._text_keys(self._index.ask(texts, [LONGEST, name], look=False))
        keys = np.full(len(columns.number), np.nan)
        places, known = self._positions(numbers["run"])
        keys[places] = numbers["value"][known]
        return keys

    def _text_keys(self, rows: Iterable[tuple[int, str | None]]) -> np.ndarray:
        keys = np.full(len(self._held().number), np.nan)
        given = [(n, text) for n, text in rows if text is not None]
        if given:
            folded = np.array([text.casefold() for _, text in given], dtype=object)
            _, codes = np.unique(folded, return_inverse=True)
            places, known = self._positions(np.array([n for n, _ in given], dtype=np.int64))
            keys[places] = codes[known]
        return keys

    def _positions(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where runs lie in the columns, and which of them do: one that came this very moment is not held yet."""
        return self._places(self._held().number, numbers)

    @staticmethod
    def _places(held: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = np.minimum(np.searchsorted(held, numbers), max(len(held) - 1, 0))
        known = held[places] == numbers if len(held) else np.zeros(len(numbers), bool)
        return places[known], known

    def _fresh(self) -> Columns:
        """The columns, read anew if runs came or went since, by this process too (it enters its runs without a look)."""
        ((count, last),) = self._index.ask("SELECT count(*), max(n) FROM runs", look=False)
        held = self._columns
        if held is not None and (count, last or 0) != (
            len(held.number),
            int(held.number[-1]) if len(held.number) else 0,
        ):
            self._columns = None
        return self._held()

    def _held(self) -> Columns:
        if self._columns is None:
            self._columns = self._load()
        return self._columns

    def _load(self) -> Columns:
        names = ", ".join(CATEGORIES)
        columns: Columns = self._index.ask(
            f"SELECT n, started, seed, seconds, {names} FROM runs", look=False, read=read_columns
        )
        for n, status in self._running().items():
            if status != "running" and (place := np.searchsorted(columns.number, n)) < len(columns.number):
                words = columns.word["status"]
                if status not in words:
                    words.append(status)
                columns.code["status"][place] = words.index(status)
        said = self._index.ask(
            "SELECT DISTINCT kind, text, n FROM annotations JOIN runs ON runs.id = annotations.run"
            " WHERE holds AND kind IN ('tag', 'study')",
            look=False,
        )
        groups: dict[str, dict[str, list[np.ndarray]]] = {"tag": {}, "study": {}}
        for kind, text, n in said:
            said_of, _ = self._places(columns.number, np.array([n]))
            for word in with_those_above(text) if kind == "study" else [text]:
                groups[kind].setdefault(word, []).append(said_of)
        for code, own in enumerate(columns.word["study"]):
            places = np.nonzero(columns.code["study"] == code)[0]
            for word in with_those_above(own):
                groups["study"].setdefault(word, []).append(places)
        groups["subject"] = {
            label: [self._places(columns.number, np.array(numbers))[0]] for label, numbers in self._subjects().items()
        }
        for name, found in groups.items():
            columns.several[name] = several_of(found)
        return columns

    def _subjects(self) -> dict[str, list[int]]:
        """Numbers of the runs by the label of each frequent input that is no run (those are called `run ID`)."""
        rows = self._index.ask(
            f"SELECT value, run FROM facts WHERE name = {_NAME} AND value IN (SELECT value FROM facts WHERE name = {_NAME}"
            " AND value <> '' AND value NOT LIKE 'run %' GROUP BY value ORDER BY count(*) DESC LIMIT ?)",
            ["input", "input", MOST_SUBJECTS],
            look=False,
        )
        found: dict[str, list[int]] = {}
        for label, number in rows:
            found.setdefault(str(label), []).append(number)
        return found

    # --- cells ------------------------------------------------------------------------------------------------------

    def rows(self, numbers: Sequence[int] | np.ndarray, columns: Sequence[str]) -> list[Row]:
        """The cells of a page; runs that were deleted since are left out."""
        numbers = [int(n) for n in numbers]
        if not numbers:
            return []
        places = ",".join("?" * len(numbers))
        texts = ("id", "status", "family", "method", "user", "host", "device", "study", "started", "finished", "key")
        read = ", ".join(f"substr({name}, 1, {LONGEST})" for name in texts)
        found = self._index.ask(
            f"SELECT n, seed, seconds, {read}, CASE WHEN status IN ('running', 'failed') THEN record END"
            f" FROM runs JOIN records USING (n) WHERE n IN ({places})",
            numbers,
            look=False,
        )
        facts: dict[int, dict[str, Any]] = {n: {} for n in numbers}
        asked = [name for name in columns if name not in texts]
        if asked:
            names = ",".join("?" * len(asked))
            for n, name, value in self._index.ask(
                f"SELECT n, names.text, CASE WHEN value >= '' THEN substr(value, 1, {LONGEST}) ELSE value END"
                " FROM runs JOIN facts ON fact BETWEEN first_fact AND last_fact JOIN names ON names.name = facts.name"
                f" WHERE n IN ({places}) AND names.text IN ({names})",
                [*numbers, *asked],
                look=False,
            ):
                before = facts[n].get(name)
                facts[n][name] = value if before is None else f"{before}, {value}"  # inputs: several of one name
        for n, kind, text in self._index.ask(
            "SELECT n, kind, substr(text, 1, 100) FROM annotations AS said JOIN runs ON runs.id = said.run"
            f" WHERE holds AND kind IN ('tag', 'pin', 'archive', 'study') AND n IN ({places}) ORDER BY kind, text",
            numbers,
            look=False,
        ):
            facts[n].setdefault({"study": "joined"}.get(kind, kind), []).append(text)
        made = {}
        for n, seed, seconds, *cells, record in found:
            values = dict(zip(texts, cells, strict=True)) | {"seed": seed, "seconds": seconds} | facts[n]
            made[n] = _row(n, values, record, self._backend)
        return [made[n] for n in numbers if n in made]

    # --- words for those who ask ------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of metrics, and of parameters as `params.NAME`, in alphabetical order."""
        rows = self._index.ask(
            "SELECT text FROM names WHERE text NOT IN ('input', 'uses')"
            " AND EXISTS (SELECT 1 FROM facts WHERE facts.name = names.name AND value IS NOT NULL) ORDER BY text LIMIT ?",
            [MOST_NAMES],
            look=False,
        )
        return [name for (name,) in rows]

    def values(self, name: str, start: str = "", most: int = 20) -> list[str]:
        """Values of a text column or parameter that begin with `start`, those of columns most frequent first."""
        with self._lock:
            if name in CATEGORIES or name == "tag":
                words, codes = self._codes(name)
                amounts = np.bincount(codes[codes >= 0], minlength=len(words))
                ranked = sorted(zip(words, amounts, strict=True), key=lambda item: (-item[1], item[0]))
                return [word for word, _ in ranked if word.lower().startswith(start.lower())][:most]
        found: list[str] = []
        while len(found) < most:
            after = found[-1] if found else None
            ((value,),) = self._index.ask(
                f"SELECT min(value) FROM facts WHERE name = {_NAME} AND value >= ? AND value > ?",
                [name, start, "" if after is None else after],
                look=False,
            )
            if value is None or not value.lower().startswith(start.lower()) or len(value) > LONGEST:
                break
            found.append(value)
        return found

    def metric(self, name: str) -> Mapping[str, Any]:
        """How a run that has this metric describes it: direction, unit; empty where none has."""
        rows = self._index.ask(
            f"SELECT record FROM records WHERE n = (SELECT run FROM facts WHERE name = {_NAME} AND value < '' LIMIT 1)",
            [name],
            look=False,
        )
        metrics = (json.loads(rows[0][0]).get("report") or {}).get("metrics", ()) if rows else ()
        return next((metric for metric in metrics if str(metric.get("name")).lower() == name), {})


def _row(n: int, values: dict[str, Any], record: str | None, backend: Backend) -> Row:
    status, progress, failure = values["status"], None, ""
    if record is not None:
        read = RunRecord.from_json(json.loads(record))
        status = observed_status(backend, read)
        if status == "running":
            progress = read.progress
        elif read.failure:
            first = f"{read.failure.get('type', '')}: {read.failure.get('message', '')}".strip(": ")
            failure = first.partition("\n")[0][:LONGEST]
    return Row(n, values.pop("id"), status, values | {"status": status}, progress, failure)
