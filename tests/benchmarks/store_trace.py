"""Do writers of one store wait for each other? Their system calls say: no lock, and no file that two of them write.

    python tests/benchmarks/store_trace.py [--processes 4] [--runs 20]        needs strace (Linux)

Every process writes small runs into the same local store under `strace`. Counted are calls that could make one wait for
another: locks on files of the store, and files of the store that more than one process opened for writing, renamed or removed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from store_writers import HERE, WRITER
from workbench.store import Store

CALLS = "openat,open,creat,rename,renameat,renameat2,unlink,unlinkat,link,linkat,truncate,flock,fcntl"
WRITES = re.compile(r"^(?:openat|open|creat)\(.*\b(?:O_WRONLY|O_RDWR|O_CREAT)\b|^(?:rename|unlink|link|truncate)")
LOCKS = re.compile(r"^flock\(|^fcntl\(.*F_(?:OFD_)?SETLK")


def trace(folder: Path, processes: int, runs: int) -> list[str]:
    """System calls of each writer, as strace prints them; each has its own index, as each person has."""
    store = folder / "store"
    Store(store).prepare()
    children = []
    for number in range(processes):
        code = WRITER.format(here=HERE, store=str(store), index=str(folder / f"index-{number}"), runs=runs)
        command = ["strace", "-f", "-y", "-s", "500", "-e", f"trace={CALLS}", "-o", str(folder / f"trace-{number}")]
        children.append(
            subprocess.Popen(
                [*command, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.communicate("\n")
        assert child.returncode == 0
    found = Store(store, index_folder=folder / "index")
    assert found.count("status = complete") == processes * runs
    return [(folder / f"trace-{number}").read_text() for number in range(processes)]


def main() -> None:
    """Trace and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        store = str(folder / "store")
        writers: dict[str, set[int]] = defaultdict(set)
        locks: Counter[str] = Counter()
        calls = 0
        for number, text in enumerate(trace(folder, arguments.processes, arguments.runs)):
            for line in text.splitlines():
                call = line.partition(" ")[2].lstrip()
                if f"{store}/" not in call:
                    continue
                calls += 1
                if LOCKS.search(call):
                    locks[call.partition("(")[0]] += 1
                if WRITES.search(call):
                    for path in re.findall(rf'"({re.escape(store)}/[^"]*)"', call):
                        writers[path].add(number)
    shared = sorted(path for path, who in writers.items() if len(who) > 1)
    print(f"{arguments.processes} processes x {arguments.runs} runs: {calls} calls on files of the store")
    print(f"locks on files of the store: {sum(locks.values())} {dict(locks) if locks else ''}")
    print(
        f"files of the store that were written, renamed or removed: {len(writers)}, by more than one process: {len(shared)}"
    )
    for path in shared[:10]:
        print(" ", path.removeprefix(store))


if __name__ == "__main__":
    main()
