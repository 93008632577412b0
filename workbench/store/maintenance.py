"""Cleaning up and taking stock. Nothing here ever touches a run that may be alive, pinned or needed by another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.record import STALE_AFTER
from workbench.store.liveness import silence
from workbench.store.verify import CHECKPOINT, leftover, run_folders
from workbench.store.writer import run_folder

if TYPE_CHECKING:
    from workbench.store.reading import StoredRun
    from workbench.store.store import Store

__all__ = ["Garbage", "StoreSummary", "find_garbage", "remove_garbage", "summarize"]

DAY = 86_400.0
UNWANTED = ("failed", "cancelled", "interrupted")


@dataclass(frozen=True)
class Garbage:
    """Something `gc` would remove: a run, a folder that never became one, or single files."""

    what: str
    reason: str
    bytes: int
    run: str = ""
    folder: str = ""
    files: tuple[str, ...] = ()


@dataclass
class StoreSummary:
    """What lies in a store."""

    url: str
    runs: int = 0
    bytes: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
    by_user: dict[str, int] = field(default_factory=dict)
    by_method: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def find_garbage(store: Store, older_than: float = 7 * DAY) -> Iterator[Garbage]:
    """What could be removed; ages are told by the clock of the place the store lies in.

    Archived, failed, cancelled and interrupted runs that were last written more than `older_than` seconds ago, unless
    they are pinned or a run that stays was made from them; folders of that age without a record (copies and deletions
    that broke off); half-written files and checkpoints of complete runs.
    """
    backend = store.backend
    # A run that says it is running must be silent for longer than any live one, whatever the caller says.
    archived = {item.run for item in store.annotations.holding("archive")}
    pinned = {item.run for item in store.annotations.holding("pin")}
    candidates: dict[str, tuple[StoredRun, str]] = {}
    known = set()
    for run in store.each():
        known.add(run.id)
        status = run.status
        reason: str = (
            status if status in UNWANTED else "archived" if run.id in archived and status == "complete" else ""
        )
        least = max(older_than, STALE_AFTER) if run.record.status == "running" else older_than
        if reason and run.id not in pinned and silence(backend, run.record) >= least:
            candidates[run.id] = (run, reason)
    kept = True
    while kept:  # a run that something staying was made from stays, and so on
        kept = False
        for run_id in list(candidates):
            if any(user not in candidates for user in store.index.users_of(run_id)):
                del candidates[run_id]
                kept = True
    for run, reason in candidates.values():
        folder = run_folder(run.record)
        yield Garbage(f"run {run.id}", reason, _size(store, folder), run=run.id, folder=folder)
    for month, name in run_folders(backend):
        folder = f"runs/{month}/{name}"
        if name in known:
            if name not in candidates:
                yield from _files(store, folder, older_than, complete=_complete(store, name))
        elif backend.size(f"{folder}/zarr.json") is None:
            files = list(backend.files(folder))
            ages = [backend.now() - (backend.written(key) or 0) for key, _ in files]
            if min(ages, default=float("inf")) >= max(older_than, STALE_AFTER):
                yield Garbage(
                    f"folder {folder}",
                    "no record: a copy or deletion that broke off",
                    sum(size for _, size in files),
                    folder=folder,
                )


def _complete(store: Store, run_id: str) -> bool:
    return store.run(run_id).record.status == "complete"


def _files(store: Store, folder: str, older_than: float, *, complete: bool) -> Iterator[Garbage]:
    """Files in a run's own folder that no longer serve anything."""
    if not complete:
        return
    backend = store.backend
    sizes = {}
    for key, size in backend.files(folder):
        name = key[len(folder) + 1 :]
        age = backend.now() - (backend.written(key) or 0)
        if leftover(name) and age >= max(older_than, STALE_AFTER):
            sizes[key] = size
    if sizes:
        what = "checkpoint" if any(key.endswith(CHECKPOINT) for key in sizes) else "half-written file"
        yield Garbage(f"{what} of {folder}", "its run is complete", sum(sizes.values()), files=tuple(sizes))


def _size(store: Store, folder: str) -> int:
    return sum(size for _, size in store.backend.files(folder))


def remove_garbage(store: Store, garbage: Garbage) -> None:
    """Remove one thing that `find_garbage` found."""
    for key in garbage.files:
        store.backend.delete_object(key)
    if garbage.folder:
        store.remove_folder(garbage.folder, garbage.run)


def summarize(store: Store) -> StoreSummary:
    """Count runs and bytes (as stored, by the records) and name folders that hold no readable run."""
    found = StoreSummary(store.url)
    known = set()
    for run in store.each():
        known.add(run.id)
        found.runs += 1
        found.bytes += sum(entry["bytes"] for entry in run.record.arrays.values())
        for table, name in (
            (found.by_status, run.status),
            (found.by_user, run.record.user),
            (found.by_method, run.method_id),
        ):
            table[name] = table.get(name, 0) + 1
    found.unreadable = [f"runs/{month}/{name}" for month, name in run_folders(store.backend) if name not in known]
    return found
