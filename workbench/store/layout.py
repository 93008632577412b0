"""How an array lies in a run: chunk sizes, shards, codecs, and the zarr v3 document that says so.

Chunk policy: people look at one item of the first axis at a time (a picture, a row of logits), so an inner chunk holds one;
several only where they are small (rows up to 8 kB share 8 kB, tiny ones 64 kB), a part only where one is larger than half a
megabyte. Inner chunks are gathered into shards of up to 32 MiB, so that a big array is a few large files. Codecs: LZ4 with
byte shuffling (fast enough to keep up with a disk, and logits and images compress little with anything slower), then
CRC-32C, because zarr itself returns damaged chunks as numbers. Every chunk is written, even one that is all fill value: a
complete run knows how many files each array has, and a missing one is an error instead of a silent fill value.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from workbench.errors import OutputError

__all__ = [
    "MOST_FILES",
    "ArrayLayout",
    "array_document",
    "chunk_files",
    "chunks_of_shard",
    "encode_chunk",
    "layout_of",
    "plan",
    "plan_blocks",
]

CHUNK_BYTES = 512 * 1024
"""Of the largest chunk: an item that is larger is cut."""
ROW_BYTES, TINY_ROW, TINY_ROWS_BYTES = 8 * 1024, 512, 64 * 1024
"""Items below `ROW_BYTES` share a chunk of that size, those below `TINY_ROW` one of `TINY_ROWS_BYTES`."""
MOST_INNER = 4096
"""Chunks of one shard that are written: its index, which is read before the first of them, has 16 bytes for each."""
SHARD_BYTES = 32 * 1024 * 1024
SINGLE_CHUNK_BYTES = 1024 * 1024

# What readers accept, whoever wrote it; `plan` stays far below.
LARGEST_CHUNK = 64 * 1024 * 1024
LARGEST_SHARD = 256 * 1024 * 1024
MOST_CHUNKS = 65_536
"""Chunks of one shard."""
ABSENT = 2**64 - 1
"""In the index of a shard: offset and size of a chunk that is not there."""
MOST_STRINGS = 4_000_000
MOST_FILES = 4_000_000

DTYPES = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
)

_STRING_CODECS = [
    {"name": "vlen-utf8", "configuration": {}},
    {"name": "zstd", "configuration": {"level": 3, "checksum": True}},
]


@dataclass(frozen=True)
class ArrayLayout:
    """Shape of chunks (what is decoded together) and of shards (what is one file; None: one chunk, one file)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The region one file covers."""
        return self.shard or self.chunk

    @cached_property
    def file_grid(self) -> tuple[int, ...]:
        """Number of files along each axis."""
        return tuple(math.ceil(size / part) for size, part in zip(self.shape, self.file_shape, strict=True))

    @cached_property
    def files(self) -> int:
        """Number of files of the complete array."""
        return math.prod(self.file_grid)


def plan(shape: Sequence[int], dtype: np.dtype[Any]) -> ArrayLayout:
    """Choose chunks and shards for an array of this shape and dtype.

    Raises:
        OutputError: the format has no such dtype, or there are too many strings for one chunk.
    """
    shape = tuple(int(size) for size in shape)
    if dtype.kind == "O":
        if math.prod(shape) > MOST_STRINGS:
            raise OutputError(f"an array of {math.prod(shape)} strings; at most {MOST_STRINGS} are stored in one")
        return ArrayLayout(shape, dtype, tuple(max(1, size) for size in shape), None)
    if dtype.name not in DTYPES:
        raise OutputError(
            f"arrays of dtype {dtype} cannot be stored; use one of {', '.join(sorted(DTYPES))} or strings"
        )
    itemsize = dtype.itemsize
    total = math.prod(shape) * itemsize
    if total <= SINGLE_CHUNK_BYTES:
        return ArrayLayout(shape, dtype, tuple(max(1, size) for size in shape), None)
    item = math.prod(shape[1:]) * itemsize
    chunk = list(shape)
    chunk[0] = max(1, min(shape[0], (TINY_ROWS_BYTES if item < TINY_ROW else ROW_BYTES) // item))
    # An item that is too large: its leading axes are cut until a part is small enough, then several parts are taken.
    for axis in range(1, len(shape)):
        if math.prod(chunk[axis:]) * itemsize <= CHUNK_BYTES:
            break
        part = math.prod(chunk[axis + 1 :]) * itemsize
        chunk[axis] = max(1, min(shape[axis], CHUNK_BYTES // part))
    # Shards grow along the last axis that was cut, then outwards, while they stay below the limits.
    shard = list(chunk)
    inner = 1
    for axis in reversed(range(len(shape))):
        if shard[axis] >= shape[axis]:
            continue
        parts = math.ceil(shape[axis] / chunk[axis])
        affordable = max(1, min(SHARD_BYTES // (math.prod(shard) * itemsize), MOST_INNER // inner))
        shard[axis] = chunk[axis] * min(parts, affordable)
        inner *= min(parts, affordable)
        if affordable < parts:
            break
    return ArrayLayout(shape, dtype, tuple(chunk), tuple(shard) if shard != chunk else None)


def plan_blocks(shape: Sequence[int], dtype: np.dtype[Any], rows: int) -> ArrayLayout:
    """As `plan`, but no file holds rows of two blocks of `rows` rows, so that blocks can be written by different workers.

    Raises:
        OutputError: as `plan`, or strings, which are stored in one piece, or one item is larger than a file may be.
    """
    shape = tuple(int(size) for size in shape)
    if dtype.kind == "O" or not shape:
        raise OutputError(
            "arrays of strings, and arrays without dims, are not written in blocks; write them at the end"
        )
    if shape[0] <= rows:
        return plan(shape, dtype)
    one = plan((rows, *shape[1:]), dtype)
    chunk = (_largest_divisor(rows, one.chunk[0]), *one.chunk[1:])
    # All of an item in one file, in whole chunks; as many items as stay below the limit.
    item = tuple(part * math.ceil(size / part) for size, part in zip(shape[1:], chunk[1:], strict=True))
    size = chunk[0] * math.prod(item) * dtype.itemsize
    if size > LARGEST_SHARD:
        raise OutputError(
            f"an array of {size / 2**20:.0f} MiB per item; at most {LARGEST_SHARD >> 20} are written in blocks"
        )
    # Blocks of an awkward number of rows (a large prime) end in many small files, never in one that readers refuse.
    inside = math.prod(whole // part for whole, part in zip(item, chunk[1:], strict=True))
    affordable = max(1, min(SHARD_BYTES // max(1, size), MOST_INNER // inside))
    shard = (chunk[0] * _largest_divisor(rows // chunk[0], affordable), *item)
    return ArrayLayout(shape, dtype, chunk, shard if shard != chunk else None)


def _largest_divisor(number: int, most: int) -> int:
    return next(candidate for candidate in range(max(1, min(most, number)), 0, -1) if number % candidate == 0)


def chunks_of_shard(layout: ArrayLayout) -> tuple[int, ...]:
    """Number of chunks along each axis of a shard."""
    assert layout.shard is not None
    return tuple(whole // part for whole, part in zip(layout.shard, layout.chunk, strict=True))


def layout_of(shape: Sequence[int], dtype: object, chunk: object, shard: object) -> ArrayLayout | None:
    """The layout that a record describes, or None where it is not one that this format has, or absurd."""
    shape = tuple(shape)
    if dtype != "string" and dtype not in DTYPES:
        return None
    kind = np.dtype(object if dtype == "string" else str(dtype))
    if not _fits(chunk, shape) or not (shard is None or _fits(shard, shape)):
        return None
    layout = ArrayLayout(shape, kind, tuple(chunk), None if shard is None else tuple(shard))  # type: ignore[arg-type]
    if kind.kind == "O":
        strings = math.prod(layout.chunk) <= MOST_STRINGS
        return layout if strings and shard is None and layout.files <= 1 else None
    if math.prod(layout.chunk) * kind.itemsize > LARGEST_CHUNK or layout.files > MOST_FILES:
        return None
    if layout.shard is not None:
        parts = [divmod(whole, part) for whole, part in zip(layout.shard, layout.chunk, strict=True)]
        if any(rest for _, rest in parts) or math.prod(count for count, _ in parts) > MOST_CHUNKS:
            return None
        if math.prod(layout.shard) * kind.itemsize > LARGEST_SHARD:
            return None
    return layout


def _fits(sizes: object, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(sizes, list | tuple)
        and len(sizes) == len(shape)
        and all(type(size) is int and size > 0 for size in sizes)
    )


def chunk_files(layout: ArrayLayout, region: tuple[slice, ...] | None = None) -> Iterator[str]:
    """Names (relative to the array) of the files that hold `region`, given as slices of step 1; None: all files."""
    spans = []
    for axis, (part, size) in enumerate(zip(layout.file_shape, layout.shape, strict=True)):
        start, stop = (0, size) if region is None else region[axis].indices(size)[:2]
        if stop <= start:
            return
        spans.append(range(start // part, (stop - 1) // part + 1))
    for index in itertools.product(*spans):
        yield file_name(index)


def file_name(index: Sequence[int]) -> str:
    """Name (relative to the array) of the file at a place of the grid of files."""
    return "/".join(["c", *map(str, index)])


def _numeric_codecs(dtype: np.dtype[Any]) -> list[dict[str, Any]]:
    endian: dict[str, Any] = {"name": "bytes"}
    if dtype.itemsize > 1:
        endian["configuration"] = {"endian": "little"}
    blosc = {
        "typesize": dtype.itemsize,
        "cname": "lz4",
        "clevel": 5,
        "shuffle": "shuffle" if dtype.itemsize > 1 else "noshuffle",
        "blocksize": 0,
    }
    return [endian, {"name": "blosc", "configuration": blosc}, {"name": "crc32c"}]


def array_document(layout: ArrayLayout, dims: Sequence[str], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The array's `zarr.json` (zarr format 3), with its dims where xarray looks for them."""
    fill: Any
    if layout.dtype.kind == "O":
        data_type, fill, codecs = "string", "", _STRING_CODECS
    else:
        data_type = layout.dtype.name
        fill = "NaN" if layout.dtype.kind == "f" else False if layout.dtype.kind == "b" else 0
        codecs = _numeric_codecs(layout.dtype)
    if layout.shard is not None:
        codecs = [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": list(layout.chunk),
                    "codecs": codecs,
                    "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(layout.shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(layout.file_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": dict(attributes),
        "dimension_names": list(dims),
        "storage_transformers": [],
    }


def encode_chunk(layout: ArrayLayout, values: np.ndarray) -> bytes:
    """Bytes of the single file of an unsharded one-chunk array: what zarr's codecs of `array_document` produce.

    Going through zarr costs two to three milliseconds an array; small arrays are most of what a run stores. A test
    holds that zarr reads the same values from these bytes and writes the same document.
    """
    import numcodecs
    from google_crc32c import value as crc32c

    if layout.dtype.kind == "O":
        encoded = numcodecs.VLenUTF8().encode(np.asarray(values, dtype=object).reshape(-1))
        return bytes(numcodecs.Zstd(level=3, checksum=True).encode(encoded))
    contiguous = np.ascontiguousarray(values, dtype=layout.dtype.newbyteorder("<"))
    shuffle = numcodecs.Blosc.SHUFFLE if layout.dtype.itemsize > 1 else numcodecs.Blosc.NOSHUFFLE
    blosc = numcodecs.Blosc(cname="lz4", clevel=5, shuffle=shuffle, blocksize=0)
    # A zero-dimensional or empty array still is one chunk of at least one element.
    data = bytes(blosc.encode(contiguous.reshape(-1)))
    return data + int(crc32c(data)).to_bytes(4, "little")


def dump(document: Mapping[str, Any]) -> bytes:
    """A `zarr.json` as bytes."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
