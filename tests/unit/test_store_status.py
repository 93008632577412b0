"""What a run of a store reads as while it is computed, once its process is gone, and when it is deleted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import workbench
from workbench.record import STALE_AFTER
from workbench.store import Store
from workbench.store import backend as backend_module

from unit.store_cases import record, stored


def test_a_run_is_seen_as_complete_only_when_it_is(tmp_path):
    store = Store(tmp_path / "store", index_folder=tmp_path / "index")
    writer = store.begin(record(pid=os.getpid()))
    writer.put("score", np.zeros(3), ("sample",))
    other = Store(tmp_path / "store", index_folder=tmp_path / "other-index")
    assert other.find("k" * 8) is None
    assert [run.status for run in other.runs()] == ["running"]
    writer.complete()
    assert other.find("k" * 8) is not None


def test_only_the_file_systems_own_clock_and_ours_decide_who_is_alive(tmp_path, monkeypatch):
    from workbench.store import liveness

    store = Store(tmp_path / "store", index_folder=tmp_path / "index")
    # Written by a machine whose clock is a day behind, or a day ahead: alive all the same.
    for heartbeat in ("2020-01-01T00:00:00.000Z", "2120-01-01T00:00:00.000Z"):
        run = store.begin(record(heartbeat=heartbeat)).record
        assert store.run(run.id).status == "running"
    # Seen for the first time, and silent for long by the file system's clock.
    silent = store.begin(record()).record
    document = Path(store.url, "runs", silent.month, silent.id, "zarr.json")
    moment = document.stat().st_mtime - STALE_AFTER - 5
    os.utime(document, (moment, moment))
    assert store.run(silent.id).status == "interrupted"
    # A reader whose own clock jumps by a year does not change its mind. (Its alone: threads of other tests have timers.)
    readers = SimpleNamespace(time=lambda: 4e9, time_ns=lambda: 4 * 10**18, monotonic=time.monotonic)
    for module in (liveness, backend_module):
        monkeypatch.setattr(module, "time", readers)
    assert store.run(run.id).status == "running"
    # Watched for longer than STALE_AFTER without a change: interrupted, whatever the file's stamp says.
    start = time.monotonic()
    readers.monotonic = lambda: start + STALE_AFTER + 1
    future = 4e9 + 1e6
    assert store.run(run.id).status == "interrupted"
    document = Path(store.url, "runs", run.month, run.id, "zarr.json")
    os.utime(document, (future, future))  # it wrote again
    assert store.run(run.id).status == "running"
    assert STALE_AFTER >= 30


def test_a_run_whose_process_is_gone_is_interrupted_at_once(tmp_path):
    import socket

    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    store = Store(tmp_path / "store", index_folder=tmp_path / "index")
    gone = store.begin(record(host=socket.gethostname(), pid=child.pid)).record
    alive = store.begin(record(host=socket.gethostname(), pid=os.getpid())).record
    assert store.run(gone.id).status == "interrupted"
    assert store.run(alive.id).status == "running"


CHILD = """
import sys
sys.path[:0] = {paths!r}
import numpy as np
import workbench
from workbench.host import Host
from unit.sample_methods import Filling


class Halting(Filling):
    id = "sample.halting"

    def run(self, inputs, params, out):
        stored = out.array("value", (params.rows, 262_144))
        for row in range(params.rows):
            if row == 200:
                print("half way", flush=True)
                sys.stdin.readline()
            stored[row] = np.full(262_144, row, np.float32)


host = Host(found=[])
host.register(Halting)
workbench.open({store!r}, host=host).run("sample.halting", rows=400, progress=False)
"""


def test_kill_9_leaves_an_interrupted_run_and_never_a_wrong_one(tmp_path):
    """Half of a large array is written, some of it to files; the child waits there, so that it cannot be done too soon."""
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(paths=[str(Path(__file__).parents[1])], store=str(tmp_path / "store")))
    child = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "half way\n"
    assert list((tmp_path / "store").glob("runs/*/*/value/c/*/*"))
    child.send_signal(signal.SIGKILL)
    child.communicate()
    bench = workbench.open(tmp_path / "store")
    (run,) = bench.runs()
    assert run.status == "interrupted"
    assert bench.store.find(run.key) is None
    with pytest.raises(workbench.WorkbenchError, match="no report"):
        run.report()


def test_deleting_takes_one_run(tmp_path):
    store, run = stored(tmp_path, a=np.zeros(3))
    other = store.begin(record()).complete()
    store.index.put(other)
    store.delete(run)
    assert [left.id for left in store.runs()] == [other.id]
