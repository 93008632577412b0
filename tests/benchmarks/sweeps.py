"""What a sweep on dask gains and costs: 64 runs of a second on two workers, 2,000 tiny runs, and the client's memory.

    python tests/benchmarks/sweeps.py [--part long|tiny]

Long: the same fixed work (matrix products of one thread, about a second a run) inline and on two workers of one thread.
Tiny: 2,000 runs that store one number. The overhead per run is wall time per run on two workers, less half of what such a
run takes inline (two workers share the work). Client, scheduler and workers share the machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from typing import Any

import psutil
import torch
import workbench
from pydantic import Field
from workbench import Method, Output, Params, Report
from workbench.host import Host


class Products(Method):
    """So many matrix products."""

    id = "benchmark.products"
    title = "Matrix products"
    outputs = (Output("value", (), "float64", "a number"),)

    class Params(Params):
        """Parameters."""

        products: int = Field(1, ge=1, description="how many")

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Multiply."""
        import torch

        matrix = torch.rand(256, 256, generator=out.generator())
        product = matrix
        for _ in range(params.products):
            product = torch.nn.functional.normalize(product @ matrix)
        out.write("value", float(product.sum()))

    def report(self, result: Any) -> Report:
        """Say something."""
        return Report(summary="Done.")


def opened(folder: str) -> Any:
    bench = workbench.open(folder, host=Host(found=[]))
    bench.register(Products)
    return bench


def seconds_of(bench: Any, runs: int, products: int, study: str) -> float:
    started = time.perf_counter()
    sweep = bench.sweep("benchmark.products", seed=range(runs), products=products, study=study, progress=False)
    taken = time.perf_counter() - started
    assert sweep.progress.counts["complete"] == runs, sweep
    return taken


def products_of_a_second() -> int:
    matrix = torch.rand(256, 256)
    count, started = 0, time.perf_counter()
    product = matrix
    while time.perf_counter() - started < 2.0:
        for _ in range(50):
            product = torch.nn.functional.normalize(product @ matrix)
        count += 50
    return count // 2


def long_runs(folder: str, client: Any, runs: int) -> None:
    products = products_of_a_second()
    bench = opened(f"{folder}/inline")
    far = opened(f"{folder}/far").on(client)
    seconds_of(far, 4, 1, "warm")
    inline = seconds_of(bench, runs, products, "long")
    workers = seconds_of(far, runs, products, "long")
    print(
        f"{runs} runs of {products} products: inline {inline:.1f} s, two workers {workers:.1f} s: {inline / workers:.2f} x"
    )


def tiny_runs(folder: str, client: Any, runs: int) -> None:
    bench = opened(f"{folder}/inline-tiny")
    far = opened(f"{folder}/far-tiny").on(client)
    seconds_of(far, 8, 1, "warm")
    seconds_of(bench, 8, 1, "warm")
    inline = seconds_of(bench, 200, 2, "tiny") / 200
    process, memory, total, done = psutil.Process(), [], 0.0, 0
    for part in range(4):
        total += seconds_of(far, runs // 4, 3 + part, "tiny")
        done += runs // 4
        memory.append(process.memory_info().rss / 2**20)
    per_run = total / done
    print(f"inline {1e3 * inline:.1f} ms a run; {done} on two workers {1e3 * per_run:.1f} ms a run")
    print(f"overhead per run: {1e3 * (per_run - inline / 2):.1f} ms")
    print("memory of the client after each quarter, MiB:", ", ".join(f"{value:.0f}" for value in memory))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=["long", "tiny", "both"], default="both")
    parser.add_argument("--long-runs", type=int, default=64)
    parser.add_argument("--tiny-runs", type=int, default=2000)
    options = parser.parse_args()
    import distributed
    from workbench.execution.cluster import local_cluster

    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        local_cluster(2, threads=1, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster) as client,
    ):
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        if options.part in ("long", "both"):
            long_runs(folder, client, options.long_runs)
        if options.part in ("tiny", "both"):
            tiny_runs(folder, client, options.tiny_runs)


if __name__ == "__main__":
    main()
