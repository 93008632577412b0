"""Copying runs between any two stores: may break off at any point and go on later, and what arrives is verified.

Files of a run come first, its record last, so that a run is in the target as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import IntegrityError, RunNotFoundError, StoreError
from workbench.store.annotations import annotated_run
from workbench.store.backend import DOCUMENT_LIMIT, read_document
from workbench.store.chunks import LARGEST_FILE
from workbench.store.keys import mark
from workbench.store.records import parse_json, read_record, run_files
from workbench.store.verify import verify_content
from workbench.store.writer import run_folder

if TYPE_CHECKING:
    from workbench.store.reading import StoredRun
    from workbench.store.store import Store

__all__ = ["Copied", "copy_runs"]


@dataclass(frozen=True)
class Copied:
    """What became of one run: `copied` (with the bytes that were moved), `present` before, or `running`."""

    run: str
    what: str
    bytes: int = 0


def copy_runs(
    source: Store,
    target: Store,
    where: str = "",
    *,
    with_inputs: bool = False,
    progress: Callable[[Copied], object] = lambda copied: None,
) -> list[Copied]:
    """Copy the runs of a query, and what was said about them.

    Args:
        source: where they are.
        target: where they go; runs keep their ids.
        where: a query; empty means all.
        with_inputs: also copy the runs they were made from, and so on.
        progress: called after each run.

    Raises:
        IntegrityError: a run of the source is damaged; the target does not get it. Runs copied before stay.
        StoreError: the target has another run of the same id, or cannot be written.
    """
    target.prepare()
    runs = {run.id: run for run in reversed(source.runs(where))}
    if with_inputs:
        runs = {run.id: run for run in _with_inputs(source, list(runs.values()))}
    done = []
    for run in runs.values():
        try:
            done.append(_copy_run(source, target, run))
        except OSError as error:
            raise StoreError(f"copying run {run.id} broke off: {error.strerror or error}") from error
        progress(done[-1])
    _copy_annotations(source, target, set(runs))
    return done


def _with_inputs(source: Store, runs: list[StoredRun]) -> Iterator[StoredRun]:
    seen: set[str] = set()
    waiting = list(runs)
    while waiting:
        run = waiting.pop()
        if run.id in seen:
            continue
        seen.add(run.id)
        yield run
        for entry in run.inputs.values():
            for other in entry.get("runs", ()):
                try:
                    waiting.append(source.run(other))
                except RunNotFoundError:
                    continue  # deleted since


def _copy_run(source: Store, target: Store, run: StoredRun) -> Copied:
    folder = run_folder(run.record)
    data = read_document(source.backend, f"{folder}/zarr.json")
    record = read_record(data, month=run.record.month, run=run.id)
    if record.status == "running":
        return Copied(run.id, "running")
    if target.backend.size(f"{folder}/zarr.json") is not None:
        if read_document(target.backend, f"{folder}/zarr.json") != data:
            raise StoreError(f"the store {target.url} has another run {run.id}; it is left as it is")
        return Copied(run.id, "present")
    present = {key[len(folder) + 1 :]: size for key, size in target.backend.files(folder)}
    at_source = {key[len(folder) + 1 :]: size for key, size in source.backend.files(folder)}
    wanted = [name for name in run_files(data, folder) if name in at_source or record.status == "complete"]
    # Of the same size: most likely copied before. Whether that is so, the verification below tells.
    new = [name for name in wanted if name not in present or present[name] != at_source.get(name)]
    moved = _copy_files(source, target, folder, new)
    documents = parse_json(data)["consolidated_metadata"]["metadata"]
    problems = list(verify_content(target.backend, folder, record, documents))
    if problems and len(new) < len(wanted):
        moved += _copy_files(source, target, folder, [name for name in wanted if name not in new])
        problems = list(verify_content(target.backend, folder, record, documents))
    if problems:
        first = problems[0]
        raise IntegrityError(run.id, first.array, first.region or "all", f"{first.problem} (in {source.url})")
    mark(target.backend, record)  # first: with its record the run is there, and copying it again does nothing more
    target.backend.write(f"{folder}/zarr.json", data)
    target.index.put(record)
    return Copied(run.id, "copied", moved + len(data))


def _copy_files(source: Store, target: Store, folder: str, names: Iterable[str]) -> int:
    def copy(name: str) -> int:
        try:
            data = source.backend.read(f"{folder}/{name}", LARGEST_FILE)
        except FileNotFoundError:
            return 0  # the verification names it
        target.backend.write_new_chunk(f"{folder}/{name}", data)
        return len(data)

    if not (source.backend.remote or target.backend.remote):
        return sum(map(copy, names))
    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="workbench-copy") as pool:
        return sum(pool.map(copy, names))


def _copy_annotations(source: Store, target: Store, runs: set[str]) -> None:
    for month in source.backend.folders("annotations"):
        folder = f"annotations/{month}"
        present = set(target.backend.names(folder))
        for name in source.backend.names(folder):
            if name in present:
                continue
            data: Any = source.backend.read(f"{folder}/{name}", DOCUMENT_LIMIT)
            if annotated_run(data) in runs:
                target.backend.write(f"{folder}/{name}", data)
    target.index.expire()
