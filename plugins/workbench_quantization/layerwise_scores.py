"""Scores of transformer blocks, orders made of them, and the walk down an order: the steps of `layerwise` as pure functions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def layer_input_modification(cosine: Tensor, *, skip_first_token: bool = False) -> Tensor:
    """LIM_i = - mean over tokens of cos(h_in, h_out), in -1 (a block that changes no direction) to 1.

    Args:
        cosine: (block, sample, token), cosine of every token: not of whole texts, which a few huge tokens would decide.
        skip_first_token: leave token 0 out.

    Returns:
        (block, sample) float64, the mean of each window; their mean is LIM.
    """
    return -cosine.double()[:, :, 1 if skip_first_token else 0 :].mean(2)


def standard_scores(weight: Tensor) -> Tensor:
    """Standard scores z = (w - mean) / std over all entries, flat, float64; 0 where all weights are equal."""
    flat = weight.detach().double().flatten()
    spread = flat.std(correction=0)
    return (flat - flat.mean()) / torch.where(spread > 0, spread, torch.ones_like(spread))


def z_score_distribution(z: Tensor, threshold: float = 1.0, *, two_sided: bool = False) -> float:
    """ZD: share of standard scores above the threshold (or beyond it on either side)."""
    return float(((z.abs() if two_sided else z) > threshold).double().mean())


def steps_along(order: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    """Widths after 0, 1, 2, ... steps: (point, block) int64. A pass along the order lowers every block by one width.

    Args:
        order: (block,) positions, least important first.
        widths: highest first.
    """
    count = len(order)
    level = np.zeros((count * (len(widths) - 1) + 1, count), dtype=np.int64)
    for step in range(1, len(level)):
        level[step] = level[step - 1]
        level[step, order[(step - 1) % count]] += 1
    return np.asarray(widths)[level]


def rank(importance: np.ndarray) -> np.ndarray:
    """Positions from least to most important; of equals the later block comes first, as it is nearer the output."""
    return np.lexsort((-np.arange(len(importance)), importance))


def knee(perplexity: np.ndarray, tolerance: float = 1.1) -> int:
    """The largest number of steps up to which every perplexity stays within `tolerance` times that of none."""
    over = np.flatnonzero(~(perplexity <= tolerance * perplexity[0]))
    return int(over[0]) - 1 if len(over) else len(perplexity) - 1
