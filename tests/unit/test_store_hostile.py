"""Stores made by somebody else: opening, listing and reading them runs nothing of theirs and takes no memory of ours."""

from __future__ import annotations

import json
import os
import tracemalloc

import numcodecs
import numpy as np
import pytest
from google_crc32c import value as crc32c
from workbench.errors import IntegrityError, StoreError
from workbench.store import Store
from workbench.store.backend import DOCUMENT_LIMIT
from workbench.store.publishing import publish
from workbench.store.records import DEEPEST
from workbench.store.remote import HttpBackend

from unit.store_cases import add, folder_of, forge, new_store, photos

LITTLE = 40 * 2**20
"""Bytes that looking at a hostile store may take."""


@pytest.fixture
def store(tmp_path):
    return new_store(tmp_path)


@pytest.fixture
def run(store):
    return add(store, {"score": np.zeros((50, 4), np.float32), "image": photos()})


def fresh(store: Store) -> Store:
    """The same store, seen for the first time."""
    fresh.count = getattr(fresh, "count", 0) + 1
    return Store(store.url, index_folder=store.index.path.parent / str(fresh.count))


def isolated(store: Store, run: str) -> str:
    """Assert that a good run is still found, the bad one is left out, and verify says why."""
    good = add(store)
    assert [found.id for found in fresh(store).runs()] == [good]
    (problem,) = fresh(store).verify()
    assert problem.run == run
    return problem.problem


class Peak:
    """Memory taken by a block; tracemalloc sees numpy's as well."""

    def __enter__(self):
        tracemalloc.start()
        return self

    def __exit__(self, *_):
        self.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def checked(body: bytes) -> bytes:
    return body + crc32c(body).to_bytes(4, "little")


# ------------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(seed="0"),
        lambda r: r.update(seconds=10**400),
        lambda r: r.update(seconds=float("nan")),
        lambda r: r.update(params={"temperature": float("inf")}),
        lambda r: r.update(params=[]),
        lambda r: r.update(status="interrupted"),
        lambda r: r.update(user=["ada"]),
        lambda r: r.update(user="ada\x1b[31m"),
        lambda r: r.update(method="m" * 5000),
        lambda r: r.update(started="yesterday"),
        lambda r: r.update(started="2020-01-01T00:00:00.000Z"),
        lambda r: r.update(heartbeat=None),
        lambda r: r.update(inputs={"data": {"runs": ["../../../etc"]}}),
        lambda r: r.update(inputs={"data": "x"}),
        lambda r: r.update(report={"metrics": [{"name": "accuracy", "value": "__import__('os')"}]}),
        lambda r: r.update(report={"metrics": 3}),
        lambda r: r.update(id="another"),
        lambda r: r.update(id="a/b"),
        lambda r: r.update(params={"text": "\ud800"}),
        lambda r: r["arrays"].update({"../../outside": r["arrays"]["score"]}),
        lambda r: r["arrays"].update({"/etc": r["arrays"]["score"]}),
        lambda r: r["arrays"].update({"a\nb": r["arrays"]["score"]}),
        lambda r: r["arrays"]["score"].update(dtype="object"),
        lambda r: r["arrays"]["score"].update(dtype="<M8[ns]"),
        lambda r: r["arrays"]["score"].update(shape=[10**18, 4], chunk=[10**18, 4]),
        lambda r: r["arrays"]["score"].update(shape=[10**9, 4], chunk=[10**9, 4]),
        lambda r: r["arrays"]["score"].update(shape=[-1, 4]),
        lambda r: r["arrays"]["score"].update(shape=[50, 4.5]),
        lambda r: r["arrays"]["score"].update(chunk=[0, 4]),
        lambda r: r["arrays"]["score"].update(files=10**12),
        lambda r: r["arrays"]["image"].update(shard=[10**9, 3, 128, 128]),
        lambda r: r["arrays"]["score"].pop("dims"),
    ],
)
def test_records_of_wrong_types_or_absurd_sizes_are_isolated(store, run, change):
    forge(store, run, change)
    assert isolated(store, run)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, "\x00", "null", "[]", '"x"', "1" * 9000, ""]
)
def test_documents_that_are_no_records_are_isolated(store, run, text):
    (folder_of(store, run) / "zarr.json").write_text(text)
    assert isolated(store, run)


def test_documents_of_arrays_that_are_none_are_named(store, run):
    path = folder_of(store, run) / "zarr.json"
    document = json.loads(path.read_bytes())
    document["consolidated_metadata"]["metadata"] |= {"extra": 3, "score": []}
    path.write_text(json.dumps(document, separators=(",", ":")))
    found = {(problem.array, problem.problem) for problem in fresh(store).verify()}
    assert ("extra", "an array the record does not know") in found
    assert ("score", "its zarr document does not fit the record, or names an unknown codec") in found


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_folder_of_marks_that_leaves_the_store_is_named(store, run, tmp_path):
    folder = store.backend.path("keys").resolve()
    (tmp_path / "outside").mkdir()
    (part,) = folder.iterdir()
    part.rename(tmp_path / "moved")
    part.symlink_to(tmp_path / "outside")
    (problem,) = fresh(store).verify()
    assert problem.problem.startswith("not found when it is asked for again: ")
    assert problem.problem.endswith("leaves the store: refused")


@pytest.mark.parametrize("lie", ["a run without a document", "a document twice"])
def test_a_published_listing_that_lies_hides_no_run(store, run, tmp_path, lie):
    other = add(store)
    publish(store)
    root = store.backend.root
    listing = json.loads((root / "published.json").read_bytes())
    (month,) = listing["runs"].values()
    part = root / month["files"][0]
    if lie == "a run without a document":
        month["names"].append("nobody")
        (root / "published.json").write_text(json.dumps(listing))
    else:
        first, second = part.read_text().splitlines(keepends=True)
        part.write_text(first + first + second)

    class Published(HttpBackend):
        """Read from the folder as it is, without a server."""

        def __init__(self) -> None:
            self.url, self._listing = "https://elsewhere.example/store", None

        def read(self, key, limit=None):
            return store.backend.read(key, limit)

        def size(self, key):
            return store.backend.size(key)

    found = Store(Published(), index_folder=tmp_path / "elsewhere").runs()
    assert sorted(item.id for item in found) == sorted([run, other])


def test_deep_nesting_inside_a_record_is_refused(store, run):
    deep: list = []
    for _ in range(DEEPEST + 1):
        deep = [deep]
    forge(store, run, lambda r: r.update(params={"deep": deep}))
    assert "recursion limit" in isolated(store, run)


def test_a_huge_record_is_refused_before_it_is_read(store, run):
    path = folder_of(store, run) / "zarr.json"
    with path.open("r+b") as file:
        file.truncate(4 * 2**30)  # sparse: takes no disk
    with Peak() as peak:
        assert "more than" in isolated(store, run)
    assert peak.bytes < LITTLE
    marker = folder_of_marker(store)
    with marker.open("r+b") as file:
        file.truncate(4 * 2**30)
    with Peak() as peak, pytest.raises(StoreError):
        fresh(store)
    assert peak.bytes < LITTLE


def folder_of_marker(store):
    from pathlib import Path

    return Path(store.url, "workbench.json")


def test_no_record_of_ours_is_too_large_for_readers(store):
    from unit.store_cases import record

    writer = store.begin(record())
    with pytest.raises(StoreError, match="MiB"):
        writer.complete(report={"summary": "x" * DOCUMENT_LIMIT, "metrics": []})


# --------------------------------------------------------------------------------------------------------------- links


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_links_that_leave_the_store_are_refused(store, run, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "zarr.json").write_text("{}")
    folder = folder_of(store, run)
    # a run, a month and the annotations that are links are not even listed
    (folder.parent / "linked-run").symlink_to(secret, target_is_directory=True)
    (folder.parent.parent / "2020-01").symlink_to(secret, target_is_directory=True)
    (folder.parents[2] / "annotations").symlink_to(secret, target_is_directory=True)
    (secret / "2026-11").mkdir()
    (secret / "2026-11" / "x.json").write_text("{}")
    new = fresh(store)
    assert [found.id for found in new.runs()] == [run]
    with pytest.raises(StoreError, match="leaves the store"):
        new.annotations.of(run).tag("x")
    assert sorted(path.name for path in secret.rglob("*")) == ["2026-11", "x.json", "zarr.json"]
    # a chunk that is a link to somebody's file
    chunk = folder / "score/c/0/0"
    content = chunk.read_bytes()
    (secret / "mine").write_bytes(content)
    chunk.unlink()
    chunk.symlink_to(secret / "mine")
    with pytest.raises(StoreError, match="leaves the store"):
        fresh(store).run(run)["score"].values  # noqa: B018
    assert any("leaves the store" in problem.problem for problem in fresh(store).verify())
    # deleting does not follow links
    fresh(store).delete(run, force=True)
    assert (secret / "mine").read_bytes() == content


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_not_opened(store, run):
    path = folder_of(store, run) / "zarr.json"
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in isolated(store, run)


@pytest.mark.parametrize("name", ["a b", "-rf", "x\x1b[31m", "é", ".hidden", "a" * 201])
def test_folder_names_that_are_no_run_ids_are_refused(store, run, name):
    folder_of(store, run).rename(folder_of(store, run).with_name(name))
    good = add(store)
    new = fresh(store)
    assert [found.id for found in new.runs()] == [good]
    problems = [str(problem) for problem in new.verify()]
    assert all(text.isprintable() for text in problems)


# ----------------------------------------------------------------------------------------------------- chunks and bombs


def test_a_blosc_bomb_is_refused_before_memory_is_taken(store, run):
    bomb = numcodecs.Blosc(cname="lz4", clevel=9).encode(np.zeros(400 * 2**20, np.uint8))
    (folder_of(store, run) / "score/c/0/0").write_bytes(checked(bytes(bomb)))
    del bomb
    with Peak() as peak, pytest.raises(IntegrityError, match="refused"):
        fresh(store).run(run)["score"].values  # noqa: B018
    assert peak.bytes < LITTLE


def test_headers_that_lie_about_their_size_are_refused(store, run):
    body = bytearray(numcodecs.Blosc(cname="lz4").encode(np.zeros(200, np.float32)))
    body[12:16] = (2**31).to_bytes(4, "little")
    (folder_of(store, run) / "score/c/0/0").write_bytes(checked(bytes(body)))
    with pytest.raises(IntegrityError, match="not a chunk of this format"):
        fresh(store).run(run)["score"].values  # noqa: B018


def test_a_bomb_inside_a_shard_is_refused(store, run):
    path = folder_of(store, run) / "image/c/0/0/0/0"
    bomb = checked(bytes(numcodecs.Blosc(cname="lz4", clevel=9).encode(np.zeros(300 * 2**20, np.uint8))))
    entry = store.run(run).record.arrays["image"]
    chunks = int(np.prod(np.array(entry["shard"]) // np.array(entry["chunk"])))
    index = np.array([[0, len(bomb)]] * chunks, dtype="<u8").tobytes()
    path.write_bytes(bomb + checked(index))
    for part in (slice(None), 3):
        with Peak() as peak, pytest.raises(IntegrityError, match=r"refused|outside"):
            fresh(store).run(run)["image"][part].values  # noqa: B018
        assert peak.bytes < LITTLE + 60 * 3 * 128 * 128


def test_shard_indices_that_point_elsewhere_are_refused(store, run):
    path = folder_of(store, run) / "image/c/0/0/0/0"
    entry = store.run(run).record.arrays["image"]
    chunks = int(np.prod(np.array(entry["shard"]) // np.array(entry["chunk"])))
    for place in ([2**63, 100], [0, 2**62], [10**9, 10]):
        path.write_bytes(b"x" * 1000 + checked(np.array([place] * chunks, dtype="<u8").tobytes()))
        for part in (slice(None), 3):
            with pytest.raises(IntegrityError, match="outside the file"):
                fresh(store).run(run)["image"][part].values  # noqa: B018


@pytest.mark.parametrize("kind", ["zeros", "unknown-size", "count", "lengths"])
def test_string_bombs_are_refused(store, kind):
    run = add(store, {"name": np.array(["a", "b"], dtype=object)})
    raw = bytes(numcodecs.VLenUTF8().encode(np.array(["a", "b"], dtype=object)))
    packed = {
        "zeros": lambda: bytes(numcodecs.Zstd(level=1).encode(bytes(600 * 2**20))),
        "unknown-size": lambda: b"\x28\xb5\x2f\xfd\x00\x58\x00\x00\x00",
        "count": lambda: bytes(numcodecs.Zstd().encode((2**31 - 1).to_bytes(4, "little") + raw[4:])),
        "lengths": lambda: bytes(numcodecs.Zstd().encode(raw[:4] + (2**31 - 1).to_bytes(4, "little") + raw[8:])),
    }[kind]()
    (folder_of(store, run) / "name/c/0").write_bytes(packed)
    with Peak() as peak, pytest.raises(IntegrityError, match=r"refused|damaged"):
        fresh(store).run(run)["name"].values  # noqa: B018
    assert peak.bytes < LITTLE


def test_a_region_that_its_files_cannot_fill_is_refused(store):
    """A table of a terabyte that is a few tiny files: refused before the terabyte is asked for."""
    run = add(store, {"table": np.zeros((600, 1000), np.float32)})
    forge(
        store,
        run,
        lambda r: r["arrays"]["table"].update(shape=[250_000_000, 1000], chunk=[8000, 1000], shard=None, files=31_250),
    )
    array = fresh(store).run(run)["table"]
    assert array.shape == (250_000_000, 1000)
    with Peak() as peak, pytest.raises(IntegrityError, match="missing"):
        array.values  # noqa: B018
    assert peak.bytes < LITTLE
    with pytest.raises(IntegrityError, match=r"refused|damaged"):
        array[:10].values  # noqa: B018
    assert any("chunk files are missing" in problem.problem for problem in fresh(store).verify())


@pytest.mark.parametrize(
    "codec",
    [
        {"id": "pickle"},
        {"name": "numcodecs.pickle", "configuration": {}},
        {"name": "mine", "configuration": {"module": "os"}},
    ],
)
def test_unknown_codecs_and_formats_are_named_and_never_used(store, run, codec):
    """Arrays are decoded by what this format writes; a document that asks for more is reported and otherwise ignored."""
    folder = folder_of(store, run)
    root = json.loads((folder / "zarr.json").read_bytes())
    for document in (root["consolidated_metadata"]["metadata"]["score"],):
        document["codecs"] = [codec]
    (folder / "score/zarr.json").write_text(json.dumps(document))
    (folder / "zarr.json").write_text(json.dumps(root))
    (problem,) = fresh(store).verify()
    assert problem.array == "score"
    assert "unknown codec" in problem.problem
    assert fresh(store).run(run)["score"].values.shape == (50, 4)
    root["zarr_format"] = 2
    (folder / "zarr.json").write_text(json.dumps(root))
    assert "zarr format 3" in isolated(store, run)


# ------------------------------------------------------------------------------------------------- annotations, reports


def test_annotations_of_others_are_checked(store, run):
    from pathlib import Path

    folder = Path(store.url, "annotations", "2026-11")
    folder.mkdir(parents=True)
    said = {"format": 1, "kind": "tag", "run": run, "user": "eve", "time": "2026-11-01T00:00:00.000Z", "text": "fine"}
    odd = [
        "[" * 100_000, "{}", "[]", json.dumps(said | {"run": "../x"}), json.dumps(said | {"text": 5}),
        json.dumps(said | {"kind": "exec"}), json.dumps(said | {"user": "\x1b[2J"}), json.dumps(said | {"text": "x" * 10**5}),
        json.dumps(said | {"removes": "all"}), json.dumps(said | {"text": "\ud800"}),
    ]  # fmt: skip
    for number, text in enumerate(odd):
        (folder / f"{number}.json").write_text(text)
    (folder / "good.json").write_text(json.dumps(said))
    assert fresh(store).annotations.of(run).tags == ("fine",)


def test_text_of_records_is_never_html_and_never_a_terminal_command(store, capsys):
    import workbench
    from workbench.cli import main
    from workbench.host import Host

    evil = "<script>alert(1)</script>\x1b[2J"
    run = add(store)
    metric = {"name": evil, "value": 1.0, "unit": "", "direction": "higher"}
    report = {"summary": evil, "metrics": [metric], "tables": [], "views": [], "notes": [evil]}
    forge(
        store, run, lambda r: r.update(report=report, method_title=evil, params={evil: evil}, provenance={evil: evil})
    )
    bench = workbench.Workbench(fresh(store), Host(found=[]))
    page = bench[run]._repr_html_() + bench.runs()._repr_html_()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    forge(store, run, lambda r: r.update(report=report | {"views": [{"kind": "exec", "code": "import os"}]}))
    assert run in workbench.Workbench(fresh(store), bench.host).runs()._repr_html_()
    main(["--store", store.url, "store", "info"])
    main(["--store", store.url, "store", "verify"])
    assert "\x1b[2J" not in capsys.readouterr().out
