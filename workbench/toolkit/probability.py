"""Metrics of class probabilities against labels: the one place where every family takes them from.

Arrays in (numpy, or anything `numpy.asarray` takes), Python floats out, computed in float64. `probability` has shape
(sample, class) with rows that sum to 1; a single column (or a 1-d array) is the probability of class 1 of two. `label`
has shape (sample,). Confidence is the largest probability of a row and a hit means that it stands at the label; ties go
to the lowest class. Names say the binning and the norm. Definitions: Guo et al. (2017), Kull et al. (2019), Kumar et
al. (2019), Gupta et al. (2021); the event-level functions are in `workbench.toolkit.reliability`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from workbench.errors import InputError
from workbench.toolkit import reliability, unbinned
from workbench.toolkit.reliability import Binning, MurphyParts, Norm, ReliabilityBins

__all__ = [
    "accuracy",
    "area_under_risk_coverage_curve",
    "average_calibration_error",
    "brier_parts",
    "brier_score",
    "calibration_metrics",
    "classwise_calibration_error",
    "clipped_probability_count",
    "confidence_auroc",
    "debiased_calibration_error",
    "debiased_squared_calibration_error",
    "expected_calibration_error",
    "ks_calibration_error",
    "maximum_calibration_error",
    "mean_entropy",
    "negative_log_likelihood",
    "overconfidence",
    "reliability_diagram",
    "top_label",
]

Float = NDArray[np.float64]
BLOCK_ENTRIES = 4_000_000
"""Entries of a block of rows that are turned into float64 at a time (32 MB)."""


def negative_log_likelihood(probability: ArrayLike, label: ArrayLike, *, clip: float = 1e-12) -> float:
    """Mean of -log p[label] in nats.

    Args:
        probability: shape (sample, class).
        label: shape (sample,).
        clip: p[label] below this counts as this. It sets the value when methods output zeros: report
            `clipped_probability_count` beside it.
    """
    p, y = check_probability(probability, label)
    return float(-np.log(np.maximum(_label_probability(p, y), clip)).mean())


def clipped_probability_count(probability: ArrayLike, label: ArrayLike, *, clip: float = 1e-12) -> tuple[int, int]:
    """How many p[label] lie below `clip`, and how many of those are exactly 0."""
    p, y = check_probability(probability, label)
    chosen = _label_probability(p, y)
    return int((chosen < clip).sum()), int((chosen <= 0).sum())


def brier_score(probability: ArrayLike, label: ArrayLike) -> float:
    """Multi-class Brier score, mean over samples of sum_k (p_k - [label = k])^2, in 0..2."""
    p, y = check_probability(probability, label)
    total = 0.0
    for start, block in _blocks(p):
        rows = np.arange(len(block))
        block[rows, y[start : start + len(block)]] -= 1.0
        total += float(np.einsum("ik,ik->", block, block))
    return total / len(p)


def brier_parts(
    probability: ArrayLike, label: ArrayLike, *, n_bins: int = 15, binning: Binning = "mass"
) -> MurphyParts:
    """Murphy's parts (reliability, resolution, uncertainty) of the top label's binary Brier score over bins."""
    return reliability.murphy_parts(*top_label(probability, label), n_bins=n_bins, binning=binning)


def accuracy(probability: ArrayLike, label: ArrayLike, *, top: int = 1) -> float:
    """Fraction of samples whose label is among the `top` most probable classes (ties to the lowest class)."""
    _, hit = ranked_events(probability, label, rank=top, within=True)
    return float(hit.mean())


def top_label(probability: ArrayLike, label: ArrayLike) -> tuple[Float, Float]:
    """Confidence and hit (0. or 1.) of each sample, both of shape (sample,)."""
    p, y = check_probability(probability, label)
    best = p.argmax(axis=1)
    confidence = np.take_along_axis(p, best[:, None], axis=1)[:, 0]
    return confidence.astype(np.float64), (best == y).astype(np.float64)


def ranked_events(
    probability: ArrayLike, label: ArrayLike, *, rank: int = 1, within: bool = False
) -> tuple[Float, Float]:
    """Score and outcome of the r-th most probable class of each sample, or of the set of its r most probable classes.

    Args:
        probability: shape (sample, class).
        label: shape (sample,).
        rank: r, from 1 to the number of classes.
        within: False: the r-th class's probability and whether it is the label. True: the sum of the first r
            probabilities and whether the label is among them.
    """
    p, y = check_probability(probability, label)
    if not 1 <= rank <= p.shape[1]:
        raise InputError("rank", expected=f"1 to {p.shape[1]} (the number of classes)", got=str(rank))
    if rank == 1:
        return top_label(p, y)
    score, outcome = np.empty(len(p)), np.empty(len(p))
    for start, block in _blocks(p):
        rows = slice(start, start + len(block))
        order = np.argsort(-block, axis=1, kind="stable")[:, :rank]
        ordered = np.take_along_axis(block, order, axis=1)
        hit = order == y[rows, None]
        score[rows] = np.minimum(ordered.sum(axis=1), 1.0) if within else ordered[:, -1]
        outcome[rows] = hit.any(axis=1) if within else hit[:, -1]
    return score, outcome


def expected_calibration_error(
    probability: ArrayLike, label: ArrayLike, *, n_bins: int = 15, binning: Binning = "width", norm: Norm = 1
) -> float:
    """Top-label calibration error over bins of confidence, in 0..1.

    Args:
        probability: shape (sample, class).
        label: shape (sample,).
        n_bins: number of bins; keep 50 samples a bin or more.
        binning: "width": bins (lo, hi] of equal width, the first closed at 0. "mass": bins of equal count.
        norm: 1: `sum_b n_b/N |acc_b - conf_b|` (ECE). 2: root of the weighted mean square gap (RMSCE). "max": largest
            gap (MCE). "mean": plain mean over non-empty bins (ACE).
    """
    return reliability.binned_calibration_error(
        *top_label(probability, label), n_bins=n_bins, binning=binning, norm=norm
    )


def maximum_calibration_error(
    probability: ArrayLike, label: ArrayLike, *, n_bins: int = 15, binning: Binning = "width"
) -> float:
    """Largest |accuracy - confidence| of a non-empty bin (MCE)."""
    return expected_calibration_error(probability, label, n_bins=n_bins, binning=binning, norm="max")


def average_calibration_error(
    probability: ArrayLike, label: ArrayLike, *, n_bins: int = 15, binning: Binning = "width"
) -> float:
    """Plain mean of |accuracy - confidence| over non-empty bins (ACE)."""
    return expected_calibration_error(probability, label, n_bins=n_bins, binning=binning, norm="mean")


def classwise_calibration_error(
    probability: ArrayLike,
    label: ArrayLike,
    *,
    reduction: Literal["mean", "sum", "none"] = "mean",
    n_bins: int = 15,
    binning: Binning = "width",
    norm: Norm = 1,
    threshold: float | None = None,
) -> Any:
    """Calibration error of p_k against [label = k], class by class.

    Args:
        probability: shape (sample, class).
        label: shape (sample,).
        reduction: "mean" or "sum" over classes (they differ by the number of classes; papers use both), or "none" for
            an array of shape (class,).
        n_bins: number of bins.
        binning: as in `expected_calibration_error`.
        norm: as in `expected_calibration_error`; norm 2 combines classes as the root of their mean (summed) square.
        threshold: leave out events with p_k below this (1/classes is customary); the error of a class is then relative
            to the events kept, and 0 for a class that keeps none.
    """
    p, y = check_probability(probability, label)
    errors = np.zeros(p.shape[1])
    for k in range(p.shape[1]):
        score, outcome = p[:, k].astype(np.float64), (y == k).astype(np.float64)
        if threshold is not None:
            kept = score >= threshold
            score, outcome = score[kept], outcome[kept]
        if score.size:
            errors[k] = reliability.binned_calibration_error(score, outcome, n_bins=n_bins, binning=binning, norm=norm)
    if reduction == "none":
        return errors
    if reduction not in ("mean", "sum"):
        raise InputError("reduction", expected='"mean", "sum" or "none"', got=repr(reduction))
    power = 2 if norm == 2 else 1
    combined = (errors**power).mean() if reduction == "mean" else (errors**power).sum()
    return float(combined ** (1 / power))


def debiased_calibration_error(probability: ArrayLike, label: ArrayLike, *, n_bins: int = 15) -> float:
    """Equal-mass top-label calibration error less its expected upward bias; see `reliability.debiased_error`."""
    return reliability.debiased_error(*top_label(probability, label), n_bins=n_bins)


def debiased_squared_calibration_error(
    probability: ArrayLike, label: ArrayLike, *, n_bins: int = 15, binning: Binning = "mass"
) -> float:
    """Unbiased squared top-label calibration error of Kumar et al. (2019); see `reliability.debiased_squared_error`."""
    return reliability.debiased_squared_error(*top_label(probability, label), n_bins=n_bins, binning=binning)


def ks_calibration_error(probability: ArrayLike, label: ArrayLike, *, rank: int = 1, within: bool = False) -> float:
    """Kolmogorov-Smirnov calibration error (binning-free) of the r-th class or of the set of the top r, in 0..1."""
    return reliability.kolmogorov_smirnov_error(*ranked_events(probability, label, rank=rank, within=within))


def area_under_risk_coverage_curve(probability: ArrayLike, label: ArrayLike) -> float:
    """Mean error rate over coverages when the least confident samples are refused first (AURC); lower is better."""
    return reliability.area_under_risk_coverage(*top_label(probability, label))


def confidence_auroc(probability: ArrayLike, label: ArrayLike) -> float:
    """Area under the ROC curve of confidence as a detector of hits; NaN if all or none are hits."""
    return reliability.area_under_roc(*top_label(probability, label))


def mean_entropy(probability: ArrayLike) -> float:
    """Mean entropy of the rows in nats."""
    p = as_class_probability(probability)
    return sum(float(special.entr(block).sum()) for _, block in _blocks(p)) / len(p)


def overconfidence(probability: ArrayLike, label: ArrayLike) -> float:
    """Mean confidence less accuracy, in -1..1; positive means overconfident."""
    confidence, hit = top_label(probability, label)
    return float(np.mean(confidence - hit))


def reliability_diagram(
    probability: ArrayLike, label: ArrayLike, *, n_bins: int = 15, binning: Binning = "width", level: float = 0.95
) -> ReliabilityBins:
    """Top-label reliability bins with Wilson intervals; see `reliability.reliability_bins`."""
    return reliability.reliability_bins(*top_label(probability, label), n_bins=n_bins, binning=binning, level=level)


def calibration_metrics(
    probability: ArrayLike, label: ArrayLike, *, n_bins: int = 15, clip: float = 1e-12
) -> dict[str, float]:
    """The metrics of a calibration report by name. `width` and `mass` name the binning, `l1` / `l2` / `max` the norm.

    Args:
        probability: shape (sample, class).
        label: shape (sample,).
        n_bins: number of bins of every binned metric.
        clip: lower bound of p[label] in the negative log likelihood.
    """
    p, y = check_probability(probability, label)
    events = top_label(p, y)

    def binned(binning: Binning, norm: Norm) -> float:
        return reliability.binned_calibration_error(*events, n_bins=n_bins, binning=binning, norm=norm)

    per_class = classwise_calibration_error(p, y, n_bins=n_bins, reduction="none")
    return {
        "accuracy": float(events[1].mean()),
        "negative_log_likelihood": negative_log_likelihood(p, y, clip=clip),
        "brier_score": brier_score(p, y),
        "ece_width_l1": binned("width", 1),
        "ece_width_l2": binned("width", 2),
        "ece_width_max": binned("width", "max"),
        "ace_width": binned("width", "mean"),
        "ece_mass_l1": binned("mass", 1),
        "ece_mass_debiased": reliability.debiased_error(*events, n_bins=n_bins),
        "squared_ce_mass_debiased": reliability.debiased_squared_error(*events, n_bins=n_bins),
        "ks_error": reliability.kolmogorov_smirnov_error(*events),
        "sweep_ece_mass_l1": unbinned.sweep_calibration_error(*events),
        "kde_ece_l1": unbinned.density_calibration_error(*events),
        "mmce_laplacian": unbinned.maximum_mean_calibration_error(*events),
        "classwise_ece_width_mean": float(per_class.mean()),
        "classwise_ece_width_sum": float(per_class.sum()),
        "classwise_ece_width_thresholded": classwise_calibration_error(p, y, n_bins=n_bins, threshold=1 / p.shape[1]),
        "aurc": reliability.area_under_risk_coverage(*events),
        "confidence_auroc": reliability.area_under_roc(*events),
        "mean_entropy": mean_entropy(p),
        "overconfidence": float(np.mean(events[0] - events[1])),
    }


def as_class_probability(probability: ArrayLike) -> NDArray[Any]:
    """Probabilities as an array of shape (sample, class >= 2), in their own floating dtype.

    Raises:
        InputError: not 2-d, empty, not finite, outside 0..1, or rows that do not sum to 1 within 1e-3.
    """
    p = np.asarray(probability)
    if p.dtype.kind != "f":
        p = p.astype(np.float64)
    if p.ndim == 1 or (p.ndim == 2 and p.shape[1] == 1):
        one = p.reshape(-1)
        p = np.stack([1 - one, one], axis=1)
    if p.ndim != 2 or p.size == 0:
        raise InputError("probability", expected="shape (sample, class), not empty", got=f"shape {p.shape}")
    low, high = float(p.min()), float(p.max())
    # NaN fails both comparisons; sums of float32 exponentials overshoot 1 by rounding
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise InputError(
            "probability",
            expected="values in 0..1",
            got=f"values from {low:g} to {high:g}",
            hint="Logits are turned into probabilities by a softmax over classes.",
        )
    worst = max(float(np.abs(block.sum(axis=1) - 1).max()) for _, block in _blocks(p))
    if worst > 1e-3:
        raise InputError("probability", expected="rows that sum to 1", got=f"a row whose sum is off by {worst:.3g}")
    return p


def check_probability(probability: ArrayLike, label: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Probabilities (sample, class) and int64 labels (sample,) that fit, or InputError."""
    p = as_class_probability(probability)
    y = np.asarray(label)
    if y.shape != (len(p),):
        raise InputError("label", expected=f"shape ({len(p)},) as probability", got=f"shape {y.shape}")
    if y.dtype.kind not in "iub" or y.min() < 0 or y.max() >= p.shape[1]:
        raise InputError(
            "label", expected=f"integers from 0 to {p.shape[1] - 1}", got=f"{y.dtype} from {y.min()} to {y.max()}"
        )
    return p, y.astype(np.int64)


def _label_probability(p: NDArray[Any], y: NDArray[np.int64]) -> Float:
    return np.take_along_axis(p, y[:, None], axis=1)[:, 0].astype(np.float64)


def _blocks(p: NDArray[Any]) -> Iterator[tuple[int, Float]]:
    """Float64 copies of consecutive rows, with the index of the first, so that memory stays bounded."""
    rows = max(1, BLOCK_ENTRIES // p.shape[1])
    for start in range(0, len(p), rows):
        yield start, p[start : start + rows].astype(np.float64)
