"""A metric as a function of the samples it was judged on, from what a run stored: logits and labels, or scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.study.significance import Floats, Statistic, auroc, calibration_error, mean

if TYPE_CHECKING:
    from workbench.runs import Run
    from workbench.study.plan import Branch

__all__ = ["Judged", "judged"]

ENTRIES = 64_000_000
"""Most logits that are read (512 MB as float64)."""
BINS = 15
TOLERANCE = 1e-4
"""Relative difference up to which a metric counts as recomputed (outputs are stored in single precision)."""


@dataclass(frozen=True)
class Judged:
    """A metric that can be resampled."""

    statistic: Statistic
    strata: Any
    """Per sample the number of its stratum, (sample,)."""
    samples: tuple[Any, ...]
    """What says which samples these are: subjects and arrays."""
    rows: Any = None
    """Positions of the samples in their data where a run was judged on a part of them; None: all, in order."""

    def same_samples(self, other: Judged) -> bool:
        """Whether the other was judged on the same samples in the same order."""
        return len(self.samples) == len(other.samples) and all(
            np.array_equal(a, b) if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else a is b or _equal(a, b)
            for a, b in zip(self.samples, other.samples, strict=True)
        )


def _equal(first: Any, second: Any) -> bool:
    return isinstance(first, str | None) and isinstance(second, str | None) and first == second


def judged(run: Run, branch: Branch, metric: str) -> Judged | None:
    """A metric of a run as a function of its samples; None where what is stored does not give exactly the reported number."""
    if metric not in run.metrics:
        return None
    made = _of_scores(run, branch, metric) if metric.startswith("auroc_") else _of_logits(run, branch, metric)
    if made is None:
        return None
    again, reported = float(made.statistic(np.ones((1, len(made.strata))))[0]), run.metrics[metric]
    # A name says little: what is called accuracy here may be another one there.
    return made if abs(again - reported) <= TOLERANCE * max(abs(reported), 1e-3) else None


def _of_logits(run: Run, branch: Branch, metric: str) -> Judged | None:
    if metric not in STATISTICS or "logit" not in run or "label" not in run:
        return None
    logit, label = run["logit"], run["label"].values
    if logit.ndim != 2 or logit.size > ENTRIES or logit.shape[0] != len(label):
        return None
    from scipy.special import log_softmax

    log_probability = log_softmax(logit.values.astype(np.float64), axis=1)
    rows = run["sample_index"].values if "sample_index" in run else None
    return Judged(
        STATISTICS[metric](log_probability, label),
        np.zeros(len(label), dtype=np.int64),
        (branch.root("data"), label, rows),
        None if rows is None else rows.astype(np.int64),
    )


def _nll(log_probability: Floats, label: Any) -> Statistic:
    return mean(-log_probability[np.arange(len(label)), label])


def _accuracy(log_probability: Floats, label: Any) -> Statistic:
    return mean((log_probability.argmax(axis=1) == label).astype(np.float64))


def _ece(log_probability: Floats, label: Any) -> Statistic:
    correct = (log_probability.argmax(axis=1) == label).astype(np.float64)
    return calibration_error(np.exp(log_probability.max(axis=1)), correct, n_bins=BINS)


STATISTICS: Mapping[str, Callable[[Floats, Any], Statistic]] = {
    "accuracy": _accuracy,
    "negative_log_likelihood": _nll,
    "expected_calibration_error": _ece,
    "ece_width_l1": _ece,
}
"""Metrics that logits and labels give, by the names that reports use."""


def _of_scores(run: Run, branch: Branch, metric: str) -> Judged | None:
    name = metric.removeprefix("auroc_")
    if "score" not in run or "anomalous" not in run or name not in run["score"].coords.get("detector", ()):
        return None
    anomalous = run["anomalous"].values.astype(bool)
    score = run["score"].sel(detector=name).values.astype(np.float64)
    if not np.isfinite(score).all():
        return None
    samples = (branch.root("data"), branch.root("ood"), anomalous)
    return Judged(auroc(score, anomalous), anomalous.astype(np.int64), samples)
