"""Writing and reading whole arrays, and one slice of them, against bare zarr, numpy, torch and h5py.

    python tests/benchmarks/store_throughput.py [--megabytes 48] [--rounds 5]

Three shapes: a logit table, a stack of float32 feature maps, uint8 photos (noise: what compresses least). The page cache
is warm, so this is the cost of checksums, compression and copying, not of a disk.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import print_table, take_turns

sys.path.insert(0, str(Path(__file__).parents[1]))

from workbench.store import Store
from workbench.store.backend import LocalBackend

from unit.store_cases import record


def arrays(megabytes: int) -> dict[str, np.ndarray]:
    """The three shapes, about `megabytes` each."""
    generator = np.random.default_rng(0)
    size = megabytes * 2**20
    return {
        "logit table": generator.normal(size=(size // 4000, 1000)).astype(np.float32),
        "feature maps": np.maximum(generator.normal(size=(size // (4 * 64 * 32 * 32), 64, 32, 32)), 0).astype(np.float32),
        "photos": generator.integers(0, 256, (size // (3 * 256 * 256), 3, 256, 256), dtype=np.uint8),
    }


def candidates(values: np.ndarray, folder: Path) -> tuple[dict[str, Callable[[], Any]], dict[str, Callable[[], Any]]]:
    """Functions that write and that read the array, by name."""
    import h5py
    import torch
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    store = Store(folder / "store", index_folder=folder / "index")
    names = tuple(f"dim_{axis}" for axis in range(values.ndim))
    last: dict[str, Any] = {}

    def ours() -> None:
        if "run" in last:
            store.delete(last["run"], force=True)
        writer = store.begin(record())
        writer.put("values", values, names)
        done = writer.complete()
        store.index.put(done)
        last["run"] = done.id

    chunks = (max(1, 2**19 // (values.nbytes // len(values))), *values.shape[1:])
    codecs = [BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), Crc32cCodec()]

    def bare_zarr() -> None:
        shutil.rmtree(folder / "zarr", ignore_errors=True)
        array = zarr.create_array(folder / "zarr", shape=values.shape, dtype=values.dtype, chunks=chunks, compressors=codecs)
        array[...] = values

    def with_h5py() -> None:
        with h5py.File(folder / "a.h5", "w") as file:
            file.create_dataset("values", data=values, chunks=chunks, fletcher32=True)

    def read_h5py() -> np.ndarray:
        with h5py.File(folder / "a.h5") as file:
            return file["values"][...]

    tensor = torch.from_numpy(values)
    write = {
        "workbench": ours,
        "bare zarr": bare_zarr,
        "numpy.save": lambda: np.save(folder / "a.npy", values),
        "torch.save": lambda: torch.save(tensor, folder / "a.pt"),
        "h5py (fletcher32)": with_h5py,
    }
    read = {
        "workbench": lambda: store.run(last["run"])["values"].values,
        "bare zarr": lambda: zarr.open_array(folder / "zarr")[...],
        "numpy.load": lambda: np.load(folder / "a.npy"),
        "torch.load": lambda: torch.load(folder / "a.pt", weights_only=True),
        "h5py (fletcher32)": read_h5py,
    }
    return write, read


def bytes_of_a_slice(values: np.ndarray, folder: Path) -> str:
    """What one item costs: bytes read for it beside those asked for."""
    store = Store(folder / "slices", index_folder=folder / "slices-index")
    writer = store.begin(record())
    writer.put("values", values, tuple(f"dim_{axis}" for axis in range(values.ndim)))
    done = writer.complete()
    store.index.put(done)
    array = store.run(done.id)["values"]
    read: dict[str, int] = {"index": 0, "chunks": 0}
    tail, parts = LocalBackend.read_tail, LocalBackend.read_parts

    def read_tail(self: LocalBackend, key: str, size: int) -> tuple[bytes, int]:
        found = tail(self, key, size)
        read["index"] += len(found[0])
        return found

    def read_parts(self: LocalBackend, key: str, wanted: Any) -> list[bytes]:
        found = parts(self, key, wanted)
        read["chunks"] += sum(map(len, found))
        return found

    LocalBackend.read_tail, LocalBackend.read_parts = read_tail, read_parts  # type: ignore[method-assign]
    try:
        item = array[len(values) // 2].values
    finally:
        LocalBackend.read_tail, LocalBackend.read_parts = tail, parts  # type: ignore[method-assign]
    ratio = read["chunks"] / item.nbytes
    return f"one item of {item.nbytes} bytes: {read['chunks']} bytes of chunks ({ratio:.1f} x), {read['index']} of index"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name, values in arrays(arguments.megabytes).items():
        with tempfile.TemporaryDirectory() as place:
            write, read = candidates(values, Path(place))
            title = f"{name} {values.shape} {values.dtype}, {values.nbytes / 1e6:.0f} MB"
            print_table(f"{title}: write", take_turns(write, rounds=arguments.rounds, warmup=1), reference="workbench")
            for reader in read.values():
                np.testing.assert_array_equal(np.asarray(reader()), values)
            print_table(f"{title}: read", take_turns(read, rounds=arguments.rounds, warmup=1), reference="workbench")
            print(bytes_of_a_slice(values, Path(place)))


if __name__ == "__main__":
    main()
