"""The rule on dask: a run in a worker process is the run it is here."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from workbench.testing.repetition import differences
from workbench.testing.trial import Attempt, Trial, first_line

__all__ = ["RULES_OF_CLUSTER"]


@functools.cache
def _client() -> Any:
    """One worker process for everything that this process tries; it computes with as many threads as this one."""
    import distributed
    import torch

    from workbench.execution.processes import local_cluster

    cluster = local_cluster(1, threads=torch.get_num_threads(), dashboard_address="127.0.0.1:0")
    connect: Any = distributed.Client
    client = connect(cluster, set_as_default=False)
    client.run(_hush)
    atexit.register(cluster.close)
    atexit.register(client.close)
    return client


def _hush() -> None:
    # What a method prints is judged where it is tried in this process; a worker would mix it into whatever is shown here.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


ROUNDING = 1e-6
"""Of the largest value: where memory lies decides in which order libraries add, and another process has other memory."""


def _dask(trial: Trial) -> Iterator[str]:
    if importlib.util.find_spec("distributed") is None:
        return
    there = Attempt()
    try:
        far = trial.bench.on(_client())
        given = {**trial.inputs, **trial.params}
        there.run = far.run(trial.method, seed=0, device="cpu", force=True, progress=False, **given)
    except Exception as error:  # whatever it is, it does not work there
        there.error = error
    if there.run is None:
        yield f"in a worker process: {first_line(there.problem)}"
        return
    for difference in differences(trial, trial.first, there, ROUNDING):
        # A method that gives other numbers every time breaks another rule, which says so.
        if not differences(trial, trial.first, trial.plain_again):
            yield f"here and in a worker process: {difference}"


RULES_OF_CLUSTER: Mapping[str, Callable[[Trial], Iterator[str]]] = {"dask": _dask}
"""Rule -> what a trial shows against it."""
