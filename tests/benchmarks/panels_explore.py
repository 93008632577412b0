"""Sliding through an array of 100 GiB in JupyterLab: how long a step takes, and how much is read for it.

    python tests/benchmarks/panels_explore.py [--gibibytes 100] [--steps 40]

Headless chromium looks at a real JupyterLab. A step is timed in the page, from the slider's event until the picture in
the canvas changed. The peer is an echo in the same page: a message to the kernel and an answer with as many bytes as a
picture has, without reading anything; the ratio says what the store, the scale and the drawing add to that.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from large_array import SIDE, large_run

from e2e.lab_tools import CHROMIUM, FLAGS, Lab, open_notebook, running_lab

SETUP = """
import workbench, anywidget
class Echo(anywidget.AnyWidget):
    _esm = '''export default { render({ model, el }) { window.echo = () => new Promise((done) => {
        const hear = () => { model.off("msg:custom", hear); done(); }; model.on("msg:custom", hear); model.send({}); }); } };'''
    def __init__(self):
        super().__init__()
        self.on_msg(lambda widget, message, buffers: widget.send({}, [bytes(%d)]))
bench = workbench.open(%r)
Echo()
"""
STEPS = """async ([kind, steps, most]) => {
  const slider = document.querySelector('input[data-dim=sample]'), reads = [], times = [];
  const hash = () => document.querySelector('.wbx-tile canvas').getContext('2d').getImageData(3, 3, 8, 8).data.join();
  for (let step = 0; step < steps; step++) {
    await new Promise(done => setTimeout(done, 120));
    const before = kind === 'echo' ? '' : hash(), begin = performance.now();
    if (kind === 'echo') { await echo(); times.push(performance.now() - begin); continue; }
    slider.value = kind === 'jump' ? (step * 7919 + 13) % most : Number(slider.value) + 1;
    slider.dispatchEvent(new Event('input'));
    while (hash() === before) {
      if (performance.now() - begin > 20000) throw Error('nothing changed');
      await new Promise(requestAnimationFrame);
    }
    times.push(performance.now() - begin);
    reads.push(document.querySelector('.wbx-read').textContent);
  }
  return [times, reads];
}"""


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of them lies."""
    return sorted(values)[min(len(values) - 1, round(share * (len(values) - 1)))]


def measure(browser: Any, lab: Lab, store: Path, pictures: int, steps: int) -> None:
    """Measure and print."""
    item = SIDE * SIDE * 4
    lab.write(
        "bench.ipynb",
        SETUP % (item, str(store)),
        "panel = bench['latest'].explore('spectrum'); panel",
        "print(panel.bytes_read)",
    )
    seen = open_notebook(browser, lab, "bench.ipynb", "light")
    seen.kernel_ready()
    for cell in (0, 1):
        seen.run(cell)
    page = seen.page
    page.wait_for_selector(".wbx-tile canvas")

    def read() -> int:
        seen.run(2)
        return int(page.locator(".jp-Notebook .jp-CodeCell").nth(2).locator(".jp-OutputArea-output").last.inner_text())

    print(f"{'':26}{'median ms':>10}{'95 %':>8}{'max':>8}{'ratio':>8}{'read / shown':>14}")
    echo, _ = page.evaluate(STEPS, ["echo", steps, 0])
    _line("echo", echo, echo, None)
    for name, count in (("a page of four pictures", 4), ("one picture", 1)):
        page.locator("[data-place=count]").select_option(str(count))
        page.wait_for_function(f"document.querySelectorAll('.wbx-tile').length === {count}")
        most = pictures // count - 1
        before = read()
        times, _ = page.evaluate(STEPS, ["jump", steps, most])
        _line(name, times, echo, (read() - before) / (steps * count * item))
    assert seen.problems == [], seen.problems


def _line(name: str, times: list[float], echo: list[float], share: float | None) -> None:
    middle = statistics.median(times)
    numbers = "".join(f"{value:8.0f}" for value in (quantile(times, 0.95), max(times)))
    ratio = f"{middle / statistics.median(echo):8.1f}"
    print(f"{name:26}{middle:10.0f}{numbers}{ratio}" + ("" if share is None else f"{share:14.2f}"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gibibytes", type=float, default=100.0)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as started:
        store = Path(place) / "store"
        _, _, pictures = large_run(store, arguments.gibibytes)
        on_disk = sum({p.stat().st_ino: p.stat().st_size for p in store.rglob("*") if p.is_file()}.values())
        print(
            f"{pictures * SIDE * SIDE * 4 / 2**30:.1f} GiB in {pictures:,} pictures, {on_disk / 2**20:.0f} MiB on disk\n"
        )
        home = Path(place) / "lab"
        home.mkdir()
        with running_lab(home) as lab:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            try:
                measure(browser, lab, store, pictures, arguments.steps)
            finally:
                browser.close()


if __name__ == "__main__":
    main()
