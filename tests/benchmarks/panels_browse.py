"""The table of runs in JupyterLab: first rows, a step of scrolling, a step of sorting, a search, memory of the kernel.

    python tests/benchmarks/panels_browse.py [--runs 100000] [--steps 40] [--store FOLDER]

Headless chromium looks at a real JupyterLab with a generated store. Times are those of the page, from the event until the
new rows are in the document. The peer is the same server's echo: a message to the kernel and back without any question in
between, in the same page, turn by turn; the ratio says what the table adds to what JupyterLab costs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from generated_store import generate

from e2e.lab_tools import CHROMIUM, FLAGS, Lab, Visit, open_notebook, running_lab

SETUP = """
import psutil, workbench, anywidget, traitlets
class Echo(anywidget.AnyWidget):
    _esm = '''export default { render({ model, el }) { window.echo = () => new Promise((done) => {
        const hear = () => { model.off("msg:custom", hear); done(); }; model.on("msg:custom", hear); model.send({}); }); } };'''
    def __init__(self):
        super().__init__()
        self.on_msg(lambda widget, message, buffers: widget.send({}))
bench = workbench.open(%r)
bench.store.count()  # the index is there, as it is on every day but the first
import workbench.panels.browse, numpy, ipywidgets
memory = lambda: psutil.Process().memory_info().rss / 2**20
Echo()
"""
STEPS = """async ([kind, steps]) => {
  const grid = document.querySelector('.wbb-grid'), out = [], frame = () => new Promise(requestAnimationFrame);
  const settled = async (ready) => {
    const end = performance.now() + 20000;
    while (!ready()) { if (performance.now() > end) throw Error(kind); await frame(); }
  };
  const rows = () => [...document.querySelectorAll('.wbb-row')];
  const onView = () => {
    const box = grid.getBoundingClientRect();
    return rows().filter(row => {
      const at = row.getBoundingClientRect();
      return at.bottom > box.top + 40 && at.top < box.bottom;
    });
  };
  const whole = () => { const seen = onView(); return seen.length > 5 && seen.every(row => row.ariaBusy !== 'true'); };
  const names = ['accuracy', 'method', 'started', 'user', 'seconds', 'status'];
  for (let step = 0; step < steps; step++) {
    await settled(whole);
    await new Promise(done => setTimeout(done, 150));
    const begin = performance.now();
    if (kind === 'echo') await echo();
    else if (kind === 'scroll') {
      grid.scrollTop = ((step * 37 + 11) % 97) / 97 * (grid.scrollHeight - grid.clientHeight);
      await frame(); await frame(); await settled(whole);
    } else if (kind === 'wheel') {
      grid.scrollTop += 300; await frame(); await frame(); await settled(whole);
    } else if (kind === 'sort') {
      const old = rows()[0]; document.querySelector(`.wbb-name[data-column="${names[step % names.length]}"]`).click();
      await settled(() => !old.isConnected && whole());
    }
    out.push(performance.now() - begin);
  }
  return out;
}"""


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of them lies."""
    return sorted(values)[min(len(values) - 1, round(share * (len(values) - 1)))]


def first_rows(seen: Visit, cell: int) -> float:
    """Seconds from the start of the cell until rows are in the page."""
    seen.page.locator(".jp-Notebook .jp-CodeCell .jp-InputArea-editor").nth(cell).click()
    started = time.perf_counter()
    seen.page.keyboard.press("Control+Enter")
    seen.page.wait_for_function("document.querySelectorAll('.wbb-row .wbb-state').length > 5")
    return time.perf_counter() - started


def memory(seen: Visit, cell: int) -> float:
    """MiB that the kernel holds, as the cell prints it."""
    seen.run(cell)
    return float(
        seen.page.locator(".jp-Notebook .jp-CodeCell").nth(cell).locator(".jp-OutputArea-output").last.inner_text()
    )


def measure(browser: Any, lab: Lab, store: Path, steps: int) -> None:
    """Measure and print."""
    lab.write("bench.ipynb", SETUP % str(store), "print(memory())", "bench.browse()", "print(memory())")
    seen = open_notebook(browser, lab, "bench.ipynb", "light")
    seen.kernel_ready()
    seen.run(0)
    before = memory(seen, 1)
    print(f"first rows: {first_rows(seen, 2):.2f} s")
    seen.page.wait_for_selector(".wbb-facet")
    total = seen.page.locator(".wbb-foot").inner_text().splitlines()[0]
    echo = seen.page.evaluate(STEPS, ["echo", steps])
    print(f"\n{total}; milliseconds\n{'':22}{'median':>9}{'95 %':>9}{'max':>9}{'ratio':>8}")
    for kind in ("echo", "scroll", "wheel", "sort"):
        taken = echo if kind == "echo" else seen.page.evaluate(STEPS, [kind, steps])
        ratio = statistics.median(taken) / statistics.median(echo)
        line = "".join(f"{value:9.0f}" for value in (statistics.median(taken), quantile(taken, 0.95), max(taken)))
        print(f"{kind:22}{line}{ratio:8.1f}")
    found = []
    for text in ("accuracy > 0.9 and user = ada", "family = quantization", "params.bits = 4 and not user = bob"):
        version = seen.page.locator(".wbb-foot > :first-child").inner_text()
        started = time.perf_counter()
        seen.page.fill(".wbb-search input", text)
        seen.page.keyboard.press("Enter")
        seen.page.wait_for_function(
            "old => document.querySelector('.wbb-foot > :first-child').textContent !== old", arg=version
        )
        found.append(1e3 * (time.perf_counter() - started))
    print(f"{'search':22}{statistics.median(found):9.0f}{'':9}{max(found):9.0f}")
    print(f"\nkernel memory: {memory(seen, 3) - before:.0f} MiB more than before the table")
    assert seen.problems == [], seen.problems


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--store", type=Path, help="a store generated before")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as started:
        store = arguments.store or Path(place) / "store"
        if not (store / "workbench.json").exists():
            generate(store, arguments.runs)
        home = Path(place) / "lab"
        home.mkdir()
        cache = store.with_name(f"{store.name}-cache")
        with running_lab(home, WORKBENCH_CACHE=str(cache)) as lab:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            try:
                measure(browser, lab, store, arguments.steps)
            finally:
                browser.close()


if __name__ == "__main__":
    main()
