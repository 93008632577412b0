"""Variants beside metrics: values with intervals, and each compared with the baseline on the same samples where that can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError
from workbench.record import report_number
from workbench.study.comparing import LEVEL, Cell, Comparisons, corrected
from workbench.study.description import Metric
from workbench.study.plan import Branch, Option, belongs, spelled, variants
from workbench.study.significance import RESAMPLES, repetitions_interval

if TYPE_CHECKING:
    import xarray as xr

    from workbench.study.result import StudyResult

__all__ = ["Cell", "Column", "Matrix", "Row", "columns_of", "make_matrix"]

MOST_RESAMPLES = 20_000
MANY, FEWER = 200, 2_000
"""Tests above which more resamples cost more than they tell, because small p-values come from the normal tail anyway; and how
many resamples are made then."""


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
    words: str = ""
    """What tells it from the other columns of its metric."""


@dataclass(frozen=True)
class Matrix:
    """The answer in numbers."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[int, int], Cell]
    baselines: tuple[int, ...]
    """For each row the row that it is compared with; a baseline is its own."""
    resamples: int

    def column(self, column: int) -> np.ndarray:
        """Values of a column, (row,)."""
        return np.array([self.cells[row, column].value for row in range(len(self.rows))])

    def is_baseline(self, row: int) -> bool:
        """Whether others are compared with it."""
        return self.baselines[row] == row

    @property
    def baseline(self) -> str:
        """What the variants are compared with, in words: the common part of the baselines' labels."""
        names = [self.rows[row].label.split(", ") for row in dict.fromkeys(self.baselines)]
        shared = [part for part in names[0] if all(part in name for name in names)]
        return ", ".join(shared) or " or ".join(self.rows[row].label for row in dict.fromkeys(self.baselines))

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
            "group": ("metric", [column.asked.group for column in self.columns]),
            "baseline": ("variant", [self.rows[row].label for row in self.baselines]),
        }
        return xr.Dataset(data, coords=coords, attrs={"baseline": self.baseline, "level": LEVEL})


def make_matrix(result: StudyResult) -> Matrix:
    """Fill the matrix and compare every variant with the baseline."""
    rows = [Row(label, options, options[0].trail) for label, options in variants(result.plan).items()]
    columns, members = _columns(result, rows)
    cells: dict[tuple[int, int], Cell] = {}
    for number, column in enumerate(columns):
        described: dict[str, Any] = {}
        for at in range(len(rows)):
            cells[at, number], found = _cell(result, column.asked, rows[at].trail, members.get((at, number), []))
            described = described or found
        direction = column.asked.direction or described.get("direction", "neutral")
        columns[number] = replace(column, direction=direction, unit=described.get("unit", ""))
    if not any(np.isfinite(cell.value) for cell in cells.values()):
        metrics = ", ".join(column.label for column in columns) or "no metric"
        raise InputError(
            "study", expected="at least one variant with a metric of the study", got=f"none with {metrics}",
            hint="`workbench study status` says what is there and what failed.",
        )  # fmt: skip
    baselines = _baselines(rows, result.plan.study.questions.across, result.plan.study.questions.baseline)
    tests = sum(base != row for row, base in enumerate(baselines)) * len(columns)
    resamples = min(MOST_RESAMPLES, max(RESAMPLES, 200 * tests)) if tests <= MANY else FEWER
    compare = Comparisons(result, resamples)
    compared = {
        key: cell
        if key[0] == baselines[key[0]]
        else compare(columns[key[1]].asked, cell, cells[baselines[key[0]], key[1]])
        for key, cell in cells.items()
    }
    return Matrix(tuple(rows), tuple(columns), corrected(compared), baselines, resamples)


def _baselines(rows: list[Row], across: str, wanted: str) -> tuple[int, ...]:
    """Per row the number of the one to compare it with: of the wanted label, or the wanted alternative with all else shared."""
    labels = [row.label for row in rows]
    if not wanted or wanted in labels:
        return (labels.index(wanted) if wanted else 0,) * len(rows)
    candidates = [number for number, row in enumerate(rows) if row.trail.get(across) == wanted]
    found = []
    for row in rows:
        shared = [
            number
            for number in candidates
            if all(row.trail.get(name) == value for name, value in rows[number].trail.items() if name != across)
        ]
        found.append(shared[0] if len(shared) == 1 else candidates[0])
    return tuple(found)


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
                if any(str(value) != option.trail.get(name) for name, value in asked.where.items()):
                    continue
                extra = {
                    name: value
                    for name, value in option.trail.items()
                    if row.trail.get(name) != value and name not in asked.where
                }
                words = ", ".join(spelled(name, value) for name, value in extra.items())
                label = (asked.label or f"{asked.step} {asked.metric}") + (f" ({words})" if words else "")
                key = (which, words)
                columns.setdefault(key, Column(label, asked, extra, words=words))
                cell = members.setdefault((at, list(columns).index(key)), [])
                made = option.value if isinstance(option.value, Branch) else None
                if made not in cell:
                    cell.append(made)
    return list(columns.values()), members


def _cell(
    result: StudyResult, asked: Metric, trail: Mapping[str, str], branches: list[Branch | None]
) -> tuple[Cell, dict[str, Any]]:
    """Value (mean over repetitions) and interval; and what the report says about the metric."""
    otherwise = asked.otherwise
    if isinstance(otherwise, dict):
        otherwise = next((otherwise[value] for value in trail.values() if value in otherwise), None)
    values, described, kept = [], dict[str, Any](), list[Branch]()
    for branch in branches:
        run = None if branch is None else result.run(branch)
        if branch is None and otherwise is not None:
            values.append(otherwise)  # a subject, which no run made
        if branch is None or run is None:
            continue
        entries = {entry["name"]: entry for entry in (run.record.report or {}).get("metrics", ())}
        if asked.metric in entries:
            described = described or entries[asked.metric]
            values.append(run.metrics[asked.metric])
            kept.append(branch)
        elif otherwise is not None:
            values.append(otherwise)
            kept.append(branch)
    if not values:
        return Cell(np.nan), described
    lower = upper = np.nan
    if len(values) > 1 and np.isfinite(values).all():
        seeds = [branch.seeds for branch in kept] if len(kept) == len(values) else []
        lower, upper = repetitions_interval(values, seeds, level=LEVEL)
    elif described.get("interval"):
        lower, upper = (report_number(bound) for bound in described["interval"])
    return Cell(float(np.mean(values)), lower, upper, tuple(kept), tuple(values)), described


def columns_of(result: StudyResult, asked: list[Metric]) -> list[tuple[Column, Cell]]:
    """Numbers of steps whatever their variants; repetitions are one."""
    found: list[tuple[Column, Cell]] = []
    for metric in asked:
        groups: dict[str, list[Branch | None]] = {}
        trails: dict[str, Mapping[str, str]] = {}
        for option in result.plan.options(metric.step):
            if any(str(value) != option.trail.get(name) for name, value in metric.where.items()):
                continue
            words = ", ".join(spelled(name, value) for name, value in option.trail.items() if name not in metric.where)
            groups.setdefault(words, []).append(option.value if isinstance(option.value, Branch) else None)
            trails[words] = option.trail
        for words, branches in groups.items():
            cell, described = _cell(result, metric, trails[words], branches)
            label = (metric.label or f"{metric.step} {metric.metric}") + (f" ({words})" if words else "")
            direction = metric.direction or described.get("direction", "neutral")
            found.append((Column(label, metric, trails[words], direction, described.get("unit", ""), words), cell))
    return found
