"""The h-calibration loss: the gap between probability and event frequency in every neighbourhood of the probability axis.

Numbers refer to the algorithm of Huang et al. (2025): flatten to events, sort, average over a window, weigh by clusters of
probability, leave one class out. Everything is float64: with many classes float32 probabilities tie at 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Weighting = Literal["cluster", "unweighted"]
LOSS_SCALE = 1e5
KMEANS_CELLS = 256


def h_calibration_loss(
    probability: Tensor,
    label: Tensor,
    *,
    window: int = 200,
    epsilon: float = 1e-20,
    n_clusters: int = 15,
    leave_one_class_out: bool = True,
    weighting: Weighting = "cluster",
) -> Tensor:
    """The loss of a batch (steps 1-6), a scalar; differentiable in `probability`.

    Args:
        probability: calibrated probabilities, float64 (sample, class).
        label: int64 (sample,).
        window: M; each neighbourhood holds M + 1 events (even).
        epsilon: tolerated gap.
        n_clusters: clusters of probability over which gaps are averaged.
        leave_one_class_out: mean over classes of the loss without the samples of that class (step 5).
        weighting: "cluster" is the paper's; "unweighted" is the plain mean over events, an ablation in which the many
            events of probability near 0 drown the rest.
    """
    order, value, excess = sorted_events(probability, label)
    dropped: list[Tensor | None] = [None]
    if leave_one_class_out:
        owner = label[:, None].expand_as(probability).reshape(-1)[order]
        dropped = [owner != k for k in torch.unique(label).tolist()]
        dropped += [None] * (probability.shape[1] - len(dropped))  # classes without samples: nothing is left out
    centres = None
    if weighting == "cluster":
        # Subsets differ little from the whole, so their clusters start from those of the whole.
        everything = value.cpu().numpy()
        centres = cluster_centres(everything, kmeans_1d(everything, n_clusters))
    losses = []
    for kept in dropped:
        # A subset of sorted events is sorted: one sort serves all classes.
        part, position = (excess, value) if kept is None else (excess[kept], value[kept])
        gap = event_gap(part, window=window, epsilon=epsilon)
        losses.append(gap.mean() if centres is None else cluster_mean(gap, position, n_clusters, centres))
    return torch.stack(losses).mean() * LOSS_SCALE


def sorted_events(probability: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step 1: all (sample, class) pairs as events in ascending order of log(p + 1e-20).

    Returns:
        The order (event,) into the flattened pairs, the detached sorted probabilities (event,) and, in the same order,
        p - o (event,), where o is 1 for the label's class and 0 otherwise.
    """
    flat = probability.reshape(-1)
    order = torch.argsort(torch.log(flat.detach() + 1e-20), stable=True)
    occurred = torch.nn.functional.one_hot(label, probability.shape[1]).to(flat.dtype).reshape(-1)
    return order, flat.detach()[order], (flat - occurred)[order]


def event_gap(excess: Tensor, *, window: int, epsilon: float) -> Tensor:
    """Steps 2-3: max(|mean of p - o over the window around each event| - epsilon, 0), shape (event,).

    The two sequences of the paper, p(1-o) and (1-p)o, enter only through their difference, p - o. Windows that stick out
    at either end count the missing events as zeros and still divide by window + 1, as the official code does.

    Args:
        excess: p - o in ascending order of p, shape (event,).
        window: M, even.
        epsilon: tolerated gap.
    """
    half = window // 2
    total = torch.nn.functional.pad(torch.cumsum(excess, dim=0), (1, 0))
    centre = torch.arange(excess.numel(), device=excess.device)
    high = torch.clamp(centre + half + 1, max=excess.numel())
    low = torch.clamp(centre - half, min=0)
    return torch.relu(torch.abs(total[high] - total[low]) / (window + 1) - epsilon)


def cluster_mean(
    gap: Tensor, value: Tensor, n_clusters: int, centres: NDArray[np.float64] | None = None
) -> Tensor:
    """Step 4: mean gap of each k-means cluster of the probabilities, then the plain mean over all clusters.

    The clusters are found anew on detached values at every call; nothing is differentiated through them. A cluster
    divides by its count + 1e-5, so an empty one contributes 0.

    Args:
        gap: shape (event,).
        value: the events' probabilities in ascending order, shape (event,).
        n_clusters: number of clusters.
        centres: where Lloyd's iterations start, ascending; from the optimum of rounded values if None.
    """
    starts = kmeans_1d(value.cpu().numpy(), n_clusters, centres=centres)
    edge = torch.as_tensor(np.append(starts, value.numel()), device=gap.device)
    total = torch.nn.functional.pad(torch.cumsum(gap, dim=0), (1, 0))
    sums, counts = total[edge[1:]] - total[edge[:-1]], edge[1:] - edge[:-1]
    return (sums / (counts + 1e-5)).sum() / n_clusters


def kmeans_1d(
    value: NDArray[np.float64],
    n_clusters: int,
    *,
    centres: NDArray[np.float64] | None = None,
    max_iterations: int = 100,
) -> NDArray[np.int64]:
    """k-means of sorted numbers in 0..1: index of the first number of each cluster, shape (cluster,), ascending.

    Clusters of sorted numbers are consecutive, so prefix sums make Lloyd's iterations cost k log n. Without `centres`
    they start from the exact optimum (dynamic programming) of the numbers rounded into 256 cells: deterministic, unlike
    the random restarts of the official code. Fewer clusters than asked for come back if there are fewer cells in use.

    Args:
        value: ascending numbers in 0..1, shape (event,).
        n_clusters: number of clusters.
        centres: ascending cluster centres to start from.
        max_iterations: of Lloyd's algorithm.
    """
    if centres is None:
        cell = np.searchsorted(value, np.linspace(0.0, 1.0, KMEANS_CELLS + 1)[1:-1], side="right")
        edges = np.unique(np.concatenate([[0], cell, [value.size]]))
        starts = edges[_optimal_partition(value, edges, n_clusters)]
        centres = cluster_centres(value, starts)
    prefix = np.concatenate([[0.0], np.cumsum(value)])
    starts = _nearest(value, centres)
    for _ in range(max_iterations):
        ends = np.append(starts[1:], value.size)
        filled = ends > starts
        centres = (prefix[ends[filled]] - prefix[starts[filled]]) / (ends[filled] - starts[filled])
        moved = _nearest(value, centres)
        if np.array_equal(moved, starts):
            break
        starts = moved
    return starts


def cluster_centres(value: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of each non-empty cluster of sorted numbers, given where the clusters start."""
    ends = np.append(starts[1:], value.size)
    filled = ends > starts
    prefix = np.concatenate([[0.0], np.cumsum(value)])
    return (prefix[ends[filled]] - prefix[starts[filled]]) / (ends[filled] - starts[filled])


def _nearest(value: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where each cluster starts when every number goes to the nearest of ascending centres."""
    inner = np.searchsorted(value, (centres[:-1] + centres[1:]) / 2, side="left")
    return np.concatenate([[0], inner]).astype(np.int64)


def _optimal_partition(value: NDArray[np.float64], edges: NDArray[np.int64], n_clusters: int) -> NDArray[np.int64]:
    """Index into `edges` of the start of each cluster that minimises the squared error, cutting only at `edges`."""
    first = np.concatenate([[0.0], np.cumsum(value)])[edges]
    second = np.concatenate([[0.0], np.cumsum(value**2)])[edges]
    count = (edges[None, :] - edges[:, None]).astype(np.float64)
    # cost[i, j]: squared error of one cluster of cells i..j-1; infinite for j < i
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = (second[None, :] - second[:, None]) - (first[None, :] - first[:, None]) ** 2 / count
    cost[count == 0] = 0.0
    cost[count < 0] = np.inf
    best = cost[0]
    choice = []
    for _ in range(n_clusters - 1):
        table = best[:, None] + cost
        choice.append(table.argmin(axis=0))
        best = table.min(axis=0)
    starts = np.zeros(n_clusters, dtype=np.int64)
    end = len(edges) - 1
    for index in range(n_clusters - 1, 0, -1):
        end = choice[index - 1][end]
        starts[index] = end
    return starts
