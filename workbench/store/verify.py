"""Does a store hold what its runs say? Every byte of a closed run is covered by a checksum or a comparison.

Checked per run: the record against its checksum; the document of every array against the record and against its copy in
the root; that each expected file is there and no other; every checksum of every chunk file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import StoreError
from workbench.record import RunRecord
from workbench.store.backend import Backend, read_document
from workbench.store.chunks import largest_file, scan_file
from workbench.store.keys import is_marked
from workbench.store.layout import ArrayLayout, array_document, file_name
from workbench.store.reading import spell_region
from workbench.store.records import RecordError, array_layout, parse_json, read_record, safe_run_id

__all__ = ["Problem", "leftover", "run_folders", "verify_content", "verify_run"]

CHECKPOINT = "checkpoint"
ROOT = "zarr.json"
UNMARKED = "its file below keys/ is missing; `workbench store index --keys` makes it"


@dataclass(frozen=True)
class Problem:
    """Something of a run is damaged, missing or does not belong there."""

    run: str
    array: str
    region: str
    problem: str

    def __str__(self) -> str:
        return f"run {self.run}, {self.array or 'record'}{f', region {self.region}' if self.region else ''}: {self.problem}"


def run_folders(backend: Backend) -> Iterator[tuple[str, str]]:
    """Month and name of every folder that should be a run."""
    for month in backend.folders("runs"):
        for run in backend.folders(f"runs/{month}"):
            yield month, run


def leftover(name: str) -> bool:
    """Whether a file is what a killed process leaves behind: a half-written copy, or the checkpoint of a finished run."""
    base = name.rpartition("/")[2]
    return name == CHECKPOINT or (base.startswith(".") and base.endswith(".tmp"))


def verify_run(backend: Backend, month: str, run: str, *, marked: bool = False) -> Iterator[Problem]:
    """Everything that is wrong with one run. A run that is still running, or was interrupted, only has its record.

    Args:
        backend: of the store.
        month: the run's month.
        run: its id.
        marked: whether the store says that all its runs can be found by their keys.
    """
    folder = f"runs/{month}/{run}"
    if not safe_run_id(run):
        yield Problem(repr(run)[:200], "", "", "no name of a run")
        return
    try:
        data = read_document(backend, f"{folder}/{ROOT}")
        record = read_record(data, month=month, run=run)
        if record.status == "running":
            return
        documents = parse_json(data)["consolidated_metadata"]["metadata"]
        if not isinstance(documents, dict):
            raise RecordError("the documents of its arrays are missing")
    except (OSError, StoreError, KeyError, TypeError) as error:
        missing = isinstance(error, FileNotFoundError)
        yield Problem(run, "", "", "no record: not a run, or one being copied or deleted" if missing else _text(error))
        return
    yield from verify_content(backend, folder, record, documents)
    if marked and record.status == "complete":
        try:
            reason = "" if is_marked(backend, record) else UNMARKED
        except (OSError, StoreError) as error:
            reason = _text(error)
        if reason:
            yield Problem(run, "", "", f"not found when it is asked for again: {reason}")


def verify_content(backend: Backend, folder: str, record: RunRecord, documents: dict[str, Any]) -> Iterator[Problem]:
    """Everything that is wrong with the files of an ended run, given its record and the documents of its arrays."""
    unexpected = {key[len(folder) + 1 :]: size for key, size in backend.files(folder)}
    unexpected.pop(ROOT, None)
    for path, document in documents.items():
        name = f"{path}/{ROOT}"
        if path not in record.arrays and (not isinstance(document, dict) or document.get("node_type") != "group"):
            yield Problem(record.id, path, "", "an array the record does not know")
        if unexpected.pop(name, None) is None:
            if record.status == "complete":
                yield Problem(record.id, path, "", "its zarr.json is missing")
            continue
        try:
            if parse_json(read_document(backend, f"{folder}/{name}")) != document:
                yield Problem(record.id, path, "", "its zarr.json differs from the copy in the run's record")
        except (OSError, StoreError) as error:
            yield Problem(record.id, path, "", f"its zarr.json: {_text(error)}")
    for path, entry in record.arrays.items():
        layout = array_layout(path, entry)
        document = documents.get(path)
        attributes = document.get("attributes") if isinstance(document, dict) else None
        if not isinstance(attributes, dict) or array_document(layout, entry["dims"], attributes) != document:
            yield Problem(record.id, path, "", "its zarr document does not fit the record, or names an unknown codec")
        yield from _verify_array(backend, folder, record, path, layout, unexpected)
    for name in unexpected:
        if not leftover(name):
            array = next((path for path in record.arrays if name.startswith(f"{path}/")), "")
            yield Problem(record.id, array, "", f"foreign file {name[:200]!r}")


def _verify_array(
    backend: Backend, folder: str, record: RunRecord, path: str, layout: ArrayLayout, unexpected: dict[str, int]
) -> Iterator[Problem]:
    if layout.files > 10_000 + 10 * len(unexpected):  # an absurd number of files is not counted one by one
        yield Problem(record.id, path, "", f"at least {layout.files - len(unexpected)} chunk files are missing")
        return
    for index in np.ndindex(layout.file_grid):
        name = f"{path}/{file_name(index)}"
        size = unexpected.pop(name, None)
        low = [place * part for place, part in zip(index, layout.file_shape, strict=True)]
        region = tuple(slice(a, min(a + b, c)) for a, b, c in zip(low, layout.file_shape, layout.shape, strict=True))
        if size is None:
            if record.status == "complete":
                yield Problem(record.id, path, spell_region(region), f"chunk file {file_name(index)} is missing")
            continue
        try:
            data = backend.read(f"{folder}/{name}", largest_file(layout))
        except (OSError, StoreError) as error:
            yield Problem(record.id, path, spell_region(region), _text(error))
            continue
        for part, problem in scan_file(layout, data, index):
            yield Problem(record.id, path, spell_region(part), problem)


def _text(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:500]
