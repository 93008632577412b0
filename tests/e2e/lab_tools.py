"""A JupyterLab of its own, on the loopback interface and with nothing of the user's settings, and a browser to look at it.

Used by the browser tests (fixtures in `conftest.py`) and by the benchmarks of the panels.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nbformat

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
PATIENCE = 300_000
"""Milliseconds to wait for what takes seconds on an idle machine."""
DROPPED = 10_000
"""Milliseconds after which a key or click that has shown no effect is taken to be lost."""
TOKEN = "tour"


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

    def write(self, name: str, *cells: str) -> None:
        """A notebook with these cells of code."""
        document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        document.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        nbformat.write(document, self.folder / name)


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

    def run(self, cell: int, *, wait: bool = True) -> None:
        """Run one cell (counted from 0) and, unless not wished, wait until the kernel has done it."""
        from playwright.sync_api import TimeoutError

        text = (
            "document.querySelectorAll('.jp-Notebook .jp-CodeCell')[cell].querySelector('.jp-InputPrompt').textContent"
        )
        before = self.page.evaluate(f"cell => {text}", cell)
        prompt = f"([cell, before, pattern]) => {text} !== before && RegExp(pattern).test({text})"
        # A kernel that says it is idle may still drop what is sent while the page connects to it, and the question which
        # kernel to take may come late.
        for _ in range(20):
            self._answer_question()
            with contextlib.suppress(TimeoutError):
                editor = self.page.locator(".jp-Notebook .jp-CodeCell .jp-InputArea-editor").nth(cell)
                editor.click(timeout=DROPPED)
                self.page.keyboard.press("Control+Enter")
                self.page.wait_for_function(prompt, arg=[cell, before, r"\[(\*|\d+)\]"], timeout=DROPPED)
                break
        if wait:
            self.page.wait_for_function(prompt, arg=[cell, before, r"\[\d+\]"])

    def run_all(self) -> None:
        """Choose Run All Cells from the menu of a notebook that was never run; back as soon as the first cell runs."""
        from playwright.sync_api import TimeoutError

        first = "document.querySelector('.jp-Notebook .jp-CodeCell .jp-InputPrompt').textContent"
        for _ in range(20):  # see `run`
            self._answer_question()
            with contextlib.suppress(TimeoutError):
                self.page.get_by_role("menuitem", name="Run", exact=True).click(timeout=DROPPED)
                self.page.get_by_text("Run All Cells", exact=True).click(timeout=DROPPED)
                self.page.wait_for_function(rf"/\[(\*|\d+)\]/.test({first})", timeout=DROPPED)
                break

    def at_last(self, look: Callable[[], Any]) -> Any:
        """What `look` gives as soon as that is nothing (empty, false), else half a minute later."""
        for _ in range(150):
            if not (found := look()):
                break
            self.page.wait_for_timeout(200)
        return found

    def kernel_ready(self) -> None:
        """Answer the question which kernel to take, if it is asked, and wait until the kernel is idle."""
        self.page.wait_for_selector(
            ".jp-Dialog button.jp-mod-accept, .jp-Notebook-ExecutionIndicator[data-status='idle']"
        )
        self._answer_question()
        self.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")

    def _answer_question(self) -> None:
        """Accept what a dialog asks, if there is one: once more where the click was lost or the next question has come."""
        from playwright.sync_api import TimeoutError

        dialog = self.page.locator(".jp-Dialog")
        asked = ""
        for _ in range(20):
            if not dialog.count():
                return
            with contextlib.suppress(TimeoutError):  # the newest is on top, and the page takes clicks for it alone
                asked = dialog.last.inner_text(timeout=DROPPED)
                dialog.last.locator("button.jp-mod-accept").click(timeout=DROPPED)
                self.page.wait_for_selector(".jp-Dialog", state="detached", timeout=DROPPED)
        assert not dialog.count(), f"a dialog stays: {asked}"


@contextlib.contextmanager
def running_lab(home: Path, **variables: str) -> Iterator[Lab]:
    """JupyterLab with all its files below `home`.

    Args:
        home: an empty folder.
        variables: environment of the server and of its kernels, beside the usual.

    Raises:
        RuntimeError: it did not start.
    """
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
    environment |= variables
    options = [
        "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={folder}",
        f"--IdentityProvider.token={TOKEN}", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
    ]  # fmt: skip
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log
        )
        try:
            yield Lab(folder, _address(process, runtime, home / "log"), TOKEN, home / "settings")
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server; one that takes longer than a minute to leave its kernels is killed."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    """Where the server listens, once it does."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            try:
                address = str(json.loads(path.read_text())["url"])
                with urlopen(f"{address}api?token={TOKEN}", timeout=5):
                    return address
            except (OSError, ValueError, KeyError):
                continue  # not written whole, or not listening yet
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-2000:]}")


def open_notebook(browser: Any, lab: Lab, name: str, theme: str, *, width: int = 1500, height: int = 1000) -> Visit:
    """A fresh page that shows a notebook of the lab, in the theme `light` or `dark`."""
    lab.choose(theme)
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
    page.set_default_timeout(PATIENCE)
    seen = Visit(page)
    page.on("pageerror", lambda error: seen.problems.append(str(error)))
    page.on("console", lambda message: message.type == "error" and seen.problems.append(message.text))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(f"{lab.address}lab/tree/{name}?token={lab.token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_selector(f"body[data-jp-theme-name='{THEMES[theme]}']", state="attached")
    return seen


def harmless(seen: Visit, lab: Lab) -> None:
    """Nothing failed in the page, and nothing was asked from anywhere but the server on this machine."""
    ours = [text for text in seen.problems if "favicon" not in text]
    assert ours == []
    foreign = [url for url in seen.requests if not url.startswith((lab.address, "data:", "blob:", "ws:", "about:"))]
    assert foreign == []
