"""What 1,000 workers writing 1,000,000 runs do to the store, the index, the scheduler and the client. A simulation.

    python tests/benchmarks/thousand_workers.py [--runs 1000000] [--workers 1000] [--seconds 60] [--measure]

The costs are measured here (`--measure` prints them, from real stores of growing size) and put into a queueing model with
one server each: the client's thread, the scheduler, the metadata server of the shared file system. A run on a worker is:
look whether the store has it, compute, write its files. The only quantities that are assumed are those no single machine
can show: operations a second of the file system's metadata server, and milliseconds of the scheduler per task.

Two designs are compared:

- `index`: each worker keeps the index as people do (so it was once). Before every run it lists the month's folder, which has
  changed, and reads the record of every run that others finished since its last look. All workers together read every record
  1,000 times.
- `key files`: a worker looks into the folder named after the key, where every run with that key has left an empty file
  (so it is now: `workbench.store.keys`).
"""

from __future__ import annotations

import argparse
import heapq
import os
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Costs:
    """Seconds and operations of each step; those marked measured are what `measure` gave on two busy cores, rounded."""

    client: float = 0.0046
    """Client's processor time per point: make the order, submit it, take the outcome (measured by sweeps.py, 1,000 runs)."""
    scheduler: float = 0.0055
    """Scheduler's processor time per task (measured by sweeps.py; dask's documentation says about a millisecond)."""
    list_entry: float = 8e-6
    """Worker's time to list and compare one entry of the month's folder (measured)."""
    read_record: float = 0.8e-3
    """Worker's time to read one record and enter it in its index (measured)."""
    files: int = 6
    """Files and folders that a run makes or renames (measured)."""
    metadata: float = 20_000.0
    """Operations a second of the file system's metadata server (assumed: a good NFS or Lustre server)."""
    entries_per_operation: int = 1_000
    """Entries that one listing operation of the server returns (assumed)."""


def measure() -> Costs:
    """Costs on this machine, from a store of 300 small runs and a month's folder of 20,000 entries."""
    import workbench
    from sweeps import Products, opened
    from workbench.dispatch import ask
    from workbench.execution.points import Points
    from workbench.execution.shipping import Packed, make_order

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        bench = opened(f"{folder}/store")
        sweep = bench.sweep("benchmark.products", seed=range(300), progress=False)
        root = os.path.join(bench.store.url, os.path.relpath(bench[sweep.run_ids[0]].path, bench.store.url))
        files = sum(len(names) + len(folders) for _, folders, names in os.walk(root)) + 2
        month = os.path.dirname(root)
        os.environ["XDG_CACHE_HOME"] = f"{folder}/other"
        fresh = workbench.open(bench.store.url)
        started = time.perf_counter()
        assert len(fresh.store.index.ids_like("products")) == 300
        read = (time.perf_counter() - started) / 300
        for number in range(20_000):
            os.mkdir(os.path.join(month, f"entry-{number}"))
        started = time.perf_counter()
        for _ in range(5):
            present = {entry.name for entry in os.scandir(month) if entry.is_dir()}
            present -= {"entry-1"}
        listing = (time.perf_counter() - started) / 5 / 20_000
        packed = Packed()
        point = Points([Products], {}, 0)[0]
        started = time.perf_counter()
        for seed in range(500):
            request = ask(
                bench, point.method, point.arguments, seed, None, "float32", False, 0.0, None, registered=True
            )
            make_order(request, bench, bench.store, bench.host, packed)
        order = (time.perf_counter() - started) / 500
        # Submitting to dask and taking the outcome: two messages of about a millisecond of the client's loop.
        return replace(Costs(), client=order + 0.002, list_entry=listing, read_record=read, files=files)


@dataclass
class Server:
    """One queue: work is done in order of arrival."""

    free: float = 0.0
    busy: float = 0.0

    def serve(self, moment: float, seconds: float) -> float:
        """When work that arrives at `moment` is done."""
        self.free = max(self.free, moment) + seconds
        self.busy += seconds
        return self.free


def simulate(
    costs: Costs, *, runs: int, workers: int, seconds: float, design: str, sample: int = 2_000
) -> dict[str, float]:
    """Throughput and use of every server, around several sizes of the store.

    The whole of it is a million runs; what a run costs only changes with the number that the store has. So `sample` runs per
    worker-wave are played event by event at ten sizes of the store, and the time between is what each size's rate gives.
    """
    total, used = 0.0, dict.fromkeys(("client", "scheduler", "metadata", "worker"), 0.0)
    sizes = (np.arange(10) + 0.5) * runs / 10
    for size in sizes:
        client, scheduler, metadata = Server(), Server(), Server()
        # (moment, what, worker): a worker that is free asks for a point, one that computed it writes. All begin at times that
        # differ, as they would after a while.
        generator = np.random.default_rng(0)
        events = [(float(moment), "free", number) for number, moment in enumerate(generator.random(workers) * seconds)]
        heapq.heapify(events)
        seen = np.full(workers, -workers)
        count, begun, first, last = workers + sample * max(1, workers // 200), 0, 0.0, 0.0
        while begun < count:
            moment, what, worker = heapq.heappop(events)
            if what == "computed":
                files = costs.files + 2 * (design == "key files")  # a folder and a file more
                heapq.heappush(events, (metadata.serve(moment, files / costs.metadata), "free", worker))
                continue
            begun += 1
            first, last = (moment if begun == workers else first), moment
            start = scheduler.serve(client.serve(moment, costs.client), costs.scheduler)
            if design == "index":
                new = min(begun - int(seen[worker]), size)
                seen[worker] = begun
                looked = metadata.serve(start, (size / costs.entries_per_operation + new) / costs.metadata)
                looked += size * costs.list_entry + new * costs.read_record
            else:
                looked = metadata.serve(start, 1 / costs.metadata)
            heapq.heappush(events, (looked + seconds * generator.uniform(0.8, 1.2), "computed", worker))
        rate = (count - workers) / max(last - first, 1e-9)
        total += runs / 10 / rate
        horizon = last
        for name, server in (("client", client), ("scheduler", scheduler), ("metadata", metadata)):
            used[name] += min(1.0, server.busy / horizon) / 10
        used["worker"] += min(1.0, rate * seconds / workers) / 10
    return {"hours": total / 3600, **used}


def report(costs: Costs, runs: int, workers: int, seconds: float) -> None:
    ideal = runs * seconds / workers / 3600
    print(f"\n{runs:,} runs of {seconds:g} s on {workers:,} workers; {ideal:.1f} h if nothing else took time")
    print(f"{'design':12}{'hours':>9}{'workers':>10}{'metadata':>10}{'scheduler':>11}{'client':>8}")
    for design in ("index", "key files"):
        found = simulate(costs, runs=runs, workers=workers, seconds=seconds, design=design)
        print(
            f"{design:12}{found['hours']:9.1f}{found['worker']:10.0%}{found['metadata']:10.0%}"
            f"{found['scheduler']:11.0%}{found['client']:8.0%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, nargs="*", default=[60.0, 600.0, 6.0])
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    costs: Any = measure() if options.measure else Costs()
    print(costs)
    for seconds in options.seconds:
        report(costs, options.runs, options.workers, seconds)


if __name__ == "__main__":
    main()
