"""The panels of runs, arrays, comparisons and launches in a real JupyterLab: looked at, used by mouse and keyboard, attacked.

One laboratory, one notebook and one page for all of them: starting JupyterLab costs more than the tests. Every test uses
a cell of its own. Pictures of every panel, light and dark, are written to the folder `panels` of the test run (and to
$WORKBENCH_PICTURES, if that is set) for people to look at.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import workbench
from workbench.host import Host

from e2e.lab_tools import CHROMIUM, FLAGS, PATIENCE, Lab, Visit, harmless, open_notebook, running_lab
from e2e.test_browser import _contrast
from unit.panel_cases import HOSTILE, put_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]

CELLS = {
    "open": "import workbench\nbench = workbench.open('store')",
    "explore": "bench['latest'].explore('restored')",
    "run": "bench['latest'].panel()",
    "compare": "bench.compare(bench.runs('method = restoration.demo')).panel()",
    "launch": """
import time, numpy as np
from pydantic import Field
class Slow(workbench.Method):
    id, title = "sample.slow", "Takes its time"
    inputs = {}
    outputs = (workbench.Output("value", ("step",), "float32", "numbers"),)
    class Params(workbench.Params):
        steps: int = Field(100000, ge=1, description="how many <b>steps</b>")
    def run(self, inputs, params, out):
        for step in out.track(range(params.steps), "stepping"):
            out.log(step, loss=1 / (step + 1))
            time.sleep(0.02)
        out.write("value", np.zeros(3, np.float32))
    def report(self, result):
        return workbench.Report(summary="It took its time.", metrics=[workbench.Metric(name="steps", value=3)])
form = bench.launch(Slow)
form""",
    "other": "print('free:', form.handle.status)",
    "plugins": "bench.plugins()",
    "large": """
from workbench.panels import explore_overview
explore_overview.BUDGET = 150_000  # bytes; what an answer reads of a large picture
bench.runs('method = sample.large')[0].explore('map')""",
    "nothing": "bench.runs('method = training.classifier')[0].arrays()",
    "broken": "bench.runs('method = sample.broken')[0].panel()",
}
ORDER = list(CELLS)
INKS = r"""cell => {
    // Every text that can be seen: its colour, the colour behind it, how it begins.
    const found = [];
    const behind = node => {
        for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (!/, 0(\.\d+)?\)$/.test(colour)) return colour;
        }
        return 'rgb(0, 0, 0)';
    };
    const walker = document.createTreeWalker(cell.querySelector('.wb-panel'), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const part = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
        if (!text || !part.checkVisibility() || part.closest('style, option, :disabled, .js-plotly-plot')) continue;
        let faint = 1;
        for (let node = part; node; node = node.parentElement) faint *= getComputedStyle(node).opacity;
        if (faint > 0.7) found.push([getComputedStyle(part).color, behind(part), text.slice(0, 40)]);
    }
    return found;
}"""
FIGURE_LOOKS = """figure => [
    getComputedStyle(figure.querySelector('.main-svg')).backgroundColor,
    getComputedStyle(figure.querySelector('.xtick text')).fill,
    getComputedStyle(figure.querySelector('.scatterlayer path.js-line')).stroke,
]"""
NAMELESS = """cell => [...cell.querySelectorAll('.wb-panel :is(button, input, select, textarea, summary, [tabindex])')]
    .filter(node => node.checkVisibility() && !node.closest('.js-plotly-plot'))
    .filter(node => node.tabIndex > 0 || (node.tabIndex === 0 && !(node.getAttribute('aria-label') || node.title
        || node.getAttribute('aria-labelledby') || node.placeholder || node.textContent.trim()
        || [...(node.labels ?? [])].some(label => label.textContent.trim()))))
    .map(node => node.outerHTML.slice(0, 200))"""
OTHER_CAPTION = """([at, text]) => document.querySelectorAll('.jp-Notebook .jp-CodeCell')[at]
    .querySelector('figcaption').innerText !== text"""


def photographs(count: int, size: int) -> np.ndarray:
    """Something to look at: rings whose centre and colour move."""
    y, x = np.mgrid[0:size, 0:size] / size
    pictures = []
    for index in range(count):
        radius = np.hypot(y - 0.3 - 0.02 * index, x - 0.5 + 0.03 * index)
        pictures.append([0.5 + 0.5 * np.cos(18 * radius + phase) for phase in (0, 2, 4)])
    return np.array(pictures, np.float32)


def fill(folder: Path) -> None:
    """A store with two generations of runs; a third person's texts are hostile."""
    bench = workbench.open(folder, host=Host(found=[]))
    clean = photographs(30, 48)
    rng = np.random.default_rng(0)
    parent = put_run(
        bench, {}, metrics={"accuracy": 0.9}, method="training.classifier", method_title="Trains a classifier"
    )
    for strength in (0.05, 0.2):
        for seed in range(2):
            restored = np.clip(clean + rng.normal(0, strength, clean.shape), 0, 1).astype(np.float32)
            error = np.abs(restored - clean).mean(1)
            names = np.array([HOSTILE, *[f"photo {index}" for index in range(1, 30)]], object)
            put_run(
                bench,
                {
                    "restored": (("sample", "channel", "y", "x"), restored),
                    "error": (("sample", "y", "x"), error),
                    "sample": (("sample",), names),
                    "name": (("sample",), names),
                    "series/step": (("step",), np.arange(40)),
                    "series/loss": (("step",), np.exp(-np.arange(40) / 12) + strength * rng.random(40)),
                },
                metrics={"psnr": float(-10 * np.log10((error**2).mean())), "error": float(error.mean())},
                directions={"error": "lower"},
                uses=(parent.id,),
                method_title="Restores noisy photographs " + HOSTILE[:60],
                params={"strength": strength, "note": HOSTILE},
                default_params={"strength": 0.05, "note": ""},
                seed=seed,
            )


def fill_odd(folder: Path) -> None:
    """Runs that are large, and damaged."""
    bench = workbench.open(folder, host=Host(found=[]))
    y, x = np.mgrid[0:1500, 0:1500]
    put_run(
        bench,
        {"map": (("y", "x"), (128 + 120 * np.sin(x / 90) * np.cos(y / 70)).astype(np.uint8))},
        method="sample.large",
    )
    maps = {name: (("y", "x"), np.linspace(0, 1, 1600).reshape(40, 40)) for name in ("map", "other")}
    broken = put_run(bench, maps, metrics={"score": 1.0}, method="sample.broken")
    for path in Path(broken.path, "map").rglob("c/*/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pytest.importorskip("jupyterlab")
    home = tmp_path_factory.mktemp("panels")
    with running_lab(home) as started:
        fill_odd(started.folder / "store")
        fill(started.folder / "store")
        started.write("panels.ipynb", *CELLS.values())
        yield started


@pytest.fixture(scope="module")
def seen(lab: Lab) -> Iterator[Visit]:
    """The notebook in a browser, with its first cell run."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        try:
            visit = open_notebook(browser, lab, "panels.ipynb", "light", width=1400, height=1600)
            visit.kernel_ready()
            visit.run(ORDER.index("open"))
            yield visit
        finally:
            browser.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    return folder


def shown(seen: Visit, name: str, *, wait: bool = True) -> Any:
    """Run the cell of a panel; its output."""
    seen.run(ORDER.index(name), wait=wait)
    output = seen.page.locator(".jp-Notebook .jp-CodeCell").nth(ORDER.index(name))
    output.scroll_into_view_if_needed()
    return output


def there(seen: Visit, name: str) -> Any:
    """The output of a panel as other tests left it; shown now where they ran in another process."""
    output = seen.page.locator(".jp-Notebook .jp-CodeCell").nth(ORDER.index(name))
    if not output.locator(".wb-panel").count():
        shown(seen, name)
        output.locator(".wb-panel").first.wait_for()
        if name == "run":
            output.get_by_role("tab", name="Curves and log").click()
            output.locator(".wbc-canvas >> visible=true").first.wait_for()
    return output


def keep(seen: Visit, where: Any, pictures: Path, name: str) -> None:
    path = pictures / f"{name}.png"
    output = where.locator(".jp-OutputArea").first
    before = seen.page.viewport_size
    # A panel that is taller than the page would be cut.
    seen.page.set_viewport_size({**before, "height": int(max(before["height"], output.bounding_box()["height"] + 300))})
    output.screenshot(path=str(path))
    seen.page.set_viewport_size(before)
    if folder := os.environ.get("WORKBENCH_PICTURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)


def theme(seen: Visit, name: str) -> None:
    """Change between light and dark, as a person would."""
    page = seen.page
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    label = ".lm-Menu-itemLabel >> text=/^%s$/"
    page.locator(label % "Theme").hover()
    page.locator(label % f"JupyterLab {name}").click()
    page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {name}']", state="attached")


def colours(panel: Any) -> int:
    """How many colours the first picture of an explorer has."""
    return panel.locator(".wbx-tile canvas").first.evaluate(
        """canvas => new Set(new Uint32Array(canvas.getContext('2d')
            .getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"""
    )


def unhurt(seen: Visit, lab: Lab) -> None:
    assert seen.page.evaluate("window.hacked === undefined")
    harmless(seen, lab)


def test_slide_zoom_hover_and_change_the_view(lab: Lab, seen: Visit, pictures: Path):
    panel = shown(seen, "explore")
    panel.locator(".wbx-tile canvas").first.wait_for()
    assert panel.locator(".wbx-tile").count() == 24
    assert colours(panel) > 200
    assert HOSTILE[:30] in panel.locator("figcaption").first.text_content()
    keep(seen, panel, pictures, "explore-light")

    panel.locator("[data-place=count]").select_option("4")
    panel.locator(".wbx-tile").nth(4).wait_for(state="detached")
    slider = panel.locator("input[data-dim=sample]")
    slider.focus()
    seen.page.keyboard.press("ArrowRight")
    panel.locator("figcaption", has_text="photo 4").wait_for()
    assert panel.locator("[data-where=sample]").inner_text() == "4 – 7 of 30"
    assert "sample=slice(4, 8)" in panel.locator("pre", has_text="restored").last.inner_text()

    values = workbench.open(lab.folder / "store", host=Host(found=[]))["latest"]["restored"].values
    canvas = panel.locator(".wbx-tile canvas").first
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * 10.5 / 48, "y": box["height"] * 20.5 / 48})
    told = panel.locator(".wbx-hover").inner_text()
    assert told.startswith("photo 4 · y 20 · x 10: ")
    assert [float(number) for number in told.partition(": ")[2].split(", ")] == pytest.approx(
        values[4, :, 20, 10], rel=1e-3
    )

    before = canvas.evaluate("canvas => canvas.toDataURL()")
    canvas.focus()
    seen.page.keyboard.press("+")
    assert canvas.evaluate("canvas => canvas.toDataURL()") != before, "the keyboard zooms"
    seen.page.keyboard.press("0")
    assert canvas.evaluate("canvas => canvas.toDataURL()") == before, "and shows all again"

    panel.locator("[data-place=overlay]").select_option("error")
    panel.locator("label", has_text="opacity of error").wait_for()
    assert canvas.evaluate("canvas => canvas.toDataURL()") != before
    for kind, selector in (("Curves", ".wbc-canvas"), ("Histogram", ".wbc-canvas"), ("Table", "table.wb-table")):
        panel.get_by_label(kind, exact=True).check(force=True)
        panel.locator(selector).first.wait_for()
    panel.get_by_label("Pictures", exact=True).check(force=True)
    panel.locator(".wbx-tile canvas").first.wait_for()
    with seen.page.expect_download() as saved:
        panel.get_by_role("button", name="Save PNG").click()
    assert Path(saved.value.path()).read_bytes().startswith(b"\x89PNG")
    panel.locator("label", has_text=re.compile("^array")).locator("select").select_option("name")
    panel.locator("td", has_text=HOSTILE[:30]).wait_for()
    panel.locator("label", has_text=re.compile("^array")).locator("select").select_option("restored")
    panel.locator(".wbx-tile canvas").first.wait_for()
    unhurt(seen, lab)


def test_open_a_run_and_walk_through_its_tabs_and_relatives(lab: Lab, seen: Visit, pictures: Path):
    panel = shown(seen, "run")
    panel.get_by_role("tab", name="Found").wait_for()
    assert "↓ lower is better" in panel.inner_text()
    keep(seen, panel, pictures, "run-light")
    for title, selector in {
        "Arrays": ".wbx-tile canvas",
        "Parameters": "mark",
        "Curves and log": ".wbc-canvas",
        "Provenance": ".wb-pairs",
        "Code": ".wbp-code pre",
    }.items():
        panel.get_by_role("tab", name=title).click()
        panel.locator(f"{selector} >> visible=true").first.wait_for()
    panel.get_by_role("tab", name="Notes").click()
    panel.get_by_placeholder("What should a colleague").fill(f"look at {HOSTILE}")
    panel.get_by_role("button", name="Add note").click()
    panel.locator("li", has_text="look at <script>").wait_for()
    panel.get_by_role("button", name="Pin").click()
    panel.locator(".wbr-pinned").wait_for()
    panel.get_by_role("tab", name="Lineage").click()
    panel.locator(".wbl-node", has_text="training.classifier").click()
    panel.locator(".wb-title", has_text="Trains a classifier").wait_for()
    panel.get_by_role("button", name="Back to restoration.demo").click()
    panel.locator(".wb-title", has_text="Restores noisy").wait_for()
    unhurt(seen, lab)


def test_compare_runs(lab: Lab, seen: Visit, pictures: Path):
    panel = shown(seen, "compare")
    panel.locator("td", has_text="2 seeds").first.wait_for()
    assert panel.locator(".wbm-gap.wb-bad", has_text="worse").count() == 2
    keep(seen, panel, pictures, "compare-light")
    panel.get_by_role("button", name="each run").click()
    panel.locator("th", has_text="seed 1").first.wait_for()
    panel.get_by_role("tab", name="Curves").click()
    panel.locator(".wbc-entry").nth(3).wait_for()
    panel.get_by_role("tab", name="Pictures").click()
    panel.locator(".wbx-tile").nth(3).wait_for()
    panel.locator("[data-place=mode]").select_option("difference")
    panel.locator("figcaption", has_text="−").first.wait_for()
    keep(seen, panel, pictures, "compare-difference-light")
    panel.locator("[data-place=mode]").select_option("blink")
    first = panel.locator("figcaption").inner_text()
    seen.page.wait_for_function(OTHER_CAPTION, arg=[ORDER.index("compare"), first])
    panel.locator("[data-place=mode]").select_option("side")
    unhurt(seen, lab)


def test_launch_check_run_cancel_while_the_kernel_answers(lab: Lab, seen: Visit, pictures: Path):
    panel = shown(seen, "launch")
    steps = panel.locator("input[name=steps]")
    steps.fill("-1")
    panel.locator(".wbf-error", has_text="greater than or equal to 1").wait_for()
    assert panel.get_by_role("button", name="Run", exact=True).is_disabled()
    assert steps.get_attribute("aria-invalid") == "true"
    steps.fill("100000")
    panel.locator(".wbf-error:visible").wait_for(state="detached")
    panel.get_by_role("button", name="Run", exact=True).click()
    panel.locator("[role=progressbar]").wait_for()
    panel.locator(".wbc-canvas").wait_for()
    keep(seen, panel, pictures, "launch-light")
    other = shown(seen, "other")
    assert "free: running" in other.inner_text(), "a cell is answered while the run goes on"
    panel.get_by_role("button", name="Cancel").click()
    panel.locator(".wbf-status", has_text="cancelled").wait_for()
    steps.fill("3")
    panel.locator(".wbp-code pre", has_text="steps=3").wait_for(state="attached")
    panel.get_by_role("button", name="Run", exact=True).click()
    panel.locator(".wbf-status", has_text="complete").wait_for()
    panel.locator(".wb-lead", has_text="It took its time.").wait_for()
    assert "how many <b>steps</b>" in panel.inner_text()
    unhurt(seen, lab)


def test_plugins_are_listed_with_their_papers(lab: Lab, seen: Visit, pictures: Path):
    panel = shown(seen, "plugins")
    panel.locator("td", has_text="arXiv:2506.17968").wait_for()
    panel.get_by_text("…", exact=True).first.wait_for(state="hidden")  # every family was read
    keep(seen, panel, pictures, "plugins-light")
    unhurt(seen, lab)


def test_a_large_picture_becomes_finer_by_itself_and_sharp_where_one_zooms_in(seen: Visit, lab: Lab, pictures: Path):
    panel = shown(seen, "large")
    note = panel.locator(".wbx-note", has_text="One pixel in 2 along each side is shown; zoom in to see all.")
    note.wait_for()
    assert colours(panel) > 200
    whole = panel.locator(".wbx-tile canvas").evaluate("canvas => canvas.toDataURL()")
    panel.locator(".wbx-tile canvas").focus()
    for _ in range(3):
        seen.page.keyboard.press("+")
    note.wait_for(state="hidden")
    keep(seen, panel, pictures, "explore-large-light")
    assert "isel(y=slice(" in panel.locator("pre").last.inner_text()
    seen.page.keyboard.press("Escape")
    note.wait_for()
    seen.page.wait_for_function(
        "([at, before]) => document.querySelectorAll('.jp-Notebook .jp-CodeCell')[at]"
        ".querySelector('.wbx-tile canvas').toDataURL() === before",
        arg=[ORDER.index("large"), whole],
    )
    unhurt(seen, lab)


def test_what_is_missing_or_damaged_is_said_in_the_panel(seen: Visit, lab: Lab, pictures: Path):
    panel = shown(seen, "nothing")
    panel.get_by_text("This run stored no arrays").wait_for()
    panel = shown(seen, "broken")
    panel.get_by_role("tab", name="Arrays").click()
    panel.get_by_role("alert").filter(has_text="map").filter(has_text="damaged").wait_for()
    keep(seen, panel, pictures, "run-damaged-light")
    arrays = panel.locator("label", has_text=re.compile("^array")).locator("select")
    arrays.select_option("other")
    panel.locator(".wbx-tile canvas").wait_for()
    assert panel.get_by_role("alert").count() == 0
    arrays.select_option("map")
    panel.get_by_role("alert").wait_for()
    panel.locator(".wbx-tile canvas").wait_for(state="detached")
    unhurt(seen, lab)


def test_all_that_can_be_operated_has_a_name_and_is_reached_in_the_order_of_the_page(seen: Visit, lab: Lab):
    for name in ("explore", "run", "compare", "launch", "plugins", "large"):
        panel = there(seen, name)
        nameless = panel.evaluate(NAMELESS)
        assert nameless == [], name
    twice = """() => [...document.querySelectorAll('.wb-panel [id]')].map(node => node.id)
        .filter((id, at, all) => all.indexOf(id) !== at)"""
    assert seen.page.evaluate(twice) == [], "labels would belong to the fields of another panel"
    for name in ("explore", "large"):
        panel = there(seen, name)
        assert panel.get_by_label("Pictures", exact=True).is_checked(), "two explorers do not share their buttons"
    panel = there(seen, "launch")
    panel.locator("input[name=steps]").focus()
    reached = []
    for _ in range(4):
        seen.page.keyboard.press("Tab")
        reached.append(
            seen.page.evaluate("document.activeElement.textContent.trim() || document.activeElement.tagName")
        )
    assert [text for text in reached if text in ("Seed, device, precision, study", "Run", "As code")] == [
        "Seed, device, precision, study", "Run", "As code",
    ]  # fmt: skip


def unreadable(panel: Any) -> set[tuple[str, ...]]:
    """Texts whose colour is too near to the one behind them, with both."""
    pairs = map(tuple, panel.evaluate(INKS))
    return {(text, ink, page) for ink, page, text in pairs if _contrast(ink, page) < 4.0}


def test_everything_reads_on_dark_pages_too(lab: Lab, seen: Visit, pictures: Path):
    theme(seen, "Dark")
    for name in ("explore", "run", "compare", "launch", "plugins"):
        panel = there(seen, name)
        panel.scroll_into_view_if_needed()
        assert panel.evaluate(INKS)
        assert seen.at_last(partial(unreadable, panel)) == set(), name  # style sheets may come after the theme's name
        keep(seen, panel, pictures, f"{name}-dark")
    figure = there(seen, "run").locator(".js-plotly-plot").first
    dark = ["rgba(0, 0, 0, 0)", "rgb(223, 227, 234)", "rgb(74, 168, 224)"]
    light = ["rgb(254, 254, 254)", "rgb(31, 36, 48)", "rgb(0, 114, 178)"]

    def unlike(wanted: list[str]) -> list[str]:
        found = figure.evaluate(FIGURE_LOOKS)
        return [] if found == wanted else found

    assert seen.at_last(partial(unlike, dark)) == []
    theme(seen, "Light")
    assert seen.at_last(partial(unlike, light)) == []
    unhurt(seen, lab)
