"""The store: any folder of write-once runs. `Store` opens one, `StoredRun` reads a run, `RunWriter` writes one."""

from workbench.store.reading import StoredRun
from workbench.store.store import Store
from workbench.store.writer import RunWriter

__all__ = ["RunWriter", "Store", "StoredRun"]
