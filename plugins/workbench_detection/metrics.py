"""How well a score separates anomalous from normal samples: AUROC, AUPR, FPR95, with bootstrap intervals.

One convention for the whole family: a larger score is more anomalous, `anomalous` is True for out-of-distribution,
defective, adversarial or changed samples. Point values come from scikit-learn; the bootstrap counts ROC points of all
resamples at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from sklearn import metrics as sklearn_metrics
from workbench import InputError

Area = Literal["step", "trapezoid"]

DETECTION_METRICS = ("auroc", "aupr_in", "aupr_out", "fpr95_id", "fpr95_ood")
"""Names of what `detection_metrics` returns, in order. FPR95 is better when lower, the others when higher."""


def auroc(score: np.ndarray, anomalous: np.ndarray) -> float:
    """P(score of an anomalous sample > score of a normal one), ties count half; both arrays (sample,)."""
    return float(sklearn_metrics.roc_auc_score(anomalous, score))


def aupr_out(score: np.ndarray, anomalous: np.ndarray, area: Area = "step") -> float:
    """Area under precision-recall with anomalous samples as positives.

    `step` is average precision; `trapezoid` joins the points of the curve by straight lines (OpenOOD's). They differ.
    """
    if area == "step":
        return float(sklearn_metrics.average_precision_score(anomalous, score))
    precision, recall, _ = sklearn_metrics.precision_recall_curve(anomalous, score)
    return float(sklearn_metrics.auc(recall, precision))


def aupr_in(score: np.ndarray, anomalous: np.ndarray, area: Area = "step") -> float:
    """Area under precision-recall with normal samples as positives and the score negated."""
    return aupr_out(-np.asarray(score), ~np.asarray(anomalous, dtype=bool), area)


def fpr95_ood(score: np.ndarray, anomalous: np.ndarray, rate: float = 0.95) -> float:
    """Fraction of normal samples flagged at the highest threshold that flags `rate` of the anomalous ones (OpenOOD 1.5)."""
    false_positive_rate, true_positive_rate, _ = sklearn_metrics.roc_curve(anomalous, score, drop_intermediate=False)
    # 1e-12: 19 of 20 must count as .95, whatever the rounding of the quotient.
    return float(false_positive_rate[np.argmax(true_positive_rate >= rate - 1e-12)])


def fpr95_id(score: np.ndarray, anomalous: np.ndarray, rate: float = 0.95) -> float:
    """Fraction of anomalous samples accepted at the strictest threshold that keeps `rate` of the normal ones.

    The convention of most papers, and the default here.
    """
    return fpr95_ood(-np.asarray(score), ~np.asarray(anomalous, dtype=bool), rate)


def detection_metrics(score: np.ndarray, anomalous: np.ndarray) -> dict[str, float]:
    """All of `DETECTION_METRICS` (AUPR as average precision) of a score.

    Args:
        score: (sample,), larger = more anomalous, finite.
        anomalous: (sample,) bool, at least one of each.

    Raises:
        InputError: shapes differ, a score is not finite, or one of the two kinds is missing.
    """
    score, anomalous = checked(score, anomalous)
    return {
        "auroc": auroc(score, anomalous),
        "aupr_in": aupr_in(score, anomalous),
        "aupr_out": aupr_out(score, anomalous),
        "fpr95_id": fpr95_id(score, anomalous),
        "fpr95_ood": fpr95_ood(score, anomalous),
    }


def checked(score: np.ndarray, anomalous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two arrays as float64 and bool, or an InputError that says what is wrong with them."""
    score, anomalous = np.asarray(score, dtype=np.float64), np.asarray(anomalous, dtype=bool)
    if score.ndim != 1 or score.shape != anomalous.shape:
        raise InputError("score", expected=f"one score per label {anomalous.shape}", got=f"shape {score.shape}")
    if not np.isfinite(score).all():
        raise InputError("score", expected="finite scores", got=f"{int((~np.isfinite(score)).sum())} that are not")
    if anomalous.all() or not anomalous.any():
        raise InputError(
            "anomalous",
            expected="at least one normal and one anomalous sample",
            got=f"{int(anomalous.sum())} anomalous of {anomalous.size}",
        )
    return score, anomalous


def roc_at(score: np.ndarray, anomalous: np.ndarray, false_positive_rate: np.ndarray) -> np.ndarray:
    """True positive rate at given false positive rates, straight lines between the points of the ROC curve."""
    fpr, tpr, _ = sklearn_metrics.roc_curve(anomalous, score)
    return np.interp(false_positive_rate, fpr, tpr)


def metrics_of_counts(normal: np.ndarray, anomalous: np.ndarray) -> dict[str, np.ndarray]:
    """All of `DETECTION_METRICS` from how often each distinct score occurs, for many resamples at once.

    Args:
        normal: (resample, score) counts of normal samples, distinct scores in increasing order.
        anomalous: the same of anomalous samples; each row of both has at least one count.

    Returns:
        Per metric an array (resample,).
    """
    normals, anomalies = normal.sum(1, keepdims=True), anomalous.sum(1, keepdims=True)
    below = np.cumsum(normal, axis=1)
    # Samples at or above each distinct score, from the largest score downwards: the points of the ROC curve.
    false_positive = np.cumsum(normal[:, ::-1], axis=1)
    true_positive = np.cumsum(anomalous[:, ::-1], axis=1)
    wins = (anomalous * (below - 0.5 * normal)).sum(1)
    return {
        "auroc": wins / (normals * anomalies)[:, 0],
        "aupr_in": _average_precision(np.cumsum(anomalous, axis=1), below, normal, normals),
        "aupr_out": _average_precision(false_positive, true_positive, anomalous[:, ::-1], anomalies),
        "fpr95_id": _false_positives_at(np.cumsum(anomalous, axis=1) / anomalies, below / normals),
        "fpr95_ood": _false_positives_at(false_positive / normals, true_positive / anomalies),
    }


def _average_precision(
    false_positive: np.ndarray, true_positive: np.ndarray, positives: np.ndarray, total: np.ndarray
) -> np.ndarray:
    flagged = true_positive + false_positive
    precision = np.divide(true_positive, flagged, out=np.zeros(flagged.shape), where=flagged > 0)
    return (precision * positives / total).sum(1)


def _false_positives_at(false_positive_rate: np.ndarray, true_positive_rate: np.ndarray) -> np.ndarray:
    first = np.argmax(true_positive_rate >= 0.95 - 1e-12, axis=1)
    return np.take_along_axis(false_positive_rate, first[:, None], axis=1)[:, 0]


def bootstrap_intervals(
    score: np.ndarray,
    anomalous: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = 1000,
    level: float = 0.95,
) -> Mapping[str, tuple[float, float]]:
    """Percentile bootstrap interval of each of `DETECTION_METRICS`; normal and anomalous samples are redrawn separately.

    Args:
        score: (sample,), larger = more anomalous.
        anomalous: (sample,) bool, at least one of each.
        rng: where the resamples come from.
        resamples: how many.
        level: probability of the interval.
    """
    score, anomalous = checked(score, anomalous)
    distinct, place = np.unique(score, return_inverse=True)
    normal_count = np.bincount(place[~anomalous], minlength=distinct.size)
    anomalous_count = np.bincount(place[anomalous], minlength=distinct.size)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in DETECTION_METRICS}
    block = max(1, 4_000_000 // distinct.size)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        values = metrics_of_counts(_redraw(normal_count, size, rng), _redraw(anomalous_count, size, rng))
        for name in DETECTION_METRICS:
            drawn[name].append(values[name])
    tail = (1 - level) / 2
    return {
        name: tuple(float(bound) for bound in np.quantile(np.concatenate(values), (tail, 1 - tail)))  # type: ignore[misc]
        for name, values in drawn.items()
    }


def _redraw(count: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    total = int(count.sum())
    return rng.multinomial(total, count / total, size=size)
