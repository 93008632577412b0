"""Which cells of an array have been written, exactly, however the regions overlap, and without a mask of the array.

The regions are kept as boxes that do not overlap. Neighbours that form one box again become one, so tiles in a regular order
need a handful of boxes; memory is 16 bytes a dim for every box (at most a few for every region), whatever the array's size.
"""

from __future__ import annotations

import numpy as np

__all__ = ["Coverage"]


class Coverage:
    """A union of boxes (start and stop of each axis) within an array of a shape with at least one axis."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._boxes = np.empty((0, 2, len(shape)), dtype=np.int64)

    @property
    def boxes(self) -> int:
        """How many boxes are kept."""
        return len(self._boxes)

    def add(self, region: tuple[slice, ...]) -> None:
        """Note that `region` (slices of step 1 within the shape, one per axis) was written."""
        box = np.array([[part.start for part in region], [part.stop for part in region]], dtype=np.int64)
        if (box[0] >= box[1]).any():
            return
        boxes = self._boxes
        apart = ((boxes[:, 0] >= box[1]) | (boxes[:, 1] <= box[0])).any(axis=1)
        rests = [rest for old in boxes[~apart] for rest in _outside(old, box)]
        boxes = boxes[apart]
        while (neighbour := _neighbour(boxes, box)) is not None:
            box = np.stack([np.minimum(box[0], boxes[neighbour, 0]), np.maximum(box[1], boxes[neighbour, 1])])
            boxes = np.delete(boxes, neighbour, axis=0)
        self._boxes = np.concatenate([boxes, box[None], *(rest[None] for rest in rests)])

    def complete_rows(self) -> np.ndarray:
        """For every index of the first axis, whether all its cells were written."""
        cells = (self._boxes[:, 1, 1:] - self._boxes[:, 0, 1:]).prod(axis=1)
        change = np.zeros(self.shape[0] + 1, dtype=np.int64)
        np.add.at(change, self._boxes[:, 0, 0], cells)
        np.subtract.at(change, self._boxes[:, 1, 0], cells)
        complete: np.ndarray = np.cumsum(change[:-1]) == np.prod(self.shape[1:], dtype=np.int64)
        return complete

    def first_gap_in_row(self, row: int) -> tuple[int, ...] | None:
        """The first cell of a row (as indices of the other axes) that was not written; None if there is none."""
        hit = (self._boxes[:, 0, 0] <= row) & (row < self._boxes[:, 1, 0])
        return _first_gap(self._boxes[hit][:, :, 1:], self.shape[1:])


def _outside(old: np.ndarray, new: np.ndarray) -> list[np.ndarray]:
    """The part of `old` outside `new`, which it overlaps, as boxes."""
    rests, core = [], old.copy()
    for axis in range(old.shape[1]):
        if core[0, axis] < new[0, axis]:
            rest = core.copy()
            rest[1, axis] = core[0, axis] = new[0, axis]
            rests.append(rest)
        if core[1, axis] > new[1, axis]:
            rest = core.copy()
            rest[0, axis] = core[1, axis] = new[1, axis]
            rests.append(rest)
    return rests


def _neighbour(boxes: np.ndarray, box: np.ndarray) -> int | None:
    """A box that touches `box` along one axis and is equal to it along all others."""
    equal = (boxes == box).all(axis=1)
    touching = (boxes[:, 0] == box[1]) | (boxes[:, 1] == box[0])
    found = np.flatnonzero(((equal | touching).all(axis=1)) & (touching.sum(axis=1) == 1))
    return int(found[0]) if len(found) else None


def _first_gap(boxes: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if not shape:
        return None if len(boxes) else ()
    # Between two neighbouring edges nothing changes.
    for index in np.unique(np.append(boxes[:, :, 0], 0)).tolist():
        if index < shape[0]:
            hit = (boxes[:, 0, 0] <= index) & (index < boxes[:, 1, 0])
            if (gap := _first_gap(boxes[hit][:, :, 1:], shape[1:])) is not None:
                return (index, *gap)
    return None
