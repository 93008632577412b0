"""Streaming 1 GiB of float32 from a method into the store, against bare zarr with the same codecs, chunks and pipeline.

    python tests/benchmarks/streaming.py [--mebibytes 1024] [--rounds 5]

Each candidate runs in a process of its own, in turn, so that peak memory (ru_maxrss beyond what the process held before the
first write) can be told. The data are blocks of random numbers drawn once, so drawing does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

BLOCK = 32  # rows a call
ROW = (64, 64, 64)  # one item of 1 MiB: feature maps


def block() -> np.ndarray:
    """32 MiB of float32 that compress like activations: rectified normal numbers of limited precision."""
    values = np.random.default_rng(0).standard_normal((BLOCK, *ROW), dtype=np.float32)
    values *= 256  # in place: temporaries would raise the peak that the extra memory is measured from
    np.rint(values, out=values)
    values /= 256
    return np.maximum(values, 0, out=values)


def workbench_streams(folder: Path, rows: int) -> dict[str, float]:
    """Through `out.array` of a real run."""
    import workbench
    from workbench import Method, Output, Report
    from workbench.host import Host

    values = block()
    facts: dict[str, float] = {}

    class Streaming(Method):
        id = "benchmark.streaming"
        title = "Streams"
        inputs: ClassVar = {}
        outputs = (Output("feature", ("sample", "channel", "y", "x"), "float32", "feature maps"),)

        def run(self, inputs: Any, params: Any, out: Any) -> None:
            facts["before"] = peak()
            facts["started"] = time.perf_counter()
            stored = out.array("feature", (rows, *ROW))
            for start in range(0, rows, BLOCK):
                stored[start : start + BLOCK] = values[: min(BLOCK, rows - start)]

        def report(self, result: Any) -> Report:
            return Report(summary="Streamed.")

    host = Host(found=[])
    host.register(Streaming)
    bench = workbench.open(folder / "store", host=host)
    run = bench.run(Streaming.id, progress=False)
    seconds = time.perf_counter() - facts["started"]
    assert float(run["feature"][rows - 1, 0, 0, 0]) == float(values[(rows - 1) % BLOCK, 0, 0, 0])
    return {"seconds": seconds, "extra": peak() - facts["before"]}


def zarr_streams(folder: Path, rows: int) -> dict[str, float]:
    """The same array created and filled through zarr alone, in regions that are aligned to its shards."""
    import zarr
    from workbench.store.layout import array_document, dump, plan

    try:
        import zarrs  # noqa: F401

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    except ImportError:
        pass
    zarr.config.set({"array.write_empty_chunks": True})
    values = block()
    shape = (rows, *ROW)
    layout = plan(shape, np.dtype("float32"))
    target = folder / "array"
    target.mkdir(parents=True)
    (target / "zarr.json").write_bytes(dump(array_document(layout, ("sample", "channel", "y", "x"), {})))
    before = peak()
    started = time.perf_counter()
    array: Any = zarr.open_array(target, mode="r+", zarr_format=3)
    for start in range(0, rows, BLOCK):
        array[start : start + BLOCK] = values[: min(BLOCK, rows - start)]
    return {"seconds": time.perf_counter() - started, "extra": peak() - before}


def peak() -> float:
    """Largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=["workbench", "zarr"])
    arguments = parser.parse_args()
    if arguments.child:
        stream = workbench_streams if arguments.child == "workbench" else zarr_streams
        with tempfile.TemporaryDirectory() as place:
            print(json.dumps(stream(Path(place), arguments.mebibytes)))
        return
    found: dict[str, list[dict[str, float]]] = {"zarr": [], "workbench": []}
    for _ in range(arguments.rounds):
        for name, results in found.items():
            command = [sys.executable, __file__, "--child", name, "--mebibytes", str(arguments.mebibytes)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"\nStreaming {arguments.mebibytes} MiB of float32, {arguments.rounds} rounds in turn")
    print(f"{'':14}{'MiB/s median':>14}{'extra memory MiB':>18}{'throughput ratio':>18}")
    for name, results in found.items():
        speed = statistics.median(arguments.mebibytes / result["seconds"] for result in results)
        extra = max(result["extra"] for result in results)
        pairs = zip(found["zarr"], results, strict=True)
        ratio = statistics.median(bare["seconds"] / own["seconds"] for bare, own in pairs)
        print(f"{name:14}{speed:14.0f}{extra:18.0f}{ratio:18.2f}")


if __name__ == "__main__":
    main()
