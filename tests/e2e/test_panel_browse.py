"""The table of runs in a real JupyterLab: searched, sorted, scrolled, shared, by mouse and by keyboard, and attacked.

One notebook in one page, a cell for each test. Pictures, light and dark, go to the folder of the test run (and to
$WORKBENCH_PICTURES, if that is set) for people to look at.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import workbench
from workbench.host import Host
from workbench.store import Store

from benchmarks.generated_store import generate
from e2e.lab_tools import CHROMIUM, PATIENCE, THEMES, Lab, Visit, harmless, open_notebook
from unit.panel_cases import HOSTILE, put_run
from unit.store_cases import record

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]

RUNS = 400
MARKUP = HOSTILE.replace("\u202e", "").replace("\u202c", "")
"""As much of it as a store takes for the name of a method."""
CELLS = {
    "open": "import workbench\nbench = workbench.open('browse-store')",
    "search": "bench.browse()",
    "keys": "panel = bench.browse('family = quantization')\npanel",
    "told": "print(len(panel.selected), panel.where)",
    "compare": "bench.browse('user = zoe')",
    "views": "bench.browse(columns=['method', 'accuracy'])",
    "hostile": "bench.browse('params.note ~ script')",
    "live": "bench.browse()",
    "busy": "import time\nbench.browse()",
    "sleep": "time.sleep(600)",
    "empty": "workbench.open('no-store-here').browse()",
    "bad": "bench.browse('accuracy >')",
}
ORDER = list(CELLS)


@pytest.fixture(scope="module")
def folder(lab: Lab) -> Path:
    """A store of generated runs, with two real ones to compare and a third person's hostile texts."""
    folder = lab.folder / "browse-store"
    generate(folder, RUNS)
    bench = workbench.open(folder, host=Host(found=[]))
    for seed in range(2):
        put_run(bench, {"value": (("x",), [1.0, 2.0])}, metrics={"psnr": 30.0 + seed}, user="zoe", seed=seed)
    hostile = put_run(
        bench, {}, metrics={"accuracy": 0.5}, user="mallory<b>", method=f"{MARKUP}.x", params={"note": HOSTILE},
        host='"><svg onload=window.hacked=3>', device="javascript:window.hacked=4", study=None,
    )  # fmt: skip
    hostile.annotations.tag("<i onmouseover=window.hacked=5>")
    return folder


@pytest.fixture(scope="module")
def seen(lab: Lab, browser: Any, folder: Path) -> Iterator[Visit]:
    """The notebook in a page, with its first cell run."""
    lab.write("browse.ipynb", *CELLS.values())
    visit = open_notebook(browser, lab, "browse.ipynb", "light", width=1500, height=1100)
    visit.kernel_ready()
    visit.run(ORDER.index("open"))
    visit.page.set_default_timeout(PATIENCE)
    yield visit
    visit.page.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browse")


def table(seen: Visit, name: str, *, rows: bool = True) -> Any:
    """Run the cell of a table; its output, with rows in it."""
    seen.run(ORDER.index(name))
    cell = seen.page.locator(".jp-Notebook .jp-CodeCell").nth(ORDER.index(name))
    cell.scroll_into_view_if_needed()
    if rows:
        cell.locator(".wbb-row .wbb-cell").first.wait_for()
    return cell


def keep(where: Any, pictures: Path, name: str) -> None:
    path = pictures / f"{name}.png"
    where.locator(".jp-OutputArea").first.screenshot(path=str(path))
    if place := os.environ.get("WORKBENCH_PICTURES"):
        Path(place).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


def settle(cell: Any, text: str) -> None:
    """Wait until the line below the table begins with this."""
    from playwright.sync_api import expect

    expect(cell.locator(".wbb-foot > :first-child")).to_have_text(re.compile(f"^{text}"), timeout=PATIENCE)


def column(cell: Any, name: str) -> list[str]:
    """The texts of a column, from the top of what is in the page."""
    return cell.evaluate(
        """(cell, name) => {
            const names = [...cell.querySelectorAll('.wbb-name')].map(node => node.dataset.column), at = names.indexOf(name);
            const rows = [...cell.querySelectorAll('.wbb-row')].sort((a, b) => a.dataset.index - b.dataset.index);
            return rows.map(row => row.children[at + 1].textContent);
        }""",
        name,
    )


def sort(cell: Any, name: str, direction: str) -> None:
    cell.locator(f".wbb-name[data-column={name}]").click()
    cell.locator(f"[aria-sort={direction}] [data-column={name}]").wait_for()


def test_search_complete_sort_scroll_and_open(lab: Lab, seen: Visit):
    cell = table(seen, "search")
    settle(cell, f"{RUNS + 3} runs")
    box = cell.locator(".wbb-search input")

    box.press_sequentially("accu")
    cell.locator(".wbb-option", has_text="accuracy").first.wait_for()
    box.press("ArrowDown")
    box.press("Enter")
    assert box.input_value() == "accuracy "
    box.press_sequentially(">> 0.9")
    cell.locator(".wb-error:not([hidden])").filter(has_text="Not understood from “> 0.9”").wait_for()
    assert column(cell, "status"), "the rows stay while a query is wrong"

    box.fill("acuracy > 0.9")
    box.press("Enter")
    cell.get_by_text("Did you mean accuracy?").wait_for()
    cell.get_by_role("button", name="Show all runs").click()
    settle(cell, f"{RUNS + 3} runs")

    box.fill("accuracy > 0.5 and user = ada")
    box.press("Enter")
    expected = workbench.open(lab.folder / "browse-store").store.count("accuracy > 0.5 and user = ada")
    settle(cell, f"{expected} runs")
    assert set(column(cell, "user")) == {"ada"}

    sort(cell, "accuracy", "descending")
    values = [float(text) for text in column(cell, "accuracy")]
    assert values == sorted(values, reverse=True)
    sort(cell, "accuracy", "ascending")
    values = [float(text) for text in column(cell, "accuracy")]
    assert values == sorted(values)
    assert min(values) > 0.5

    cell.get_by_role("button", name="Clear filters").click()
    settle(cell, f"{RUNS + 3} runs")
    grid = cell.locator(".wbb-grid")
    grid.evaluate("grid => { grid.scrollTop = grid.scrollHeight; }")
    last = cell.locator(f".wbb-row[data-index='{RUNS + 2}'][data-run]")
    last.wait_for()
    assert cell.locator(".wbb-row").count() < 60, "only rows on view are in the page"
    assert grid.get_attribute("aria-rowcount") == str(RUNS + 4)

    cell.locator(".wbb-value", has_text="quantization.hawq").locator("input").check()
    filtered = workbench.open(lab.folder / "browse-store").store.count("method = quantization.hawq")
    settle(cell, f"{filtered} runs")
    assert set(column(cell, "method")) == {"quantization.hawq"}

    row = cell.locator(".wbb-row[data-run]").nth(1)
    run = row.get_attribute("data-run")
    row.locator(".wbb-cell").nth(2).click()
    cell.get_by_text(run).first.wait_for()
    cell.get_by_role("tab", name="Parameters").wait_for()
    cell.get_by_role("button", name="Close").click()
    cell.get_by_role("tab", name="Parameters").wait_for(state="detached")
    harmless(seen, lab)


def test_everything_by_keyboard_and_no_key_reaches_the_notebook(lab: Lab, seen: Visit):
    cell = table(seen, "keys")
    cells = seen.page.locator(".jp-Notebook .jp-CodeCell").count()
    box = cell.locator(".wbb-search input")
    assert box.input_value() == "family = quantization"
    grid = cell.locator(".wbb-grid")
    grid.focus()
    grid.press("ArrowDown")
    grid.press("ArrowDown")
    active = grid.get_attribute("aria-activedescendant")
    assert active.endswith("-row-2")
    grid.press(" ")
    cell.locator(f"#{active}[aria-selected=true]").wait_for()
    grid.press("Shift+ArrowDown")
    grid.press("Shift+ArrowDown")
    settle(cell, r"\d+ runs, 3 selected")
    for key in ("d", "d", "x", "a", "End"):
        grid.press(key)
    cell.locator(f".wbb-row[data-index='{int(grid.get_attribute('aria-rowcount')) - 2}'].wbb-active").wait_for()
    assert seen.page.locator(".jp-Notebook .jp-CodeCell").count() == cells
    grid.press("Home")
    grid.press("Enter")
    cell.get_by_role("tab", name="Parameters").wait_for()
    for _ in range(20):  # what is selected reaches the kernel by another way than what it is to compute, maybe later
        told = table(seen, "told", rows=False).locator(".jp-OutputArea-output").inner_text().strip()
        if told == "3 family = quantization":
            break
    assert told == "3 family = quantization"
    grid.press("Escape")  # the three selected rows first, then what is open
    settle(cell, r"\d+ runs")
    cell.get_by_role("tab", name="Parameters").wait_for()
    grid.press("Escape")
    cell.get_by_role("tab", name="Parameters").wait_for(state="detached")

    # Tab goes on from the search box through the buttons and the filters to the table.
    cell.scroll_into_view_if_needed()
    box.focus()
    visited = []
    for _ in range(60):
        seen.page.keyboard.press("Tab")
        visited.append(seen.page.evaluate("document.activeElement.className + ' ' + document.activeElement.type"))
        if "wbb-grid" in visited[-1]:
            break
    assert "wbb-grid" in visited[-1]
    assert any("checkbox" in name for name in visited)
    seen.page.keyboard.press("Tab")
    for _ in range(3):
        seen.page.keyboard.press("ArrowRight")
    seen.page.keyboard.press("Enter")
    name = cell.locator("[aria-sort]:not([aria-sort=none]) .wbb-name")
    name.and_(cell.locator(f"[data-column={cell.locator('.wbb-name').nth(3).get_attribute('data-column')}]")).wait_for()
    seen.page.keyboard.press("ArrowDown")
    assert "wbb-grid" in seen.page.evaluate("document.activeElement.className")


def test_select_two_and_compare(lab: Lab, seen: Visit):
    cell = table(seen, "compare")
    settle(cell, "2 runs")
    button = cell.get_by_role("button", name="Compare")
    assert button.is_disabled()
    for index in range(2):
        cell.locator(f".wbb-row[data-index='{index}'] .wbb-check input").click()
    settle(cell, "2 runs, 2 selected")
    button.click()
    cell.get_by_text("psnr").nth(1).wait_for()
    cell.get_by_role("button", name="Close").wait_for()
    harmless(seen, lab)


def test_a_saved_view_is_opened_by_a_colleague(lab: Lab, seen: Visit, browser: Any):
    cell = table(seen, "views")
    assert cell.locator(".wbb-name").all_inner_texts()[0].startswith("method")
    cell.get_by_role("button", name="Columns", exact=True).click()
    chooser = cell.get_by_role("dialog", name="Columns")
    chooser.get_by_label("Find a column").fill("params.bits")
    chooser.locator(".wbb-pick", has_text="params.bits").locator("input").check()
    cell.locator(".wbb-name[data-column='params.bits']").wait_for()
    chooser.get_by_label("Find a column").press("Escape")
    box = cell.locator(".wbb-search input")
    box.fill("accuracy > 0.3")
    box.press("Enter")
    cell.locator(".wbb-value", has_text="detection").locator("input").first.check()
    cell.locator(".wbb-row[data-run]").first.wait_for()
    sort(cell, "accuracy", "descending")
    total = cell.locator(".wbb-foot > :first-child").inner_text()
    best = column(cell, "accuracy")[:5]

    cell.get_by_role("button", name="Views", exact=True).click()
    views = cell.get_by_role("dialog", name="Views")
    views.get_by_text("No saved views yet").wait_for()
    views.get_by_label("Name of this view").fill("best detectors")
    views.get_by_label("Name of this view").press("Enter")
    views.locator(".wbb-view", has_text="best detectors").wait_for()
    views.get_by_label("Name of this view").press("Escape")

    lab.write(
        "colleague.ipynb",
        "import os\nos.environ['WORKBENCH_USER'] = 'bob'\nimport workbench\nbench = workbench.open('browse-store')\n"
        "bench.browse(view='best detectors')",
    )
    other = open_notebook(browser, lab, "colleague.ipynb", "dark")
    other.kernel_ready()
    other.run(0)
    theirs = other.page.locator(".jp-Notebook .jp-CodeCell").first
    theirs.locator(".wbb-row .wbb-cell").first.wait_for()
    settle(theirs, re.escape(total))
    assert [text.split("\n")[0] for text in theirs.locator(".wbb-name").all_inner_texts()] == [
        "method", "accuracy", "params.bits",
    ]  # fmt: skip
    assert column(theirs, "accuracy")[:5] == best
    theirs.locator(".wbb-value input:checked").wait_for()
    harmless(other, lab)
    other.page.close()


def test_columns_are_as_wide_as_one_likes(seen: Visit):
    cell = table(seen, "views")
    cell.locator(".wbb-facet").first.wait_for()  # nothing moves any more
    name = cell.locator(".wbb-name[data-column=method]")
    head = cell.locator("[role=columnheader]", has=seen.page.locator("[data-column=method]"))
    before = head.bounding_box()
    edge = head.locator(".wbb-edge").bounding_box()
    seen.page.mouse.move(edge["x"] + 4, edge["y"] + 10)
    seen.page.mouse.down()
    seen.page.mouse.move(edge["x"] - 56, edge["y"] + 10, steps=3)
    seen.page.mouse.up()
    dragged = head.bounding_box()
    assert dragged["width"] == pytest.approx(before["width"] - 60, abs=2)
    rows = cell.locator(".wbb-row[data-run] .wbb-cell").nth(1).bounding_box()
    assert rows["width"] == pytest.approx(dragged["width"], abs=1), "the rows follow"
    name.focus()
    seen.page.keyboard.press("Alt+ArrowRight")
    seen.page.keyboard.press("Alt+ArrowRight")
    assert head.bounding_box()["width"] == pytest.approx(dragged["width"] + 32, abs=2)
    sort(cell, "method", "ascending")
    assert head.bounding_box()["width"] == pytest.approx(dragged["width"] + 32, abs=2), "another order keeps it"
    head.locator(".wbb-edge").dblclick()
    assert head.bounding_box()["width"] == pytest.approx(before["width"], abs=2)


def test_hostile_text_is_shown_as_text(lab: Lab, seen: Visit):
    cell = table(seen, "hostile")
    settle(cell, "1 run$")
    cell.locator(".wbb-facet").first.wait_for()
    assert MARKUP[:40] in column(cell, "method")[0]
    assert cell.locator(".wbb-tag").inner_text() == "<i onmouseover=window.hacked=5>"
    cell.locator(".wbb-tag").hover()
    assert cell.locator(".wbb :is(script, img, svg, i, b, a)").count() == 0
    widest = cell.locator(".wbb-row").first.evaluate(
        "row => Math.max(...[...row.children].map(cell => cell.offsetWidth))"
    )
    assert widest < 600, "a giant string makes no giant column"

    cell.get_by_role("button", name="Columns", exact=True).click()
    chooser = cell.get_by_role("dialog", name="Columns")
    for name in ("host", "device", "params.note"):
        chooser.get_by_label("Find a column").fill(name)
        chooser.locator(".wbb-pick", has_text=name).first.locator("input").check()
        cell.locator(f".wbb-name[data-column='{name}']").wait_for()
    chooser.get_by_label("Find a column").press("Escape")
    assert "javascript:window.hacked=4" in column(cell, "device")[0]
    assert HOSTILE[:40] in column(cell, "params.note")[0]
    assert "\u202e" not in cell.locator(".wbb").inner_text(), "nothing turns the direction of what stands beside it"
    box = cell.locator(".wbb-search input")
    box.fill("user = mal")
    cell.locator(".wbb-option", has_text="mallory<b>").wait_for()
    box.press("Escape")
    box.fill("params.note ~ script")
    box.press("Enter")
    cell.locator(".wbb-row[data-run] .wbb-cell").nth(1).click()
    cell.get_by_role("tab", name="Parameters").wait_for()
    assert seen.page.evaluate("window.hacked === undefined")
    harmless(seen, lab)


def test_runs_of_others_appear_move_on_and_end_by_themselves(lab: Lab, seen: Visit, folder: Path):
    cell = table(seen, "live")
    before = cell.locator(".wbb-foot > :first-child").inner_text()
    store = Store(folder, index_folder=folder.with_name("their-index"))
    begun = replace(
        record(method="sample.live", user="kim"), progress={"done": 3, "total": 10, "message": "third of ten"}
    )
    writer = store.begin(begun)
    row = cell.locator(f".wbb-row[data-run='{begun.id}']")
    row.wait_for()
    assert row.locator(".wbb-state").inner_text().strip() == "running"
    assert row.get_by_role("img", name="30 %").count() == 1
    assert cell.locator(".wbb-foot > :first-child").inner_text() != before
    writer.complete()
    row.locator(".wb-complete").wait_for()
    store.remove_folder(f"runs/{begun.month}/{begun.id}", begun.id)
    row.wait_for(state="detached")
    harmless(seen, lab)


def test_the_table_answers_while_a_cell_computes(lab: Lab, seen: Visit):
    cell = table(seen, "busy")
    cell.locator(".wbb-facet").first.wait_for()
    seen.run(ORDER.index("sleep"), wait=False)
    cell.scroll_into_view_if_needed()
    cell.locator(".wbb-grid").evaluate("grid => { grid.scrollTop = grid.scrollHeight; }")
    cell.locator(f".wbb-row[data-index='{RUNS}'][data-run]").wait_for()
    prompt = seen.page.locator(".jp-Notebook .jp-CodeCell").nth(ORDER.index("sleep")).locator(".jp-InputPrompt")
    assert prompt.inner_text() == "[*]:", "the rows came while the kernel was busy"
    seen.page.keyboard.press("Escape")
    seen.page.get_by_role("menuitem", name="Kernel", exact=True).click()
    seen.page.get_by_role("menuitem", name="Interrupt Kernel").click()
    prompt.filter(has_text=re.compile(r"\d")).wait_for()


def test_an_empty_store_says_what_to_do_and_a_bad_query_is_refused_at_once(lab: Lab, seen: Visit):
    cell = table(seen, "empty", rows=False)
    cell.get_by_text("No runs yet").wait_for()
    assert "bench.run(" in cell.locator(".wb-empty").inner_text()
    cell = table(seen, "bad", rows=False)
    assert "InputError" in cell.locator(".jp-OutputArea").inner_text()


@pytest.mark.parametrize("theme", THEMES)
def test_text_stands_out_from_what_is_behind_it(lab: Lab, visit, folder: Path, pictures: Path, theme: str):
    lab.write(f"browse-{theme}.ipynb", "import workbench\nworkbench.open('browse-store').browse('accuracy > 0.2')")
    shown = visit(f"browse-{theme}.ipynb", theme, height=760)
    shown.kernel_ready()
    shown.run(0)
    cell = shown.page.locator(".jp-Notebook .jp-CodeCell").first
    cell.locator(".wbb-facet").first.wait_for()
    for index in (1, 3):
        cell.locator(f".wbb-row[data-index='{index}'] .wbb-check input").check()
    faint = cell.locator(".wbb").evaluate(
        """root => {
            const numbers = colour => (colour.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
            const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => a * top[i] + (1 - a) * below[i]); };
            const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
            const behind = node => {
                const layers = [];
                for (let at = node; at; at = at.parentElement) layers.push(numbers(getComputedStyle(at).backgroundColor));
                return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
            };
            const parts = '.wbb-cell, .wbb-name, .wb-text, .wb-number, .wbb-foot span, .wb-button, legend';
            const texts = [...root.querySelectorAll(parts)];
            return texts.filter(node => node.textContent && node.getClientRects().length && !node.disabled).map(node => {
                const ground = behind(node), ink = over(numbers(getComputedStyle(node).color), ground);
                const [high, low] = [light(ink), light(ground)].sort((a, b) => b - a);
                return [(high + 0.05) / (low + 0.05), node.className, node.textContent.slice(0, 20)];
            }).filter(([contrast]) => contrast < 4.5);
        }"""
    )
    assert faint == []
    keep(cell, pictures, f"browse-{theme}")
