"""What HAWQ measures of each block of weights: curvature, rounding error, loss when the block alone is quantised.

Every function takes `loss` (mean over one batch) and `batches` of calibration images, and leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench.toolkit import TraceEstimate, trace_estimate

from workbench_quantization.layers import Block
from workbench_quantization.quantizer import Granularity, channel_axis, quantise_weight, weights_replaced

Batch = tuple[Tensor, Tensor]
BatchLoss = Callable[[Batch], Tensor]


def calibration_loss(model: nn.Module) -> BatchLoss:
    """Mean cross-entropy of a batch (image, label)."""
    return lambda batch: F.cross_entropy(model(batch[0]), batch[1])


def mean_loss(loss: BatchLoss, batches: Sequence[Batch]) -> float:
    """The loss averaged over all samples, summed in float64."""
    with torch.no_grad():
        sums = [float(loss(batch)) * len(batch[1]) for batch in batches]
    return sum(sums) / sum(len(batch[1]) for batch in batches)


def quantised_weights(block: Block, bits: int, granularity: Granularity) -> dict[nn.Module, Tensor]:
    """Q_b(W) of every layer of a block, detached."""
    return {
        layer: quantise_weight(weight.detach(), bits, granularity, channel_axis(layer))
        for layer, weight in zip(block.layers, block.weights, strict=True)
    }


def weight_errors(blocks: Sequence[Block], widths: Sequence[int], granularity: Granularity) -> np.ndarray:
    """||Q_b(W_i) - W_i||^2, a sum over the block's weights: (block, width) float64."""
    errors = np.zeros((len(blocks), len(widths)))
    for row, block in enumerate(blocks):
        for column, bits in enumerate(widths):
            quantised = quantised_weights(block, bits, granularity)
            errors[row, column] = sum(
                float((quantised[layer].double() - weight.detach().double()).square().sum())
                for layer, weight in zip(block.layers, block.weights, strict=True)
            )
    return errors


def loss_increases(
    loss: BatchLoss,
    batches: Sequence[Batch],
    block: Block,
    widths: Sequence[int],
    granularity: Granularity,
    base: float,
) -> np.ndarray:
    """Rise of the calibration loss over `base` when this block alone is quantised: (width,)."""
    rises = np.zeros(len(widths))
    for column, bits in enumerate(widths):
        with weights_replaced(quantised_weights(block, bits, granularity)):
            rises[column] = mean_loss(loss, batches) - base
    return rises


AT_ONCE = 3
AGREED = 1e-3
"""Relative standard error of `AT_ONCE` probes that ends probing: what Gauss-Newton leaves to probes is often nothing at all."""


def trace_until(probes: Iterable[Tensor], tolerance: float, least: int = 20) -> TraceEstimate:
    """Hutchinson's estimate from as many probes as needed: stop when every standard error is below tolerance * |mean|.

    Args:
        probes: (block,) each; all are used if the tolerance is never met, or if it is 0.
        tolerance: relative standard error that is good enough.
        least: probes to take in general, since a standard error of few probes is itself uncertain; after `AT_ONCE` where
            they agree to `AGREED`, which needs no better standard error.
    """
    taken: list[Tensor] = []
    for probe in probes:
        taken.append(probe)
        if tolerance > 0 and len(taken) >= min(least, AT_ONCE):
            enough = tolerance if len(taken) >= least else min(tolerance, AGREED)
            estimate = trace_estimate(taken)
            if bool((estimate.standard_error <= enough * estimate.mean.abs()).all()):
                break
    return trace_estimate(taken)


def landscape(
    loss: BatchLoss,
    batches: Sequence[Batch],
    block: Block,
    directions: Sequence[Sequence[Tensor]],
    displacements: Sequence[float],
) -> np.ndarray:
    """Loss at W + sum_k e_k v_k on a grid of displacements e: one axis per direction (one or two of them)."""
    grid = np.zeros((len(displacements),) * len(directions))
    for place in np.ndindex(grid.shape):
        moved = {
            layer: weight.detach()
            + sum(displacements[step] * vector[position] for step, vector in zip(place, directions, strict=True))
            for position, (layer, weight) in enumerate(zip(block.layers, block.weights, strict=True))
        }
        with weights_replaced(moved):
            grid[place] = mean_loss(loss, batches)
    return grid
