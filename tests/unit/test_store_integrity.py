"""`workbench store verify` finds every damaged byte and names run, array and region."""

from __future__ import annotations

import json

import numpy as np
import pytest
from workbench.cli import main
from workbench.store import Store

from unit.store_cases import add, folder_of, new_store, photos

ARRAYS = {
    "score": np.linspace(0, 1, 200, dtype=np.float32).reshape(50, 4),
    "name": np.array(["conv1", "größer", "fc"], dtype=object),
    "image": photos(),
    "model/weight": np.arange(6.0).reshape(2, 3),
}


@pytest.fixture
def store(tmp_path):
    return new_store(tmp_path)


@pytest.fixture
def run(store):
    return add(store, ARRAYS)


def test_a_sound_store_has_no_problems(store, run):
    add(store)
    assert list(store.verify()) == []
    assert list(store.verify("user = ada")) == []


def test_every_flipped_byte_of_a_run_is_found(store, run):
    """One flip at 300 places, of every file; reading afterwards is either an error or right."""
    generator = np.random.default_rng(0)
    files = [path for path in folder_of(store, run).rglob("*") if path.is_file()]
    for number in range(300):
        path = files[number % len(files)]
        sound = path.read_bytes()
        damaged = bytearray(sound)
        place = int(generator.integers(len(damaged)))
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        problems = list(store.verify())
        # JSON may say the same with another byte (a space for a tab): then nothing is lost.
        same = path.name == "zarr.json" and _parses_equal(sound, damaged)
        assert problems or same, (path, place)
        assert all(problem.run == run for problem in problems)
        path.write_bytes(sound)


def _parses_equal(sound: bytes, damaged: bytes) -> bool:
    try:
        return json.loads(sound) == json.loads(damaged)
    except ValueError:
        return False


def test_damage_is_named_by_region(store, run):
    shard = next(path for path in folder_of(store, run).joinpath("image", "c").rglob("*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    (problem,) = store.verify()
    entry = store.run(run).record.arrays["image"]
    rows, count = entry["chunk"][0], -(-entry["shape"][0] // entry["chunk"][0])
    # Threads write the chunks of a shard in any order; its index (offset and size of each, at the end) says which is where.
    places = np.frombuffer(content[-16 * count - 4 : -4], dtype="<u8").reshape(count, 2)
    (hit,) = [number for number, (start, size) in enumerate(places) if start <= 100 < start + size]
    region = f"[{hit * rows}:{(hit + 1) * rows}, 0:3, 0:128, 0:128]"
    assert (problem.run, problem.array, problem.region) == (run, "image", region)
    assert "checksum" in problem.problem
    assert run in str(problem)


@pytest.mark.parametrize("cut", [0, 1, 10, -1, -5])
def test_truncated_files_are_found(store, run, cut):
    for name in ("score/c/0/0", "name/c/0", "image/c/0/0/0/0"):
        path = folder_of(store, run) / name
        sound = path.read_bytes()
        path.write_bytes(sound[:cut])
        assert {problem.array for problem in store.verify()} == {name.partition("/")[0]}
        path.write_bytes(sound)


def test_missing_and_foreign_files_are_found(store, run):
    folder = folder_of(store, run)
    (folder / "score" / "c" / "0" / "0").unlink()
    (folder / "image" / "zarr.json").unlink()
    (folder / "image" / "c" / "9").mkdir()
    (folder / "image" / "c" / "9" / "9").write_bytes(b"x")
    (folder / "notes.txt").write_text("mine")
    found = {(problem.array, problem.problem) for problem in store.verify()}
    assert found == {
        ("score", "chunk file c/0/0 is missing"),
        ("image", "its zarr.json is missing"),
        ("image", "foreign file 'image/c/9/9'"),
        ("", "foreign file 'notes.txt'"),
    }


def test_chunks_that_changed_places_are_found(store):
    """Each is sound by itself, so only the record can tell: other shapes, other dtypes."""
    run = add(store, {"a": np.zeros((4, 4), np.float32), "b": np.zeros((8, 4), np.float32)})
    folder = folder_of(store, run)
    (folder / "a/c/0/0").write_bytes((folder / "b/c/0/0").read_bytes())
    assert [problem.array for problem in store.verify()] == ["a"]


def test_damaged_records_are_named_and_failed_runs_may_be_incomplete(store, run, tmp_path):
    path = folder_of(store, run) / "zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"seed":0', b'"seed":1'))
    (problem,) = store.verify()
    assert "its checksum does not match" in problem.problem
    assert [found.id for found in Store(store.url, index_folder=tmp_path / "new").runs()] == []
    from unit.store_cases import record

    writer = store.begin(record())
    writer.declare("half", (10,), np.dtype("float32"), ("sample",))
    writer.fail()
    assert [problem.run for problem in store.verify()] == [run]


def test_the_command_names_damage_and_exits_with_5(store, run, capsys):
    assert main(["--store", store.url, "store", "verify"]) == 0
    assert "1 runs, nothing damaged" in capsys.readouterr().out
    (folder_of(store, run) / "score/c/0/0").unlink()
    assert main(["--store", store.url, "store", "verify", "--where", "user = ada"]) == 5
    captured = capsys.readouterr()
    assert captured.out == f"run {run}, score, region [0:50, 0:4]: chunk file c/0/0 is missing\n"
    assert "1 problem in" in captured.err
