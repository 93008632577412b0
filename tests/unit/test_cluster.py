"""What a dask client changes: nothing but where runs are computed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import torch
import workbench
from pydantic import Field
from torch import nn
from workbench import DataRole, Method, Output, Params, Report
from workbench.cli import main
from workbench.errors import (
    CancelledError,
    ClusterError,
    ClusterLostError,
    InputError,
    IntegrityError,
    PluginError,
    RunFailedError,
    SkippedError,
)
from workbench.execution import shipping, worker
from workbench.execution.cluster import Cluster
from workbench.execution.processes import local_cluster
from workbench.execution.worker import perform

from unit import sample_methods

distributed = pytest.importorskip("distributed")

PATIENCE = 120.0


@pytest.fixture
def far(bench, client):
    """The bench of the tests, with its runs on workers."""
    return bench.on(client)


class Patient(Method):
    """Waits for a file, reporting progress; says who computes it."""

    id = "sample.patient"
    title = "Waits"
    inputs: ClassVar = {"data": DataRole("images", {"image": ("sample", "channel", "y", "x")}, optional=True)}
    outputs = (Output("value", ("sample",), "float64", "numbers"),)

    class Params(Params):
        """Parameters."""

        folder: str = Field(description="where the file `go` will be")

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Leave a note with the process's number, then wait."""
        import os
        import time
        from pathlib import Path

        folder = Path(params.folder)
        out.log(3, loss=0.25)
        stored = out.array("value", (2,))
        stored[0] = 1.0
        (folder / f"begun-{out.seed}-{os.getpid()}").touch()
        while not (folder / "go").exists():
            out.progress(1, 4, "waiting")
            time.sleep(0.01)
        stored[1] = 2.0

    def report(self, result: Any) -> Report:
        """Say something."""
        return Report(summary="Done.")


def begun(folder: Path, count: int = 1) -> list[Path]:
    """Notes of runs that began, once there are so many."""
    end = time.monotonic() + PATIENCE
    while len(found := sorted(folder.glob("begun-*"))) < count:
        assert time.monotonic() < end, "nothing began"
        time.sleep(0.02)
    return found


def process_of(note: Path) -> int:
    return int(note.name.rpartition("-")[2])


# --------------------------------------------------------------------------------------------------- same runs elsewhere


def test_a_run_on_a_worker_is_the_run_it_is_here(bench, far, images):
    there = far.run("sample.mean_image", data=images, scale=2.0, progress=False, study="far")
    here = bench.run("sample.mean_image", data=images, scale=2.0, progress=False, force=True)
    assert there.key == here.key
    assert there.record.pid != os.getpid() == here.record.pid
    assert there.record.inputs == here.record.inputs
    assert there.record.user == here.record.user
    assert there.record.study == "far"
    for name in ("mean", "brightness"):
        np.testing.assert_array_equal(there[name].values, here[name].values)
    assert there.series.equals(here.series)
    assert bench.run("sample.mean_image", data=images, scale=2.0, progress=False).served
    assert far.run("sample.mean_image", data=images, scale=2.0, progress=False).served


@pytest.mark.parametrize("seed", [0, 7])
def test_random_numbers_are_those_of_the_seed(bench, far, seed):
    there = far.run("sample.random_numbers", seed=seed, progress=False)
    here = bench.run("sample.random_numbers", seed=seed, force=True, progress=False)
    np.testing.assert_array_equal(there["value"].values, here["value"].values)


def test_names_runs_arrays_of_runs_and_modules_are_subjects_as_here(bench, far, images):
    labels = np.zeros(12, dtype=np.int64)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    scored = bench.run("sample.scores", model=module, data=(images, labels), progress=False)
    sources = [module, "small-cnn(n_classes=3, width=4)", (scored, "model")]
    for model in sources[:2]:
        there = far.run("sample.scores", model=model, data=(images, labels), force=True, progress=False)
        here = bench.run("sample.scores", model=model, data=(images, labels), force=True, progress=False)
        assert there.key == here.key
        assert there.record.inputs == here.record.inputs
        np.testing.assert_array_equal(there["logit"].values, here["logit"].values)
    first = bench.run("sample.mean_image", data=images, progress=False)
    bench.register(Picture)
    pictures = bench.run("sample.picture", progress=False)
    for data in (pictures, pictures["image"]):
        there = far.run("sample.mean_image", data=data, force=True, progress=False)
        here = bench.run("sample.mean_image", data=data, force=True, progress=False)
        assert (there.key, there.record.inputs) == (here.key, here.record.inputs)
        assert [run.id for run in there.inputs["data"]] == [pictures.id]
    assert first.id not in there.record.inputs["data"]["runs"]


class Picture(Method):
    """Stores pictures for another method."""

    id = "sample.picture"
    title = "Pictures"
    outputs = (Output("image", ("sample", "channel", "y", "x"), "float32", "pictures"),)

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Draw."""
        out.write("image", out.rng().random((3, 1, 4, 4)).astype("float32"))

    def report(self, result: Any) -> Report:
        """Say something."""
        return Report(summary="Done.")


def test_a_class_from_a_notebook_cell_travels_and_its_key_follows_its_code(bench, far, images):
    def define(factor: float) -> type[Method]:
        namespace = {"MeanImage": sample_methods.MeanImage, "__name__": "notebook_cell_for_cluster"}
        exec(
            "class Mine(MeanImage):\n"
            "    id = 'sample.mine'\n"
            "    def run(self, inputs, params, out):\n"
            "        super(Mine, self).run(inputs, params, out)\n"
            f"        out.log(3, loss={factor})\n",
            namespace,
        )
        return namespace["Mine"]

    first = far.run(define(1.0), data=images, progress=False)
    again = far.run(define(1.0), data=images, progress=False)
    other = far.run(define(2.0), data=images, progress=False)
    assert again.id == first.id
    assert other.key != first.key
    assert other.series["loss"].values.tolist() == [0.5, 0.25, 2.0]


SCRIPT = """
import sys
import distributed, workbench
from workbench import Method, Output, Report
from workbench.host import Host

class Mine(Method):
    id, title = "sample.of_a_script", "Of a script"
    outputs = (Output("value", (), "float64", "a number"),)
    def run(self, inputs, params, out):
        out.write("value", 2.5)
    def report(self, result):
        return Report(summary="Done.")

if __name__ == "__main__":
    with distributed.Client(sys.argv[1]) as client:
        bench = workbench.open(sys.argv[2], host=Host(found=[]), client=client)
        print(float(bench.run(Mine, progress=False)["value"]))
"""


def test_a_class_from_a_script_travels(client, tmp_path):
    """The workers' own script is another one: what the class is can only come with it."""
    (tmp_path / "mine.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "mine.py"), client.scheduler.address, str(tmp_path / "store")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (told.stdout, told.returncode) == ("2.5\n", 0), told.stderr


def test_methods_of_plugins_travel_by_name(tmp_path, client):
    here = workbench.open(tmp_path / "store")
    there = here.on(client)
    run = there.run("training.evaluation", model="small-cnn", data="digits[:64]", progress=False)
    again = here.run("training.evaluation", model="small-cnn", data="digits[:64]", progress=False, force=True)
    assert run.key == again.key
    np.testing.assert_allclose(run["logit"].values, again["logit"].values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("method", "error"), [("sample.failing", RunFailedError), ("sample.declining", SkippedError)])
def test_errors_come_back_as_what_they_are(far, method, error):
    with pytest.raises(error) as told:
        far.run(method, progress=False)
    if error is RunFailedError:
        assert "ValueError: the matrix is singular" in far[told.value.run_id].traceback


def test_bad_input_raises_where_it_can_be_seen(far, images):
    with pytest.raises(InputError, match="scale"):
        far.submit("sample.mean_image", data=images, scale=-1)
    handle = far.submit("sample.mean_image", data="no-such-data")  # only the worker knows what it has
    with pytest.raises(InputError, match="no-such-data"):
        handle.result(PATIENCE)
    bad = images.copy()
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="finite"):
        far.run("sample.mean_image", data=bad, progress=False)


@pytest.mark.parametrize(
    "error",
    [
        InputError("a", expected="b", got="c", hint="d"),
        SkippedError("m", "why"),
        IntegrityError("r", "a", "[0:1]", "damaged"),
        RunFailedError("m", "r", ValueError("x")),
        CancelledError(),
    ],
)
def test_every_error_can_travel(error):
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


# ------------------------------------------------------------------------------------------------- progress and cancelling


def test_progress_arrives_and_a_cancelled_run_stops(far, tmp_path):
    handle = far.submit(Patient, folder=str(tmp_path))
    begun(tmp_path)
    end = time.monotonic() + PATIENCE
    while not (handle.progress.total and handle.run_id):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert (handle.status, handle.progress.done, handle.progress.message) == ("running", 1.0, "waiting")
    assert dict(handle.progress.values) == {"loss": 0.25}
    assert [run.id for run in far.runs("status = running")] == [handle.run_id]
    handle.cancel()
    with pytest.raises(CancelledError):
        handle.result(PATIENCE)
    assert far[handle.run_id].status == "cancelled"


def test_a_pending_run_is_cancelled_before_it_begins(far, tmp_path):
    handles = [far.submit(Patient, folder=str(tmp_path), seed=seed) for seed in range(4)]
    begun(tmp_path, 2)
    for handle in handles[2:]:
        handle.cancel()
    assert [handle.status for handle in handles[2:]] == ["cancelled"] * 2
    (tmp_path / "go").touch()
    assert [handle.result(PATIENCE).seed for handle in handles[:2]] == [0, 1]
    assert sorted(run.seed for run in far.runs()) == [0, 1]


def test_run_can_be_stopped_with_a_token(far, tmp_path):
    from workbench.execution.progress import CancelToken

    token = CancelToken()
    threading.Thread(target=lambda: (begun(tmp_path), token.cancel())).start()
    with pytest.raises(CancelledError):
        far.run(Patient, folder=str(tmp_path), cancel=token, progress=False)
    assert [run.status for run in far.runs()] == ["cancelled"]


def test_tasks_are_readable_on_the_dashboard(far, tmp_path, client):
    handle = far.submit(Patient, folder=str(tmp_path), seed=4)
    begun(tmp_path)
    (key,) = [key for keys in client.processing().values() for key in keys]
    assert key[0] == "sample.patient"  # dask groups by it
    assert key[1].startswith("seed 4 · ")
    assert "status" in repr(far)
    (tmp_path / "go").touch()
    handle.result(PATIENCE)


# ---------------------------------------------------------------------------------------------------------------- sweeps


def test_progress_that_arrives_while_a_subject_is_spread_blocks_nobody():
    """The client's event loop both brings progress and moves the bytes: one must not wait for the other."""

    class Loop:
        id, status, told = "client", "running", False

        def subscribe_topic(self, topic: str, handler: Any) -> None:
            self.handler = handler

        def scheduler_info(self, **_: Any) -> Any:
            return {"workers": {"a": {}}}

        def scatter(self, blob: bytes, **_: Any) -> Any:
            event = threading.Thread(
                target=self.handler, args=((0.0, {"order": "another", "run_id": "r"}),), daemon=True
            )
            event.start()
            event.join(5.0)
            self.told = not event.is_alive()
            return blob

    loop = Loop()
    Cluster(loop)._placed("digest", b"x" * (1024 * 1024))
    assert loop.told


def test_an_order_that_begins_anew_shares_no_block_with_its_first_try(monkeypatch):
    """Else dask would answer with blocks that lie in the folder of the run whose worker died."""
    from contextlib import nullcontext

    from workbench.execution.blockwise import BlockPlace
    from workbench.execution.progress import CancelToken
    from workbench.execution.worker import DaskBlocks

    names: list[Any] = []

    class Told:
        def __init__(self, key: Any) -> None:
            self.key = key

        def add_done_callback(self, call: Any) -> None:
            call(self)

        def result(self) -> dict[str, int]:
            return {}

    def submit(*_: Any, key: Any, **__: Any) -> Told:
        names.append(key)
        return Told(key)

    monkeypatch.setattr(distributed, "worker_client", lambda: nullcontext(SimpleNamespace(submit=submit)))
    order: Any = SimpleNamespace(method="sample.sums", title="seed 0", token="0123456789")
    regions = [slice(0, 4), slice(4, 8)]
    for run in ("first", "second"):
        place = BlockPlace(None, f"runs/2026-11/{run}", {}, 0)
        assert len(DaskBlocks(order, {}, None).compute(place, regions, lambda _: None, CancelToken())) == 2
    assert len(set(names)) == 4


def test_a_sweep_on_workers_is_the_sweep_it_is_here(bench, far, images):
    there = far.sweep(
        ["sample.mean_image", "sample.random_numbers", "sample.failing"],
        data=[images, images * 0.5], seed=range(3), study="both", progress=False,
    )  # fmt: skip
    assert dict(there.progress.counts) == {"complete": 9, "failed": 3, "waiting": 0}
    here = bench.sweep(
        ["sample.mean_image", "sample.random_numbers"], data=[images, images * 0.5], seed=range(3), progress=False
    )
    assert dict(here.progress.counts) == {"stored": 9, "waiting": 0}
    assert here.run_ids == there.run_ids
    assert len({run.record.pid for run in there.runs}) == 2
    assert os.getpid() not in {run.record.pid for run in there.runs}
    assert {run.record.study for run in there.runs} == {"both"}


# ---------------------------------------------------------------------------------------------------------------- faults


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
    client.wait_for_workers(2)
    assert {run.status for run in far.runs()} == {"interrupted"}


def worker_has(client: Any, name: str, value: Any) -> None:
    """Make every worker believe that something is otherwise there."""

    def change(name: str, value: Any) -> None:
        from workbench.execution import worker

        setattr(worker, name, value)

    client.run(change, name, value)


def test_another_version_on_a_worker_is_refused_by_name(far, client):
    worker_has(client, "__version__", "99.0")
    try:
        with pytest.raises(PluginError, match=r"worker tcp://.* has workbench 99.0, you have"):
            far.run("sample.random_numbers", progress=False)
    finally:
        worker_has(client, "__version__", workbench.__version__)
    assert not far.runs()


def test_a_package_that_workers_lack_is_named_with_the_worker(tmp_path, client):
    here = workbench.open(tmp_path / "store")
    request = here._ask(
        "training.evaluation", {"model": "small-cnn", "data": "digits[:8]"}, 0, None, "float32", False, 0, None
    )
    order, blobs = shipping.make_order(request, here, here.store, here.host)
    lacking = {"method": "training.foreign", "package": ("foreign-package", "2.1")}
    other = {"version": "17"}
    for change, message in (
        (lacking, "lacks the package 'foreign-package'.*foreign-package==2.1"),
        (other, "version 17"),
    ):
        changed = order.__class__(**{**vars(order), **change})
        outcome = client.submit(perform, changed, blobs, client.id, pure=False).result(PATIENCE)
        assert isinstance(outcome.error, PluginError)
        assert "worker tcp://" in str(outcome.error)
        with pytest.raises(PluginError, match=message):
            raise outcome.error
    assert not here.runs()


def test_a_plugin_that_a_worker_has_and_cannot_use_is_named_with_the_reason(monkeypatch):
    """To install it again would not help."""
    blocked = workbench.host.PluginStatus("zoo", "zoo", "zoo-package", "2.1", "blocked", "blocked by configuration")
    host = SimpleNamespace(plugins=[blocked], method=workbench.host.Host(found=[]).method)
    monkeypatch.setattr(worker, "_host", lambda: host)
    order: Any = SimpleNamespace(
        workbench=workbench.__version__, cls=None, package=("zoo-package", "2.1"), method="zoo.lion"
    )
    with pytest.raises(
        PluginError, match=r"worker w has zoo-package 2\.1, but not its zoo\.lion \(plugin zoo blocked: "
    ):
        worker._method(order, "w")


def test_other_code_on_a_worker_is_refused(tmp_path, client):
    here = workbench.open(tmp_path / "store")
    request = here._ask(
        "training.evaluation", {"model": "small-cnn", "data": "digits[:8]"}, 0, None, "float32", False, 0, None
    )
    order, blobs = shipping.make_order(request, here, here.store, here.host)
    changed = order.__class__(**{**vars(order), "code": "0" * 64})
    outcome = client.submit(perform, changed, blobs, client.id, pure=False).result(PATIENCE)
    assert "another text of the code" in str(outcome.error)


def test_a_model_that_cannot_be_packed_is_refused_with_advice(bench, far, images):
    class Locked(nn.Module):
        """Holds what no other process can have."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 3)
            self.lock = threading.Lock()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Infer."""
            return self.linear(x.flatten(1))

    labels = np.zeros(12, dtype=np.int64)
    with pytest.raises(InputError, match=r"model.*cannot be packed.*NAME@FILE.*Without a client") as told:
        far.submit("sample.scores", model=Locked(), data=(images, labels))
    assert told.value.argument == "model"
    assert not far.runs()


def test_a_run_of_another_store_is_refused(far, tmp_path, images):
    other = workbench.open(tmp_path / "elsewhere", host=far.host)
    run = other.run(Picture, progress=False)
    with pytest.raises(InputError, match="workbench store copy"):
        far.submit("sample.mean_image", data=run)


def test_a_store_that_was_out_of_reach_is_a_failure_and_the_next_try_succeeds(far, client, tmp_path):
    """The folder is gone while a run writes, then comes back."""
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


def test_only_workers_with_a_gpu_compute_what_asks_for_one(client):
    cluster = Cluster.__new__(Cluster)
    for workers, device, wanted in [
        ({"a": {"resources": {}}}, None, None),
        ({"a": {"resources": {}}}, "cpu", None),
        ({"a": {"resources": {"GPU": 1}}, "b": {"resources": {}}}, None, {"GPU": 1}),
        ({"a": {"resources": {"GPU": 1}}, "b": {"resources": {}}}, "cuda", {"GPU": 1}),
        ({"a": {"resources": {"GPU": 1}}, "b": {"resources": {}}}, "cpu", None),
    ]:
        cluster._workers = lambda workers=workers: workers  # type: ignore[method-assign]
        assert cluster._resources(device) == wanted


# The last ones end clusters of their own.


def test_a_sweep_goes_on_after_scheduler_and_client_died(bench, tmp_path, tmp_path_factory):
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
        begun(tmp_path)
        workers = psutil.Process().children(recursive=True)
        client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.loop.add_callback(dask_scheduler.close))
        assert sweep.wait(PATIENCE)
    assert "scheduler" in sweep.stopped
    assert {type(failure.error) for failure in sweep.failures} == {ClusterLostError}
    assert sweep.progress.counts["waiting"] >= 40
    with pytest.raises(ClusterLostError):
        far.submit("sample.random_numbers", seed=99)
    psutil.wait_procs(workers, timeout=30)
    (tmp_path / "go").touch()
    again = bench.sweep("sample.patient", folder=folder, seed=range(5), progress=False)
    assert len(again.runs) == 5
    assert len(bench.runs("status = complete and method = sample.patient")) == 5
    assert bench.sweep("sample.random_numbers", seed=range(3), progress=False).run_ids == done.run_ids


def test_the_command_starts_workers_and_ends_with_ctrl_c(bench, tmp_path):
    command = [sys.executable, "-m", "workbench", "cluster", "--workers", "1", "--threads", "1", "--port", "0"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    try:
        assert started.stdout is not None
        told = dict(started.stdout.readline().strip().split(": ", 1) for _ in range(3))
        assert told["workers"].startswith("1;")
        assert told["dashboard"].startswith("http")
        with distributed.Client(told["scheduler"], set_as_default=False) as client:
            (worker,) = client.scheduler_info(n_workers=-1)["workers"].values()
            assert worker["nthreads"] == 1
            assert list(client.run(os.getenv, "OMP_NUM_THREADS").values()) == ["1"]
            (process,) = client.run(os.getpid).values()
            os.kill(process, signal.SIGINT)  # as a terminal does to all: it is not for the worker
            assert list(client.run(os.getpid).values()) == [process]
    finally:
        started.send_signal(signal.SIGINT)
        started.wait(timeout=PATIENCE)
    assert started.returncode == 0


def test_a_port_that_is_taken_is_said_in_a_line(capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["cluster", "--workers", "1", "--port", str(port)]) == 2
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"error: --port: expected a free port, got {port}")
    assert told.err.count("\n") == 1


def test_a_script_whose_workers_would_start_workers_is_told_how_to_start_them(monkeypatch):
    """As Python's spawning puts it: the worker imports the script, which starts a cluster, and so on."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(ClusterError, match="if __name__ == '__main__':"):
        local_cluster(1, threads=1)
