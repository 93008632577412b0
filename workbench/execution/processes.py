"""Worker processes on this machine, one run at a time in each: `local_cluster`, and `gpu_cluster` for its GPUs."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workbench.errors import ClusterError, InputError
from workbench.execution.dask_log import quiet_dask

__all__ = ["gpu_cluster", "local_cluster"]

GUARD = "A script that starts workers does so below `if __name__ == '__main__':`, because each worker imports it"
PRELOAD = ["workbench.execution.preload"]


def local_cluster(workers: int, *, threads: int | None = None, **options: Any) -> Any:
    """Worker processes on this machine: one run at a time in each, torch's threads shared out among them.

    Args:
        workers: number of processes.
        threads: of torch in each; default: the machine's processors divided by the workers, at least one.
        options: of `distributed.LocalCluster`, e.g. `memory_limit="4GiB"`, `dashboard_address=":8787"`.

    Returns:
        a `distributed.LocalCluster`.

    Raises:
        ClusterError: it cannot be started; its `__cause__` is the system's or dask's own error.
    """
    import os

    import distributed

    each = threads or max(1, (os.cpu_count() or 1) // workers)
    environment = _threads(each) | dict(options.pop("env", {}))
    return _started(
        distributed.LocalCluster,
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        env=environment,
        preload=PRELOAD,
        **options,
    )


def gpu_cluster(workers: int | None = None, *, threads: int | None = None, **options: Any) -> Any:
    """One worker process per GPU of this machine, each of which sees that GPU only and has the dask resource `GPU: 1`.

    Args:
        workers: how many GPUs to use; default: all.
        threads: of torch in each, as for `local_cluster`.
        options: of `distributed.SpecCluster`'s scheduler and workers: `host`, `scheduler_port`, `memory_limit`.

    Raises:
        InputError: there are not so many GPUs.
        ClusterError: as for `local_cluster`.
    """
    import os

    import distributed
    import torch

    found = torch.cuda.device_count()
    count = found if workers is None else workers
    if not 1 <= count <= found:
        raise InputError("workers", expected=f"GPUs that this machine has (1 to {found})", got=str(count))
    each = threads or max(1, (os.cpu_count() or 1) // count)
    host = options.get("host", "127.0.0.1")

    def worker(number: int) -> dict[str, Any]:
        environment = _threads(each) | {"CUDA_VISIBLE_DEVICES": str(number)}
        settings = {"nthreads": 1, "resources": {"GPU": 1}, "env": environment, "host": host, "preload": PRELOAD}
        return {"cls": distributed.Nanny, "options": settings | {"memory_limit": options.get("memory_limit", "auto")}}

    scheduler = {"cls": distributed.Scheduler, "options": {"host": host, "port": options.get("scheduler_port", 0)}}
    return _started(
        distributed.SpecCluster, workers={number: worker(number) for number in range(count)}, scheduler=scheduler
    )


def _started(make: Any, **options: Any) -> Any:
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ClusterError(GUARD)  # told by the worker that imports the script, before it starts workers itself
    try:
        with _calm():
            return make(**options)
    except (OSError, RuntimeError) as error:  # dask's own, with the reason behind it
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        hint = f". {GUARD}" if "worker process" in str(reason) else ""
        raise ClusterError(f"the cluster cannot be started: {reason}{hint}") from reason


@contextmanager
def _calm() -> Iterator[None]:
    """Dask's settings for processes that share the machine with what they compute; what somebody set is left alone.

    Out of the box each process looks at its event loop 50 times a second and at its memory 10 times, and each worker at its
    stack 100 times: 4 % of a processor for every worker, idle or not. The dashboard's profile has fewer samples for it, and a
    worker beyond its memory limit is noticed within half a second instead of a tenth. If the dashboard's port is taken,
    its link says which it has instead; dask need not warn.
    """
    import dask
    from dask.utils import parse_timedelta

    wanted = {
        "distributed.admin.tick.interval": ("20ms", "500ms"),
        "distributed.admin.tick.cycle": ("1s", "5s"),
        "distributed.admin.system-monitor.interval": ("500ms", "2s"),
        "distributed.worker.memory.monitor-interval": ("100ms", "500ms"),
        "distributed.worker.profile.interval": ("10ms", "200ms"),
    }
    changed = {
        name: calm
        for name, (usual, calm) in wanted.items()
        if parse_timedelta(dask.config.get(name, usual)) == parse_timedelta(usual)
    }
    quiet_dask()
    with dask.config.set(changed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Port \d+ is already in use")
        yield


def _threads(count: int) -> dict[str, str]:
    # Told before torch is imported there; more threads than processors make everybody slower.
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(count))
