"""A study to look through: its answer, any two metrics against each other, parallel coordinates, lineage, every run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from workbench.panels import style
from workbench.panels.panel import Panel
from workbench.panels.parts import figures_view, fragment, tabs
from workbench.render import palette
from workbench.render.arrays import ViewArrays
from workbench.render.interactive_theme import PAPER
from workbench.render.markup import element, visible
from workbench.render.texts import number_text
from workbench.study.content import ARROWS, front
from workbench.study.page import figure_bundles

if TYPE_CHECKING:
    import ipywidgets

    from workbench.method import Result
    from workbench.study.matrix import Matrix
    from workbench.study.page import StudyReport
    from workbench.study.result import StudyResult

__all__ = ["StudyPanel", "coordinates_figure"]

MOST_AXES = 24
"""Axes of the parallel coordinates that are drawn at first."""


@dataclass
class StudyPanel(Panel):
    """`study.panel()`.

    Args:
        result: of a study.
    """

    result: StudyResult

    def __post_init__(self) -> None:
        _ = self.result.matrix  # says at once if there is nothing to show

    def __repr__(self) -> str:
        return f"<panel of study {self.result.name}>"

    @cached_property
    def _report(self) -> StudyReport:
        return self.result.report()

    @property
    def _matrix(self) -> Matrix:
        return self.result.matrix

    def _static(self) -> str:
        return self._report._repr_html_()

    def _widget(self) -> ipywidgets.DOMWidget:
        pages: dict[str, Callable[[], list[ipywidgets.Widget]]] = {
            "Answer": self._answer,
            "Two metrics": self._two,
            "All metrics": self._all,
            "Samples and figures": self._figures,
            "Runs": self._runs,
            "Notes": self._notes,
        }
        study = self.result.plan.study
        counts = ", ".join(f"{count} {status}" for status, count in self.result.counts.items())
        heading = element(
            "div",
            element("div", visible(study.title or study.name, 300), class_="wb-title"),
            element("div", f"study {study.name}: {counts}", class_="wb-muted"),
        )
        return style.frame(style.markup(heading), tabs(pages))

    def _answer(self) -> list[ipywidgets.Widget]:
        return [fragment(*self._report._opening(""))]

    def _two(self) -> list[ipywidgets.Widget]:
        """Any metric against any other."""
        import ipywidgets

        options = [(column.label, number) for number, column in enumerate(self._matrix.columns)]
        labels = [pair for pair in self.result.plan.study.questions.fronts if all(map(self._matrix.labelled, pair))]
        first = [self._matrix.labelled(label)[0] for label in labels[0]] if labels else [0, len(options) - 1]
        x = ipywidgets.Dropdown(options=options, value=first[0], description="across")
        y = ipywidgets.Dropdown(options=options, value=first[1], description="up")
        shown = ipywidgets.VBox()

        def draw(change: Any = None) -> None:
            view, arrays = front(self._matrix, x.value, y.value)
            data = arrays | {"variant": [row.label for row in self._matrix.rows]}
            shown.children = (figures_view(figure_bundles([view], cast("Result", _arrays(data, self.result.name)))),)

        x.observe(draw, names="value")
        y.observe(draw, names="value")
        draw()
        return [ipywidgets.HBox([x, y]), shown]

    def _all(self) -> list[ipywidgets.Widget]:
        """Parallel coordinates: drag along an axis to keep the variants that pass there."""
        import ipywidgets

        groups = list(dict.fromkeys(column.asked.group for column in self._matrix.columns))
        which = ipywidgets.Dropdown(
            options=[("every metric", -1), *((group or "others", place) for place, group in enumerate(groups))],
            description="show",
        )
        if len(self._matrix.columns) > MOST_AXES and len(groups) > 1:
            which.value = 0
        shown = ipywidgets.VBox()

        def draw(change: Any = None) -> None:
            columns = [
                number
                for number, column in enumerate(self._matrix.columns)
                if which.value < 0 or column.asked.group == groups[which.value]
            ]
            document = coordinates_figure(self._matrix, columns)
            shown.children = (figures_view([{"application/vnd.plotly.v1+json": document, "text/plain": "[figure]"}]),)

        which.observe(draw, names="value")
        draw()
        hint = element(
            "div", "Drag along an axis to keep the variants that pass there; drag its name to move it. Up is better.",
            class_="wb-hint",
        )  # fmt: skip
        return [which, style.markup(hint), shown] if len(groups) > 1 else [style.markup(hint), shown]

    def _figures(self) -> list[ipywidgets.Widget]:
        report, arrays = self._report._content
        if not report.views:
            return [style.markup(style.empty("The study asks for no figures"))]
        return [figures_view(figure_bundles(report.views, cast("Result", arrays)))]

    def _runs(self) -> list[ipywidgets.Widget]:
        """Pick a run of the study and see everything about it."""
        import ipywidgets

        from workbench.panels.run import RunPanel

        done = [branch for branch in self.result.plan.branches if self.result.outcomes[branch.id].run_id]
        shown = ipywidgets.VBox()
        steps = list(dict.fromkeys(branch.step for branch in done))
        step = ipywidgets.Dropdown(options=steps, description="step")
        chosen = ipywidgets.Dropdown(description="run", layout=ipywidgets.Layout(width="min(640px, 100%)"))

        def draw(change: Any = None) -> None:
            branch = next((one for one in done if one.id == chosen.value), None)
            run = None if branch is None else self.result.run(branch)
            shown.children = () if run is None else (RunPanel(run).widget,)

        def offer(change: Any = None) -> None:
            chosen.options = [(visible(one.label, 200), one.id) for one in done if one.step == step.value]
            chosen.index = 0
            draw()

        step.observe(offer, names="value")
        chosen.observe(draw, names="value")
        offer()
        return [fragment(self._report._lineage("")), ipywidgets.HBox([step, chosen]), shown]

    def _notes(self) -> list[ipywidgets.Widget]:
        return [fragment(*self._report._closing("")[1:])]


def _arrays(data: dict[str, Any], name: str) -> ViewArrays:
    import xarray as xr

    return ViewArrays(xr.Dataset(data), name)


def coordinates_figure(matrix: Matrix, columns: list[int]) -> dict[str, Any]:
    """Plotly's JSON of parallel coordinates: an axis per metric whose better end is on top, a line per variant.

    Args:
        matrix: the numbers.
        columns: whose axes; those with fewer than two different numbers are left out.
    """
    import plotly.graph_objects as go

    names = [row.label for row in matrix.rows]
    order = list(range(len(names)))
    axes: list[dict[str, Any]] = [
        {"label": "variant", "values": order, "tickvals": order, "ticktext": names, "range": [len(names) - 1, 0]}
    ]
    for number in columns:
        values, column = matrix.column(number), matrix.columns[number]
        known = values[np.isfinite(values)]
        if len(np.unique(known)) < 2:
            continue
        low, high = float(known.min()), float(known.max())
        ends = [low, high] if column.direction != "lower" else [high, low]
        # What is not known lies below the axis, where no range of a selection reaches by accident.
        below = ends[0] - 0.08 * (ends[1] - ends[0])
        ticks = np.linspace(low, high, 5).tolist()
        axes.append(
            {
                "label": column.label + ARROWS[column.direction],
                "values": np.where(np.isfinite(values), values, below).tolist(),
                "range": [below if len(known) < len(values) else ends[0], ends[1]],
                "tickvals": ticks,
                "ticktext": [number_text(tick) for tick in ticks],
            }
        )
    groups = list(dict.fromkeys(matrix.baselines))
    color = [groups.index(base) if len(groups) > 1 else row for row, base in enumerate(matrix.baselines)]
    scale = [[place / (len(palette.COLORS) - 1), tone] for place, tone in enumerate(palette.COLORS)]
    made = go.Figure(
        go.Parcoords(
            dimensions=axes,
            line={"color": color, "colorscale": scale, "cmin": 0, "cmax": max(1, *color)},
            labelfont={"color": palette.INK},
            tickfont={"color": palette.MUTED},
            rangefont={"color": palette.MUTED},
            labelangle=-30 if len(axes) > 6 else 0,
            labelside="top",
        )
    )
    longest = max(len(name) for name in names)
    made.update_layout(
        height=max(340, 60 + 22 * len(names)),
        margin={"l": min(260, 30 + 6 * longest), "r": 60, "t": 110 if len(axes) > 6 else 60, "b": 24},
        paper_bgcolor=PAPER,
    )
    document: dict[str, Any] = json.loads(made.to_json())
    return document | {"config": {"displaylogo": False, "responsive": True}}
