"""MultiColorMNIST: digits inside a frame of 32 coloured patches, each of which predicts the class by itself until it is shifted.

After Lin et al. (2023), arXiv 2309.17230. There are 10 classes and 10 colours. In training every patch has the colour that its
own permutation gives to the label; out of distribution a patch takes, with probability p and independently of the others, a
colour drawn from all ten. So a patch shows its class's colour with probability 1 - p + p / 10, and the digit is the only feature
that never changes. The geometry is ours, as the paper's is not known: a 9 x 9 grid of cells, the ring of exactly 32 cells for the
patches and the inner 7 x 7 for the digit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from workbench import InputError

PATCHES, COLOURS, CELLS = 32, 10, 9
PALETTE = np.array(
    [(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
     (140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207)], dtype=np.uint8,
)  # fmt: skip
"""Ten colours that people tell apart, (colour, RGB)."""


@dataclass(frozen=True)
class Frame:
    """Which colour each patch gives to each class: `permutation` (patch, class), an independent permutation a patch."""

    permutation: NDArray[np.int64]

    def colours(self, label: NDArray[np.int64], p: float, rng: np.random.Generator) -> NDArray[np.int64]:
        """Colour of each patch, (sample, patch): the label's own, or with probability p one of all ten."""
        own = self.permutation[:, label].T
        shape = own.shape
        return np.where(rng.random(shape) < p, rng.integers(0, COLOURS, shape), own)


def draw_frame(rng: np.random.Generator) -> Frame:
    """An independent permutation for each of the 32 patches."""
    return Frame(np.stack([rng.permutation(COLOURS) for _ in range(PATCHES)]))


def ring() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the ring's 32 cells in the 9 x 9 grid, in reading order."""
    y, x = np.mgrid[:CELLS, :CELLS]
    outer = (y % (CELLS - 1) == 0) | (x % (CELLS - 1) == 0)
    return y[outer], x[outer]


def prepare_digits(image: Tensor) -> Tensor:
    """Grey pictures scaled to 7 cells, (sample, side, side) uint8: 28 x 28 stays, 8 x 8 becomes 14 x 14.

    Args:
        image: (sample, 1, y, x), square, float in 0..1 or uint8.

    Raises:
        InputError: not grey or not square.
    """
    if image.ndim != 4 or image.shape[1] != 1 or image.shape[2] != image.shape[3]:
        raise InputError(
            "data['image']", expected="square grey pictures (sample, 1, y, x)", got=str(tuple(image.shape))
        )
    values = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    side = (CELLS - 2) * max(2, math.ceil(image.shape[2] / (CELLS - 2)))
    if side != image.shape[2]:
        values = torch.nn.functional.interpolate(values, size=(side, side), mode="bilinear")
    return (values[:, 0].clamp(0, 1) * 255).round().to(torch.uint8)


def paint(digit: Tensor, colour: NDArray[np.int64]) -> Tensor:
    """Pictures (sample, 3, y, x) uint8 of white digits inside their frame.

    Args:
        digit: (sample, side, side) uint8, from `prepare_digits`.
        colour: (sample, patch) indices into the palette.
    """
    cell = digit.shape[1] // (CELLS - 2)
    cells = np.zeros((len(digit), 3, CELLS, CELLS), dtype=np.uint8)
    rows, columns = ring()
    cells[:, :, rows, columns] = PALETTE[colour].transpose(0, 2, 1)
    picture = torch.from_numpy(cells).repeat_interleave(cell, dim=2).repeat_interleave(cell, dim=3)
    picture[:, :, cell:-cell, cell:-cell] = digit[:, None].cpu()
    return picture
