"""What `workbench.store.table` holds of all runs in memory: their order and the columns with few different values."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = [
    "CATEGORIES",
    "Columns",
    "first_cells",
    "pairs",
    "ranks_of",
    "read_columns",
    "several_of",
    "with_those_above",
]

CATEGORIES = ("status", "family", "method", "user", "host", "device", "study")
"""Columns with few different values, kept as codes."""


@dataclass
class Columns:
    """What is held of all runs, by ascending run number."""

    number: np.ndarray
    recent: np.ndarray
    """Positions, newest run first."""
    code: dict[str, np.ndarray]
    word: dict[str, list[str]]
    value: dict[str, np.ndarray]
    several: dict[str, tuple[np.ndarray, np.ndarray, list[str]]]
    """Per facet with several values a run (tag, study, subject): position, code, words."""
    order: dict[tuple[str, bool], np.ndarray] = field(default_factory=dict)
    """Positions in the orders that were asked for."""


def first_cells(cursor: sqlite3.Cursor) -> np.ndarray:
    """The whole numbers of the first column."""
    return np.fromiter((row[0] for row in cursor), dtype=np.int64)


def pairs(cursor: sqlite3.Cursor) -> np.ndarray:
    """Runs and values, as fields of one array."""
    return np.fromiter(cursor, dtype=[("run", np.int64), ("value", np.float64)])


def read_columns(cursor: sqlite3.Cursor) -> Columns:
    """Take rows in one by one: as python objects 100,000 of them would be a hundred megabytes."""
    from array import array

    numbers, seeds, seconds, combined, started = array("q"), array("q"), array("d"), array("q"), bytearray()
    combinations: dict[tuple[str | None, ...], int] = {}
    for row in cursor:
        numbers.append(row[0])
        started += str(row[1]).encode("ascii", "replace")[:24].ljust(24)
        seeds.append(row[2])
        seconds.append(row[3])
        combined.append(combinations.setdefault(row[4:], len(combinations)))
    number = np.frombuffer(numbers, dtype=np.int64)
    by_number = np.argsort(number)
    number = number[by_number]
    moments = np.frombuffer(bytes(started), dtype="S24")[by_number]
    which = np.frombuffer(combined, dtype=np.int64)[by_number]
    code, word = {}, {}
    table = zip(*combinations, strict=True) if combinations else [()] * len(CATEGORIES)
    for name, texts in zip(CATEGORIES, table, strict=True):
        word[name] = list(dict.fromkeys(text for text in texts if text is not None))
        place = {text: index for index, text in enumerate(word[name])} | {None: -1}
        code[name] = np.array([place[text] for text in texts], dtype=np.int32)[which]
    return Columns(
        number=number,
        recent=np.lexsort((number, moments))[::-1],
        code=code,
        word=word,
        value={
            "seed": np.frombuffer(seeds, dtype=np.int64)[by_number].astype(np.float64),
            "seconds": np.frombuffer(seconds, dtype=np.float64)[by_number],
        },
        several={},
    )


def several_of(groups: Mapping[str, Sequence[np.ndarray]]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Positions and codes from the positions of each word; a run counts once for a word, however often it has it."""
    words = sorted(groups)
    each = [np.unique(np.concatenate(groups[word])) for word in words]
    none = np.empty(0, dtype=np.int64)
    codes = [np.full(len(places), code) for code, places in enumerate(each)]
    return np.concatenate([none, *each]), np.concatenate([none, *codes]), words


def with_those_above(study: str) -> list[str]:
    """`a`, `a/b`, `a/b/c` for `a/b/c`."""
    parts = study.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def ranks_of(words: Sequence[str]) -> np.ndarray:
    """The rank of each word in alphabetical order."""
    ranks = np.empty(len(words))
    ranks[sorted(range(len(words)), key=lambda place: words[place].casefold())] = np.arange(len(words))
    return ranks
