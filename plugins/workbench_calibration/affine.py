"""Affine maps of scores before a softmax, fitted to the optimum: p = softmax(W x + b), W diagonal or full.

The negative log likelihood is convex in (W, b), with or without the quadratic penalties here, so L-BFGS with exact
gradients reaches the global optimum; the size of the gradient that is left says how closely. An evaluation is one pass over
the samples, block by block: what is kept are the parameters and 20 steps of L-BFGS, not the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from workbench_calibration.samples import Samples

Float = NDArray[np.float64]


@dataclass(frozen=True)
class AffineMap:
    """softmax(W x + b): `weight` (class, class), or (class,) if diagonal; `gradient` is the largest slope left."""

    weight: Tensor
    bias: Tensor
    gradient: float

    @property
    def numbers(self) -> int:
        """How many numbers were fitted."""
        return self.weight.numel() + self.bias.numel()

    def __call__(self, score: Tensor) -> Tensor:
        """Probabilities (sample, class) of scores (sample, class)."""
        linear = score * self.weight if self.weight.ndim == 1 else score @ self.weight.T
        return torch.softmax(linear + self.bias, dim=1)


def fit_diagonal(samples: Samples, *, tolerance: float = 1e-9) -> AffineMap:
    """W diagonal, from W = 1 and b = 0, without penalty.

    Args:
        samples: their logits are the scores x.
        tolerance: largest slope at which L-BFGS stops.
    """
    classes, device = samples.classes, samples.label.device

    def objective(flat: Float) -> tuple[float, Float]:
        weight, bias = torch.as_tensor(flat.reshape(2, classes), device=device)
        total, at_both = 0.0, torch.zeros((2, classes), dtype=torch.float64, device=device)
        for score, label in samples.labelled_blocks():
            value, slope = _likelihood(score * weight + bias, label)
            total += value
            at_both += torch.stack([(slope * score).sum(0), slope.sum(0)])
        return total / len(samples.label), at_both.reshape(-1).cpu().numpy() / len(samples.label)

    flat, gradient = _minimise(objective, np.concatenate([np.ones(classes), np.zeros(classes)]), tolerance)
    weight, bias = torch.as_tensor(flat.reshape(2, classes), device=device)
    return AffineMap(weight, bias, gradient)


def fit_full(
    samples: Samples,
    *,
    off_diagonal: float,
    intercept: float,
    scores: Callable[[Tensor], Tensor] = lambda logit: logit,
    start: AffineMap | None = None,
    tolerance: float = 1e-8,
) -> AffineMap:
    """W full, from the identity and b = 0 (or `start`), with off-diagonal and intercept regularisation (ODIR).

    The objective is the mean negative log likelihood + `off_diagonal` / (K (K - 1)) sum_{i != j} W_ij^2
    + `intercept` / K sum_j b_j^2 (Kull et al. 2019).

    Args:
        samples: logits and labels.
        off_diagonal: lambda.
        intercept: mu.
        scores: what W multiplies, of logits.
        start: where to start, e.g. the solution of a neighbouring penalty.
        tolerance: largest slope at which L-BFGS stops.
    """
    classes, device, count = samples.classes, samples.label.device, len(samples.label)
    size = classes**2
    outside = 1 - torch.eye(classes, dtype=torch.float64, device=device)
    square, linear = off_diagonal / (classes * max(classes - 1, 1)), intercept / classes

    def objective(flat: Float) -> tuple[float, Float]:
        both = torch.as_tensor(flat, device=device)
        weight, bias = both[:size].reshape(classes, classes), both[size:]
        value = count * (square * float((outside * weight**2).sum()) + linear * float((bias**2).sum()))
        at_weight, at_bias = 2 * count * square * outside * weight, 2 * count * linear * bias
        for logit, label in samples.labelled_blocks():
            score = scores(logit)
            one, slope = _likelihood(score @ weight.T + bias, label)
            value += one
            at_weight.addmm_(slope.T, score)
            at_bias += slope.sum(0)
        return value / count, torch.cat([at_weight.reshape(-1), at_bias]).cpu().numpy() / count

    identity = (torch.eye(classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64))
    first = identity if start is None else (start.weight, start.bias)
    weight, bias = (part.to(device, torch.float64) for part in first)
    # Penalties make entries differ in curvature by orders of magnitude; the diagonal of the Hessian evens them out.
    of_weight, of_bias = 2 * square * outside, torch.full_like(bias, 2 * linear)
    for logit, _ in samples.labelled_blocks():
        score = scores(logit)
        p = torch.softmax(score @ weight.T + bias, dim=1)
        spread = p * (1 - p) / count
        of_weight.addmm_(spread.T, score**2)
        of_bias += spread.sum(0)
    curvature = torch.cat([of_weight.reshape(-1), of_bias])
    scale = torch.sqrt(curvature + 1e-6 * curvature.max()).cpu().numpy()

    def scaled(flat: Float) -> tuple[float, Float]:
        value, slope = objective(flat / scale)
        return value, slope / scale

    begin = torch.cat([weight.reshape(-1), bias]).cpu().numpy()
    flat, _ = _minimise(scaled, begin * scale, tolerance)
    flat = flat / scale
    gradient = float(np.abs(objective(flat)[1]).max())
    found = torch.as_tensor(flat, device=device)
    return AffineMap(found[:size].reshape(classes, classes), found[size:], gradient)


def _likelihood(linear: Tensor, label: Tensor) -> tuple[float, Tensor]:
    """Negative log likelihood, summed over samples, and its slope (sample, class) in the softmax's input."""
    log_p = torch.log_softmax(linear, dim=1)
    slope = log_p.exp()
    rows = torch.arange(len(label), device=label.device)
    slope[rows, label] -= 1
    return -float(log_p[rows, label].sum()), slope


def _minimise(objective: object, start: Float, tolerance: float) -> tuple[Float, float]:
    found = optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 10_000, "gtol": tolerance, "ftol": 1e-15, "maxcor": 20},
    )
    return np.asarray(found.x), float(np.abs(found.jac).max())
