"""Commands for many runs and many workers: `sweep` and `cluster`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.errors import ClusterError, ClusterLostError, InputError

if TYPE_CHECKING:
    from workbench.bench import Workbench
    from workbench.execution.sweep import Sweep, SweepFailure
    from workbench.runs import Run

__all__ = ["cluster_command", "sweep_command"]

MOST = 50
"""Reasons of failures that are printed."""


@click.command("sweep")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers compute, e.g. tcp://host:8786.")
@click.option("--workers", type=click.IntRange(min=1), help="Start so many worker processes on this machine.")
@click.option("--in-flight", type=click.IntRange(min=1), help="At most so many points on the way.")
@click.option("--quiet", is_flag=True, help="Print the ids of the runs only.")
@click.pass_context
def sweep_command(
    ctx: click.Context, file: Path, scheduler: str | None, workers: int | None, in_flight: int | None, quiet: bool
) -> None:
    """Run every point of a sweep described in FILE; those in the store are not computed again.

    FILE is YAML. Lists of inputs and seeds are swept; parameters are with {each: [...]}:

    \b
        study: ship/calibration          # optional, as are device and precision
        methods: [calibration.temperature, calibration.vector_scaling]
        seed: [0, 1, 2]
        inputs: {data: [run:20261124-130501-evaluation-4c1e09ab]}
        parameters: {bins: {each: [10, 15]}}
        points: [{bins: 20, seed: 7}]    # optional: an explicit list instead of a product
    """
    import workbench
    from workbench.cli.sweep_file import read_sweep

    if scheduler is not None and workers is not None:
        raise InputError("--workers", expected="either --scheduler or --workers", got="both")
    described = read_sweep(file)
    bench = workbench.open(ctx.find_root().obj)
    with _client(scheduler, workers) as client:
        sweep = _run(bench if client is None else bench.on(client), described, in_flight, quiet)
    for run_id in sweep.run_ids if quiet else ():
        click.echo(run_id)
    if not quiet:
        from workbench.cli.printing import harmless

        click.echo(harmless(str(sweep.progress)))
        for line in _failures(sweep):
            click.echo(harmless(line))
        if sweep.stopped:
            click.echo(harmless(f"stopped: {sweep.stopped}"))
    counts = sweep.progress.counts
    if sweep.stopped or counts.get("failed") or counts.get("cancelled"):
        ctx.exit(1)


def _failures(sweep: Sweep[Run]) -> list[str]:
    """A line for each reason, with the first point that has it. That the cluster was lost is said once for all."""
    alike: dict[tuple[str, str], list[SweepFailure]] = {}
    for failure in sweep.failures:
        if not isinstance(failure.error, ClusterLostError):
            alike.setdefault((failure.status, str(failure.error)), []).append(failure)
    lines = [
        f"{status}: {first}" + (f" (and {len(others)} more for the same reason)" if others else "")
        for (status, _), (first, *others) in alike.items()
    ]
    return lines[:MOST] + ([f"... and {len(lines) - MOST} other reasons"] if len(lines) > MOST else [])


def _run(bench: Workbench, described: Mapping[str, Any], in_flight: int | None, quiet: bool) -> Sweep[Run]:
    given = dict(described)
    methods = given.pop("methods")
    if bench.cluster is not None and bench.cluster.dashboard and not quiet:
        click.echo(f"dashboard: {bench.cluster.dashboard}", err=True)
    return bench.sweep(methods, in_flight=in_flight, progress=not quiet, **given)


@contextmanager
def _client(scheduler: str | None, workers: int | None) -> Iterator[Any]:
    """A client of the scheduler asked for, or of a cluster started for this command; None for neither."""
    if scheduler is None and workers is None:
        yield None
        return
    import distributed

    from workbench.execution.processes import local_cluster

    connect: Any = distributed.Client
    if workers is not None:
        with local_cluster(workers) as cluster, connect(cluster) as client:
            yield client
        return
    try:
        client = connect(scheduler, timeout=10)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no dask scheduler at {scheduler}: {error}") from error
    with client:
        yield client


@click.command("cluster")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Worker processes.  [default: half the processors, at least one]"
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of torch in each.  [default: processors / workers]"
)
@click.option("--port", type=click.IntRange(0, 65535), default=8786, show_default=True, help="Port of the scheduler.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--memory-limit", default="auto", show_default=True, help="Of each worker, e.g. 4GiB.")
@click.option("--gpu", is_flag=True, help="One worker per GPU, each with the dask resource GPU=1.")
def cluster_command(
    workers: int | None, threads: int | None, port: int, host: str, memory_limit: str, gpu: bool
) -> None:
    """Start dask workers on this machine and keep them until Ctrl-C.

    Then, in any notebook: `bench = workbench.open(client=distributed.Client("tcp://127.0.0.1:8786"))`.
    """
    import errno
    import os
    import threading

    from workbench.execution.processes import gpu_cluster, local_cluster

    options = {"scheduler_port": port, "host": host, "memory_limit": memory_limit}
    try:
        if gpu:
            cluster = gpu_cluster(workers, threads=threads, **options)
        else:
            cluster = local_cluster(workers or max(1, (os.cpu_count() or 1) // 2), threads=threads, **options)
    except ClusterError as error:
        reason = error.__cause__
        if isinstance(reason, OSError) and reason.errno == errno.EADDRINUSE:
            raise InputError(
                "--port",
                expected="a free port",
                got=f"{port}, where something else listens",
                hint="If that is a cluster of yours, use it (workbench sweep FILE --scheduler ADDRESS); --port 0 takes any.",
            ) from error
        raise
    with cluster:
        click.echo(f"scheduler: {cluster.scheduler_address}")
        click.echo(f"dashboard: {cluster.dashboard_link}")
        click.echo(f"workers: {len(cluster.workers)}; stop them with Ctrl-C")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("stopping the workers", err=True)
