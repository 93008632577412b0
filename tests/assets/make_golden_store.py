"""Made tests/assets/store-format-1 once. Stores of this format must open for ever, so it is not made again.

    python tests/assets/make_golden_store.py FOLDER

A new format version gets a golden store of its own; this script then writes that one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from workbench.store import Store, layout

from unit.store_cases import record

STARTED = "2026-11-25T10:00:0{}.000Z"


def arrays() -> dict[str, np.ndarray]:
    """Every dtype of the format, a scalar, an empty array, strings, a group, and one array in shards."""
    found = {
        f"value_{dtype}": (np.arange(12).reshape(4, 3) % 5).astype(dtype) for dtype in sorted(layout.DTYPES)
    }
    return found | {
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "name": np.array(["conv1", "größer", ""], dtype=object),
        "model/weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "sharded": (np.arange(40 * 30).reshape(40, 30) % 251).astype(np.uint8),
    }


def main(folder: str) -> None:
    """Write the store."""
    store = Store(folder, index_folder=Path(folder).with_name("golden-index"))
    report = {"summary": "A run of long ago.", "metrics": [{"name": "accuracy", "value": 0.75, "direction": "higher"}],
              "tables": [], "views": [], "notes": []}  # fmt: skip
    begun = record(id="20261125-100000-golden-00000001", started=STARTED.format(0), heartbeat=STARTED.format(0),
                   key="0" * 64, params={"bits": 4}, seed=7)  # fmt: skip
    writer = store.begin(begun)
    for name, values in arrays().items():
        small = name == "sharded"
        single, chunk, shard = (512, 120, 480) if small else (2**20, 2**19, 2**25)
        with mock.patch.multiple(layout, SINGLE_CHUNK_BYTES=single, CHUNK_BYTES=chunk, SHARD_BYTES=shard):
            writer.put(name, values, tuple(f"{name.rpartition('/')[2]}_{axis}" for axis in range(values.ndim)))
    writer.complete(report=report, models={"model": {"factory": "linear"}})
    second = record(id="20261125-100001-golden-00000002", started=STARTED.format(1), heartbeat=STARTED.format(1), key=None,
                    inputs={"data": {"label": "golden", "runs": [begun.id]}})  # fmt: skip
    store.begin(second).fail(failure={"type": "ValueError", "message": "no", "traceback": ""})
    said = store.annotations.of(begun.id)
    said.tag("paper", "draft")
    said.untag("draft")
    said.note("kept to see that old stores open")


if __name__ == "__main__":
    main(sys.argv[1])
