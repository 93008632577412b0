"""Notebooks executed as a reader would: a copy in an empty folder, a fresh kernel, the store beside it.

`python tests/e2e/notebook_tools.py [NAME.ipynb ...]` executes these (else all) notebooks of `notebooks/` and saves them with
their outputs, free of what belongs to the machine that made them.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
READER, MACHINE = "ada", "workstation"
TIMEOUT = 600


def executed(notebook: Path, folder: Path) -> Any:
    """The notebook as it is after a run of all its cells in a fresh kernel of this interpreter.

    Args:
        notebook: the file; it is not changed.
        folder: empty; the kernel's working folder, where the store is made.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    from nbclient import NotebookClient

    document = nbformat.read(notebook, as_version=4)
    folder.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        document,
        timeout=TIMEOUT,
        startup_timeout=TIMEOUT,
        iopub_timeout=TIMEOUT,  # else outputs that come four seconds after the answer would be left out
        coalesce_streams=True,  # else the number of outputs would depend on how fast a cell prints
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.km = client.create_kernel_manager()
    # Whatever kernel specification is installed on this machine: the notebook is run by the interpreter that runs this.
    client.km.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    environment = os.environ | {"WORKBENCH_USER": READER, "XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("WORKBENCH_STORE", None)
    client.execute(env=environment)
    return document


def private_words(folder: Path | None = None) -> dict[str, str]:
    """What outputs must not tell, with what to say instead: folders, names of the machine and of its user."""
    words = {str(path): "" for path in (Path(sys.prefix), Path.home(), NOTEBOOKS.parent, Path(tempfile.gettempdir()))}
    if folder is not None:
        words = {f"{folder}/": "", str(folder): "."} | words
    words[socket.gethostname()] = MACHINE
    words[getpass.getuser()] = READER
    return {word: instead for word, instead in words.items() if len(word) > 1}


def texts(value: Any) -> Iterator[str]:
    """Every text in JSON-like data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if not name.startswith("image/"):
                yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def mentions(word: str, text: str) -> bool:
    """Whether a text has the word as a whole one (`root`, not `square_root`)."""
    return re.search(_whole(word), text) is not None


def _whole(word: str) -> str:
    start = r"(?<![\w-])" if word[0].isalnum() else ""
    return start + re.escape(word) + r"(?![\w-])" if word[-1].isalnum() else start + re.escape(word)


def without_private_words(document: Any, folder: Path) -> Any:
    """The notebook with outputs that could have been made on anybody's machine."""
    words = private_words(folder)

    def cleaned(text: str) -> str:
        for word, instead in words.items():
            text = re.sub(_whole(word), instead, text)
        return text

    for cell in document.cells:
        cell.metadata.pop("execution", None)  # times of execution change with every run and mean nothing
        if cell.cell_type == "code":
            cell.outputs = [_map_texts(_without_widget(output), cleaned) for output in cell.outputs if lasting(output)]
    document.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
        }
    )
    return document


WIDGET = "application/vnd.jupyter.widget-view+json"


def lasting(output: Any) -> bool:
    """Whether an output still means something without its kernel: panels bring a page along, progress bars do not."""
    if output.output_type == "stream":
        return bool(output.name == "stdout")
    data = output.get("data", {})
    if data and not any(data.values()):
        return False  # a bar of progress, emptied when its run ended
    return WIDGET not in data or "text/html" in data


def _without_widget(output: Any) -> Any:
    """An output without the widget that its kernel held."""
    if WIDGET in output.get("data", {}):
        del output.data[WIDGET]
    return output


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        changed = {name: item if name.startswith("image/") else _map_texts(item, change) for name, item in value.items()}
        return nbformat.from_dict(changed)
    return [_map_texts(item, change) for item in value] if isinstance(value, list) else value


def refresh(notebook: Path) -> None:
    """Execute a notebook and save it with its outputs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve() / "tour"
        document = without_private_words(executed(notebook, folder), folder)
    nbformat.validate(document)
    nbformat.write(document, notebook)


if __name__ == "__main__":
    chosen = [NOTEBOOKS / Path(name).name for name in sys.argv[1:]]
    for path in chosen or sorted(NOTEBOOKS.glob("*.ipynb")):
        print(path.name)
        refresh(path)
