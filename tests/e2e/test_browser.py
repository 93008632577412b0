"""What a reader sees: the tour in a real JupyterLab in a real browser, run and as committed, on light and dark pages."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nbformat
import pytest

from e2e.notebook_tools import NOTEBOOKS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
PATIENCE = 120_000
"""Milliseconds to wait for what takes seconds on an idle machine."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]


@dataclass
class Lab:
    """A running JupyterLab."""

    folder: Path
    address: str
    token: str
    settings: Path

    def choose(self, theme: str) -> None:
        """Set the theme for pages opened from now on, and have all outputs in the page at once."""
        chosen = {
            "@jupyterlab/apputils-extension/themes": {"theme": THEMES[theme]},
            "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
            "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
        }
        for name, values in chosen.items():
            path = self.settings / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))


@dataclass
class Visit:
    """A page that shows a notebook, and everything that went wrong in it."""

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def picture(self, path: Path) -> None:
        """The beginning of the notebook as one tall picture."""
        self.page.set_viewport_size({"width": 1500, "height": 4000})
        self.page.wait_for_timeout(1500)  # plots follow the new size
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on the loopback interface, with nothing of the user's own settings."""
    pytest.importorskip("jupyterlab")
    home = tmp_path_factory.mktemp("lab")
    folder, runtime = home / "notebooks", home / "runtime"
    folder.mkdir()
    own = {"RUNTIME": runtime, "CONFIG": home / "config", "DATA": home / "data"}
    environment = os.environ | {f"JUPYTER_{name}_DIR": str(path) for name, path in own.items()}
    environment |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "WORKBENCH_USER": "ada",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("WORKBENCH_STORE", None)
    options = [
        "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={folder}",
        "--IdentityProvider.token=tour", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
    ]  # fmt: skip
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log
        )
        try:
            yield Lab(folder, _address(process, runtime, home / "log"), "tour", home / "settings")
        finally:
            process.terminate()
            process.wait(30)


def _address(process: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    """Where the server listens, once it does."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            try:
                address = str(json.loads(path.read_text())["url"])
                with urlopen(f"{address}api?token=tour", timeout=5):
                    return address
            except (OSError, ValueError, KeyError):
                continue  # not written whole, or not listening yet
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-2000:]}")


@pytest.fixture
def visit(lab: Lab):
    """Opens a notebook in a fresh browser: `visit("01_tour.ipynb", theme="dark")`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def go(name: str, theme: str) -> Visit:
            lab.choose(theme)
            page = browser.new_page(viewport={"width": 1500, "height": 1000}, color_scheme=theme)
            page.set_default_timeout(PATIENCE)
            seen = Visit(page)
            page.on("pageerror", lambda error: seen.problems.append(str(error)))
            page.on("console", lambda message: message.type == "error" and seen.problems.append(message.text))
            page.on("request", lambda request: seen.requests.append(request.url))
            page.goto(f"{lab.address}lab/tree/{name}?token={lab.token}&reset")
            page.wait_for_selector(".jp-Notebook .jp-CodeCell")
            page.wait_for_selector(f"body[data-jp-theme-name='{THEMES[theme]}']", state="attached")
            return seen

        try:
            yield go
        finally:
            browser.close()


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
    drawings = "[...document.querySelectorAll('.js-plotly-plot')].filter(plot => plot.querySelector('.main-svg')).length"
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


def harmless(seen: Visit, lab: Lab) -> None:
    """Nothing failed in the page, and nothing was asked from anywhere but the server on this machine."""
    ours = [text for text in seen.problems if "favicon" not in text]
    assert ours == []
    foreign = [url for url in seen.requests if not url.startswith((lab.address, "data:", "blob:", "ws:", "about:"))]
    assert foreign == []


def test_the_tour_runs_in_a_browser(lab: Lab, visit, tmp_path: Path):
    from playwright.sync_api import TimeoutError

    tour(lab, "run.ipynb", run=True)
    seen = visit("run.ipynb", "light")
    page = seen.page
    # A fresh workspace asks which kernel to take, some time after the notebook is shown.
    question = page.locator(".jp-Dialog button.jp-mod-accept")
    with contextlib.suppress(TimeoutError):
        question.wait_for(timeout=8_000)
        question.click()
    page.wait_for_selector(".jp-Dialog", state="detached")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
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
