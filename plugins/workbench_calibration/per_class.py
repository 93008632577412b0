"""What maps of single probabilities share, class by class: bins, rows that sum to 1 again, and which classes to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from workbench import Out, Output, Result

from workbench_calibration.samples import Samples

DRAWN = 10
"""Most classes whose curves are drawn."""
KNOTS = (
    Output("knot_score", ("knot",), "float64", "given probability at the knots of the fitted curves, ascending", optional=True),
    Output("knot_value", ("knot",), "float64", "value there, before renormalising", optional=True),
    Output("knot_curve", ("knot",), "int64", "which curve: the class, or 0 if there is one", optional=True),
)
"""What `write_knots` writes: with it a fitted map can be used elsewhere."""
COLUMN_ENTRIES = 8_000_000
"""Probabilities held at a time where a class needs those of all samples together (64 MB)."""


def probability_blocks(samples: Samples) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Positions, probabilities float64 (row, class) and labels (row,) of all samples, block by block."""
    for rows, logit in samples.blocks():
        yield rows, torch.softmax(logit, dim=1).cpu().numpy(), samples.label[rows].cpu().numpy()


def class_columns(samples: Samples) -> Iterator[tuple[int, np.ndarray]]:
    """Each class with its probability of all samples (sample,); the samples are read once for every few classes."""
    count = max(1, COLUMN_ENTRIES // len(samples.label))
    for first in range(0, samples.classes, count):
        some = np.empty((min(count, samples.classes - first), len(samples.label)))
        for rows, p, _ in probability_blocks(samples):
            some[:, rows] = p[:, first : first + count].T
        yield from enumerate(some, first)


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


@dataclass(frozen=True)
class SortedEvents:
    """Scores of one class in ascending order (event,), and how many of the first i events occurred (event + 1,)."""

    score: np.ndarray
    occurred: np.ndarray

    @classmethod
    def of(cls, score: np.ndarray, occurred: np.ndarray) -> SortedEvents:
        """Events in any order: scores and outcomes, both (event,)."""
        order = np.argsort(score, kind="stable")
        return cls(score[order], np.concatenate([[0.0], np.cumsum(occurred[order])]))

    def mass_edges(self, n_bins: int) -> np.ndarray:
        """Inner edges (bin - 1,) between parts of equal count."""
        size, extra = divmod(len(self.score), n_bins)
        cut = np.arange(1, n_bins) * size + np.minimum(np.arange(1, n_bins), extra)  # as numpy.array_split
        return np.asarray((self.score[cut - 1] + self.score[np.minimum(cut, len(self.score) - 1)]) / 2)

    def binned(self, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Events, outcomes and middle of each bin (lower, upper] between inner edges, each (bin,)."""
        until = np.concatenate([[0], np.searchsorted(self.score, edge, side="right"), [len(self.score)]])
        return np.diff(until), np.diff(self.occurred[until]), bin_middles(edge)


def bin_middles(edge: np.ndarray) -> np.ndarray:
    """Middle of each bin of 0..1 between inner edges (..., bin - 1), (..., bin)."""
    ends = [np.full((*edge.shape[:-1], 1), end) for end in (0.0, 1.0)]
    full = np.concatenate([ends[0], edge, ends[1]], axis=-1)
    return np.asarray((full[..., :-1] + full[..., 1:]) / 2)


def write_knots(out: Out, knots: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Store fitted curves exactly, one after the other: score and value of each knot of each, and which curve it is of."""
    out.write("knot_score", np.concatenate([score for score, _ in knots]))
    out.write("knot_value", np.concatenate([value for _, value in knots]))
    out.write("knot_curve", np.repeat(np.arange(len(knots)), [len(score) for score, _ in knots]))


def most_frequent(result: Result) -> list[int]:
    """At most ten classes, those with the most report samples, in ascending order."""
    return sorted(int(k) for k in np.argsort(-result["class_count"].values, kind="stable")[:DRAWN])
