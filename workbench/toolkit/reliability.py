"""Reliability of one probability per event: bins, calibration errors, and the error chance alone would give.

An *event* is a probability in 0..1 and its outcome (0 or 1): the top label's confidence and whether it was a hit, or
one class's probability and whether it was the label. Everything is computed in float64 by numpy;
`workbench.toolkit.probability` turns class probabilities into events. Definitions: Guo et al. (2017), Kumar et al.
(2019), Gupta et al. (2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from workbench.errors import InputError
from workbench.toolkit.statistics import wilson_interval

__all__ = [
    "Binning",
    "CalibrationBand",
    "MurphyParts",
    "Norm",
    "ReliabilityBins",
    "area_under_risk_coverage",
    "area_under_roc",
    "binned_calibration_error",
    "consistency_band",
    "debiased_error",
    "debiased_squared_error",
    "expected_under_calibration",
    "kolmogorov_smirnov_error",
    "murphy_parts",
    "reliability_bins",
]

Binning = Literal["width", "mass"]
Norm = float | Literal["max", "mean"]
"""A power q >= 1, or "max" or "mean"."""
Float = NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityBins:
    """The bins of a reliability diagram, arrays of shape (bin,). Means and intervals of empty bins are NaN.

    Equal-width bins are (lower, upper], the first closed at 0; equal-mass bins span the scores of their members.
    """

    lower: Float
    upper: Float
    count: NDArray[np.int64]
    confidence: Float
    """Mean score of the events of the bin (not the bin's centre)."""
    accuracy: Float
    """Fraction of the bin's events that occurred."""
    accuracy_lower: Float
    accuracy_upper: Float

    @property
    def gap(self) -> Float:
        """Accuracy less confidence of the non-empty bins, shape (non-empty bin,)."""
        filled = self.count > 0
        return self.accuracy[filled] - self.confidence[filled]

    @property
    def share(self) -> Float:
        """Fraction of all events in each non-empty bin, shape (non-empty bin,)."""
        filled = self.count[self.count > 0]
        return np.asarray(filled / filled.sum(), dtype=np.float64)


@dataclass(frozen=True)
class MurphyParts:
    """Murphy's parts of the binary Brier score of binned scores: score = reliability - resolution + uncertainty."""

    reliability: float
    resolution: float
    uncertainty: float


@dataclass(frozen=True)
class CalibrationBand:
    """What a statistic would be if every score were the true probability: mean and central interval over draws."""

    mean: float
    lower: float
    upper: float


def reliability_bins(
    score: ArrayLike, outcome: ArrayLike, *, n_bins: int = 15, binning: Binning = "width", level: float = 0.95
) -> ReliabilityBins:
    """Bin events by score, with Wilson intervals of the outcome rate.

    Args:
        score: probabilities in 0..1, shape (event,).
        outcome: 0/1 or booleans, shape (event,).
        n_bins: number of bins.
        binning: "width" for bins of equal width, "mass" for bins of equal count (stable sort, as even as possible).
        level: confidence of the Wilson intervals.

    Raises:
        InputError: shapes differ, there is no event, or a score is not in 0..1.
    """
    p, hit = check_events(score, outcome)
    member = _bin_of(p, n_bins, binning)
    count = np.bincount(member, minlength=n_bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        confidence = np.bincount(member, weights=p, minlength=n_bins) / count
        accuracy = np.bincount(member, weights=hit, minlength=n_bins) / count
    if binning == "width":
        edges = np.linspace(0.0, 1.0, n_bins + 1)
        lower, upper = edges[:-1], edges[1:]
    else:
        lower, upper = np.full(n_bins, np.nan), np.full(n_bins, np.nan)
        for index, part in enumerate(np.array_split(np.sort(p), n_bins)):
            if part.size:
                lower[index], upper[index] = part[0], part[-1]
    low, high = wilson_interval(np.rint(np.nan_to_num(accuracy * count)), count, level=level)
    return ReliabilityBins(lower, upper, count.astype(np.int64), confidence, accuracy, low, high)


def binned_calibration_error(
    score: ArrayLike, outcome: ArrayLike, *, n_bins: int = 15, binning: Binning = "width", norm: Norm = 1
) -> float:
    """Gap between mean score and outcome rate over bins, in 0..1.

    A number q is the power of `(sum_b n_b/N |gap_b|^q)^(1/q)`: 1 is the expected calibration error, 2 the root mean square.
    "max" is the largest gap of a non-empty bin (MCE), "mean" the plain mean of |gap| over non-empty bins (ACE).
    """
    bins = reliability_bins(score, outcome, n_bins=n_bins, binning=binning)
    return combine_gaps(bins.gap, bins.share, norm)


def debiased_error(score: ArrayLike, outcome: ArrayLike, *, n_bins: int = 15) -> float:
    """Equal-mass calibration error (norm 1) less an estimate of its upward bias at finite counts; may be negative.

    `2*ECE - mean_b E|N(acc_b - conf_b, acc_b (1 - acc_b) / n_b)|`, the mean of the folded normal in closed form (Kumar et
    al. 2019 estimate it by simulation). It lessens the bias and does not remove it: of perfectly calibrated scores a share
    of 2 - sqrt 2, about 59 %, of the plain error remains.
    """
    bins = reliability_bins(score, outcome, n_bins=n_bins, binning="mass")
    filled = bins.count > 0
    accuracy, count = bins.accuracy[filled], bins.count[filled]
    folded = _folded_normal_mean(bins.gap, np.sqrt(accuracy * (1 - accuracy) / count))
    return float(2 * np.sum(bins.share * np.abs(bins.gap)) - folded.mean())


def debiased_squared_error(
    score: ArrayLike, outcome: ArrayLike, *, n_bins: int = 15, binning: Binning = "mass"
) -> float:
    """Unbiased squared calibration error of Kumar et al. (2019); negative values occur and mean "none measurable".

    `sum_b n_b/N ((conf_b - acc_b)^2 - acc_b (1 - acc_b) / (n_b - 1))`; a bin of one event has no variance estimate and
    keeps its squared gap.
    """
    bins = reliability_bins(score, outcome, n_bins=n_bins, binning=binning)
    filled = bins.count > 0
    accuracy, count = bins.accuracy[filled], bins.count[filled]
    variance = np.where(count > 1, accuracy * (1 - accuracy) / np.maximum(count - 1, 1), 0.0)
    return float(np.sum(bins.share * (bins.gap**2 - variance)))


def kolmogorov_smirnov_error(score: ArrayLike, outcome: ArrayLike) -> float:
    """Largest distance of the cumulated scores and outcomes, in 0..1; no bins (Gupta et al. 2021).

    `max_i |sum_{j<=i} (score_j - outcome_j)| / N` in ascending order of score, ties in order of appearance.
    """
    p, hit = check_events(score, outcome)
    order = np.argsort(p, kind="stable")
    return float(np.abs(np.cumsum(p[order] - hit[order])).max() / p.size)


def murphy_parts(score: ArrayLike, outcome: ArrayLike, *, n_bins: int = 15, binning: Binning = "mass") -> MurphyParts:
    """Reliability, resolution and uncertainty of events whose scores are replaced by the mean of their bin."""
    bins = reliability_bins(score, outcome, n_bins=n_bins, binning=binning)
    accuracy = bins.accuracy[bins.count > 0]
    base = float(np.sum(bins.share * accuracy))
    return MurphyParts(
        reliability=float(np.sum(bins.share * bins.gap**2)),
        resolution=float(np.sum(bins.share * (accuracy - base) ** 2)),
        uncertainty=base * (1 - base),
    )


def area_under_risk_coverage(score: ArrayLike, outcome: ArrayLike) -> float:
    """Mean error rate among the i most confident events, over i = 1..N (AURC), in 0..1; lower is better.

    Events of equal score share their mean error, so that the value does not depend on the order of the events.
    """
    p, hit = check_events(score, outcome)
    _, tie, count = np.unique(-p, return_inverse=True, return_counts=True)
    error = (np.bincount(tie, weights=1 - hit) / count)[np.sort(tie)]
    return float(np.mean(np.cumsum(error) / np.arange(1, p.size + 1)))


def area_under_roc(score: ArrayLike, outcome: ArrayLike) -> float:
    """Chance that an event that occurred scores above one that did not (ties count half); NaN with one outcome only."""
    from scipy import stats

    p, hit = check_events(score, outcome)
    positive = int(hit.sum())
    negative = p.size - positive
    if positive == 0 or negative == 0:
        return float("nan")
    rank_sum = float(stats.rankdata(p)[hit > 0].sum())
    return (rank_sum - positive * (positive + 1) / 2) / (positive * negative)


def expected_under_calibration(
    score: ArrayLike,
    statistic: Callable[[Float, Float], float],
    *,
    rng: np.random.Generator,
    draws: int = 200,
    level: float = 0.95,
) -> CalibrationBand:
    """The value a statistic takes by chance alone: outcomes are drawn as Bernoulli(score), `draws` times.

    Calibration errors are biased upwards at small N: a measured value inside this band is no sign of miscalibration.

    Args:
        score: probabilities in 0..1, shape (event,).
        statistic: function of (score, outcome), both float64 of shape (event,), e.g. `binned_calibration_error`.
        rng: source of the draws.
        draws: number of simulated data sets.
        level: coverage of the central interval.
    """
    p, _ = check_events(score, np.zeros(np.shape(score)))
    values = np.array([statistic(p, (rng.random(p.size) < p).astype(np.float64)) for _ in range(draws)])
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return CalibrationBand(float(values.mean()), float(low), float(high))


def consistency_band(
    score: ArrayLike,
    *,
    rng: np.random.Generator,
    n_bins: int = 15,
    binning: Binning = "width",
    draws: int = 1000,
    level: float = 0.95,
) -> tuple[Float, Float]:
    """Where the accuracy of each reliability bin would lie if every score were true: lower and upper ends, both (bin,).

    The consistency bars of Broecker and Smith (2007), given the scores: outcomes are drawn as Bernoulli(score). About
    one bin in twenty of a calibrated classifier lies outside its own 95 % band. NaN where a bin is empty.

    Args:
        score: probabilities in 0..1, shape (event,).
        rng: source of the draws.
        n_bins: number of bins.
        binning: as in `reliability_bins`.
        draws: number of simulated data sets.
        level: coverage of each bin's central interval.
    """
    p, _ = check_events(score, np.zeros(np.shape(score)))
    member = _bin_of(p, n_bins, binning)
    order = np.argsort(member, kind="stable")
    ranked, count = p[order], np.bincount(member, minlength=n_bins)
    filled = count > 0
    start = (np.cumsum(count) - count)[filled]
    rates = np.stack([np.add.reduceat(rng.random(p.size) < ranked, start, dtype=np.int64) for _ in range(draws)])
    ends = np.full((2, n_bins), np.nan)
    ends[:, filled] = np.quantile(rates / count[filled], [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return ends[0], ends[1]


def check_events(score: ArrayLike, outcome: ArrayLike) -> tuple[Float, Float]:
    """Scores and outcomes as float64 of shape (event,), or InputError."""
    p, hit = np.asarray(score, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    if p.ndim != 1 or p.shape != hit.shape or p.size == 0:
        raise InputError(
            "score, outcome",
            expected="two 1-d arrays of equal, non-zero length",
            got=f"shapes {p.shape} and {hit.shape}",
        )
    # sums of float32 probabilities overshoot 1 by rounding
    if not (np.isfinite(p).all() and p.min() >= -1e-6 and p.max() <= 1 + 1e-6):
        raise InputError("score", expected="probabilities in 0..1", got=f"values from {p.min():g} to {p.max():g}")
    if not ((hit == 0) | (hit == 1)).all():
        raise InputError("outcome", expected="0 or 1 (or booleans)", got=f"values from {hit.min():g} to {hit.max():g}")
    return p, hit


def _bin_of(p: Float, n_bins: int, binning: Binning) -> NDArray[np.int64]:
    """Index of each event's bin, shape (event,)."""
    if n_bins < 1:
        raise InputError("n_bins", expected="a positive number of bins", got=str(n_bins))
    if binning == "width":
        edges = np.linspace(0.0, 1.0, n_bins + 1)
        return np.minimum(np.searchsorted(edges[1:], p, side="left"), n_bins - 1)
    if binning == "mass":
        sizes = [part.size for part in np.array_split(np.empty(p.size, dtype=np.bool_), n_bins)]
        member = np.empty(p.size, dtype=np.int64)
        member[np.argsort(p, kind="stable")] = np.repeat(np.arange(n_bins), sizes)
        return member
    raise InputError("binning", expected='"width" or "mass"', got=repr(binning))


def combine_gaps(gap: Float, share: Float, norm: Norm) -> float:
    """Gaps of non-empty bins (bin,) and the shares of events in them (bin,) to one error."""
    check_norm(norm)
    distance = np.abs(gap)
    if norm == "max":
        return float(distance.max())
    if norm == "mean":
        return float(distance.mean())
    power = float(norm)
    return float(np.sum(share * distance**power) ** (1 / power))


def check_norm(norm: Norm) -> None:
    """Raise InputError unless it is a finite power of at least 1, "max" or "mean"."""
    if not (norm in ("max", "mean") or (isinstance(norm, (int, float)) and 1 <= norm < np.inf)):
        raise InputError("norm", expected='a number of at least 1, "max" or "mean"', got=repr(norm))


def _folded_normal_mean(mean: Float, deviation: Float) -> Float:
    """E|N(mean, deviation^2)|, elementwise; |mean| where the deviation is 0."""
    ratio = np.divide(mean, deviation, out=np.zeros_like(mean), where=deviation > 0)
    folded = deviation * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + mean * special.erf(ratio / np.sqrt(2))
    return np.asarray(np.where(deviation > 0, folded, np.abs(mean)))
