"""Everything that `calibration.tcm` measures of one embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from workbench_calibration.opis import (
    Acceptance,
    Float,
    acceptance,
    grid,
    normalised,
    opis,
    retrieval,
    tail_opis,
    thresholds_at,
    utility,
    utility_with_own_thresholds,
)

if TYPE_CHECKING:
    from workbench_calibration.tcm import Params

RANKS = (1, 2, 4, 8)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
WIDE = np.linspace(-1.0, 1.0, 401)
"""Thresholds of the curves; quantiles and histograms are exact to its step, 0.005."""
SCORES = (
    "opis", "tail_opis", "opis_own_thresholds", "mean_utility", *(f"recall_{k}" for k in RANKS), "map_r",
    "far_spread", "frr_spread", "frr_spread_own_thresholds", "pooled_frr", "range_low", "range_high",
)  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """All figures of one embedding."""

    unit: Tensor
    in_range: Acceptance
    wide: Acceptance
    utility: Float
    at_threshold: Acceptance
    scores: tuple[float, ...]


def measure(embedding: Tensor, label: Tensor, params: Params) -> Measurement:
    """Steps 1 to 6 of the measurement, and the scores to read beside OPIS.

    Args:
        embedding: (sample, feature).
        label: (sample,), at least two classes, each of at least two samples.
        params: of the run.
    """
    unit = normalised(embedding)
    small, large = params.far_range
    low, high, at = thresholds_at(unit, label, (large, small, params.operating_far))
    inside_grid = grid(low, high, params.n_grid, params.spacing)
    merged = np.unique(np.concatenate([inside_grid, WIDE, [at]]))  # all pairs are looked at once
    counted = acceptance(unit, label, merged)
    inside, wide, shipped = (counted.take(np.searchsorted(merged, one)) for one in (inside_grid, WIDE, np.array([at])))
    value = utility(inside.far, inside.frr, params.c)
    own = utility_with_own_thresholds(wide, inside.pooled_far, params.c)
    own_frr = frr_with_own_thresholds(wide, params.operating_far)
    recall, map_r = retrieval(unit, label, RANKS)
    scores = (
        opis(value), tail_opis(value, params.tail), opis(own), float(value.mean()), *recall.values(), map_r,
        float(np.ptp(shipped.far)), float(np.ptp(shipped.frr)), float(np.ptp(own_frr)),
        float(1 - shipped.accepted_positive.sum() / shipped.positive.sum()), low, high,
    )  # fmt: skip
    return Measurement(unit, inside, wide, value, shipped, scores)


def frr_with_own_thresholds(wide: Acceptance, far: float) -> Float:
    """False reject rate (class,) if every class had the lowest threshold whose false accept rate is at most `far`."""
    chosen = np.argmax(np.append(wide.far, np.zeros((len(wide.far), 1)), axis=1) <= far, axis=1)
    return wide.frr[np.arange(len(chosen)), np.minimum(chosen, wide.frr.shape[1] - 1)]


def bootstrap_opis(value: Float, rng: np.random.Generator, resamples: int = 1000) -> tuple[float, float]:
    """Percentile interval (95 %) of OPIS over classes drawn with replacement from utilities (class, t).

    Variances of a resample are smaller by (k - 1) / k on average; that factor is taken out.
    """
    k = len(value)
    weight = rng.multinomial(k, np.full(k, 1 / k), size=resamples) / k
    variance = weight @ value**2 - (weight @ value) ** 2
    low, high = np.quantile(variance.mean(1) * k / (k - 1), (0.025, 0.975))
    return float(low), float(high)


def density(accepted: np.ndarray) -> Float:
    """Density per unit of similarity, from numbers of pairs that reach each of `WIDE`."""
    inside = accepted[:-1] - accepted[1:]
    inside[-1] += accepted[-1]  # similarity 1 belongs to the last bin
    value: Float = inside / max(int(accepted[0]), 1) / (WIDE[1] - WIDE[0])
    return value
