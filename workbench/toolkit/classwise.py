"""Calibration of every class's probability at once: sums over equal-width bins, filled block by block.

The bins of all classes are (class, bin) tables of three numbers each, whatever the number of samples. Nearly all
probabilities of a classifier with many classes lie in the lowest bin: only the others are looked up one by one, and the
lowest bin is what they leave of the sum over all samples. So a block costs one sum, one comparison and a few look-ups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.toolkit.reliability import Norm

__all__ = ["ClassBins"]

Float = NDArray[np.float64]


class ClassBins:
    """Bins (lower, upper] of equal width of p_k against [label = k]: `count`, `score` and `hit` sums, (class, bin)."""

    def __init__(self, classes: int, n_bins: int, threshold: float | None = None) -> None:
        """Empty bins.

        Args:
            classes: number of classes.
            n_bins: number of bins.
            threshold: leave out events with p_k below this.
        """
        if n_bins < 1:
            raise InputError("n_bins", expected="a positive number of bins", got=str(n_bins))
        self.n_bins, self.threshold = n_bins, threshold
        self.upper = np.linspace(0.0, 1.0, n_bins + 1)[1:]
        self.count = np.zeros((classes, n_bins))
        self.score = np.zeros((classes, n_bins))
        self.hit = np.zeros((classes, n_bins))

    def bin_of(self, probability: Float) -> NDArray[np.int64]:
        """Index of the bin of each probability, any shape."""
        return np.minimum(np.searchsorted(self.upper, probability, side="left"), self.n_bins - 1)

    def high(self, p: Float) -> tuple[NDArray[np.int64], NDArray[np.int64], Float]:
        """Row, cell (class * n_bins + bin) and value of the entries of p (sample, class) above the lowest bin."""
        row, column = np.nonzero(p > self.upper[0])
        value = p[row, column]
        return row, column * self.n_bins + self.bin_of(value), value

    def add(self, p: Float, label: NDArray[np.int64]) -> None:
        """Add a block: float64 (sample, class) probabilities and int64 (sample,) labels, both checked before."""
        own = p[np.arange(len(p)), label]
        if self.threshold is None:
            _, cell, value = self.high(p)
            count, score = self._table(cell), self._table(cell, value)
            count[:, 0] = len(p) - count.sum(axis=1)
            score[:, 0] = np.where(count[:, 0] > 0, p.sum(axis=0) - score.sum(axis=1), 0.0)
        else:
            row, column = np.nonzero(p >= self.threshold)
            value = p[row, column]
            cell = column * self.n_bins + self.bin_of(value)
            count, score = self._table(cell), self._table(cell, value)
            kept = own >= self.threshold
            own, label = own[kept], label[kept]
        self.count += count
        self.score += score
        self.hit += self._table(label * self.n_bins + self.bin_of(own))

    def gap(self) -> Float:
        """Frequency less mean probability, (class, bin); NaN where a bin is empty."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(self.count > 0, (self.hit - self.score) / self.count, np.nan))

    def errors(self, norm: Norm = 1) -> Float:
        """Calibration error of each class, (class,); 0 for a class without events. Norms as in `reliability`."""
        from workbench.toolkit.reliability import check_norm

        check_norm(norm)
        total = np.maximum(self.count.sum(axis=1), 1)
        distance = np.nan_to_num(np.abs(self.gap()))
        if norm == "max":
            return np.asarray(distance.max(axis=1))
        if norm == "mean":
            return np.asarray(distance.sum(axis=1) / np.maximum((self.count > 0).sum(axis=1), 1))
        weighted = (self.count * distance ** float(norm)).sum(axis=1) / total
        return np.asarray(weighted ** (1 / float(norm)))

    def _table(self, cell: NDArray[np.int64], weight: Float | None = None) -> Float:
        size = self.count.size
        return np.bincount(cell, weights=weight, minlength=size).astype(np.float64).reshape(self.count.shape)
