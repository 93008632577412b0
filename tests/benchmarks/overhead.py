"""What the workbench adds: a run of five small arrays, a run served from the store, the import, the command line.

    python tests/benchmarks/overhead.py [--rounds 30]

Peers in the same process and turn by turn: bare zarr writing the same arrays with the same codecs and consolidated
metadata, xarray's `to_zarr`, and MLflow (sqlite tracking, the arrays as .npy artifacts), where it is installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from measure import print_table, take_turns

ARRAYS = {
    "logit": (("sample", "class"), np.random.default_rng(0).normal(size=(500, 10)).astype(np.float32)),
    "feature": (("sample", "feature"), np.random.default_rng(1).normal(size=(500, 64)).astype(np.float32)),
    "prediction": (("sample",), np.arange(500) % 10),
    "confusion": (("class", "predicted"), np.arange(100).reshape(10, 10)),
    "heat": (("y", "x"), np.random.default_rng(2).normal(size=(64, 64)).astype(np.float32)),
}


def make_bench(folder: Path) -> tuple[Any, str]:
    """A bench with one method that stores the five arrays and reports one metric."""
    import workbench
    from workbench import Method, Metric, Output, Report
    from workbench.host import Host

    class FiveArrays(Method):
        id = "benchmark.five_arrays"
        title = "Stores five small arrays"
        inputs: ClassVar = {}
        outputs = tuple(Output(name, dims, str(values.dtype), name) for name, (dims, values) in ARRAYS.items())

        def run(self, inputs: Any, params: Any, out: Any) -> None:
            for name, (_, values) in ARRAYS.items():
                out.write(name, values)

        def report(self, result: Any) -> Report:
            return Report(summary="Five arrays.", metrics=[Metric(name="accuracy", value=0.9, direction="higher")])

    host = Host(found=[])
    host.register(FiveArrays)
    return workbench.open(folder / "store", host=host), FiveArrays.id


def bare_zarr(folder: Path) -> None:
    """Write the arrays with zarr alone: our codecs, our pipeline, consolidated metadata."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    blosc = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
    group = zarr.open_group(folder, mode="w", zarr_format=3)
    for name, (dims, values) in ARRAYS.items():
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=values.shape, dimension_names=dims,
            compressors=[blosc, Crc32cCodec()],
        )
        array[...] = values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(group.store)


def with_xarray(folder: Path) -> None:
    """Write the arrays through `Dataset.to_zarr`."""
    import xarray as xr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        xr.Dataset(dict(ARRAYS)).to_zarr(folder, zarr_format=3, consolidated=True)


def with_mlflow(folder: Path) -> Any:
    """A function that logs the arrays as one MLflow run, or None where MLflow (with sqlite tracking) is missing."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    try:
        import logging

        import mlflow

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("bench", artifact_location=str(folder / "artifacts"))
        mlflow.set_experiment("bench")
    except Exception as error:
        print(f"MLflow left out: {error}")
        return None

    def log() -> None:
        with mlflow.start_run(), tempfile.TemporaryDirectory() as place:
            mlflow.log_params({"seed": 0, "precision": "float32"})
            mlflow.log_metrics({"accuracy": 0.9})
            for name, (_, values) in ARRAYS.items():
                np.save(Path(place, f"{name}.npy"), values)
            mlflow.log_artifacts(place)

    return log


def subprocess_seconds(*command: str, rounds: int = 7) -> list[float]:
    """Wall seconds of a whole process, several times."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - started)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        import zarr

        try:
            import zarrs  # noqa: F401

            zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        except ImportError:
            pass
        bench, method = make_bench(folder)
        count = itertools.count()
        seeds = itertools.count()
        candidates: dict[str, Any] = {
            "bare zarr": lambda: bare_zarr(folder / f"zarr-{next(count)}"),
            "xarray to_zarr": lambda: with_xarray(folder / f"xarray-{next(count)}"),
            "workbench run": lambda: bench.run(method, seed=next(seeds), progress=False),
        }
        mlflow = with_mlflow(folder)
        if mlflow is not None:
            candidates["mlflow (sqlite, .npy artifacts)"] = mlflow
        print_table("One run of five small arrays", take_turns(candidates, rounds=rounds), reference="bare zarr")
        served = take_turns({"served": lambda: bench.run(method, seed=0, progress=False)}, rounds=rounds)
        print_table("The same run again, served from the store", served, reference="served")
    python = sys.executable
    imported = subprocess_seconds(python, "-c", "import workbench")
    empty = subprocess_seconds(python, "-c", "pass")
    print_table("Whole processes", {"python -c pass": empty, "import workbench": imported}, reference="python -c pass")
    listed = subprocess_seconds(python, "-m", "workbench", "list")
    print_table("", {"workbench list": listed}, reference="workbench list")
    code = "import workbench, sys, json; print(json.dumps(sorted(set(sys.modules) & {'torch', 'xarray', 'zarr', 'dask'})))"
    heavy = json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)
    print(f"heavy modules imported by `import workbench`: {heavy or 'none'}")


if __name__ == "__main__":
    main()
