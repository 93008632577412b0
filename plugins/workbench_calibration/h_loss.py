"""The h-calibration loss: the gap between probability and event frequency in every neighbourhood of the probability axis.

Numbers refer to the algorithm of Huang et al. (2025): flatten to events, sort, average over a window, weigh by clusters of
probability, leave one class out. Everything is float64: with many classes float32 probabilities tie at 0.

Events are sorted once a step, also where each class is left out in turn: a part of a sorted sequence is sorted. The loss comes
with its slope in the probabilities in closed form, so that nothing is kept for automatic differentiation but that slope.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from workbench_calibration.h_clusters import NOTHING, Index, cluster_centres, kmeans_1d, kmeans_without

Weighting = Literal["cluster", "unweighted"]
LOSS_SCALE = 1e5


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
    """The loss of a batch (steps 1-6), a scalar; differentiable in `probability`, once.

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
    with torch.no_grad():
        order, value, excess = sorted_events(probability, label)
        loss, slope = _loss_of_events(
            value, excess, _left_out(probability, label, order, leave_one_class_out),
            window=window, epsilon=epsilon, n_clusters=n_clusters if weighting == "cluster" else None,
        )
        at_probability = torch.empty_like(slope)
        at_probability[order] = slope * LOSS_SCALE
    loss_with_slope: Tensor = _WithSlope.apply(probability, loss * LOSS_SCALE, at_probability.view_as(probability))
    return loss_with_slope


class _WithSlope(torch.autograd.Function):
    """A number with its known derivative in a tensor."""

    @staticmethod
    def forward(ctx: Any, argument: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        return outer * ctx.saved_tensors[0], None, None


def sorted_events(probability: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step 1: all (sample, class) pairs as events in ascending order of log(p + 1e-20).

    Returns:
        The order (event,) into the flattened pairs, the sorted probabilities (event,) and, in the same order,
        p - o (event,), where o is 1 for the label's class and 0 otherwise. All detached.
    """
    flat = probability.detach().reshape(-1)
    order = stable_order(torch.log(flat + 1e-20))
    occurred = torch.arange(len(label), device=flat.device) * probability.shape[1] + label
    excess = flat.clone()
    excess[occurred] -= 1
    return order, flat[order], excess[order]


def stable_order(key: Tensor) -> Tensor:
    """Positions in ascending order of numbers (event,), equal ones in the order in which they stand.

    On the CPU by numpy's vectorised sort, which is not stable but several times faster than a stable one.
    """
    if key.device.type != "cpu":
        return torch.argsort(key, stable=True)
    number = key.numpy()
    order = np.argsort(number)
    tied = np.diff(number[order]) == 0
    if tied.any():
        inside = np.flatnonzero(np.append(tied, False) | np.append(False, tied))
        group = np.append(0, np.cumsum(~tied))[inside]
        order[inside] = order[inside][np.lexsort((order[inside], group))]
    return torch.as_tensor(order)


def _left_out(probability: Tensor, label: Tensor, order: Tensor, leave_one_class_out: bool) -> list[tuple[Index, int]]:
    """Step 5: positions in sorted order of the events to leave out, and how many of the sets averaged over are without them."""
    if not leave_one_class_out:
        return [(NOTHING, 1)]
    classes = probability.shape[1]
    owner = label.cpu().numpy().astype(np.min_scalar_type(classes))[order.cpu().numpy() // classes]  # few bits: sorted by radix
    by_owner = np.argsort(owner, kind="stable")
    positions = np.split(by_owner, np.cumsum(np.bincount(owner, minlength=classes))[:-1])
    sets = [(part, 1) for part in positions if len(part)]
    absent = classes - len(sets)  # without the samples of a class that has none is everything
    return sets + [(NOTHING, absent)] * (absent > 0)


def _loss_of_events(
    value: Tensor, excess: Tensor, left_out: list[tuple[Index, int]], *, window: int, epsilon: float, n_clusters: int | None
) -> tuple[Tensor, Tensor]:
    """Steps 2-5 on sorted events.

    Args:
        value: ascending probabilities, (event,).
        excess: p - o in the same order, (event,).
        left_out: positions of the events that each set is without, and the weight of the set.
        window: M, even.
        epsilon: tolerated gap.
        n_clusters: clusters, or None to weigh all events alike.

    Returns:
        The mean loss of the sets and its slope in `excess`, (event,).
    """
    loss, slope = excess.new_zeros(()), torch.zeros_like(excess)
    removed = [positions for positions, _ in left_out]
    starts: list[Index | None] = [None] * len(removed)
    if n_clusters is not None:
        # Sets without one class differ little from the whole, so their clusters start from those of the whole.
        everything = value.cpu().numpy()
        of_whole = kmeans_1d(everything, n_clusters)
        starts = list(kmeans_without(everything, removed, cluster_centres(everything, of_whole)))
    weights = [count for _, count in left_out]
    for positions, share, start in zip(removed, weights, starts, strict=True):
        keep = torch.ones(len(excess), dtype=torch.bool, device=excess.device)
        keep[torch.as_tensor(positions, device=excess.device)] = False
        index = keep.nonzero()[:, 0]
        one, at_kept = _loss_of_set(excess.index_select(0, index), start, window, epsilon, n_clusters)
        loss += share * one
        slope.index_add_(0, index, at_kept, alpha=share)
    return loss / sum(weights), slope / sum(weights)


def _loss_of_set(
    excess: Tensor, starts: Index | None, window: int, epsilon: float, n_clusters: int | None
) -> tuple[Tensor, Tensor]:
    """Weighted mean gap (steps 2-4) of sorted events, and its slope in `excess`, (event,)."""
    mean = windowed_sum(excess, window).div_(window + 1)
    weight = event_weight(len(excess), starts, n_clusters, excess.device)
    gap = mean.abs().sub_(epsilon).relu_()
    loss = torch.dot(gap, weight)
    outer = mean.sign_().mul_(weight).mul_(gap > 0).div_(window + 1)
    return loss, windowed_sum(outer, window)  # an event lies in the windows of the events in its own window


def event_gap(excess: Tensor, *, window: int, epsilon: float) -> Tensor:
    """Steps 2-3: max(|mean of p - o over the window around each event| - epsilon, 0), shape (event,).

    The two sequences of the paper, p(1-o) and (1-p)o, enter only through their difference, p - o. Windows that stick out
    at either end count the missing events as zeros and still divide by window + 1, as the official code does.

    Args:
        excess: p - o in ascending order of p, shape (event,).
        window: M, even.
        epsilon: tolerated gap.
    """
    return torch.relu(torch.abs(windowed_sum(excess, window)) / (window + 1) - epsilon)


def windowed_sum(sequence: Tensor, window: int) -> Tensor:
    """Sum of each element with the window / 2 on either side of it, what is missing at the ends being 0, (event,)."""
    half = window // 2
    total = sequence.new_zeros(len(sequence) + 2 * half + 1)
    torch.cumsum(sequence, dim=0, out=total[half + 1 : half + 1 + len(sequence)])
    total[half + 1 + len(sequence) :] = total[half + len(sequence)]
    return total[2 * half + 1 :] - total[: len(sequence)]


def event_weight(events: int, starts: Index | None, n_clusters: int | None, device: torch.device) -> Tensor:
    """Step 4: what each event counts in the mean over clusters of the mean gap of a cluster, (event,).

    A cluster divides by its count + 1e-5, so an empty one contributes 0; nothing is differentiated through the clusters.

    Args:
        events: how many.
        starts: where clusters start, ascending, (cluster,).
        n_clusters: over how many to average, those that turned out empty included; None: all events count alike.
        device: of the result.
    """
    if starts is None or n_clusters is None:
        return torch.full((events,), 1 / max(events, 1), dtype=torch.float64, device=device)
    count = np.diff(np.append(starts, events))
    each = torch.as_tensor(1 / (count + 1e-5) / n_clusters, device=device)
    return torch.repeat_interleave(each, torch.as_tensor(count, device=device), output_size=events)
