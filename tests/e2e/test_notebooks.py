"""The notebooks run from top to bottom in an empty folder, and what is committed of them shows outputs and no one's machine."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from e2e.notebook_tools import NOTEBOOKS, WIDGET, executed, lasting, mentions, private_words, texts

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
LOCAL_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|Users|root|tmp|private|var|opt|mnt|srv|work|data|content)/\w|[A-Z]:\\\\?Users"
)
LARGEST = 3_000_000
READS = {"21_ship_cifar10": "WORKBENCH_SHIP_STORE"}
"""Notebooks that read the store of a study that takes most of an hour, and the variable that names it."""

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(document: Any) -> list[Any]:
    return [cell for cell in document.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[list[str]]:
    """What a cell shows, without the values: which media types each output offers."""
    bundles = [output.get("data", {"stream": ""}) for output in cell.outputs if lasting(output)]
    shown = [sorted(name for name in bundle if name != WIDGET) for bundle in bundles]
    # In how many parts printed text comes is a matter of time.
    return [kind for kind, before in zip(shown, [None, *shown], strict=False) if not kind == before == ["stream"]]


def test_there_is_a_tour():
    assert [path.name for path in PATHS][:1] == ["01_tour.ipynb"]


@every_notebook
def test_it_runs_and_shows_what_the_committed_one_shows(path: Path, tmp_path: Path):
    if (variable := READS.get(path.stem)) and variable not in os.environ:
        pytest.skip(f"reads the store of a finished study, which ${variable} would name")
    document = executed(path, tmp_path / "reader")
    committed = nbformat.read(path, as_version=4)
    for fresh, saved in zip(code_cells(document), code_cells(committed), strict=True):
        assert not [output for output in fresh.outputs if output.output_type == "error"]
        assert kinds(fresh) == kinds(saved), f"outputs of this cell are not up to date:\n{saved.source}"


@every_notebook
def test_it_is_committed_with_its_outputs(path: Path):
    document = nbformat.read(path, as_version=4)
    nbformat.validate(document)
    cells = code_cells(document)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert all(
        cell.outputs for cell in cells if not cell.source.rstrip().endswith((")", ";")) or "report()" in cell.source
    )
    assert path.stat().st_size < LARGEST
    assert not document.metadata.get("widgets"), "a progress bar was saved"


@every_notebook
def test_every_figure_has_a_picture_for_readers_without_scripts(path: Path):
    document = nbformat.read(path, as_version=4)
    bundles = [output.data for cell in code_cells(document) for output in cell.outputs if "data" in output]
    figures = [bundle for bundle in bundles if "application/vnd.plotly.v1+json" in bundle]
    assert figures, "no interactive figure"
    assert all("image/jpeg" in bundle for bundle in figures)
    assert not any("image/png" in bundle for bundle in figures), "JupyterLab would show it in place of the figure"
    assert all("<script" not in str(bundle.get("text/html", "")) for bundle in bundles)


@every_notebook
def test_it_tells_nothing_about_the_machine_that_made_it(path: Path):
    document = nbformat.read(path, as_version=4)
    told = list(texts(dict(document)))
    assert [text for text in told if LOCAL_PATH.search(text)] == []
    for word in private_words():
        assert [text for text in told if mentions(word, text)] == [], word
    assert set(document.metadata) == {"kernelspec", "language_info"}


@every_notebook
def test_prose_states_no_measured_number(path: Path):
    """Figures belong to executed cells: prose that repeats one is wrong the next time the notebook is run."""
    document = nbformat.read(path, as_version=4)
    prose = [cell.source for cell in document.cells if cell.cell_type == "markdown"]
    without_code = [re.sub(r"`[^`]*`|\]\([^)]*\)", "", text) for text in prose]
    assert [found for text in without_code for found in re.findall(r"\d+[.,]\d+|\d+ ?%", text)] == []


@pytest.mark.parametrize(
    ("text", "tells"),
    [
        ("saved in /home/eve/store", True),
        ("C:\\Users\\eve", True),
        ("https://arxiv.org/abs/1905.03696", False),
        ("and/or", False),
    ],
)
def test_local_paths_are_recognised(text: str, tells: bool):
    assert bool(LOCAL_PATH.search(text)) is tells
