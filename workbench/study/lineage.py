"""The branches of a study as a graph: steps from left to right, lines from each run to those that took it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.render.markup import Html, element

if TYPE_CHECKING:
    from workbench.study.plan import Branch
    from workbench.study.result import StudyResult

__all__ = ["Graph", "graph_of", "lineage_drawing"]

MOST = 60
"""Branches that are drawn one by one; of more, only the steps are drawn."""
WIDTH, GAP, LINE, BETWEEN = 136, 46, 13, 12
"""Pixels: width of a box, from column to column, height of a line of text, from box to box."""
INK = "currentColor"


@dataclass
class Graph:
    """What is drawn. Nodes are branches, or steps where branches are many."""

    parents: dict[str, set[str]] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    """How many of a node's branches have a run."""
    branches: dict[str, list[Branch]] = field(default_factory=dict)

    def columns(self) -> dict[str, int]:
        """Per node its column: right of everything it takes; all nodes of a step in one."""
        place: dict[str, int] = {}
        for node, above in self.parents.items():  # those upstream come first
            place[node] = 1 + max((place[parent] for parent in above), default=-1)
        deepest: dict[str, int] = {}
        for node, column in place.items():
            step = self.branches[node][0].step
            deepest[step] = max(deepest.get(step, 0), column)
        return {node: deepest[self.branches[node][0].step] for node in place}


def graph_of(result: StudyResult, most: int = MOST) -> Graph:
    """Nodes and edges, at most `most` branches one by one."""
    branches = list(result.plan.branches)
    single = len(branches) <= most
    name = {branch.id: branch.id if single else branch.step for branch in branches}
    graph = Graph()
    for branch in branches:
        node = name[branch.id]
        graph.parents.setdefault(node, set()).update(name[parent.id] for parent in branch.parents)
        graph.branches.setdefault(node, []).append(branch)
        graph.found[node] = graph.found.get(node, 0) + bool(result.outcomes[branch.id].run_id)
    for node, members in graph.branches.items():
        count, found = len(members), graph.found[node]
        runs = f"{count} run{'s' * (count != 1)}" if found == count else f"{found} of {count} runs"
        graph.lines[node] = _lines(members[0]) if single else [members[0].step, runs]
    return graph


def _lines(branch: Branch) -> list[str]:
    own = [
        value.rpartition(".")[2] if name.endswith(".method") else f"{name.partition('.')[2]} {value}"
        for name, value in branch.trail.items()
        if name.startswith(f"{branch.step}.")
    ]
    own += [f"seed {branch.seeds[branch.step]}"] if branch.step in branch.seeds else []
    return [branch.step, *own]


def lineage_drawing(result: StudyResult, link: Callable[[Branch], str] | None = None) -> Html:
    """The graph as SVG in the colours of the page around it.

    Args:
        result: of the study.
        link: address of the page of a branch's run, if there are such pages; empty: none.
    """
    graph = graph_of(result)
    column = graph.columns()
    height = {node: LINE * len(lines) + 8 for node, lines in graph.lines.items()}
    centre: dict[str, float] = {}
    tallest = 0.0
    for place in range(max(column.values()) + 1):
        members = [node for node in graph.parents if column[node] == place]
        wish = {node: _mean(centre[parent] for parent in graph.parents[node]) for node in members}
        total = sum(height[node] + BETWEEN for node in members) - BETWEEN
        top, tallest = -total / 2, max(tallest, total)
        for node in sorted(members, key=lambda node: wish[node]):
            centre[node], top = top + height[node] / 2, top + height[node] + BETWEEN
    left = {node: column[node] * (WIDTH + GAP) + 1 for node in column}
    lines = [
        _curve(left[parent] + WIDTH, centre[parent], left[node], centre[node])
        for node, above in graph.parents.items()
        for parent in sorted(above)
    ]
    boxes = [_box(result, graph, node, left[node], centre[node], height[node], link) for node in graph.parents]
    width, middle = max(left.values()) + WIDTH + 1, tallest / 2 + 2
    drawing = element(
        "svg",
        *lines,
        *boxes,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 {-middle:.0f} {width} {2 * middle:.0f}",
        role="img",
        aria_label="Graph of the runs",
        style=f"width: {width}px; max-width: 100%; height: auto; display: block; font: 11px system-ui, sans-serif",
    )
    return element("div", drawing, class_="wb-scroll")


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _curve(x: float, y: float, to_x: float, to_y: float) -> Html:
    half = (to_x - x) / 2
    path = f"M{x:.1f} {y:.1f}C{x + half:.1f} {y:.1f} {to_x - half:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
    return element("path", d=path, fill="none", stroke=INK, stroke_opacity="0.3")


def _box(
    result: StudyResult, graph: Graph, node: str, left: float, centre: float, height: float,
    link: Callable[[Branch], str] | None,
) -> Html:  # fmt: skip
    branch = graph.branches[node][0]
    outcome = result.outcomes[branch.id]
    lone = len(graph.branches[node]) == 1
    faint = None if graph.found[node] else "0.45"
    frame = element(
        "rect", x=f"{left:.1f}", y=f"{centre - height / 2:.1f}", width=WIDTH, height=f"{height:.1f}", rx=5,
        fill=INK, fill_opacity="0.05", stroke=INK, stroke_opacity="0.55",
        stroke_dasharray=None if graph.found[node] else "3 3",
    )  # fmt: skip
    texts = [
        element(
            "text", textwrap.shorten(line, 24, placeholder="…"), x=f"{left + WIDTH / 2:.1f}",
            y=f"{centre - height / 2 + LINE * (number + 1):.1f}", text_anchor="middle", fill=INK,
            font_weight="600" if number == 0 else None,
        )
        for number, line in enumerate(graph.lines[node])
    ]  # fmt: skip
    said = f"{branch.label}: {outcome.run_id or outcome.status}" if lone else f"{branch.step}: {branch.method.id}"
    made = element("g", element("title", said), frame, *texts, opacity=faint)
    address = link(branch) if link is not None and lone else ""
    return element("a", made, href=address) if address else made
