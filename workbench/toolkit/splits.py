"""Splits that keep apart what a method fits on, what it selects by and what it reports on.

All randomness is numpy's PCG64 on the indices, so a split is the same on every platform.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

__all__ = ["kfold_indices", "split_indices"]

_DEFAULT = {"fit": 0.5, "selection": 0.2, "report": 0.3}


def split_indices(
    label_or_n: int | np.ndarray | xr.DataArray | Tensor,
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
    stratify: bool = True,
    *,
    argument: str = "fractions",
) -> dict[str, np.ndarray]:
    """Cut the samples 0..n-1 into named parts, by default 50 % to fit on, 20 % to select by, 30 % to report on.

    Args:
        label_or_n: labels (sample,) to stratify by, or the number of samples (nothing to stratify by then).
        fractions: share of each part, positive, adding up to 1. Sizes are rounded by largest remainder, and within
            each class as well, so that a class keeps its share in every part to within a sample or two.
        seed: of the draw; the same seed gives the same split everywhere.
        stratify: keep class shares alike in all parts.
        argument: what the error names when there are too few samples for every part to have one.

    Returns:
        Per part a sorted int64 index array; the parts are disjoint and together hold every sample.

    Raises:
        InputError: fractions are not positive or do not add up to 1, or a part would be empty.
    """
    shares = dict(_DEFAULT if fractions is None else fractions)
    if not shares or any(not 0 < share <= 1 for share in shares.values()) or not math.isclose(sum(shares.values()), 1):
        raise InputError("fractions", expected="positive shares that add up to 1", got=str(shares))
    groups, generator = _shuffled_groups(label_or_n, seed, stratify)
    count = sum(map(len, groups))
    sizes = _round_to_total(np.array([share * count for share in shares.values()]), count)
    for name, size in zip(shares, sizes, strict=True):
        if not size:
            raise InputError(
                argument, expected="at least one sample in every part", got=f"none in {name!r} of {count} samples"
            )
    parts: dict[str, np.ndarray] = {}
    for name, size in zip(shares, sizes, strict=True):
        left = np.array([len(group) for group in groups])
        take = _round_to_total(left * (size / left.sum()), int(size), generator)
        parts[name] = np.sort(np.concatenate([group[:number] for group, number in zip(groups, take, strict=True)]))
        groups = [group[number:] for group, number in zip(groups, take, strict=True)]
    return parts


def kfold_indices(
    label_or_n: int | np.ndarray | xr.DataArray | Tensor,
    folds: int = 5,
    seed: int = 0,
    stratify: bool = True,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cross-validation: per fold the sorted indices `(rest, fold)`; every sample is in exactly one `fold`.

    Fold sizes differ by at most one, and so do the numbers of a class in the folds (with `stratify`).

    Args:
        label_or_n: labels (sample,) to stratify by, or the number of samples.
        folds: number of folds, from 2 to the number of samples.
        seed: of the draw.
        stratify: keep class shares alike in all folds.

    Raises:
        InputError: `folds` is out of range.
    """
    groups, _ = _shuffled_groups(label_or_n, seed, stratify)
    order = np.concatenate(groups)
    if not 2 <= folds <= len(order):
        raise InputError("folds", expected=f"2 to {len(order)} (the number of samples)", got=str(folds))
    # Dealing the samples out class by class, like cards, gives every fold its share of each class.
    held = [np.sort(order[fold::folds]) for fold in range(folds)]
    return [(np.setdiff1d(np.arange(len(order)), fold, assume_unique=True), fold) for fold in held]


def _shuffled_groups(label_or_n: Any, seed: int, stratify: bool) -> tuple[list[np.ndarray], np.random.Generator]:
    """The sample indices, shuffled, one array per class (one array in all without stratification)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    if isinstance(label_or_n, (int, np.integer)):
        if label_or_n < 1:
            raise InputError("label_or_n", expected="at least one sample", got=str(label_or_n))
        return [generator.permutation(np.arange(label_or_n, dtype=np.int64))], generator
    label = np.asarray(label_or_n.cpu() if hasattr(label_or_n, "cpu") else label_or_n)
    if label.ndim != 1 or not len(label):
        raise InputError(
            "label_or_n", expected="labels (sample,), at least one", got=f"an array of shape {label.shape}"
        )
    if not stratify:
        return [generator.permutation(np.arange(len(label), dtype=np.int64))], generator
    if label.dtype.kind == "f":
        raise InputError(
            "label_or_n",
            expected="class labels to stratify by",
            got=f"dtype {label.dtype}",
            hint="Pass stratify=False.",
        )
    code = np.unique(label, return_inverse=True)[1]
    groups = [np.flatnonzero(code == index).astype(np.int64) for index in range(code.max() + 1)]
    return [generator.permutation(group) for group in groups], generator


def _round_to_total(share: np.ndarray, total: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """Round `share` (adding up to `total`) to integers of the same sum by largest remainder; ties fall by lot."""
    floor = np.floor(share + 1e-9).astype(np.int64)
    remainder = np.round(share - floor, 9)  # rounded, so that equal shares tie whatever the platform's last bit is
    tie = np.arange(len(share)) if generator is None else generator.permutation(len(share))
    floor[np.lexsort((tie, -remainder))[: total - floor.sum()]] += 1
    return floor
