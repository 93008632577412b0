"""Which recalibrator is better on these samples, metric by metric, and which ranks chance leaves open.

A rank among a dozen methods that hardly differ says little. So every rank comes with the range that paired comparisons leave: at
best 1 + the number of methods that are clearly better, at worst the number of methods less those that are clearly worse, where
clearly means that the 95 % bootstrap interval of the difference on the same resamples leaves out 0 (marginal confidence sets
for ranks, Mogstad, Romano, Shaikh, Wilhelm 2024, Review of Economic Studies; pairwise and without their correction for the
number of comparisons).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from workbench_calibration.resampling import paired_difference

Float = NDArray[np.float64]
RANKED = (
    "negative_log_likelihood",
    "brier_score",
    "ece_width_l1",
    "ece_mass_l1",
    "ks_error",
    "classwise_ece_width_mean",
)
"""Metrics with resamples of which less is better."""


@dataclass(frozen=True)
class Ranks:
    """Ranks (recalibrator, metric) over `RANKED`: 1 is best, ties share their rank; and the best and worst that chance leaves."""

    rank: Float
    best: Float
    worst: Float


def differences(
    metrics: Mapping[str, Mapping[str, float]], resampled: Mapping[str, Mapping[str, Float]], main: str
) -> dict[str, Float]:
    """How far one method is from each: its metrics over `RANKED` less theirs, negative where it is better.

    Args:
        metrics: of each method, by name.
        resampled: as for `rank_methods`.
        main: the one method.

    Returns:
        Arrays (recalibrator, ranked_metric): `value`, and `lower` and `upper` end of its paired 95 % bootstrap interval.
    """
    value = np.array([[metrics[main][metric] - row[metric] for metric in RANKED] for row in metrics.values()])
    spans = np.array(
        [
            [
                paired_difference(resampled[main], resampled[name], metric, one)
                for metric, one in zip(RANKED, row, strict=True)
            ]
            for name, row in zip(metrics, value, strict=True)
        ]
    )
    return {"value": value, "lower": spans[..., 0], "upper": spans[..., 1]}


def rank_methods(
    metrics: Mapping[str, Mapping[str, float]], resampled: Mapping[str, Mapping[str, Float]]
) -> Ranks:
    """Rank methods by their metrics, with ranges from paired resamples.

    Args:
        metrics: of each method, by name.
        resampled: of each method the metrics of each resample, (resample,); the resamples are the same for all.
    """
    names = list(metrics)
    value = np.array([[metrics[name][metric] for metric in RANKED] for name in names])
    better = np.zeros((len(names), len(names), len(RANKED)))  # whether the first is clearly better than the second
    for column, metric in enumerate(RANKED):
        for first, one in enumerate(names):
            for second, other in enumerate(names[:first]):
                difference = value[first, column] - value[second, column]
                low, high = paired_difference(resampled[one], resampled[other], metric, difference)
                better[first, second, column], better[second, first, column] = high < 0, low > 0
    rank = np.asarray(stats.rankdata(np.round(value, 12), axis=0))
    # a reflected interval can lie beside the difference itself
    best = np.minimum(1 + better.sum(axis=0), rank)
    return Ranks(rank, best, np.maximum(len(names) - better.sum(axis=1), rank))
