"""A blockwise method on two workers against one: ResNet-20 over 50,000 pictures, storing logits and features.

    python tests/benchmarks/blockwise.py [--samples 50000]

One worker of one thread, then two; both read the same pictures from a zarr file, lazily. The stored files must be equal.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import workbench
import xarray as xr


def files(run: Any) -> dict[str, bytes]:
    root = Path(run.path)
    found = sorted(path for path in root.rglob("*") if path.is_file() and path != root / "zarr.json")
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def timed(folder: str, workers: int, data: str) -> tuple[float, Any]:
    import distributed
    from workbench.execution.processes import local_cluster

    with (
        local_cluster(workers, threads=1, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster) as client,
    ):
        bench = workbench.open(f"{folder}/store-{workers}", client=client)
        arguments = {"model": "resnet20(n_classes=10)", "features": "penultimate", "progress": False}
        # Every worker has imported what it needs before the clock starts.
        bench.sweep("training.evaluation", model="small-cnn", data="digits[:32]", seed=range(4), progress=False)
        started = time.perf_counter()
        run = bench.run("training.evaluation", data=data, **arguments)
        return time.perf_counter() - started, run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=50_000)
    samples = parser.parse_args().samples
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        generator = np.random.default_rng(0)
        image = generator.integers(0, 256, (samples, 3, 32, 32), dtype=np.uint8)
        label = generator.integers(0, 10, samples)
        dataset = xr.Dataset({"image": (("sample", "channel", "y", "x"), image), "label": ("sample", label)})
        dataset.to_zarr(f"{folder}/pictures.zarr", zarr_format=3, consolidated=False)
        one, first = timed(folder, 1, f"{folder}/pictures.zarr")
        two, second = timed(folder, 2, f"{folder}/pictures.zarr")
        same = files(first) == files(second)
        size = sum(map(len, files(first).values())) / 2**20
        print(f"{samples} pictures: one worker {one:.1f} s, two {two:.1f} s: {one / two:.2f} x")
        print(f"{len(files(first))} files, {size:.1f} MiB, {'the same bytes' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
