"""Which rows a recalibrator is fitted on and which it is judged by: read, checked and kept apart.

Every method of the family works on stored logits (or probabilities) and labels alone. With a separate role `fit` all rows
of `data` are reported on; without it `data` is cut into two disjoint stratified parts. What a method has to select (a
penalty, an epoch, one of several maps) it selects within the fit part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from workbench import DataRole, InputError, Inputs
from workbench.toolkit import split_indices, to_tensor

PROBABILITY_FLOOR = 1e-30
"""Probabilities below this count as this (and rows are renormalised) before a logarithm is taken."""

_VARIABLES = {"label": ("sample",)}
_SCORES = {"logit": ("sample", "class"), "probability": ("sample", "class")}

INPUTS = {
    "data": DataRole(
        "labels with logits (or probabilities) of samples the classifier was not trained on",
        variables=_VARIABLES,
        optional_variables=_SCORES,
    ),
    "fit": DataRole(
        "further samples to fit on; then all of `data` is reported on. Without it `data` is split",
        variables=_VARIABLES,
        optional_variables=_SCORES,
        optional=True,
    ),
}
"""The roles of every method of the family."""


@dataclass(frozen=True)
class Samples:
    """Rows of a data set: `logit` float64 (sample, class), `label` int64 (sample,), `index` of each row in its role."""

    logit: Tensor
    label: Tensor
    index: np.ndarray


@dataclass(frozen=True)
class Parts:
    """Disjoint rows: `fit` to fit and select on, `report` to judge by."""

    fit: Samples
    report: Samples
    raised: int
    """How many probabilities were below `PROBABILITY_FLOOR` and raised to it; -1 where logits were given."""
    shared: int
    """How many rows of `data` occur, bit for bit, in `fit`: 0 unless a separate `fit` overlaps."""


def read_parts(inputs: Inputs, *, fit_fraction: float, seed: int, device: torch.device) -> Parts:
    """Read the roles `data` and `fit`, check them, and split `data` if there is no `fit`.

    Args:
        inputs: of the run.
        fit_fraction: share of `data` to fit on; not used when `fit` is given.
        seed: of the stratified split.
        device: where the tensors shall lie.

    Raises:
        InputError: no logits, fewer than 2 classes, unequal classes, labels out of range, or `fit` holds every row of
            `data`.
    """
    logit, label, raised = read_samples("data", inputs["data"], device)
    if inputs.get("fit") is None:
        index = split_indices(label.cpu().numpy(), {"fit": fit_fraction, "report": 1 - fit_fraction}, seed=seed)
        fit, report = (Samples(logit[rows], label[rows], rows) for rows in (index["fit"], index["report"]))
        return Parts(fit, report, raised, 0)
    fit_logit, fit_label, fit_raised = read_samples("fit", inputs["fit"], device)
    if fit_logit.shape[1] != logit.shape[1]:
        raise InputError("fit", expected=f"{logit.shape[1]} classes as in data", got=f"{fit_logit.shape[1]}")
    known = set(_rows(fit_logit, fit_label))
    shared = sum(row in known for row in _rows(logit, label))
    if shared == len(label):
        raise InputError(
            "fit",
            expected="samples that are not in data",
            got="a set that holds every row of data",
            hint="Leave `fit` out to have `data` split.",
        )
    fit = Samples(fit_logit, fit_label, np.arange(len(fit_label)))
    report = Samples(logit, label, np.arange(len(label)))
    total = -1 if raised < 0 and fit_raised < 0 else max(raised, 0) + max(fit_raised, 0)
    return Parts(fit, report, total, shared)


def read_samples(role: str, dataset: Any, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Logits float64 (sample, class >= 2), labels int64 (sample,), and how many probabilities were raised (-1: logits).

    Logits are preferred where both are stored. A single column is the logit (probability) of class 1 of two.
    """
    names = set(dataset.data_vars)
    if not names & set(_SCORES):
        raise InputError(
            role,
            expected="a variable logit (sample, class), or probability (sample, class)",
            got=f"only {', '.join(sorted(map(str, names)))}",
        )
    label = to_tensor(dataset["label"], device=device, dtype=torch.int64)
    raised = -1
    if "logit" in names:
        logit = to_tensor(dataset["logit"], device=device, dtype=torch.float64)
        if logit.shape[1] == 1:
            logit = torch.cat([torch.zeros_like(logit), logit], dim=1)
    else:
        logit, raised = log_probability(to_tensor(dataset["probability"], device=device, dtype=torch.float64), role)
    if len(label) < 4 or logit.shape[1] < 2:
        raise InputError(role, expected="at least 4 samples of 2 classes", got=f"logits of shape {tuple(logit.shape)}")
    if not torch.isfinite(logit).all():
        raise InputError(f"{role}['logit']", expected="finite numbers", got="NaN or infinity")
    if label.min() < 0 or label.max() >= logit.shape[1]:
        raise InputError(
            f"{role}['label']",
            expected=f"classes 0 to {logit.shape[1] - 1}",
            got=f"{int(label.min())} to {int(label.max())}",
        )
    return logit, label, raised


def log_probability(probability: Tensor, role: str = "data") -> tuple[Tensor, int]:
    """Logits of given probabilities: log p of rows clipped at `PROBABILITY_FLOOR` and renormalised.

    Args:
        probability: (sample, class), rows that sum to 1; a single column is the probability of class 1 of two.
        role: for messages.

    Returns:
        float64 (sample, class >= 2), and the number of entries that were clipped.
    """
    if probability.shape[1] == 1:
        probability = torch.cat([1 - probability, probability], dim=1)
    worst = float((probability.sum(1) - 1).abs().max())
    if not (probability.min() >= -1e-6 and worst <= 1e-3):
        raise InputError(
            f"{role}['probability']",
            expected="numbers in 0..1 in rows that sum to 1",
            got=f"a smallest entry of {float(probability.min()):.3g} and a row sum off by {worst:.3g}",
            hint="Logits go into the variable `logit`.",
        )
    clipped = probability.clamp_min(PROBABILITY_FLOOR)
    return torch.log(clipped / clipped.sum(1, keepdim=True)), int((probability < PROBABILITY_FLOOR).sum())


def _rows(logit: Tensor, label: Tensor) -> list[bytes]:
    table = np.concatenate([logit.cpu().numpy(), label.cpu().numpy()[:, None].astype(np.float64)], axis=1)
    return [row.tobytes() for row in table]
