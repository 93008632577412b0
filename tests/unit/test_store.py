"""The store's promises: labelled zarr v3, checksums that bite, lazy reading, atomic completion, a derived index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import workbench
import xarray as xr
import zarr
from workbench.errors import IntegrityError, OutputError, RunNotFoundError, StoreError
from workbench.record import new_run_id, run_key
from workbench.store import Store
from workbench.store import layout as layout_module
from workbench.store.backend import LocalBackend
from workbench.store.layout import ArrayLayout, array_document, chunk_files, chunks_of_shard, dump, encode_chunk, plan

from unit.store_cases import record, stored

DTYPES = ["float32", "float64", "float16", "int64", "int8", "uint8", "bool"]


def random_values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    generator = np.random.default_rng(0)
    if dtype == "bool":
        return generator.random(shape) > 0.5
    return (generator.normal(size=shape) * 20).astype(dtype)


# --------------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (2, 3, 4, 5)])
def test_chunks_written_by_hand_are_what_zarr_reads(tmp_path, dtype, shape):
    values = random_values(dtype, shape)
    layout = plan(shape, values.dtype)
    folder = tmp_path / "array"
    folder.mkdir()
    (folder / "zarr.json").write_bytes(
        dump(array_document(layout, [f"d{i}" for i in range(len(shape))], {"units": "nat"}))
    )
    (name,) = chunk_files(layout)
    target = folder / name if shape else folder / "c"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(encode_chunk(layout, values))
    array = zarr.open_array(folder, mode="r")
    np.testing.assert_array_equal(array[...], values)
    assert array.metadata.to_dict()["codecs"][-1]["name"] == "crc32c"


def test_strings_are_read_back(tmp_path):
    store, run = stored(tmp_path, name=np.array(["conv1", "größer", ""], dtype=object))
    assert store.run(run)["name"].values.tolist() == ["conv1", "größer", ""]


@pytest.mark.parametrize(
    ("shape", "dtype", "chunk"),
    [
        ((1_000_000, 1000), "float32", (2, 1000)),
        ((10_000, 3, 256, 256), "uint8", (1, 3, 256, 256)),
        ((10_000, 256, 256), "uint8", (1, 256, 256)),
        ((60_000, 3, 32, 32), "uint8", (2, 3, 32, 32)),
        ((5000, 64, 32, 32), "float32", (1, 64, 32, 32)),
        ((5000, 64, 64, 64), "float32", (1, 32, 64, 64)),  # an item is too large
        ((40_000_000,), "float32", (16_384,)),
        ((1_000_000, 10), "float32", (1638, 10)),
        ((3, 9000, 9000), "float64", (1, 7, 9000)),
    ],
)
def test_chunks_hold_one_item_or_little_and_shards_are_few_large_files(shape, dtype, chunk):
    layout = plan(shape, np.dtype(dtype))
    size = np.dtype(dtype).itemsize
    assert layout.chunk == chunk
    assert layout.shard is not None
    assert np.prod(layout.shard) * size <= 33 * 2**20
    assert np.prod(chunks_of_shard(layout)) <= 4096
    assert all(whole % part == 0 for whole, part in zip(layout.shard, layout.chunk, strict=True))
    total = np.prod(shape, dtype=np.int64) * size
    assert layout.files <= 4 + 2 * total / (32 * 2**20)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(700, 1000), (5, 300, 400), (33, 7, 64, 64)])
def test_shards_written_by_hand_are_what_zarr_reads(tmp_path, monkeypatch, dtype, shape):
    """Also where the array ends within a shard or a chunk."""
    monkeypatch.setattr(layout_module, "SINGLE_CHUNK_BYTES", 1000)
    monkeypatch.setattr(layout_module, "SHARD_BYTES", 200_000)
    monkeypatch.setattr(layout_module, "CHUNK_BYTES", 40_000)
    monkeypatch.setattr("workbench.store.writer.has_fast_pipeline", lambda: False)
    values = random_values(dtype, shape)
    store, run = stored(tmp_path, value=values)
    assert store.run(run).record.arrays["value"]["files"] > 1
    folder = Path(store.url, "runs", store.run(run).record.month, run)
    np.testing.assert_array_equal(zarr.open_array(folder / "value", mode="r")[...], values)
    np.testing.assert_array_equal(store.run(run)["value"].values, values)
    assert list(store.verify()) == []


def test_files_of_a_region():
    layout = ArrayLayout((10, 10), np.dtype("float32"), (2, 5), (4, 5))
    assert list(chunk_files(layout, (slice(3, 5), slice(0, 5)))) == ["c/0/0", "c/1/0"]
    assert len(list(chunk_files(layout))) == layout.files == 6
    assert list(chunk_files(layout, (slice(3, 3), slice(0, 5)))) == []


# -------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled", "unaligned"])
def test_streamed_regions_arrive_whatever_their_order(tmp_path, order):
    store = Store(tmp_path / "store", index_folder=tmp_path / "index")
    values = np.random.default_rng(0).normal(size=(700, 128, 128)).astype(np.float32)  # 46 MB: streams
    writer = store.begin(record())
    array = writer.declare("feature", values.shape, values.dtype, ("sample", "y", "x"))
    step = 37 if order == "unaligned" else 50
    starts = list(range(0, 700, step))
    if order == "backward":
        starts.reverse()
    elif order == "shuffled":
        np.random.default_rng(1).shuffle(starts)
    from workbench.store.array_writer import NumpySource

    for start in starts:
        stop = min(start + step, 700)
        array.write((slice(start, stop), slice(0, 128), slice(0, 128)), NumpySource(values[start:stop]))
    assert writer.missing_regions() == {}
    run = writer.complete()
    store.index.put(run)
    np.testing.assert_array_equal(store.run(run.id)["feature"].values, values)
    folder = Path(store.url, "runs", run.month, run.id, "feature")
    assert len([p for p in folder.rglob("c/*/*/*") if p.is_file()]) == run.arrays["feature"]["files"]


def test_a_dim_has_one_length_and_an_array_is_written_once(tmp_path):
    writer = Store(tmp_path / "store").begin(record())
    writer.put("logit", np.zeros((4, 3)), ("sample", "class"))
    with pytest.raises(OutputError, match="dim 'sample' has length 5, but 4 in 'logit'"):
        writer.put("label", np.zeros(5), ("sample",))
    with pytest.raises(OutputError, match="written twice"):
        writer.put("logit", np.zeros((4, 3)), ("sample", "class"))
    with pytest.raises(OutputError, match="name one dim twice"):
        writer.put("matrix", np.zeros((3, 3)), ("class", "class"))


def test_unwritten_regions_are_found(tmp_path):
    from workbench.store.array_writer import NumpySource

    writer = Store(tmp_path / "store").begin(record())
    array = writer.declare("score", (10,), np.dtype("float32"), ("sample",))
    array.write((slice(0, 7),), NumpySource(np.zeros(7, np.float32)))
    assert writer.missing_regions() == {"score": "[7]"}


# -------------------------------------------------------------------------------------------------------------- reading


def test_only_the_chunks_of_a_slice_are_read(tmp_path, monkeypatch):
    store, run = stored(tmp_path, image=np.random.default_rng(0).integers(0, 255, (400, 3, 128, 128), dtype=np.uint8))
    read = []
    for name in ("read", "read_tail", "read_parts"):
        original = getattr(LocalBackend, name)

        def counted(self, key, *arguments, original=original):
            found = original(self, key, *arguments)
            read.extend(
                map(len, found if isinstance(found, list) else [found[0] if isinstance(found, tuple) else found])
            )
            return found

        monkeypatch.setattr(LocalBackend, name, counted)
    array = store.run(run)["image"]
    read.clear()
    part = array.isel(image_0=123).values
    assert part.shape == (3, 128, 128)
    assert len(read) == 2  # the shard's index, one chunk
    assert read[0] < 16_384
    assert read[1] <= 512 * 1024 + 64


def check_region(array, values, key):
    np.testing.assert_array_equal(array[key].values, values[key])


@pytest.mark.parametrize("shape", [(7, 5, 6), (400, 3, 64, 64), (3, 1100, 1300)])
def test_any_region_reads_as_numpy_would(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    store, run = stored(tmp_path, image=values)
    array = store.run(run)["image"]
    generator = np.random.default_rng(1)
    np.testing.assert_array_equal(array.values, values)
    for _ in range(40):
        key = []
        for size in shape:
            low, high = sorted(int(i) for i in generator.integers(0, size + 1, 2))
            step = int(generator.integers(1, 4))
            kind = generator.integers(0, 4)
            key.append(
                slice(low, high, step) if kind == 0
                else slice(None, None, -step) if kind == 1
                else int(generator.integers(-size, size)) if kind == 2
                else slice(None)
            )  # fmt: skip
        check_region(array, values, tuple(key))
        chosen = generator.integers(-shape[0], shape[0], 5)
        check_region(array, values, chosen)
        rows, columns = np.sort(generator.integers(0, shape[0], 3)), generator.integers(0, shape[-1], 4)
        outer = array[{array.dims[0]: rows, array.dims[-1]: columns}].values
        np.testing.assert_array_equal(outer, values[rows][..., columns])


def test_handles_know_their_origin_until_something_changes(tmp_path):
    from workbench.store.reading import origin_of

    store, run = stored(tmp_path, logit=np.zeros((5, 3), np.float32))
    handle = store.run(run)["logit"]
    assert origin_of(handle).variable == "logit"
    assert origin_of(handle.isel(logit_0=slice(0, 2))) is None
    assert origin_of(handle + 0) is None
    assert origin_of(handle.copy()) is None
    handle[0, 0] = 1.0
    assert origin_of(handle) is None


def test_unknown_arrays_and_runs_have_helpful_errors(tmp_path):
    store, run = stored(tmp_path, logit=np.zeros((5, 3), np.float32))
    with pytest.raises(OutputError, match="Did you mean 'logit'"):
        store.run(run)["logits"]
    with pytest.raises(RunNotFoundError, match="no run matches"):
        store.run("nothing-like-this")
    second = store.begin(record()).complete()
    store.index.put(second)
    with pytest.raises(RunNotFoundError, match="2 runs match"):
        store.run("test")


# ------------------------------------------------------------------------------------------------------------ integrity


@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_an_error_that_names_run_array_and_region(tmp_path, dtype, damage):
    store, run = stored(tmp_path, score=random_values(dtype, (50, 40)))
    (chunk,) = Path(store.url).glob("runs/*/*/score/c/0/0")
    content = bytearray(chunk.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        chunk.write_bytes(content)
    elif damage == "truncate":
        chunk.write_bytes(content[: len(content) // 2])
    else:
        chunk.unlink()
    with pytest.raises(IntegrityError) as caught:
        store.run(run)["score"].isel(score_0=3).values  # noqa: B018
    assert (caught.value.run, caught.value.array) == (run, "score")
    assert caught.value.region in ("[0:50, 0:40]", "[3:4, 0:40]")


def test_a_flipped_bit_in_a_shard_is_found(tmp_path):
    store, run = stored(tmp_path, image=np.random.default_rng(0).integers(0, 255, (400, 3, 128, 128), dtype=np.uint8))
    chunk = next(p for p in Path(store.url).rglob("image/c/**/*") if p.is_file())
    content = bytearray(chunk.read_bytes())
    count = int(np.prod(chunks_of_shard(plan((400, 3, 128, 128), np.dtype("uint8")))))
    first = int.from_bytes(content[-4 - 16 * count :][:8], "little")  # where the chunk of image 0 begins
    content[first + 1000] ^= 1
    chunk.write_bytes(content)
    image = store.run(run)["image"]
    for part in (image, image[0], image[:10], image[0:300:7], image[[0, 300]], image[:, :, 5:9]):
        with pytest.raises(IntegrityError):
            part.values  # noqa: B018
    assert image[200].values.shape == (3, 128, 128)  # an undamaged inner chunk of the same file


# ---------------------------------------------------------------------------------------------------------------- index


def test_the_index_can_be_thrown_away_or_damaged(tmp_path):
    store, run = stored(tmp_path, a=np.zeros(3))
    path = store.index.path
    assert [found.id for found in Store(tmp_path / "store", index_folder=tmp_path / "new").runs()] == [run]
    path.write_bytes(b"this is not a database" * 100)
    assert [found.id for found in Store(tmp_path / "store", index_folder=path.parent).runs()] == [run]


def test_runs_of_others_appear_and_unreadable_folders_do_not_disturb(tmp_path):
    store, run = stored(tmp_path, a=np.zeros(3))
    colleague = Store(tmp_path / "store", index_folder=tmp_path / "colleague")
    second = colleague.begin(record()).complete()
    Path(store.url, "runs", second.month, "rubbish").mkdir()
    Path(store.url, "runs", second.month, "rubbish", "zarr.json").write_text("{")
    assert {found.id for found in store.runs()} == {run, second.id}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("", [0, 1, 2]),
        ("family = quantization", [0, 1]),
        ("method = quantization.*", [0, 1]),
        ("accuracy > 0.85", [0, 2]),
        ("accuracy >= 0.8 and not family = calibration", [0, 1]),
        ("user = me", [0]),
        ("user != me or accuracy = 0.9", [0, 1, 2]),
        ("params.bits = 4", [1]),
        ("params.criterion = trace and (seed = 0 or seed = 7)", [0, 2]),
        ("method ~ TEMPER", [2]),
        ("status = complete and started > 2026-11-02", [1, 2]),
        ('params.note = "a b"', [2]),
        ("accuracy > 99", []),
    ],
)
def test_queries(tmp_path, monkeypatch, where, expected):
    monkeypatch.setenv("WORKBENCH_USER", "ada")
    store = Store(tmp_path / "store", index_folder=tmp_path / "index")
    specs = [
        ("quantization.hawq", "ada", {"bits": 3, "criterion": "trace"}, 0, 0.9, "2026-11-01"),
        ("quantization.adaquant", "bob", {"bits": 4, "criterion": "eig"}, 0, 0.8, "2026-11-03"),
        ("calibration.temperature", "bob", {"criterion": "trace", "note": "a b"}, 7, 0.88, "2026-11-04"),
    ]
    ids = []
    for method, user, params, seed, accuracy, day in specs:
        report = {
            "summary": "",
            "metrics": [{"name": "accuracy", "value": accuracy}],
            "tables": [],
            "views": [],
            "notes": [],
        }
        started = f"{day}T10:00:00.000Z"
        begun = record(id=new_run_id(method), method=method, user=user, params=params, seed=seed, started=started)
        store.index.put(store.begin(begun).complete(report=report))
        ids.append(begun.id)
    assert {run.id for run in store.runs(where)} == {ids[index] for index in expected}
    assert store.count(where) == len(expected)


@pytest.mark.parametrize("where", ["accuracy >", "and", "a = 1 or", "a = (1", "a b", "a = 1; DROP TABLE runs", "= 3"])
def test_queries_that_make_no_sense_say_so(tmp_path, where):
    with pytest.raises(workbench.InputError, match="where: expected a query such as"):
        Store(tmp_path / "store").runs(where)


def test_values_of_a_query_are_never_sql(tmp_path):
    store, run = stored(tmp_path, a=np.zeros(3))
    assert store.runs("""user = "x' OR '1'='1" """) == []
    assert [found.id for found in store.runs("")] == [run]


# ------------------------------------------------------------------------------------------------------- opening stores


def test_opening_creates_nothing_and_a_url_nobody_serves_says_so(tmp_path):
    Store(tmp_path / "store")
    assert not (tmp_path / "store").exists()
    with pytest.raises(StoreError, match=r"no back-end for ftp://"):
        Store("ftp://somewhere/store")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "workbench.json").write_text("{")
    with pytest.raises(StoreError, match="not a workbench store"):
        Store(tmp_path / "broken")


def test_the_key_covers_each_of_its_parts():
    parts = {
        "method": "a.b", "version": "1", "code": None, "params": {"bits": [2, 4]}, "inputs": {"data": "d"}, "seed": 0,
        "precision": "float32",
    }  # fmt: skip
    changed = {
        "method": "a.c", "version": "2", "code": "x", "params": {"bits": [2, 8]}, "inputs": {"data": "e"}, "seed": 1,
        "precision": "float16",
    }  # fmt: skip
    keys = {run_key(**parts)} | {run_key(**parts | {name: value}) for name, value in changed.items()}
    assert len(keys) == 1 + len(changed)
    assert run_key(**parts | {"params": {"bits": (2, 4)}}) == run_key(**parts)


def test_a_run_folder_explains_itself(tmp_path):
    store, run = stored(tmp_path, score=np.arange(4.0))
    (folder,) = Path(store.url).glob("runs/*/*")
    document = json.loads((folder / "zarr.json").read_text())
    assert document["zarr_format"] == 3
    assert document["attributes"]["workbench"]["id"] == run == folder.name
    assert document["attributes"]["workbench"]["arrays"]["score"]["files"] == 1
    assert xr.open_zarr(folder)["score"].values.tolist() == [0, 1, 2, 3]
