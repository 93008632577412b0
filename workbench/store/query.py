"""The query language of `workbench runs --where`, `bench.runs(where=...)` and the panels.

    family = quantization and accuracy > 0.9 and user = me
    method = calibration.* or (status = failed and started > 2026-11-01)
    not params.criterion = eig

    tag = paper and note ~ "learning rate" and not archived = yes

A comparison is NAME OP VALUE with OP one of = != < <= > >= ~ (contains). Names: id, method, family, status, user, host,
device, started, finished, seconds, seed, key, input (labels of the inputs), uses (ids of the runs it was made from), any
metric, params.NAME, study (`study = ship` also finds runs of `ship/resnet20`), tag, note (`~` finds words, `learn*` their
beginnings), pinned and archived (yes or no). `*` in a value of = or != stands for any text; `me` as a value of user is the
person asking. Values with spaces are quoted.

An order is the name of a column, a metric or a parameter: `accuracy`, `-accuracy` from large to small, `-started`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from workbench.errors import InputError

__all__ = ["COLUMNS", "Condition", "Order", "compile_order", "compile_query"]

TEXTS = ("id", "method", "family", "status", "user", "host", "device", "started", "finished", "key")
NUMBERS = ("seconds", "seed")
COLUMNS = frozenset((*TEXTS, *NUMBERS, "study"))
"""Names that are columns of the table `runs`; all others are looked up in `facts` or `annotations`."""
_NAME = re.compile(r"[a-z_][\w.\-/ ]*")
_SEVERAL = ("tag", "note", "pinned", "archived", "input", "uses")
MARKS = {"pinned": "pin", "archived": "archive"}

GRAMMAR = r"""
?start: disjunction
?disjunction: conjunction (_OR conjunction)*
?conjunction: negation (_AND negation)*
?negation: _NOT negation -> negate
         | "(" disjunction ")"
         | NAME OPERATOR value -> compare
value: QUOTED | WORD
_OR: /or\b/i
_AND: /and\b/i
_NOT: /not\b/i
OPERATOR: "!=" | "<=" | ">=" | "=" | "<" | ">" | "~"
NAME: /(?!(?:and|or|not)\b)[A-Za-z_][\w.\-]*/i
WORD: /(?!(?:and|or|not)\b)[^\s()"'=<>!~]+/i
QUOTED: /"[^"]*"|'[^']*'/
%ignore /\s+/
"""

Condition = tuple[str, list[Any]]
"""An SQL condition over the table `runs` and its parameters."""

MOST_COMPARISONS = 200
DEEPEST = 40
LONGEST_QUERY = 20_000
LONGEST_VALUE = 10_000
MOST_WORDS = 50
"""What SQLite surely takes: it limits the depth of expressions and the length of patterns."""


@cache
def _parser() -> Any:
    import lark

    return lark.Lark(GRAMMAR, parser="earley", ambiguity="resolve", lexer="dynamic")


Numbers = Callable[[], Sequence[int]]
"""Gives numbers of runs; called only where a query depends on them."""


def _none() -> Sequence[int]:
    return ()


@lru_cache(100)
def _parsed(text: str) -> Any:
    """Panels ask the same again and again; parsing takes as long as a short question."""
    return _parser().parse(text)


def compile_query(text: str, *, user: str, interrupted: Numbers = _none) -> Condition:
    """Translate a query to SQL over the index. Every value is passed as a parameter, never as SQL.

    Args:
        text: the query; empty means every run.
        user: who `me` is.
        interrupted: numbers of the runs whose records say `running`, but which read as interrupted (`observing`).

    Raises:
        InputError: with the place where the query stops making sense.
    """
    import lark

    if not text.strip():
        return "1", []
    if len(text) > LONGEST_QUERY:
        raise InputError("where", expected=f"a query of at most {LONGEST_QUERY} characters", got=f"one of {len(text)}")
    try:
        tree = _parsed(text)
    except lark.exceptions.UnexpectedInput as error:
        column = getattr(error, "column", len(text) + 1)
        column = column if isinstance(column, int) and column > 0 else len(text) + 1
        raise InputError(
            "where",
            expected="a query such as: family = quantization and accuracy > 0.9",
            got=f"{text!r} (not understood from column {column})",
        ) from None
    comparisons, depth = _extent(tree)
    if comparisons > MOST_COMPARISONS or depth > DEEPEST:
        raise InputError(
            "where",
            expected=f"a query of at most {MOST_COMPARISONS} comparisons in at most {DEEPEST} levels",
            got=f"{comparisons} in {depth}",
        )
    return _compile(tree, user, interrupted)


def _extent(tree: Any) -> tuple[int, int]:
    """Comparisons of a query and its levels, without recursion: it may be very deep."""
    comparisons = deepest = 0
    waiting = [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        deepest = max(deepest, depth)
        if node.data == "compare":
            comparisons += 1
        else:
            waiting += [(child, depth + 1) for child in node.children]
    return comparisons, deepest


@dataclass(frozen=True)
class Order:
    """What runs are sorted by: a column of the table `runs`, or the name of a fact (a metric, a parameter)."""

    name: str
    descending: bool

    @property
    def is_column(self) -> bool:
        """Whether it is a column; every run has a value then, or an empty one."""
        return self.name in COLUMNS


def compile_order(text: str) -> Order:
    """`accuracy` or, from large to small, `-accuracy`; empty: newest first.

    Raises:
        InputError: it is no name, or one of which a run may have several values.
    """
    name = text.strip().lower() or "-started"
    descending, name = name.startswith("-"), name.removeprefix("-")
    if not _NAME.fullmatch(name) or name in _SEVERAL:
        raise InputError(
            "order",
            expected="a column, a metric or params.NAME, with - before it from large to small",
            got=repr(text)[:80],
        )
    return Order(name, descending)


def _compile(tree: Any, user: str, interrupted: Numbers) -> Condition:
    if tree.data in ("disjunction", "conjunction"):
        word = " OR " if tree.data == "disjunction" else " AND "
        parts = [_compile(child, user, interrupted) for child in tree.children]
        return "(" + word.join(sql for sql, _ in parts) + ")", [value for _, values in parts for value in values]
    if tree.data == "negate":
        sql, values = _compile(tree.children[0], user, interrupted)
        return f"NOT {sql}", values
    name, operator, value_tree = tree.children
    token = value_tree.children[0]
    text = str(token)[1:-1] if token.type == "QUOTED" else str(token)
    sql, values = _compare(str(name).lower(), str(operator), text, user)
    return (_observed(sql, interrupted()) if str(name).lower() == "status" else sql), values


def _observed(sql: str, interrupted: Sequence[int]) -> str:
    """A condition on the status of records as one on the status that everybody is shown."""
    if not interrupted:
        return sql
    numbers = ", ".join(str(int(number)) for number in interrupted)
    return sql.replace("status", f"(CASE WHEN n IN ({numbers}) THEN 'interrupted' ELSE status END)")


def _compare(name: str, operator: str, text: str, user: str) -> Condition:
    if len(text) > LONGEST_VALUE:
        raise InputError("where", expected=f"values of at most {LONGEST_VALUE} characters", got=f"one of {len(text)}")
    if name == "user" and text == "me":
        text = user
    if name in MARKS:
        return _mark(name, operator, text)
    if name == "note" and operator == "~":
        return _words(text)
    if name == "study" and operator in ("=", "!=") and "*" not in text:
        sql, values = _study(text)
        return (sql, values) if operator == "=" else (f"NOT {sql}", values)
    if operator == "~":
        pattern = "%" + text.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_") + "%"
        return _where(name, r"{} LIKE ? ESCAPE '\'", [pattern], texts=True)
    number = _number(text)
    if operator in ("=", "!="):
        if number is not None:
            sql, values = _where(name, "{} IN (?, ?)", [number, text])
        elif "*" in text:
            # GLOB knows no COLLATE: both sides in lower case, its other wildcards taken literally.
            glob = text.lower().replace("[", "[[]").replace("?", "[?]")
            sql, values = _where(name, "lower({}) GLOB ?", [glob], texts=True)
        else:
            sql, values = _where(name, "{} = ? COLLATE NOCASE", [text], texts=True)
        return (sql, values) if operator == "=" else (f"NOT {sql}", values)
    if number is not None and name not in TEXTS:
        return _where(name, f"{{}} {operator} ?", [number], texts=False)
    return _where(name, f"{{}} {operator} ?", [text], texts=True)


def _where(name: str, condition: str, values: list[Any], *, texts: bool | None = None) -> Condition:
    """A condition on a column of `runs`, on a fact or on an annotation; never NULL, so that NOT means what it says.

    Args:
        name: of what is compared.
        condition: SQL with `{}` where that stands.
        values: its parameters.
        texts: whether only texts or only numbers can meet it; None: both.
    """
    if name == "study":
        return _in_study(condition, values)
    if name in COLUMNS:
        if name in NUMBERS:
            number = condition.format(name)
            as_text = condition.format(f"CAST({name} AS TEXT)")
            sql = number if texts is False else as_text if texts else f"({number} OR {as_text})"
            return f"coalesce({sql}, 0)", values * (2 if texts is None else 1)
        return f"coalesce({condition.format(name)}, 0)", values
    if name in ("tag", "note"):
        return f"id IN (SELECT run FROM annotations WHERE holds AND kind = ? AND {condition.format('text')})", [
            name,
            *values,
        ]
    # SQLite sorts numbers before texts, the smallest of which is the empty one.
    guard = {True: " AND value >= ''", False: " AND value < ''", None: ""}[texts]
    fact = f"name = (SELECT name FROM names WHERE text = ?) AND {condition.format('value')}{guard}"
    return f"n IN (SELECT run FROM facts WHERE {fact})", [name, *values]


def _study(name: str) -> Condition:
    """Runs of a study and of those below it; `0` is the character after `/`."""
    name = name.rstrip("/")
    below = "({0} = ? COLLATE NOCASE OR ({0} >= ? COLLATE NOCASE AND {0} < ? COLLATE NOCASE))"
    return _in_study(below, [name, f"{name}/", f"{name}0"])


def _in_study(condition: str, values: list[Any]) -> Condition:
    """A condition on the study a run was computed for, or on one it joined."""
    own, joined = condition.format("study"), condition.format("text")
    sql = f"((study IS NOT NULL AND {own}) OR id IN (SELECT run FROM annotations WHERE holds AND kind = 'study' AND {joined}))"
    return sql, [*values, *values]


def _mark(name: str, operator: str, text: str) -> Condition:
    if operator not in ("=", "!=") or text.lower() not in ("yes", "no", "true", "false"):
        raise InputError("where", expected=f"{name} = yes or {name} = no", got=f"{name} {operator} {text}")
    wanted = (text.lower() in ("yes", "true")) == (operator == "=")
    sql = "id IN (SELECT run FROM annotations WHERE holds AND kind = ?)"
    return (sql if wanted else f"NOT {sql}"), [MARKS[name]]


def _words(text: str) -> Condition:
    """Notes that have all these words, in any order; `word*` is the beginning of one."""
    terms = []
    for word in text.split():
        quoted = '"' + word.rstrip("*").replace('"', '""') + '"'
        terms.append(quoted + "*" if word.endswith("*") else quoted)
    if not terms or len(terms) > MOST_WORDS:
        raise InputError("where", expected=f"1 to {MOST_WORDS} words to look for in notes", got=str(len(terms)))
    return (
        "id IN (SELECT run FROM annotations WHERE holds AND id IN (SELECT id FROM notes WHERE notes MATCH ?))",
        [" ".join(terms)],
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
