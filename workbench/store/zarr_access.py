"""Opening zarr arrays the one way this project does: the Rust codec pipeline where it is installed, every chunk written."""

from __future__ import annotations

import importlib.util
import threading
from functools import cache
from typing import Any

from workbench.store.backend import Backend

__all__ = ["open_array"]

_LOCK = threading.Lock()


@cache
def _pipeline() -> str | None:
    # Measured: 1.5 to 3 times the throughput of zarr's own pipeline (tests/benchmarks).
    if importlib.util.find_spec("zarrs") is None:
        return None
    import zarrs  # noqa: F401  (registers the pipeline)

    return "zarrs.ZarrsCodecPipeline"


def open_array(backend: Backend, key: str, *, writable: bool) -> Any:
    """The `zarr.Array` at `key`, opened with our codec pipeline without changing the user's zarr configuration."""
    import zarr

    store = backend.zarr_store(key, read_only=not writable)
    mode: Any = "r+" if writable else "r"
    settings: dict[str, Any] = {"array.write_empty_chunks": True}
    pipeline = _pipeline()
    if pipeline is not None:
        settings["codec_pipeline.path"] = pipeline
    with _LOCK, zarr.config.set(settings):
        return zarr.open_array(store=store, mode=mode, zarr_format=3)
