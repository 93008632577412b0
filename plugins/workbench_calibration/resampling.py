"""How sure a calibration metric is: paired bootstrap over samples, and what chance alone would give.

Recomputing the toolkit's metrics for every resample would take minutes. Their bins depend on the probabilities only, so a
resample (a count per sample) turns into products of matrices. `ResampledScores` takes probabilities block by block and keeps
a few numbers a sample, so that they may be larger than memory. The values are those of `workbench.toolkit` on the resampled
rows (a test compares them). The same counts serve every method, so differences between methods are paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from workbench.toolkit import ClassBins

Float = NDArray[np.float64]

RESAMPLED = (
    "accuracy",
    "negative_log_likelihood",
    "brier_score",
    "ece_width_l1",
    "ece_mass_l1",
    "ks_error",
    "classwise_ece_width_mean",
    "overconfidence",
)
"""Metrics that get intervals; named as in `calibration_metrics` of the toolkit."""

ERRORS = ("ece_width_l1", "ece_mass_l1", "ks_error", "classwise_ece_width_mean")
"""Those that cannot be negative and that chance pushes up; the others are means over samples."""

CLIP = 1e-12
_BLOCK = 100
"""Resamples turned into float64 at a time."""


def resample_counts(samples: int, resamples: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """How often each sample is drawn in each bootstrap resample: (resample, sample), rows sum to `samples`."""
    counts = np.empty((resamples, samples), dtype=np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(samples, size=samples), minlength=samples)
    return counts


class ResampledScores:
    """The `RESAMPLED` metrics of one method for every resample and every set of labels drawn from its probabilities."""

    def __init__(
        self, samples: int, classes: int, n_bins: int, counts: NDArray[np.uint16], draws: int, rng: np.random.Generator
    ) -> None:
        """Nothing seen yet.

        Args:
            samples: how many will come.
            classes: number of classes.
            n_bins: bins of the calibration errors.
            counts: (resample, sample) of `resample_counts`.
            draws: label sets to draw from the probabilities.
            rng: of these draws.
        """
        self.n_bins, self.counts, self.rng, self.seen = n_bins, counts, rng, 0
        self.bins = ClassBins(classes, n_bins)
        self.hit, self.confidence, self.own, self.brier = (np.empty(samples) for _ in range(4))
        self.own_cell = np.empty(samples, dtype=np.int64)
        self._high: list[tuple[Any, Any, Any]] = []
        # sums over samples of count * p_k: the dense part of the classwise error, (resample, class)
        self._total = np.zeros((len(counts), classes))
        self._drawn_hit = np.empty((draws, samples), dtype=np.bool_)
        self._drawn_mean = np.zeros((2, draws))  # likelihood and Brier score, summed
        self._drawn_cell = np.zeros((draws, classes * n_bins))

    def add(self, p: Float, label: NDArray[np.int64]) -> None:
        """Add the next samples in order: probabilities float64 (sample, class) and their labels."""
        rows = np.arange(len(p))
        here = slice(self.seen, self.seen + len(p))
        best = p.argmax(axis=1)
        square, own = np.einsum("ik,ik->i", p, p), p[rows, label]
        self.hit[here], self.confidence[here], self.own[here] = best == label, p[rows, best], own
        self.brier[here] = square - 2 * own + 1
        self.own_cell[here] = label * self.n_bins + self.bins.bin_of(own)
        row, cell, value = self.bins.high(p)
        self._high.append((row + self.seen, cell, value))
        self.bins.add(p, label)
        self._total += self.counts[:, here].astype(np.float64) @ p
        self._draw(p, best, square, here)
        self.seen += len(p)

    def _draw(self, p: Float, best: NDArray[np.int64], square: Float, here: slice) -> None:
        cumulated = np.cumsum(p, axis=1)
        cumulated[:, -1] = np.inf  # rounding must not leave a gap at the top
        uniform = self.rng.random((len(p), len(self._drawn_hit)))
        label = np.stack([np.searchsorted(row, u, side="right") for row, u in zip(cumulated, uniform, strict=True)])
        own = np.take_along_axis(p, label, axis=1)
        self._drawn_hit[:, here] = (label == best[:, None]).T
        self._drawn_mean[0] -= np.log(np.maximum(own, CLIP)).sum(axis=0)
        self._drawn_mean[1] += (square[:, None] - 2 * own + 1).sum(axis=0)
        cell = label * self.n_bins + self.bins.bin_of(own)
        for draw, column in enumerate(cell.T):
            np.add.at(self._drawn_cell[draw], column, 1.0)

    def metrics(self) -> dict[str, Float]:
        """The metrics of each resample, arrays (resample,)."""
        samples, classes = len(self.hit), len(self.bins.count)
        excess = self.confidence - self.hit
        per_sample = np.stack([self.hit, -np.log(np.maximum(self.own, CLIP)), self.brier, excess], axis=1)
        top = sparse.csr_array((excess, self.bins.bin_of(self.confidence), np.arange(samples + 1)), (samples, self.n_bins))
        order = np.argsort(self.confidence, kind="stable")
        classwise = self._class_matrix()
        found: dict[str, list[Float]] = {name: [] for name in RESAMPLED}
        for start in range(0, len(self.counts), _BLOCK):
            counts = self.counts[start : start + _BLOCK].astype(np.float64)
            mean = counts @ per_sample / samples
            for column, name in enumerate(("accuracy", "negative_log_likelihood", "brier_score", "overconfidence")):
                found[name].append(mean[:, column])
            found["ece_width_l1"].append(np.abs(top.T @ counts.T).sum(axis=0) / samples)
            mass, ks = _ordered_errors(counts[:, order], excess[order], self.n_bins)
            found["ece_mass_l1"].append(mass)
            found["ks_error"].append(ks)
            cell = (classwise.T @ counts.T).reshape(classes, self.n_bins, len(counts))
            cell[:, 0] += self._total[start : start + _BLOCK].T
            found["classwise_ece_width_mean"].append(np.abs(cell).sum(axis=(0, 1)) / samples / classes)
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def _class_matrix(self) -> Any:
        """Sparse (sample, cell): what a sample adds to the sums of p - [label] of the cells, but for its whole row of p.

        The whole row goes into the lowest bin of each class through `_total`; entries of higher bins are taken out there.
        """
        row, cell, value = (np.concatenate(parts) for parts in zip(*self._high, strict=True))
        samples = np.arange(len(self.hit))
        rows = np.concatenate([row, row, samples])
        cells = np.concatenate([cell, cell - cell % self.n_bins, self.own_cell])
        values = np.concatenate([value, -value, -np.ones(len(samples))])
        return sparse.csr_array((values, (rows, cells)), (len(samples), self.bins.count.size))

    def chance(self) -> dict[str, Float]:
        """The metrics if the probabilities were true, for each set of drawn labels, arrays (draw,)."""
        samples, classes = len(self.hit), len(self.bins.count)
        order = np.argsort(self.confidence, kind="stable")
        member = self.bins.bin_of(self.confidence)
        edges = _edges(samples, self.n_bins)
        width, mass, ks = (np.empty(len(self._drawn_hit)) for _ in range(3))
        for draw, hit in enumerate(self._drawn_hit):
            excess = self.confidence - hit
            width[draw] = np.abs(np.bincount(member, weights=excess, minlength=self.n_bins)).sum() / samples
            mass[draw] = np.abs(np.add.reduceat(excess[order], edges)).sum() / samples
            ks[draw] = np.abs(np.cumsum(excess[order])).max() / samples
        accuracy = self._drawn_hit.mean(axis=1)
        return {
            "accuracy": accuracy,
            "negative_log_likelihood": self._drawn_mean[0] / samples,
            "brier_score": self._drawn_mean[1] / samples,
            "ece_width_l1": width,
            "ece_mass_l1": mass,
            "ks_error": ks,
            "classwise_ece_width_mean": np.abs(self.bins.score.ravel() - self._drawn_cell).sum(axis=1) / samples / classes,
            "overconfidence": self.confidence.mean() - accuracy,
        }


def metric_interval(name: str, value: float, draws: Float, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of a metric: percentile for plain means, reflected and cut at 0 for calibration errors.

    Resampled calibration errors lie above the error of the sample as this lies above the true one, so the percentile
    interval of a well calibrated model misses its true error; `2 value - quantile` takes that upward bias off. Means have
    no such bias, and their percentile interval stays in the metric's range (an accuracy in 0..1).

    Args:
        name: one of `RESAMPLED`.
        value: the metric of the sample.
        draws: (resample,), the metric of each resample.
        level: coverage.
    """
    quantile = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    if name not in ERRORS:
        return float(quantile[0]), float(quantile[1])
    high, low = np.maximum(2 * value - quantile, 0.0)
    return float(low), float(high)


def paired_difference(
    after: Mapping[str, Float], before: Mapping[str, Float], name: str, value: float, level: float = 0.95
) -> tuple[float, float]:
    """Basic bootstrap interval of a difference of two methods on the same resamples; `value` is that of the sample."""
    low, high = 2 * value - np.quantile(after[name] - before[name], [0.5 + level / 2, 0.5 - level / 2])
    return float(low), float(high)


def _ordered_errors(counts: Float, excess: Float, n_bins: int) -> tuple[Float, Float]:
    """Equal-mass and Kolmogorov-Smirnov errors of resamples, both (resample,).

    Args:
        counts: (resample, sample) in ascending order of confidence.
        excess: confidence less hit, (sample,), in the same order.
        n_bins: parts of equal mass; one may end within the copies of a sample.
    """
    samples = len(excess)
    drawn, total = np.cumsum(counts, axis=1), np.cumsum(counts * excess, axis=1)
    ends = np.append(_edges(samples, n_bins)[1:], samples).astype(np.float64)
    last = np.stack([np.searchsorted(row, ends, side="left") for row in drawn])
    until = np.take_along_axis(total, last, 1) - (np.take_along_axis(drawn, last, 1) - ends) * excess[last]
    mass = np.abs(np.diff(until, axis=1, prepend=0.0)).sum(axis=1) / samples
    return mass, np.abs(total).max(axis=1) / samples


def _edges(samples: int, n_bins: int) -> NDArray[np.int64]:
    """First position of each non-empty part of `numpy.array_split`."""
    sizes = np.full(n_bins, samples // n_bins)
    sizes[: samples % n_bins] += 1
    return np.cumsum(np.append(0, sizes[:-1]))[sizes > 0]
