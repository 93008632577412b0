"""Variants beside metrics: values with intervals, and each compared with the baseline on the same samples where that can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError
from workbench.record import report_number
from workbench.study.description import Metric
from workbench.study.plan import Branch, Option, belongs, spelled, variants
from workbench.study.samples import Judged, judged
from workbench.study.significance import RESAMPLES, holm, paired_bootstrap

if TYPE_CHECKING:
    import xarray as xr

    from workbench.study.result import StudyResult

__all__ = ["Cell", "Column", "Matrix", "Row", "make_matrix"]

LEVEL = 0.95
MOST_RESAMPLES = 20_000
BOOTSTRAP, SEEDS, INTERVALS = "paired bootstrap", "paired t over seeds", "stored intervals"


@dataclass(frozen=True)
class Row:
    """A variant. Repetitions with several seeds are one."""

    label: str
    options: tuple[Option, ...]
    trail: Mapping[str, str]


@dataclass(frozen=True)
class Column:
    """A metric of a step, and of one of its own variants where there are several."""

    label: str
    asked: Metric
    trail: Mapping[str, str]
    direction: str = "neutral"
    unit: str = ""


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
    """How it was compared: paired bootstrap, paired t over seeds, stored intervals, or not at all."""
    differs: bool = False
    """Adjusted p at most 5 %, or, where only intervals are stored, intervals that do not overlap."""


@dataclass(frozen=True)
class Matrix:
    """The answer in numbers."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[int, int], Cell]
    baseline: int
    resamples: int

    def column(self, column: int) -> np.ndarray:
        """Values of a column, (row,)."""
        return np.array([self.cells[row, column].value for row in range(len(self.rows))])

    def labelled(self, label: str) -> list[int]:
        """Columns of the metric that the study calls so."""
        return [number for number, column in enumerate(self.columns) if column.asked.label == label]

    def better(self, row: int, column: int) -> bool | None:
        """Whether a variant differs from the baseline for the better (True) or worse (False); None: it does not, or unknown."""
        cell, direction = self.cells[row, column], self.columns[column].direction
        if not cell.differs or direction == "neutral":
            return None
        return (cell.difference > 0) == (direction == "higher")

    def dataset(self) -> xr.Dataset:
        """Everything over (variant, metric)."""
        import xarray as xr

        names = ("value", "lower", "upper", "difference", "difference_lower", "difference_upper", "p_value", "adjusted",
                 "differs", "basis")  # fmt: skip
        shape = [[self.cells[row, column] for column in range(len(self.columns))] for row in range(len(self.rows))]
        data = {
            name: (("variant", "metric"), np.array([[getattr(cell, name) for cell in row] for row in shape]))
            for name in names
        }
        coords: dict[str, Any] = {
            "variant": [row.label for row in self.rows],
            "metric": [column.label for column in self.columns],
            "direction": ("metric", [column.direction for column in self.columns]),
        }
        return xr.Dataset(data, coords=coords, attrs={"baseline": self.rows[self.baseline].label, "level": LEVEL})


def make_matrix(result: StudyResult) -> Matrix:
    """Fill the matrix and compare every variant with the baseline."""
    rows = [Row(label, options, options[0].trail) for label, options in variants(result.plan).items()]
    columns, members = _columns(result, rows)
    cells: dict[tuple[int, int], Cell] = {}
    for number, column in enumerate(columns):
        described: dict[str, Any] = {}
        for at in range(len(rows)):
            cells[at, number], found = _cell(result, column.asked, members.get((at, number), []))
            described = described or found
        direction = column.asked.direction or described.get("direction", "neutral")
        columns[number] = replace(column, direction=direction, unit=described.get("unit", ""))
    if not any(np.isfinite(cell.value) for cell in cells.values()):
        metrics = ", ".join(column.label for column in columns) or "no metric"
        raise InputError(
            "study", expected="at least one variant with a metric of the study", got=f"none with {metrics}",
            hint="`workbench study status` says what is there and what failed.",
        )  # fmt: skip
    wanted = result.plan.study.questions.baseline
    baseline = [row.label for row in rows].index(wanted) if wanted else 0
    resamples = min(MOST_RESAMPLES, max(RESAMPLES, 200 * (len(rows) - 1) * len(columns)))
    compared = {
        key: cell
        if key[0] == baseline
        else _compared(result, columns[key[1]].asked, cell, cells[baseline, key[1]], resamples)
        for key, cell in cells.items()
    }
    return Matrix(tuple(rows), tuple(columns), _corrected(compared), baseline, resamples)


def _columns(result: StudyResult, rows: list[Row]) -> tuple[list[Column], dict[tuple[int, int], list[Branch | None]]]:
    """Columns, and per cell the branches whose runs have the number (several: repetitions)."""
    columns: dict[tuple[int, str], Column] = {}
    members: dict[tuple[int, int], list[Branch | None]] = {}
    across = result.plan.study.questions.across
    for which, asked in enumerate(result.plan.study.questions.metrics):
        for at, row in enumerate(rows):
            for option in result.plan.options(asked.step):
                if not any(belongs(option, variant, across, asked.step) for variant in row.options):
                    continue
                extra = {name: value for name, value in option.trail.items() if row.trail.get(name) != value}
                words = ", ".join(spelled(name, value) for name, value in extra.items())
                label = (asked.label or f"{asked.step} {asked.metric}") + (f" ({words})" if words else "")
                key = (which, words)
                columns.setdefault(key, Column(label, asked, extra))
                cell = members.setdefault((at, list(columns).index(key)), [])
                made = option.value if isinstance(option.value, Branch) else None
                if made not in cell:
                    cell.append(made)
    return list(columns.values()), members


def _cell(result: StudyResult, asked: Metric, branches: list[Branch | None]) -> tuple[Cell, dict[str, Any]]:
    """Value (mean over repetitions) and interval; and what the report says about the metric."""
    values, described, kept = [], dict[str, Any](), []
    for branch in branches:
        run = None if branch is None else result.run(branch)
        if branch is None and asked.otherwise is not None:
            values.append(asked.otherwise)  # a subject, which no run made
        if branch is None or run is None:
            continue
        entries = {entry["name"]: entry for entry in (run.record.report or {}).get("metrics", ())}
        if asked.metric in entries:
            described = described or entries[asked.metric]
            values.append(run.metrics[asked.metric])
            kept.append(branch)
        elif asked.otherwise is not None:
            values.append(asked.otherwise)
            kept.append(branch)
    if not values:
        return Cell(np.nan), described
    lower = upper = np.nan
    if len(values) > 1 and np.isfinite(values).all():
        from workbench.toolkit.statistics import mean_interval

        lower, upper = mean_interval(values, level=LEVEL).bounds
    elif described.get("interval"):
        lower, upper = (report_number(bound) for bound in described["interval"])
    return Cell(float(np.mean(values)), lower, upper, tuple(kept), tuple(values)), described


# ------------------------------------------------------------------------------------------------------------ comparing


def _compared(result: StudyResult, asked: Metric, cell: Cell, base: Cell, resamples: int) -> Cell:
    if not (np.isfinite(cell.value) and np.isfinite(base.value)):
        return cell
    cell = replace(cell, difference=cell.value - base.value)
    if len(cell.branches) > 1 or len(base.branches) > 1:
        return _over_seeds(cell, base)
    if cell.branches == base.branches:
        return replace(cell, basis="the same run")
    first, second = _judged(result, asked, cell), _judged(result, asked, base)
    if first is not None and second is not None and first.same_samples(second):
        found = paired_bootstrap(first.statistic, second.statistic, first.strata, resamples=resamples, level=LEVEL)
        return replace(
            cell, difference=found.value, difference_lower=found.lower, difference_upper=found.upper,
            p_value=found.p_value, basis=BOOTSTRAP,
        )  # fmt: skip
    if np.isfinite([cell.lower, cell.upper, base.lower, base.upper]).all():
        return replace(cell, basis=INTERVALS, differs=cell.lower > base.upper or cell.upper < base.lower)
    return replace(cell, basis="not compared: neither shared samples nor intervals are stored")


def _over_seeds(cell: Cell, base: Cell) -> Cell:
    """Repetitions are compared in pairs that share the seeds of the steps that both stem from."""
    own = {tuple(sorted(branch.seeds.items())): value for branch, value in zip(cell.branches, cell.values, strict=True)}
    other = {
        tuple(sorted(branch.seeds.items())): value for branch, value in zip(base.branches, base.values, strict=True)
    }
    if len(own) < 2 or set(own) != set(other):
        return replace(cell, basis="not compared: the repetitions of the two do not pair up")
    from scipy import stats

    from workbench.toolkit.statistics import mean_interval

    differences = np.array([own[seeds] - other[seeds] for seeds in own])
    if np.ptp(differences) == 0:
        return replace(cell, basis="not compared: the difference is the same for all seeds")
    lower, upper = mean_interval(differences, level=LEVEL).bounds
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return replace(cell, difference_lower=lower, difference_upper=upper, p_value=p, basis=SEEDS)


def _judged(result: StudyResult, asked: Metric, cell: Cell) -> Judged | None:
    run = result.run(cell.branches[0]) if cell.branches else None
    return None if run is None else judged(run, cell.branches[0], asked.metric)


def _corrected(cells: Mapping[tuple[int, int], Cell]) -> dict[tuple[int, int], Cell]:
    """Holm's correction over all p-values of the matrix."""
    tested = [key for key, cell in cells.items() if np.isfinite(cell.p_value)]
    adjusted = dict(zip(tested, holm([cells[key].p_value for key in tested]), strict=True))
    return {
        key: replace(cell, adjusted=adjusted[key], differs=adjusted[key] <= 1 - LEVEL) if key in adjusted else cell
        for key, cell in cells.items()
    }
