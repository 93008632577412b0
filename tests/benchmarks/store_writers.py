"""Many processes write small runs into one local store: all there, once each, and nobody waits for anybody.

    python tests/benchmarks/store_writers.py [--processes 8] [--runs 200]

Compared with one process that writes as many runs as each of the others does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workbench.store import Store

HERE = str(Path(__file__).parents[1])
WRITER = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
import numpy as np
from unit.store_cases import add
from workbench.store import Store
store = Store({store!r}, index_folder=Path({index!r}))
arrays = {{f"array_{{n}}": np.zeros((50, 10), np.float32) for n in range(5)}}
print("ready", flush=True)
sys.stdin.readline()
for _ in range({runs}):
    add(store, arrays)
"""


def throughput(folder: Path, processes: int, runs: int) -> float:
    """Runs a second of so many processes with so many runs each; checks that all are there and sound."""
    store = folder / f"store-{processes}"
    children = []
    for number in range(processes):
        code = WRITER.format(here=HERE, store=str(store), index=str(folder / f"index-{processes}-{number}"), runs=runs)
        command = [sys.executable, "-c", code]
        children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    started = time.perf_counter()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    assert all(child.wait() == 0 for child in children)
    seconds = time.perf_counter() - started
    found = Store(store, index_folder=folder / f"index-{processes}")
    ids = [run.id for run in found.runs("status = complete")]
    assert len(ids) == len(set(ids)) == processes * runs
    assert list(found.verify()) == []
    return processes * runs / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--runs", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        alone = throughput(Path(place), 1, arguments.runs)
        together = throughput(Path(place), arguments.processes, arguments.runs)
    print(
        f"1 process: {alone:.0f} runs/s; {arguments.processes} processes: {together:.0f} runs/s ({together / alone:.2f} x)"
    )


if __name__ == "__main__":
    main()
