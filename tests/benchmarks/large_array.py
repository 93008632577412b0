"""A run whose array is larger than any memory and costs almost nothing on disk: files that are the same are one file.

Every chunk file is a hard link to one of a few that hold noise, so that reading a region costs what it would cost in
an array of which every file was written: whole, incompressible chunks with their checksums. What it cannot tell is how
fast a disk is, because those few files stay in the memory of the operating system.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import workbench
from google_crc32c import value as crc32c
from workbench.host import Host
from workbench.record import RunRecord
from workbench.store.layout import chunk_files, layout_of

from unit.panel_cases import put_run

__all__ = ["DIMS", "SIDE", "large_run"]

SIDE = 512
DIMS = ("sample", "y", "x")
DISTINCT = 4
"""Chunk files that are different from each other."""


def large_run(folder: Path, gibibytes: float = 100.0) -> tuple[workbench.Workbench, str, int]:
    """A store with one run of one float32 array of noise; returns the bench, the run's id and the number of pictures."""
    item = SIDE * SIDE * 4
    bench = workbench.open(folder, host=Host(found=[]))
    rng = np.random.default_rng(0)
    per_file = 32 * 2**20 // item
    seed = rng.integers(0, 2**24, (DISTINCT * per_file, SIDE, SIDE), dtype=np.uint32).astype(np.float32) / np.float32(
        2**24
    )
    noise = (seed + rng.random(seed.shape, dtype=np.float32) * np.float32(2**-24)).astype(np.float32)
    run = put_run(bench, {"spectrum": (DIMS, noise)})
    pictures = int(gibibytes * 2**30 // item // per_file * per_file)
    _enlarge(run, pictures)
    return bench, run.id, pictures


def _enlarge(run: workbench.Run, pictures: int) -> None:
    path = Path(run.path)
    document = json.loads((path / "zarr.json").read_bytes())
    record = document["attributes"]["workbench"]
    entry = record["arrays"]["spectrum"]
    old = layout_of(entry["shape"], entry["dtype"], entry["chunk"], entry["shard"])
    entry["shape"][0] = pictures
    new = layout_of(entry["shape"], entry["dtype"], entry["chunk"], entry["shard"])
    assert old is not None
    assert new is not None
    entry["files"], entry["bytes"] = new.files, math.prod(new.shape) * 4
    have = list(chunk_files(old))
    for number, name in enumerate(chunk_files(new)):
        target = path / "spectrum" / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path / "spectrum" / have[number % len(have)], target)
    array = json.loads((path / "spectrum" / "zarr.json").read_bytes())
    array["shape"][0] = pictures
    (path / "spectrum" / "zarr.json").write_text(json.dumps(array, separators=(",", ":")))
    document["consolidated_metadata"]["metadata"]["spectrum"]["shape"][0] = pictures
    body = json.dumps(record, separators=(",", ":"))
    document["attributes"]["checksum"] = f"{crc32c(body.encode()):08x}"
    (path / "zarr.json").write_text(json.dumps(document, separators=(",", ":")))
    run._bench.store.index.put(RunRecord.from_json(record))
