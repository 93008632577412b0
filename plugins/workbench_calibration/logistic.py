"""Logistic regression of [label = k] on functions of p_k, one regression for every class at once: beta and Platt calibration.

For class k the calibrated probability before renormalising is sigmoid(w_k . x), where the features x are functions of log p_k
and log(1 - p_k). The negative log likelihood is convex in w_k, also where some weights must not be negative, so a projected
Newton method (Bertsekas 1982, Projected Newton methods for optimization problems with simple constraints, SIAM Journal on
Control and Optimization 20) finds the optimum. All classes take their step from the same pass over the samples, which are read
block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus
from workbench import Line, Result

from workbench_calibration.per_class import most_frequent
from workbench_calibration.samples import Samples

Features = Callable[[Tensor, Tensor], Tensor]
"""log p and log(1 - p), both (row, class), to features (feature, row, class)."""
Targets = Literal["labels", "smoothed"]
TOLERANCE = 1e-9
"""Largest slope of the mean negative log likelihood at which the search stops."""
MOST_PASSES = 200
RIDGE = 1e-9
"""Half of this times w^2 is added to the mean negative log likelihood: a class that never occurs, or that a threshold on p_k
separates from the rest, has no finite optimum without it. Elsewhere it moves nothing that is printed."""
SMALLEST_STEP = 1e-10
SUFFICIENT = 1e-4
"""Armijo's constant: this share of the decrease that the slope promises must come."""
ROUNDING = 1e-13
NEAR_ZERO = 1e-3
"""Largest weight, and largest distance from the optimum, at which a weight that the likelihood wants negative counts as at 0."""
GRID = np.linspace(0.0, 1.0, 201)
"""Probabilities at which fitted curves are stored."""


@dataclass(frozen=True)
class LogisticMap:
    """Fitted regressions: `weight` float64 (class, feature); `gradient` is the largest slope left, 0 when converged.

    Of a weight that is held at its bound 0 the slope that counts is what a step against it would still change.
    """

    weight: Tensor
    features: Features
    gradient: float

    @property
    def numbers(self) -> int:
        """How many numbers were fitted."""
        return self.weight.numel()

    def __call__(self, logit: Tensor) -> Tensor:
        """Calibrated probabilities, (sample, class): sigmoids renormalised, without a sum that could be 0."""
        return torch.softmax(logsigmoid(_margin(self.features(*log_odds_parts(logit)), self.weight)), dim=1)

    def curve(self, probability: np.ndarray) -> np.ndarray:
        """Calibrated values (class, probability) of given probabilities (probability,), before renormalising."""
        p = torch.as_tensor(probability, dtype=torch.float64, device=self.weight.device)[:, None]
        features = self.features(torch.log(p), torch.log1p(-p)).expand(-1, -1, len(self.weight))
        return np.asarray(torch.sigmoid(_margin(features, self.weight)).T.cpu().numpy())


@dataclass(frozen=True)
class Moments:
    """Of each class the mean negative log likelihood (class,), its slope (class, feature) and its curvature."""

    value: Tensor
    slope: Tensor
    curvature: Tensor


def log_odds_parts(logit: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of p and 1 - p of the softmax of logits, both (sample, class), exact where p rounds to 1."""
    log_p = torch.log_softmax(logit, dim=1)
    top = log_p.argmax(dim=1, keepdim=True)
    of_top = log_p.scatter(1, top, -torch.inf).logsumexp(dim=1, keepdim=True)
    return log_p, torch.log1p(-log_p.exp()).scatter(1, top, of_top)


def class_targets(samples: Samples, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """What the regression of each class aims at where the label is another and where it is the class, and its frequency.

    Args:
        samples: their labels.
        targets: labels: 0 and 1. smoothed: 1 / (N- + 2) and (N+ + 1) / (N+ + 2), the posterior means under a uniform prior
            (Platt 1999, section 2.2); N- and N+ are the samples of the other classes and of this one.

    Returns:
        Three float64 (class,); the frequency is (N+ + 1) / (N + 2), never 0 or 1.
    """
    own = torch.bincount(samples.label, minlength=samples.classes).double()
    other = len(samples.label) - own
    frequency = (own + 1) / (len(samples.label) + 2)
    if targets == "labels":
        return torch.zeros_like(own), torch.ones_like(own), frequency
    return 1 / (other + 2), (own + 1) / (own + 2), frequency


def fit_logistic(
    samples: Samples, features: Features, *, targets: Targets, non_negative: tuple[bool, ...], intercept: bool = True
) -> LogisticMap:
    """The weights of least negative log likelihood, of every class.

    Args:
        samples: logits and labels.
        features: of log p and log(1 - p); the last one is constant if there is an `intercept`.
        targets: what the regressions aim at, see `class_targets`.
        non_negative: which weights must not be negative, (feature,).
        intercept: whether the last feature is constant; the search begins at the class frequencies then.
    """
    low, high, frequency = class_targets(samples, targets)
    bounded = torch.tensor(non_negative, device=samples.label.device)
    weight = torch.zeros((samples.classes, len(non_negative)), dtype=torch.float64, device=samples.label.device)
    if intercept:
        weight[:, -1] = torch.logit(frequency)
    found = moments(samples, features, weight, low, high)
    step = torch.ones_like(frequency)
    for _ in range(MOST_PASSES):
        left = remaining_slope(weight, found.slope, bounded)
        moving = (left > TOLERANCE) & (step > SMALLEST_STEP)
        if not moving.any():
            break
        # Weights near 0 that want to fall step on their own: within a joint step that ends at 0 for them the others would go
        # astray, and ever shorter steps would end where nothing is optimal (Bertsekas' epsilon).
        held = bounded & (weight <= left.clamp_max(NEAR_ZERO)[:, None]) & (found.slope > 0)
        direction = newton_direction(found.slope, found.curvature, held)
        trial = weight + torch.where(moving, step, 0.0)[:, None] * direction
        trial = torch.where(bounded, trial.clamp_min(0), trial)
        at_trial = moments(samples, features, trial, low, high)
        promised = (found.slope * (trial - weight)).sum(dim=1)
        better = at_trial.value <= found.value + SUFFICIENT * promised + ROUNDING
        weight = torch.where(better[:, None], trial, weight)
        found = Moments(
            torch.where(better, at_trial.value, found.value),
            torch.where(better[:, None], at_trial.slope, found.slope),
            torch.where(better[:, None, None], at_trial.curvature, found.curvature),
        )
        step = torch.where(better, 1.0, step / 2)
    return LogisticMap(weight, features, float(remaining_slope(weight, found.slope, bounded).max()))


def remaining_slope(weight: Tensor, slope: Tensor, bounded: Tensor) -> Tensor:
    """Largest change of a weight of each class, (class,), by a step of -slope that ends at 0 where weights are bounded."""
    moved = weight - slope
    return (weight - torch.where(bounded, moved.clamp_min(0), moved)).abs().amax(dim=1)


def curve_view(result: Result) -> Line:
    """Fitted curves of the commonest classes, of a result with `curve` over `given_probability`."""
    return Line(
        title="Curves",
        y=("curve",),
        x="given_probability",
        by="curve_class",
        select={"curve_class": most_frequent(result)},
        x_label="probability before",
        y_label="after",
        caption="The classes with the most report samples, before rows are renormalised.",
    )


def newton_direction(slope: Tensor, curvature: Tensor, held: Tensor) -> Tensor:
    """-H^-1 g of each class, (class, feature), over the weights that are not held at 0, and -g of those.

    A relative 1e-12 on the diagonal keeps features that do not vary from making H singular.
    """
    free = ~held
    both = free[:, :, None] & free[:, None, :]
    diagonal = torch.diagonal(curvature, dim1=1, dim2=2)
    matrix = torch.where(both, curvature, 0.0) + torch.diag_embed(torch.where(free, 1e-12 * diagonal, 1.0))
    return -torch.linalg.solve(matrix, slope)


def moments(samples: Samples, features: Features, weight: Tensor, low: Tensor, high: Tensor) -> Moments:
    """One pass over all samples.

    Args:
        samples: logits and labels.
        features: of log p and log(1 - p).
        weight: (class, feature).
        low: target (class,) of samples of other classes.
        high: target (class,) of samples of the class.
    """
    classes, count = weight.shape
    value, slope = torch.zeros_like(weight[:, 0]), torch.zeros_like(weight)
    curvature = torch.zeros((classes, count, count), dtype=weight.dtype, device=weight.device)
    for logit, label in samples.labelled_blocks():
        x = features(*log_odds_parts(logit))
        margin = _margin(x, weight)
        target = low.expand_as(margin).clone()
        target.scatter_(1, label[:, None], high[label][:, None])
        value += (softplus(margin) - target * margin).sum(dim=0)
        p = torch.sigmoid(margin)
        residual, spread = p - target, p * (1 - p)
        for i in range(count):
            slope[:, i] += (residual * x[i]).sum(dim=0)
            for j in range(i + 1):
                curvature[:, i, j] += (spread * x[i] * x[j]).sum(dim=0)
    lower = torch.tril(curvature, diagonal=-1)
    whole = torch.tril(curvature) + lower.transpose(1, 2)
    ridge = RIDGE * torch.eye(count, dtype=weight.dtype, device=weight.device)
    size = len(samples.label)
    return Moments(
        value / size + RIDGE / 2 * (weight**2).sum(dim=1), slope / size + RIDGE * weight, whole / size + ridge
    )


def _margin(features: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums w . x, (row, class), of features (feature, row, class) and weights (class, feature)."""
    return torch.einsum("frk,kf->rk", features, weight)
