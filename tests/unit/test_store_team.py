"""Many people, one store: lineage, deleting, cleaning up, two who ask for the same, and what they say about runs."""

from __future__ import annotations

import itertools
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import workbench
from workbench.cli import main
from workbench.errors import InputError, StoreError
from workbench.record import STALE_AFTER
from workbench.store import Store, liveness
from workbench.store.maintenance import find_garbage, remove_garbage

from unit.store_cases import add, age, folder_of, new_store, record

DAY = 86_400.0


@pytest.fixture
def store(tmp_path):
    return new_store(tmp_path)


def colleague(store: Store, name: str = "colleague") -> Store:
    """The same store on another machine, with an index of its own."""
    return Store(store.url, index_folder=store.index.path.parent / name)


# -------------------------------------------------------------------------------------------------------------- lineage


def test_descendants_and_deleting(store):
    trained = add(store)
    quantized = add(store, uses=(trained,))
    calibrated = add(store, uses=(quantized, trained))
    other = add(store)
    assert [run.id for run in store.descendants(trained)] == [quantized, calibrated]
    assert [run.id for run in store.descendants(quantized, direct=True)] == [calibrated]
    assert store.descendants(other) == []
    assert [run.id for run in store.runs(f"uses = {quantized}")] == [calibrated]
    with pytest.raises(StoreError, match="is an input of 2 other runs"):
        colleague(store).delete(trained)
    store.delete(calibrated)
    store.delete(quantized)
    store.delete(trained)
    assert [run.id for run in store.runs()] == [other]
    needed = add(store)
    add(store, uses=(needed,))
    store.delete(needed, force=True)
    assert not list(Path(store.url).glob(f"runs/*/{needed}"))


def test_descendants_through_the_bench(bench, images):
    first = bench.run("sample.mean_image", data=images, progress=False)
    second = bench.run("sample.mean_image", data=images, scale=2.0, progress=False)
    assert first.descendants() == []
    assert second.annotations.tags == ()
    bench.delete(first)
    assert [run.id for run in bench.runs()] == [second.id]


def test_a_live_run_is_not_deleted(store):
    running = store.begin(record()).record.id
    with pytest.raises(StoreError, match=r"is running \(ada on elsewhere\)"):
        store.delete(running)
    store.delete(running, force=True)
    assert store.runs() == []


# ------------------------------------------------------------------------------------------------------------------- gc


def test_gc_takes_what_nobody_wants_and_nothing_else(store):
    week = 8 * DAY
    expected = set()
    for ending in ("fail", "cancel"):
        for old in (True, False):
            writer = store.begin(record())
            getattr(writer, ending)()
            if old:
                age(store, writer.record.id, week)
                expected.add(writer.record.id)
    interrupted = store.begin(record()).record.id
    age(store, interrupted, week)
    expected.add(interrupted)
    live = store.begin(record()).record.id
    complete = add(store)
    age(store, complete, week)
    archived, archived_needed, pinned, fresh_archived = (add(store) for _ in range(4))
    add(store, uses=(archived_needed,))
    for run in (archived, archived_needed, pinned, fresh_archived):
        store.annotations.of(run).archive()
        if run != fresh_archived:
            age(store, run, week)
    store.annotations.of(pinned).pin()
    expected.add(archived)
    # a whole line of work that nobody wants goes as a whole
    parent = add(store)
    child = add(store, uses=(parent,))
    for run in (parent, child):
        store.annotations.of(run).archive()
        age(store, run, week)
        expected.add(run)
    other = colleague(store)
    found = list(find_garbage(other))
    assert {item.run for item in found} == expected
    assert len(other.runs()) == 15 - 1
    for item in found:
        remove_garbage(other, item)
    assert list(find_garbage(other)) == []
    left = {run.id for run in colleague(store, "third").runs()}
    assert {live, complete, archived_needed, pinned, fresh_archived} <= left
    assert not left & expected
    assert list(store.verify()) == []


def test_gc_never_takes_a_live_run_whatever_age_is_asked_for(store):
    """Its process is on another machine, or in another container of the same name: only its own silence counts."""
    import socket

    live = [store.begin(record(host=host, pid=2**22 + 1)).record.id for host in ("elsewhere", socket.gethostname())]
    assert list(find_garbage(colleague(store), older_than=0)) == []
    age(store, live[0], STALE_AFTER + 10)
    liveness._SEEN.clear()  # as if for the first time
    assert [item.run for item in find_garbage(colleague(store, "b"), older_than=0)] == [live[0]]


def test_leftovers_are_found(store):
    run = add(store, {"a": np.zeros(3)})
    folder = folder_of(store, run)
    (folder / "checkpoint").write_bytes(b"123")
    (folder / ".zarr.json.7.abcd.tmp").write_bytes(b"12")
    (folder / "a" / ".0.7.abcd.tmp").write_bytes(b"1")
    orphan = folder.with_name("orphan")
    orphan.mkdir()
    (orphan / "a").write_bytes(b"1234")
    assert list(find_garbage(store)) == []
    age(store, run, 8 * DAY)
    os.utime(orphan / "a", (1, 1))
    found = {item.what: item.bytes for item in find_garbage(store)}
    assert set(found.values()) == {6, 4}
    assert main(["--store", store.url, "store", "gc"]) == 0
    assert orphan.exists()
    assert main(["--store", store.url, "store", "gc", "--delete"]) == 0
    assert not orphan.exists()
    assert list(store.verify()) == []
    assert store.run(run)["a"].values.tolist() == [0, 0, 0]


def test_times_of_gc_are_understood(store, capsys):
    assert main(["--store", store.url, "store", "gc", "--older-than", "soon"]) == 2
    assert "--older-than: expected a time such as 12h, 7d or 4w" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ the same, twice


def test_the_second_waits_for_the_first(store):
    writer = store.begin(record())
    writer.put("a", np.arange(3), ("sample",))
    polls = []

    def poll(other):
        polls.append(other.id)
        if len(polls) == 2:
            writer.complete()

    found = colleague(store).wait_for("k" * 8, 60.0, poll)
    assert found.id == writer.record.id
    assert polls == [writer.record.id] * 2
    assert found["a"].values.tolist() == [0, 1, 2]


@pytest.mark.parametrize("ending", ["fail", "cancel", "abandon", "silence", "timeout"])
def test_whoever_waits_for_a_run_that_comes_to_nothing_computes_it(store, ending):
    writer = store.begin(record())

    def poll(other):
        if ending == "silence":
            age(store, other.id, STALE_AFTER + 5)
            liveness._SEEN.clear()
        elif ending != "timeout":
            getattr(writer, ending)()

    assert colleague(store).wait_for("k" * 8, 0.2 if ending == "timeout" else 60.0, poll) is None


def test_two_notebooks_ask_for_the_same_run(bench, images):
    """In two threads with a store object each: computed once, both have it."""
    runs, benches = [], [bench, workbench.Workbench(colleague(bench.store), bench.host)]

    def ask(mine):
        runs.append(mine.run("sample.mean_image", data=images, progress=False))

    first = bench.run("sample.mean_image", data=images, progress=False)
    threads = [threading.Thread(target=ask, args=(mine,)) for mine in benches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.id for run in runs] == [first.id] * 2
    assert all(run.served for run in runs)


# ---------------------------------------------------------------------------------------------------------- annotations


def test_what_people_say_is_found_by_everybody(store, monkeypatch):
    a, b = add(store), add(store)
    monkeypatch.setenv("WORKBENCH_USER", "ada")
    store.annotations.of(a).tag("paper", "figure 3")
    store.annotations.of(a).note("the learning rate was too high, see Größe")
    monkeypatch.setenv("WORKBENCH_USER", "bob")
    other = colleague(store)
    said = other.annotations.of(a)
    assert said.tags == ("figure 3", "paper")
    assert [(note.user, note.text[:17]) for note in said.notes] == [("ada", "the learning rate")]
    said.untag("figure 3")
    said.pin()
    other.annotations.of(b).archive()

    def found(where):
        return [run.id for run in store.runs(where)]

    assert found("tag = paper") == [a]
    assert found("tag = PAP*") == [a]
    assert found("tag != paper") == [b]
    assert found('tag = "figure 3"') == []
    assert found('note ~ "rate learning"') == [a]
    assert found("note ~ größe") == [a]
    assert found("note ~ learn*") == [a]
    assert found("note ~ learn") == []
    assert found("pinned = yes and user = ada") == [a]
    assert found("archived = yes") == [b]
    assert found("not archived = yes") == found("archived = no") == [a]
    with pytest.raises(InputError, match="pinned = yes or pinned = no"):
        store.runs("pinned > 3")
    with pytest.raises(InputError):
        store.annotations.of(a).tag("x\n")
    assert found("""note ~ 'a" OR b' """) == []
    said.unpin()
    other.annotations.of(b).unarchive()
    said.remove_note(said.notes[0])
    assert found("pinned = yes") == found("archived = yes") == found("note ~ rate") == []


def test_annotations_merge_in_any_order_and_whatever_clocks_say(store):
    """Objects of five people arrive at readers in random orders; every reader ends up with the same."""
    run = add(store)
    generator = random.Random(0)
    people = [colleague(store, f"person-{number}") for number in range(5)]
    words = ["a", "b", "c"]
    for _ in range(60):
        mine = generator.choice(people).annotations.of(run)
        word = generator.choice(words)
        (mine.tag if generator.random() < 0.6 else mine.untag)(word)
    expected = people[0].annotations.of(run).tags
    (folder,) = Path(store.url, "annotations").iterdir()
    objects = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(objects) > 20
    for number in range(3):
        names = list(objects)
        generator.shuffle(names)
        for path in folder.iterdir():
            path.unlink()
        reader = colleague(store, f"reader-{number}")
        for part in itertools.batched(names, 7) if hasattr(itertools, "batched") else [names[:9], names[9:]]:
            for name in part:
                (folder / name).write_bytes(objects[name])
            reader.annotations.of(run)
        assert reader.annotations.of(run).tags == expected


def test_a_tag_added_while_another_takes_it_away_stays(store):
    run = add(store)
    ada, bob = colleague(store, "ada"), colleague(store, "bob")
    ada.annotations.of(run).tag("paper")
    seen = bob.annotations.holding("tag", run)
    ada.annotations.say("tag", run, "paper")  # at the same moment, on her machine
    bob.annotations.take_back(seen)
    assert ada.annotations.of(run).tags == bob.annotations.of(run).tags == ("paper",)


def test_views_are_saved_and_replaced(store):
    store.annotations.save_view("best", "accuracy > 0.9", ("accuracy", "seed"))
    other = colleague(store).annotations
    assert other.views()["best"].columns == ("accuracy", "seed")
    other.save_view("best", "accuracy > 0.95")
    assert store.annotations.views()["best"].query == "accuracy > 0.95"
    assert len(store.annotations.holding("view")) == 1
    other.delete_view("best")
    assert store.annotations.views() == {}


def test_the_command_line_annotates(store, capsys):
    run = add(store)
    assert main(["--store", store.url, "annotate", run, "--tag", "paper", "--note", "fine", "--pin"]) == 0
    assert main(["--store", store.url, "annotate", "latest"]) == 0
    assert "tags: paper\nstudies: none\nmarks: pinned\n" in capsys.readouterr().out
    assert main(["--store", store.url, "store", "info"]) == 0
    assert "1 runs" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- deleted under a writer


def delete_as_garbage(store: Store, writer) -> None:
    """What a colleague's cleaning up does to a run that seems dead."""
    colleague(store).remove_folder(writer.folder, writer.record.id)


def test_a_run_deleted_while_it_was_written_is_not_completed_empty(store):
    writer = store.begin(record())
    writer.put("score", np.arange(5.0), ("sample",))
    delete_as_garbage(store, writer)
    writer.put("label", np.arange(5), ("sample",))
    with pytest.raises(StoreError, match=f"run {writer.record.id} was deleted .* while it was running"):
        writer.complete()
    assert store.runs() == []
    store.index.put(writer.fail())  # what then becomes of it: a failed run that claims no arrays
    (failed,) = store.runs()
    assert (failed.status, failed.record.arrays) == ("failed", {})
    assert list(store.verify()) == []


def test_a_heartbeat_does_not_revive_a_deleted_run(store):
    writer = store.begin(record())
    writer.put("score", np.arange(5.0), ("sample",))
    delete_as_garbage(store, writer)
    writer.update(progress={"done": 1})
    assert colleague(store).runs() == []
    with pytest.raises(StoreError, match="was deleted"):
        writer.complete()


# ------------------------------------------------------------------------------------------------------ a folder for all


@pytest.mark.skipif(os.name == "nt", reason="permissions of folders as POSIX has them")
@pytest.mark.parametrize("mode", [0o2777, 0o2775, 0o755])
def test_folders_everybody_writes_to_have_the_permissions_of_the_root(tmp_path, mode):
    before = os.umask(0o022)
    try:
        root = tmp_path / "shared"
        root.mkdir()
        root.chmod(mode)
        store = new_store(tmp_path, "shared")
        run = add(store, {"score": np.arange(5.0)})
        store.annotations.of(run).note("good")
    finally:
        os.umask(before)
    shared = [path for top in ("runs", "annotations") for path in (root / top, *(root / top).glob("*"))]
    assert len(shared) == 4
    assert {path.name: oct(path.stat().st_mode & 0o7777) for path in shared} == {path.name: oct(mode) for path in shared}
    own = folder_of(store, run)  # a run has one writer
    assert own.stat().st_mode & 0o022 == 0
    assert (own / "score").stat().st_mode & 0o022 == 0


# ------------------------------------------------------------------------------------------- an index that cannot be written


def refuse_writes(store: Store) -> None:
    """As on a read-only file system, or with a quota that is used up."""
    store.index._connection.execute("PRAGMA query_only = ON")


def test_a_complete_run_does_not_fail_for_an_index_that_cannot_be_written(store):
    first = add(store)
    refuse_writes(store)
    second = add(store)  # enters it
    assert {run.id for run in store.runs()} == {first, second}
    refuse_writes(store)
    store.delete(first)  # takes it out
    assert [run.id for run in store.runs()] == [second]


def test_questions_are_answered_without_an_index_file(store, monkeypatch):
    """Nothing can be written, however often the file is opened: then the answer comes from memory."""
    from workbench.store.index import Index

    run = add(store)
    prepare, opened = Index._prepare, []

    def read_only(self, target):
        connection = prepare(self, target)
        opened.append(target)
        if target != ":memory:":
            connection.execute("PRAGMA query_only = ON")
        return connection

    monkeypatch.setattr(Index, "_prepare", read_only)
    other = colleague(store)
    assert [found.id for found in other.runs()] == [run]
    assert other.find("k" * 8).id == run
    assert opened[-1] == ":memory:"
    assert opened.count(":memory:") == 1  # and stays there
    later = add(store)
    assert {found.id for found in other.runs()} == {run, later}


def test_a_bench_run_is_returned_though_the_index_is_read_only(bench, images):
    bench.run("sample.mean_image", data=images)
    refuse_writes(bench.store)
    run = bench.run("sample.mean_image", data=images, seed=7)
    assert run.status == "complete"
    assert run.id in {found.id for found in bench.store.runs()}


def test_an_index_damaged_while_it_is_open_is_made_anew(store):
    run = add(store)
    store.runs()
    store.index._connection.execute("DROP TABLE facts")
    store.index._connection.execute("DROP TABLE months")
    assert [found.id for found in store.runs()] == [run]
    assert store.index.path.is_file()
