"""Killed at random moments: every run is complete and right, or reads as interrupted; afterwards nothing is left over."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from workbench.cli import main
from workbench.errors import IntegrityError, StoreError
from workbench.store import Store, liveness
from workbench.store.maintenance import find_garbage, remove_garbage
from workbench.store.publishing import publish

from unit.store_cases import add, folder_of, new_store, record

WRITER = """
import sys
sys.path[:0] = {paths!r}
import os, socket
import numpy as np
from pathlib import Path
from unit.store_cases import record
from workbench.store import Store, liveness
from workbench.store.array_writer import NumpySource
store = Store({store!r}, index_folder=Path({index!r}))
values = np.arange(400 * 512 * 64, dtype=np.float32).reshape(400, 512, 64)  # 52 MB: streams
small = np.arange(1000.0)
while True:
    writer = store.begin(record(host=socket.gethostname(), pid=os.getpid()))
    print("go", flush=True)
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
        assert child.stdout.readline() == "go\n"  # a run began: however slow the machine is, there is something to interrupt
        time.sleep(generator.random() * 0.8)
        child.send_signal(signal.SIGKILL)
        child.communicate()
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
    # Tidied up a month later by somebody else. (To this process, which looked before, the new stamps would be signs of life.)
    liveness._SEEN.clear()
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


# ------------------------------------------------------------------------------------------------------- lost permission

NOBODY = 65_534


def outcome_as_nobody(work):
    """What `work()` returns, or the error it raises, in a child process without the superuser's rights."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            text = repr(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text


@pytest.fixture
def public_folder():
    """A folder that everybody may reach and read (those of pytest are the user's own)."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and permissions as POSIX has them")
def test_lost_permission_is_an_error_and_comes_back(public_folder):
    store = new_store(public_folder)
    run = add(store, {"score": np.arange(5.0)})
    assert store.run(run)["score"].values.tolist() == [0, 1, 2, 3, 4]

    def read():
        return store.run(run)["score"].values.tolist()

    chunk = next(Path(store.url).rglob("score/c/0"))
    chunk.chmod(0)
    if os.geteuid() == 0:
        for path in (store.index.path.parent, *store.index.path.parent.iterdir()):
            os.chown(path, NOBODY, NOBODY)
    text = outcome_as_nobody(read)
    assert text.startswith("StoreError: runs/")
    assert text.endswith("cannot be read: Permission denied")
    chunk.chmod(0o444)
    assert outcome_as_nobody(read) == "[0.0, 1.0, 2.0, 3.0, 4.0]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and permissions as POSIX has them")
def test_a_store_one_may_only_read_says_so_before_any_work(public_folder):
    store = new_store(public_folder)
    add(store, {"score": np.arange(5.0)})
    for folder in (Path(store.url), *(path for path in Path(store.url).rglob("*") if path.is_dir())):
        folder.chmod(0o555)

    def begin():
        return add(Store(store.url, index_folder=public_folder / "nowhere"))

    text = outcome_as_nobody(begin)
    assert text.startswith("StoreError: the store ")
    assert "cannot be written: Permission denied" in text
    for folder in (Path(store.url), *(path for path in Path(store.url).rglob("*") if path.is_dir())):
        folder.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and permissions as POSIX has them")
def test_what_somebody_else_made_stays_and_the_rest_is_tidied_up(public_folder):
    """Deleting is one clear error, and cleaning up goes on with what it may remove."""
    public_folder.chmod(0o777)
    store = new_store(public_folder)
    closed, _ = (store.begin(record(key=letter * 64, user="eve")).fail().id for letter in "ab")
    month = f"{store.url}/runs/{store.run(closed).record.month}"
    for path in (Path(store.url), *Path(store.url).rglob("*")):
        path.chmod(0o777)
    Path(month, closed).chmod(0o555)

    def delete():
        Store(store.url, index_folder=public_folder / "mine").delete(closed)

    def tidy():
        os.environ["WORKBENCH_CACHE"] = tempfile.mkdtemp(dir=public_folder)
        return main(["--store", store.url, "store", "gc", "--older-than", "0s", "--delete"])

    text = outcome_as_nobody(delete)
    assert text.startswith(f"StoreError: runs/{Path(month).name}/{closed} in ")
    assert text.endswith("cannot be removed: Permission denied (a run of eve)")
    assert outcome_as_nobody(tidy) == "5"
    assert [path.name for path in Path(month).iterdir()] == [closed]
    Path(month, closed).chmod(0)  # nobody else may even look into it: then nothing is known, and nothing done
    assert outcome_as_nobody(tidy) == "0"
    Path(month, closed).chmod(0o755)
    assert store.run(closed).status == "failed"


@pytest.mark.skipif(os.name == "nt", reason="permissions as POSIX has them")
def test_a_careful_umask_shuts_nobody_out_of_the_store(tmp_path):
    """What is the store's and not a run's has the permissions of its root; a run has its maker's."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o2775)
    before = os.umask(0o077)
    try:
        store = new_store(tmp_path)
        run = add(store, {"score": np.arange(5.0)})
        store.annotations.of(run).tag("paper")
        publish(store)
    finally:
        os.umask(before)
    root = Path(store.url)
    shared = [
        root / "workbench.json",
        root / "published.json",
        *root.glob("annotations/*/*"),
        *root.glob("published/*"),
    ]
    assert len(shared) >= 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in shared} == {0o664}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder_of(store, run).rglob("*") if path.is_file()} == {0o600}


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), StoreError("does not answer as it should")]
)
def test_what_people_said_and_cannot_be_read_just_now_is_heard_later(tmp_path, monkeypatch, error):
    """Else a pin would hold for nobody, and `gc` would take the run."""
    store, other = new_store(tmp_path), Store(tmp_path / "store", index_folder=tmp_path / "other")
    run = add(store)
    store.annotations.of(run).tag("paper")
    for folder in Path(store.url, "annotations").iterdir():
        os.utime(folder, (time.time() - 3600,) * 2)  # nothing but the failure is a reason to look again
    original = type(other.backend).documents

    def documents(self, key, names, file):
        if key.startswith("annotations/"):
            return ((name, error) for name in names)
        return original(self, key, names, file)

    with monkeypatch.context() as trouble:
        trouble.setattr(type(other.backend), "documents", documents)
        assert other.count("tag = paper") == 0
        with pytest.raises(StoreError, match="may be the pin of a run, so nothing"):
            list(find_garbage(other, older_than=0))
    assert other.count("tag = paper") == 1
    assert list(find_garbage(other, older_than=0)) == []


@pytest.mark.parametrize(("method", "part"), [("folders", "runs"), ("read", "/large/"), ("size", "/large/")])
def test_a_disk_in_trouble_is_one_clear_error(tmp_path, monkeypatch, method, part):
    """Also where sizes of files are asked first, as for regions of many MiB."""
    store = new_store(tmp_path)
    run = store.run(add(store, {"large": np.arange(3e6).reshape(1000, 3000)}))
    original = getattr(type(store.backend), method)

    def failing(self, key, *given):
        if part in key:
            raise OSError(errno.EIO, "Input/output error")
        return original(self, key, *given)

    monkeypatch.setattr(type(store.backend), method, failing)
    with pytest.raises(StoreError, match="cannot be read: Input/output error") as error:
        (store.runs() if method == "folders" else run["large"].load())
    assert not isinstance(error.value, IntegrityError)


# -------------------------------------------------------------------------------------------- two processes, one request

ASKER = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import numpy as np
import workbench
from workbench.host import Host
from workbench.store import Store, liveness
from unit.sample_methods import MeanImage


class Slow(MeanImage):
    id = "sample.slow"

    def run(self, inputs, params, out):
        print("computing", flush=True)
        sys.stdin.readline()
        super().run(inputs, params, out)


host = Host(found=[])
host.register(Slow)
bench = workbench.Workbench(Store({store!r}, index_folder=Path({index!r}) / sys.argv[1]), host)
print("ready", flush=True)
sys.stdin.readline()
run = bench.run("sample.slow", data=np.full((4, 1, 8, 8), 0.5, np.float32), study=sys.argv[1])
print(run.id, run.served, float(run["mean"].mean()), run.status, flush=True)
"""


@pytest.fixture
def ask(tmp_path):
    """Starts a process that is ready to ask for a run as soon as it is sent a line, and computes it after another."""
    code = ASKER.format(
        paths=[str(Path(__file__).parents[1])], store=str(tmp_path / "store"), index=str(tmp_path / "index")
    )
    script = tmp_path / "ask.py"  # a file: the method's source is part of the key
    script.write_text(code)
    children = []

    def start(name):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        child = subprocess.Popen([sys.executable, str(script), name], text=True, **pipes)
        children.append(child)
        assert child.stdout.readline() == "ready\n", child.stderr.read()
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def tell(child) -> None:
    child.stdin.write("\n")
    child.stdin.flush()


def test_a_second_process_waits_for_the_run_of_the_first(ask, tmp_path):
    ada, bob = ask("ada"), ask("bob")
    tell(ada)
    assert ada.stdout.readline() == "computing\n"
    tell(bob)
    for line in bob.stderr:
        if line.startswith("waiting for the same run by"):
            break
    else:
        raise AssertionError("the second process did not wait")
    tell(ada)
    first, second = ada.stdout.readline().split(), bob.stdout.readline().split()
    assert first[1:] == ["False", "0.5", "complete"]
    assert second == [first[0], "True", "0.5", "complete"]
    (run,) = Store(tmp_path / "store", index_folder=tmp_path / "third").runs()
    store = Store(tmp_path / "store", index_folder=tmp_path / "third")
    assert (run.record.study, store.annotations.of(run.id).studies) == ("ada", ("bob",))


def test_two_processes_that_ask_in_one_moment_both_get_a_sound_run(ask, tmp_path):
    """Both may compute it; nothing is lost, and whoever asks later gets one of the two."""
    children = [ask("ada"), ask("bob")]
    for child in children:
        tell(child)
        tell(child)  # compute at once
    answers = [
        [line for line in child.communicate(timeout=300)[0].splitlines() if line != "computing"][-1].split()
        for child in children
    ]
    assert [answer[2:] for answer in answers] == [["0.5", "complete"]] * 2
    store = Store(tmp_path / "store", index_folder=tmp_path / "third")
    runs = {run.id: run for run in store.runs()}
    assert {answer[0] for answer in answers} == set(runs)
    assert len({run.record.key for run in runs.values()}) == 1
    assert list(store.verify()) == []
    assert store.find(next(iter(runs.values())).record.key).id in runs
