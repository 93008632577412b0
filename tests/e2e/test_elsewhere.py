"""Runs, reports and panels where JupyterLab is not: in VS Code, and as a page made by nbconvert.

VS Code itself is not started. What it shows of an output (its HTML, or plotly's figure, in a page with VS Code's classes and
colour variables) is laid out here in the same way and looked at in a browser, light and dark.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
import pytest
import workbench
from workbench.host import Host

from e2e.lab_tools import CHROMIUM, PATIENCE
from e2e.test_browser import _contrast
from e2e.test_panels import fill

nbconvert = pytest.importorskip("nbconvert")

COLOURS = {
    "light": {
        "foreground": "#3b3b3b",
        "descriptionForeground": "#3b3b3b",
        "editor-background": "#ffffff",
    },
    "dark": {
        "foreground": "#cccccc",
        "descriptionForeground": "#9d9d9d",
        "editor-background": "#1f1f1f",
    },
}
"""VS Code's own default themes."""
INKS = r"""() => {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const part = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
        if (!text || !part.checkVisibility() || part.closest('style, script, .hoverlayer, .heatmaplayer')) continue;
        let faint = 1, ground = null;
        for (let node = part; node; node = node.parentElement) {
            faint *= getComputedStyle(node).opacity;
            const colour = getComputedStyle(node).backgroundColor;
            if (!ground && !/, 0(\.\d+)?\)$/.test(colour)) ground = colour;
        }
        const ink = part.closest('svg') ? getComputedStyle(part).fill : getComputedStyle(part).color;
        if (faint > 0.67) found.push([ink, ground, text.slice(0, 40)]);
    }
    return found;
}"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[workbench.Workbench]:
    folder = tmp_path_factory.mktemp("elsewhere") / "store"
    fill(folder)
    with pytest.MonkeyPatch.context() as patience:  # else a busy machine would show that the store is being read
        patience.setattr("workbench.panels.browse.PROMPT", 300.0)
        yield workbench.open(folder, host=Host(found=[]))


def everything(bench: workbench.Workbench) -> dict[str, dict[str, Any]]:
    """What cells publish: name -> MIME bundle."""
    run, runs = bench["latest"], bench.runs("method = restoration.demo")
    panels = {
        "browse": bench.browse(), "run panel": run.panel(), "explore": run.explore("restored"),
        "compare": bench.compare(runs).panel(), "plugins": workbench.open(bench.store.url).plugins(),
    }  # fmt: skip
    shown = {name: dict(panel._repr_mimebundle_()) for name, panel in panels.items()}
    shown |= {"run": {"text/html": run._repr_html_()}, "runs": {"text/html": runs._repr_html_()}}
    shown |= {f"report {number}": bundle for number, bundle in enumerate(run.report().bundles())}
    return shown


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("theme", COLOURS)
def test_everything_reads_in_vs_code(bench: workbench.Workbench, browser: Any, tmp_path: Path, theme: str):
    script = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    variables = " ".join(f"--vscode-{name}: {value};" for name, value in COLOURS[theme].items())
    outputs = []
    for name, bundle in everything(bench).items():
        figure = bundle.get("application/vnd.plotly.v1+json")
        if figure:
            draw = f"Plotly.newPlot('f{len(outputs)}', {json.dumps(figure['data'])}, {json.dumps(figure['layout'])})"
            outputs.append(f"<div id='f{len(outputs)}'></div><script>{draw}</script>")
        else:
            outputs.append(f"<div class='output' data-name='{name}'>{bundle['text/html']}</div>")
    page_text = (
        f"<meta charset='utf-8'><html style='{variables} background: var(--vscode-editor-background);"
        " color: var(--vscode-foreground)'>"
        f"<body class='vscode-{theme}' data-vscode-theme-kind='vscode-{theme}' style='font: 13px sans-serif'>"
        f"<script>{script}</script>{'<hr>'.join(outputs)}"
    )
    (tmp_path / "page.html").write_text(page_text, encoding="utf-8")
    page = browser.new_page(viewport={"width": 1000, "height": 1200}, color_scheme=theme)
    page.set_default_timeout(PATIENCE)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    page.locator(".js-plotly-plot .xtick text").first.wait_for()
    pairs = page.evaluate(INKS)
    assert len(pairs) > 80
    unreadable = {(text, ink, ground) for ink, ground, text in map(tuple, pairs) if _contrast(ink, ground) < 4.0}
    assert unreadable == set()
    assert page.evaluate("window.hacked === undefined")
    assert problems == []
    picture = tmp_path / f"vscode-{theme}.png"
    page.screenshot(path=str(picture), full_page=True)
    if place := os.environ.get("WORKBENCH_PICTURES"):
        Path(place).mkdir(parents=True, exist_ok=True)
        (Path(place) / picture.name).write_bytes(picture.read_bytes())
    page.close()


def test_nbconvert_shows_pages_in_place_of_widgets(bench: workbench.Workbench):
    """Notebooks as JupyterLab saves them: the widget's name is in the output, its state is not."""
    shown = everything(bench)
    assert "application/vnd.jupyter.widget-view+json" in shown["browse"]
    cells = []
    for name, bundle in shown.items():
        cell = nbformat.v4.new_code_cell(f"# {name}")
        cell.outputs = [nbformat.v4.new_output("display_data", data=bundle)]
        cells.append(cell)
    notebook = nbformat.v4.new_notebook(cells=cells)
    html, _ = nbconvert.HTMLExporter(template_name="lab").from_notebook_node(notebook)
    body = html.partition("<main")[2] or html.partition("<body")[2]
    assert "widget-view" not in body
    assert "<script>window.hacked" not in body
    for text in (
        "With a kernel, bench.browse() searches",
        "Run the cell to look into them",
        "runs compared",
        "What differs",
    ):
        assert text in body, text
    assert "data:image/jpeg;base64" in body, "figures are pictures there"
