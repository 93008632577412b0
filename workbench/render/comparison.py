"""What a family says about several of its runs: a report over all of them, in notebooks and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from workbench.render import sections
from workbench.render.arrays import ViewArrays
from workbench.render.display import RenderedReport
from workbench.render.html import figures_section, page, section
from workbench.render.info import RunInfo
from workbench.render.markup import Html, element, join

if TYPE_CHECKING:
    import xarray as xr

    from workbench.method import Result
    from workbench.report import Report

__all__ = ["ComparisonReport"]


class ComparisonReport(RenderedReport):
    """What `bench.compare(runs).report()` returns: displays itself, and is saved as one self-contained page."""

    def __init__(self, report: Report, data: xr.Dataset, family: str, runs: Sequence[RunInfo]) -> None:
        """Take a report, the Dataset that its views draw from, and the runs that it is about."""
        arrays = cast("Result", ViewArrays(data, f"{family}-comparison"))
        super().__init__(report, arrays, RunInfo(f"{family}-comparison", family, f"The family {family}", "complete"))
        self.data, self.family, self.runs = data, family, tuple(runs)

    def __repr__(self) -> str:
        return f"<{self.family}, {len(self.runs)} runs: {self.report.summary}>"

    def _head(self) -> Html:
        return join(
            [
                element("div", element("b", f"{self.family}, side by side", class_="wb-title"), class_="wb-head"),
                element("div", f"{len(self.runs)} runs", class_="wb-dim"),
            ]
        )

    def html(self) -> str:
        """One self-contained page."""
        head = element(
            "header",
            element("div", element("span", f"comparison of {len(self.runs)} runs"), class_="wb-eyebrow"),
            element("h1", f"{self.family}, side by side"),
        )
        metrics = sections.metrics_table(self.report.metrics) if self.report.metrics else None
        tables = [element("div", sections.report_table(table), class_="wb-card") for table in self.report.tables]
        notes = element("div", sections.notes_list(self.report.notes), class_="wb-card") if self.report.notes else None
        body: list[Any] = [
            head,
            element("p", self.report.summary, class_="wb-lead"),
            section("Metrics", element("div", metrics, class_="wb-card") if metrics else None),
            figures_section(self.report.views, self.result, self.info.id),
            section("Tables", *tables),
            section("Notes", notes),
            section("Runs", element("div", self._table(), class_="wb-card")),
        ]
        return page(f"{self.family}, side by side", join(body))

    def _table(self) -> Html:
        rows = [
            (element("code", info.id), info.method, str(info.seed), info.when,
             sections.metrics_line(info.report.metrics, 3) if info.report is not None else "")
            for info in self.runs
        ]  # fmt: skip
        return sections.table_html(("run", "method", "seed", "started", "found"), rows)
