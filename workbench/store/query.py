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
"""

from __future__ import annotations

from functools import cache
from typing import Any

from workbench.errors import InputError

__all__ = ["COLUMNS", "Condition", "compile_query"]

TEXTS = ("id", "method", "family", "status", "user", "host", "device", "started", "finished", "key")
NUMBERS = ("seconds", "seed")
COLUMNS = frozenset((*TEXTS, *NUMBERS, "study"))
"""Names that are columns of the table `runs`; all others are looked up in `facts` or `annotations`."""
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


@cache
def _parser() -> Any:
    import lark

    return lark.Lark(GRAMMAR, parser="earley", ambiguity="resolve", lexer="dynamic")


def compile_query(text: str, *, user: str) -> Condition:
    """Translate a query to SQL over the index. Every value is passed as a parameter, never as SQL.

    Args:
        text: the query; empty means every run.
        user: who `me` is.

    Raises:
        InputError: with the place where the query stops making sense.
    """
    import lark

    if not text.strip():
        return "1", []
    try:
        tree = _parser().parse(text)
    except lark.exceptions.UnexpectedInput as error:
        column = getattr(error, "column", len(text) + 1)
        column = column if isinstance(column, int) and column > 0 else len(text) + 1
        raise InputError(
            "where",
            expected="a query such as: family = quantization and accuracy > 0.9",
            got=f"{text!r} (not understood from column {column})",
        ) from None
    return _compile(tree, user)


def _compile(tree: Any, user: str) -> Condition:
    if tree.data in ("disjunction", "conjunction"):
        word = " OR " if tree.data == "disjunction" else " AND "
        parts = [_compile(child, user) for child in tree.children]
        return "(" + word.join(sql for sql, _ in parts) + ")", [value for _, values in parts for value in values]
    if tree.data == "negate":
        sql, values = _compile(tree.children[0], user)
        return f"NOT {sql}", values
    name, operator, value_tree = tree.children
    token = value_tree.children[0]
    text = str(token)[1:-1] if token.type == "QUOTED" else str(token)
    return _compare(str(name).lower(), str(operator), text, user)


def _compare(name: str, operator: str, text: str, user: str) -> Condition:
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
        return _where(name, r"{text} LIKE ? ESCAPE '\'", [pattern])
    number = _number(text)
    if operator in ("=", "!="):
        if number is not None:
            sql, values = _where(name, "({number} = ? OR {text} = ?)", [number, text])
        elif "*" in text:
            # GLOB knows no COLLATE: both sides in lower case, its other wildcards taken literally.
            sql, values = _where(name, "lower({text}) GLOB ?", [text.lower().replace("[", "[[]").replace("?", "[?]")])
        else:
            sql, values = _where(name, "{text} = ? COLLATE NOCASE", [text])
        return (sql, values) if operator == "=" else (f"NOT {sql}", values)
    if number is not None and name not in TEXTS:
        return _where(name, f"{{number}} {operator} ?", [number])
    return _where(name, f"{{text}} {operator} ?", [text])


def _where(name: str, condition: str, values: list[Any]) -> Condition:
    """A condition on a column of `runs`, on a fact or on an annotation; never NULL, so that NOT means what it says."""
    if name == "study":
        sql = condition.format(text="{text}", number="NULL")
        return _in_study(sql, values)
    if name in COLUMNS:
        sql = condition.format(text=f"CAST({name} AS TEXT)" if name in NUMBERS else name, number=name)
        return f"coalesce({sql}, 0)", values
    if name in ("tag", "note"):
        sql = condition.format(text="text", number="NULL")
        return f"id IN (SELECT run FROM annotations WHERE holds AND kind = ? AND {sql})", [name, *values]
    return f"n IN (SELECT run FROM facts WHERE name = ? AND {condition.format(text='text', number='number')})", [
        name,
        *values,
    ]


def _study(name: str) -> Condition:
    """Runs of a study and of those below it; `0` is the character after `/`."""
    name = name.rstrip("/")
    below = "({text} = ? COLLATE NOCASE OR ({text} >= ? COLLATE NOCASE AND {text} < ? COLLATE NOCASE))"
    return _in_study(below, [name, f"{name}/", f"{name}0"])


def _in_study(condition: str, values: list[Any]) -> Condition:
    """A condition on the study a run was computed for, or on one it joined."""
    own, joined = condition.format(text="study"), condition.format(text="text")
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
    if not terms:
        raise InputError("where", expected="words to look for in notes", got="none")
    return (
        "id IN (SELECT run FROM annotations WHERE holds AND id IN (SELECT id FROM notes WHERE notes MATCH ?))",
        [" ".join(terms)],
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
