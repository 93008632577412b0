"""Which rows a recalibrator is fitted on and which it is judged by: read, checked and kept apart.

Every method of the family works on stored logits (or probabilities) and labels alone. With a separate role `fit` all rows
of `data` are reported on; without it `data` is cut into two disjoint stratified parts. What a method has to select (a
penalty, an epoch, one of several maps) it selects within the fit part.

Logits are read lazily: what is too large to keep goes by in blocks, for the fit as for the judgement. What a recalibrator
keeps of every sample are a few numbers, not its logits (only `calibration.h_calibration` trains on them in memory).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from workbench import DataRole, InputError, Inputs
from workbench.toolkit import kfold_indices, split_indices, to_tensor

PROBABILITY_FLOOR = 1e-30
"""Probabilities below this count as this (and rows are renormalised) before a logarithm is taken."""
LARGEST_LOGIT = 1e30
"""Logits beyond +-this count as this: the lowest number of a type, which stands for masked classes, overflows in sums."""
IN_MEMORY_ENTRIES = 8_000_000
"""Up to so many logits (64 MB in float64) are kept in memory; more are read anew whenever they are needed."""
BLOCK_ENTRIES = 1_000_000
"""Logits worked on at a time (8 MB)."""

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


class Rows(Protocol):
    """Where the logits of samples are read from."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def small(self) -> bool:
        """Whether they may be kept in memory."""

    def read(self, rows: np.ndarray) -> Tensor:
        """Rows (ascending indices, repeats allowed) as logits (row, class), float32 if they were stored so, else float64."""


def consecutive(rows: np.ndarray) -> bool:
    """Whether ascending indices leave out nothing and repeat nothing."""
    return bool((np.diff(rows) == 1).all())


@dataclass(frozen=True)
class InMemory:
    """Logits (sample, class) that lie in memory as they are."""

    logit: Tensor

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.logit.shape[1]

    @property
    def small(self) -> bool:
        """Whether a float64 copy may be kept."""
        return self.logit.numel() <= IN_MEMORY_ENTRIES

    def read(self, rows: np.ndarray) -> Tensor:
        """Rows (ascending indices) of the logits."""
        return self.logit[int(rows[0]) : int(rows[-1]) + 1] if consecutive(rows) else self.logit[torch.as_tensor(rows)]


class Scores:
    """Stored logits (or probabilities) of one role, read in rows; kept in memory if they are small enough."""

    def __init__(self, role: str, dataset: Any, device: torch.device) -> None:
        """Look at a data set.

        Args:
            role: for messages.
            dataset: with `logit` or `probability`, (sample, class). Logits are preferred where both are stored. A single
                column is the logit (probability) of class 1 of two.
            device: where rows shall lie.
        """
        names = set(dataset.data_vars)
        if not names & set(_SCORES):
            raise InputError(
                role,
                expected="a variable logit (sample, class), or probability (sample, class)",
                got=f"only {', '.join(sorted(map(str, names)))}",
            )
        self.role, self.device = role, device
        self.name = "logit" if "logit" in names else "probability"
        self._array = dataset[self.name]
        self.samples, self.classes = self._array.shape[0], max(self._array.shape[1], 2)
        self.small = self.samples * self.classes <= IN_MEMORY_ENTRIES
        narrow = self.name == "logit" and self._array.dtype.itemsize <= 4
        self.dtype = torch.float32 if narrow else torch.float64
        self.raised = -1 if self.name == "logit" else 0
        self._kept: Tensor | None = None
        if self.samples < 4 or self._array.shape[1] < 1:
            raise InputError(
                role, expected="at least 4 samples of 2 classes", got=f"{self.name}s of shape {tuple(self._array.shape)}"
            )

    def scan(self) -> Iterator[tuple[slice, Tensor]]:
        """Every row once, block by block: checks them, counts what is raised, keeps what fits."""
        kept = torch.empty((self.samples, self.classes), dtype=self.dtype, device=self.device) if self.small else None
        for rows in row_blocks(self.samples, self.classes):
            logit, raised = self._convert(self._array[rows])
            self.raised += raised
            if kept is not None:
                kept[rows] = logit
            yield rows, logit
        self._kept = kept

    def read(self, rows: np.ndarray) -> Tensor:
        """Rows (ascending indices) as logits (row, class), float32 if they were stored so, else float64."""
        if self._kept is not None:
            return self._kept[torch.as_tensor(rows, device=self.device)]
        first, last = int(rows[0]), int(rows[-1]) + 1
        span, _ = self._convert(self._array[first:last])
        return span if consecutive(rows) else span[torch.as_tensor(rows - first, device=self.device)]

    def _convert(self, array: Any) -> tuple[Tensor, int]:
        values, raised = to_tensor(array, device=self.device, dtype=self.dtype), 0
        if self.name == "probability":
            values, raised = log_probability(values, self.role)
        elif values.shape[1] == 1:
            values = torch.cat([torch.zeros_like(values), values], dim=1)
        low, high = (float(end) for end in values.aminmax())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(f"{self.role}['logit']", expected="finite numbers", got="NaN or infinity")
        if max(-low, high) > LARGEST_LOGIT:
            values = values.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        return values, raised


@dataclass(frozen=True)
class Samples:
    """Rows of a data set: `label` int64 (sample,), `index` of each row in its role, and their logits.

    `blocks` gives the logits piece by piece, read anew each time if they are too many to keep; `logit` is all of them.
    """

    scores: Rows
    label: Tensor
    index: np.ndarray

    @classmethod
    def of(cls, logit: Tensor, label: Tensor) -> Samples:
        """All rows of logits (sample, class) and labels int64 (sample,) that lie in memory."""
        return cls(InMemory(logit), label, np.arange(len(label)))

    def subset(self, rows: np.ndarray) -> Samples:
        """Some of these samples, by ascending positions; a sample may occur several times."""
        return Samples(self.scores, self.label[torch.as_tensor(rows, device=self.label.device)], self.index[rows])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.scores.classes

    @cached_property
    def logit(self) -> Tensor:
        """All logits, float64 (sample, class), in memory."""
        return self.scores.read(self.index).double()

    def stored_blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (row, class) as they were stored, float32 or float64, and labels, block by block."""
        for rows in row_blocks(len(self.index), self.classes):
            yield self.scores.read(self.index[rows]), self.label[rows]

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Positions within these samples and their logits, float64 (row, class)."""
        kept = self.logit if self.scores.small else None
        for rows in row_blocks(len(self.index), self.classes):
            yield rows, self.scores.read(self.index[rows]).double() if kept is None else kept[rows]

    def labelled_blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits, float64 (row, class), and labels, block by block."""
        return ((logit, self.label[rows]) for rows, logit in self.blocks())


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
    """Check the roles `data` and `fit`, and split `data` if there is no `fit`.

    Args:
        inputs: of the run.
        fit_fraction: share of `data` to fit on; not used when `fit` is given.
        seed: of the stratified split.
        device: where the tensors shall lie.

    Raises:
        InputError: no logits, fewer than 2 classes, unequal classes, labels out of range, or `fit` holds every row of
            `data`.
    """
    apart = inputs.get("fit") is not None
    scores, label, rows = read_samples("data", inputs["data"], device, hashed=apart)
    if not apart:
        shares = {"fit": fit_fraction, "report": 1 - fit_fraction}
        index = split_indices(label.cpu().numpy(), shares, seed=seed, argument="data")
        fit, report = (Samples(scores, label[index[name]], index[name]) for name in ("fit", "report"))
        return Parts(fit, report, scores.raised, 0)
    fit_scores, fit_label, fit_rows = read_samples("fit", inputs["fit"], device, hashed=True)
    if fit_scores.classes != scores.classes:
        raise InputError("fit", expected=f"{scores.classes} classes as in data", got=f"{fit_scores.classes}")
    shared = int(np.isin(rows, fit_rows).sum())
    if shared == len(label):
        raise InputError(
            "fit",
            expected="samples that are not in data",
            got="a set that holds every row of data",
            hint="Leave `fit` out to have `data` split.",
        )
    fit = Samples(fit_scores, fit_label, np.arange(len(fit_label)))
    report = Samples(scores, label, np.arange(len(label)))
    given = [max(one.raised, 0) for one in (scores, fit_scores)]
    return Parts(fit, report, -1 if scores.raised < 0 and fit_scores.raised < 0 else sum(given), shared)


def cross_validation_folds(samples: Samples, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions `(rest, fold)` within fit samples, stratified; every sample is in exactly one `fold`.

    Raises:
        InputError: there are too few samples. Only a cut of `data` can leave so few: a separate `fit` has at least 4.
    """
    count = len(samples.label)
    if count < folds:
        raise InputError(
            "data",
            expected=f"at least {folds} samples to fit on, one for each fold of the cross-validation",
            got=f"{count}",
            hint="Give more samples, a larger fit_fraction, or samples to fit on of their own as `fit`.",
        )
    return kfold_indices(samples.label.cpu().numpy(), folds, seed=seed)


def read_samples(
    role: str, dataset: Any, device: torch.device, *, hashed: bool = False
) -> tuple[Scores, Tensor, np.ndarray]:
    """Checked logits and int64 labels (sample,) of a role, and with `hashed` a hash int64 of each row and its label."""
    scores = Scores(role, dataset, device)
    label = class_labels(role, dataset, scores.classes, device)
    hashes = np.empty(len(label) if hashed else 0, dtype=np.int64)
    for rows, logit in scores.scan():
        if hashed:
            table = torch.cat([logit.double(), label[rows, None].double()], dim=1).cpu().numpy()
            hashes[rows] = [hash(row.tobytes()) for row in table]
    return scores, label, hashes


def class_labels(role: str, dataset: Any, classes: int, device: torch.device) -> Tensor:
    """The labels of a role as int64 (sample,): whole numbers from 0 to classes - 1, or an error that says what was found."""
    given = to_tensor(dataset["label"], device=device)
    label = given.to(torch.int64)
    fractional = given.is_floating_point() and not bool((given == label).all())
    if fractional or label.min() < 0 or label.max() >= classes:
        found = "NaN" if given.isnan().any() else f"{given.min().item():g} to {given.max().item():g}"
        raise InputError(
            f"{role}['label']",
            expected=f"whole numbers of classes, 0 to {classes - 1}",
            got=f"fractions among {found}" if fractional and found != "NaN" else found,
            hint="A single column of scores is that of class 1 of two." if classes == 2 else "",
        )
    return label


def row_blocks(samples: int, classes: int) -> Iterator[slice]:
    """Consecutive slices of rows of at most `BLOCK_ENTRIES` entries."""
    rows = max(1, BLOCK_ENTRIES // classes)
    return (slice(start, min(start + rows, samples)) for start in range(0, samples, rows))


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
