"""Bicubic resizing as MATLAB's imresize does it, differentiable: the degradation of published super-resolution figures.

Cubic kernel with a = -0.5, stretched when shrinking (antialiasing), borders extended symmetrically (the edge pixel is
repeated). torch's antialiased bicubic uses the same kernel but renormalises it at the borders, which is wrong there by
up to 15/255; so images are extended first and cropped afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from workbench import InputError

__all__ = ["crop_to_multiple", "downscale", "extend_symmetric", "upscale"]


def downscale(image: Tensor, factor: int) -> Tensor:
    """Shrink by a whole factor: (sample, channel, y, x) to (sample, channel, y / factor, x / factor).

    The result can overshoot 0..1 slightly; published protocols clip and round it to 8 bits (`metrics.quantize`).

    Raises:
        InputError: y or x is not a multiple of the factor (see `crop_to_multiple`).
    """
    height, width = image.shape[-2:]
    if height % factor or width % factor:
        raise InputError(
            "image",
            expected=f"sides that are multiples of {factor}",
            got=f"{height}x{width}",
            hint="Crop with crop_to_multiple first.",
        )
    # The stretched kernel reaches 2 * factor pixels; 4 * factor keeps torch's border handling out of what is kept.
    padded = extend_symmetric(image, 4 * factor)
    small = _interpolate(padded, (padded.shape[-2] // factor, padded.shape[-1] // factor))
    return small[..., 4:-4, 4:-4]


def upscale(image: Tensor, factor: int) -> Tensor:
    """Enlarge by a whole factor: (sample, channel, y, x) to (sample, channel, y * factor, x * factor)."""
    padded = extend_symmetric(image, 4)
    large = _interpolate(padded, (padded.shape[-2] * factor, padded.shape[-1] * factor))
    border = 4 * factor
    return large[..., border:-border, border:-border]


def crop_to_multiple(image: Tensor, factor: int) -> Tensor:
    """Drop rows at the bottom and columns at the right until both sides are multiples of `factor`."""
    height, width = image.shape[-2:]
    return image[..., : height - height % factor, : width - width % factor]


def extend_symmetric(image: Tensor, border: int) -> Tensor:
    """Mirror the image about its edges with the edge pixel repeated (... c b a | a b c ...), as often as needed."""
    height, width = image.shape[-2:]
    rows, columns = (_mirrored(length, border, image.device) for length in (height, width))
    return image[..., rows, :][..., columns]


def _mirrored(length: int, border: int, device: torch.device) -> Tensor:
    position = torch.arange(-border, length + border, device=device) % (2 * length)
    return torch.where(position < length, position, 2 * length - 1 - position)


def _interpolate(image: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
