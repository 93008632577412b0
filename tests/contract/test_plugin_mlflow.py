"""The mirror to MLflow, against a real MLflow tracking store (SQLite) and a real MLflow server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import workbench
from workbench.errors import CancelledError, RunFailedError, SkippedError
from workbench.execution.progress import CancelToken
from workbench.host import Host

import workbench_mlflow
from contract.servers import free_port
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
            metrics = [
                Metric(name="top-5 (%)", value=0.5, interval=(0.25, 0.75)),
                Metric(name="gap", value=float("inf")),
            ]
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


# ------------------------------------------------------------------------------------------------------------ over HTTP

STARTS_WITHIN = 300.0
"""Seconds; the server fills its database and imports pandas before it answers."""


def server_program() -> str:
    """The `mlflow` command of an environment that has all of MLflow; the mirror itself needs mlflow-skinny only."""
    program = os.environ.get("WORKBENCH_TEST_MLFLOW") or shutil.which("mlflow")
    if program is None or not Path(program).is_file():
        pytest.skip("no MLflow server: put `mlflow` on the PATH or name it in $WORKBENCH_TEST_MLFLOW")
    # Next to the command lies the interpreter it runs under.
    python = Path(program).with_name("python")
    wanted = "import flask, graphene, huey, pandas, sqlalchemy, uvicorn"
    done = subprocess.run([python, "-c", wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{program} cannot serve (mlflow-skinny alone?): {done.stderr.strip().splitlines()[-1]}")
    return program


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server of this machine, with an empty SQLite database."""
    program = server_program()
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "artifacts",
    ]  # fmt: skip
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON"))}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        # A session of its own: the server has children, which must not outlive it.
        child = subprocess.Popen(
            command, cwd=folder, env=known | quiet, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if not answers(child, f"{address}/health"):
                pytest.fail(f"the server did not start:\n{(folder / 'log').read_text()[-4000:]}")
            yield address
        finally:
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def answers(child: subprocess.Popen[bytes], url: str) -> bool:
    """Whether a server begins to answer before it ends or the time is up."""
    end = time.monotonic() + STARTS_WITHIN
    while child.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False


def ask(address: str, method: str, **body: Any) -> dict[str, Any]:
    """MLflow's REST API as its documentation writes it; nothing of the mlflow package takes part."""
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{method}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return dict(json.load(answer))


def test_runs_are_mirrored_to_a_server_over_http(server, bench, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "over http")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")  # on a busy machine this server is no faster than others
    monkeypatch.chdir(tmp_path)
    run = bench.run(MeanImage, data=IMAGES, scale=2.0, seed=3, progress=False)
    with pytest.raises(RunFailedError):
        bench.run(Failing, progress=False)
    assert [status.reason for status in bench.plugins] == [""]

    experiments = ask(server, "experiments/search", max_results=100)["experiments"]
    (number,) = [found["experiment_id"] for found in experiments if found["name"] == "over http"]
    mirrors = {
        found["info"]["run_name"]: found for found in ask(server, "runs/search", experiment_ids=[number])["runs"]
    }
    assert sorted(mirror["info"]["status"] for mirror in mirrors.values()) == ["FAILED", "FINISHED"]
    mirror = mirrors[run.id]
    metrics = {metric["key"]: metric["value"] for metric in mirror["data"]["metrics"]}
    parameters = {parameter["key"]: parameter["value"] for parameter in mirror["data"]["params"]}
    tags = {tag["key"]: tag["value"] for tag in mirror["data"]["tags"]}
    assert metrics["brightness"] == pytest.approx(float(2 * IMAGES.mean(dtype=np.float64)), rel=1e-5)
    assert (parameters["scale"], parameters["seed"]) == ("2.0", "3")
    assert (tags["workbench.run"], tags["workbench.key"]) == (run.id, run.key)
    assert tags["mlflow.note.content"] == "An average."


class Unwell(BaseHTTPRequestHandler):
    """Answers that it cannot answer now, for which MLflow asks again."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_is_unwell_or_gone_neither_disturbs_a_run_nor_holds_it_up(bench, monkeypatch, tmp_path):
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    for name in workbench_mlflow.PATIENCE:
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Unwell) as unwell:
        threading.Thread(target=unwell.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unwell.server_port}")
        assert bench.run(MeanImage, data=IMAGES, progress=False).status == "complete"
        unwell.shutdown()
    # By itself MLflow would ask seven times more, for minutes.
    assert len(Unwell.asked) == 2
    assert bench.run(MeanImage, data=IMAGES, seed=1, progress=False).status == "complete"
    (status,) = bench.plugins
    assert "workbench_run_finished raised" in status.reason
    assert not set(workbench_mlflow.PATIENCE) & set(os.environ)
