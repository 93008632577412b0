"""The mirror to MLflow, against a real MLflow tracking store (SQLite)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import workbench
from workbench.errors import CancelledError, RunFailedError, SkippedError
from workbench.execution.progress import CancelToken
from workbench.host import Host

from unit.sample_methods import Declining, Failing, MeanImage

IMAGES = np.random.default_rng(0).random((6, 1, 4, 4), dtype=np.float32)


@pytest.fixture
def bench(tmp_path):
    host = Host(found=[EntryPoint("mlflow", "workbench_mlflow", "workbench")])
    (status,) = host.plugins
    assert status.state == "loaded", status
    return workbench.open(tmp_path / "store", host=host)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty tracking store; MLflow takes seconds to make one, so the tests work on copies."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def client(database, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{shutil.copy(database, tmp_path / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    return MlflowClient(address)


def mirrored(client, experiment="workbench"):
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else client.search_runs([found.experiment_id])


def test_a_complete_run_is_mirrored_with_parameters_metrics_and_its_id(bench, client):
    run = bench.run(MeanImage, data=IMAGES, scale=2.0, seed=3, progress=False)
    (mirror,) = mirrored(client)
    assert mirror.info.status == "FINISHED"
    assert mirror.info.run_name == run.id
    assert mirror.data.params["scale"] == "2.0"
    assert mirror.data.params["mode"] == "mean"
    assert mirror.data.params["seed"] == "3"
    assert mirror.data.metrics["brightness"] == pytest.approx(run.metrics["brightness"])
    assert mirror.data.metrics["seconds"] == pytest.approx(run.record.seconds)
    assert mirror.data.tags["workbench.run"] == run.id
    assert mirror.data.tags["workbench.key"] == run.key
    assert mirror.data.tags["mlflow.note.content"] == "An average."
    assert 0 <= mirror.info.end_time - mirror.info.start_time < 600_000


def test_what_comes_from_the_store_is_not_mirrored_again(bench, client):
    bench.run(MeanImage, data=IMAGES, progress=False)
    assert bench.run(MeanImage, data=IMAGES, progress=False).served
    assert len(mirrored(client)) == 1


def test_a_run_that_fails_is_cancelled_or_declined(bench, client, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "trials")
    with pytest.raises(RunFailedError):
        bench.run(Failing, progress=False)
    (failed,) = mirrored(client, "trials")
    assert failed.info.status == "FAILED"
    assert "the matrix is singular" in failed.data.tags["workbench.failure"]
    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        bench.run(MeanImage, data=IMAGES, progress=False, cancel=token)
    assert {mirror.info.status for mirror in mirrored(client, "trials")} == {"FAILED", "KILLED"}
    with pytest.raises(SkippedError):
        bench.run(Declining, progress=False)
    assert len(mirrored(client, "trials")) == 2
    assert mirrored(client) == []


def test_intervals_and_numbers_that_are_none(bench, client):
    from workbench import Metric, Report

    class Odd(MeanImage):
        """A report with an interval and a number that is none."""

        def report(self, result):
            metrics = [Metric(name="top-5 (%)", value=0.5, interval=(0.25, 0.75)), Metric(name="gap", value=float("inf"))]
            return Report(summary="Odd.", metrics=metrics)

    bench.run(Odd, data=IMAGES, progress=False)
    (mirror,) = mirrored(client)
    values = mirror.data.metrics
    assert (values["top-5 ___"], values["top-5 ____lower"], values["top-5 ____upper"]) == (0.5, 0.25, 0.75)
    assert values["gap"] > 1e300


def test_a_tracking_store_that_is_down_disturbs_no_run(bench, client, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/absent/folder/mlflow.db")
    (tmp_path / "absent").write_text("a file where a folder should be")
    run = bench.run(MeanImage, data=IMAGES, progress=False)
    assert run.status == "complete"
    (status,) = bench.plugins
    assert "workbench_run_finished raised" in status.reason


def test_without_an_address_it_is_idle_and_does_not_import_mlflow(tmp_path):
    code = (
        "import os, sys; os.environ.pop('MLFLOW_TRACKING_URI', None)\n"
        "import workbench_mlflow as plugin; plugin.workbench_run_finished({}); assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
