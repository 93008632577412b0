"""How runs end that do not complete: failed, cancelled, killed, refused, on a full disk; nothing half-written stays."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import workbench
from workbench.errors import FormatVersionError, RunFailedError, StoreError

from unit.sample_methods import Checkpointed, Failing, MeanImage


def test_a_failed_run_is_kept_with_its_traceback_and_never_served(bench):
    with pytest.raises(RunFailedError, match="matrix is singular") as caught:
        bench.run("sample.failing", progress=False)
    run = bench[caught.value.run_id]
    assert run.status == "failed"
    assert "the matrix is singular" in run.traceback
    assert "in run" in run.traceback
    with pytest.raises(RunFailedError):
        bench.run("sample.failing", progress=False)
    assert len(bench.runs("status = failed")) == 2
    with pytest.raises(workbench.WorkbenchError, match="no report"):
        run.report()


def test_a_run_that_declines_leaves_no_trace(bench):
    with pytest.raises(workbench.SkippedError, match="no convolution"):
        bench.run("sample.declining", progress=False)
    assert bench.runs() == []
    assert not list(Path(bench.store.url).glob("runs/*/*"))


def test_ctrl_c_cancels_and_earlier_runs_are_untouched(bench, images):
    before = bench.run("sample.mean_image", data=images, progress=False)
    with pytest.raises(workbench.CancelledError):
        bench.run("sample.interrupted", progress=False)
    assert [run.status for run in bench.runs("method = sample.interrupted")] == ["cancelled"]
    assert bench.run("sample.mean_image", data=images, progress=False).id == before.id


def test_cancel_from_another_thread(bench):
    from workbench.execution.progress import CancelToken

    token = CancelToken()
    token.cancel()
    with pytest.raises(workbench.CancelledError):
        bench.run("sample.filling", cancel=token, progress=False)
    assert bench.runs()[0].status == "cancelled"


def test_a_killed_run_goes_on_from_its_checkpoint(bench):
    Checkpointed.stop_at = 2
    with pytest.raises(RunFailedError):
        bench.run("sample.checkpointed", progress=False)
    Checkpointed.stop_at = None
    run = bench.run("sample.checkpointed", progress=False)
    assert Checkpointed.visited == [0, 1, 2, 3]
    assert run["value"].values.tolist() == [6.0]
    assert run.series["loss"].values.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert not list(Path(run.path).glob("checkpoint*"))


def test_a_damaged_checkpoint_costs_time_and_nothing_else(bench):
    Checkpointed.stop_at = 2
    with pytest.raises(RunFailedError) as caught:
        bench.run("sample.checkpointed", progress=False)
    (checkpoint,) = Path(bench[caught.value.run_id].path).glob("checkpoint*")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-30])
    Checkpointed.stop_at, Checkpointed.visited = None, []
    run = bench.run("sample.checkpointed", progress=False)
    assert Checkpointed.visited == [0, 1, 2, 3]
    assert run["value"].values.tolist() == [6.0]
    assert any("checkpoint" in text and "not used" in text for text in run.record.provenance["warnings"])


def test_the_heart_goes_on_beating_whatever_is_logged(bench, monkeypatch):
    from workbench.execution import lifecycle

    monkeypatch.setattr(lifecycle, "HEARTBEAT", 0.05)

    def slow(self, inputs, params, out):
        out.log(1, loss=float("nan"))
        end = time.monotonic() + 300
        for _ in range(2):
            last = out._writer.record.heartbeat
            while out._writer.record.heartbeat == last:
                assert time.monotonic() < end, "the heart stands still"
                time.sleep(0.01)
        out.write("value", np.zeros(1, np.float32))

    monkeypatch.setattr(Failing, "run", slow)
    run = bench.run("sample.failing", progress=False)
    assert run.status == "complete"
    assert np.isnan(run.series["loss"].values).all()


def test_what_a_failed_run_left_is_not_taken_for_the_result(bench, images):
    with pytest.raises(RunFailedError) as caught:
        bench.run("sample.failing", progress=False)
    left = bench[caught.value.run_id]["value"]
    for value in (left, f"run:{caught.value.run_id}[value]", f"run:{caught.value.run_id}"):
        with pytest.raises(workbench.InputError, match="complete run"):
            bench.run("sample.mean_image", data=value, progress=False)


def test_numbers_that_do_not_fit_their_dtype_are_refused(bench, monkeypatch):
    monkeypatch.setattr(Failing, "outputs", (workbench.Output("value", ("sample",), "int8", "small numbers"),))
    for write in (
        lambda out: out.write("value", np.array([200, 3])),
        lambda out: out.array("value", (2,)).__setitem__(slice(None), torch.tensor([200, 3])),
    ):
        monkeypatch.setattr(Failing, "run", lambda self, inputs, params, out, write=write: write(out))
        with pytest.raises(RunFailedError, match="values from 3 to 200 do not fit int8"):
            bench.run("sample.failing", progress=False)


def test_a_metric_and_an_array_of_one_name_are_both_compared(bench, images):
    runs = [bench.run("sample.mean_image", data=images, scale=scale, progress=False) for scale in (1.0, 2.0)]
    table = bench.compare(runs, variables=["brightness"])
    assert table["brightness"].dims == ("run",)
    assert table["brightness_array"].dims == ("run", "sample")


def test_a_full_disk_fails_one_run_and_no_other(bench, images, monkeypatch):
    before = bench.run("sample.mean_image", data=images, progress=False)
    backend = type(bench.store.backend)
    original = backend.write_new_chunk

    def full(self, key, data):
        if key.endswith("zarr.json") or "/c/" in key:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, key, data)

    monkeypatch.setattr(backend, "write_new_chunk", full)
    with pytest.raises(StoreError, match="No space left on device"):
        bench.run("sample.mean_image", data=images, scale=3.0, progress=False)
    monkeypatch.undo()
    assert [run.status for run in bench.runs()] == ["failed", "complete"]
    np.testing.assert_array_equal(bench[before.id]["mean"].values, before["mean"].values)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_disk_that_is_really_full(bench, images, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        small = workbench.open(disk / "store", host=bench.host)
        before = small.run("sample.mean_image", data=images, progress=False)
        with pytest.raises(StoreError, match="No space left on device"):
            small.run("sample.filling", rows=200, progress=False)
        fits = small.run("sample.filling", rows=20, progress=False)  # the failed run has made room
        assert [run.status for run in small.runs()] == ["complete", "failed", "complete"]
        assert fits["value"].shape == (20, 262_144)
        np.testing.assert_array_equal(small[before.id]["mean"].values, before["mean"].values)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_unwritable_store_and_one_of_a_newer_format(bench, images, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StoreError, match=r"cannot be written|below a file"):
        workbench.open(file / "store", host=bench.host).run("sample.mean_image", data=images, progress=False)
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "workbench.json").write_text(json.dumps({"format_version": 99, "created_by": "7.0"}))
    with pytest.raises(FormatVersionError, match=r"format version 99, written by workbench 7\.0"):
        workbench.open(newer, host=bench.host)


def test_warnings_of_libraries_are_kept_and_not_shown(bench, images, recwarn, monkeypatch):
    import warnings

    original = MeanImage.run

    def noisy(self, inputs, params, out):
        warnings.warn("this is deprecated", DeprecationWarning, stacklevel=1)
        warnings.warn("unclosed socket", ResourceWarning, stacklevel=1)  # as the garbage collector tells of somebody's
        original(self, inputs, params, out)

    monkeypatch.setattr(MeanImage, "run", noisy)
    run = bench.run("sample.mean_image", data=images, progress=False)
    assert any("this is deprecated" in text for text in run.record.provenance["warnings"])
    assert not any("unclosed socket" in text for text in run.record.provenance["warnings"])
    # Others are not its own: of what earlier tests left to the garbage collector.
    assert not [warning for warning in recwarn.list if "this is deprecated" in str(warning.message)]
