"""Calibration errors of events without bins of a chosen number: kernel, density and sweep errors.

A score in 0..1 and its outcome per event, as in `workbench.toolkit.reliability`. Definitions: Kumar et al. (2018), Zhang et al.
(2020), Roelofs et al. (2022).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import signal

from workbench.errors import InputError
from workbench.toolkit.reliability import Norm, binned_calibration_error, check_events

__all__ = ["density_calibration_error", "maximum_mean_calibration_error", "sweep_calibration_error"]

Float = NDArray[np.float64]
_GRID = 1 << 13


def maximum_mean_calibration_error(score: ArrayLike, outcome: ArrayLike, *, width: float = 0.4) -> float:
    """MMCE (Kumar et al. 2018): `sqrt(sum_ij d_i d_j exp(-|s_i - s_j| / width)) / N` with d = outcome - score.

    Exact, and linear in time after sorting: the exponential of a sorted difference is a product.

    Args:
        score: probabilities in 0..1, shape (event,).
        outcome: 0/1, shape (event,).
        width: of the Laplacian kernel.
    """
    p, hit = check_events(score, outcome)
    if not width > 0.01:
        raise InputError("width", expected="a kernel width above 0.01", got=str(width))
    order = np.argsort(p, kind="stable")
    s, d = p[order], (hit - p)[order]
    growth = np.exp((s - 0.5) / width)
    below = np.cumsum(d * growth) / growth  # sum over j <= i of d_j exp(-(s_i - s_j) / width)
    total = 2 * float(d @ below) - float(d @ d)
    return float(np.sqrt(max(total, 0.0)) / p.size)


def density_calibration_error(score: ArrayLike, outcome: ArrayLike, *, norm: int = 1) -> float:
    """KDE-ECE (Zhang et al. 2020): mean of |score - rate(score)|^norm under a kernel density of the scores.

    Triweight kernel of standard deviation `std(scores of outcome 1) * (2 N)^(-1/5)`, data mirrored at 0 and 1, rate the ratio
    of the densities of events with outcome 1 and of all events; evaluated by FFT on a grid. For norm 2 no root is taken,
    as in the official code. With a deviation of 0 (all scores equal) it is the plain error of the mean.

    Args:
        score: probabilities in 0..1, shape (event,).
        outcome: 0/1, shape (event,).
        norm: exponent, 1 or 2.
    """
    p, hit = check_events(score, outcome)
    if norm not in (1, 2):
        raise InputError("norm", expected="1 or 2", got=repr(norm))
    p = np.clip(p, 0.0, 1.0)
    positive = p[hit > 0]
    bandwidth = float(np.std(positive if positive.size > 1 else p)) * (2 * p.size) ** -0.2
    if bandwidth < 1e-6:
        return float(abs(p.mean() - hit.mean()) ** norm)
    grid = np.linspace(-1.0, 2.0, 3 * _GRID + 1)
    step = grid[1] - grid[0]
    reach = int(np.ceil(3 * bandwidth / step))  # a triweight's support is 3 standard deviations
    offset = np.arange(-reach, reach + 1) * step / (3 * bandwidth)
    kernel = np.clip(1 - offset**2, 0, None) ** 3
    kernel /= kernel.sum()
    every, found = (_mirrored_density(p, weight, grid, kernel) for weight in (np.ones_like(hit), hit))
    inside = (grid >= 0) & (grid <= 1) & (every > 1e-9)
    s, density = grid[inside], every[inside]
    gap = np.abs(s - found[inside] / density) ** norm
    return float((gap * density).sum() / density.sum())


def sweep_calibration_error(score: ArrayLike, outcome: ArrayLike, *, norm: Norm = 1) -> float:
    """Equal-mass calibration error with the most bins whose outcome rates still rise (Roelofs et al. 2022).

    The number of bins grows from 1 until the rates of consecutive bins first fall; the last number before is used. Norms as in
    `binned_calibration_error`; the paper has 1 and 2.
    """
    p, hit = check_events(score, outcome)
    ordered = hit[np.argsort(p, kind="stable")]
    found = np.concatenate([[0.0], np.cumsum(ordered)])
    # where no outcome falls no rate does, whatever the bins: all right, say, which would try every number of them
    bins = p.size if (np.diff(ordered) >= 0).all() else 1
    while bins < p.size:
        size, extra = divmod(p.size, bins + 1)
        edges = np.arange(bins + 2) * size + np.minimum(np.arange(bins + 2), extra)  # as numpy.array_split
        if (np.diff(np.diff(found[edges]) / np.diff(edges)) < -1e-12).any():
            break
        bins += 1
    return binned_calibration_error(p, hit, n_bins=bins, binning="mass", norm=norm)


def _mirrored_density(p: Float, weight: Float, grid: Float, kernel: Float) -> Float:
    """Kernel sum of weighted points, mirrored at 0 and 1, on a grid; points are shared between neighbouring nodes."""
    low = p < 0.5
    points = np.concatenate([p, -p[low], 2 - p[~low]])
    weights = np.concatenate([weight, weight[low], weight[~low]])
    place = (points - grid[0]) / (grid[1] - grid[0])
    left = np.clip(np.floor(place).astype(np.int64), 0, len(grid) - 2)
    share = place - left
    mass = np.bincount(left, weights=weights * (1 - share), minlength=len(grid))
    mass += np.bincount(left + 1, weights=weights * share, minlength=len(grid))
    return np.asarray(signal.fftconvolve(mass, kernel, mode="same"))
