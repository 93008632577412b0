"""Opening zarr arrays the two ways this project needs.

`fast` is the Rust codec pipeline (where it is installed) with every chunk written. It decodes part of a chunk or shard
without looking at its checksum (measured: zarrs 0.2.3 returned damaged numbers for every partial read), so whatever is
not a read of whole files goes through zarr's own pipeline, which checks each inner chunk.
"""

from __future__ import annotations

import importlib.util
import threading
from functools import cache
from typing import Any

from workbench.store.backend import Backend

__all__ = ["open_array"]

_LOCK = threading.Lock()
CHECKING_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"


@cache
def _pipeline() -> str | None:
    # Measured: 1.5 to 3 times the throughput of zarr's own pipeline (tests/benchmarks).
    if importlib.util.find_spec("zarrs") is None:
        return None
    import zarrs  # noqa: F401  (registers the pipeline)

    return "zarrs.ZarrsCodecPipeline"


def open_array(backend: Backend, key: str, *, writable: bool, fast: bool = True) -> Any:
    """The `zarr.Array` at `key`; the user's zarr configuration is left as it is.

    Args:
        backend: where.
        key: the array below the store's root.
        writable: whether regions will be assigned.
        fast: the Rust pipeline, for writing and for reading whole files; else zarr's own.
    """
    import zarr

    store = backend.zarr_store(key, read_only=not writable)
    mode: Any = "r+" if writable else "r"
    settings: dict[str, Any] = {"array.write_empty_chunks": True}
    settings["codec_pipeline.path"] = (_pipeline() if fast else None) or CHECKING_PIPELINE
    with _LOCK, zarr.config.set(settings):
        return zarr.open_array(store=store, mode=mode, zarr_format=3)
