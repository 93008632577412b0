"""Cleaning up and taking stock. Nothing here ever touches a run that may be alive, pinned or needed by another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.errors import StoreError
from workbench.record import STALE_AFTER
from workbench.store.keys import marks, tells
from workbench.store.liveness import age, silence
from workbench.store.verify import CHECKPOINT, leftover, run_folders
from workbench.store.writer import run_folder

if TYPE_CHECKING:
    from workbench.store.backend import Backend
    from workbench.store.reading import StoredRun
    from workbench.store.store import Store

__all__ = ["Garbage", "StoreSummary", "find_garbage", "remove_garbage", "summarize"]

DAY = 86_400.0
UNWANTED = ("failed", "cancelled", "interrupted")


@dataclass(frozen=True)
class Garbage:
    """Something `gc` would remove: a run, a folder that never became one, single files, or empty folders."""

    what: str
    reason: str
    bytes: int
    run: str = ""
    folder: str = ""
    files: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()


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
    that broke off); half-written files and checkpoints of complete runs; what tells of the key of a run that is gone.

    Raises:
        StoreError: something people said cannot be read just now; it may be a pin.
    """
    backend = store.backend
    store.index.expire()
    if unheard := store.index.unheard():
        raise StoreError(
            f"{len(unheard)} of the things said about runs in {backend.url} cannot be read just now ({unheard[0]}): one may be "
            "the pin of a run, so nothing is called garbage. Try again later"
        )
    # A run that says it is running must be silent for longer than any live one, whatever the caller says.
    archived = {item.run for item in store.annotations.holding("archive")}
    pinned = {item.run for item in store.annotations.holding("pin")}
    candidates: dict[str, tuple[StoredRun, str]] = {}
    known: dict[str, tuple[str | None, bool]] = {}
    """Key of every run, and whether it is complete."""
    for run in store.each():
        known[run.id] = run.record.key, run.record.status == "complete"
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
            if name not in candidates and known[name][1]:
                yield from _files(store, folder, older_than)
        elif not _may_be_run(backend, folder):
            files = list(backend.files(folder))
            ages = [age(backend, key) for key, _ in files]
            if min(ages, default=float("inf")) >= max(older_than, STALE_AFTER):
                yield Garbage(
                    f"folder {folder}",
                    "no record: a copy or deletion that broke off",
                    sum(size for _, size in files),
                    folder=folder,
                )
    yield from _marks(store, {run: key for run, (key, _) in known.items()}, older_than)


def _marks(store: Store, keys: Mapping[str, str | None], older_than: float) -> Iterator[Garbage]:
    """What below `keys/` tells of no run: marks of runs that are gone or have another key, and folders without any."""
    backend = store.backend
    lost, used = [], set()
    for name, key, month, run in marks(backend):
        used.add(name.rpartition("/")[0])
        told = keys[run] == key if run in keys else _may_be_run(backend, f"runs/{month}/{run}")
        if not told and age(backend, name) >= max(older_than, STALE_AFTER):
            lost.append(name)
    if lost:
        yield Garbage(f"{_some(len(lost), 'mark')} below keys/", "no run has that key", 0, files=tuple(lost))
    parts = [] if backend.remote else [f"keys/{part}" for part in backend.folders("keys")]
    folders = (f"{part}/{key}" for part in parts for key in backend.folders(part))
    if empty := tuple(folder for folder in folders if folder not in used and not backend.names(folder)):
        yield Garbage(f"{_some(len(empty), 'empty folder')} below keys/", "no run has that key", 0, empty=empty)


def _may_be_run(backend: Backend, folder: str) -> bool:
    """Whether a folder that is no run by the index has a record all the same: damaged, just written, not for this user."""
    try:
        return backend.size(f"{folder}/zarr.json") is not None
    except OSError:
        return True


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _files(store: Store, folder: str, older_than: float) -> Iterator[Garbage]:
    """Files in a complete run's own folder that no longer serve anything."""
    backend = store.backend
    sizes = {}
    for key, size in backend.files(folder):
        name = key[len(folder) + 1 :]
        if leftover(name) and age(backend, key) >= max(older_than, STALE_AFTER):
            sizes[key] = size
    if sizes:
        what = "checkpoint" if any(key.endswith(CHECKPOINT) for key in sizes) else "half-written file"
        yield Garbage(f"{what} of {folder}", "its run is complete", sum(sizes.values()), files=tuple(sizes))


def _size(store: Store, folder: str) -> int:
    return sum(size for _, size in store.backend.files(folder))


def remove_garbage(store: Store, garbage: Garbage) -> None:
    """Remove one thing that `find_garbage` found.

    Raises:
        StoreError: it cannot be removed, e.g. because it is somebody else's.
    """
    for key in garbage.files:
        if key.startswith("keys/") and tells(store.backend, key):
            continue  # its run was copied here since
        try:
            store.backend.delete_object(key)
        except OSError as error:
            raise StoreError(f"{key} in {store.url} cannot be removed: {error.strerror or error}") from error
        if key.startswith("keys/"):
            store.backend.prune(key.rpartition("/")[0])
    for folder in garbage.empty:
        store.backend.prune(folder)
    if garbage.folder and (garbage.run or not _may_be_run(store.backend, garbage.folder)):
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
