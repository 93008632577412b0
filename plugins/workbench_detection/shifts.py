"""Covariate shifts of images: blur, noise, JPEG and contrast at five severities, the same random numbers for an image every time.

Every image, shifted or not, leaves through `eight_bit`, as if it had been saved and loaded: a detector must not tell
in-distribution from shifted images by their rounding.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from PIL import Image
from scipy import ndimage

Shift = Literal["blur", "noise", "jpeg", "contrast"]
SHIFTS: tuple[Shift, ...] = get_args(Shift)

STRENGTHS: Mapping[Shift, tuple[float, ...]] = {
    "blur": (0.5, 0.75, 1.0, 1.5, 2.0),
    "noise": (0.03, 0.05, 0.1, 0.15, 0.2),
    "jpeg": (80, 50, 30, 15, 7),
    "contrast": (0.9, 0.75, 0.6, 0.4, 0.2),
}
"""Per shift the strength at severity 1 to 5: standard deviation in pixels, standard deviation of grey values (0..1),
JPEG quality, factor on the distance to the image's mean."""


def eight_bit(images: np.ndarray) -> np.ndarray:
    """Images in 0..1 or uint8 as float32 multiples of 1/255, same shape."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.float32) / np.float32(255)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (channel, y, x), standard deviation in pixels, borders mirrored."""
    return ndimage.gaussian_filter(image, sigma=(0, sigma, sigma), mode="reflect")


def noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Independent Gaussian noise, `deviation` in units of 0..1; clipped later by `eight_bit`."""
    return image + deviation * rng.standard_normal(image.shape, dtype=np.float32)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Through a JPEG file of this quality (1..95, Pillow's chroma subsampling 4:2:0); 1 or 3 channels."""
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=int(quality), subsampling=2)
    with Image.open(buffer) as decoded:
        values = np.asarray(decoded, dtype=np.float32) / 255
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Distances to the image's mean grey value times `factor`."""
    mean = image.mean(dtype=np.float64)
    return (mean + factor * (image - mean)).astype(np.float32)


def apply_shift(
    images: np.ndarray, shift: Shift | None, strength: float, *, indices: Sequence[int], seed: int
) -> np.ndarray:
    """Images (sample, channel, y, x), uint8 or float 0..1, after a shift; float32 multiples of 1/255 in 0..1.

    Args:
        images: the unshifted images.
        shift: which one; None only sends the images through `eight_bit` (the control).
        strength: its strength in physical units, see `STRENGTHS`.
        indices: of the images in their data set; the noise of an image depends on (seed, index) and on nothing else.
        seed: seed of the run.
    """
    clean = eight_bit(images)
    if shift is None:
        return clean
    shifted = np.empty_like(clean)
    for position, (index, image) in enumerate(zip(indices, clean, strict=True)):
        if shift == "blur":
            shifted[position] = blur(image, strength)
        elif shift == "noise":
            shifted[position] = noise(image, strength, np.random.default_rng((seed, int(index))))
        elif shift == "jpeg":
            shifted[position] = jpeg(image, int(strength))
        else:
            shifted[position] = contrast(image, strength)
    return eight_bit(shifted)
