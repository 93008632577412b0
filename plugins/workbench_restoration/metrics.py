"""Full-reference image metrics of this family: PSNR, MAE, SSIM, MS-SSIM and the Y channel; all differentiable.

Images are (sample, channel, y, x) tensors; every metric returns one value per image, shape (sample,), in the dtype of
its inputs. `data_range` is L, the distance between black and white: 1 for the workbench's float images, 255 for 8-bit
values. A wrong L is the classic mistake: 0..1 images with L = 255 score about 1 whatever they show.

SSIM: Wang, Bovik, Sheikh, Simoncelli (2004), Gaussian window 11x11 with sigma 1.5, biased variances, *valid* windows
only (no padding: zero padding biases the borders). MS-SSIM: Wang, Simoncelli, Bovik (2003), equation 7. Its factors
are averaged over space first and raised to their powers afterwards, per image and channel, then averaged over channels.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional
from workbench import InputError

__all__ = [
    "MS_SSIM_WEIGHTS",
    "crop_border",
    "gaussian_filter",
    "luma",
    "mean_absolute_error",
    "mean_squared_error",
    "ms_ssim",
    "psnr",
    "quantize",
    "scale_weights",
    "scales_that_fit",
    "ssim",
    "ssim_maps",
]

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, finest first."""

_SMALLEST_FACTOR = 1e-6


def mean_squared_error(image: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference per image, (sample,)."""
    _same_shape(image, target)
    return (image - target).square().flatten(1).mean(1)


def mean_absolute_error(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference per image, (sample,)."""
    _same_shape(image, target)
    return (image - target).abs().flatten(1).mean(1)


def psnr(image: Tensor, target: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio per image in dB, 10 log10(L^2 / mse), (sample,); infinite for equal images.

    Published tables average these decibels over images; they do not take the decibels of a mean error.
    """
    return 10 * torch.log10(data_range**2 / mean_squared_error(image, target))


def ssim_maps(
    image: Tensor,
    target: Tensor,
    *,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    data_range: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure maps at one scale.

    l = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 + C1) and cs = (2 cov + C2) / (var_x + var_y + C2), with C1 = (k1 L)^2,
    C2 = (k2 L)^2 and the moments taken under the Gaussian window. Their product is the SSIM map.

    Args:
        image: (sample, channel, y, x), at least `window` pixels a side.
        target: the same shape.
        window: side of the window in pixels, odd.
        sigma: standard deviation of the window in pixels.
        k1: stabiliser of the luminance term.
        k2: stabiliser of the contrast-structure term.
        data_range: L.

    Returns:
        Two maps (sample, channel, y - window + 1, x - window + 1); pixel (i, j) is centred on (i, j) + window // 2.

    Raises:
        InputError: shapes differ, or the images are smaller than the window.
    """
    _same_shape(image, target)
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    moments = gaussian_filter(
        torch.stack([image, target, image * image, target * target, image * target]), window=window, sigma=sigma
    )
    mean_x, mean_y, square_x, square_y, product = moments
    squares, cross = mean_x.square() + mean_y.square(), mean_x * mean_y
    luminance = (2 * cross + c1) / (squares + c1)
    # Rounding can leave a variance at -1e-8; C2 keeps the quotient sane, so nothing is clamped here.
    contrast_structure = (2 * (product - cross) + c2) / (square_x + square_y - squares + c2)
    return luminance, contrast_structure


def ssim(
    image: Tensor,
    target: Tensor,
    *,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    data_range: float = 1.0,
) -> Tensor:
    """Structural similarity per image, at most 1: mean of the SSIM map over space and channels, (sample,)."""
    luminance, contrast_structure = ssim_maps(
        image, target, window=window, sigma=sigma, k1=k1, k2=k2, data_range=data_range
    )
    return (luminance * contrast_structure).flatten(1).mean(1)


def ms_ssim(
    image: Tensor,
    target: Tensor,
    *,
    scales: int | None = None,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    data_range: float = 1.0,
) -> Tensor:
    """Multi-scale structural similarity per image, in 0..1, (sample,).

    mean(l_M cs_M)^{w_M} prod_{j<M} mean(cs_j)^{w_j}; between scales the images are averaged over 2x2 blocks, after
    cropping odd sizes to even ones (some libraries pad instead, and differ on such sizes). Factors are clamped at 1e-6
    from below, because early reconstructions can have negative covariance and a fractional power of it is not a number.

    Args:
        image: (sample, channel, y, x).
        target: the same shape.
        scales: M, 1 to 5; None takes as many as the image has room for (`scales_that_fit`). With fewer than five, the
            first M weights are renormalised to sum to 1.
        window: as in `ssim_maps`, and so are the others.
        sigma: of the window.
        k1: stabiliser.
        k2: stabiliser.
        data_range: L.

    Raises:
        InputError: shapes differ, or the images have no room for that many scales.
    """
    _same_shape(image, target)
    height, width = image.shape[-2:]
    room = scales_that_fit(height, width, window=window)
    scales = room if scales is None else scales
    if not 1 <= scales <= max(room, 1):
        raise InputError("scales", expected=f"1 to {room} for images of {height}x{width} pixels", got=str(scales))
    score = image.new_ones(image.shape[:2])
    for index, weight in enumerate(scale_weights(scales)):
        luminance, contrast_structure = ssim_maps(
            image, target, window=window, sigma=sigma, k1=k1, k2=k2, data_range=data_range
        )
        last = index == scales - 1
        factor = (luminance * contrast_structure if last else contrast_structure).mean((-2, -1))
        score = score * factor.clamp(min=_SMALLEST_FACTOR) ** weight
        if not last:
            image, target = _halve(image), _halve(target)
    return score.mean(1)


def scales_that_fit(height: int, width: int, *, window: int = 11) -> int:
    """Scales at which a valid window fits: the M <= 5 with min(height, width) // 2^(M-1) >= window; at least 0.

    With the 11-pixel window: 1 from 11 pixels, 2 from 22, 3 from 44, 4 from 88, 5 from 176.
    """
    side, scales = min(height, width), 0
    while scales < len(MS_SSIM_WEIGHTS) and side >= window:
        side, scales = side // 2, scales + 1
    return scales


def scale_weights(scales: int) -> tuple[float, ...]:
    """The first `scales` exponents of MS-SSIM, renormalised to sum to 1; all five as published (they sum to 1.0001)."""
    kept = MS_SSIM_WEIGHTS[:scales]
    if scales == len(MS_SSIM_WEIGHTS):
        return kept
    return tuple(weight / sum(kept) for weight in kept)


def gaussian_filter(image: Tensor, *, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Gaussian average of every valid window: (..., y, x) to (..., y - window + 1, x - window + 1).

    Separable, and computed as two products with banded matrices: the same sums as two 1-d correlations, 9 to 40 times
    faster on a CPU, gradients included, because they run in the matrix library.

    Raises:
        InputError: the image is smaller than the window.
    """
    height, width = image.shape[-2:]
    if min(height, width) < window:
        raise InputError("image", expected=f"at least {window} pixels a side (the window)", got=f"{height}x{width}")
    rows = _band(height, window, sigma, image.dtype, image.device)
    columns = _band(width, window, sigma, image.dtype, image.device)
    return rows @ image @ columns.T


def luma(image: Tensor, *, rounded: bool = False) -> Tensor:
    """Y of an RGB image in 0..1 as restoration papers measure it: (sample, 3, y, x) to (sample, 1, y, x).

    Y = 16 + (65.481 R + 128.553 G + 24.966 B), divided by 255: studio range, 16/255 to 235/255. (Full-range BT.601
    luma gives figures 1.3 dB lower.) Grey images are returned as they are.

    Args:
        image: one or three channels in 0..1, RGB order.
        rounded: round Y to whole 8-bit steps, as protocols working on uint8 do (0.03 dB at 34 dB). Not differentiable.
    """
    if image.shape[1] == 1:
        return image
    if image.shape[1] != 3:
        raise InputError("image", expected="1 (grey) or 3 (RGB) channels", got=f"{image.shape[1]} channels")
    weights = torch.tensor((65.481, 128.553, 24.966), dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
    y = ((image * weights).sum(1, keepdim=True) + 16) / 255
    return quantize(y) if rounded else y


def quantize(image: Tensor) -> Tensor:
    """Clip to 0..1 and round half to even to 8-bit steps, as published figures are computed; stays in 0..1."""
    return (image.clamp(0, 1) * 255).round() / 255


def crop_border(image: Tensor, border: int) -> Tensor:
    """Drop `border` pixels on each of the four sides; super-resolution protocols use the scale factor."""
    return image[..., border : image.shape[-2] - border, border : image.shape[-1] - border]


def _halve(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    return functional.avg_pool2d(image[..., : height - height % 2, : width - width % 2], 2)


@functools.lru_cache(maxsize=64)
def _band(length: int, window: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(length - window + 1, length) matrix whose rows are the shifted window."""
    # A tensor made inside a caller's inference_mode could never be used for training again, and this one is kept.
    with torch.inference_mode(False), torch.no_grad():
        offset = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
        weights = torch.exp(-offset.square() / (2 * sigma**2))
        weights = weights / weights.sum()
        out = length - window + 1
        band = torch.zeros(out, length, dtype=torch.float64)
        position = torch.arange(out).unsqueeze(1) + torch.arange(window)
        band.scatter_(1, position, weights.expand(out, window))
        return band.to(device=device, dtype=dtype)


def _same_shape(image: Tensor, target: Tensor) -> None:
    if image.shape != target.shape or image.ndim != 4:
        raise InputError(
            "image",
            expected=f"the target's shape (sample, channel, y, x), here {tuple(target.shape)}",
            got=str(tuple(image.shape)),
        )
