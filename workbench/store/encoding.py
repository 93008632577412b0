"""Whole files of an array without zarr: for places where zarr's own pipeline, which takes its time for every chunk, would
write them, and where bytes must be the same whoever writes them (zarrs puts the chunks of a shard in any order).

A test holds that zarr reads the same values from these files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from workbench.store.layout import ABSENT, ArrayLayout, chunks_of_shard, encode_chunk, file_name

__all__ = ["encode_shard", "encoded_files"]


def encoded_files(layout: ArrayLayout, values: np.ndarray, first_row: int = 0) -> Iterator[tuple[str, bytes]]:
    """Names (relative to the array) and bytes of the files that hold `values`, the same every time.

    Args:
        layout: of the array.
        values: rows from `first_row` on, as many as fill whole files, or up to the array's end.
        first_row: where they begin; a multiple of the rows of a file.
    """
    rows = range(first_row, first_row + (len(values) if values.ndim else 1))
    for index in np.ndindex(layout.file_grid):
        low = [place * part for place, part in zip(index, layout.file_shape, strict=True)]
        if low and low[0] not in rows:
            continue
        here = [low[0] - first_row, *low[1:]] if low else []
        region = tuple(slice(a, a + part) for a, part in zip(here, layout.file_shape, strict=True))
        yield file_name(index), _encode_file(layout, values[region])


def _encode_file(layout: ArrayLayout, values: np.ndarray) -> bytes:
    if layout.shard is not None:
        return encode_shard(layout, values)
    return encode_chunk(layout, values if layout.dtype.kind == "O" else _padded(layout, values))


def encode_shard(layout: ArrayLayout, values: np.ndarray) -> bytes:
    """Bytes of a shard file.

    Args:
        layout: of the array; it has shards.
        values: all of the array that the shard covers; less than the shard where the array ends within it.
    """
    from google_crc32c import value as crc32c

    places = np.full((math.prod(chunks_of_shard(layout)), 2), ABSENT, dtype="<u8")
    parts, offset = [], 0
    for number, index in enumerate(np.ndindex(chunks_of_shard(layout))):
        low = [place * part for place, part in zip(index, layout.chunk, strict=True)]
        if any(start >= size for start, size in zip(low, values.shape, strict=True)):
            continue  # beyond the array's end
        chunk = values[tuple(slice(start, start + part) for start, part in zip(low, layout.chunk, strict=True))]
        parts.append(encode_chunk(layout, _padded(layout, chunk)))
        places[number] = offset, len(parts[-1])
        offset += len(parts[-1])
    index_bytes = places.tobytes()
    return b"".join([*parts, index_bytes, int(crc32c(index_bytes)).to_bytes(4, "little")])


def _padded(layout: ArrayLayout, values: np.ndarray) -> np.ndarray:
    """A chunk at the array's end as it is stored: filled up with the fill value."""
    if values.shape == layout.chunk or 0 in values.shape:
        return values
    whole = np.full(layout.chunk, np.array("nan" if layout.dtype.kind == "f" else 0).astype(layout.dtype))
    whole[tuple(slice(0, size) for size in values.shape)] = values
    return whole
