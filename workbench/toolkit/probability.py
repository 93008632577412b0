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
from workbench.toolkit import reliability
from workbench.toolkit.classwise import ClassBins
from workbench.toolkit.reliability import Binning, MurphyParts, Norm, ReliabilityBins

__all__ = [
    "accuracy",
    "area_under_risk_coverage_curve",
    "average_calibration_error",
    "brier_parts",
    "brier_score",
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
BLOCK_ENTRIES = 1_000_000
"""Entries of a block of rows that are turned into float64 at a time (8 MB)."""


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
    for start, block in blocks(p):
        own = block[np.arange(len(block)), y[start : start + len(block)]]
        total += float(np.einsum("ik,ik->", block, block) - 2 * own.sum() + len(block))
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
    for start, block in blocks(p):
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
        norm: a power q >= 1: `(sum_b n_b/N |acc_b - conf_b|^q)^(1/q)`, so 1 is the ECE and 2 the RMSCE. "max": largest gap
            (MCE). "mean": plain mean over non-empty bins (ACE).

    Equal to torchmetrics (norms 1, 2, "max") and netcal (ECE, MCE, ACE) but for events on a bin's edge: torchmetrics' bins are
    [lo, hi), so that confidences of exactly 1, which float32 softmax gives often, stand in a bin of their own.
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
        norm: as in `expected_calibration_error`; a power q combines classes as the q-th root of their mean (summed) power.
        threshold: leave out events with p_k below this (1/classes is customary); the error of a class is then relative
            to the events kept, and 0 for a class that keeps none.
    """
    p, y = check_probability(probability, label)
    if reduction not in ("mean", "sum", "none"):
        raise InputError("reduction", expected='"mean", "sum" or "none"', got=repr(reduction))
    if binning == "width":
        bins = ClassBins(p.shape[1], n_bins, threshold)
        for start, block in blocks(p):
            bins.add(block, y[start : start + len(block)])
        errors = bins.errors(norm)
    else:
        errors = _sorted_class_errors(p, y, n_bins, binning, norm, threshold)
    if reduction == "none":
        return errors
    power = 1.0 if isinstance(norm, str) else float(norm)
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
    return sum(float(special.entr(block).sum()) for _, block in blocks(p)) / len(p)


def overconfidence(probability: ArrayLike, label: ArrayLike) -> float:
    """Mean confidence less accuracy, in -1..1; positive means overconfident."""
    confidence, hit = top_label(probability, label)
    return float(np.mean(confidence - hit))


def reliability_diagram(
    probability: ArrayLike, label: ArrayLike, *, n_bins: int = 15, binning: Binning = "width", level: float = 0.95
) -> ReliabilityBins:
    """Top-label reliability bins with Wilson intervals; see `reliability.reliability_bins`."""
    return reliability.reliability_bins(*top_label(probability, label), n_bins=n_bins, binning=binning, level=level)


def as_class_probability(probability: ArrayLike) -> NDArray[Any]:
    """Probabilities as an array of shape (sample, class >= 2), in their own floating dtype.

    Raises:
        InputError: not 2-d, empty, not finite, outside 0..1, or rows that do not sum to 1 within 1e-3.
    """
    p = class_columns(probability)
    for _, block in blocks(p):
        check_block(block)
    return p


def class_columns(probability: ArrayLike) -> NDArray[Any]:
    """An array of shape (sample, class >= 2) in its own floating dtype; a single column is class 1 of two."""
    p = np.asarray(probability)
    if p.dtype.kind != "f":
        p = p.astype(np.float64)
    if p.ndim == 1 or (p.ndim == 2 and p.shape[1] == 1):
        one = p.reshape(-1)
        p = np.stack([1 - one, one], axis=1)
    if p.ndim != 2 or p.size == 0:
        raise InputError("probability", expected="shape (sample, class), not empty", got=f"shape {p.shape}")
    return p


def check_block(block: Float) -> None:
    """Raise InputError unless every entry of a block (sample, class) is in 0..1 and every row sums to 1 within 1e-3."""
    low, high = float(block.min()), float(block.max())
    # NaN fails both comparisons; sums of float32 exponentials overshoot 1 by rounding
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise InputError(
            "probability",
            expected="values in 0..1",
            got=f"values from {low:g} to {high:g}",
            hint="Logits are turned into probabilities by a softmax over classes.",
        )
    worst = float(np.abs(block.sum(axis=1) - 1).max())
    if worst > 1e-3:
        raise InputError("probability", expected="rows that sum to 1", got=f"a row whose sum is off by {worst:.3g}")


def check_probability(probability: ArrayLike, label: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Probabilities (sample, class) and int64 labels (sample,) that fit, or InputError."""
    p = as_class_probability(probability)
    return p, check_label(label, p)


def check_label(label: ArrayLike, p: NDArray[Any]) -> NDArray[np.int64]:
    """Int64 labels (sample,) that fit probabilities (sample, class), or InputError."""
    y = np.asarray(label)
    if y.shape != (len(p),):
        raise InputError("label", expected=f"shape ({len(p)},) as probability", got=f"shape {y.shape}")
    if y.dtype.kind not in "iub" or y.min() < 0 or y.max() >= p.shape[1]:
        raise InputError(
            "label", expected=f"integers from 0 to {p.shape[1] - 1}", got=f"{y.dtype} from {y.min()} to {y.max()}"
        )
    return y.astype(np.int64)


def _sorted_class_errors(
    p: NDArray[Any], y: NDArray[np.int64], n_bins: int, binning: Binning, norm: Norm, threshold: float | None
) -> Float:
    """Error of each class over bins that need its events sorted, (class,); a few columns are copied at a time."""
    errors = np.zeros(p.shape[1])
    width = max(1, BLOCK_ENTRIES // len(p))
    for first in range(0, p.shape[1], width):
        columns = np.ascontiguousarray(p[:, first : first + width].T, dtype=np.float64)
        for k, column in enumerate(columns, start=first):
            kept = slice(None) if threshold is None else column >= threshold
            score, outcome = column[kept], (y == k)[kept]
            if score.size:
                errors[k] = reliability.binned_calibration_error(
                    score, outcome, n_bins=n_bins, binning=binning, norm=norm
                )
    return errors


def _label_probability(p: NDArray[Any], y: NDArray[np.int64]) -> Float:
    return np.take_along_axis(p, y[:, None], axis=1)[:, 0].astype(np.float64)


def blocks(p: NDArray[Any]) -> Iterator[tuple[int, Float]]:
    """Float64 copies of consecutive rows, with the index of the first, so that memory stays bounded."""
    rows = max(1, BLOCK_ENTRIES // p.shape[1])
    for start in range(0, len(p), rows):
        yield start, p[start : start + rows].astype(np.float64)
