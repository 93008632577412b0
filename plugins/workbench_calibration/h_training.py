"""Fitting one map of log-probabilities: Adam, a plateau schedule, early stopping, and the best epoch by a selector.

The loop of Huang et al. (2025), whatever the loss. It sees the fit samples only: schedule and stopping follow the top-label
calibration error (15 bins of equal width), as in the official code, or the training loss; the parameters kept are those of
the epoch with the best selector.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from workbench.toolkit import (
    classwise_calibration_error,
    debiased_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
)

Goal = Literal["top", "classwise", "proper"]
Watched = Literal["top_error", "loss"]
LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Calibrated log-probabilities (sample, class) and labels (sample,) to a scalar."""
SELECTORS: dict[Goal, str] = {
    "top": "debiased equal-mass calibration error",
    "classwise": "classwise calibration error",
    "proper": "negative log likelihood",
}
ERROR_BINS = 15
LR_FACTOR = 0.5


@dataclass
class FitTrace:
    """A fitted map and how it came about; lists have one entry per epoch, all measured on the fit samples."""

    map: nn.Module
    selected_epoch: int = 0
    selector: float = float("inf")
    loss: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    selectors: list[float] = field(default_factory=list)

    def __call__(self, logit: Tensor) -> Tensor:
        """Calibrated probabilities of logits, (sample, class)."""
        with torch.no_grad():
            return torch.exp(self.map(torch.log_softmax(logit, dim=1)))


def fit_map(
    map_: nn.Module,
    logit: Tensor,
    label: Tensor,
    loss: LossFunction,
    *,
    goal: Goal,
    epochs: int,
    lr: float,
    batch: int,
    lr_patience: int,
    stop_patience: int,
    generator: torch.Generator,
    watch: Watched = "top_error",
    on_epoch: Callable[[], None] = lambda: None,
) -> FitTrace:
    """Fit a map in place.

    Epochs at which a prediction of the fit samples differs from that of the logits are not eligible.

    Args:
        map_: of log-probabilities.
        logit: float64 (sample, class).
        label: int64 (sample,).
        loss: to minimise.
        goal: which selector picks the epoch.
        epochs: at most this many.
        lr: of Adam.
        batch: samples a step; the last, smaller batch of an epoch counts too.
        lr_patience: epochs without a better watched value before the learning rate is halved.
        stop_patience: epochs without a better watched value before fitting stops.
        generator: CPU generator that shuffles, where a batch is less than all samples.
        watch: what these two follow: the top-label calibration error, or the mean training loss of the epoch.
        on_epoch: called after each epoch, for progress and cancellation.
    """
    log_probability = torch.log_softmax(logit, dim=1)
    predicted, y = logit.argmax(1), label.cpu().numpy()
    optimizer = torch.optim.Adam(map_.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=LR_FACTOR, patience=lr_patience)
    trace = FitTrace(map_)
    best = copy.deepcopy(map_.state_dict())
    best_watched, waited = float("inf"), 0
    whole = batch >= len(label)  # one step an epoch, for which the order of samples does not matter
    mapped = map_(log_probability)
    for epoch in range(epochs):
        losses = []
        order = torch.arange(len(label)) if whole else torch.randperm(len(label), generator=generator)
        for rows in order.to(logit.device).split(batch):
            value = loss(mapped if whole else map_(log_probability[rows]), label[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()) * len(rows))
        with torch.set_grad_enabled(whole):
            mapped = map_(log_probability)  # judged now, and where the step of the next epoch starts
        calibrated = torch.exp(mapped.detach())
        kept = bool((calibrated.argmax(1) == predicted).all())
        p = calibrated.cpu().numpy()
        error = expected_calibration_error(p, y, n_bins=ERROR_BINS)
        selector = select_by(goal, p, y) if kept else float("inf")
        trace.loss.append(sum(losses) / len(label))
        trace.error.append(error)
        trace.selectors.append(selector if kept else float("nan"))
        if kept and selector <= trace.selector:  # the later of equal epochs, as in the official code
            trace.selector, trace.selected_epoch = selector, epoch
            best = copy.deepcopy(map_.state_dict())
        watched = error if watch == "top_error" else trace.loss[-1]
        schedule.step(watched)
        best_watched, waited = (watched, 0) if watched < best_watched else (best_watched, waited + 1)
        on_epoch()
        if waited >= stop_patience:
            break
    map_.load_state_dict(best)
    return trace


def select_by(goal: Goal, probability: np.ndarray, label: np.ndarray) -> float:
    """The selector of a goal, lower is better, on probabilities (sample, class) and labels (sample,)."""
    if goal == "top":
        return debiased_calibration_error(probability, label, n_bins=ERROR_BINS)
    if goal == "classwise":
        return float(classwise_calibration_error(probability, label, n_bins=ERROR_BINS))
    return negative_log_likelihood(probability, label)
