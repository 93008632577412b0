"""Where a run comes from and what was made from it, as a graph to click through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from workbench.errors import RunNotFoundError
from workbench.panels import style
from workbench.render.markup import visible
from workbench.render.sections import metric_text
from workbench.render.texts import plain_name
from workbench.report import Metric

if TYPE_CHECKING:
    import ipywidgets

    from workbench.record import RunRecord
    from workbench.store import Store

__all__ = ["Lineage", "Node", "lineage", "lineage_view"]

MOST = 80
"""Runs in one graph; what lies beyond is counted."""


@dataclass(frozen=True)
class Node:
    """One run at a place of the graph: columns go from what came first to what was made last."""

    id: str
    title: str
    method: str
    status: str
    metric: str
    column: int
    row: int
    here: bool


@dataclass(frozen=True)
class Lineage:
    """Runs and how they feed each other: `edges` are (from, to, role)."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str, str], ...]
    left_out: int = 0


def lineage(store: Store, run_id: str) -> Lineage:
    """Ancestors and descendants of a run.

    Raises:
        RunNotFoundError: there is no such run.
    """
    here = store.run(run_id)
    records: dict[str, RunRecord | None] = {here.id: here.record}
    edges: dict[tuple[str, str, str], None] = {}
    waiting, left_out = [here.record], 0
    while waiting:
        record = waiting.pop(0)
        for role, entry in record.inputs.items():
            for parent in entry.get("runs", ()):
                edges[parent, record.id, role] = None
                if parent in records:
                    continue
                if len(records) >= MOST:
                    left_out += 1
                    continue
                try:
                    found = store.run(parent).record
                    waiting.append(found)
                except RunNotFoundError:
                    found = None  # deleted since
                records[parent] = found
    for made in store.descendants(here.id):
        if len(records) >= MOST:
            left_out += 1
            continue
        records[made.id] = made.record
        for role, entry in made.record.inputs.items():
            for parent in entry.get("runs", ()):
                edges[parent, made.id, role] = None
    kept = tuple(edge for edge in edges if edge[0] in records and edge[1] in records)
    places = _places(list(records), kept)
    nodes = tuple(_node(name, record, *places[name], here=name == here.id) for name, record in records.items())
    return Lineage(nodes, kept, left_out)


def _places(names: list[str], edges: tuple[tuple[str, str, str], ...]) -> dict[str, tuple[int, int]]:
    """(column, row): one column right of its last parent; in a column, near the parents."""
    parents = {name: [a for a, b, _ in edges if b == name] for name in names}
    column: dict[str, int] = {}

    def depth(name: str, seen: frozenset[str]) -> int:
        if name not in column:
            above = [depth(p, seen | {name}) for p in parents[name] if p not in seen and p != name]
            column[name] = 1 + max(above, default=-1)
        return column[name]

    for name in names:
        depth(name, frozenset())
    row: dict[str, int] = {}

    def wish(name: str) -> float:
        known = [row[p] for p in parents[name] if p in row]
        return sum(known) / len(known) if known else 0.0

    for place in range(max(column.values()) + 1):
        members = [name for name in names if column[name] == place]
        row |= {name: index for index, name in enumerate(sorted(members, key=wish))}
    return {name: (column[name], row[name]) for name in names}


def _node(name: str, record: RunRecord | None, column: int, row: int, *, here: bool) -> Node:
    if record is None:
        return Node(name, "deleted since", "", "deleted", "", column, row, here)
    metrics = (record.report or {}).get("metrics", ())
    metric = ""
    if metrics:
        value = record.metrics[str(metrics[0]["name"])]
        first = Metric(name=str(metrics[0]["name"]), value=value, unit=str(metrics[0].get("unit", "")))
        metric = f"{plain_name(first.name)} {metric_text(first)}"
    title = visible(record.method_title or record.method, 120)
    return Node(name, title, record.method, record.status, visible(metric, 80), column, row, here)


@cache
def _widget_class() -> Any:
    import anywidget
    import traitlets

    class LineageView(anywidget.AnyWidget):  # type: ignore[misc]
        _esm = style.asset("common.js") + style.asset("lineage.js")
        _css = style.asset("lineage.css")
        graph = traitlets.Dict().tag(sync=True)

    return LineageView


def lineage_view(graph: Lineage, opened: Callable[[str], None]) -> ipywidgets.DOMWidget:
    """The graph as a widget; `opened` is called with the id of a run that was clicked."""
    known = {node.id for node in graph.nodes}
    made = _widget_class()(
        graph={
            "nodes": [vars(node) for node in graph.nodes],
            "edges": [list(edge) for edge in graph.edges],
            "left_out": graph.left_out,
        }
    )

    def received(widget: Any, message: Any, buffers: Any) -> None:
        if isinstance(message, dict) and message.get("open") in known:
            opened(message["open"])

    made.on_msg(received)
    return made  # type: ignore[no-any-return]
