"""A store: one folder that a whole team may write to at once, because every run has one writer and never changes."""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench._version import __version__
from workbench.errors import FormatVersionError, RunNotFoundError, StoreError
from workbench.record import FORMAT_VERSION, RunRecord, now
from workbench.store.annotations import Annotations
from workbench.store.backend import Backend, backend_for, read_document
from workbench.store.index import Index
from workbench.store.keys import mark, marked, unmark
from workbench.store.observing import interrupted
from workbench.store.query import Condition, compile_order, compile_query
from workbench.store.reading import StoredRun
from workbench.store.records import RecordError, parse_json
from workbench.store.studies import Study, find_studies
from workbench.store.verify import Problem, run_folders, verify_run
from workbench.store.writer import RunWriter, run_folder

__all__ = ["Store", "current_user"]

MARKER = "workbench.json"


def current_user() -> str:
    """Who makes runs here: $WORKBENCH_USER, else the login name."""
    if name := os.environ.get("WORKBENCH_USER"):
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


class Store:
    """A place with runs. Opening one creates nothing; the first run does.

    Args:
        url: folder or URL (file://, s3://, gs://, az://, https://) of the store, or a back-end of your own.
        index_folder: where the derived index lies; default: the user's cache folder.

    Raises:
        FormatVersionError: the store was written by a newer version of the workbench.
        StoreError: the place exists and is not a store, or is of a kind no back-end serves.
    """

    def __init__(self, url: str | os.PathLike[str] | Backend, *, index_folder: Path | None = None) -> None:
        self.backend: Backend = backend_for(url) if isinstance(url, str | os.PathLike) else url
        self._given, self._index_folder = url, index_folder
        self.url = self.backend.url
        self._has_keys = True
        """Whether every run can be found by its key without the index: see `workbench.store.keys`."""
        self._initialized = self._check_marker()
        self.index = Index(self.backend, index_folder)
        self.annotations = Annotations(self.backend, self.index, current_user, self.prepare)

    def _check_marker(self) -> bool:
        try:
            marker = parse_json(read_document(self.backend, MARKER))
            version = int(marker["format_version"])
        except FileNotFoundError:
            return False
        except NotADirectoryError as error:
            raise StoreError(f"the store {self.url} lies below a file; give a folder") from error
        except OSError as error:
            raise StoreError(f"the store {self.url} cannot be read: {error.strerror or error}") from error
        except (RecordError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.url} is not a workbench store: its {MARKER} is damaged") from error
        if version > FORMAT_VERSION:
            raise FormatVersionError(
                f"the store {self.url} has format version {version}, written by workbench {marker.get('created_by', '?')}; "
                f"this is workbench {__version__}, which reads up to version {FORMAT_VERSION}. "
                "Upgrade with: pip install --upgrade vision-workbench"
            )
        # A published store is read through what was published, and that is the index.
        self._has_keys = marker.get("keys") is True and self.backend.writable
        return True

    # --- writing ----------------------------------------------------------------------------------------------------

    def begin(self, record: RunRecord) -> RunWriter:
        """Start a run.

        Raises:
            StoreError: the store cannot be written.
        """
        self.prepare()
        writer = RunWriter(self.backend, record)
        try:
            mark(self.backend, record)
        except (OSError, StoreError) as error:
            with suppress(OSError, StoreError):
                writer.abandon()  # else it would read as running, and colleagues would wait for it
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"the store {self.url} cannot be written: {error.strerror or error}") from error
        return writer

    def prepare(self) -> None:
        """Make the place a store, if it is not one yet.

        Raises:
            StoreError: it cannot be written.
        """
        if not self.backend.writable:
            raise StoreError(
                f"the store {self.url} is published read-only; choose another with --store or $WORKBENCH_STORE"
            )
        if not self._initialized:
            self.backend.check_writable()
            marker = {"format_version": FORMAT_VERSION, "created_by": __version__, "created": now(), "keys": True}
            self.backend.write(MARKER, json.dumps(marker, indent=1).encode())
            self._initialized = self._has_keys = True

    def says_keys(self) -> None:
        """Write into the store's marker that all runs can be found by their keys (`workbench.store.keys.mark_all`)."""
        marker = parse_json(read_document(self.backend, MARKER))
        self.backend.write(MARKER, json.dumps(marker | {"keys": True}, indent=1).encode())
        self._has_keys = True

    def delete(self, run_id: str, *, force: bool = False) -> None:
        """Remove a run for good.

        Raises:
            StoreError: the run is alive, or others were made from it; `force` removes it all the same.
        """
        run = self.run(run_id)
        if not force:
            if run.status == "running":
                raise StoreError(f"run {run.id} is running ({run.record.user} on {run.record.host}); it is not deleted")
            users = self.index.users_of(run.id)
            if users:
                names = ", ".join(users[:5]) + (", ..." if len(users) > 5 else "")
                raise StoreError(
                    f"run {run.id} is an input of {len(users)} other {'run' if len(users) == 1 else 'runs'} ({names}); "
                    "delete those first, or force it"
                )
        self.remove_folder(run_folder(run.record), run.id)

    def remove_folder(self, folder: str, run_id: str = "") -> None:
        """Remove a run's folder: its record first, so that the run is gone in one step, whatever happens after it.

        Raises:
            StoreError: it cannot be removed, e.g. because it is somebody else's.
        """
        if not self.backend.writable:
            raise StoreError(f"the store {self.url} is published read-only")
        record = self.index.known(run_id) if run_id else None
        try:
            self.backend.delete_object(f"{folder}/zarr.json")
            self.backend.delete(folder)
            if record is not None:
                unmark(self.backend, record)
        except OSError as error:
            who = f" (a run of {record.user})" if record is not None else ""
            raise StoreError(f"{folder} in {self.url} cannot be removed: {error.strerror or error}{who}") from error
        if run_id:
            self.index.forget(run_id)

    # --- reading ----------------------------------------------------------------------------------------------------

    def find(self, key: str) -> StoredRun | None:
        """The newest complete run with this key, or None.

        Raises:
            StoreError: none was found, but a record could not be read for a reason that may pass.
        """
        if self._has_keys:
            return next((run for run in self._with_key(key) if run.record.status == "complete"), None)
        record = self.index.complete_run(key)
        if record is None or self.backend.size(f"{run_folder(record)}/zarr.json") is None:
            return None
        return StoredRun(self.backend, record)

    def run(self, run_id: str) -> StoredRun:
        """A run by its id, or by any part of its id that only it has; `latest` is the newest one.

        Raises:
            RunNotFoundError: no run, or several, match.
        """
        if run_id == "latest":
            newest = self.index.select(("1", []), limit=1)
            if not newest:
                raise RunNotFoundError(f"the store {self.url} has no runs yet")
            return StoredRun(self.backend, newest[0])
        matches = self.index.ids_like(run_id)
        if run_id in matches:
            matches = [run_id]
        if len(matches) != 1:
            listing = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
            found = f"{len(matches)} runs match: {listing}" if matches else "no run matches"
            raise RunNotFoundError(f"run {run_id!r} in store {self.url}: {found}")
        return StoredRun(self.backend, self.index.select(("id = ?", [matches[0]]))[0])

    def runs(self, where: str = "", *, order: str = "", limit: int | None = None, offset: int = 0) -> list[StoredRun]:
        """Runs that meet a query, in an order (see `workbench.store.query` for both), by default newest first.

        Raises:
            InputError: the query or the order is not understood.
        """
        condition, by = self._condition(where), compile_order(order)
        found = self.index.select(condition, order=by, limit=limit, offset=offset)
        return [StoredRun(self.backend, record) for record in found]

    def each(self, where: str = "") -> Iterator[StoredRun]:
        """As `runs`, newest first, one after the other: for going through more runs than fit in memory."""
        condition = self._condition(where)
        return (StoredRun(self.backend, record) for record in self.index.each(condition))

    def count(self, where: str = "") -> int:
        """How many runs meet a query."""
        return self.index.count(self._condition(where))

    def _condition(self, where: str) -> Condition:
        """A query over runs as everybody is shown them: one that only seems to run is interrupted."""
        return compile_query(
            where, user=current_user(), interrupted=lambda: interrupted(self.index, self.backend, look=True)
        )

    def studies(self) -> list[Study]:
        """All studies, and those above them, in the order of their names."""
        return find_studies(self)

    def wait_for(self, key: str, timeout: float, poll: Callable[[StoredRun], object]) -> StoredRun | None:
        """The complete run with this key, after waiting for somebody who is computing it.

        Returns None as soon as nobody alive computes it (the run failed, was cancelled or interrupted), or after
        `timeout` seconds: then compute it yourself. `poll` is called with the other's run between looks and may raise.
        Two who begin within the same moment both compute; both results are valid, and the newer one is served later.
        """
        end, pause = time.monotonic() + timeout, 0.05
        while True:
            alive = None
            for run in self._with_key(key):
                if run.record.status == "complete":
                    return run
                if alive is None and run.status == "running":
                    alive = run
            if alive is None or time.monotonic() >= end:
                return None
            poll(alive)
            time.sleep(max(0.0, min(pause, end - time.monotonic())))
            pause = min(2 * pause, 5.0)

    def descendants(self, run_id: str, *, direct: bool = False) -> list[StoredRun]:
        """Runs that were made from this run's output, and from theirs (only the former, if `direct`), oldest first."""
        found: dict[str, None] = {}
        waiting = [run_id]
        while waiting:
            for user in self.index.users_of(waiting.pop()):
                if user not in found and user != run_id:
                    found[user] = None
                    if not direct:
                        waiting.append(user)
        runs = [self.run(user) for user in found]
        return sorted(runs, key=lambda run: (run.record.started, run.id))

    def verify(self, where: str = "") -> Iterator[Problem]:
        """Everything that is damaged, missing or foreign in the runs of a query; of all folders, if there is none."""
        named = ((run.record.month, run.id) for run in self.each(where)) if where.strip() else run_folders(self.backend)
        for month, name in named:
            yield from verify_run(self.backend, month, name, marked=self._has_keys)

    def runs_with_key(self, key: str) -> list[StoredRun]:
        """All runs with a key, whatever became of them, newest first.

        Raises:
            StoreError: a record could not be read for a reason that may pass.
        """
        return sorted(self._with_key(key), key=lambda run: (run.record.started, run.id), reverse=True)

    def _with_key(self, key: str) -> Iterator[StoredRun]:
        """As `runs_with_key`, each read when it is asked for."""
        records = marked(self.backend, key) if self._has_keys else self.index.runs_with_key(key)
        return (StoredRun(self.backend, record) for record in records)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        # A relative path would be another place in another process.
        place = self.url if isinstance(self._given, str | os.PathLike) else self._given
        return {"url": place, "index_folder": self._index_folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"], index_folder=state["index_folder"])  # type: ignore[misc]
