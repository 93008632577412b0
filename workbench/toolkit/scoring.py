"""All metrics of a calibration report, from probabilities that need never lie in memory together.

`CalibrationScores` takes blocks of samples and keeps four numbers a sample and three a class and bin, so that logits larger
than memory can be judged as they are read. `calibration_metrics` is the same for arrays. Definitions are those of
`workbench.toolkit.probability`; the values do not depend on how samples are cut into blocks (their order decides ties of the
equal-mass bins, as it does there).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.errors import InputError
from workbench.toolkit import reliability, unbinned
from workbench.toolkit.classwise import ClassBins
from workbench.toolkit.probability import blocks, check_block, check_label, class_columns

if TYPE_CHECKING:
    from workbench.toolkit.reliability import Binning, Norm, ReliabilityBins

__all__ = ["CalibrationScores", "calibration_metrics"]

Float = NDArray[np.float64]
TINY = 1e-300


class CalibrationScores:
    """Metrics of probabilities against labels, accumulated over blocks of samples."""

    def __init__(self, *, n_bins: int = 15, clip: float = 1e-12) -> None:
        """Nothing seen yet.

        Args:
            n_bins: number of bins of every binned metric.
            clip: lower bound of p[label] in the negative log likelihood.
        """
        if n_bins < 1:
            raise InputError("n_bins", expected="a positive number of bins", got=str(n_bins))
        self.n_bins, self.clip = n_bins, clip
        self.classes: ClassBins | None = None
        self._above: ClassBins | None = None
        self._events: list[tuple[Float, Float, Float]] = []
        self._brier = self._entropy = 0.0

    def update(self, probability: ArrayLike, label: ArrayLike) -> None:
        """Add samples.

        Args:
            probability: shape (sample, class), rows that sum to 1; a single column is the probability of class 1 of two.
            label: shape (sample,).

        Raises:
            InputError: not probabilities, labels that do not fit, or another number of classes than before.
        """
        p = class_columns(probability)
        y = check_label(label, p)
        if self.classes is None:
            self.classes = ClassBins(p.shape[1], self.n_bins)
            self._above = ClassBins(p.shape[1], self.n_bins, threshold=1 / p.shape[1])
        assert self._above is not None
        if p.shape[1] != len(self.classes.count):
            raise InputError(
                "probability", expected=f"{len(self.classes.count)} classes as before", got=str(p.shape[1])
            )
        for start, block in blocks(p):
            check_block(block)
            self._add(block, y[start : start + len(block)], self.classes, self._above)

    def _add(self, p: Float, y: NDArray[np.int64], classes: ClassBins, above: ClassBins) -> None:
        rows = np.arange(len(p))
        best = p.argmax(axis=1)
        own = p[rows, y]
        self._events.append((p[rows, best], (best == y).astype(np.float64), own))
        self._brier += float(np.einsum("ik,ik->", p, p) - 2 * own.sum() + len(p))
        self._entropy -= float(np.einsum("ik,ik->", p, np.log(np.maximum(p, TINY))))
        classes.add(p, y)
        above.add(p, y)

    @property
    def samples(self) -> int:
        """How many samples were seen."""
        return sum(len(part[0]) for part in self._events)

    def events(self) -> tuple[Float, Float, Float]:
        """Confidence, hit (0. or 1.) and probability of the label of every sample, each (sample,)."""
        if not self._events:
            raise InputError("probability", expected="at least one sample", got="none")
        if len(self._events) > 1:
            confidence, hit, own = (np.concatenate(parts) for parts in zip(*self._events, strict=True))
            self._events = [(confidence, hit, own)]
        return self._events[0]

    def calibration_error(self, *, binning: Binning = "width", norm: Norm = 1) -> float:
        """Top-label calibration error; see `expected_calibration_error`."""
        return reliability.binned_calibration_error(*self.events()[:2], n_bins=self.n_bins, binning=binning, norm=norm)

    def reliability_bins(self, *, binning: Binning = "width", level: float = 0.95) -> ReliabilityBins:
        """Top-label reliability bins; see `reliability_diagram`."""
        return reliability.reliability_bins(*self.events()[:2], n_bins=self.n_bins, binning=binning, level=level)

    def metrics(self) -> dict[str, float]:
        """Every metric by name. `width` and `mass` name the binning, `l1` / `l2` / `max` the norm.

        `brier_top_*` are Murphy's parts of the binary Brier score of the top label, `brier_score` is that of all classes.
        """
        confidence, hit, own = self.events()
        assert self.classes is not None
        assert self._above is not None
        events, samples, per_class = (confidence, hit), len(hit), self.classes.errors()
        width = self.reliability_bins()
        murphy = reliability.murphy_parts(*events, n_bins=self.n_bins)
        return {
            "accuracy": float(hit.mean()),
            "negative_log_likelihood": float(-np.log(np.maximum(own, self.clip)).mean()),
            "brier_score": self._brier / samples,
            "ece_width_l1": reliability.combine_gaps(width.gap, width.share, 1),
            "ece_width_l2": reliability.combine_gaps(width.gap, width.share, 2),
            "ece_width_max": reliability.combine_gaps(width.gap, width.share, "max"),
            "ace_width": reliability.combine_gaps(width.gap, width.share, "mean"),
            "ece_mass_l1": self.calibration_error(binning="mass"),
            "ece_mass_debiased": reliability.debiased_error(*events, n_bins=self.n_bins),
            "squared_ce_mass_debiased": reliability.debiased_squared_error(*events, n_bins=self.n_bins),
            "ks_error": reliability.kolmogorov_smirnov_error(*events),
            "sweep_ece_mass_l1": unbinned.sweep_calibration_error(*events),
            "kde_ece_l1": unbinned.density_calibration_error(*events),
            "mmce_laplacian": unbinned.maximum_mean_calibration_error(*events),
            "classwise_ece_width_mean": float(per_class.mean()),
            "classwise_ece_width_sum": float(per_class.sum()),
            "classwise_ece_width_thresholded": float(self._above.errors().mean()),
            "brier_top_reliability_mass": murphy.reliability,
            "brier_top_resolution_mass": murphy.resolution,
            "brier_top_uncertainty": murphy.uncertainty,
            "aurc": reliability.area_under_risk_coverage(*events),
            "confidence_auroc": reliability.area_under_roc(*events),
            "mean_entropy": self._entropy / samples,
            "overconfidence": float(np.mean(confidence - hit)),
        }


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
    scores = CalibrationScores(n_bins=n_bins, clip=clip)
    scores.update(probability, label)
    return scores.metrics()
