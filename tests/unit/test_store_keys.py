"""Runs are found by their key without the index, and what the marks say is never believed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from workbench.cli import main
from workbench.errors import StoreError
from workbench.store import Store, keys
from workbench.store.copying import copy_runs
from workbench.store.keys import mark as mark_again
from workbench.store.keys import marked
from workbench.store.maintenance import find_garbage, remove_garbage

from unit.store_cases import add, folder_of, new_store

KEY = "4c" * 32


def marks(store: Store) -> list[str]:
    return sorted(path.relative_to(store.url).as_posix() for path in Path(store.url).glob("keys/*/*/*"))


@pytest.fixture
def store(tmp_path) -> Store:
    return new_store(tmp_path)


@pytest.fixture
def no_index(store, monkeypatch) -> Store:
    """The store, with an index that nobody may ask."""

    def refuse(*_, **__):
        raise AssertionError("the index was asked")

    for name in ("select", "ask", "complete_run", "runs_with_key", "_ask"):
        monkeypatch.setattr(store.index, name, refuse)
    return store


def test_a_run_is_found_by_its_key_without_the_index(store, no_index):
    first, second = (add(store, key=KEY, started=f"2026-01-0{day}T10:00:00.000Z") for day in (1, 2))
    add(store, key="f" * 64)
    assert no_index.find(KEY).id == second
    assert [run.id for run in no_index.runs_with_key(KEY)] == [second, first]
    assert no_index.find("0" * 64) is None
    assert no_index.wait_for(KEY, 10.0, print).id == second


def test_a_look_costs_one_folder_and_the_records_of_that_key(store, monkeypatch):
    for number in range(1, 31):
        add(store, key=f"{number:064x}")
    wanted = add(store, key=KEY)
    calls = []
    for name in ("names", "folders", "read", "size", "files"):
        original = getattr(store.backend, name)
        monkeypatch.setattr(
            store.backend,
            name,
            lambda *given, original=original, name=name: (calls.append((name, given[0])), original(*given))[1],
        )
    assert store.find(KEY).id == wanted
    month = f"runs/{store.find(KEY).record.month}/{wanted}/zarr.json"
    assert calls[:2] == [("names", f"keys/4c/{KEY}"), ("read", month)]
    assert len(calls) == 4  # two looks
    calls.clear()
    assert store.find("0" * 64) is None
    assert calls == [("names", f"keys/00/{'0' * 64}")]


def test_somebody_who_is_computing_it_is_found_and_waited_for(store, no_index):
    writer = store.begin(store_record(KEY))
    seen = []

    def poll(run):
        seen.append(run.id)
        writer.complete()

    assert no_index.wait_for(KEY, 60.0, poll).id == writer.record.id
    assert seen == [writer.record.id]


def store_record(key: str, **changes):
    from unit.store_cases import record

    return record(key=key, **changes)


def test_marks_that_lie_are_not_believed(store, tmp_path):
    """Of a run with another key, of none, out of the store, damaged: a colleague's or an enemy's, all the same."""
    other = add(store, key="f" * 64)
    damaged = add(store, key=KEY)
    path = folder_of(store, damaged) / "zarr.json"
    path.write_text(path.read_text().replace('"seed":0', '"seed":1'))
    folder = Path(store.url, "keys", "4c", KEY)
    month = store.run(other).record.month
    for name in (
        f"{month}.{other}",
        f"{month}.nobody",
        "x",
        "..",
        "2026-01...",
        f"{month}.a b",
        "ü.ü",
        "." * 200,
        f"{month}.",
    ):
        if name != "..":
            (folder / name).write_bytes(b"not read")
    (folder / f"{month}.folder").mkdir()
    os.symlink("/etc/passwd", folder / f"{month}.link")
    os.mkfifo(folder / f"{month}.pipe")
    assert list(marked(store.backend, KEY)) == []
    assert store.find(KEY) is None
    true = add(store, key=KEY)
    for number in range(1000):
        (folder / f"zz {number}").touch()  # no names of runs: they crowd nobody out
    assert store.find(KEY).id == true
    # A folder of marks that leads elsewhere is none.
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)
    assert store.find(KEY) is None


@pytest.mark.parametrize("key", [None, "../../x", "a/b", "", "x" * 201])
def test_keys_that_are_no_names_are_not_marked(store, key):
    run = add(store, key=key)
    assert marks(store) == []
    assert store.run(run).record.key == key
    assert store.find(key or "") is None


def test_a_store_of_before_is_found_through_the_index_until_its_runs_are_marked(store, tmp_path, capsys):
    run = add(store, key=KEY)
    shutil.rmtree(Path(store.url, "keys"))
    marker = Path(store.url, "workbench.json")
    before = {name: value for name, value in json.loads(marker.read_text()).items() if name != "keys"}
    marker.write_text(json.dumps(before))
    old = Store(store.url, index_folder=tmp_path / "old")
    assert old.find(KEY).id == run
    assert old.wait_for(KEY, 1.0, print).id == run
    late = add(old, key="e" * 64)
    assert old.find("e" * 64).id == late
    assert main(["--store", store.url, "store", "index", "--keys"]) == 0
    assert "2 runs of" in capsys.readouterr().out
    assert json.loads(marker.read_text()) == before | {"keys": True}
    new = Store(store.url, index_folder=tmp_path / "new")
    assert [run.id for run in marked(new.backend, KEY)] == [run]
    assert new.find(KEY).id == run
    assert not new.index.path.exists()


def test_deleting_and_tidying_up_take_marks_back(store):
    kept, deleted = add(store, key=KEY), add(store, key=KEY)
    failed = store.begin(store_record(KEY))
    store.index.put(failed.fail())
    assert len(marks(store)) == 3
    store.delete(deleted)
    for item in list(find_garbage(store, 0.0)):
        remove_garbage(store, item)
    assert [name.partition(".")[2] for name in marks(store)] == [kept]
    assert store.find(KEY).id == kept


def test_copied_runs_are_found_by_their_key(store, tmp_path):
    run = add(store, key=KEY)
    target = new_store(tmp_path / "target")
    copy_runs(store, target)
    assert [found.id for found in target.runs_with_key(KEY)] == [run]
    assert marks(target) == marks(store)


def test_a_run_that_cannot_be_marked_does_not_begin(store, monkeypatch):
    add(store, key=KEY)
    original = store.backend.write_new_chunk

    def full(key, data):
        if key.startswith("keys/"):
            raise OSError(28, "No space left on device")
        original(key, data)

    monkeypatch.setattr(store.backend, "write_new_chunk", full)
    with pytest.raises(StoreError, match="cannot be written: No space left"):
        store.begin(store_record("a" * 64))
    assert [run.status for run in store.runs()] == ["complete"]
    assert len(list(Path(store.url).glob("runs/*/*"))) == 1  # nothing that reads as running is left


def test_a_run_that_is_abandoned_leaves_no_mark(store):
    store.begin(store_record(KEY)).abandon()
    assert marks(store) == []


def test_marks_are_not_written_or_removed_through_a_link_that_leaves_the_store(store, tmp_path):
    store.prepare()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Path(store.url, "keys").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="leaves the store"):
        store.begin(store_record(KEY))
    assert not list(elsewhere.rglob("*"))
    (elsewhere / "file").touch()
    with pytest.raises(StoreError, match="leaves the store"):
        store.backend.delete_object("keys/file")
    assert (elsewhere / "file").exists()


def test_a_copy_that_breaks_off_is_marked_before_it_counts(store, tmp_path, monkeypatch):
    run = add(store, key=KEY)
    target = new_store(tmp_path / "target")
    target.prepare()
    original = target.backend.write

    def killed(key, data):
        original(key, data)
        if key.endswith(f"{run}/zarr.json"):
            raise KeyboardInterrupt

    monkeypatch.setattr(target.backend, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        copy_runs(store, target)
    monkeypatch.undo()
    assert [item.what for item in copy_runs(store, target)] == ["present"]
    assert target.find(KEY).id == run


@pytest.mark.skipif(os.name == "nt", reason="permissions of folders as POSIX has them")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_colleague_computes_again_what_somebody_else_failed_at(tmp_path, monkeypatch, umask):
    """The folder of a key is everybody's, and a mark that another user made is no obstacle."""
    root = tmp_path / "shared"
    root.mkdir()
    root.chmod(0o2775)
    before = os.umask(umask)
    try:
        store = new_store(tmp_path, "shared")
        writer = store.begin(store_record(KEY))
        store.index.put(writer.fail())
    finally:
        os.umask(before)
    for folder in (root / "keys", root / "keys" / "4c", root / "keys" / "4c" / KEY):
        assert oct(folder.stat().st_mode & 0o7777) == oct(0o2775)

    def forbidden(key, data):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.backend, "write_new_chunk", forbidden)
    mark_again(store.backend, writer.record)
    with pytest.raises(PermissionError):
        mark_again(store.backend, writer.record.replace(id="other"))


def test_marking_a_store_that_cannot_be_written_is_one_clear_error(store, monkeypatch, capsys):
    add(store, key=KEY)
    shutil.rmtree(Path(store.url, "keys"))

    def forbidden(self, key, data):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(store.backend), "write_new_chunk", forbidden)
    assert main(["--store", store.url, "store", "index", "--keys"]) == 5
    assert "cannot be written: Permission denied" in capsys.readouterr().err


def test_only_the_records_up_to_the_newest_usable_one_are_read(store, monkeypatch):
    """Of twenty complete runs one record is read, and of two of one second both, for they tell which is the newer."""
    for second in range(20):
        add(
            store,
            key=KEY,
            id=f"20260101-1000{second:02d}-test-{second:08x}",
            started=f"2026-01-01T10:00:{second:02d}.000Z",
        )
    failed = store.begin(
        store_record(KEY, id="20260101-100030-test-00000000", started="2026-01-01T10:00:30.000Z")
    ).fail()
    read = []
    original = type(store.backend).read
    monkeypatch.setattr(
        type(store.backend), "read", lambda self, key, limit=None: (read.append(key), original(self, key, limit))[1]
    )
    assert store.find(KEY).id == "20260101-100019-test-00000013"
    assert [key.split("/")[2] for key in read] == [failed.id, "20260101-100019-test-00000013"]
    twins = {
        "20260101-100040-test-00000001": "2026-01-01T10:00:40.900Z",
        "20260101-100040-test-00000002": "2026-01-01T10:00:40.100Z",
    }
    for run, started in twins.items():
        add(store, key=KEY, id=run, started=started)
    read.clear()
    assert store.find(KEY).id == "20260101-100040-test-00000001"
    assert len(read) == 2


def unreadable(store: Store, monkeypatch, error: Exception, *, times: int = 10**6, run: str = "") -> list[str]:
    """Make records fail to be read, so many times; returns what was asked for."""
    original, asked = store.backend.read, []

    def read(key, limit=None):
        if key.startswith("runs/") and run in key:
            asked.append(key)
            if len(asked) <= times:
                raise error
        return original(key, limit)

    monkeypatch.setattr(store.backend, "read", read)
    monkeypatch.setattr(keys, "PAUSES", (0.0, 0.0))
    return asked


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale"), StoreError("slow")]
)
def test_a_record_that_cannot_be_read_just_now_is_not_taken_for_absent(store, monkeypatch, error):
    """Else somebody would compute for a day what is there."""
    run = add(store, key=KEY)
    asked = unreadable(store, monkeypatch, error)
    for ask in (store.find, store.runs_with_key, lambda key: store.wait_for(key, 0.0, print)):
        with pytest.raises(StoreError, match=f"has this run already cannot be told: the record of {run}"):
            ask(KEY)
    assert len(asked) == 9  # each of the three looked three times
    monkeypatch.undo()
    asked = unreadable(store, monkeypatch, error, times=2)
    assert store.find(KEY).id == run
    assert len(asked) == 3


def test_a_bench_says_so_and_computes_by_force(bench, images, monkeypatch):
    first = bench.run("sample.mean_image", data=images)
    unreadable(bench.store, monkeypatch, OSError(errno.EIO, "Input/output error"), run=first.id)
    with pytest.raises(StoreError, match="Try again, or compute it anew with force=True"):
        bench.run("sample.mean_image", data=images)
    assert bench.run("sample.mean_image", data=images, force=True).status == "complete"


def test_a_back_end_that_tried_for_a_minute_is_not_asked_again(store, monkeypatch):
    add(store, key=KEY)
    asked = unreadable(store, monkeypatch, StoreError("does not answer as it should"))
    monkeypatch.setattr(store.backend, "remote", True)
    with pytest.raises(StoreError, match="does not answer as it should"):
        store.find(KEY)
    assert len(asked) == 1


def test_an_unreadable_record_does_not_matter_where_another_run_serves(store, monkeypatch):
    older, newer = (
        add(store, key=KEY, id=f"2026010{day}-100000-test-0", started=f"2026-01-0{day}T10:00:00.000Z") for day in (1, 2)
    )
    unreadable(store, monkeypatch, OSError(errno.EIO, "Input/output error"), run=newer)
    assert store.find(KEY).id == older
    with pytest.raises(StoreError, match=newer):
        store.runs_with_key(KEY)


def test_what_a_user_may_not_read_or_is_no_record_is_not_there(store, monkeypatch):
    """It would not be readable tomorrow either: computing is all that is left."""
    run = add(store, key=KEY)
    asked = unreadable(store, monkeypatch, PermissionError(errno.EACCES, "Permission denied"))
    assert store.find(KEY) is None
    assert len(asked) == 1
    monkeypatch.undo()
    path = folder_of(store, run) / "zarr.json"
    path.unlink()
    path.symlink_to(path.name)  # a loop
    assert store.find(KEY) is None


def aged(path: Path, seconds: float = 30 * 86_400.0) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_gc_shows_and_takes_marks_of_runs_that_are_gone(store, capsys):
    kept, gone, damaged = add(store, key=KEY), add(store, key="a" * 64), add(store, key="b" * 64)
    month = store.run(kept).record.month
    shutil.rmtree(folder_of(store, gone))
    path = folder_of(store, damaged) / "zarr.json"
    path.write_text(path.read_text().replace('"seed":0', '"seed":1'))
    folder = Path(store.url, "keys", "4c", KEY)
    lying, young = folder / f"{month}.{gone}", folder / f"{month}.just-beginning"
    foreign = folder / "no name of a run"
    for file in (lying, young, foreign):
        file.touch()
    empty = Path(store.url, "keys", "ee", "e" * 64)
    empty.mkdir(parents=True)
    before = marks(store)
    for name in before:
        if Path(store.url, name) != young:
            aged(Path(store.url, name))
    assert main(["--store", store.url, "store", "gc"]) == 0
    shown = capsys.readouterr().out
    assert "would remove 2 marks below keys/ (no run has that key" in shown
    assert "would remove 1 empty folder below keys/ (no run has that key" in shown
    assert "2 items" in shown
    assert marks(store) == before
    assert main(["--store", store.url, "store", "gc", "--delete"]) == 0
    left = {Path(store.url, name) for name in marks(store)}
    assert left == {
        folder / f"{month}.{kept}",
        young,
        foreign,
        Path(store.url, "keys", "bb", "b" * 64, f"{month}.{damaged}"),
    }
    assert not empty.exists()
    assert not Path(store.url, "keys", "aa", "a" * 64).exists()
    assert store.find(KEY).id == kept


def test_a_deleted_run_leaves_no_empty_folder_and_one_taken_away_meanwhile_is_made_again(store, monkeypatch):
    run = add(store, key=KEY)
    folder = Path(store.url, "keys", "4c", KEY)
    store.delete(run)
    assert not folder.exists()
    original, times = type(store.backend)._make_folder, []

    def pruned_at_once(self, made):
        original(self, made)
        if made == folder and not times:
            times.append(made)
            folder.rmdir()

    monkeypatch.setattr(type(store.backend), "_make_folder", pruned_at_once)
    again = add(store, key=KEY)
    assert times
    assert store.find(KEY).id == again


def test_verify_names_runs_that_something_else_than_copy_put_there(store, tmp_path, capsys):
    run = add(store, key=KEY)
    other = new_store(tmp_path, "other")
    other.prepare()
    shutil.copytree(Path(store.url, "runs"), Path(other.url, "runs"))
    assert other.find(KEY) is None
    assert main(["--store", other.url, "store", "verify"]) == 5
    assert f"run {run}, record: not found when it is asked for again" in capsys.readouterr().out
    assert main(["--store", other.url, "store", "index", "--keys"]) == 0
    assert main(["--store", other.url, "store", "verify"]) == 0
    assert other.find(KEY).id == run
    marker = Path(other.url, "workbench.json")
    marker.write_text(json.dumps({"format_version": 1}))  # of before: its runs are found through the index
    shutil.rmtree(Path(other.url, "keys"))
    assert list(Store(other.url, index_folder=tmp_path / "old").verify()) == []


def test_what_came_back_while_gc_looked_is_not_removed(store, tmp_path):
    """A copy that broke off a week ago goes on: its folder and its mark are old, and its record is new."""
    run = add(store, key=KEY)
    other = new_store(tmp_path, "other")
    copy_runs(store, other)
    (mark,) = marks(other)
    (folder_of(other, run) / "zarr.json").rename(tmp_path / "record")
    (folder_of(other, run) / "chunk").touch()
    aged(folder_of(other, run) / "chunk")
    aged(Path(other.url, mark))
    found = list(find_garbage(Store(other.url, index_folder=tmp_path / "fresh")))
    assert [item.what.split()[0] for item in found] == ["folder", "1"]
    (tmp_path / "record").rename(folder_of(other, run) / "zarr.json")
    for item in found:
        remove_garbage(other, item)
    assert marks(other) == [mark]
    assert other.find(KEY).id == run


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_live_run_is_no_garbage_because_a_disk_is_in_trouble(store, monkeypatch, times):
    writer = store.begin(store_record(KEY))
    original, asked = os.stat, []

    def stat(path, *given, **named):
        if str(path).endswith(f"{writer.record.id}/zarr.json") and len(asked) < times:
            asked.append(path)
            raise OSError(errno.ESTALE, "Stale file handle")
        return original(path, *given, **named)

    monkeypatch.setattr(os, "stat", stat)
    assert list(find_garbage(store)) == []
    assert asked
    asked.clear()
    assert store.run(writer.record.id).status == "running"
    assert asked
