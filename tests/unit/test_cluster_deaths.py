"""Workers, stores, schedulers and clients that die: nothing is lost, and asking again goes on."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
import workbench
from workbench.errors import (
    ClusterError,
    ClusterLostError,
)
from workbench.execution.processes import local_cluster
from workbench.record import STALE_AFTER

from unit.cluster_cases import PATIENCE, Patient, begun, process_of


def test_a_killed_worker_leaves_nothing_and_another_does_its_work(far, tmp_path):
    handle = far.submit(Patient, folder=str(tmp_path))
    (note,) = begun(tmp_path)
    os.kill(process_of(note), signal.SIGKILL)
    notes = begun(tmp_path, 2)
    (tmp_path / "go").touch()
    run = handle.result(PATIENCE)
    assert run.record.pid == next(process_of(other) for other in notes if other != note)
    assert run["value"].values.tolist() == [1.0, 2.0]
    assert sorted(found.status for found in far.runs()) == ["complete", "interrupted"]
    assert far.run(Patient, folder=str(tmp_path), progress=False).id == run.id


def test_a_method_that_kills_every_worker_is_given_up_with_advice(far, client, tmp_path):
    class Deadly(Patient):
        """Kills its process."""

        id = "sample.deadly"

        def run(self, inputs: Any, params: Any, out: Any) -> None:
            """End it."""
            import os

            os.kill(os.getpid(), 9)

    client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    try:
        with pytest.raises(ClusterError, match="want of memory"):
            far.run(Deadly, folder=str(tmp_path), progress=False)
    finally:
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 3))
    client.wait_for_workers(2, timeout=PATIENCE)
    assert {run.status for run in far.runs()} == {"interrupted"}


@pytest.fixture
def impatient(client):
    """Workers that take a run for interrupted after two seconds without a sign of life."""

    def change(seconds: float) -> None:
        from workbench.store import liveness

        liveness.STALE_AFTER = seconds

    client.run(change, 2.0)
    yield
    client.run(change, STALE_AFTER)


@pytest.mark.usefixtures("impatient")
def test_a_store_that_was_out_of_reach_is_a_failure_and_the_next_try_succeeds(far, tmp_path):
    """The folder is gone while a run writes, then comes back: what could not even say that it failed counts for nothing."""
    handle = far.submit(Patient, folder=str(tmp_path))
    begun(tmp_path)
    folder, away = Path(far.store.url), tmp_path / "away"
    folder.rename(away)
    folder.write_text("")  # a file where the folder was: nothing below it can be read or written
    (tmp_path / "go").touch()
    with pytest.raises(workbench.WorkbenchError, match="Not a directory"):
        handle.result(PATIENCE)
    folder.unlink()
    away.rename(folder)
    run = far.run(Patient, folder=str(tmp_path), progress=False)
    assert run.status == "complete"
    assert [found.id for found in far.runs("status = complete")] == [run.id]


def test_a_sweep_goes_on_after_scheduler_and_client_died(bench, tmp_path, tmp_path_factory, monkeypatch):
    options = {
        "dashboard_address": "127.0.0.1:0",
        "env": {"XDG_CACHE_HOME": str(tmp_path_factory.getbasetemp() / "cache")},
        "local_directory": str(tmp_path / "dask"),
    }
    cluster = local_cluster(1, threads=1, **options)
    with cluster, distributed.Client(cluster, set_as_default=False) as client:
        far = bench.on(client)
        bench.register(Patient)
        done = far.sweep("sample.random_numbers", seed=range(3), progress=False)
        assert len(done.runs) == 3
        folder = str(tmp_path)
        sweep = far.sweep("sample.patient", folder=folder, seed=range(50), in_flight=4, block=False)
        (note, *_) = begun(tmp_path)
        client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.loop.add_callback(dask_scheduler.close))
        assert sweep.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError):  # if dask has not ended it already
            os.kill(process_of(note), signal.SIGKILL)
        # When it closes, dask tries for half a minute to reach the scheduler that is no more.
        monkeypatch.setitem(dask.config.config["distributed"]["comm"]["timeouts"], "connect", "1s")
    assert "scheduler" in sweep.stopped
    assert {type(failure.error) for failure in sweep.failures} == {ClusterLostError}
    assert sweep.progress.counts["waiting"] >= 40
    with pytest.raises(ClusterLostError):
        far.submit("sample.random_numbers", seed=99)
    (tmp_path / "go").touch()
    again = bench.sweep("sample.patient", folder=folder, seed=range(5), progress=False)
    assert len(again.runs) == 5
    assert len(bench.runs("status = complete and method = sample.patient")) == 5
    assert bench.sweep("sample.random_numbers", seed=range(3), progress=False).run_ids == done.run_ids
