"""Reading a region of an array: one read for a whole file, or one for a shard's index and one for each stretch of chunks.

Chunks are small (a sample or a few), so that little is read for one sample; chunks that lie side by side are read together,
and a file of which most is wanted is read as a whole.
"""

from __future__ import annotations

import bisect
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
from workbench.store.backend import Backend, RefusedError
from workbench.store.chunks import (
    ChunkError,
    ShardIndex,
    decode_chunk,
    index_size,
    largest_chunk,
    largest_file,
    parse_index,
    region_of,
)
from workbench.store.layout import ArrayLayout, chunk_files, chunks_of_shard, file_name

__all__ = ["ChunkReader"]

SMALLEST_RATIO = 300
"""No file of ours unpacks to more than 255 times its size (the limit of LZ4); a region that claims more is refused."""
CHECKED_BEFORE = 16 * 1024 * 1024
"""Regions above this size are compared with the sizes of their files before any memory is taken."""
GAP = 16 * 1024
"""Unwanted bytes between two chunks of a shard that are read anyway to save a request over a network."""


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
        self._indices: dict[str, ShardIndex] = {}

    def read(self, key: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """The values at slices and index arrays, one per dim (outer indexing); index arrays are not negative.

        Raises:
            ChunkError: a chunk of the region is damaged or missing.
            StoreError: the store cannot be read.
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
        per_file = (1,) * len(layout.chunk) if layout.shard is None else chunks_of_shard(layout)
        by_file = [
            _grouped(_pieces(part, size, chunk), count)
            for part, size, chunk, count in zip(key, layout.shape, layout.chunk, per_file, strict=True)
        ]
        work = [
            (tuple(place for place, _ in axes), [pieces for _, pieces in axes]) for axes in itertools.product(*by_file)
        ]
        if len(work) == 1:
            self._read_file(*work[0], values)
        else:
            for _ in _workers().map(lambda item: self._read_file(item[0], item[1], values), work):
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
            try:
                size = self._backend.size(f"{self._folder}/{name}")
            except OSError as error:
                raise self._unreadable(f"{self._folder}/{name}", error) from error
            if size is None:
                raise ChunkError(f"chunk file {name} is missing")
            stored += size
        if wanted > SMALLEST_RATIO * stored + CHECKED_BEFORE:
            raise ChunkError(f"refused: {wanted} bytes cannot come from the {stored} bytes stored")

    def _read_file(self, place: tuple[int, ...], axes: list[list[_Piece]], values: np.ndarray) -> None:
        """Fill in what one file has: the chunks at every combination of one piece of each axis."""
        layout, name = self._layout, file_name(place)
        key = f"{self._folder}/{name}"
        try:
            if layout.shard is None:
                data: list[Any] = [self._backend.read(key, largest_file(layout))]
            else:
                data = self._read_chunks(key, _numbers(axes, chunks_of_shard(layout)))
        except (FileNotFoundError, NotADirectoryError):
            raise ChunkError(f"chunk file {name} is missing") from None
        except RefusedError as error:
            raise ChunkError(str(error)) from error
        except OSError as error:
            raise self._unreadable(key, error) from error
        expected = math.prod(layout.chunk) * layout.dtype.itemsize
        straight = layout.dtype.kind != "O" and layout.dtype.isnative and _rows(axes, layout.chunk, values)
        for pieces, packed in zip(itertools.product(*axes), data, strict=True):
            try:
                if packed is None:
                    raise ChunkError("the shard lacks this chunk")
                if straight and (target := values[pieces[0].target]).nbytes == expected:
                    decode_chunk(layout, packed, target)
                else:
                    self._place(pieces, packed, values)
            except ChunkError as error:
                start = [piece.chunk * part for piece, part in zip(pieces, layout.chunk, strict=True)]
                raise ChunkError(
                    f"chunk file {name} is {error.problem}", region_of(layout, start, layout.chunk)
                ) from error

    def _unreadable(self, key: str, error: OSError) -> StoreError:
        """No damage that is known of: a disk in trouble, a colleague's private run."""
        return StoreError(f"{key} in {self._backend.url} cannot be read: {error.strerror or error}")

    def _read_chunks(self, key: str, numbers: list[int]) -> list[memoryview | None]:
        """The packed chunks of a shard file; the whole file at once where most of it is wanted."""
        layout = self._layout
        limit = largest_chunk(layout)
        if len(numbers) > math.prod(chunks_of_shard(layout)) // 2:
            whole = memoryview(self._backend.read(key, largest_file(layout)))
            index = parse_index(layout, whole[-index_size(layout) :], len(whole))
            places = index.places_of(numbers, limit)
            return [None if place is None else whole[place[0] : place[1]] for place in places]
        if key not in self._indices:
            self._indices[key] = parse_index(layout, *self._backend.read_tail(key, index_size(layout)))
        places = self._indices[key].places_of(numbers, limit)
        stretches = _stretches(places, GAP if self._backend.remote else 0)
        read = self._backend.read_parts(key, stretches)
        starts = [start for start, _ in stretches]
        found: list[memoryview | None] = []
        for place in places:
            if place is None:
                found.append(None)
                continue
            number = bisect.bisect_right(starts, place[0]) - 1
            origin = starts[number]
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


def _stretches(places: Sequence[tuple[int, int] | None], gap: int) -> list[tuple[int, int]]:
    """Parts of a file to read for chunks at these places: neighbours, and those with a small gap between, together."""
    found: list[list[int]] = []
    for start, stop in sorted(place for place in places if place is not None):
        if found and start - found[-1][1] <= gap:
            found[-1][1] = max(found[-1][1], stop)
        else:
            found.append([start, stop])
    return [(start, stop) for start, stop in found]


def _grouped(pieces: Iterator[_Piece], per_file: int) -> list[tuple[int, list[_Piece]]]:
    """Pieces of one axis by the number of their file."""
    return [(place, list(group)) for place, group in itertools.groupby(pieces, lambda piece: piece.chunk // per_file)]


def _numbers(axes: list[list[_Piece]], per_file: tuple[int, ...]) -> list[int]:
    """Places, in C order within their file, of the chunks at every combination of one piece of each axis."""
    strides = [math.prod(per_file[axis + 1 :]) for axis in range(len(per_file))]
    steps = [
        [piece.chunk % count * stride for piece in pieces]
        for pieces, count, stride in zip(axes, per_file, strides, strict=True)
    ]
    return [sum(combination) for combination in itertools.product(*steps)]


def _rows(axes: list[list[_Piece]], chunk: tuple[int, ...], values: np.ndarray) -> bool:
    """Whether chunks are whole rows of what is read, so that each can be unpacked right where it belongs."""
    whole = all(
        len(pieces) == 1 and pieces[0].source == slice(0, part, 1) and pieces[0].target == slice(0, part)
        for pieces, part in zip(axes[1:], chunk[1:], strict=True)
        if isinstance(pieces[0].source, slice)
    )
    slices = all(isinstance(pieces[0].target, slice) for pieces in axes)
    return bool(axes) and slices and whole and values.shape[1:] == chunk[1:]


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
