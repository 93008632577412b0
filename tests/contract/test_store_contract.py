"""Every back-end passes the one store contract: a folder, S3 as moto's server speaks it, GCS and Azure.

Google's XML interface and S3 agree in what a store needs, so obstore's GCS client talks to the same moto server, through a
proxy that puts S3's authorisation in the place of Google's. Azure is Azurite, where it is installed.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from workbench.cli import main
from workbench.errors import IntegrityError, StoreError
from workbench.store import Store
from workbench.store.copying import copy_runs
from workbench.store.publishing import publish
from workbench.testing.store import StoreContract, _record

from contract.servers import AZURITE_ACCOUNT, AZURITE_KEY, CountingProxy, FolderServer, azure_server, s3_server

NUMBERS = itertools.count()
SIGNED_FOR_MOTO = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


@pytest.fixture
def cloud() -> None:
    pytest.importorskip("obstore", reason="needs obstore (pip install 'vision-workbench[cloud]')")


class TestFolder(StoreContract):
    @pytest.fixture
    def place(self, tmp_path):
        return tmp_path / "store"


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of a bucket on a server started for the tests; counted and, on request, disturbed by a proxy."""
    pytest.importorskip("moto", reason="needs moto (pip install 'moto[s3]' flask flask-cors)")
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def proxy(cloud, s3, monkeypatch) -> Iterator[CountingProxy]:
    with CountingProxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield proxy


@pytest.fixture
def bucket(proxy) -> str:
    return f"s3://bench/store-{next(NUMBERS)}"


class TestS3(StoreContract):
    @pytest.fixture
    def place(self, bucket):
        return bucket


class TestGoogle(StoreContract):
    @pytest.fixture
    def place(self, cloud, s3, monkeypatch):
        with CountingProxy(s3) as proxy:
            proxy.replaced["authorization"] = SIGNED_FOR_MOTO
            account = {"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": True}
            monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account | {"gcs_base_url": proxy.url}))
            yield f"gs://bench/store-{next(NUMBERS)}"
            assert proxy.requests


@pytest.fixture(scope="session")
def azure() -> Iterator[str]:
    command = shutil.which("azurite-blob")
    if command is None:
        pytest.skip("needs Azurite on the path (npm install -g azurite)")
    with azure_server(command) as endpoint:
        yield endpoint


class TestAzure(StoreContract):
    @pytest.fixture
    def place(self, cloud, azure, monkeypatch):
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", AZURITE_ACCOUNT)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURITE_KEY)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azure)
        return f"az://bench/store-{next(NUMBERS)}"


# ------------------------------------------------------------------------------------------------------------- requests

FIVE = {f"array_{n}": np.random.default_rng(n).normal(size=(50, 10)).astype(np.float32) for n in range(5)}


def five_arrays(store: Store):
    writer = store.begin(_record())
    for name, values in FIVE.items():
        writer.put(name, values, (f"{name}_y", f"{name}_x"))
    return writer.complete()


def test_a_run_of_five_arrays_takes_at_most_15_requests(bucket, proxy, tmp_path):
    store = Store(bucket, index_folder=tmp_path)
    five_arrays(store)
    proxy.requests.clear()
    five_arrays(store)
    assert len(proxy.requests) <= 15
    assert {method for method, _ in proxy.requests} == {"PUT", "HEAD"}  # the last: is the run still there?


ITEMS = pytest.mark.parametrize(
    ("shape", "dtype", "place"),
    [((60, 3, 256, 256), "uint8", 17), ((60, 256, 256), "uint8", 17), ((9000, 1000), "float32", 8500)],
    ids=["picture", "grey picture", "row of logits"],
)


BYTES_READ = """
import sys
from pathlib import Path

from workbench.store import Store

folder, first, second, place = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
store = Store(folder / "store", index_folder=folder / "index")


def read_by_this_process():
    return int(Path("/proc/self/io").read_text().split()[1])


store.run(first)["value"][place].values.sum()  # whatever is imported on first use
array = store.run(second)["value"]
counts = [read_by_this_process()]
for row in (place, place + 2):
    item = array[row].values
    counts.append(read_by_this_process())
    (folder / f"{row}.bytes").write_bytes(item.tobytes())
print(counts[1] - counts[0], counts[2] - counts[1])
"""


@pytest.mark.skipif(
    not Path("/proc/self/io").exists(), reason="needs Linux, whose kernel counts the bytes a process reads"
)
@ITEMS
def test_one_item_of_a_folder_takes_at_most_twice_its_bytes(tmp_path, shape, dtype, place):
    """As the kernel counts the bytes of all system calls, in a process of its own: threads of other tests read too."""
    generator = np.random.default_rng(0)
    values = (
        generator.normal(size=shape).astype(dtype) if dtype == "float32" else generator.integers(0, 256, shape, dtype)
    )
    store = Store(tmp_path / "store", index_folder=tmp_path / "index")
    runs = []
    for _ in range(2):
        writer = store.begin(_record())
        writer.put("value", values, tuple(f"dim_{axis}" for axis in range(values.ndim)))
        runs.append(writer.complete())
        store.index.put(runs[-1])
    arguments = [str(tmp_path), runs[0].id, runs[1].id, str(place)]
    done = subprocess.run([sys.executable, "-c", BYTES_READ, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, next_but_one = map(int, done.stdout.split())
    own = 200  # of looking
    assert first <= 2 * values[0].nbytes + 16 * 4096 + 4 + own
    assert next_but_one <= 2 * values[0].nbytes + own
    for row in (place, place + 2):
        assert (tmp_path / f"{row}.bytes").read_bytes() == values[row].tobytes()


@ITEMS
def test_one_item_takes_two_requests_and_at_most_twice_its_bytes(bucket, proxy, tmp_path, shape, dtype, place):
    """Noise, which does not compress: the worst case. The index of a shard is read once and then known."""
    generator = np.random.default_rng(0)
    values = (
        generator.normal(size=shape).astype(dtype) if dtype == "float32" else generator.integers(0, 256, shape, dtype)
    )
    store = Store(bucket, index_folder=tmp_path)
    writer = store.begin(_record())
    writer.put("value", values, tuple(f"dim_{axis}" for axis in range(values.ndim)))
    done = writer.complete()
    store.index.put(done)
    array = store.run(done.id)["value"]
    proxy.requests.clear()
    proxy.sent = 0
    np.testing.assert_array_equal(array[place].values, values[place])
    assert len(proxy.requests) == 2  # the shard's index, one chunk
    assert proxy.sent <= 2 * values[0].nbytes + 16 * 4096 + 4
    proxy.sent = 0
    np.testing.assert_array_equal(array[place + 2].values, values[place + 2])
    assert len(proxy.requests) == 3
    assert proxy.sent <= 2 * values[0].nbytes
    np.testing.assert_array_equal(array[place : place + 20].values, values[place : place + 20])
    assert len(proxy.requests) == 4  # neighbours come together


def test_a_look_for_a_key_takes_two_requests_and_one_if_there_is_none(bucket, proxy, tmp_path):
    store = Store(bucket, index_folder=tmp_path)
    for number in range(3):
        store.begin(_record(key=f"{number:064x}")).complete()
    proxy.requests.clear()
    found = store.find(f"{1:064x}")
    assert found is not None
    assert found.record.key == f"{1:064x}"
    assert [method for method, _ in proxy.requests] == ["GET", "GET"]  # a listing of one, its record
    assert store.find("f" * 64) is None
    assert len(proxy.requests) == 3


def test_a_small_array_takes_one_request(bucket, proxy, tmp_path):
    store = Store(bucket, index_folder=tmp_path)
    run = five_arrays(store)
    store.index.put(run)
    small = store.run(run.id)["array_3"]
    proxy.requests.clear()
    np.testing.assert_array_equal(small[:5].values, FIVE["array_3"][:5])
    assert len(proxy.requests) == 1


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", ["500", "503", "slow", "half"])
def test_a_bad_network_loses_nothing(bucket, proxy, tmp_path, fault):
    """Every third answer is an error, late, or breaks off in the middle of its body."""
    proxy.fault, proxy.every = fault, 3
    store = Store(bucket, index_folder=tmp_path / "a")
    done = [five_arrays(store).id for _ in range(3)]
    other = Store(bucket, index_folder=tmp_path / "b")
    assert {run.id for run in other.runs()} == set(done)
    for run in done:
        for name, values in FIVE.items():
            np.testing.assert_array_equal(other.run(run)[name].values, values)
    assert proxy.disturbed > 5
    proxy.fault = ""
    assert list(other.verify()) == []


def test_a_server_that_is_down_is_one_clear_error(bucket, proxy, tmp_path, monkeypatch):
    from datetime import timedelta

    from workbench.store import remote

    monkeypatch.setitem(remote.RETRIES, "max_retries", 1)
    monkeypatch.setitem(remote.RETRIES, "retry_timeout", timedelta(seconds=1))
    proxy.fault, proxy.every = "500", 1
    with pytest.raises(StoreError, match="does not answer as it should"):
        Store(bucket, index_folder=tmp_path)


# ----------------------------------------------------------------------------------------------------- copy and publish


def test_copying_from_a_folder_to_a_bucket_and_back(bucket, tmp_path):
    here = Store(tmp_path / "here", index_folder=tmp_path / "a")
    ids = [five_arrays(here).id for _ in range(2)]
    here.annotations.of(ids[0]).tag("paper")
    there = Store(bucket, index_folder=tmp_path / "b")
    assert [item.what for item in copy_runs(here, there, "tag = paper")] == ["copied"]
    assert sorted(item.what for item in copy_runs(here, there)) == ["copied", "present"]
    back = Store(tmp_path / "back", index_folder=tmp_path / "c")
    copy_runs(there, back)
    assert list(back.verify()) == []
    assert [run.id for run in back.runs("tag = paper")] == [ids[0]]
    assert contents(tmp_path / "back" / "runs") == contents(tmp_path / "here" / "runs")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_that_broke_off_goes_on_and_is_verified(tmp_path):
    here = Store(tmp_path / "here", index_folder=tmp_path / "a")
    run = five_arrays(here)
    here.index.put(run)
    there = Store(tmp_path / "there", index_folder=tmp_path / "b")
    there.prepare()
    written: list[str] = []
    original = there.backend.write_new_chunk

    def failing(key, data):
        if len(written) == 8:
            raise OSError(28, "No space left on device")
        written.append(key)
        original(key, data)

    there.backend.write_new_chunk = failing
    with pytest.raises(StoreError, match="broke off: No space left"):
        copy_runs(here, there)
    assert there.runs() == []
    first = list(written)
    there.backend.write_new_chunk = lambda key, data: (written.append(key), original(key, data))
    # One of the files that arrived was damaged since, without a change of its size.
    chunk = next(tmp_path / "there" / key for key in first if "/c/" in key)
    content = bytearray(chunk.read_bytes())
    content[30] ^= 1
    chunk.write_bytes(content)
    copy_runs(here, there)
    assert list(there.verify()) == []
    assert [found.id for found in there.runs()] == [run.id]
    # A damaged source is refused and leaves nothing that looks like a run.
    damaged = next((tmp_path / "here").rglob("array_2/c/0/0"))
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    third = Store(tmp_path / "third", index_folder=tmp_path / "c")
    with pytest.raises(IntegrityError, match="array_2"):
        copy_runs(here, third)
    assert third.runs() == []


def test_a_published_store_is_read_through_a_plain_web_server(cloud, tmp_path, capsys):
    store = Store(tmp_path / "store", index_folder=tmp_path / "a")
    runs = [five_arrays(store) for _ in range(3)]
    store.annotations.of(runs[1].id).tag("paper")
    running = store.begin(_record()).record
    with FolderServer(tmp_path / "store") as server:
        with pytest.raises(StoreError, match="was not published"):
            Store(server.url, index_folder=tmp_path / "b").runs()
        assert publish(store) == 3
        public = Store(server.url, index_folder=tmp_path / "c")
        server.requests.clear()
        assert {run.id for run in public.runs()} == {run.id for run in runs}
        assert len(server.requests) <= 3
        (tagged,) = public.runs("tag = paper")
        assert tagged.id == runs[1].id
        assert running.id not in [run.id for run in public.runs()]
        np.testing.assert_array_equal(tagged["array_1"].values, FIVE["array_1"])
        assert list(public.verify()) == []
        for attempt in (lambda: public.begin(_record()), lambda: public.delete(tagged.id), lambda: publish(public)):
            with pytest.raises(StoreError, match="published read-only"):
                attempt()
        copied = Store(tmp_path / "mine", index_folder=tmp_path / "d")
        copy_runs(public, copied, "tag = paper")
        assert [run.id for run in copied.runs()] == [tagged.id]
        assert list(copied.verify()) == []
    assert main(["--store", store.url, "store", "index", "--publish"]) == 0
    assert "published 3 runs" in capsys.readouterr().out
    assert main(["--store", store.url, "store", "copy", str(tmp_path / "by-command"), "--where", "tag = paper"]) == 0
    assert "1 of 1 runs copied and verified" in capsys.readouterr().out


def test_a_web_server_that_knows_no_byte_ranges_is_no_damaged_store(cloud, tmp_path):
    """As the one of Python's standard library: what is read whole is there, the rest is an error that says why."""
    store = Store(tmp_path / "store", index_folder=tmp_path / "a")
    writer = store.begin(_record())
    values = np.arange(300_000.0).reshape(300, 1000)
    writer.put("large", values, ("sample", "class"))
    writer.put("small", values[0], ("class",))
    run = writer.complete()
    publish(store)
    with FolderServer(tmp_path / "store", ranges=False) as server:
        found = Store(server.url, index_folder=tmp_path / "b").run(run.id)
        np.testing.assert_array_equal(found["small"].values, values[0])
        with pytest.raises(StoreError, match="hands out whole files only; arrays are read by byte ranges") as error:
            found["large"][3].load()
        assert not isinstance(error.value, IntegrityError)
