"""Seeded augmentation of whole batches: random crop with padding and horizontal flip, vectorised, on any device.

He et al. 2016 (arXiv:1512.03385, section 4.2), after Lee et al. 2015: pad by 4 on each side, crop back to the original
size at a random place, flip half of the pictures. Random numbers come from a CPU generator: every device draws alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.errors import InputError

__all__ = ["flip_crop", "random_crop", "random_flip"]


def random_crop(image: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each picture by -padding..padding pixels in y and x, each shift equally likely; what comes in is 0 (black).

    The same as padding with zeros and cropping back to the original size at a random place.

    Args:
        image: (sample, channel, y, x), any type, any device.
        padding: pixels on each side, at least 0.
        generator: a CPU generator.

    Raises:
        InputError: `image` has other dims, or `padding` is negative.
    """
    _check(image)
    if padding < 0:
        raise InputError("padding", expected="at least 0", got=str(padding))
    sample, _, height, width = image.shape
    shift = torch.randint(2 * padding + 1, (2, sample), generator=generator).to(image.device)
    padded = F.pad(image, (padding,) * 4)
    row = shift[0, :, None] + torch.arange(height, device=image.device)  # (sample, y)
    column = shift[1, :, None] + torch.arange(width, device=image.device)  # (sample, x)
    which = torch.arange(sample, device=image.device)
    # Indices on both sides of the sliced channel dim put that dim last.
    return padded[which[:, None, None], :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2).contiguous()


def random_flip(image: Tensor, generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """Mirror each picture left to right with this probability.

    Args:
        image: (sample, channel, y, x), any type, any device.
        generator: a CPU generator.
        probability: in 0..1.

    Raises:
        InputError: `image` has other dims, or `probability` is out of range.
    """
    _check(image)
    if not 0 <= probability <= 1:
        raise InputError("probability", expected="0 to 1", got=str(probability))
    flipped = (torch.rand(len(image), generator=generator) < probability).to(image.device)
    return torch.where(flipped[:, None, None, None], image.flip(-1), image)


def flip_crop(
    padding: int = 4, flip: bool = True
) -> Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]:
    """The transform for `fit`: random crop with `padding`, then a random horizontal flip; labels stay as they are."""

    def transform(image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        image = random_crop(image, padding, generator)
        return (random_flip(image, generator) if flip else image), label

    return transform


def _check(image: Tensor) -> None:
    if image.ndim != 4:
        raise InputError("image", expected="(sample, channel, y, x)", got=f"shape {tuple(image.shape)}")
