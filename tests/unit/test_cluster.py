"""What a dask client changes: nothing but where runs are computed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import distributed
import numpy as np
import pytest
import torch
import workbench
from torch import nn
from workbench import Method
from workbench.errors import (
    CancelledError,
    InputError,
    IntegrityError,
    RunFailedError,
    SkippedError,
)
from workbench.execution.cluster import Cluster

from unit import sample_methods
from unit.cluster_cases import PATIENCE, Patient, Picture, begun

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
            event.join(60.0)
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
