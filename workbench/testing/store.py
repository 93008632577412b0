"""The contract of a store's back-end, executable. Whoever writes one subclasses `StoreContract` and names a fresh place:

    from workbench.testing.store import StoreContract

    class TestMine(StoreContract):
        @pytest.fixture
        def place(self, tmp_path):
            return MyBackend(...)        # or a URL that `workbench.open` understands

Every test gets a place nobody has used. The back-ends of the workbench itself pass the same class.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.errors import IntegrityError, StoreError
from workbench.record import RunRecord, new_run_id, now
from workbench.store import Store, array_writer
from workbench.store.maintenance import find_garbage

__all__ = ["StoreContract"]

DTYPES = ("float32", "float64", "float16", "int64", "int8", "uint8", "bool")


def _record(**changes: Any) -> RunRecord:
    moment = now()
    values: dict[str, Any] = {
        "id": new_run_id("sample.contract"),
        "key": "k" * 64,
        "method": "sample.contract",
        "method_title": "",
        "method_version": "1",
        "method_code": None,
        "params": {},
        "inputs": {},
        "seed": 0,
        "precision": "float32",
        "status": "running",
        "user": "ada",
        "host": "elsewhere",
        "pid": 1,
        "started": moment,
        "heartbeat": moment,
        "device": "cpu",
    }
    return RunRecord(**values | changes)


def _values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=shape) * 20
    return drawn > 0 if dtype == "bool" else drawn.astype(dtype)


class StoreContract:
    """What a store promises, whatever it lies on. Subclass it and give the fixture `place`."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Any:
        """A fresh place: a URL, a path or a `Backend`."""
        raise NotImplementedError("a subclass of StoreContract gives the fixture `place`")

    @pytest.fixture
    def store(self, place: Any, tmp_path: Path) -> Store:
        """A store at the place."""
        return Store(place, index_folder=tmp_path / "index-of-one")

    @pytest.fixture
    def other(self, place: Any, tmp_path: Path) -> Store:
        """The same store as a colleague sees it."""
        return Store(place, index_folder=tmp_path / "index-of-another")

    # --- objects ----------------------------------------------------------------------------------------------------

    def test_objects_are_written_read_replaced_and_removed(self, store: Store) -> None:
        """Whole objects, their ends, their parts, their sizes."""
        backend = store.backend
        assert backend.size("a/b") is None
        with pytest.raises(FileNotFoundError):
            backend.read("a/b")
        with pytest.raises(FileNotFoundError):
            backend.read_tail("a/b", 3)
        content = bytes(range(200))
        backend.write_new_chunk("a/b", content)
        assert backend.read("a/b") == content
        assert backend.size("a/b") == 200
        assert backend.read_tail("a/b", 3) == (content[-3:], 200)
        assert backend.read_tail("a/b", 1000) == (content, 200)
        assert [bytes(part) for part in backend.read_parts("a/b", [(0, 2), (100, 103)])] == [
            content[:2],
            content[100:103],
        ]
        assert backend.read("a/b", 200) == content
        with pytest.raises(StoreError, match="more than 199"):
            backend.read("a/b", 199)
        backend.write("a/b", b"new")
        assert backend.read("a/b") == b"new"
        backend.write("empty", b"")
        assert backend.read("empty") == b""
        backend.delete_object("a/b")
        backend.delete_object("a/b")
        assert backend.size("a/b") is None

    def test_folders_are_listed(self, store: Store) -> None:
        """One level, whole trees, and nothing where there is nothing."""
        backend = store.backend
        assert backend.folders("runs") == []
        assert backend.names("runs") == []
        assert list(backend.files("runs")) == []
        for key in ("runs/b/x", "runs/a/y/z", "runs/a/w", "runsofmine/c/x"):
            backend.write(key, b"12")
        assert backend.folders("runs") == ["a", "b"]
        assert backend.folders("runs/a") == ["y"]
        assert backend.names("runs/a") == ["w"]
        assert sorted(backend.files("runs/a")) == [("runs/a/w", 2), ("runs/a/y/z", 2)]
        backend.delete("runs/a")
        backend.delete("runs/a")
        assert backend.folders("runs") == ["b"]
        assert backend.size("runsofmine/c/x") == 2

    def test_only_empty_folders_are_pruned(self, store: Store) -> None:
        """What is in a folder stays, and where there are folders without anything in them they go."""
        backend = store.backend
        backend.write("keys/a/b", b"")
        backend.prune("keys/a")
        assert backend.names("keys/a") == ["b"]
        backend.delete_object("keys/a/b")
        backend.prune("keys/a")
        backend.prune("keys/a")
        assert backend.folders("keys") == []

    def test_the_place_has_one_clock(self, store: Store) -> None:
        """Stamps and the present moment are told by the same clock."""
        store.prepare()
        store.backend.write("a", b"")
        stamp = store.backend.written("a")
        assert stamp is not None
        assert -2.0 < store.backend.now() - stamp < 60.0
        assert store.backend.written("b") is None

    def test_replacing_is_atomic(self, store: Store) -> None:
        """A reader of an object that is replaced all the time sees one whole version or another."""
        backend = store.backend
        versions = [bytes([number]) * (1000 + 50_000 * number) for number in range(3)]
        backend.write("a", versions[0])
        seen: list[bytes] = []
        first, stop = threading.Event(), threading.Event()

        def read() -> None:
            while not stop.is_set():
                seen.append(backend.read("a"))
                first.set()

        thread = threading.Thread(target=read)
        thread.start()
        first.wait(60.0)  # else, on a busy machine, all could be written before the first look
        for number in range(30):
            backend.write("a", versions[number % 3])
        stop.set()
        thread.join()
        assert seen
        assert set(seen) <= set(versions)

    # --- runs -------------------------------------------------------------------------------------------------------

    def test_runs_come_back_as_they_were_written(self, store: Store, other: Store) -> None:
        """All dtypes, strings, scalars, empty arrays, groups."""
        run = store.begin(_record())
        written: dict[str, np.ndarray] = {f"array_{dtype}": _values(dtype, (7, 3)) for dtype in DTYPES}
        written |= {
            "scalar": np.array(3.5, np.float32),
            "empty": np.zeros((0, 4), np.float32),
            "model/weight": np.arange(6.0),
        }
        for name, values in written.items():
            run.put(name, values, tuple(f"{name.rpartition('/')[2]}_{axis}" for axis in range(values.ndim)))
        run.put("name", np.array(["conv1", "größer", ""], dtype=object), ("layer",))
        assert other.find("k" * 64) is None
        done = run.complete()
        other.index.expire()
        found = other.find("k" * 64)
        assert found is not None
        assert found.id == done.id
        for name, values in written.items():
            np.testing.assert_array_equal(found[name].values, values)
        assert found["name"].values.tolist() == ["conv1", "größer", ""]
        assert list(other.verify()) == []

    def test_large_arrays_are_streamed_and_sliced(
        self, store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Written region by region, read slice by slice."""
        monkeypatch.setattr(array_writer, "BUFFERED_BYTES", 2**20)
        values = np.random.default_rng(0).integers(0, 255, (90, 3, 128, 128), dtype=np.uint8)
        run = store.begin(_record())
        array = run.declare("image", values.shape, values.dtype, ("sample", "channel", "y", "x"))
        for start in (60, 0, 30):
            region = (slice(start, start + 30), *(slice(0, size) for size in values.shape[1:]))
            array.write(region, array_writer.NumpySource(values[start : start + 30]))
        done = run.complete()
        image = other.run(done.id)["image"]
        np.testing.assert_array_equal(image[41].values, values[41])
        np.testing.assert_array_equal(image[3:80:7, 1].values, values[3:80:7, 1])
        np.testing.assert_array_equal(image[[5, 88, 1]].values, values[[5, 88, 1]])
        np.testing.assert_array_equal(image.values, values)

    def test_damaged_and_missing_chunks_are_errors(self, store: Store) -> None:
        """Reading raises, and `verify` names what is wrong."""
        run = store.begin(_record())
        run.put("score", _values("float32", (50, 40)), ("sample", "class"))
        done = run.complete()
        store.index.put(done)
        key = f"runs/{done.month}/{done.id}/score/c/0/0"
        content = bytearray(store.backend.read(key))
        content[len(content) // 2] ^= 4
        store.backend.write(key, bytes(content))
        with pytest.raises(IntegrityError) as caught:
            store.run(done.id)["score"].values  # noqa: B018
        assert (caught.value.run, caught.value.array) == (done.id, "score")
        assert [problem.array for problem in store.verify()] == ["score"]
        store.backend.delete_object(key)
        with pytest.raises(IntegrityError, match="missing"):
            store.run(done.id)["score"].values  # noqa: B018
        assert "missing" in next(store.verify()).problem

    def test_many_writers(self, store: Store, place: Any, tmp_path: Path) -> None:
        """Four at once, five runs each: all there, once."""
        ids: list[str] = []

        def write(number: int) -> None:
            mine = Store(place, index_folder=tmp_path / f"index-{number}")
            for _ in range(5):
                run = mine.begin(_record())
                run.put("a", np.arange(3), ("sample",))
                ids.append(run.complete().id)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(ids)) == 20
        assert sorted(run.id for run in store.runs()) == sorted(ids)
        assert json.loads(store.backend.read("workbench.json"))["format_version"] == 1

    def test_life_and_death_of_runs(self, store: Store, other: Store) -> None:
        """A live run is seen, waited for, and neither deleted nor cleaned up."""
        run = store.begin(_record())
        assert [found.status for found in other.runs()] == ["running"]
        with pytest.raises(StoreError, match="is running"):
            other.delete(run.record.id)
        assert list(find_garbage(other, older_than=0)) == []

        def finish(_: Any) -> None:
            run.put("a", np.arange(3), ("sample",))
            run.complete()
            other.index.expire()

        found = other.wait_for("k" * 64, 300.0, finish)
        assert found is not None
        assert found["a"].values.tolist() == [0, 1, 2]

    def test_lineage_and_deleting(self, store: Store, other: Store) -> None:
        """What others were made from stays."""
        first = store.begin(_record()).complete()
        second = store.begin(_record(inputs={"data": {"label": "", "runs": [first.id]}})).complete()
        assert [run.id for run in other.descendants(first.id)] == [second.id]
        with pytest.raises(StoreError, match="is an input of 1 other run"):
            other.delete(first.id)
        other.delete(second.id)
        other.delete(first.id)
        assert other.runs() == []
        assert list(store.backend.files("runs")) == []

    def test_annotations_of_two_people(self, store: Store, other: Store) -> None:
        """Said by one, found by the other, taken back by either."""
        run = store.begin(_record()).complete()
        store.index.put(run)
        store.annotations.of(run.id).tag("paper")
        store.annotations.of(run.id).note("the learning rate was too high")
        assert [found.id for found in other.runs("tag = paper and note ~ rate")] == [run.id]
        other.annotations.of(run.id).untag("paper")
        store.index.expire()
        assert store.runs("tag = paper") == []
