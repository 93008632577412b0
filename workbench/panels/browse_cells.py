"""Cells of the table of runs as people read them: plain text, cut where it is long, free of direction marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from workbench.panels.browse_completion import COLUMNS
from workbench.render.markup import visible
from workbench.render.texts import duration_text, number_text, value_text
from workbench.store.table import Row

__all__ = ["DEFAULT_COLUMNS", "column", "default_columns", "row"]

DEFAULT_COLUMNS = ("status", "method", "started", "user")
"""What is shown of every run; the commonest metrics follow."""
FIRST_METRICS = 3
LONGEST = 160
"""Characters of a cell; the hover text has more."""
TIMES = ("started", "finished")
SHOWABLE = tuple(name for name in COLUMNS if name not in ("note", "uses", "pinned", "archived"))
"""Columns that a table can show beside metrics and parameters."""


def default_columns(rows: Sequence[Row], metrics: Sequence[str], *, studies: bool) -> list[str]:
    """Columns for somebody who chose none: those of every run, and the metrics that most of the first rows have.

    Args:
        rows: the first rows, with the cells of `metrics`.
        metrics: names to choose from.
        studies: whether there are any.
    """
    amount = {name: sum(name in row.cells for row in rows) for name in metrics}
    common = sorted((name for name in metrics if amount[name]), key=lambda name: (-amount[name], metrics.index(name)))
    return [*DEFAULT_COLUMNS, *common[:FIRST_METRICS], "seconds", *(("study",) if studies else ()), "tag"]


def column(name: str, described: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the script has to know of a column: its kind says how wide it is and how it is aligned.

    Args:
        name: as in the query language.
        described: how a run describes the metric: direction, unit.
    """
    metric = name not in COLUMNS and not name.startswith("params.")
    kinds = {
        "status": "status",
        "tag": "tags",
        "method": "wide",
        "study": "wide",
        "input": "wide",
        "id": "wide",
        "key": "wide",
    }
    kind = "number" if metric or name in ("seconds", "seed") else kinds.get(name, "time" if name in TIMES else "text")
    if name.startswith("params."):
        kind = "parameter"
    direction = str((described or {}).get("direction") or "")
    unit = visible((described or {}).get("unit") or "", 20)
    arrow = {"higher": "↑", "lower": "↓"}.get(direction, "")
    better = {"higher": ", higher is better", "lower": ", lower is better"}.get(direction, "")
    sort = "metric" if metric else "parameter" if kind == "parameter" else COLUMNS.get(name, "")
    return {
        "name": name, "title": visible(name, 60), "kind": kind, "arrow": arrow, "unit": unit,
        "help": f"{visible(name, 200)}: {sort}{f' in {unit}' if unit else ''}{better}",
    }  # fmt: skip


def row(found: Row, columns: Sequence[str]) -> dict[str, Any]:
    """A row for the script: id, status and per column a text, or `[text, hover text]` where there is more to say."""
    made: dict[str, Any] = {"id": found.id, "status": found.status, "cells": [_cell(found, name) for name in columns]}
    if found.progress is not None:
        done, total = found.progress.get("done"), found.progress.get("total")
        if isinstance(done, (int, float)) and isinstance(total, (int, float)) and total > 0:
            made["progress"] = min(1.0, max(0.0, done / total))
        made["message"] = visible(found.progress.get("message") or "", LONGEST)
    if found.failure:
        made["message"] = visible(found.failure, 300)
    return made


def _cell(found: Row, name: str) -> str | list[str]:
    value = found.cells.get(name)
    if name == "status":
        return visible(found.status, 40)
    if name in ("tag", "study"):
        named = [value] if isinstance(value, str) else list(value or ())
        named += found.cells.get("joined", ()) if name == "study" else ()
        return (
            [visible(text, 60) for text in named] if name == "tag" else ", ".join(visible(text, 80) for text in named)
        )
    if value is None:
        return ""
    if name in TIMES:
        return [_moment(str(value)), f"{visible(value, 40)} (UTC)"]
    if name == "seconds":
        return duration_text(float(value)) if found.cells.get("finished") else ""
    if isinstance(value, float):
        text = value_text(value) if name.startswith("params.") else number_text(value)
        return [text, f"{visible(name, 100)} = {value!r}"]
    if isinstance(value, int):
        return str(value)
    text = visible(value, 400).replace("\n", " ")
    return text if len(text) <= LONGEST else [f"{text[:LONGEST]}…", text]


def _moment(text: str) -> str:
    """`25 Nov, 13:05`; with the year instead of the time where it is another one."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return visible(text, 30)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[moment.month - 1]
    this_year = moment.year == datetime.now(UTC).year
    return f"{moment.day} {month}, {moment:%H:%M}" if this_year else f"{moment.day} {month} {moment.year}"
