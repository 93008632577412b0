"""What a reader sees: the tour in a real JupyterLab in a real browser, run and as committed, on light and dark pages."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nbformat
import pytest

from e2e.lab_tools import CHROMIUM, PATIENCE, THEMES, Lab, Visit, harmless
from e2e.notebook_tools import NOTEBOOKS

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]


def tour(lab: Lab, name: str, *, run: bool) -> Any:
    """A copy of the tour: as committed, or its beginning up to the first report, without outputs."""
    document = nbformat.read(NOTEBOOKS / "01_tour.ipynb", as_version=4)
    if run:
        last = next(index for index, cell in enumerate(document.cells) if cell.source.endswith(".report()"))
        document.cells = document.cells[: last + 1]
        for cell in document.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
    nbformat.write(document, lab.folder / name)
    return document


def figures(document: Any) -> int:
    outputs = [output for cell in document.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)


def drawn(seen: Visit, count: int) -> None:
    """Every plot is in the page, has a size and holds marks."""
    # While plotly draws, it may hold a plot twice; what counts is what is there when nothing changes any more.
    drawings = (
        "[...document.querySelectorAll('.js-plotly-plot')].filter(plot => plot.querySelector('.main-svg')).length"
    )
    deadline, quiet = time.monotonic() + PATIENCE / 1000, 0
    while quiet < 6 and time.monotonic() < deadline:
        seen.page.wait_for_timeout(500)
        quiet = quiet + 1 if seen.page.evaluate(drawings) == count else 0
    plots = seen.page.evaluate(
        """[...document.querySelectorAll('.js-plotly-plot')].map(plot => {
            const box = plot.getBoundingClientRect();
            const marks = plot.querySelectorAll('.trace, .point, image, path.js-line');
            return {width: box.width, height: box.height, marks: marks.length, title: plot.textContent.slice(0, 60)};
        })"""
    )
    assert len(plots) == count, [plot["title"] for plot in plots]
    assert [plot for plot in plots if plot["width"] < 200 or plot["height"] < 150 or plot["marks"] == 0] == []


def test_the_tour_runs_in_a_browser(lab: Lab, visit, tmp_path: Path):
    tour(lab, "run.ipynb", run=True)
    seen = visit("run.ipynb", "light")
    page = seen.page
    seen.kernel_ready()
    seen.run_all()
    committed = nbformat.read(NOTEBOOKS / "01_tour.ipynb", as_version=4)
    report = next(cell for cell in committed.cells if cell.source.endswith(".report()"))
    count = sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in report.outputs)
    drawn(seen, count)
    lead = page.locator(".workbench .wb-lead").last.inner_text()
    assert "validation samples are classified correctly" in lead
    assert (
        page.locator(
            ".jp-OutputArea-output[data-mime-type*='stderr'], .jp-RenderedText[data-mime-type*='error']"
        ).count()
        == 0
    )
    assert page.locator(".workbench .wb-pill.wb-complete").count() >= 2, (
        "the run and its report say that it is complete"
    )
    page.locator(".js-plotly-plot").first.hover()
    assert page.locator(".modebar").first.is_visible(), "figures are interactive"
    seen.picture(tmp_path / "run.png")
    harmless(seen, lab)


@pytest.mark.parametrize("theme", THEMES)
def test_the_committed_tour_looks_as_it_should(lab: Lab, visit, tmp_path: Path, theme: str):
    document = tour(lab, f"{theme}.ipynb", run=False)
    seen = visit(f"{theme}.ipynb", theme)
    drawn(seen, figures(document))
    shades = seen.page.evaluate(
        """[...document.querySelectorAll('.workbench .wb-lead, .workbench td, .workbench .wb-value')].map(
            part => getComputedStyle(part).color)"""
    )
    assert shades
    background = seen.page.evaluate("getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor")
    assert [shade for shade in set(shades) if _contrast(shade, background) < 4.5] == [], background
    wide = seen.page.evaluate(
        """[...document.querySelectorAll('.workbench')].filter(
            part => part.getBoundingClientRect().right > innerWidth + 1).length"""
    )
    assert wide == 0, "an output is wider than the page"
    seen.picture(tmp_path / f"{theme}.png")
    harmless(seen, lab)


def _contrast(first: str, second: str) -> float:
    """Contrast ratio of two CSS colours (WCAG 2, relative luminance)."""
    lights = sorted(_luminance(colour) for colour in (first, second))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(colour: str) -> float:
    parts = [float(part) / 255 for part in colour.split("(")[1].rstrip(")").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_is_that_of_the_standard():
    assert _contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert _contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.01)
