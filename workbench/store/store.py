"""A store: one folder that a whole team may write to at once, because every run has one writer and never changes."""

from __future__ import annotations

import getpass
import json
import os
from pathlib import Path
from typing import Any

from workbench._version import __version__
from workbench.errors import FormatVersionError, RunNotFoundError, StoreError
from workbench.record import FORMAT_VERSION, RunRecord, now
from workbench.store.backend import Backend, backend_for
from workbench.store.index import Index
from workbench.store.query import compile_query
from workbench.store.reading import StoredRun
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
        url: folder (or `file://` URL) of the store.
        index_folder: where the derived index lies; default: the user's cache folder.

    Raises:
        FormatVersionError: the store was written by a newer version of the workbench.
        StoreError: the place exists and is not a store, or is of a kind no back-end serves.
    """

    def __init__(self, url: str | os.PathLike[str], *, index_folder: Path | None = None) -> None:
        self.backend: Backend = backend_for(url)
        self.url = self.backend.url
        self._initialized = self._check_marker()
        self.index = Index(self.backend, index_folder)

    def _check_marker(self) -> bool:
        try:
            marker = json.loads(self.backend.read(MARKER))
            version = int(marker["format_version"])
        except FileNotFoundError:
            return False
        except NotADirectoryError as error:
            raise StoreError(f"the store {self.url} lies below a file; give a folder") from error
        except OSError as error:
            raise StoreError(f"the store {self.url} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.url} is not a workbench store: its {MARKER} is damaged") from error
        if version > FORMAT_VERSION:
            raise FormatVersionError(
                f"the store {self.url} has format version {version}, written by workbench {marker.get('created_by', '?')}; "
                f"this is workbench {__version__}, which reads up to version {FORMAT_VERSION}. "
                "Upgrade with: pip install --upgrade vision-workbench"
            )
        return True

    # --- writing ----------------------------------------------------------------------------------------------------

    def begin(self, record: RunRecord) -> RunWriter:
        """Start a run.

        Raises:
            StoreError: the store cannot be written.
        """
        if not self._initialized:
            self.backend.check_writable()
            marker = {"format_version": FORMAT_VERSION, "created_by": __version__, "created": now()}
            self.backend.write(MARKER, json.dumps(marker, indent=1).encode())
            self._initialized = True
        return RunWriter(self.backend, record)

    def delete(self, run_id: str) -> None:
        """Remove a run for good."""
        record = self.run(run_id).record
        self.backend.delete(run_folder(record))

    # --- reading ----------------------------------------------------------------------------------------------------

    def find(self, key: str) -> StoredRun | None:
        """The newest complete run with this key, or None."""
        record = self.index.complete_run(key)
        if record is None or not self.backend.exists(f"{run_folder(record)}/zarr.json"):
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

    def runs(self, where: str = "", *, limit: int | None = None, offset: int = 0) -> list[StoredRun]:
        """Runs that meet a query (see `workbench.store.query`), newest first."""
        condition = compile_query(where, user=current_user())
        return [StoredRun(self.backend, record) for record in self.index.select(condition, limit=limit, offset=offset)]

    def count(self, where: str = "") -> int:
        """How many runs meet a query."""
        return self.index.count(compile_query(where, user=current_user()))

    def runs_with_key(self, key: str) -> list[StoredRun]:
        """All runs with a key, whatever became of them, newest first."""
        return [StoredRun(self.backend, record) for record in self.index.runs_with_key(key)]

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"])  # type: ignore[misc]
