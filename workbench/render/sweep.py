"""A sweep in a notebook: what became of its points, failures, and where dask shows the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.render import sections
from workbench.render.html import notebook_fragment
from workbench.render.markup import element

__all__ = ["sweep_html"]


def sweep_html(title: str, progress: str, rows: Sequence[Mapping[str, Any]], note: str, dashboard: str) -> str:
    """A fragment for a notebook.

    Args:
        title: name of the study.
        progress: how many points ended, and how.
        rows: of some points: what is swept, `status`, `run`, metrics, `error`.
        note: what else is to be said.
        dashboard: address of dask's dashboard; empty: there is none.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    names.sort(key=lambda name: name == "error")  # the longest text last
    numbers = tuple(all(isinstance(row[name], int | float) for row in rows if name in row) for name in names)
    table = sections.table_html(names, [[_cell(name, row.get(name, "")) for name in names] for row in rows], numbers)
    link = element("div", "dask dashboard: ", element("a", dashboard, href=dashboard)) if dashboard else None
    head = element("div", element("strong", title), f" {progress}")
    return notebook_fragment(head, link, element("div", note, class_="wb-dim") if note else None, table)


def _cell(name: str, value: Any) -> Any:
    if name == "status":
        return sections.pill(value)
    if name == "run":
        return element("code", value) if value else ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
