"""Reading chunk files: every checksum is looked at, and nothing is unpacked to more than it may be.

zarr's own readers skip checksums (zarrs, for parts of a file), take missing chunks for zeros, and allocate whatever the
header of a compressed chunk says. Runs come from other people's hands, so this project decodes the few codecs of its own
format itself. Which files and chunks a region needs is the business of `chunk_reader`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from workbench.store.layout import ABSENT, ArrayLayout, chunks_of_shard

__all__ = [
    "ChunkError",
    "ShardIndex",
    "decode_chunk",
    "index_size",
    "largest_chunk",
    "largest_file",
    "parse_index",
    "region_of",
    "scan_file",
]

CHECKSUM = 4
BLOSC_HEADER = 16
STRING_BYTES = 256 * 1024 * 1024
LARGEST_FILE = 2 * 300 * 1024 * 1024
"""Bytes of the largest file a run may have."""


class ChunkError(Exception):
    """A chunk is damaged or missing; `region` says which part of the array."""

    def __init__(self, problem: str, region: tuple[slice, ...] | None = None) -> None:
        self.problem, self.region = problem, region
        super().__init__(problem)


# ------------------------------------------------------------------------------------------------------------- decoding


def decode_chunk(layout: ArrayLayout, data: Any, out: np.ndarray | None = None) -> np.ndarray:
    """Unpack one chunk to its full shape, into `out` where given.

    Raises:
        ChunkError: it is damaged, or would unpack to another size than it must.
    """
    if layout.dtype.kind == "O":
        return _decode_strings(layout, data)
    body = _without_checksum(data)
    expected = math.prod(layout.chunk) * layout.dtype.itemsize
    _check_header(body, expected)
    values = np.empty(layout.chunk, layout.dtype.newbyteorder("<")) if out is None else out
    try:
        _blosc_decompress()(body, values)
    except (RuntimeError, ValueError) as error:
        raise ChunkError(f"damaged ({error})") from error
    return values


@cache
def _blosc_decompress() -> Any:
    # Imported on first use; the module's own function, because chunks may be small and many.
    from numcodecs.blosc import decompress

    return decompress


@cache
def _crc32c() -> Any:
    from google_crc32c import value

    return value


def _without_checksum(data: Any) -> bytes:
    body = bytes(data[:-CHECKSUM])
    if len(data) < CHECKSUM or _crc32c()(body) != int.from_bytes(data[-CHECKSUM:], "little"):
        raise ChunkError("damaged: its checksum does not match")
    return body


def _check_header(body: bytes, expected: int) -> None:
    """Compare what a Blosc header promises with what must come out, before anything is unpacked."""
    if len(body) < BLOSC_HEADER or int.from_bytes(body[12:16], "little") != len(body):
        raise ChunkError("damaged: not a chunk of this format")
    if (size := int.from_bytes(body[4:8], "little")) != expected:
        raise ChunkError(f"refused: unpacks to {size} bytes instead of {expected}")


def _decode_strings(layout: ArrayLayout, data: Any) -> np.ndarray:
    import numcodecs

    size = _zstd_size(bytes(data[:18]))
    count = math.prod(layout.chunk)
    if size is None or size > STRING_BYTES:
        raise ChunkError(f"refused: unpacks to {'an unknown number of' if size is None else size} bytes")
    try:
        raw = bytes(numcodecs.Zstd().decode(data))
        # The items' number and lengths come first: held against the bytes at hand before memory is taken for them.
        if len(raw) < 4 + 4 * count or int.from_bytes(raw[:4], "little") != count:
            raise ChunkError("refused: another number of strings than the record says")
        return np.asarray(numcodecs.VLenUTF8().decode(raw), dtype=object).reshape(layout.chunk)
    except (RuntimeError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise ChunkError(f"damaged ({error})") from error


def _zstd_size(header: bytes) -> int | None:
    """The unpacked size that a zstd frame promises (RFC 8878, 3.1.1.1), None if it promises none."""
    if len(header) < 6 or header[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = header[4]
    single = bool(descriptor & 0x20)
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    width = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    if width == 0 or len(header) < at + width:
        return None
    return int.from_bytes(header[at : at + width], "little") + (256 if width == 2 else 0)


# --------------------------------------------------------------------------------------------------------------- shards


@dataclass(frozen=True)
class ShardIndex:
    """Where the chunks of one shard file lie: (offset, size) by their place in C order; the file's total size."""

    places: np.ndarray
    total: int

    def place(self, number: int, limit: int) -> tuple[int, int] | None:
        """First and last byte of a chunk, None if the shard does not have it."""
        offset, size = (int(item) for item in self.places[number])
        if offset == ABSENT and size == ABSENT:
            return None
        if size > limit or offset + size > self.total:
            raise ChunkError("damaged: the shard's index points outside the file")
        return offset, offset + size

    def places_of(self, numbers: Sequence[int], limit: int) -> list[tuple[int, int] | None]:
        """As `place`, of many chunks."""
        offsets, sizes = self.places[numbers].T
        absent = (offsets == ABSENT) & (sizes == ABSENT)
        outside = (sizes > limit) | (offsets > self.total) | (offsets + np.minimum(sizes, limit) > self.total)
        if (outside & ~absent).any():
            raise ChunkError("damaged: the shard's index points outside the file")
        stops = (offsets + sizes).tolist()
        return [
            None if gone else (start, stop)
            for gone, start, stop in zip(absent.tolist(), offsets.tolist(), stops, strict=True)
        ]


def parse_index(layout: ArrayLayout, tail: Any, total: int) -> ShardIndex:
    """The index at the end of a shard file of `total` bytes.

    Raises:
        ChunkError: it is damaged.
    """
    body = _without_checksum(tail)
    count = math.prod(chunks_of_shard(layout))
    if len(body) != 16 * count:
        raise ChunkError("damaged: too short for a shard")
    return ShardIndex(np.frombuffer(body, "<u8").reshape(count, 2), total - len(tail))


def index_size(layout: ArrayLayout) -> int:
    """Bytes of the index at the end of a shard file."""
    return 16 * math.prod(chunks_of_shard(layout)) + CHECKSUM


def largest_chunk(layout: ArrayLayout) -> int:
    """Bytes that a packed chunk has at most."""
    return math.prod(layout.chunk) * layout.dtype.itemsize + BLOSC_HEADER + CHECKSUM


def largest_file(layout: ArrayLayout) -> int:
    """Bytes that a file has at most."""
    if layout.dtype.kind == "O":
        return STRING_BYTES + 2**20
    # Twice, because a shard whose regions were written one by one may hold outdated copies.
    return largest_chunk(layout) if layout.shard is None else 2 * _shard_bytes(layout)


def _shard_bytes(layout: ArrayLayout) -> int:
    return math.prod(chunks_of_shard(layout)) * largest_chunk(layout) + index_size(layout)


def scan_file(layout: ArrayLayout, data: bytes, index: Sequence[int]) -> Iterator[tuple[tuple[slice, ...], str]]:
    """Check every checksum of one file without unpacking numbers; yields region and problem of each damaged chunk."""
    low = [place * part for place, part in zip(index, layout.file_shape, strict=True)]
    if layout.shard is None:
        problem = _problem(layout, data)
        if problem:
            yield region_of(layout, low, layout.chunk), problem
        return
    size = index_size(layout)
    try:
        places = parse_index(layout, data[-size:], len(data))
    except ChunkError as error:
        yield region_of(layout, low, layout.shard), error.problem
        return
    for number, inner in enumerate(np.ndindex(chunks_of_shard(layout))):
        start = [a + b * part for a, b, part in zip(low, inner, layout.chunk, strict=True)]
        if any(a >= b for a, b in zip(start, layout.shape, strict=True)):
            continue  # beyond the array's end
        try:
            place = places.place(number, largest_chunk(layout))
            problem = "missing" if place is None else _problem(layout, data[place[0] : place[1]])
        except ChunkError as error:
            problem = error.problem
        if problem:
            yield region_of(layout, start, layout.chunk), problem


def _problem(layout: ArrayLayout, data: bytes) -> str:
    try:
        if layout.dtype.kind == "O":
            _decode_strings(layout, data)
        else:
            _check_header(_without_checksum(data), math.prod(layout.chunk) * layout.dtype.itemsize)
    except ChunkError as error:
        return error.problem
    return ""


def region_of(layout: ArrayLayout, start: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    """The part of the array that a chunk or shard covers."""
    return tuple(slice(a, min(a + b, end)) for a, b, end in zip(start, sizes, layout.shape, strict=True))
