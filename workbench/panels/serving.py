"""The table of runs as a page of its own: what `workbench serve` shows. Nothing on it can write to the store.

The page is the notebook `static/serve.ipynb`, which voila runs for everybody who opens it. Voila lets a page move widgets
and nothing else: no code can be sent to the kernel. What widgets could still do (tags, notes, views) needs a store that can
be written, and this one is opened through a back-end that refuses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from workbench.bench import DEFAULT_STORE, Workbench
from workbench.errors import StoreError
from workbench.host import Host
from workbench.panels.browse import BrowsePanel
from workbench.store import Store
from workbench.store.backend import Backend, backend_for

__all__ = ["QUERY", "VIEW", "ReadOnlyBackend", "served"]

QUERY, VIEW = "WORKBENCH_SERVE_QUERY", "WORKBENCH_SERVE_VIEW"
"""Environment variables that say what the page begins with."""
_WRITING = ("write", "write_new_chunk", "delete", "delete_object", "prune", "zarr_store", "check_writable")


class ReadOnlyBackend:
    """A store's back-end that writes nothing. Everything else is passed through."""

    writable = False

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.url, self.remote = backend.url, backend.remote

    def __getattr__(self, name: str) -> Any:
        return _refusing(self.url) if name in _WRITING else getattr(self._backend, name)


def _refusing(url: str) -> Callable[..., Any]:
    def refuse(*given: object, **named: object) -> Any:
        raise StoreError(f"the store {url} is shown read-only on this page")

    return refuse


def served() -> BrowsePanel:
    """The table over the store that the environment names, read-only.

    Raises:
        StoreError: the place is not a store or cannot be read. InputError: a query or view that is not understood.
    """
    backend: Any = ReadOnlyBackend(backend_for(os.environ.get("WORKBENCH_STORE") or DEFAULT_STORE))
    view = os.environ.get(VIEW) or None
    return BrowsePanel(Workbench(Store(backend), Host()), os.environ.get(QUERY, ""), view=view)
