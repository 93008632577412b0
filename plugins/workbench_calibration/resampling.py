"""How sure a calibration metric is: paired bootstrap over samples, and what chance alone would give.

Recomputing the toolkit's metrics for every resample would take minutes. Their bins depend on the probabilities only, so a
resample (a count per sample) turns into matrix products. The values are those of `workbench.toolkit` on the resampled
rows (a test compares them). The same counts serve every method, so differences between methods are paired.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

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


def resample_counts(samples: int, resamples: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """How often each sample is drawn in each bootstrap resample: (resample, sample), rows sum to `samples`."""
    counts = np.empty((resamples, samples), dtype=np.int32)
    for row in counts:
        row[:] = np.bincount(rng.integers(samples, size=samples), minlength=samples)
    return counts


class BinnedProbability:
    """Everything about probabilities (sample, class) that metrics need and that labels do not change."""

    def __init__(self, probability: Float, n_bins: int) -> None:
        self.probability, self.n_bins = probability, n_bins
        self.prediction = probability.argmax(axis=1)
        self.confidence = probability[np.arange(len(probability)), self.prediction]
        self.order = np.argsort(self.confidence, kind="stable")
        inner = np.linspace(0.0, 1.0, n_bins + 1)[1:-1]
        self.bin = np.searchsorted(inner, self.confidence, side="left")
        # bins (lo, hi] of every class side by side: cell = class * n_bins + bin
        cell = np.searchsorted(inner, probability, side="left")
        self.cell = (cell + np.arange(probability.shape[1]) * n_bins).astype(np.int64)

    def metrics(self, label: NDArray[np.int64], counts: NDArray[np.int32] | None = None) -> dict[str, Float]:
        """The `RESAMPLED` metrics for each row of `counts` (resample, sample), arrays (resample,); None: all rows once."""
        p, rows = self.probability, np.arange(len(label))
        hit = (self.prediction == label).astype(np.float64)
        excess = self.confidence - hit
        residual = p.copy()
        residual[rows, label] -= 1.0
        per_sample = np.stack(
            [hit, -np.log(np.maximum(p[rows, label], CLIP)), np.einsum("ik,ik->i", residual, residual), excess], axis=1
        )
        if counts is None:
            return self._once(per_sample, excess, residual)
        shape = (len(label), p.shape[1] * self.n_bins)
        classwise = sparse.csr_array((residual.ravel(), self.cell.ravel(), np.arange(0, p.size + 1, p.shape[1])), shape)
        top = sparse.csr_array((excess, self.bin, np.arange(len(label) + 1)), (len(label), self.n_bins))
        parts = [self._block(block, per_sample, excess, top, classwise) for block in _blocks(counts)]
        return {name: np.concatenate([part[name] for part in parts]) for name in RESAMPLED}

    def _block(self, counts: Float, per_sample: Float, excess: Float, top: object, classwise: object) -> dict[str, Float]:
        """One block of resamples; `top` and `classwise` are sparse (sample, bin) and (sample, cell)."""
        samples = counts.shape[1]
        mean = counts @ per_sample / samples
        ordered = counts[:, self.order]
        ranked = excess[self.order]
        edges = _edges(samples, self.n_bins)
        mass = [
            np.abs(np.add.reduceat(np.repeat(ranked, row.astype(np.int64)), edges)).sum() / samples for row in ordered
        ]
        return {
            "accuracy": mean[:, 0],
            "negative_log_likelihood": mean[:, 1],
            "brier_score": mean[:, 2],
            "overconfidence": mean[:, 3],
            "ece_width_l1": np.abs(top.T @ counts.T).sum(axis=0) / samples,  # type: ignore[attr-defined]
            "ece_mass_l1": np.array(mass),
            "ks_error": np.abs(np.cumsum(ordered * ranked, axis=1)).max(axis=1) / samples,
            "classwise_ece_width_mean": np.abs(classwise.T @ counts.T).sum(axis=0)  # type: ignore[attr-defined]
            / samples
            / self.probability.shape[1],
        }

    def _once(self, per_sample: Float, excess: Float, residual: Float) -> dict[str, Float]:
        samples, classes = residual.shape
        mean = per_sample.mean(axis=0)
        ranked = excess[self.order]
        cells = np.bincount(self.cell.ravel(), weights=residual.ravel(), minlength=classes * self.n_bins)
        values = {
            "accuracy": mean[0],
            "negative_log_likelihood": mean[1],
            "brier_score": mean[2],
            "overconfidence": mean[3],
            "ece_width_l1": np.abs(np.bincount(self.bin, weights=excess, minlength=self.n_bins)).sum() / samples,
            "ece_mass_l1": np.abs(np.add.reduceat(ranked, _edges(samples, self.n_bins))).sum() / samples,
            "ks_error": np.abs(np.cumsum(ranked)).max() / samples,
            "classwise_ece_width_mean": np.abs(cells).sum() / samples / classes,
        }
        return {name: np.array([value]) for name, value in values.items()}


def chance_metrics(binned: BinnedProbability, rng: np.random.Generator, draws: int) -> dict[str, Float]:
    """The metrics if the probabilities were true: labels are drawn from them, `draws` times; arrays (draw,)."""
    cumulated = np.cumsum(binned.probability, axis=1)
    cumulated[:, -1] = np.inf  # rounding must not leave a gap at the top
    results = []
    for _ in range(draws):
        label = (rng.random((len(cumulated), 1)) >= cumulated).sum(axis=1)
        results.append(binned.metrics(label))
    return {name: np.concatenate([result[name] for result in results]) for name in RESAMPLED}


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


def _edges(samples: int, n_bins: int) -> NDArray[np.int64]:
    """First position of each non-empty part of `numpy.array_split`."""
    sizes = np.full(n_bins, samples // n_bins)
    sizes[: samples % n_bins] += 1
    return np.cumsum(np.append(0, sizes[:-1]))[sizes > 0]


def _blocks(counts: NDArray[np.int32]) -> list[Float]:
    return [counts[start : start + _BLOCK].astype(np.float64) for start in range(0, len(counts), _BLOCK)]
