"""What maps of single probabilities share, class by class: bins, rows that sum to 1 again, and which classes to draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from workbench import Result

DRAWN = 10
"""Most classes whose curves are drawn."""


def through(values: Callable[[np.ndarray], np.ndarray], logit: Tensor) -> Tensor:
    """Probabilities (sample, class) after a map of each probability, renormalised, on the device of the logits.

    Args:
        values: probabilities (sample, class) to new values of the same shape, not negative.
        logit: (sample, class).
    """
    p = torch.softmax(logit, dim=1).cpu().numpy()
    return torch.as_tensor(renormalise(values(p)), device=logit.device)


def renormalise(value: np.ndarray) -> np.ndarray:
    """Rows (sample, class) of non-negative numbers divided by their sums; rows of zeros become uniform."""
    total = value.sum(axis=1, keepdims=True)
    return np.where(total > 0, value / np.where(total > 0, total, 1), 1 / value.shape[1])


def inner_edges(score: np.ndarray, n_bins: int, binning: Literal["width", "mass"]) -> np.ndarray:
    """Inner edges (bin - 1,) of bins of equal width, or between the parts of sorted scores of equal count."""
    if binning == "width":
        return np.linspace(0.0, 1.0, n_bins + 1)[1:-1]
    ordered = np.sort(score)
    cut = np.cumsum([len(part) for part in np.array_split(ordered, n_bins)])[:-1]
    upper = np.minimum(cut, len(ordered) - 1)
    return np.asarray((ordered[cut - 1] + ordered[upper]) / 2)


def binned_hits(
    score: np.ndarray, occurred: np.ndarray, edge: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Events, outcomes and middle of each bin (lower, upper] between inner edges, each (bin,)."""
    member, bins = np.searchsorted(edge, score, side="left"), len(edge) + 1
    full = np.concatenate([[0.0], edge, [1.0]])
    return (
        np.bincount(member, minlength=bins),
        np.bincount(member, weights=occurred, minlength=bins),
        (full[:-1] + full[1:]) / 2,
    )


def most_frequent(result: Result) -> list[int]:
    """At most ten classes, those with the most report samples, in ascending order."""
    return sorted(int(k) for k in np.argsort(-result["class_count"].values, kind="stable")[:DRAWN])
