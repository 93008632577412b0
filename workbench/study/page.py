"""The report of a study made visible: in a notebook, as one self-contained page, as CSV and as a LaTeX table."""

from __future__ import annotations

import base64
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

import numpy as np

from workbench.render import sections
from workbench.render.html import figures_section, notebook_fragment, page, section
from workbench.render.markup import Html, element, join
from workbench.render.texts import number_text
from workbench.study.content import ARROWS, StudyArrays, study_content
from workbench.study.lineage import lineage_figure
from workbench.study.matrix import Cell, Matrix
from workbench.study.plan import spelled

if TYPE_CHECKING:
    import pandas as pd

    from workbench.method import Result
    from workbench.report import Report
    from workbench.study.result import StudyResult

__all__ = ["StudyReport"]

MARKS = {True: ("▲", "better", "#1a7f4b"), False: ("▼", "worse", "#b3261e")}


class StudyReport:
    """Matrix, conclusions, fronts, disputed samples, lineage and runs of a study. Displays itself."""

    def __init__(self, result: StudyResult) -> None:
        self.result = result

    @property
    def matrix(self) -> Matrix:
        """The numbers."""
        return self.result.matrix

    @cached_property
    def _content(self) -> tuple[Report, StudyArrays]:
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
        tables = [element("details", element("summary", f"{table.title}, {len(table.rows)} comparisons"),
                          sections.report_table(table), class_="wb-card") for table in report.tables]  # fmt: skip
        return [
            element("p", report.summary, class_="wb-lead"),
            section("Variants and metrics", element("div", self._matrix(folder), class_="wb-card"), *tables),
            figures_section(report.views, cast("Result", arrays), self.result.name),  # the part that views use
            section("How the runs feed each other", self._lineage()),
            section("Notes", element("div", sections.notes_list(report.notes), class_="wb-card")),
            section("Without a run", self._failures()),
            section("Runs", element("div", self._runs(folder), class_="wb-card")),
        ]

    def _matrix(self, folder: str) -> Html:
        matrix = self.matrix
        rows = []
        for at, row in enumerate(matrix.rows):
            base = " (baseline)" if at == matrix.baseline else ""
            cells = [
                self._cell(matrix.cells[at, number], matrix.better(at, number)) for number in range(len(matrix.columns))
            ]
            rows.append((element("b", row.label + base), *cells))
        names = [f"{c.label}{ARROWS[c.direction]}" + (f" [{c.unit}]" if c.unit else "") for c in matrix.columns]
        caption = (
            "Below each value its 95 % interval. ▲ better, ▼ worse than the baseline: adjusted p at most 0.05, or, where only "
            "intervals are stored (◇), intervals that do not overlap."
        )
        return join([
            sections.table_html(("variant", *names), rows, (False, *(True for _ in names))),
            element("div", caption, class_="wb-caption"),
        ])  # fmt: skip

    def _cell(self, cell: Cell, better: bool | None) -> Html:
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
        return join([number_text(cell.value), mark, by_intervals, span])

    def _lineage(self) -> Html:
        from workbench.render.pixels import data_uri
        from workbench.report import FreeForm

        drawn = base64.b64decode(FreeForm.from_figure(lineage_figure(self.result), title="lineage").png)
        picture = element("img", src=data_uri(drawn), alt="graph of the runs", style="width: 100%")
        caption = element("figcaption", "Boxes are runs, arrows lead to what took them; grey: no run.")
        return element("figure", picture, caption, class_="wb-card wb-wide")

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
            shown = element("a", name, href=f"{quote(folder)}/{quote(run.id)}.html") if folder else name
            variant = ", ".join(spelled(key, value) for key, value in branch.trail.items())
            metrics = run.report_data().metrics
            rows.append((branch.step, variant, str(branch.seed), shown, sections.metrics_line(metrics, 3)))
        return sections.table_html(("step", "variant", "seed", "run", "found"), rows)

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

    def __repr__(self) -> str:
        return f"<report of study {self.result.name}: {self.conclusions}>"

    def _repr_html_(self) -> str:
        study = self.result.plan.study
        return notebook_fragment(element("b", study.title or study.name, class_="wb-title"), *self._body(""))


_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$"}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
