"""What a sweep on dask gains and costs: 64 runs of a second on two workers, 2,000 tiny runs, and the client's memory.

    python tests/benchmarks/sweeps.py [--part long|tiny]

Long: the same fixed work (matrix products of one thread, about a second a run) inline, on two workers of one thread, and by
two plain processes without dask or the workbench: that is what the machine can give, whose processors may share caches,
memory and clock. The three take turns, sweep by sweep, because the speed of a shared machine changes from minute to minute;
shorter rounds would count the end of a sweep, where one worker has nothing left to do, several times.
Tiny: 2,000 runs that store one number, and between them some inline. Overhead per run: wall time per run on two workers less
wall time per run inline; and, harder, less half of it, because two workers share the work. Client, scheduler and workers
share two processors. The cluster is that of `workbench cluster`, in processes of its own, so the client's memory is its own.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    assert sweep.progress.counts.get("complete") == runs, sweep
    return taken


def multiply(products: int) -> None:
    """The same without the workbench."""
    matrix = torch.rand(256, 256, generator=torch.Generator().manual_seed(0))
    product = matrix
    for _ in range(products):
        product = torch.nn.functional.normalize(product @ matrix)
    float(product.sum())


def products_of_a_second() -> int:
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < 2.0:
        multiply(50)
        count += 50
    return count // 2


class PlainProcesses:
    """Two processes that multiply when they are told to."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--plain"]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        self.seconds_of(2, 1)

    def seconds_of(self, runs: int, products: int) -> float:
        """Wall time of so many runs, half of them in each."""
        started = time.perf_counter()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{runs // 2} {products}\n")
            process.stdin.flush()
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
        return time.perf_counter() - started

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.communicate()


def serve_plain() -> None:
    """What such a process does."""
    for line in sys.stdin:
        runs, products = map(int, line.split())
        for _ in range(runs):
            multiply(products)
        print("done", flush=True)


def long_runs(folder: str, client: Any, cluster: psutil.Process, runs: int, rounds: int) -> None:
    bench = opened(f"{folder}/inline")
    far = opened(f"{folder}/far").on(client)
    plain = PlainProcesses()
    seconds_of(far, 4, 1, "warm")
    seconds_of(bench, 1, 1, "warm")
    products = products_of_a_second()
    inline, workers, processes, used = [], [], [], dict[str, float]()
    for number in range(rounds):
        # Another number of products for every round: else the store would have them.
        started = time.process_time()
        inline.append(seconds_of(bench, runs, products + number, "long"))
        here = time.process_time() - started
        before = busy(cluster)
        workers.append(seconds_of(far, runs, products + number, "long"))
        taken = {"inline": here} | {name: seconds - before[name] for name, seconds in busy(cluster).items()}
        used = {name: used.get(name, 0.0) + seconds for name, seconds in taken.items()}
        processes.append(plain.seconds_of(runs, products + number))
    plain.close()
    print(f"{rounds} rounds of {runs} runs of {products} products, a second each")
    print(
        "processor time per run, s:", ", ".join(f"{name} {value / runs / rounds:.3f}" for name, value in used.items())
    )
    for name, seconds in (("two workers", workers), ("two plain processes", processes)):
        ratios = [one / other for one, other in zip(inline, seconds, strict=True)]
        print(
            f"{name}: {sum(seconds):.1f} s, inline {sum(inline):.1f} s: {sum(inline) / sum(seconds):.2f} x "
            f"(rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})"
        )
    ratios = [one / other for one, other in zip(processes, workers, strict=True)]
    print(f"two workers do {statistics.median(ratios):.2f} x the work of two plain processes in the same time")


def busy(cluster: psutil.Process) -> dict[str, float]:
    """Seconds of processor time so far: of this process, the scheduler, the workers."""
    processes = {"client": [psutil.Process()], "scheduler": [cluster], "workers": cluster.children(recursive=True)}
    return {name: sum(sum(one.cpu_times()[:2]) for one in found) for name, found in processes.items()}


def tiny_runs(folder: str, client: Any, cluster: psutil.Process, runs: int, quarters: int = 4) -> None:
    bench = opened(f"{folder}/inline-tiny")
    far = opened(f"{folder}/far-tiny").on(client)
    seconds_of(far, 8, 1, "warm")
    seconds_of(bench, 8, 1, "warm")
    process, memory, inline, workers, used = psutil.Process(), [], [], [], dict[str, float]()
    for part in range(quarters):
        inline.append(seconds_of(bench, 50, 3 + part, "tiny") / 50)
        before = busy(cluster)
        workers.append(seconds_of(far, runs // quarters, 3 + part, "tiny") / (runs // quarters))
        after = busy(cluster)
        used = {name: used.get(name, 0.0) + after[name] - before[name] for name in after}
        gc.collect()
        memory.append(process.memory_info().rss / 2**20)
    one, two = statistics.mean(inline), statistics.mean(workers)
    print(f"inline {1e3 * one:.1f} ms a run; {runs} on two workers {1e3 * two:.1f} ms a run")
    print(
        "by quarter, ms:", ", ".join(f"{1e3 * a:.1f} and {1e3 * b:.1f}" for a, b in zip(inline, workers, strict=True))
    )
    print(f"overhead per run: {1e3 * (two - one):.1f} ms; less half the inline time: {1e3 * (two - one / 2):.1f} ms")
    print("processor time per run, ms:", ", ".join(f"{name} {1e3 * value / runs:.1f}" for name, value in used.items()))
    print("memory of the client after each quarter, MiB:", ", ".join(f"{value:.1f}" for value in memory))


@contextmanager
def cluster_of_two(cache: str) -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of what `workbench cluster --workers 2` starts."""
    command = [sys.executable, "-m", "workbench", "cluster", "--workers", "2", "--threads", "1", "--port", "0"]
    environment = os.environ | {"XDG_CACHE_HOME": cache, "PYTHONUNBUFFERED": "1"}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert started.stdout is not None
        yield started.stdout.readline().strip().removeprefix("scheduler: "), psutil.Process(started.pid)
    finally:
        started.send_signal(signal.SIGINT)
        started.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=["long", "tiny", "both"], default="both")
    parser.add_argument("--long-runs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="of the long runs")
    parser.add_argument("--tiny-runs", type=int, default=2000)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.plain:
        serve_plain()
        return
    import distributed

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        with cluster_of_two(f"{folder}/cache") as (address, cluster), distributed.Client(address) as client:
            if options.part in ("long", "both"):
                long_runs(folder, client, cluster, options.long_runs, options.rounds)
            if options.part in ("tiny", "both"):
                tiny_runs(folder, client, cluster, options.tiny_runs)


if __name__ == "__main__":
    main()
