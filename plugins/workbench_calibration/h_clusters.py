"""k-means of sorted probabilities, for all of them and for all but those of one class: step 4 of the h-calibration loss.

Clusters of sorted numbers are consecutive, so a cluster is where it starts, and prefix sums make an iteration of Lloyd's
algorithm cost k log n. What a set without some events needs follows from prefix sums of the whole and of those events: no set
is ever written out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Index = NDArray[np.int64]
CELLS = 256
"""Cells into which numbers are rounded where the optimum is searched that Lloyd's iterations start from."""
ITERATIONS = 100
NOTHING: Index = np.empty(0, dtype=np.int64)


def kmeans_1d(value: Float, n_clusters: int) -> Index:
    """k-means of sorted numbers in 0..1: index of the first number of each cluster, shape (cluster,), ascending.

    Lloyd's iterations start from the exact optimum (dynamic programming) of the numbers rounded into 256 cells:
    deterministic, unlike the random restarts of the official code. Fewer clusters than asked for come back if there are
    fewer cells in use.

    Args:
        value: ascending numbers in 0..1, shape (event,).
        n_clusters: number of clusters.
    """
    cell = np.searchsorted(value, np.linspace(0.0, 1.0, CELLS + 1)[1:-1], side="right")
    edges = np.unique(np.concatenate([[0], cell, [value.size]]))
    starts = edges[_optimal_partition(value, edges, n_clusters)]
    found = kmeans_without(value, [NOTHING], cluster_centres(value, starts))[0]
    return np.unique(found[found < value.size])


def kmeans_without(value: Float, removed: Sequence[Index], centres: Float) -> Index:
    """Lloyd's iterations on sorted numbers without some of them, for several such sets at once.

    Args:
        value: ascending numbers, shape (event,).
        removed: for each set the ascending positions in `value` of those left out.
        centres: where all sets start, ascending, shape (cluster,).

    Returns:
        For each set where its clusters start, counted among the numbers that it keeps, shape (set, cluster), ascending.
        Empty clusters come last and start behind the last number kept.
    """
    size, sets = value.size, len(removed)
    before = np.concatenate([[0], np.cumsum([len(positions) for positions in removed])])[:-1, None]
    places = np.concatenate([positions + index * size for index, positions in enumerate(removed)])
    whole = np.concatenate([[0.0], np.cumsum(value)])
    without = np.concatenate([[0.0], np.cumsum(value[np.concatenate(removed)])])
    offset = np.arange(sets)[:, None] * size

    def kept_until(edge: Index) -> tuple[Index, Float]:
        """Number and sum of the numbers kept before positions in `value`, each (set, edge)."""
        gone = np.searchsorted(places, edge + offset)  # of all sets in a row: those of earlier sets lie before
        return edge - (gone - before), whole[edge] - (without[gone] - without[before])

    def nearest(centre: Float) -> Index:
        """Position in `value` at which each cluster starts and the last ends when numbers go to the nearest centre."""
        inner = np.searchsorted(value, (centre[:, :-1] + centre[:, 1:]) / 2, side="left")
        return np.concatenate([np.zeros((sets, 1), np.int64), inner, np.full((sets, 1), size)], axis=1)

    edge = nearest(np.tile(centres, (sets, 1)))
    for _ in range(ITERATIONS):
        count, total = (np.diff(part, axis=1) for part in kept_until(edge))
        mean = np.divide(total, count, out=np.full(total.shape, np.inf), where=count > 0)
        moved = nearest(np.sort(mean, axis=1))  # an empty cluster is infinitely far away from now on
        if np.array_equal(moved, edge):
            break
        edge = moved
    return kept_until(edge[:, :-1])[0]


def cluster_centres(value: Float, starts: Index) -> Float:
    """Mean of each non-empty cluster of sorted numbers, given where the clusters start."""
    ends = np.append(starts[1:], value.size)
    filled = ends > starts
    prefix = np.concatenate([[0.0], np.cumsum(value)])
    return (prefix[ends[filled]] - prefix[starts[filled]]) / (ends[filled] - starts[filled])


def _optimal_partition(value: Float, edges: Index, n_clusters: int) -> Index:
    """Index into `edges` of the start of each cluster that minimises the squared error, cutting only at `edges`."""
    first = np.concatenate([[0.0], np.cumsum(value)])[edges]
    second = np.concatenate([[0.0], np.cumsum(value**2)])[edges]
    count = (edges[:, None] - edges[None, :]).astype(np.float64)
    # cost[j, i]: squared error of one cluster of cells i..j-1; infinite for j < i
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = (second[:, None] - second[None, :]) - (first[:, None] - first[None, :]) ** 2 / count
    cost[count == 0] = 0.0
    cost[count < 0] = np.inf
    best = cost[:, 0]
    choice = []
    for _ in range(n_clusters - 1):
        table = cost + best
        choice.append(table.argmin(axis=1))
        best = np.take_along_axis(table, choice[-1][:, None], axis=1)[:, 0]
    starts = np.zeros(n_clusters, dtype=np.int64)
    end = len(edges) - 1
    for index in range(n_clusters - 1, 0, -1):
        end = choice[index - 1][end]
        starts[index] = end
    return starts
