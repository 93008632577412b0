"""Each cell of the matrix against the baseline's: by resampled samples, by repetitions, by both, or by stored intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.study.description import Metric
from workbench.study.plan import Branch
from workbench.study.samples import Judged, judged
from workbench.study.significance import Floats, draws, holm, judge_difference

if TYPE_CHECKING:
    from workbench.study.result import StudyResult

__all__ = ["BOOTSTRAP", "BOTH", "INTERVALS", "LEVEL", "SEEDS", "Cell", "Comparisons", "corrected"]

LEVEL = 0.95
BOOTSTRAP, BOTH, SEEDS, INTERVALS = (
    "paired bootstrap",
    "paired bootstrap and repetitions",
    "paired t over seeds",
    "stored intervals",
)
KEPT = 40_000_000
"""Counts that are kept between comparisons (160 MB as float32)."""
FEWEST = 6
"""Samples below which no resampling is tried: that all of five differ the same way is chance in 1 of 16 cases, 2^(1 - 5), while
every resample shows the same difference."""
UNIVERSE = 64
"""Repetitions on parts of the data are resampled over so many rows more or less, so that draws are shared."""


@dataclass(frozen=True)
class Cell:
    """A number and how it compares with the baseline's. NaN: not known."""

    value: float
    lower: float = np.nan
    upper: float = np.nan
    branches: tuple[Branch, ...] = ()
    values: tuple[float, ...] = ()
    difference: float = np.nan
    difference_lower: float = np.nan
    difference_upper: float = np.nan
    p_value: float = np.nan
    adjusted: float = np.nan
    basis: str = ""
    """How it was compared: paired bootstrap, with repetitions or without, t over seeds, stored intervals, or not at all."""
    differs: bool = False
    """Adjusted p at most 5 %, or, where only intervals are stored, intervals that do not overlap."""


class Comparisons:
    """Compares cells of one study; resampled numbers are kept, because the baseline's are needed again and again.

    Args:
        result: whose runs.
        resamples: of every bootstrap.
    """

    def __init__(self, result: StudyResult, resamples: int) -> None:
        self._result, self._resamples = result, resamples
        self._judged: dict[tuple[str, str], Judged | None] = {}
        self._values: dict[tuple[str, str, int], Floats] = {}
        self._draws: dict[bytes, list[NDArray[np.float32]]] = {}

    def __call__(self, asked: Metric, cell: Cell, base: Cell) -> Cell:
        """The cell with its difference from the baseline's."""
        if not (np.isfinite(cell.value) and np.isfinite(base.value)):
            return cell
        cell = replace(cell, difference=cell.value - base.value)
        if cell.branches and cell.branches == base.branches:
            return replace(cell, basis="the same run")
        pairs = _pairs(cell, base)
        if pairs:
            found = self._resampled(asked, pairs)
            if found is not None:
                return replace(_over(cell, pairs, found), basis=BOTH if len(pairs) > 1 else BOOTSTRAP)
            if len(pairs) > 1:
                return _over_seeds(cell, pairs)
        elif len(cell.branches) > 1 or len(base.branches) > 1:
            return replace(cell, basis="not compared: the repetitions of the two do not pair up")
        if np.isfinite([cell.lower, cell.upper, base.lower, base.upper]).all():
            return replace(cell, basis=INTERVALS, differs=cell.lower > base.upper or cell.upper < base.lower)
        return replace(cell, basis="not compared: neither shared samples nor intervals are stored")

    def _resampled(self, asked: Metric, pairs: Sequence[tuple[_One, _One]]) -> Floats | None:
        """Resampled mean difference over the pairs, (resample,); None: not all were judged on shared, stored samples."""
        both = [(self._judge(first, asked.metric), self._judge(second, asked.metric)) for first, second in pairs]
        known = [(a, b) for a, b in both if a is not None and b is not None and a.same_samples(b)]
        if len(known) < len(pairs) or min(len(a.strata) for a, _ in known) < FEWEST:
            return None
        # Repetitions on different parts of the same data are resampled together: a sample drawn twice is twice in each.
        parts = len(pairs) > 1 and all(a.rows is not None for a, _ in known)
        if len(pairs) > 1 and not parts and any(not a.same_samples(known[0][0]) for a, _ in known):
            return None
        size = UNIVERSE * -(-int(max(a.rows.max() for a, _ in known) + 1) // UNIVERSE) if parts else 0
        total = np.zeros(self._resamples)
        for (first, second), (a, b) in zip(pairs, known, strict=True):
            total += self._drawn(first, asked.metric, a, size) - self._drawn(second, asked.metric, b, size)
        return total / len(pairs) if np.isfinite(total).all() else None

    def _judge(self, one: _One, metric: str) -> Judged | None:
        key = (one.branch.id, metric)
        if key not in self._judged:
            run = self._result.run(one.branch)
            self._judged[key] = None if run is None else judged(run, one.branch, metric)
        return self._judged[key]

    def _drawn(self, one: _One, metric: str, found: Judged, size: int) -> Floats:
        """The metric of every resample of `size` rows of the data, or (0) of the run's own samples."""
        key = (one.branch.id, metric, size)
        if key not in self._values:
            strata = np.zeros(size, dtype=np.int64) if size else np.asarray(found.strata, dtype=np.int64)
            rows = found.rows if size else slice(None)
            parts = [found.statistic(counts[:, rows].astype(np.float64)) for counts in self._counts(strata)]
            self._values[key] = np.concatenate(parts)
        return self._values[key]

    def _counts(self, strata: NDArray[np.int64]) -> Any:
        if len(strata) * self._resamples > KEPT:
            return draws(strata, self._resamples)
        key = strata.tobytes()
        if key not in self._draws:
            while self._draws and (1 + len(self._draws)) * len(strata) * self._resamples > KEPT:
                self._draws.pop(next(iter(self._draws)))
            self._draws[key] = [counts.astype(np.float32) for counts in draws(strata, self._resamples)]
        return self._draws[key]


@dataclass(frozen=True)
class _One:
    """One repetition of a cell."""

    branch: Branch
    value: float


def _pairs(cell: Cell, base: Cell) -> list[tuple[_One, _One]]:
    """Repetitions that share the seeds of the steps that both stem from; empty: some have no partner or several.

    Where they stem from different repeated steps, equal seeds make a pair.
    """
    if len(cell.branches) != len(cell.values) or len(base.branches) != len(base.values):
        return []
    own, other = ([_One(b, v) for b, v in zip(c.branches, c.values, strict=True)] for c in (cell, base))
    pairs = [(a, b) for a in own for b in other if _share(a.branch.seeds, b.branch.seeds)]
    complete = len({id(a) for a, _ in pairs}) == len(own) and len({id(b) for _, b in pairs}) == len(other)
    return pairs if complete and len(pairs) == max(len(own), len(other)) else []


def _share(first: Mapping[str, int], second: Mapping[str, int]) -> bool:
    common = set(first) & set(second)
    if not common and first and second:
        return sorted(first.values()) == sorted(second.values())
    return all(first[step] == second[step] for step in common)


def _over(cell: Cell, pairs: Sequence[tuple[_One, _One]], drawn: Floats) -> Cell:
    """The difference judged from its resamples and from how the pairs differ; the same for every resample: by the pairs alone."""
    differences = [first.value - second.value for first, second in pairs]
    seeds = [{**second.branch.seeds, **first.branch.seeds} for first, second in pairs]
    found = judge_difference(float(np.mean(differences)), drawn, differences, seeds, level=LEVEL)
    return replace(
        cell, difference=found.value, difference_lower=found.lower, difference_upper=found.upper, p_value=found.p_value
    )


def _over_seeds(cell: Cell, pairs: Sequence[tuple[_One, _One]]) -> Cell:
    """From the repetitions alone: what a new training would give on the same samples."""
    if np.ptp([first.value - second.value for first, second in pairs]) == 0:
        return replace(cell, basis="not compared: the difference is the same for all seeds")
    return replace(_over(cell, pairs, np.zeros(2)), basis=SEEDS)


def corrected(cells: Mapping[tuple[int, int], Cell]) -> dict[tuple[int, int], Cell]:
    """Holm's correction over all p-values of the matrix."""
    tested = [key for key, cell in cells.items() if np.isfinite(cell.p_value)]
    adjusted = dict(zip(tested, holm([cells[key].p_value for key in tested]), strict=True))
    return {
        key: replace(cell, adjusted=adjusted[key], differs=adjusted[key] <= 1 - LEVEL) if key in adjusted else cell
        for key, cell in cells.items()
    }
