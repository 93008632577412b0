"""Reading chunk files: every checksum is looked at, and nothing is unpacked to more than it may be.

zarr's own readers skip checksums (zarrs, for parts of a file), take missing chunks for zeros, and allocate whatever the
header of a compressed chunk says. Runs come from other people's hands, so this project decodes the few codecs of its own
format itself: one read for a whole file, or one for a shard's index and one for each stretch of neighbouring chunks.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from workbench.errors import StoreError
from workbench.store.backend import Backend
from workbench.store.layout import ArrayLayout, chunk_files, file_name

__all__ = ["ChunkError", "ChunkReader", "decode_chunk", "largest_file", "scan_file"]

CHECKSUM = 4
BLOSC_HEADER = 16
SMALLEST_RATIO = 300
"""No file of ours unpacks to more than 255 times its size (the limit of LZ4); a region that claims more is refused."""
CHECKED_BEFORE = 16 * 1024 * 1024
"""Regions above this size are compared with the sizes of their files before any memory is taken."""
STRING_BYTES = 256 * 1024 * 1024
LARGEST_FILE = 2 * 300 * 1024 * 1024
"""Bytes of the largest file a run may have."""
GAP = 16 * 1024
"""Unwanted bytes between two chunks of a shard that are read anyway to save a request."""
ABSENT = 2**64 - 1


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
    import numcodecs.blosc

    body = _without_checksum(data)
    expected = math.prod(layout.chunk) * layout.dtype.itemsize
    _check_header(body, expected)
    values = np.empty(layout.chunk, layout.dtype.newbyteorder("<")) if out is None else out
    try:
        numcodecs.blosc.decompress(body, values)
    except (RuntimeError, ValueError) as error:
        raise ChunkError(f"damaged ({error})") from error
    return values


def _without_checksum(data: Any) -> memoryview:
    from google_crc32c import value as crc32c

    view = memoryview(data)
    if len(view) < CHECKSUM or crc32c(bytes(view[:-CHECKSUM])) != int.from_bytes(view[-CHECKSUM:], "little"):
        raise ChunkError("damaged: its checksum does not match")
    return view[:-CHECKSUM]


def _check_header(body: memoryview, expected: int) -> None:
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
class _Index:
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


def _chunks_of_shard(layout: ArrayLayout) -> tuple[int, ...]:
    assert layout.shard is not None
    return tuple(whole // part for whole, part in zip(layout.shard, layout.chunk, strict=True))


def _parse_index(layout: ArrayLayout, tail: Any, total: int) -> _Index:
    body = _without_checksum(tail)
    count = math.prod(_chunks_of_shard(layout))
    if len(body) != 16 * count:
        raise ChunkError("damaged: too short for a shard")
    return _Index(np.frombuffer(body, "<u8").reshape(count, 2), total - len(tail))


def _index_size(layout: ArrayLayout) -> int:
    return 16 * math.prod(_chunks_of_shard(layout)) + CHECKSUM


def _largest(layout: ArrayLayout) -> int:
    """Bytes that a packed chunk has at most."""
    return math.prod(layout.chunk) * layout.dtype.itemsize + BLOSC_HEADER + CHECKSUM


def largest_file(layout: ArrayLayout) -> int:
    """Bytes that a file has at most."""
    if layout.dtype.kind == "O":
        return STRING_BYTES + 2**20
    # Twice, because a shard whose regions were written one by one may hold outdated copies.
    return _largest(layout) if layout.shard is None else 2 * _shard_bytes(layout)


def _shard_bytes(layout: ArrayLayout) -> int:
    return math.prod(_chunks_of_shard(layout)) * _largest(layout) + _index_size(layout)


def scan_file(layout: ArrayLayout, data: bytes, index: Sequence[int]) -> Iterator[tuple[tuple[slice, ...], str]]:
    """Check every checksum of one file without unpacking numbers; yields region and problem of each damaged chunk."""
    low = [place * part for place, part in zip(index, layout.file_shape, strict=True)]
    if layout.shard is None:
        problem = _problem(layout, data)
        if problem:
            yield _region(layout, low, layout.chunk), problem
        return
    size = _index_size(layout)
    try:
        places = _parse_index(layout, data[-size:], len(data))
    except ChunkError as error:
        yield _region(layout, low, layout.shard), error.problem
        return
    for number, inner in enumerate(np.ndindex(_chunks_of_shard(layout))):
        start = [a + b * part for a, b, part in zip(low, inner, layout.chunk, strict=True)]
        if any(a >= b for a, b in zip(start, layout.shape, strict=True)):
            continue  # beyond the array's end
        try:
            place = places.place(number, _largest(layout))
            problem = "missing" if place is None else _problem(layout, data[place[0] : place[1]])
        except ChunkError as error:
            problem = error.problem
        if problem:
            yield _region(layout, start, layout.chunk), problem


def _problem(layout: ArrayLayout, data: bytes) -> str:
    try:
        if layout.dtype.kind == "O":
            _decode_strings(layout, data)
        else:
            _check_header(_without_checksum(data), math.prod(layout.chunk) * layout.dtype.itemsize)
    except ChunkError as error:
        return error.problem
    return ""


def _region(layout: ArrayLayout, start: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, min(a + b, end)) for a, b, end in zip(start, sizes, layout.shape, strict=True))


# -------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Piece:
    """What one axis contributes: chunk number, where its values go, where they come from in the chunk."""

    chunk: int
    target: Any
    source: Any


@cache
def _workers() -> ThreadPoolExecutor:
    # Decoding releases the interpreter lock; over a network the threads wait for answers.
    return ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1)), thread_name_prefix="workbench-reader")


class ChunkReader:
    """Reads regions of one stored array."""

    def __init__(self, backend: Backend, folder: str, layout: ArrayLayout) -> None:
        self._backend, self._folder, self._layout = backend, folder, layout
        self._indices: dict[str, _Index] = {}

    def read(self, key: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """The values at slices and index arrays, one per dim (outer indexing); index arrays are not negative.

        Raises:
            ChunkError: a chunk of the region is damaged or missing.
        """
        layout = self._layout
        shape = tuple(
            len(range(*part.indices(size))) if isinstance(part, slice) else len(part)
            for part, size in zip(key, layout.shape, strict=True)
        )
        if 0 in shape:
            return np.empty(shape, layout.dtype)
        self._check_sizes(key, shape)
        values = np.empty(shape, layout.dtype)
        pieces = [
            list(_pieces(part, size, chunk)) for part, size, chunk in zip(key, layout.shape, layout.chunk, strict=True)
        ]
        files: dict[tuple[int, ...], list[tuple[_Piece, ...]]] = {}
        per_file = (1,) * len(layout.chunk) if layout.shard is None else _chunks_of_shard(layout)
        for combination in itertools.product(*pieces):
            place = tuple(piece.chunk // count for piece, count in zip(combination, per_file, strict=True))
            files.setdefault(place, []).append(combination)
        work = list(files.items())
        if len(work) == 1:
            self._read_file(*work[0], per_file, values)
        else:
            for _ in _workers().map(lambda item: self._read_file(item[0], item[1], per_file, values), work):
                pass
        return values

    def _check_sizes(self, key: Sequence[Any], shape: tuple[int, ...]) -> None:
        """Refuse regions that their files cannot fill, before memory is taken for them."""
        wanted = math.prod(shape) * max(self._layout.dtype.itemsize, 1)
        if wanted <= CHECKED_BEFORE:
            return
        hull = tuple(_hull(part, size) for part, size in zip(key, self._layout.shape, strict=True))
        stored = 0
        for name in chunk_files(self._layout, hull):
            size = self._backend.size(f"{self._folder}/{name}")
            if size is None:
                raise ChunkError(f"chunk file {name} is missing")
            stored += size
        if wanted > SMALLEST_RATIO * stored + CHECKED_BEFORE:
            raise ChunkError(f"refused: {wanted} bytes cannot come from the {stored} bytes stored")

    def _read_file(
        self,
        place: tuple[int, ...],
        wanted: list[tuple[_Piece, ...]],
        per_file: tuple[int, ...],
        values: np.ndarray,
    ) -> None:
        layout, name = self._layout, file_name(place)
        key = f"{self._folder}/{name}"
        try:
            if layout.shard is None:
                data: list[Any] = [self._backend.read(key, largest_file(layout))]
            else:
                numbers = [
                    int(
                        np.ravel_multi_index(
                            [p.chunk % count for p, count in zip(item, per_file, strict=True)], per_file
                        )
                    )
                    for item in wanted
                ]
                data = self._read_chunks(key, numbers)
        except (FileNotFoundError, NotADirectoryError):
            raise ChunkError(f"chunk file {name} is missing") from None
        except StoreError as error:  # a link out of the store, or absurdly large
            raise ChunkError(str(error)) from error
        for pieces, packed in zip(wanted, data, strict=True):
            try:
                if packed is None:
                    raise ChunkError("the shard lacks this chunk")
                self._place(pieces, packed, values)
            except ChunkError as error:
                start = [piece.chunk * part for piece, part in zip(pieces, layout.chunk, strict=True)]
                raise ChunkError(
                    f"chunk file {name} is {error.problem}", _region(layout, start, layout.chunk)
                ) from error

    def _read_chunks(self, key: str, numbers: list[int]) -> list[memoryview | None]:
        """The packed chunks of a shard file; the whole file at once where most of it is wanted."""
        layout = self._layout
        limit = _largest(layout)
        if len(numbers) > math.prod(_chunks_of_shard(layout)) // 2:
            whole = memoryview(self._backend.read(key, largest_file(layout)))
            index = _parse_index(layout, whole[-_index_size(layout) :], len(whole))
            places = [index.place(number, limit) for number in numbers]
            return [None if place is None else whole[place[0] : place[1]] for place in places]
        if key not in self._indices:
            self._indices[key] = _parse_index(layout, *self._backend.read_tail(key, _index_size(layout)))
        places = [self._indices[key].place(number, limit) for number in numbers]
        stretches: list[list[int]] = []
        for start, stop in sorted(place for place in places if place is not None):
            if stretches and start - stretches[-1][1] <= GAP:
                stretches[-1][1] = max(stretches[-1][1], stop)
            else:
                stretches.append([start, stop])
        read = self._backend.read_parts(key, [(start, stop) for start, stop in stretches])
        found: list[memoryview | None] = []
        for place in places:
            if place is None:
                found.append(None)
                continue
            number = next(n for n, (start, stop) in enumerate(stretches) if start <= place[0] and place[1] <= stop)
            origin = stretches[number][0]
            found.append(memoryview(read[number])[place[0] - origin : place[1] - origin])
        return found

    def _place(self, pieces: tuple[_Piece, ...], packed: Any, values: np.ndarray) -> None:
        layout = self._layout
        if all(isinstance(piece.target, slice) for piece in pieces):
            # The ellipsis keeps it a view also without dims, where values[()] would be a copy.
            target = values[(*(piece.target for piece in pieces), ...)]
            whole = all(
                isinstance(piece.source, slice) and piece.source == slice(0, part, 1)
                for piece, part in zip(pieces, layout.chunk, strict=True)
            )
            if whole and layout.dtype.kind != "O" and target.flags.c_contiguous and layout.dtype.isnative:
                decode_chunk(layout, packed, target)
                return
            chunk = decode_chunk(layout, packed)
            values[tuple(piece.target for piece in pieces)] = chunk[tuple(piece.source for piece in pieces)]
            return
        chunk = decode_chunk(layout, packed)
        sources = [_positions(piece.source, size) for piece, size in zip(pieces, layout.chunk, strict=True)]
        targets = [_positions(piece.target, size) for piece, size in zip(pieces, values.shape, strict=True)]
        values[np.ix_(*targets)] = chunk[np.ix_(*sources)]


def _positions(part: slice | np.ndarray, size: int) -> np.ndarray:
    return np.arange(*part.indices(size)) if isinstance(part, slice) else part


def _pieces(part: slice | np.ndarray, size: int, chunk: int) -> Iterator[_Piece]:
    if isinstance(part, slice) and part.step in (None, 1):
        start, stop, _ = part.indices(size)
        for number in range(start // chunk, (stop - 1) // chunk + 1):
            low, high = max(start, number * chunk), min(stop, (number + 1) * chunk)
            yield _Piece(
                number, slice(low - start, high - start), slice(low - number * chunk, high - number * chunk, 1)
            )
        return
    wanted = np.arange(*part.indices(size)) if isinstance(part, slice) else np.asarray(part, dtype=np.int64)
    numbers = wanted // chunk
    for number in np.unique(numbers):
        targets = np.flatnonzero(numbers == number)
        yield _Piece(int(number), targets, wanted[targets] - int(number) * chunk)


def _hull(part: slice | np.ndarray, size: int) -> slice:
    """The smallest slice of step 1 that holds a slice or index array (neither is empty)."""
    if isinstance(part, slice):
        indices = range(*part.indices(size))
        return slice(min(indices[0], indices[-1]), max(indices[0], indices[-1]) + 1)
    return slice(int(part.min()), int(part.max()) + 1)
