"""The index: first build, a query with its first page, one more run, memory; MLflow and signac at equal counts.

    python tests/benchmarks/store_index.py [--runs 100000] [--store FOLDER]

On a store of `generated_store`: records of 6 kB without the arrays they speak of, because the index reads nothing else.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from generated_store import generate
from measure import print_table, take_turns

sys.path.insert(0, str(Path(__file__).parents[1]))

from workbench.store import Store

from unit.store_cases import record

QUERY = "family = quantization and accuracy > 0.9 and user = ada and params.bits = 4"
COMMON = "accuracy > 0.5"


def with_mlflow(folder: Path, count: int) -> Any:
    """A search over as many MLflow runs, or None where MLflow is missing."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    try:
        import logging

        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        experiment = client.create_experiment("bench")
    except Exception as error:
        print(f"MLflow left out: {error}")
        return None
    generator = random.Random(0)
    for _ in range(count):
        run = client.create_run(experiment)
        metrics = [Metric("accuracy", generator.random(), 0, 0)] + [
            Metric(f"m{n}", generator.random(), 0, 0) for n in range(9)
        ]
        params = [Param("bits", str(generator.choice((2, 4, 8))))] + [Param(f"p{n}", "0.5") for n in range(9)]
        client.log_batch(run.info.run_id, metrics=metrics, params=params)
    return lambda: client.search_runs([experiment], "metrics.accuracy > 0.9 and params.bits = '4'", max_results=50)


def with_signac(folder: Path, count: int) -> Any:
    """A search over as many signac jobs, or None where signac is missing."""
    try:
        import signac
    except ImportError:
        print("signac left out: it is not installed")
        return None
    project = signac.init_project(str(folder / "signac"))
    generator = random.Random(0)
    for number in range(count):
        job = project.open_job({"bits": generator.choice((2, 4, 8)), "number": number})
        job.doc.accuracy = generator.random()
    return lambda: list(signac.get_project(str(folder / "signac")).find_jobs({"bits": 4, "doc.accuracy": {"$gt": 0.9}}))


def peers(folder: Path, count: int, make: Any, name: str, rounds: int) -> None:
    """Our query and a peer's at the same number of runs, turn by turn."""
    theirs = make(folder, count)
    if theirs is None:
        return
    store = generate(folder / f"store-{count}", count)
    ours = {"workbench": lambda: store.runs(QUERY, limit=50), name: theirs}
    print_table(f"A query over {count} runs", take_turns(ours, rounds=rounds), reference="workbench")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--store", type=Path, help="a store of generated_store.py, made before")
    parser.add_argument("--peers", type=int, default=1000, help="runs of the comparison with MLflow; 0: none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = arguments.store or Path(generate(folder / "store", arguments.runs).url)
        store = Store(made, index_folder=folder / "index")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        count = store.count()
        seconds = time.perf_counter() - started
        print(f"first build of {count} runs: {seconds:.1f} s, {count / seconds:.0f} runs/s, ", end="")
        print(f"{store.index.path.stat().st_size / 2**20:.0f} MiB on disk, ", end="")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        helper = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(f"{peak / 1024:.0f} MiB of memory at most ({before / 1024:.0f} before), {helper / 1024:.0f} in a helper")
        queries = {
            "query, first page of 50": lambda: store.runs(QUERY, limit=50),
            "the same, sorted by a metric": lambda: store.runs(QUERY, order="-accuracy", limit=50),
            "half of the runs, sorted": lambda: store.runs(COMMON, order="-metric_3", limit=50),
            "all, sorted by a parameter": lambda: store.runs(order="params.criterion", limit=50),
            "count": lambda: store.count(QUERY),
            "studies": store.studies,
            "newest 50 of all": lambda: store.runs("", limit=50),
            "one by its key": lambda: store.find("no such key"),
        }
        print_table(f"Questions to {count} runs", take_turns(queries, rounds=15), reference="one by its key")
        adding = []
        for _ in range(15):
            done = record(
                status="complete", params={f"p{n}": n for n in range(10)}
            )  # entered, never written to the store
            started = time.perf_counter()
            store.index.put(done)
            adding.append(time.perf_counter() - started)
        print(f"adding one run: {1e3 * statistics.median(adding):.2f} ms (slowest {1e3 * max(adding):.2f})")
        if arguments.peers:
            peers(folder, arguments.peers, with_mlflow, "MLflow search_runs", 5)
            peers(folder, 100, with_signac, "signac find_jobs", 15)


if __name__ == "__main__":
    main()
