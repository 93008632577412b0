"""Killed at random moments: every run is complete and right, or reads as interrupted; afterwards nothing is left over."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from workbench.errors import IntegrityError, StoreError
from workbench.store import Store
from workbench.store.maintenance import find_garbage, remove_garbage

from unit.store_cases import add, new_store

WRITER = """
import sys
sys.path[:0] = {paths!r}
import os, socket
import numpy as np
from pathlib import Path
from unit.store_cases import record
from workbench.store import Store
from workbench.store.writer import NumpySource
store = Store({store!r}, index_folder=Path({index!r}))
values = np.arange(400 * 512 * 64, dtype=np.float32).reshape(400, 512, 64)  # 52 MB: streams
small = np.arange(1000.0)
print("go", flush=True)
while True:
    writer = store.begin(record(host=socket.gethostname(), pid=os.getpid()))
    array = writer.declare("large", values.shape, values.dtype, ("sample", "y", "x"))
    for start in range(0, 400, 50):
        array.write((slice(start, start + 50), slice(0, 512), slice(0, 64)), NumpySource(values[start : start + 50]))
    writer.put("small", small, ("feature",))
    store.backend.write(writer.folder + "/checkpoint", b"half way")
    done = writer.complete()
    store.index.put(done)
"""


def kill_at_random(tmp_path: Path, times: int, seed: int) -> tuple[int, int]:
    """Runs that were complete and that were interrupted, after so many kills."""
    generator = random.Random(seed)
    code = WRITER.format(
        paths=[str(Path(__file__).parents[1])], store=str(tmp_path / "store"), index=str(tmp_path / "index")
    )
    for _ in range(times):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "go\n"
        time.sleep(generator.random() * 0.8)
        child.send_signal(signal.SIGKILL)
        child.wait()
    complete = interrupted = 0
    store = Store(tmp_path / "store", index_folder=tmp_path / "fresh")
    values = np.arange(400 * 512 * 64, dtype=np.float32).reshape(400, 512, 64)
    for run in store.runs():
        assert run.status in ("complete", "interrupted")
        if run.status == "complete":
            complete += 1
            np.testing.assert_array_equal(run["large"].values, values)
            np.testing.assert_array_equal(run["small"].values, np.arange(1000.0))
        else:
            interrupted += 1
    old = time.time() - 30 * 86_400
    for path in (tmp_path / "store" / "runs").rglob("*"):
        os.utime(path, (old, old))
    for item in find_garbage(store):
        remove_garbage(store, item)
    left = Store(tmp_path / "store", index_folder=tmp_path / "last")
    assert list(left.verify()) == []
    assert len(left.runs()) == complete
    names = [path.name for path in (tmp_path / "store").rglob("*")]
    assert not [name for name in names if name.endswith(".tmp") or name == "checkpoint"]
    assert len(list((tmp_path / "store").glob("runs/*/*"))) == complete
    return complete, interrupted


def test_kill_9_at_random_moments(tmp_path):
    _, interrupted = kill_at_random(tmp_path, 4, seed=0)
    assert interrupted > 0


@pytest.mark.slow
def test_kill_9_at_200_random_moments(tmp_path):
    complete, interrupted = kill_at_random(tmp_path, 200, seed=1)
    assert complete > 0
    assert interrupted > 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_lost_permission_is_an_error_and_comes_back(tmp_path):
    store = new_store(tmp_path)
    run = add(store, {"score": np.arange(5.0)})
    chunk = next(Path(store.url).rglob("score/c/0"))
    chunk.chmod(0)
    with pytest.raises((IntegrityError, StoreError, PermissionError)):
        store.run(run)["score"].values  # noqa: B018
    chunk.chmod(stat.S_IRUSR)
    assert store.run(run)["score"].values.tolist() == [0, 1, 2, 3, 4]


def test_a_disk_that_hiccups_takes_no_run_away(tmp_path, monkeypatch):
    """A record that cannot be read just now is looked at again, not forgotten."""
    from workbench.store.backend import LocalBackend

    store = new_store(tmp_path)
    run = add(store)
    folder = next(Path(store.url).glob("runs/*"))
    os.utime(folder, (1, 1))  # long settled
    original = LocalBackend.read

    def failing(self, key, limit=None):
        if key.endswith("zarr.json"):
            raise OSError(5, "Input/output error")
        return original(self, key, limit)

    other = Store(store.url, index_folder=tmp_path / "other")
    monkeypatch.setattr(LocalBackend, "read", failing)
    assert other.runs() == []
    monkeypatch.undo()
    assert [found.id for found in other.runs()] == [run]
