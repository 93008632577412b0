"""Starting workers on this machine: the command, a port that is taken, a script without its guard."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys

import distributed
import pytest
from workbench.cli import main
from workbench.errors import (
    ClusterError,
)
from workbench.execution.processes import local_cluster

from unit.cluster_cases import PATIENCE


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
