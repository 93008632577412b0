"""Bytes and requests that one item costs: a 256 x 256 picture out of 10,000, a row of a 1,000,000 x 1,000 table of logits.

    python tests/benchmarks/store_bytes.py

From a folder, where the kernel counts the bytes of all system calls (/proc/self/io, Linux), and over S3 (moto's server), where
a proxy counts requests and bytes. The arrays have their full shapes; of their files only the one that is read is there, filled
with noise, which does not compress. Also: requests of a run of five small arrays.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from workbench.store import Store
from workbench.store.chunks import index_size
from workbench.store.encoding import encode_shard
from workbench.store.layout import ArrayLayout, dump, file_name

from contract.servers import CountingProxy, s3_server
from unit.store_cases import record

SHAPES: dict[str, tuple[tuple[int, ...], str, int]] = {
    "a picture of 256 x 256 out of 10,000": ((10_000, 256, 256), "uint8", 7_123),
    "a row of 1,000,000 x 1,000 logits": ((1_000_000, 1_000), "float32", 654_321),
}


def sparse(store: Store, shape: tuple[int, ...], dtype: str, row: int) -> tuple[str, np.ndarray, ArrayLayout]:
    """A run whose array has only the file with this row; its id, the row, the layout."""
    writer = store.begin(record())
    kept: dict[str, Any] = {}

    def only_one_file(path: str, layout: ArrayLayout, values: np.ndarray) -> None:
        deep = layout.file_shape[0]
        low = row // deep * deep
        generator = np.random.default_rng(0)
        size = (min(deep, shape[0] - low), *shape[1:])
        noise = (
            generator.normal(size=size).astype(dtype) if dtype == "float32" else generator.integers(0, 256, size, dtype)
        )
        key = f"{writer.folder}/{path}"
        store.backend.write_new_chunk(f"{key}/zarr.json", dump(writer.documents[path]))
        place = (row // deep, *(0,) * (len(shape) - 1))
        store.backend.write_new_chunk(f"{key}/{file_name(place)}", encode_shard(layout, noise))
        kept.update(row=noise[row - low], layout=layout)

    writer.write_whole = only_one_file  # type: ignore[method-assign]
    writer.put("value", np.broadcast_to(np.zeros((), dtype), shape), tuple(f"dim_{axis}" for axis in range(len(shape))))
    done = writer.complete()
    store.index.put(done)
    return done.id, kept["row"], kept["layout"]


def by_kernel(work: Callable[[], Any]) -> int:
    """Bytes that the process's system calls read meanwhile."""

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    first = read()
    own = read() - first  # what this question costs itself
    before = read()
    work()
    return read() - before - own


def tell(where: str, what: str, asked: int, layout: ArrayLayout, first: int, second: int, requests: str = "") -> None:
    """One line of the table."""
    index = index_size(layout)
    print(
        f"{where:8}{what:40}{asked:8} asked; first {first:7} = {(first - index) / asked:.2f} x + index of {index}; "
        f"next {second:6} = {second / asked:.2f} x{requests}"
    )


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as place, s3_server() as endpoint, CountingProxy(endpoint) as proxy:
        os.environ |= {"AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        os.environ["AWS_REGION"] = "us-east-1"
        for where, url in (("folder", f"{place}/store"), ("S3", "s3://bench/store")):
            store = Store(url, index_folder=Path(place, where))
            for what, (shape, dtype, row) in SHAPES.items():
                run, expected, layout = sparse(store, shape, dtype, row)
                store.run(sparse(store, shape, dtype, row)[0])["value"][row].load()  # what is imported on first use
                array = store.run(run)["value"]
                proxy.requests.clear()
                proxy.sent = 0
                first = by_kernel(lambda array=array, row=row: np.asarray(array[row].values))  # type: ignore[misc]
                first = proxy.sent if where == "S3" else first
                asked, sent = len(proxy.requests), proxy.sent
                second = by_kernel(lambda array=array, row=row: np.asarray(array[row + 1].values))  # type: ignore[misc]
                second = proxy.sent - sent if where == "S3" else second
                np.testing.assert_array_equal(array[row].values, expected)
                requests = f"; {asked} requests, then {len(proxy.requests) - asked - 1}" if where == "S3" else ""
                tell(where, what, expected.nbytes, layout, first, second, requests)
        proxy.requests.clear()
        writer = store.begin(record())
        for number in range(5):
            writer.put(f"array_{number}", np.zeros((50, 10), np.float32), (f"y_{number}", f"x_{number}"))
        writer.complete()
        print(f"a run of five small arrays to S3: {len(proxy.requests)} requests")


if __name__ == "__main__":
    main()
