"""A report in a notebook: metrics and tables as HTML, figures interactive where the front end can, pictures elsewhere."""

from __future__ import annotations

import base64
import json
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.render import sections
from workbench.render.html import CARDS, notebook_fragment, report_html, resolve_views, run_head
from workbench.render.info import RunInfo
from workbench.render.interactive_theme import dark_figures
from workbench.render.markup import Html, element, embedded
from workbench.render.plots import TablesPlot

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.method import Result
    from workbench.render.plots import Plot
    from workbench.report import Report

__all__ = ["RenderedReport"]


class RenderedReport:
    """What `run.report()` returns: displays itself as the last value of a cell.

    A figure is published both as plotly's JSON and as a JPEG. JupyterLab, Notebook 7 and VS Code draw the former;
    nbconvert, GitHub and any other reader of the saved notebook show the latter. No widgets and no scripts are involved.
    (Not as a PNG: plotly's renderer for JupyterLab shows a PNG in place of the figure where it finds one.)
    """

    def __init__(self, report: Report, result: Result, info: RunInfo) -> None:
        self.report, self.result, self.info = report, result, info

    @cached_property
    def _plots(self) -> list[Plot | WorkbenchError]:
        return resolve_views(self.report.views, self.result)

    @cached_property
    def figures(self) -> dict[str, go.Figure]:
        """Plotly figures by title of their view, to change or export."""
        from workbench.render.interactive import figure

        made: dict[str, go.Figure] = {}
        for view, plot in zip(self.report.views, self._plots, strict=True):
            if not isinstance(plot, WorkbenchError):
                title, number = view.title, 2
                while title in made:
                    title, number = f"{view.title} ({number})", number + 1
                made[title] = figure(plot)
        return made

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as one self-contained HTML file and return its path; folders are made."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.html(), encoding="utf-8")
        return target

    def html(self) -> str:
        """The report as one self-contained page."""
        return report_html(self.report, self.result, self.info)

    def _head(self) -> Html:
        return run_head(self.info)

    def __repr__(self) -> str:
        return f"<report of {self.info.id}: {self.report.summary}>"

    def _opening(self) -> str:
        return notebook_fragment(
            element("style", embedded(dark_figures())) if self.report.views else None,
            self._head(),
            element("p", self.report.summary, class_="wb-lead"),
            *self._metrics(),
            *self._undrawn(),
        )

    def _metrics(self) -> list[Html]:
        """The first metrics in the open, all others folded. A table reads well even where style sheets are dropped."""
        metrics = self.report.metrics
        parts = [sections.metrics_table(metrics[:CARDS])] if metrics else []
        if metrics[CARDS:]:
            more = element("summary", f"{len(metrics) - CARDS} more metrics")
            parts.append(element("details", more, sections.metrics_table(metrics[CARDS:])))
        return parts

    def _closing(self) -> str | None:
        parts: list[Html] = [sections.report_table(table) for table in self.report.tables]
        if self.report.notes:
            parts += [element("h3", "Notes"), sections.notes_list(self.report.notes)]
        return notebook_fragment(*parts) if parts else None

    def _undrawn(self) -> list[Html]:
        return [
            element("div", f"The view {view.title!r} cannot be drawn. {plot}", class_="wb-caption")
            for view, plot in zip(self.report.views, self._plots, strict=True)
            if isinstance(plot, WorkbenchError)
        ]

    def _repr_html_(self) -> str:
        """The whole report as static HTML with embedded pictures."""
        from workbench.render.pixels import data_uri
        from workbench.render.static import png

        pictures = [
            element(
                "figure",
                element("h3", plot.title) if isinstance(plot, TablesPlot) else None,
                sections.tables_of(plot)
                if isinstance(plot, TablesPlot)
                else element("img", src=data_uri(png(plot)), alt=plot.title, width="560"),
                element("figcaption", plot.caption) if plot.caption else None,
            )
            for plot in self._plots
            if not isinstance(plot, WorkbenchError)
        ]
        grid = element("div", *pictures, class_="wb-views") if pictures else None
        return self._opening() + (grid_box(grid) if grid else "") + (self._closing() or "")

    def bundles(self) -> list[dict[str, Any]]:
        """What is published to the notebook, in order: MIME type -> content."""
        from workbench.render.static import jpeg

        shown: list[dict[str, Any]] = [{"text/html": self._opening(), "text/plain": repr(self)}]
        plots = [plot for plot in self._plots if not isinstance(plot, WorkbenchError)]
        for plot, made in zip(plots, self.figures.values(), strict=True):
            if isinstance(plot, TablesPlot):
                below = element("div", plot.caption, class_="wb-caption") if plot.caption else None
                tables = notebook_fragment(element("h3", plot.title), sections.tables_of(plot), below)
                shown.append({"text/html": tables, "text/plain": f"[{plot.title}] {plot.message}"})
                continue
            shown.append(
                {
                    "application/vnd.plotly.v1+json": _plotly_json(made),
                    "image/jpeg": base64.b64encode(jpeg(plot)).decode(),
                    "text/plain": f"[figure: {plot.title}]",
                }
            )
            if plot.caption:
                caption = notebook_fragment(element("div", plot.caption, class_="wb-caption"))
                shown.append({"text/html": caption, "text/plain": plot.caption})
        closing = self._closing()
        if closing:
            shown.append({"text/html": closing, "text/plain": "\n".join(self.report.notes)})
        return shown

    def _ipython_display_(self) -> None:
        from IPython.display import display

        for bundle in self.bundles():
            display(bundle, raw=True)  # type: ignore[no-untyped-call]


def grid_box(grid: Html) -> str:
    """The pictures in a box of their own."""
    return notebook_fragment(grid)


def _plotly_json(made: go.Figure) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(made.to_json())
    return document | {"config": {"displaylogo": False, "responsive": True}}
