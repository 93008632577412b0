"""Masks of mixed-sample augmentation, as pure functions of a seeded random source: FMix's, and the boxes of its rivals.

FMix (Harris et al. 2020, arXiv 2002.12047) thresholds noise whose Fourier amplitude falls as f^-delta. Two spectra:

- `isotropic`: the method as the paper defines it.
- `official_code`: what the official repository computes. It reads its array of random numbers along the wrong axis, so
  frequency rows 0 and 1 serve as real and imaginary part and only the horizontal frequencies 0 and +-1 occur; the
  paper's numbers were produced with it. `official_mask` repeats its calls in its order, bit for bit.

Numpy throughout; shapes have 1 to 3 sides, odd ones included.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage, stats
from workbench import InputError

Spectrum = Literal["isotropic", "official_code"]
TRIES = 1000
"""Rectangles tried by Random Erasing; the paper tries for ever, which never ends on pictures that are very narrow."""


class MaskDraw(NamedTuple):
    """One draw: lambda, the grey image before and the mask after thresholding, both (*shape)."""

    lam: float
    grey: np.ndarray
    mask: np.ndarray


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple, or InputError unless it has 1 to 3 sides of at least 2."""
    sides = tuple(int(side) for side in shape)
    if not 1 <= len(sides) <= 3 or min(sides) < 2:
        raise InputError("shape", expected="1 to 3 sides of at least 2 pixels", got=str(sides))
    return sides


def frequency_magnitude(shape: Sequence[int]) -> np.ndarray:
    """Step 2: |f| in cycles per sample on the real-FFT half grid, (*shape[:-1], shape[-1] // 2 + 1)."""
    axes = [np.fft.fftfreq(side) for side in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    return np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij")))


def amplitude(magnitude: np.ndarray, shape: Sequence[int], decay: float) -> np.ndarray:
    """Step 2: 1 / max(f, 1 / max(shape))^delta. f = 0 gets the lowest frequency's scale: it only shifts the mean."""
    return 1.0 / np.maximum(magnitude, 1.0 / max(shape)) ** decay


def _unit_range(grey: np.ndarray) -> np.ndarray:
    grey = grey - grey.min()
    return grey / grey.max()


def isotropic_grey(shape: Sequence[int], decay: float, rng: np.random.Generator) -> np.ndarray:
    """Step 2 as in the paper: complex Gaussian spectrum times f^-delta, back-transformed, scaled to [0, 1]. (*shape) f8."""
    magnitude = frequency_magnitude(shape)
    real, imaginary = rng.standard_normal((2, *magnitude.shape))
    spectrum = (real + 1j * imaginary) * amplitude(magnitude, shape, decay)
    return _unit_range(np.fft.irfftn(spectrum, s=tuple(shape), axes=range(len(shape))))


def _official_magnitude(shape: Sequence[int]) -> np.ndarray:
    """|f| on the repository's grid: full in 1-D, (h, z, half w) in 3-D, w // 2 + 2 columns for odd w (one too many)."""
    first = np.fft.fftfreq(shape[0])
    if len(shape) == 1:
        return np.abs(first)
    width = shape[1]
    half = np.fft.fftfreq(width)[: width // 2 + (2 if width % 2 else 1)]
    if len(shape) == 2:
        return np.sqrt(half**2 + first[:, None] ** 2)
    # The repository sums in this order, (x + y) + z; another order would differ in the last bit.
    return np.sqrt(half**2 + first[:, None, None] ** 2 + np.fft.fftfreq(shape[2])[:, None] ** 2)


def official_grey(shape: Sequence[int], decay: float, numpy_random: np.random.RandomState) -> np.ndarray:
    """Step 2 as the official code computes it (step 5): one `randn` of shape (1, *grid, 2). Returns (*shape) f8."""
    magnitude = _official_magnitude(shape)
    scale = amplitude(magnitude, shape, decay)
    gaussian = numpy_random.randn(1, *magnitude.shape, 2)[0] * scale[..., None]
    # Frequency rows 0 and 1 taken for real and imaginary part; what is left has the two last axes (half grid, 2),
    # which irfftn zero-pads: that is the whole finding.
    spectrum = gaussian[0] + 1j * gaussian[1]
    return _unit_range(np.fft.irfftn(spectrum, s=tuple(shape), axes=range(len(shape))))


def binarise(grey: np.ndarray, lam: float, round_up: bool, max_soft: float = 0.0) -> np.ndarray:
    """Step 3: the k = ceil or floor(lam n) largest grey values become 1, the rest 0, so the mean is lam within 1/n.

    With `max_soft` > 0 the ranks within int(n min(max_soft, lam, 1 - lam)) of k fall linearly from 1 to 0.

    Args:
        grey: (*shape) floats, without ties.
        lam: share of ones, in [0, 1].
        round_up: ceil rather than floor; the paper tosses a coin.
        max_soft: half-width of the soft edge as a share of the pixels, in [0, 0.5).

    Returns:
        (*shape) f8 in [0, 1].
    """
    count = grey.size
    order = np.argsort(grey, axis=None)[::-1]
    ones = (math.ceil if round_up else math.floor)(lam * count)
    soft = int(count * min(max_soft, lam, 1.0 - lam))
    values = np.zeros(count)
    values[: ones - soft] = 1.0
    values[ones - soft : ones + soft] = np.linspace(1.0, 0.0, 2 * soft)
    mask = np.empty(count)
    mask[order] = values
    return mask.reshape(grey.shape)


def beta_parameters(alpha: float, reformulate: bool) -> tuple[float, float]:
    """Step 1: lam ~ Beta(alpha, alpha); reformulated (the loss uses the first label only) Beta(alpha + 1, alpha)."""
    return (alpha + 1.0, alpha) if reformulate else (alpha, alpha)


def sample_mask(
    shape: Sequence[int],
    rng: np.random.Generator,
    *,
    alpha: float = 1.0,
    decay: float = 3.0,
    max_soft: float = 0.0,
    reformulate: bool = False,
    lam: float | None = None,
) -> MaskDraw:
    """Steps 1 to 3 with the `isotropic` spectrum; `lam` fixes lambda instead of drawing it."""
    if lam is None:
        lam = float(rng.beta(*beta_parameters(alpha, reformulate)))
    grey = isotropic_grey(shape, decay, rng)
    return MaskDraw(lam, grey, binarise(grey, lam, bool(rng.random() > 0.5), max_soft))


def official_mask(
    shape: Sequence[int],
    numpy_random: np.random.RandomState,
    python_random: random.Random,
    *,
    alpha: float = 1.0,
    decay: float = 3.0,
    max_soft: float = 0.0,
    reformulate: bool = False,
    lam: float | None = None,
) -> MaskDraw:
    """Steps 1 to 3 with the repository's spectrum and its order of calls: scipy beta, numpy randn, Python random.

    After `np.random.seed(s); random.seed(s)` the repository's `sample_mask` returns, bit for bit, what this returns for
    `RandomState(s)` and `Random(s)`. Its batch permutation, drawn last, is `numpy_random.permutation(n)`.
    """
    if lam is None:
        lam = float(stats.beta.rvs(*beta_parameters(alpha, reformulate), random_state=numpy_random))
    grey = official_grey(shape, decay, numpy_random)
    return MaskDraw(lam, grey, binarise(grey, lam, python_random.random() > 0.5, max_soft))


def cutout_box(space: Sequence[int], length: int, rng: np.random.Generator) -> tuple[slice, ...]:
    """Cutout (DeVries & Taylor 2017, arXiv 1708.04552): a cube of side `length`, centre uniform over the pixels, clipped."""
    centres = [int(rng.integers(side)) for side in space]
    return tuple(
        slice(max(0, centre - length // 2), min(side, centre - length // 2 + length))
        for centre, side in zip(centres, space, strict=True)
    )


def random_erasing_box(
    space: Sequence[int],
    rng: np.random.Generator,
    *,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> tuple[slice, ...] | None:
    """Random Erasing (Zhong et al. 2020, arXiv 1708.04896), Algorithm 1 with its constants: a rectangle wholly inside.

    Returns:
        (rows, columns), or None where nothing is erased. The caller fills it with uniform noise.
    """
    height, width = space
    if rng.random() >= probability:
        return None
    for _ in range(TRIES):
        target = rng.uniform(*area) * height * width
        ratio = rng.uniform(*aspect)
        rows, columns = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        top, left = int(rng.integers(height)), int(rng.integers(width))
        if top + rows <= height and left + columns <= width:
            return slice(top, top + rows), slice(left, left + columns)
    return None


def power_spectrum(images: np.ndarray) -> np.ndarray:
    """Mean of |FFT|^2 over the images, each less its mean; zero frequency in the centre. (image, *shape) -> (*shape) f8."""
    space = tuple(range(1, images.ndim))
    centred = images - images.mean(axis=space, keepdims=True)
    return np.fft.fftshift((np.abs(np.fft.fftn(centred, axes=space)) ** 2).mean(axis=0))


def radial_mean(power: np.ndarray, *, skip_edge_columns: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a centred power spectrum over rings of width 1 / max(shape), from the lowest frequency to 0.5.

    Args:
        power: (*shape), as from `power_spectrum`.
        skip_edge_columns: leave out the columns fx = 0 and fx = Nyquist, whose variance a real inverse FFT halves (it
            drops the anti-Hermitian part). Not in 1-D, where f = 0 is no ring and only Nyquist is left out.

    Returns:
        frequency (ring) in cycles per pixel and mean power (ring); NaN for a ring without points.
    """
    shape = power.shape
    axes = [np.fft.fftshift(np.fft.fftfreq(side)) for side in shape]
    magnitude = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij")))
    if skip_edge_columns:
        columns = np.abs(axes[-1])
        magnitude = np.where((columns == 0.5) | (columns == 0.0), np.nan, magnitude)
    step = 1.0 / max(shape)
    ring = np.rint(np.nan_to_num(magnitude, nan=0.0) / step).astype(int)
    rings = np.arange(1, max(shape) // 2 + 1)
    count = np.bincount(ring.ravel(), minlength=len(rings) + 1)[rings]
    total = np.bincount(ring.ravel(), weights=power.ravel(), minlength=len(rings) + 1)[rings]
    # The mean frequency of a ring's own points, not the ring's nominal one: at low frequencies they differ.
    summed = np.bincount(ring.ravel(), weights=np.nan_to_num(magnitude).ravel(), minlength=len(rings) + 1)[rings]
    with np.errstate(invalid="ignore"):
        return summed / count, total / count


def spectral_slope(frequency: np.ndarray, power: np.ndarray, low: float, high: float) -> float:
    """Least-squares slope of log power against log frequency for low <= f <= high; NaN with fewer than 3 rings."""
    keep = (frequency >= low) & (frequency <= high) & (power > 0)
    if keep.sum() < 3:
        return math.nan
    return float(stats.linregress(np.log(frequency[keep]), np.log(power[keep])).slope)


def count_components(mask: np.ndarray) -> int:
    """Number of connected foreground components (mask > 1/2; neighbours share a face)."""
    return int(ndimage.label(mask > 0.5)[1])


def boundary_length(mask: np.ndarray) -> int:
    """Number of neighbouring pixel pairs (sharing a face) of which one is foreground and the other is not."""
    foreground = mask > 0.5
    return int(sum(np.count_nonzero(np.diff(foreground, axis=axis)) for axis in range(mask.ndim)))
