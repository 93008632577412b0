"""Are whole distributions calibrated: kernel and density errors, and tests by kernel or by labels drawn by chance.

Probabilities (sample, class) and labels, as in `workbench.toolkit.probability`. Definitions: Widmann et al. (2019),
Vaicenavicius et al. (2019), Popordanoska et al. (2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from workbench.errors import InputError
from workbench.toolkit.probability import check_probability

__all__ = [
    "CalibrationTest",
    "canonical_calibration_error",
    "consistency_test",
    "kernel_calibration_error",
    "kernel_calibration_test",
]

Float = NDArray[np.float64]
_BLOCK_PAIRS = 2_000_000
_FLOOR = 1e-25
"""Probabilities below this count as this where their logarithm is taken."""


@dataclass(frozen=True)
class CalibrationTest:
    """A test of the hypothesis that probabilities are calibrated; small p-values speak against it."""

    statistic: float
    p_value: float


def kernel_calibration_error(probability: ArrayLike, label: ArrayLike) -> float:
    """Unbiased squared kernel calibration error of whole distributions (SKCE, Widmann et al. 2019); may be negative.

    Mean over all pairs i < j of `exp(-|p_i - p_j|) <e_{y_i} - p_i, e_{y_j} - p_j>`, |.| the Euclidean norm. Its time is
    quadratic in samples.

    Args:
        probability: shape (sample, class).
        label: shape (sample,).
    """
    p, residual = _residual(probability, label)
    samples = len(p)
    if samples < 2:
        raise InputError("probability", expected="at least 2 samples", got=str(samples))
    square = np.einsum("ik,ik->i", p, p)
    total, rows = 0.0, max(1, _BLOCK_PAIRS // samples)
    for start in range(0, samples, rows):
        block = slice(start, start + rows)
        distance = np.sqrt(np.maximum(square[block, None] + square - 2 * p[block] @ p.T, 0.0))
        total += float((np.exp(-distance) * (residual[block] @ residual.T)).sum())
    own = float(np.einsum("ik,ik->", residual, residual))
    return (total - own) / (samples * (samples - 1))


def canonical_calibration_error(
    probability: ArrayLike, label: ArrayLike, *, norm: int = 2, bandwidth: float = 1.0
) -> float:
    """Distance of whole distributions from the labels that their neighbours have (Popordanoska et al. 2022), >= 0.

    Mean over samples j of `sum_k |r_jk - p_jk|^norm`, where r_j is the mean of the one-hot labels of all other samples i, weighed
    by the Dirichlet density with parameters `p_i / bandwidth + 1` at p_j. For norm 2 no root is taken, as in the official code.
    Its time is quadratic in samples.

    A wide kernel blurs: with bandwidth 1, 4 classes and 3,000 samples true probabilities have 0.093, more than when they are
    sharpened by a factor of 2 (0.087); with 0.1 it is 0.005 and 0.014. A narrow one leaves few neighbours, which costs as much.

    Args:
        probability: shape (sample, class).
        label: shape (sample,).
        norm: exponent, 1 or 2.
        bandwidth: of the kernel; methods are compared at the same one. Papers have 1, which see above.
    """
    checked, y = check_probability(probability, label)
    if norm not in (1, 2):
        raise InputError("norm", expected="1 or 2", got=repr(norm))
    if not bandwidth > 0:
        raise InputError("bandwidth", expected="a positive number", got=str(bandwidth))
    samples = len(y)
    if samples < 2:
        raise InputError("probability", expected="at least 2 samples", got=str(samples))
    p = np.clip(checked.astype(np.float64), _FLOOR, 1.0)
    log_p, onehot = np.log(p), np.zeros_like(p)
    onehot[np.arange(samples), y] = 1
    weight = p / bandwidth
    offset = special.gammaln(weight.sum(axis=1) + p.shape[1]) - special.gammaln(weight + 1).sum(axis=1)
    total, rows = 0.0, max(1, _BLOCK_PAIRS // samples)
    for start in range(0, samples, rows):
        block = slice(start, min(start + rows, samples))
        density = log_p[block] @ weight.T + offset
        own = np.arange(block.start, block.stop)
        density[own - block.start, own] = -np.inf  # a sample is no neighbour of itself
        kernel = np.exp(density - density.max(axis=1, keepdims=True))
        neighbours = kernel @ onehot / kernel.sum(axis=1, keepdims=True)
        total += float((np.abs(neighbours - p[block]) ** norm).sum())
    return total / samples


def kernel_calibration_test(probability: ArrayLike, label: ArrayLike) -> CalibrationTest:
    """Are whole distributions calibrated? The linear-time kernel test of Widmann et al. (2019), one-sided.

    The pairs (0, 1), (2, 3), ... give independent terms of the kernel error whose mean is 0 under calibration; their mean
    over its standard error is compared with the normal distribution. The samples must be in random order. It takes tens of
    thousands of samples to see what `consistency_test` with `kernel_calibration_error` sees in hundreds, at far less time.
    """
    p, residual = _residual(probability, label)
    pairs = len(p) // 2
    if pairs < 2:
        raise InputError("probability", expected="at least 4 samples", got=str(len(p)))
    first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    distance = np.linalg.norm(p[first] - p[second], axis=1)
    term = np.exp(-distance) * np.einsum("ik,ik->i", residual[first], residual[second])
    error = float(term.std(ddof=1)) / np.sqrt(pairs)
    mean = float(term.mean())
    return CalibrationTest(mean, float(special.ndtr(-mean / error)) if error > 0 else 1.0)


def consistency_test(
    probability: ArrayLike,
    label: ArrayLike,
    statistic: Callable[[Float, NDArray[np.int64]], float],
    *,
    rng: np.random.Generator,
    draws: int = 200,
) -> CalibrationTest:
    """Is a statistic larger than if labels were drawn from the probabilities? Consistency resampling, one-sided.

    The p-value `(1 + number of draws at least as large) / (1 + draws)` holds at any number of samples.

    Args:
        probability: shape (sample, class).
        label: shape (sample,).
        statistic: of (probability, label), larger is worse, e.g. `expected_calibration_error`.
        rng: source of the draws.
        draws: number of label sets drawn; the p-value is at least 1 / (1 + draws).
    """
    checked, y = check_probability(probability, label)
    p = checked.astype(np.float64)
    value = statistic(p, y)
    cumulated = np.cumsum(p, axis=1)
    cumulated[:, -1] = np.inf  # rounding must not leave a gap at the top
    larger = 0
    for _ in range(draws):
        drawn = (rng.random((len(p), 1)) >= cumulated).sum(axis=1)
        larger += statistic(p, drawn) >= value
    return CalibrationTest(float(value), (1 + larger) / (1 + draws))


def _residual(probability: ArrayLike, label: ArrayLike) -> tuple[Float, Float]:
    """Probabilities and one-hot labels less probabilities, float64 (sample, class)."""
    checked, y = check_probability(probability, label)
    p = checked.astype(np.float64)
    residual = -p
    residual[np.arange(len(y)), y] += 1
    return p, residual
