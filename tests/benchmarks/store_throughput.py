"""Writing and reading whole arrays, and one slice of them, against bare zarr, numpy, torch and h5py.

    python tests/benchmarks/store_throughput.py [--megabytes 48] [--rounds 5]

Three shapes: a logit table, a stack of float32 feature maps, 10,000 uint8 photos (noise: what compresses least). The page cache
is warm, so this is the cost of checksums, compression and copying, not of a disk. `--choices` compares what the default
layout might have been instead: other chunks, no shards, other codecs, each written and read by bare zarr with zarrs.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import print_table, take_turns

sys.path.insert(0, str(Path(__file__).parents[1]))

from workbench.store import Store, zarr_access
from workbench.store.backend import LocalBackend
from workbench.store.layout import plan

from unit.store_cases import record


def arrays(megabytes: int) -> dict[str, np.ndarray]:
    """The three shapes, about `megabytes` each."""
    generator = np.random.default_rng(0)
    size = megabytes * 2**20
    return {
        "logit table": generator.normal(size=(size // 4000, 1000)).astype(np.float32),
        "feature maps": np.maximum(generator.normal(size=(size // (4 * 64 * 32 * 32), 64, 32, 32)), 0).astype(
            np.float32
        ),
        "photos": generator.integers(0, 256, (10_000, 3, *2 * (math.isqrt(size // 30_000),)), dtype=np.uint8),
    }


OURS = ("lz4", True)
"""Codec and checksum of the format."""


def write_zarr(
    folder: Path, values: np.ndarray, chunk: tuple[int, ...], shard: tuple[int, ...] | None, codecs: tuple[str, bool]
) -> None:
    """Bare zarr with the Rust pipeline, where it is installed."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    shutil.rmtree(folder, ignore_errors=True)
    name, checked = codecs
    shuffle = "shuffle" if values.itemsize > 1 else "noshuffle"
    compressors: list[Any] = {
        "lz4": [BloscCodec(cname="lz4", clevel=5, shuffle=shuffle)],
        "zstd": [ZstdCodec(level=3)],
    }.get(name, [])
    with zarr.config.set({"codec_pipeline.path": zarr_access._pipeline()}):
        array = zarr.create_array(
            folder,
            shape=values.shape,
            dtype=values.dtype,
            chunks=chunk,
            shards=shard,
            compressors=[*compressors, Crc32cCodec()] if checked else compressors,
        )
        array[...] = values


def read_zarr(folder: Path, item: int | None = None) -> np.ndarray:
    """All, or one item of the first axis."""
    import zarr

    with zarr.config.set({"codec_pipeline.path": zarr_access._pipeline()}):
        array = zarr.open_array(folder)
        return np.asarray(array[...] if item is None else array[item])


def choices(values: np.ndarray, folder: Path, rounds: int) -> None:
    """Throughput, size and one item for layouts and codecs that the defaults were chosen from."""
    ours = plan(values.shape, values.dtype)
    item = values[0].nbytes
    rows = {f"{size >> 10} kB": max(1, size // item) for size in (8192, 65_536, 524_288, 4_194_304)}
    whole = values.shape[1:]
    shard = ours.shard or ours.chunk
    variants: dict[str, tuple[Any, ...]] = {"default": (ours.chunk, ours.shard, OURS)}
    for name, count in rows.items():
        deep = max(count, shard[0] // count * count)
        if (count, *whole) != ours.chunk:
            variants[f"chunks of {name}"] = ((count, *whole), (deep, *whole), OURS)
    for name, checked in (("none", False), ("none", True), ("lz4", False), ("zstd", True)):
        variants[f"codec {name}{', CRC-32C' if checked else ''}"] = (ours.chunk, ours.shard, (name, checked))
    variants["default without shards"] = (ours.chunk, None, OURS)
    made = {name: folder / f"choice-{number}" for number, name in enumerate(variants)}

    def times(work: Callable[[str], Any], often: int) -> dict[str, list[float]]:
        calls = {name: partial(work, name) for name in variants}
        slowest = {"default without shards": calls.pop("default without shards")}  # a minute: one round
        return take_turns(calls, rounds=often, warmup=1) | take_turns(slowest, rounds=1, warmup=0)

    write = times(lambda name: write_zarr(made[name], values, *variants[name]), rounds)
    read = times(lambda name: read_zarr(made[name]), rounds)
    one = times(lambda name: read_zarr(made[name], len(values) // 2), 5 * rounds)
    print(f"{'':26}{'write MB/s':>11}{'read MB/s':>11}{'one item ms':>13}{'stored / raw':>14}{'files':>8}")
    for name, path in made.items():
        files = [file for file in path.rglob("*") if file.is_file()]
        speeds = [values.nbytes / 1e6 / statistics.median(seconds[name]) for seconds in (write, read)]
        size = sum(file.stat().st_size for file in files) / values.nbytes
        print(
            f"{name:26}{speeds[0]:11.0f}{speeds[1]:11.0f}{1e3 * statistics.median(one[name]):13.2f}{size:14.3f}{len(files) - 1:8}"
        )


def candidates(values: np.ndarray, folder: Path) -> tuple[dict[str, Callable[[], Any]], dict[str, Callable[[], Any]]]:
    """Functions that write and that read the array, by name."""
    import h5py
    import torch

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

    layout = plan(values.shape, values.dtype)
    chunks = (max(1, 2**19 // (values.nbytes // len(values))), *values.shape[1:])

    def bare_zarr() -> None:
        write_zarr(folder / "zarr", values, layout.chunk, layout.shard, OURS)

    def without_zarrs() -> None:
        has_fast_pipeline, zarr_access._pipeline = zarr_access._pipeline, lambda: zarr_access.PLAIN_PIPELINE
        try:
            ours()
        finally:
            zarr_access._pipeline = has_fast_pipeline

    def with_h5py() -> None:
        with h5py.File(folder / "a.h5", "w") as file:
            file.create_dataset("values", data=values, chunks=chunks, fletcher32=True)

    def read_h5py() -> np.ndarray:
        with h5py.File(folder / "a.h5") as file:
            return file["values"][...]

    tensor = torch.from_numpy(values)
    write = {
        "workbench": ours,
        "workbench, zarrs missing": without_zarrs,
        "bare zarr, same layout, zarrs": bare_zarr,
        "numpy.save": lambda: np.save(folder / "a.npy", values),
        "torch.save": lambda: torch.save(tensor, folder / "a.pt"),
        "h5py (fletcher32)": with_h5py,
    }
    read = {
        "workbench": lambda: store.run(last["run"])["values"].values,
        "bare zarr, same layout, zarrs": lambda: read_zarr(folder / "zarr"),
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
    return (
        f"one item of {item.nbytes} bytes: {read['chunks']} bytes of chunks ({ratio:.1f} x), {read['index']} of index"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--choices", action="store_true", help="compare layouts and codecs instead")
    arguments = parser.parse_args()
    for name, values in arrays(arguments.megabytes).items():
        with tempfile.TemporaryDirectory() as place:
            if arguments.choices:
                print(f"\n{name} {values.shape} {values.dtype}, {values.nbytes / 1e6:.0f} MB")
                choices(values, Path(place), arguments.rounds)
                continue
            write, read = candidates(values, Path(place))
            title = f"{name} {values.shape} {values.dtype}, {values.nbytes / 1e6:.0f} MB"
            print_table(f"{title}: write", take_turns(write, rounds=arguments.rounds, warmup=1), reference="workbench")
            for reader in read.values():
                np.testing.assert_array_equal(np.asarray(reader()), values)
            print_table(f"{title}: read", take_turns(read, rounds=arguments.rounds, warmup=1), reference="workbench")
            print(bytes_of_a_slice(values, Path(place)))


if __name__ == "__main__":
    main()
