"""What may come next in a query: names, operators, values, `and`/`or`; and what is wrong with one, for the line below the box."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from workbench.errors import InputError

__all__ = ["Completion", "Option", "Problem", "advice", "complete", "problem", "quoted"]

COLUMNS = {
    "status": "complete, running, failed, ...",
    "family": "quantization, calibration, ...",
    "method": "id of the method",
    "user": "who ran it; me",
    "study": "and the studies below it",
    "tag": "what somebody tagged it with",
    "note": "words in notes: note ~ word",
    "started": "moment, UTC",
    "finished": "moment, UTC",
    "seconds": "duration",
    "seed": "seed",
    "id": "id of the run",
    "device": "cpu, cuda, ...",
    "host": "machine",
    "input": "label of an input",
    "uses": "id of a run it was made from",
    "pinned": "yes or no",
    "archived": "yes or no",
    "key": "identity of the computation",
}
OPERATORS = {
    "=": "is (* stands for any text)", "!=": "is not", ">": "more than", "<": "less than", ">=": "at least", "<=": "at most",
    "~": "contains",
}  # fmt: skip
STATUSES = ("complete", "running", "failed", "cancelled")
MOST = 40

_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"[^"]*"?|'[^']*'?)|(?P<operator>!=|<=|>=|=|<|>|~)|(?P<bracket>[()])|(?P<word>[^\s()"'=<>!~]+))"""
)
_BARE = re.compile(r"(?!(?:and|or|not)\b)[^\s()\"'=<>!~]+", re.IGNORECASE)
_COLUMN = re.compile(r"not understood from column (\d+)\)")


@dataclass(frozen=True)
class Option:
    """Something to insert."""

    text: str
    detail: str = ""


@dataclass(frozen=True)
class Completion:
    """Options that would replace `text[start:end]` of the query."""

    start: int
    end: int
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Problem:
    """Why a query is not understood, and the place (from 0) from which it is not; None where it is about a value."""

    message: str
    place: int | None = None


def complete(
    text: str, cursor: int, names: Callable[[], Iterable[str]], values: Callable[[str, str], Sequence[str]]
) -> Completion:
    """What may stand at the cursor.

    Args:
        text: the query as typed.
        cursor: place in it, 0..len(text).
        names: metrics and `params.NAME` of the store.
        values: values that a column or parameter has, by its name and what they begin with.
    """
    head = text[:cursor]
    tokens = list(_TOKEN.finditer(head))
    partial, start = "", cursor
    if tokens and tokens[-1].end() == cursor and tokens[-1].lastgroup in ("word", "quoted"):
        last = tokens[-1]
        kind = str(last.lastgroup)
        if kind == "word" or len(last[kind]) == 1 or last[kind][0] != last[kind][-1]:
            tokens.pop()
            partial, start = last[kind], last.start(kind)
    end = cursor
    while partial and end < len(text) and partial[0] not in "\"'" and not re.match(r"[\s()\"'=<>!~]", text[end]):
        end += 1  # the rest of the word the cursor stands in
    expected, subject = _expected(tokens)
    if expected == "name":
        options = _starting(partial, {**COLUMNS, **{name: _sort_of(name) for name in names()}})
    elif expected == "operator":
        options = [Option(sign, meaning) for sign, meaning in OPERATORS.items()] if not partial else []
    elif expected == "value":
        options = _values(subject, partial, values)
    else:
        options = _starting(partial, {"and": "both", "or": "either"})
    return Completion(start, end, tuple(options[:MOST]))


def _expected(tokens: Sequence[re.Match[str]]) -> tuple[str, str]:
    """What comes after these tokens (name, operator, value, joiner), and the name it is about."""
    state, subject = "name", ""
    for token in tokens:
        text = token[token.lastgroup or 0]
        if token.lastgroup == "bracket":
            state = "name" if text == "(" else "joiner"
        elif state == "name":
            if text.lower() not in ("not", "and", "or"):
                state, subject = "operator", text.lower()
        elif state == "operator":
            state = "value" if token.lastgroup == "operator" else state
        elif state == "value":
            state = "joiner"
        else:
            state = "name"
    return state, subject


def _sort_of(name: str) -> str:
    return "parameter" if name.startswith("params.") else "metric"


def _starting(partial: str, known: dict[str, str]) -> list[Option]:
    """Names that begin with, and then those that contain, what was typed."""
    typed = partial.lower()
    begin = [Option(name, detail) for name, detail in known.items() if name.startswith(typed)]
    within = [Option(name, detail) for name, detail in known.items() if typed in name and not name.startswith(typed)]
    return begin + within if typed else begin


def _values(subject: str, partial: str, values: Callable[[str, str], Sequence[str]]) -> list[Option]:
    typed = partial.lstrip("\"'")
    if subject in ("pinned", "archived"):
        found: Sequence[str] = ("yes", "no")
    elif subject == "status":
        found = STATUSES
    elif subject in ("started", "finished"):
        today = datetime.now(UTC)
        days = {"today": 0, "yesterday": 1, "a week ago": 7, "a month ago": 30}
        dates = [Option((today - timedelta(days=count)).strftime("%Y-%m-%d"), word) for word, count in days.items()]
        return [option for option in dates if option.text.startswith(typed)]
    else:
        found = (["me"] if subject == "user" else []) + list(values(subject, typed))
    texts = [(text, quoted(text)) for text in found if text.lower().startswith(typed.lower())]
    return [Option(text) for _, text in texts if text is not None]


def quoted(value: str) -> str | None:
    """A value as it is written in a query; None for one with both kinds of quotes, which cannot be."""
    if _BARE.fullmatch(value):
        return value
    return next((f"{mark}{value}{mark}" for mark in "\"'" if mark not in value), None)


def problem(error: InputError, text: str) -> Problem:
    """What to say about a query that was refused."""
    found = _COLUMN.search(error.got)
    if found is None:
        return Problem(f"Expected {error.expected}, got {error.got}.")
    place = min(int(found[1]) - 1, len(text))
    rest = text[place:].strip()
    if not rest:
        return Problem("The query is not finished. A comparison is NAME OPERATOR VALUE, such as accuracy > 0.9.", place)
    shown = rest if len(rest) <= 40 else f"{rest[:40]}…"
    return Problem(
        f"Not understood from “{shown}”. A comparison is NAME OPERATOR VALUE, such as accuracy > 0.9.", place
    )


def advice(text: str, names: Callable[[], Iterable[str]]) -> list[str]:
    """Sentences for somebody whose query finds nothing: names in it that no run has, and what may be meant."""
    without_values = re.sub(r"\"[^\"]*\"|'[^']*'", "''", text)
    asked = dict.fromkeys(
        name.lower() for name in re.findall(r"([A-Za-z_][\w.\-]*)\s*(?:!=|<=|>=|=|<|>|~)", without_values)
    )
    known: list[str] | None = None
    found = []
    for name in asked:
        if name in COLUMNS:
            continue
        known = list(names()) if known is None else known
        if name in known:
            continue
        close = difflib.get_close_matches(name, [*known, *COLUMNS], n=1) or (
            [f"params.{name}"] if f"params.{name}" in known else []
        )
        hint = f" Did you mean {close[0]}?" if close else ""
        found.append(f"No run has a metric or parameter called {name}.{hint}")
    return found
