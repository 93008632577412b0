"""Overviews of pictures too large to read at once: a few chunks for every answer, coarse to fine, each read once.

A picture of 16,000 x 16,000 pixels is shown on a screen of 1,000, but its chunks cannot be read in part. So an answer
reads no more than `BUDGET`: first chunks that lie far apart, each of which stands for its surroundings by values of its
own, then those between. What was read stays at hand, so that a picture comes back at once.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from workbench.panels.explore_sources import Source

__all__ = ["BUDGET", "Overview", "Overviews"]

BUDGET = 16 * 1024 * 1024
"""Bytes of entries, before packing, that are read for one answer."""
BLOCKS = 64
"""Blocks along a side of a picture, at most."""
KEPT = 24
"""Overviews that stay in memory, of at most 4 MiB each."""

Parts = Mapping[str, int | slice]


class Overview:
    """One thinned region of an array, known block by block.

    Args:
        source: what is read.
        chunk: the size of a chunk along each dim of the source.
        parts: the region, by dim; `y` and `x` are slices with a step.
        y, x: dims of the blocks.
    """

    def __init__(self, source: Source, chunk: Mapping[str, int], parts: Parts, y: str, x: str) -> None:
        self._source, self._parts, self._y, self._x = source, dict(parts), y, x
        sizes = dict(zip(source.dims, source.shape, strict=True))
        self._left = [dim for dim in source.dims if isinstance(parts[dim], slice)]
        self.values = np.zeros([len(_range(parts[dim], sizes[dim])) for dim in self._left], source.dtype)
        self._rows, self._columns = (_blocks(_range(parts[dim], sizes[dim]), chunk[dim]) for dim in (y, x))
        self._waiting = _coarse_to_fine(len(self._rows), len(self._columns))[::-1]
        self._count = len(self._waiting)
        self._each = math.ceil(covered(source, chunk, parts) / max(self._count, 1))
        self._read = np.zeros((len(self._rows), len(self._columns)), bool)

    @property
    def known(self) -> float:
        """The share that was read, 0 to 1."""
        return 1 - len(self._waiting) / self._count

    def go_on(self, budget: int) -> None:
        """Read the next blocks: at least one, and no more than `budget` bytes.

        Raises:
            IntegrityError: a chunk is damaged or missing.
        """
        for _ in range(max(1, budget // max(self._each, 1))):
            if not self._waiting:
                return
            row, column, down, across = self._waiting[-1]
            (top, bottom, rows), (left, right, columns) = self._rows[row], self._columns[column]
            part = self._parts | {self._y: rows, self._x: columns}
            block = self._source.read(tuple(part[dim] for dim in self._source.dims))
            for i in range(row, min(row + down, len(self._rows))):
                for j in range(column, min(column + across, len(self._columns))):
                    if not self._read[i, j]:  # until it is read itself, what lies nearest to it stands for it
                        nearest = self._at(
                            (0, bottom - top) if i == row else _middle(bottom - top),
                            (0, right - left) if j == column else _middle(right - left),
                        )
                        self.values[self._at(self._rows[i][:2], self._columns[j][:2])] = block[nearest]
            self._read[row, column] = True
            self._waiting.pop()

    def _at(self, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[slice, ...]:
        places = {self._y: slice(*rows), self._x: slice(*columns)}
        return tuple(places.get(dim, slice(None)) for dim in self._left)


class Overviews:
    """Overviews of the regions that were looked at last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Overview] = OrderedDict()

    def read(
        self, source: Source, chunk: Mapping[str, int], parts: Parts, order: Sequence[str], y: str, x: str
    ) -> tuple[np.ndarray, float]:
        """A region with its dims in `order`, and the share of it that is known; asked again, more of it is.

        Raises:
            IntegrityError: a chunk is damaged or missing.
        """
        left = [dim for dim in source.dims if isinstance(parts[dim], slice)]
        axes = [left.index(dim) for dim in order]
        thinned = any(isinstance(part := parts[dim], slice) and (part.step or 1) > 1 for dim in (y, x))
        if not thinned or covered(source, chunk, parts) <= BUDGET:
            return np.transpose(source.read(tuple(parts[dim] for dim in source.dims)), axes), 1.0
        name = f"{source.name}: {parts}"
        found = self._kept.pop(name, None) or Overview(source, chunk, parts, y, x)
        self._kept[name] = found
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        found.go_on(BUDGET)
        return np.transpose(found.values, axes), found.known


def covered(source: Source, chunk: Mapping[str, int], parts: Parts) -> int:
    """Bytes of all chunks that a region touches, before packing; those of texts count as one byte an entry."""
    sizes = dict(zip(source.dims, source.shape, strict=True))
    count = 1
    for dim, part in parts.items():
        if isinstance(part, slice):
            wanted = _range(part, sizes[dim])
            if len(wanted):
                first, last = wanted[0] // chunk[dim], wanted[-1] // chunk[dim]
                far = max(1, wanted.step // chunk[dim])  # steps over whole chunks
                count *= math.ceil((last - first + 1) / far) * chunk[dim]
        else:
            count *= chunk[dim]
    return count * (source.dtype.itemsize if source.dtype.kind in "biuf" else 1)


def _range(part: int | slice, size: int) -> range:
    assert isinstance(part, slice)
    return range(*part.indices(size))


def _blocks(wanted: range, chunk: int) -> list[tuple[int, int, slice]]:
    """Blocks of whole chunks along one dim: first and last (exclusive) place in the overview, and what is read."""
    first, last = wanted[0] // chunk, wanted[-1] // chunk
    side = chunk * math.ceil((last - first + 1) / BLOCKS)
    found: list[tuple[int, int, slice]] = []
    start = 0
    while start < len(wanted):
        end = (wanted[start] // side + 1) * side
        stop = min(len(wanted), start + math.ceil((end - wanted[start]) / wanted.step))
        found.append((start, stop, slice(wanted[start], wanted[stop - 1] + 1, wanted.step)))
        start = stop
    return found


def _coarse_to_fine(rows: int, columns: int) -> list[tuple[int, int, int, int]]:
    """(row, column, rows, columns) of all blocks: those far apart first, with how much each stands for until then."""
    most = [1 << (count - 1).bit_length() for count in (rows, columns)]
    steps = [tuple(max(1, power >> halved) for power in most) for halved in range(max(most).bit_length())]
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for down, across in steps:
        for row in range(0, rows, down):
            for column in range(0, columns, across):
                found.setdefault((row, column), (down, across))
    return [(*place, *extent) for place, extent in found.items()]


def _middle(count: int) -> tuple[int, int]:
    return count // 2, count // 2 + 1
