"""Whole shard files without zarr: for places where zarr's own pipeline, which takes its time for every chunk, would write them.

A test holds that zarr reads the same values from these files.
"""

from __future__ import annotations

import math

import numpy as np

from workbench.store.layout import ABSENT, ArrayLayout, chunks_of_shard, encode_chunk

__all__ = ["encode_shard"]


def encode_shard(layout: ArrayLayout, values: np.ndarray) -> bytes:
    """Bytes of a shard file.

    Args:
        layout: of the array; it has shards.
        values: all of the array that the shard covers; less than the shard where the array ends within it.
    """
    from google_crc32c import value as crc32c

    places = np.full((math.prod(chunks_of_shard(layout)), 2), ABSENT, dtype="<u8")
    parts, offset = [], 0
    fill = np.array("nan" if layout.dtype.kind == "f" else 0).astype(layout.dtype)
    for number, index in enumerate(np.ndindex(chunks_of_shard(layout))):
        low = [place * part for place, part in zip(index, layout.chunk, strict=True)]
        if any(start >= size for start, size in zip(low, values.shape, strict=True)):
            continue  # beyond the array's end
        chunk = values[tuple(slice(start, start + part) for start, part in zip(low, layout.chunk, strict=True))]
        if chunk.shape != layout.chunk:
            whole = np.full(layout.chunk, fill)
            whole[tuple(slice(0, size) for size in chunk.shape)] = chunk
            chunk = whole
        parts.append(encode_chunk(layout, chunk))
        places[number] = offset, len(parts[-1])
        offset += len(parts[-1])
    index_bytes = places.tobytes()
    return b"".join([*parts, index_bytes, int(crc32c(index_bytes)).to_bytes(4, "little")])
