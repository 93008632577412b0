"""Intervals of differences of calibration errors keep their level where both methods are nearly calibrated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from workbench_calibration.resampling import paired_difference

SAMPLES, RESAMPLES, ROUNDS = 773, 200, 60


def kolmogorov_smirnov(counts: np.ndarray, confidence: np.ndarray, hit: np.ndarray) -> np.ndarray:
    order = np.argsort(confidence, kind="stable")
    return np.abs(np.cumsum(counts[:, order] * (confidence - hit)[order], axis=1)).max(axis=1) / counts.shape[1]


def expected_calibration_error(counts: np.ndarray, confidence: np.ndarray, hit: np.ndarray) -> np.ndarray:
    gap = np.zeros((len(hit), 15))
    gap[np.arange(len(hit)), np.minimum((confidence * 15).astype(int), 14)] = confidence - hit
    return np.abs(counts @ gap).sum(axis=1) / counts.shape[1]


@pytest.mark.parametrize(
    ("name", "error"), [("ks_error", kolmogorov_smirnov), ("ece_width_l1", expected_calibration_error)]
)
def test_two_maps_that_are_equally_far_off_are_seldom_told_apart(name, error):
    generator = np.random.default_rng(0)
    told_apart = 0
    for _ in range(ROUNDS):
        logit = np.abs(generator.normal(1.6, 1.6, SAMPLES))
        hit = (generator.random(SAMPLES) < expit(logit)).astype(float)
        counts = generator.multinomial(SAMPLES, np.full(SAMPLES, 1 / SAMPLES), size=RESAMPLES).astype(float)
        once = np.ones((1, SAMPLES))
        sharp, flat = expit(1.06 * logit), expit(0.94 * logit)  # errors on a large sample differ by less than 0.002
        drawn = [{name: error(counts, confidence, hit)} for confidence in (sharp, flat)]
        value = error(once, sharp, hit) - error(once, flat, hit)
        low, high = paired_difference(*drawn, name, float(value[0]))
        assert low <= value[0] <= high  # the hull holds the value, a basic interval need not
        told_apart += not low <= 0 <= high
    assert told_apart <= 0.2 * ROUNDS  # the basic interval: over half of the rounds for the Kolmogorov-Smirnov error


def test_intervals_of_means_are_the_basic_ones():
    after, before = {"accuracy": np.arange(101.0)}, {"accuracy": np.zeros(101)}
    assert paired_difference(after, before, "accuracy", 10.0) == pytest.approx((20.0 - 97.5, 20.0 - 2.5))
