"""The branches of a study as a graph: steps from left to right, arrows from each run to those that took it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from workbench.render import palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from workbench.study.plan import Branch
    from workbench.study.result import StudyResult

__all__ = ["lineage_figure"]

MOST = 60
"""Branches that are drawn one by one; of more, only the steps are drawn."""


def lineage_figure(result: StudyResult) -> Figure:
    """Draw the branches (or, where they are many, the steps)."""
    branches = list(result.plan.branches)
    single = len(branches) <= MOST
    name = {branch.id: branch.id if single else branch.step for branch in branches}
    parents: dict[str, set[str]] = {}
    for branch in branches:
        parents.setdefault(name[branch.id], set()).update(name[parent.id] for parent in branch.parents)
    texts, found = dict[str, str](), dict[str, bool]()
    for branch in branches:
        node = name[branch.id]
        texts[node] = _text(branch) if single else f"{branch.step}\n{len(result.plan.steps[branch.step])} runs"
        found[node] = found.get(node, False) or bool(result.outcomes[branch.id].run_id)
    return _drawn(parents, texts, found)


def _text(branch: Branch) -> str:
    own = [
        f"{name.partition('.')[2] or name} {value}"
        for name, value in branch.trail.items()
        if name.startswith(f"{branch.step}.")
    ]
    own = [text.removeprefix("method ").rpartition(".")[2] if text.startswith("method ") else text for text in own]
    own += [f"seed {branch.seeds[branch.step]}"] if branch.step in branch.seeds else []
    return "\n".join([branch.step, *(textwrap.shorten(text, 22) for text in own)])


def _drawn(parents: dict[str, set[str]], texts: dict[str, str], found: dict[str, bool]) -> Figure:
    from matplotlib.figure import Figure

    column: dict[str, int] = {}
    for node, above in parents.items():  # those upstream come first
        column[node] = 1 + max((column[parent] for parent in above), default=-1)
    step = {node: text.partition("\n")[0] for node, text in texts.items()}
    column = {node: max(column[other] for other in column if step[other] == step[node]) for node in column}
    row: dict[str, float] = {}
    for place in range(max(column.values()) + 1):
        members = [node for node in parents if column[node] == place]
        wish = {node: sum(row[p] for p in parents[node]) / max(len(parents[node]), 1) for node in members}
        for index, node in enumerate(sorted(members, key=lambda node: wish[node])):
            row[node] = index - (len(members) - 1) / 2
    tallest = max(sum(place == c for c in column.values()) for place in set(column.values()))
    figure = Figure(figsize=(2.2 * (max(column.values()) + 1), max(1.8, 0.5 * tallest)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for node, above in parents.items():
        for parent in above:
            axes.annotate(
                "", xy=(column[node] - 0.2, -row[node]), xytext=(column[parent] + 0.2, -row[parent]),
                arrowprops={"arrowstyle": "-|>", "color": palette.MUTED, "lw": 0.5, "alpha": 0.5, "mutation_scale": 7,
                            "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip
    for node, text in texts.items():
        axes.text(
            column[node], -row[node], text.replace("$", r"\$"), ha="center", va="center", fontsize=6.5,
            color="black" if found[node] else palette.MUTED,
            bbox={"boxstyle": "round,pad=0.3", "fc": "white", "ec": "black" if found[node] else palette.MUTED, "lw": 0.6},
        )  # fmt: skip
    axes.set_xlim(-0.5, max(column.values()) + 0.5)
    axes.set_ylim(-(tallest + 0.4) / 2, (tallest + 0.4) / 2)
    return figure
