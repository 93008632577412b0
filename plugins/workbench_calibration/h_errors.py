"""Errors that the evaluation of h-calibration adds to those of the family: of other norms, and of whole distributions.

Huang et al. (2025) judge by up to 19 metrics. Most are in every report of the family; these are not, because some of them
are quadratic in samples and the others repeat those there in another norm.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from workbench.toolkit import (
    CalibrationScores,
    canonical_calibration_error,
    kernel_calibration_error,
    sweep_calibration_error,
)

from workbench_calibration.evaluation import Calibrator
from workbench_calibration.samples import Samples

Float = NDArray[np.float64]
FURTHER = {
    "sweep_ece_mass_l2": "equal mass, as many bins as rise, quadratic mean",
    "classwise_ece_width_l2_mean": "classwise, quadratic mean over bins, mean over classes",
    "squared_kernel_error": "whole distributions, unbiased squared kernel error (SKCE)",
    "canonical_ece_l2_wide": "whole distributions, Dirichlet kernels of bandwidth 1 (the paper's), squared; so wide that true "
    "probabilities are far from 0, too",
    "canonical_ece_l2_narrow": "the same with bandwidth 0.1",
}
QUADRATIC_SAMPLES = 10_000
"""Errors that compare all pairs of samples see at most so many, evenly spaced."""


def further_errors(samples: Samples, calibrators: Mapping[str, Calibrator], n_bins: int) -> Float:
    """The `FURTHER` errors of each calibrator on the samples, (recalibrator, error).

    Args:
        samples: to judge by; their logits are read in blocks.
        calibrators: by name.
        n_bins: of equal width, for the classwise error.
    """
    count = len(samples.label)
    some = np.unique(np.linspace(0, count - 1, min(count, QUADRATIC_SAMPLES)).astype(np.int64))
    label = samples.label.cpu().numpy()
    rows = []
    for calibrate in calibrators.values():
        scores, kept = CalibrationScores(n_bins=n_bins), []
        for block, logit in samples.blocks():
            p = calibrate(logit).cpu().numpy()
            scores.update(p, label[block])
            kept.append(p[some[(some >= block.start) & (some < block.stop)] - block.start])
        assert scores.classes is not None
        whole = np.concatenate(kept)
        rows.append([
            sweep_calibration_error(*scores.events()[:2], norm=2),
            float(scores.classes.errors(2).mean()),
            kernel_calibration_error(whole, label[some]),
            canonical_calibration_error(whole, label[some], bandwidth=1.0),
            canonical_calibration_error(whole, label[some], bandwidth=0.1),
        ])
    return np.array(rows)
