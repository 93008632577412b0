"""What becomes of runs when the workers that hold something die, and of what was cancelled: nothing lost, nothing left."""

from __future__ import annotations

import gc
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from workbench import Workbench
from workbench.errors import CancelledError, ClusterLostError, StoreError
from workbench.execution import messages, worker
from workbench.execution.blockwise import BlockPlace
from workbench.execution.cluster import (
    KEPT_MESSAGES,
    NO_WORKER,
    TRIES,
    Cluster,
    _Sent,
    cluster_of,
)
from workbench.execution.processes import local_cluster
from workbench.execution.progress import CancelToken

from unit import cluster_cases as runs
from unit import test_blockwise as blocks

distributed = pytest.importorskip("distributed")

PATIENCE = 300.0


@pytest.fixture(scope="module")
def small_cluster(tmp_path_factory: pytest.TempPathFactory):
    """A cluster and a client of it, which has no worker to begin with."""
    folder = tmp_path_factory.mktemp("lone")
    options = {
        "dashboard_address": "127.0.0.1:0",
        "env": {"XDG_CACHE_HOME": str(folder / "cache")},
        "local_directory": str(folder),
        "resources": {"GPU": 1},
    }
    with (
        local_cluster(0, threads=1, **options) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


@pytest.fixture
def lone(small_cluster: Any):
    """A client of a single worker, which has a GPU as far as dask is told: when it dies, nobody else has what it had."""
    cluster, client = small_cluster
    cluster.scale(1)
    client.wait_for_workers(1, PATIENCE)
    return client


class Shown:
    """Remembers whether a bar would show a message."""

    def __init__(self, expected: str) -> None:
        self.expected, self.seen = expected, threading.Event()

    def show(self, done: float, total: float, message: str) -> None:
        """Remember."""
        if message == self.expected:
            self.seen.set()

    def values(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def test_a_cluster_without_workers_is_waited_for_says_so_and_can_be_cancelled(
    bench: Workbench, small_cluster: Any, tmp_path: Path
):
    """Also with subjects in memory, which dask would hold back until there is a worker to take them."""
    cluster, client = small_cluster
    cluster.scale(0)
    end = time.monotonic() + PATIENCE
    while client.scheduler_info(n_workers=-1)["workers"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    (tmp_path / "go").touch()
    pictures = np.random.default_rng(1).random((64, 1, 32, 32), dtype=np.float32)
    far = bench.on(client)
    far.cluster._seen = (float("-inf"), {})  # type: ignore[union-attr]
    unwanted = far.submit(runs.Patient, data=pictures, folder=str(tmp_path), seed=9)
    assert (unwanted.status, unwanted.waits_for) == ("pending", NO_WORKER)
    assert NO_WORKER in repr(unwanted)
    unwanted.cancel()
    assert (unwanted.status, unwanted.waits_for) == ("cancelled", "")
    sweep = far.sweep("sample.patient", data=pictures, folder=str(tmp_path), seed=range(2), block=False)
    shown = Shown(f"0 of 2, {NO_WORKER}")
    attending = threading.Thread(target=sweep.attend, args=(shown,))
    attending.start()
    assert shown.seen.wait(PATIENCE)
    assert sweep.waits_for == NO_WORKER
    cluster.scale(1)
    assert sweep.wait(PATIENCE)
    attending.join(PATIENCE)
    assert (str(sweep.progress), sweep.waits_for) == ("2 of 2: 2 complete", "")
    assert sorted(run.seed for run in bench.runs()) == [0, 1]


def test_a_client_does_not_keep_the_orders_it_sent(bench: Workbench, lone: Any):
    sweep = bench.on(lone).sweep("sample.random_numbers", seed=range(3 * KEPT_MESSAGES), in_flight=1, progress=False)
    assert len(sweep.runs) == 3 * KEPT_MESSAGES
    assert len(lone.scheduler_comm.recent_message_log) <= KEPT_MESSAGES


def test_subjects_in_memory_that_died_with_their_worker_are_sent_again_and_the_sweep_goes_on(
    bench: Workbench, lone: Any, tmp_path: Path
):
    pictures = np.random.default_rng(0).random((64, 1, 32, 32), dtype=np.float32)
    assert pictures.nbytes > worker.SMALL, "small subjects travel with their orders"
    bench.register(runs.Patient)
    sweep = bench.on(lone).sweep("sample.patient", data=pictures, folder=str(tmp_path), seed=range(3), block=False)
    (note,) = runs.begun(tmp_path)
    (tmp_path / "go").touch()
    os.kill(runs.process_of(note), signal.SIGKILL)
    assert sweep.wait(PATIENCE)
    assert (str(sweep.progress), sweep.stopped) == ("3 of 3: 3 complete", "")
    assert sorted(run.seed for run in sweep.runs) == [0, 1, 2]
    assert {run.status for run in bench.runs()} <= {"complete", "interrupted"}
    assert len(bench.runs("status = complete")) == 3


def test_blocks_on_a_gpu_go_on_where_another_gpu_is(bench: Workbench, lone: Any, tmp_path: Path):
    """The order is bound to the resource, not to the worker that had it: a new worker has another address."""
    before = set(lone.scheduler_info(n_workers=-1)["workers"])
    handle = bench.on(lone).submit(blocks.Sums, data=blocks.pictures(23), folder=str(tmp_path))
    (process,) = blocks.begun(tmp_path)
    os.kill(process, signal.SIGKILL)
    (tmp_path / "go").touch()
    there = handle.result(PATIENCE)
    assert not before & set(lone.scheduler_info(n_workers=-1)["workers"])
    here = bench.run(blocks.Sums, data=blocks.pictures(23), folder=str(tmp_path), force=True, progress=False)
    assert blocks.files(there) == blocks.files(here)


def test_an_order_that_is_lost_again_and_again_ends():
    """With an error, after some tries, and each try has a name of its own."""
    names: list[str] = []

    class Lost:
        """A future of a task that dask forgot."""

        status = "lost"

        def add_done_callback(self, call: Any) -> None:
            call(self)

    def submit(*_: Any, key: Any, **__: Any) -> Lost:
        names.append(key[1])
        return Lost()

    client = SimpleNamespace(
        id="lost", status="running", submit=submit, subscribe_topic=lambda *_: None, scheduler_info=lambda **_: {"workers": {}}
    )  # fmt: skip
    order: Any = SimpleNamespace(method="m", key=("m", "seed 0"), token="t", device=None, blockwise=False)
    handle = Cluster(client).submit(order, {"digest": b"small"}, lambda record, served: None)
    assert handle.status == "failed"
    with pytest.raises(ClusterLostError):
        handle.result()
    assert len(names) == len(set(names)) == TRIES


# -------------------------------------------------------------------------------------------------------------- cancelling


def test_a_run_that_was_cancelled_while_its_worker_was_dead_does_not_come_back(
    bench: Workbench, lone: Any, tmp_path: Path
):
    """The worker that comes instead has not heard of the wish to stop: it is told when it begins."""
    (dying,) = lone.scheduler_info(n_workers=-1)["workers"]
    handle = bench.on(lone).submit(runs.Patient, folder=str(tmp_path))
    (note,) = runs.begun(tmp_path)
    os.kill(runs.process_of(note), signal.SIGKILL)
    end = time.monotonic() + PATIENCE
    while dying in lone.scheduler_info(n_workers=-1)["workers"]:
        assert time.monotonic() < end
        time.sleep(0.01)
    handle.cancel()
    with pytest.raises(CancelledError):  # nothing else ends it: the method waits for a file that does not come
        handle.result(PATIENCE)
    assert {run.status for run in bench.runs()} <= {"cancelled", "running", "interrupted"}


class Client:
    """Of a cluster without workers, which keeps every order."""

    id, status = "fake", "running"

    def __init__(self) -> None:
        self.told: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def submit(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(status="pending", add_done_callback=lambda call: None, cancel=lambda: None)

    def run(self, function: Any, tokens: list[str], **_: Any) -> None:
        self.told.put(tokens)

    def subscribe_topic(self, *_: Any) -> None:
        if self.status != "running":
            raise RuntimeError(f"the client is {self.status}")  # dask's own error says about the same

    def scheduler_info(self, **_: Any) -> dict[str, Any]:
        return {"workers": {}}


def order(token: str) -> Any:
    return SimpleNamespace(method="m", key=("m", token), token=token, device=None, blockwise=False)


def test_a_cancelled_sweep_tells_the_workers_few_times(monkeypatch):
    """Not once for each run: with a thousand workers that would be millions of messages."""
    all_cancelled = threading.Event()  # ends the time in which wishes are gathered, however slowly they come
    clock = SimpleNamespace(sleep=lambda _: all_cancelled.wait(PATIENCE), monotonic=time.monotonic)
    monkeypatch.setattr("workbench.execution.cluster.time", clock)
    client = Client()
    cluster = Cluster(client)
    handles = [cluster.submit(order(str(number)), {}, lambda record, served: None) for number in range(200)]
    for handle in handles:
        handle.cancel()
    all_cancelled.set()
    assert sorted(client.told.get(timeout=PATIENCE), key=int) == [str(number) for number in range(200)]
    nobody_tells_workers()
    assert client.told.empty()


def nobody_tells_workers() -> None:
    """Wait until all threads that tell workers have ended."""
    for thread in threading.enumerate():
        if thread.name == "workbench-cancel":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_a_wish_to_stop_is_told_again_until_the_run_has_ended(monkeypatch):
    """The first time it got lost with a worker that died; who came instead has not heard it."""
    monkeypatch.setattr("workbench.execution.cluster.AGAIN", 0.01)
    client = Client()
    heard = client.run

    def run(*arguments: Any, **options: Any) -> None:
        client.run = heard
        raise OSError("a worker died while it was told")

    client.run = run
    handle = Cluster(client).submit(order("t"), {}, lambda record, served: None)
    handle.began("run")
    handle.cancel()
    assert [client.told.get(timeout=PATIENCE) for _ in range(2)] == [["t"], ["t"]]
    handle.ended(error=CancelledError("stopped"))
    nobody_tells_workers()


def test_an_order_that_is_cancelled_while_it_is_sent_again_is_taken_back():
    client, taken = Client(), []
    cluster = Cluster(client)

    def submit(*_: Any, **__: Any) -> Any:
        handle._asked_to_stop = True  # as by `cancel` in another thread, which finds the future of the first try
        return SimpleNamespace(add_done_callback=lambda call: None, cancel=lambda: taken.append("second"))

    handle = cluster.submit(order("t"), {}, lambda record, served: None)
    client.submit = submit
    cluster._send(_Sent(order("t"), {}, handle, lambda record, served: None, tries=1))
    assert (taken, handle.status) == (["second"], "cancelled")
    assert client.told.get(timeout=PATIENCE) == ["t"]


class Secretive:
    """Something on its way to a worker that cannot be opened there."""

    def __reduce__(self) -> Any:
        return _refuse, ("secret",)


def _refuse(_: str) -> None:
    raise StoreError("the store is out of reach")


def test_a_store_that_a_worker_cannot_open_is_told_as_that_and_the_order_stays_out_of_its_log(caplog):
    with caplog.at_level("DEBUG"):
        outcome = worker.perform_packed(worker.sealed(Secretive()), {}, "client")  # type: ignore[arg-type]
    assert isinstance(outcome.error, StoreError)
    assert "secret" not in caplog.text


def test_a_closed_client_is_named_as_such(bench: Workbench):
    client = Client()
    far = Workbench(bench.store, bench.host, Cluster(client))
    client.status = "closed"
    with pytest.raises(ClusterLostError, match="the client is closed"):
        far.sweep(runs.Patient, folder="nowhere", seed=range(2), progress=False)
    with pytest.raises(ClusterLostError, match="the client is closed"):
        bench.on(client)


def test_a_block_that_waited_while_its_run_was_cancelled_computes_nothing(monkeypatch):
    order = object.__new__(worker.Order)
    object.__setattr__(order, "token", "cancelled-before")
    monkeypatch.setattr(worker, "_method", lambda *_: pytest.fail("the block began"))
    messages.cancel([order.token])
    with pytest.raises(CancelledError):
        worker.compute_block(worker.sealed(order), {}, BlockPlace(None, "", {}, 0), 0, 0, 1)


def test_blocks_that_wait_are_taken_back_when_one_fails():
    told: list[Any] = []
    client = SimpleNamespace(
        cancel=lambda tasks: told.append(sorted(task.key for task in tasks)),
        run=lambda call, tokens, **_: told.append(tokens),
    )

    def fail() -> None:
        raise ValueError("singular")

    tasks = [SimpleNamespace(key=number, result=fail if number == 1 else dict) for number in range(4)]
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for task in tasks[:2]:
        ended.put(task)
    order: Any = SimpleNamespace(token="t")
    regions = [slice(number, number + 1) for number in range(4)]
    with pytest.raises(ValueError, match="singular"):
        worker.DaskBlocks(order, {}, None)._collect(
            client, {task.key: (task.key, task) for task in tasks}, regions, ended, lambda _: None, CancelToken()
        )
    assert told == [[2, 3], ["t"]]


# ----------------------------------------------------------------------------------------------------- clients and workers


def test_a_cluster_is_gone_with_its_client():
    class Client:
        """As much of one as is needed: it keeps what it calls."""

        id = "mine"

        def subscribe_topic(self, topic: str, handler: Any) -> None:
            self.handler = handler

    client = Client()
    kept = weakref.ref(cluster_of(client))
    gc.collect()
    assert cluster_of(client) is kept(), "one for each client"
    del client
    gc.collect()
    assert kept() is None


def test_the_scheduler_opens_no_store(bench: Workbench, lone: Any, monkeypatch: pytest.MonkeyPatch):
    """It may be on a machine that cannot reach it. Here it is in this process, which makes no store of an order either."""
    from workbench.store import Store

    def refuse(*_: Any) -> None:
        raise AssertionError("somebody who only passes the order on opened the store")

    monkeypatch.setattr(Store, "__setstate__", refuse)
    assert bench.on(lone).run("sample.random_numbers", progress=False).status == "complete"


def test_memory_that_a_worker_uses_again_is_not_given_back_in_between():
    """Else every tensor costs a page fault for each of its pages: with dask's setting for workers they take twice the time."""
    script = """
import resource, sys
import numpy as np
from workbench.execution.heap import settle_heap
changed = settle_heap() if sys.argv[1] == "settled" else None
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    np.ones(2**16)  # half a megabyte: 128 pages
print(changed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""

    def faults(how: str, **environment: str) -> tuple[str, int]:
        told = subprocess.run(
            [sys.executable, "-c", script, how],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        return told[0], int(told[1])

    if not sys.platform.startswith("linux") or os.confstr("CS_GNU_LIBC_VERSION") is None:
        pytest.skip("only glibc has these thresholds")
    as_dask_starts_them = {"MALLOC_TRIM_THRESHOLD_": "65536"}
    _, before = faults("as it is", **as_dask_starts_them)
    changed, after = faults("settled", **as_dask_starts_them)
    assert changed == "True"
    assert before > 200 * 100
    assert after < before / 20
    assert faults("settled", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False", "somebody chose that"
