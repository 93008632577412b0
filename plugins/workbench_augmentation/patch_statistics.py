"""What mixing does to local patches, without a network: a cheap proxy for the paper's analysis with VAEs (step 8).

Edges of clean images make their Laplacian heavy-tailed (large kurtosis). A blend adds two of them and pulls the tails
towards those of a Gaussian; a mask leaves every patch clean but those on its boundary, where it adds an edge.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from workbench_augmentation.masks import power_spectrum, radial_mean


class PatchStatistics(NamedTuple):
    """Excess kurtosis of all Laplacian responses, and their power (ring) over frequency (ring) in cycles per pixel."""

    kurtosis: float
    frequency: np.ndarray
    power: np.ndarray


def laplacian(image: np.ndarray) -> np.ndarray:
    """Sum of second differences along each spatial dim, inside the border. (sample, channel, *space) -> *space less 2."""
    space = range(2, image.ndim)
    inside = [slice(None), slice(None), *[slice(1, -1)] * len(space)]
    response = -2.0 * len(space) * image[tuple(inside)]
    for axis in space:
        for shifted in (slice(None, -2), slice(2, None)):
            neighbour = [*inside]
            neighbour[axis] = shifted
            response = response + image[tuple(neighbour)]
    return response


def patch_statistics(image: np.ndarray) -> PatchStatistics:
    """Kurtosis and radial power of the Laplacian of a batch (sample, channel, *space); NaN kurtosis where it is flat."""
    response = laplacian(np.asarray(image, dtype=np.float64))
    flat = response.reshape(-1, *response.shape[2:])
    kurtosis = float(stats.kurtosis(flat, axis=None)) if np.ptp(flat) > 0 else float("nan")
    # Without a window, what jumps from one border to the other would hide the low frequencies.
    for axis in range(1, flat.ndim):
        window = np.hanning(flat.shape[axis] + 2)[1:-1]
        flat = flat * window.reshape(-1, *[1] * (flat.ndim - 1 - axis))
    # Pictures are no inverse real FFTs: their columns fx = 0 count like all others.
    return PatchStatistics(kurtosis, *radial_mean(power_spectrum(flat), skip_edge_columns=False))
