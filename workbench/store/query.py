"""The query language of `workbench runs --where`, `bench.runs(where=...)` and the panels.

    family = quantization and accuracy > 0.9 and user = me
    method = calibration.* or (status = failed and started > 2026-11-01)
    not params.criterion = eig

A comparison is NAME OP VALUE with OP one of = != < <= > >= ~ (contains). Names: id, method, family, status, user, host,
device, started, finished, seconds, seed, key, input (labels of the inputs), any metric, and params.NAME. `*` in a value
of = or != stands for any text; `me` as a value of user is the person asking. Values with spaces are quoted.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from workbench.errors import InputError

__all__ = ["Condition", "compile_query"]

GRAMMAR = r"""
?start: disjunction
?disjunction: conjunction ("or"i conjunction)*
?conjunction: negation ("and"i negation)*
?negation: "not"i negation -> negate
         | "(" disjunction ")"
         | NAME OPERATOR value -> compare
value: QUOTED | WORD
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
    if operator == "~":
        pattern = "%" + text.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_") + "%"
        return _in_facts(r"text LIKE ? ESCAPE '\'", name, [pattern])
    if operator in ("=", "!="):
        wildcard = text.replace("[", "[[]").replace("?", "[?]")
        number = _number(text)
        if number is None:
            sql, values = _in_facts("text GLOB ? COLLATE NOCASE" if "*" in text else "text = ? COLLATE NOCASE", name,
                                    [wildcard if "*" in text else text])
        else:
            sql, values = _in_facts("(number = ? OR text = ?)", name, [number, text])
        return (sql, values) if operator == "=" else (f"NOT {sql}", values)
    number = _number(text)
    if number is not None:
        return _in_facts(f"number {operator} ?", name, [number])
    return _in_facts(f"text {operator} ?", name, [text])


def _in_facts(condition: str, name: str, values: list[Any]) -> Condition:
    return f"id IN (SELECT run FROM facts WHERE name = ? AND {condition})", [name, *values]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
