"""Regions of large (streamed) arrays: the last one written holds, and an array with a gap is never complete."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from workbench.store.array_writer import NumpySource
from workbench.store.coverage import Coverage

from unit.store_cases import new_store, record

SHAPE = (300, 200, 200)  # 48 MB of float32: streams


@pytest.fixture
def store(tmp_path):
    return new_store(tmp_path)


@pytest.fixture
def writer(store):
    return store.begin(record())


@pytest.fixture
def array(writer):
    return writer.declare("feature", SHAPE, np.dtype("float32"), ("sample", "y", "x"))


def region(*parts) -> tuple[slice, ...]:
    whole = [slice(0, size) for size in SHAPE]
    whole[: len(parts)] = [slice(*part) for part in parts]
    return tuple(whole)


def fill(array, where: tuple[slice, ...], value: float) -> None:
    array.write(where, NumpySource(np.full([part.stop - part.start for part in where], value, np.float32)))


def test_the_last_of_overlapping_regions_holds(store, writer, array):
    expected = np.empty(SHAPE, np.float32)
    generator = np.random.default_rng(0)
    writes = [(region(), 0.0), (region((0, 1)), 1.0), (region((0, 1), (5, 6)), 2.0), (region((298, 300), (0, 9)), 3.0)]
    writes += [(region((299, 300)), 4.0)]
    for value in range(5, 25):  # rows, parts of rows, across files
        start = int(generator.integers(0, 280))
        rows = (start, start + int(generator.integers(1, 20)))
        writes.append((region(rows) if value % 2 else region(rows, (value, value + 50), (3, 190)), float(value)))
    for where, value in writes:
        fill(array, where, value)
        expected[where] = value
    assert writer.missing_regions() == {}
    store.index.put(writer.complete())
    np.testing.assert_array_equal(store.run("latest")["feature"].values, expected)


def test_a_part_written_twice_does_not_stand_for_another(writer, array):
    for _ in range(2):
        fill(array, region((0, 300), (0, 100)), 1.0)
    assert writer.missing_regions() == {"feature": "[0, 100, 0]"}
    fill(array, region((0, 7)), 2.0)
    fill(array, region((7, 300), (100, 200), (0, 199)), 3.0)
    assert writer.missing_regions() == {"feature": "[7, 100, 199]"}
    fill(array, region((7, 299), (90, 200), (150, 200)), 4.0)
    assert writer.missing_regions() == {"feature": "[299, 100, 199]"}
    fill(array, region((299, 300)), 5.0)
    assert writer.missing_regions() == {}


def test_a_row_of_which_nothing_was_written_is_named_as_a_row(writer, array):
    fill(array, region((0, 100)), 1.0)
    fill(array, region((101, 300), (0, 100)), 1.0)
    assert writer.missing_regions() == {"feature": "[100, ...]"}


@pytest.mark.parametrize("shape", [(6,), (5, 4), (4, 3, 5), (3, 2, 3, 4)])
def test_coverage_is_what_a_mask_says(shape):
    generator = np.random.default_rng(len(shape))
    for _ in range(40):
        covered, mask = Coverage(shape), np.zeros(shape, dtype=bool)
        for _ in range(12):
            ends = [np.sort(generator.integers(0, size + 1, 2)).tolist() for size in shape]  # may be empty
            part = tuple(slice(start, stop) for start, stop in ends)
            covered.add(part)
            mask[part] = True
            rows = mask.reshape(shape[0], -1).all(axis=1)
            np.testing.assert_array_equal(covered.complete_rows(), rows)
            for row in range(shape[0]):
                gaps = np.argwhere(~mask[row]).tolist()
                assert covered.first_gap_in_row(row) == (tuple(gaps[0]) if gaps else None)


@pytest.mark.parametrize("order", ["rows", "columns", "shuffled"])
def test_tiles_that_fill_an_array_become_one_box(order):
    """The bound on memory: boxes, not cells. In any order fewer boxes than tiles, in a regular one a handful."""
    tiles = list(itertools.product(range(0, 10_000, 500), range(0, 10_000, 500)))
    if order == "columns":
        tiles.sort(key=lambda tile: (tile[1], tile[0]))
    elif order == "shuffled":
        np.random.default_rng(0).shuffle(tiles)
    covered, most = Coverage((10_000, 10_000)), 0
    for row, column in tiles:
        covered.add((slice(row, row + 500), slice(column, column + 500)))
        most = max(most, covered.boxes)
    assert covered.complete_rows().all()
    assert most <= (len(tiles) // 2 if order == "shuffled" else 3)
