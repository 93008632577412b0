"""The report of a study made visible: in a notebook, as one self-contained page, as CSV and as a LaTeX table."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import numpy as np

from workbench.errors import WorkbenchError
from workbench.render import sections
from workbench.render.arrays import ViewArrays
from workbench.render.html import figures_section, notebook_fragment, page, resolve_views, section
from workbench.render.markup import Html, element, embedded, join
from workbench.render.plots import TablesPlot
from workbench.render.texts import number_text
from workbench.study.comparing import Cell
from workbench.study.conclusions import conclusion_sentences
from workbench.study.content import ARROWS, study_content
from workbench.study.lineage import lineage_drawing
from workbench.study.matrix import Column, Matrix, columns_of
from workbench.study.plan import Branch, spelled

if TYPE_CHECKING:
    import pandas as pd

    from workbench.method import Result
    from workbench.report import Report, View
    from workbench.study.result import StudyResult

__all__ = ["StudyReport"]

MANY = 60
"""Runs from which on their table is folded."""

LISTED = 4
"""Metrics up to which what changed in them belongs to the paragraph; of more it is a list."""

MARKS = {True: ("▲", "better", "var(--wb-good)"), False: ("▼", "worse", "var(--wb-bad)")}
"""Signs, words and colours, light or dark, of the page they stand on."""


class StudyReport:
    """Matrix, conclusions, fronts, disputed samples, lineage and runs of a study. Displays itself."""

    def __init__(self, result: StudyResult) -> None:
        self.result = result

    @property
    def matrix(self) -> Matrix:
        """The numbers."""
        return self.result.matrix

    @cached_property
    def _content(self) -> tuple[Report, ViewArrays]:
        return study_content(self.result)

    @property
    def conclusions(self) -> str:
        """One paragraph, made from the numbers by rules that the page states."""
        return self._content[0].summary

    def save(self, path: str | os.PathLike[str], *, runs: bool = False) -> Path:
        """Write one self-contained page and return its path; folders are made.

        Args:
            path: of the page.
            runs: also write the report of every run into a folder beside it, and link them.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = ""
        if runs:
            folder = f"{target.stem}-runs"
            for branch in self.result.plan.branches:
                run = self.result.run(branch)
                if run is not None:
                    run.report().save(target.parent / folder / f"{run.id}.html")
        target.write_text(self.html(folder), encoding="utf-8")
        return target

    def html(self, folder: str = "") -> str:
        """The page; `folder` is where pages of the runs lie, relative to it."""
        study = self.result.plan.study
        counts = ", ".join(f"{count} {status}" for status, count in self.result.counts.items())
        head = element(
            "header",
            element("div", element("span", f"study {study.name}"), class_="wb-eyebrow"),
            element("h1", study.title or study.name),
            element("dl", element("div", element("dt", "runs"), element("dd", counts)), class_="wb-facts"),
        )
        return page(f"{study.title or study.name} · study", join([head, *self._body(folder)]))

    def _body(self, folder: str) -> list[Html | None]:
        report, arrays = self._content
        figures = figures_section(report.views, cast("Result", arrays), self.result.name)  # the part that views use
        return [*self._opening(folder), figures, *self._closing(folder)]

    def _opening(self, folder: str) -> list[Html | None]:
        """Conclusions and numbers."""
        report, _ = self._content
        tables = [element("details", element("summary", f"{table.title}, {len(table.rows)} comparisons"),
                          sections.report_table(table), class_="wb-card") for table in report.tables]  # fmt: skip
        return [
            *self._answer(),
            section("Variants and metrics", *self._matrices(folder), *tables),
            section("Beside the variants", self._beside(folder)),
        ]

    def _answer(self) -> list[Html]:
        """The conclusions; of many metrics those on single ones as a list, which is easier to look through."""
        advice, changes = conclusion_sentences(self.matrix, self.result.plan.study.questions.cost)
        if not advice or len(changes) <= LISTED:
            return [element("p", self.conclusions, class_="wb-lead")]
        items = (element("li", sentence) for sentence in changes)
        return [
            element("p", " ".join(advice), class_="wb-lead"),
            element("div", element("ul", *items), class_="wb-card"),
        ]

    def _closing(self, folder: str) -> list[Html | None]:
        """Where the numbers come from."""
        report, _ = self._content
        return [
            section("How the runs feed each other", self._lineage(folder)),
            section("Notes", element("div", sections.notes_list(report.notes), class_="wb-card")),
            section("Without a run", self._failures()),
            section("Runs", self._runs(folder)),
        ]

    def _matrices(self, folder: str) -> list[Html]:
        """One table per group of metrics."""
        groups: dict[str, list[int]] = {}
        for number, column in enumerate(self.matrix.columns):
            groups.setdefault(column.asked.group, []).append(number)
        tables = [
            element(
                "div",
                element("h3", group) if group else None,
                self._table(numbers, folder),
                class_="wb-card",
                style="margin-bottom: 12px",
            )
            for group, numbers in groups.items()
        ]
        caption = (
            "Below each value its 95 % interval. ▲ better, ▼ worse than the baseline: adjusted p at most 0.05, or, where only "
            "intervals are stored (◇), intervals that do not overlap."
        )
        return [*tables, element("div", caption, class_="wb-caption")]

    def _table(self, numbers: list[int], folder: str) -> Html:
        """Variants of one baseline together; columns of one metric by what tells them apart."""
        matrix = self.matrix
        columns = [matrix.columns[number] for number in numbers]
        alike = len(columns) > 1 and len({(column.asked.step, column.asked.metric) for column in columns}) == 1
        short = alike and all(column.words for column in columns)
        names = [_heading(column, short=short) for column in columns]
        rows = []
        for at in sorted(range(len(matrix.rows)), key=lambda at: matrix.baselines[at]):
            label = element("b", matrix.rows[at].label, style="white-space: nowrap")
            base = element("span", " (baseline)", class_="wb-dim") if matrix.is_baseline(at) else None
            cells = [self._cell(matrix.cells[at, number], matrix.better(at, number), folder) for number in numbers]
            rows.append((join([label, base]), *cells))
        return sections.table_html(("variant", *names), rows, (False, *(True for _ in names)))

    def _cell(self, cell: Cell, better: bool | None, folder: str) -> Html:
        if not np.isfinite(cell.value):
            return element("span", "–", class_="wb-dim")
        mark = None
        if better is not None:
            sign, words, color = MARKS[better]
            mark = element("span", f" {sign}", style=f"color: {color}", title=words)
        by_intervals = " ◇" if cell.basis == "stored intervals" else None
        span = None
        if np.isfinite(cell.lower):
            text = f"{number_text(cell.lower)} to {number_text(cell.upper)}"
            span = element("div", text, style="font-size: 0.8em; white-space: nowrap; opacity: 0.65")
        return join([self._value(cell, folder), mark, by_intervals, span])

    def _value(self, cell: Cell, folder: str) -> Html:
        """The number, linked to the (first) run that has it, which a notebook shows when one points at it."""
        runs = [run.id for branch in cell.branches if (run := self.result.run(branch)) is not None]
        text = number_text(cell.value)
        if folder and runs:
            return element("a", text, href=_address(folder, runs[0]), title=", ".join(runs))
        return element("span", text, title=", ".join(runs) or None)

    def _beside(self, folder: str) -> Html | None:
        found = columns_of(self.result, self.result.plan.study.questions.beside)
        rows = [
            (_heading(column), self._cell(cell, None, folder), str(len(cell.values)))
            for column, cell in found
            if np.isfinite(cell.value)
        ]
        if not rows:
            return None
        return element(
            "div", sections.table_html(("metric", "value", "runs"), rows, (False, True, True)), class_="wb-card"
        )

    def _lineage(self, folder: str) -> Html:
        def link(branch: Branch) -> str:
            run = self.result.outcomes[branch.id].run_id
            return _address(folder, run) if folder and run else ""

        caption = element(
            "figcaption", "Boxes are runs (or steps with many), lines lead to what took them; dashed: no run."
        )
        return element(
            "figure", lineage_drawing(self.result, link), caption, class_="wb-card wb-wide", style="margin: 0"
        )

    def _failures(self) -> Html | None:
        found = self.result.failures
        rows = list(found.items())
        return element("div", sections.table_html(("branch", "why"), rows), class_="wb-card") if rows else None

    def _runs(self, folder: str) -> Html:
        rows = []
        for branch in self.result.plan.branches:
            run = self.result.run(branch)
            if run is None:
                continue
            name = element("code", run.id)
            shown = element("a", name, href=_address(folder, run.id)) if folder else name
            variant = ", ".join(spelled(key, value) for key, value in branch.trail.items())
            metrics = run.report_data().metrics
            rows.append((branch.step, variant, str(branch.seed), shown, sections.metrics_line(metrics, 3)))
        table = sections.table_html(("step", "variant", "seed", "run", "found"), rows)
        if len(rows) > MANY:
            table = element("details", element("summary", f"All {len(rows)} runs"), table)
        return element("div", table, class_="wb-card")

    # --- for papers -------------------------------------------------------------------------------------------------

    def frame(self) -> pd.DataFrame:
        """A row per variant and metric: value, interval, difference, p-values and how it was compared."""
        return self.matrix.dataset().to_dataframe().reset_index()

    def csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """`frame` as CSV; written to a file if a path is given."""
        text = self.frame().to_csv(index=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return str(text)

    def latex(self, path: str | os.PathLike[str] | None = None) -> str:
        r"""The matrix as a LaTeX table (package booktabs); `$^{+}$` and `$^{-}$`: better or worse than the baseline."""
        matrix = self.matrix
        signs = {True: "$^{+}$", False: "$^{-}$", None: ""}
        arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "neutral": ""}
        lines = [r"\begin{tabular}{l" + "r" * len(matrix.columns) + "}", r"\toprule"]
        lines.append(" & ".join(["variant", *(_tex(c.label) + arrows[c.direction] for c in matrix.columns)]) + r" \\")
        lines.append(r"\midrule")
        for at, row in enumerate(matrix.rows):
            cells = []
            for number in range(len(matrix.columns)):
                value = matrix.cells[at, number].value
                text = _tex(number_text(value)) if np.isfinite(value) else "--"
                cells.append(text + signs[matrix.better(at, number)])
            lines.append(" & ".join([_tex(row.label), *cells]) + r" \\")
        text = "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def bundles(self) -> list[dict[str, Any]]:
        """What is published to the notebook, in order: MIME type -> content. Figures are interactive where the front end can."""
        from workbench.render.interactive_theme import dark_figures

        report, arrays = self._content
        before, after = self._opening(""), self._closing("")
        look = element("style", embedded(dark_figures())) if report.views else None
        return [
            {"text/html": notebook_fragment(look, *before), "text/plain": repr(self)},
            *figure_bundles(report.views, cast("Result", arrays)),
            {"text/html": notebook_fragment(*after), "text/plain": "\n".join(report.notes)},
        ]

    def _ipython_display_(self) -> None:
        from IPython.display import display

        for bundle in self.bundles():
            display(bundle, raw=True)  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return f"<report of study {self.result.name}: {self.conclusions}>"

    def _repr_html_(self) -> str:
        study = self.result.plan.study
        return notebook_fragment(element("b", study.title or study.name, class_="wb-title"), *self._body(""))


def figure_bundles(views: Sequence[View], arrays: Result) -> list[dict[str, Any]]:
    """Each view as plotly's JSON with a JPEG for readers without scripts, followed by its caption."""
    from workbench.render.interactive import figure
    from workbench.render.static import jpeg

    shown: list[dict[str, Any]] = []
    for view, plot in zip(views, resolve_views(views, arrays), strict=True):
        if isinstance(plot, WorkbenchError):
            text = f"The view {view.title!r} cannot be drawn. {plot}"
            shown.append(
                {"text/html": notebook_fragment(element("div", text, class_="wb-caption")), "text/plain": text}
            )
            continue
        if not isinstance(plot, TablesPlot):
            document = json.loads(figure(plot).to_json())
            shown.append(
                {
                    "application/vnd.plotly.v1+json": document | {"config": {"displaylogo": False, "responsive": True}},
                    "image/jpeg": base64.b64encode(jpeg(plot)).decode(),
                    "text/plain": f"[figure: {plot.title}]",
                }
            )
        if plot.caption:
            caption = notebook_fragment(element("div", plot.caption, class_="wb-caption"))
            shown.append({"text/html": caption, "text/plain": plot.caption})
    return shown


def _address(folder: str, run_id: str) -> str:
    return f"{quote(folder)}/{quote(run_id)}.html"


def _heading(column: Column, *, short: bool = False) -> str:
    return f"{column.words if short else column.label}{ARROWS[column.direction]}" + (
        f" [{column.unit}]" if column.unit else ""
    )


_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$"}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
