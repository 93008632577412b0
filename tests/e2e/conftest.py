"""The command line as its users meet it: in this process where a process adds nothing, else in one of its own.

And JupyterLab: one server for all browser tests of a session, one browser for those of a module.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.lab_tools import CHROMIUM, FLAGS, PATIENCE, Lab, Visit, open_notebook, running_lab

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code and both streams."""

    code: int
    out: str
    err: str


@pytest.fixture
def workbench_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Calls the command line in this process, in an empty folder; the default store is `store` in it."""
    from workbench.cli import main

    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables for a command in a process of its own."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("WORKBENCH_")}
    return known | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture
def workbench_process(tmp_path: Path, environment: dict[str, str]):
    """Calls the command line in a process of its own, in the folder where `workbench_command` works."""
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)

    def call(*arguments: str, **variables: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "workbench", *arguments],
            cwd=folder,
            env=environment | variables,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Callable[..., Path]:
    """Installs a plugin as pip would: a distribution with an entry point, in a folder on the path."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    path = [str(site), str(TESTS), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in path if entry)

    def make(name: str, module: str, source: str | None = None, *, version: str = "1.0") -> Path:
        if source is not None:
            (site / f"{module}.py").write_text(source, encoding="utf-8")
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (folder / "entry_points.txt").write_text(f"[workbench]\n{name} = {module}\n")
        importlib.invalidate_caches()  # folders have coarse stamps: what was looked for a moment ago would stay unseen
        return site

    return make


@pytest.fixture
def samples(install: Callable[..., Path]) -> None:
    """The sample methods, offered by an installed plugin."""
    install("sample-methods", "e2e.sample_plugin")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on the loopback interface, with nothing of the user's own settings."""
    pytest.importorskip("jupyterlab")
    with running_lab(tmp_path_factory.mktemp("lab")) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window. Not for the whole session: playwright keeps an event loop running while it is there."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        try:
            yield opened
        finally:
            opened.close()


@pytest.fixture
def visit(lab: Lab, browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens a notebook in a page of its own: `visit("01_tour.ipynb", theme="dark")`."""
    pages = []

    def go(name: str, theme: str = "light", **size: int) -> Visit:
        seen = open_notebook(browser, lab, name, theme, **size)
        pages.append(seen.page)
        return seen

    yield go
    for page in pages:
        page.close()
