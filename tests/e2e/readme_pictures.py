"""The pictures of the panels in the README: `python tests/e2e/readme_pictures.py` makes them anew.

A generated store of 3,000 runs for the table; photographs that a method really restored for the explorer.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.generated_store import generate
from e2e.lab_tools import CHROMIUM, FLAGS, running_lab

IMAGES = Path(__file__).parents[2] / "notebooks" / "images"
SHARP = 1.5
"""Pixels of a picture per pixel of the page."""

TABLE = (
    "import workbench\nbench = workbench.open('runs')",
    "bench.browse('accuracy > 0.5 and not user = mo', sort='accuracy',"
    " columns=['status', 'method', 'started', 'user', 'study', 'accuracy', 'params.bits', 'seconds'])",
)
EXPLORER = (
    """
import numpy as np
import workbench
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import denoise_tv_chambolle

class TotalVariation(workbench.Method):
    id, title, version = "restoration.total_variation", "Removes noise and keeps edges (total variation)", "1"
    inputs = {"data": workbench.DataRole("photographs", variables={"image": ("sample", "channel", "y", "x")})}
    outputs = (
        workbench.Output("restored", ("sample", "channel", "y", "x"), "float32", "after total variation"),
        workbench.Output("error", ("sample", "y", "x"), "float32", "absolute error, mean over channels"),
        workbench.Output("psnr", ("sample",), "float32", "of the restored photograph", unit="dB"),
    )
    class Params(workbench.Params):
        noise: float = 0.12
        weight: float = 0.12
    def run(self, inputs, params, out):
        clean = np.asarray(inputs["data"]["image"].values, np.float32)
        clean = clean / 255 if clean.max() > 1 else clean
        noisy = clean + params.noise * np.random.default_rng(0).standard_normal(clean.shape, np.float32)
        restored = np.stack([denoise_tv_chambolle(p, weight=params.weight, channel_axis=0) for p in noisy]).clip(0, 1)
        out.write("restored", restored.astype(np.float32))
        out.write("error", np.abs(restored - clean).mean(1).astype(np.float32))
        out.write("psnr", np.array([peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(clean, restored)], np.float32))
    def report(self, result):
        value = float(result["psnr"].mean())
        return workbench.Report(summary="Noise removed.", metrics=[workbench.Metric(name="psnr", value=value, unit="dB")])

bench = workbench.open("photographs")
bench.register(TotalVariation)
run = bench.run("restoration.total_variation", data="photos(size=192)")""",
    "run.explore('restored')",
)


def main() -> None:
    """Make both pictures."""
    from playwright.sync_api import sync_playwright

    with (
        tempfile.TemporaryDirectory() as home,
        running_lab(Path(home)) as lab,
        sync_playwright() as playwright,
    ):
        generate(lab.folder / "runs", 3_000)
        lab.write("table.ipynb", *TABLE)
        lab.write("explorer.ipynb", *EXPLORER)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        cell = _shown(browser, lab, "table.ipynb")
        cell.locator(".wbb-facet").first.wait_for()
        for index in (0, 2, 3):
            cell.locator(f".wbb-row[data-index='{index}'] .wbb-check input").check()
        _keep(cell, "browse")
        cell = _shown(browser, lab, "explorer.ipynb")
        cell.locator(".wbx-tile canvas").first.wait_for()
        for place, value in (("count", "8"), ("captions", "psnr"), ("overlay", "error")):
            cell.locator(f"[data-place={place}]").select_option(value)
            cell.page.wait_for_timeout(800)
        canvas = cell.locator(".wbx-tile canvas").nth(2)
        canvas.hover(position={"x": 70, "y": 60})
        _keep(cell, "explore")
        browser.close()


def _shown(browser: Any, lab: Any, name: str) -> Any:
    """The output of a notebook's second cell."""
    from e2e.lab_tools import PATIENCE, THEMES, Visit

    lab.choose("light")
    page = browser.new_page(viewport={"width": 1560, "height": 1250}, color_scheme="light", device_scale_factor=SHARP)
    page.set_default_timeout(PATIENCE)
    page.goto(f"{lab.address}lab/tree/{name}?token={lab.token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_selector(f"body[data-jp-theme-name='{THEMES['light']}']", state="attached")
    seen = Visit(page)
    seen.kernel_ready()
    page.keyboard.press("Control+b")  # folds the side bar away
    for cell in (0, 1):
        seen.run(cell)
    return page.locator(".jp-Notebook .jp-CodeCell").nth(1)


def _keep(cell: Any, name: str) -> None:
    cell.page.wait_for_timeout(700)
    cell.locator(".wb-panel").first.screenshot(path=str(IMAGES / f"{name}.png"))


if __name__ == "__main__":
    main()
