"""Stores to test with: a record, a store with some arrays, and ways to damage and forge what lies in them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from workbench.record import RunRecord, new_run_id
from workbench.store import Store

_newest = 0


def moment_of_its_own() -> str:
    """Now, in milliseconds as records have it, but later than any before: runs of one moment would lie in any order."""
    global _newest
    _newest = max(time.time_ns() // 10**6, _newest + 1)
    return datetime.fromtimestamp(_newest / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def record(**changes: Any) -> RunRecord:
    moment = moment_of_its_own()
    values = {
        "id": new_run_id("sample.test"), "key": "k" * 8, "method": "sample.test", "method_title": "", "method_version": "1",
        "method_code": None, "params": {}, "inputs": {}, "seed": 0, "precision": "float32", "status": "running",
        "user": "ada", "host": "elsewhere", "pid": 1, "started": moment, "heartbeat": moment, "device": "cpu",
    }  # fmt: skip
    return RunRecord(**values | changes)


def new_store(tmp_path: Path, name: str = "store") -> Store:
    return Store(tmp_path / name, index_folder=tmp_path / f"{name}-index")


def add(
    store: Store, arrays: dict[str, np.ndarray] | None = None, *, uses: tuple[str, ...] = (), **changes: Any
) -> str:
    """A complete run with some arrays, made from the runs `uses`."""
    if uses:
        changes["inputs"] = {"data": {"label": "", "runs": list(uses)}}
    writer = store.begin(record(**changes))
    for name, values in (arrays or {}).items():
        writer.put(name, values, tuple(f"{name.rpartition('/')[2]}_{axis}" for axis in range(values.ndim)))
    done = writer.complete()
    store.index.put(done)
    return done.id


def photos(count: int = 60) -> np.ndarray:
    """More than one chunk, so that they lie in shards."""
    return np.random.default_rng(0).integers(0, 255, (count, 3, 128, 128), dtype=np.uint8)


def folder_of(store: Store, run: str) -> Path:
    return Path(store.url, "runs", store.run(run).record.month, run)


def age(store: Store, run: str, seconds: float) -> None:
    """Make all files of a run look as old as that to the file system."""
    for path in folder_of(store, run).rglob("*"):
        moment = time.time() - seconds
        os.utime(path, (moment, moment))


def forge(store: Store, run: str, change: Callable[[dict[str, Any]], Any], *, sign: bool = True) -> None:
    """Change a run's record as a forger would, checksum included."""
    path = folder_of(store, run) / "zarr.json"
    document = json.loads(path.read_bytes())
    attributes = document["attributes"]
    change(attributes["workbench"])
    if sign:
        body = json.dumps(attributes["workbench"], separators=(",", ":"))
        attributes["checksum"] = f"{crc32c(body.encode()):08x}"
    path.write_text(json.dumps(document, separators=(",", ":")))


def stored(tmp_path: Path, **arrays: np.ndarray) -> tuple[Store, str]:
    store = Store(tmp_path / "store", index_folder=tmp_path / "index")
    writer = store.begin(record())
    for name, values in arrays.items():
        writer.put(name, values, tuple(f"{name}_{axis}" for axis in range(values.ndim)))
    done = writer.complete()
    store.index.put(done)
    return store, done.id
