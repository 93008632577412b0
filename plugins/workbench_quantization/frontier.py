"""The family's view: what every stored run of one model reached, accuracy against size and against bit operations.

    bench.compare(bench.runs("family = quantization")).report()

Runs count as repetitions of one another if they differ only in seed, or in the seed of the run that found their widths; their
points are drawn once, at the mean, with Student's t interval over seeds. Sizes are those of the integers alone,
sum of n_i b_i / 8, the same measure for every method: scales and zero-points come on top (the methods' own reports count them).
A layer that one run quantises and another leaves in full precision counts 32 bits in the latter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from workbench import InputError, Metric, Report, Run, Scatter, Table
from workbench.report import View

from workbench_quantization.allocator import pareto_front
from workbench_quantization.frontier_points import Point, collect
from workbench_quantization.frontier_readers import NEEDED, RANDOM, ROUNDING
from workbench_quantization.report_parts import resolution

TOLERATED = 0.01
"""Loss of accuracy up to which a solution is said to keep the accuracy."""
WITHIN = f"{100 * TOLERATED:g} point"
NEAR = 0.15
"""Loss of accuracy up to which solutions are drawn: beside collapsed ones the others would be one line."""
WIDE = 8
"""Ratio of the largest to the smallest from which an axis is logarithmic."""


def frontier(runs: Sequence[Run]) -> tuple[Report, xr.Dataset]:
    """Accuracy against size and bit operations of everything that these runs found, with intervals over seeds.

    Args:
        runs: complete runs of methods of this family, of one model and with the same report images.

    Returns:
        the report, and a Dataset over `solution`: series, size_mb, average_bits, bops, accuracy, accuracy_lower,
        accuracy_upper, seed_count, near (drawn), pareto (of size and accuracy), pareto_bops, and the numbers on both fronts.

    Raises:
        InputError: no run stored what is compared; runs of different models or of different report images.
    """
    known = [run for run in runs if all(name in run for name in NEEDED)]
    left_out = [run for run in runs if run not in known]
    if not known:
        raise InputError(
            "runs", expected="runs that stored widths and logits of a quantised classifier", got=f"{len(runs)} without"
        )
    _require_one_subject(known)
    points = collect(known)
    full = _full_precision(known)
    data = _dataset(points, full)
    return _report(points, data, full, known, left_out), data


def _full_precision(runs: Sequence[Run]) -> float:
    """Mean over the runs that measured it; NaN where none did."""
    found = [float(run["accuracy_full_precision"]) for run in runs if "accuracy_full_precision" in run]
    return float(np.mean(found)) if found else float("nan")


def _require_one_subject(runs: Sequence[Run]) -> None:
    models = {str(run.record.inputs.get("model", {}).get("digest")): run for run in runs}
    if len(models) > 1:
        names = sorted({str(run.record.inputs.get("model", {}).get("label")) for run in models.values()})
        raise InputError("runs", expected="runs of one model", got=f"{len(models)} models: {', '.join(names)}")
    first = runs[0]
    for run in runs[1:]:
        same = run["sample_index"].shape == first["sample_index"].shape and all(
            np.array_equal(run[name].values, first[name].values) for name in ("sample_index", "label")
        )
        if not same:
            raise InputError(
                "runs",
                expected="runs that report on the same images",
                got=f"others in {run.id} than in {first.id}",
                hint="Give role `test`: without it every seed keeps another share of `data` to report on.",
            )


def _near(accuracy: np.ndarray, series: np.ndarray, full: float) -> np.ndarray:
    """(solution,) which are drawn: all, unless at least three are near full precision. Random widths always are."""
    near = accuracy >= full - NEAR
    return near | (series == RANDOM) if near.sum() >= 3 else np.ones(len(accuracy), dtype=bool)


def _dataset(points: Sequence[Point], full: float) -> xr.Dataset:
    def column(name: str) -> np.ndarray:
        return np.array([getattr(point, name) for point in points])

    data = xr.Dataset(
        {name: ("solution", column(name)) for name in ("series", "size_mb", "average_bits", "bops", "accuracy")},
        coords={"solution": column("name")},
    )
    data["accuracy_lower"], data["accuracy_upper"] = ("solution", column("lower")), ("solution", column("upper"))
    data["seed_count"] = ("solution", column("seeds"))
    data["near"] = ("solution", _near(column("accuracy"), column("series"), full))
    data["pareto"] = ("solution", pareto_front(column("size_mb"), -column("accuracy")))
    data["pareto_bops"] = ("solution", pareto_front(column("bops"), -column("accuracy")))
    for front, cost in (("pareto", "size_mb"), ("pareto_bops", "bops")):
        data[f"{front}_number"] = ("solution", _numbered(data[front].values & data["near"].values, column(cost)))
    return data


def _report(
    points: Sequence[Point], data: xr.Dataset, full: float, runs: Sequence[Run], left_out: Sequence[Run]
) -> Report:
    seeds = max(point.seeds for point in points)
    keeping = [point for point in points if point.accuracy >= full - TOLERATED - 1e-12]
    smallest = min(keeping, key=_by_worth) if keeping else None
    rivals = [point for point in keeping if point.series == ROUNDING]
    plain = min(rivals, key=_by_worth) if rivals else None
    return Report(
        summary=_summary(full, smallest, plain, points),
        metrics=_metrics(full, smallest, plain),
        tables=(_table(points, data),),
        views=_views(data, seeds, full),
        notes=_notes(runs, left_out, seeds, full),
    )


def _by_worth(point: Point) -> tuple[float, float, bool]:
    """Small first, of equal sizes the most accurate, and of those the one that takes the least effort."""
    return round(point.size_mb, 12), -point.accuracy, point.series != ROUNDING


def _summary(full: float, smallest: Point | None, plain: Point | None, points: Sequence[Point]) -> str:
    if smallest is None:
        best = max(points, key=lambda point: point.accuracy)
        limit = f"within {WITHIN} of {full:.1%}" if np.isfinite(full) else "(no run measured full precision)"
        return f"No solution keeps accuracy {limit}; the most accurate is {best.name}, {_reached(best)}."
    text = f"The smallest to keep accuracy within {WITHIN} of {full:.1%} is {smallest.name}: {_reached(smallest)}."
    if plain is None:
        return f"{text} Plain rounding to one width does not keep it at any width tried."
    if plain.name == smallest.name:
        return f"{text} It is plain rounding: nothing else was smaller."
    if np.isclose(plain.size_mb, smallest.size_mb, rtol=1e-9):
        return f"{text} Plain rounding is as small and has {plain.accuracy:.1%} ({plain.name})."
    return f"{text} Plain rounding needs {plain.average_bits:.2f} bits ({plain.name})."


def _reached(point: Point) -> str:
    return f"{point.accuracy:.1%} at {point.average_bits:.2f} bits per weight"


def _metrics(full: float, smallest: Point | None, plain: Point | None) -> tuple[Metric, ...]:
    metrics = []
    if np.isfinite(full):
        metrics.append(
            Metric(name="accuracy_full_precision", value=full, direction="higher", description="mean over the runs")
        )
    for name, point, text in (
        ("smallest_bits", smallest, "of all solutions"),
        ("smallest_bits_rounding", plain, "of plain rounding to one width"),
    ):
        if point is not None:
            metrics.append(
                Metric(
                    name=name,
                    value=point.average_bits,
                    unit="bit",
                    direction="lower",
                    description=f"bits per weight of the smallest {text} that keeps accuracy within {WITHIN}",
                )
            )
    return tuple(metrics)


CAPTION = (
    "Sizes are those of the integers alone. What is equal in every figure is listed once. Front: of size and accuracy."
)


def _table(points: Sequence[Point], data: xr.Dataset) -> Table:
    def interval(point: Point) -> str:
        return f"{point.lower:.1%} to {point.upper:.1%}" if point.seeds > 1 else ""

    rows = tuple(
        (
            point.name, point.series, round(point.average_bits, 2), round(point.size_mb, 4),
            round(point.bops / 1e9, 3), round(point.accuracy, 4), interval(point),
            point.seeds, "yes" if front else "",
        )
        for point, front in zip(points, data["pareto"].values.tolist(), strict=True)
    )  # fmt: skip
    columns = (
        "solution",
        "series",
        "bits/weight",
        "size (MB)",
        "BOPS (10^9)",
        "accuracy",
        "95 % over seeds",
        "seeds",
        "front",
    )
    return Table(title="Solutions by size", columns=columns, rows=rows, caption=CAPTION)


def _views(data: xr.Dataset, seeds: int, full: float) -> tuple[View, ...]:
    whiskers = f"Whiskers: 95 % intervals over up to {seeds} seeds." if seeds > 1 else "One seed each: no intervals."
    reference = f" Full precision: {full:.1%}." if np.isfinite(full) else ""
    near = data["near"].values
    below, select = "", {}
    if not near.all():
        select = {"solution": data["solution"].values[near].tolist()}
        below = f" In the table only: {int((~near).sum())} more below {full - NEAR:.0%}."
    return tuple(
        Scatter(
            title=f"Accuracy against {title}",
            x=x,
            y="accuracy",
            color="series",
            label="solution",
            text=f"{front}_number",
            lower="accuracy_lower",
            upper="accuracy_upper",
            highlight=front,
            select=select,
            x_label=label,
            y_label="accuracy",
            log_x=bool(data[x][near].max() >= WIDE * data[x][near].min()),
            caption=f"{whiskers}{reference}{below} Large: no other is {less} and more accurate: {_front(data, front, x)}.",
        )
        for title, x, label, front, less in (
            ("size", "size_mb", "MB of integers", "pareto", "smaller"),
            ("bit operations", "bops", "bit operations of one sample", "pareto_bops", "cheaper"),
        )
    )


def _numbered(front: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """(solution,) `1`, `2`, ... along a front in order of cost; empty beside it."""
    numbers = np.full(len(front), "", dtype=object)
    for place, row in enumerate((row for row in np.argsort(cost, kind="stable") if front[row]), start=1):
        numbers[row] = str(place)
    return numbers


def _front(data: xr.Dataset, front: str, cost: str) -> str:
    """`1 hawq: eig walk; 2 ...` of what is drawn."""
    on = data.isel(solution=np.flatnonzero(data[front].values & data["near"].values)).sortby(cost)
    return "; ".join(
        f"{number} {name}" for number, name in zip(on[f"{front}_number"].values, on["solution"].values, strict=True)
    )


def _notes(runs: Sequence[Run], left_out: Sequence[Run], seeds: int, full: float) -> tuple[str, ...]:
    count = runs[0]["label"].size
    known = f": {full:.1%} is known to ±{100 * resolution(full, count):.1f} points" if np.isfinite(full) else ""
    notes = [
        f"{len(runs)} runs, accuracies of the same {count:,} report images. Intervals cover the choice of calibration images and "
        f"other chance of a run, not the choice of report images{known}.",
        "The smallest is a choice among all of these on the report images: judge it on others before you rely on it.",
        "Methods quantise inputs as their parameters say; widths of inputs enter the bit operations, not the size.",
        "Random widths are the mean of a run's random tables.",
    ]
    if seeds == 1:
        notes.append("Repeat the runs with other seeds (`bench.sweep(..., seed=range(5))`) to see what is chance.")
    if left_out:
        names = ", ".join(f"{run.id} ({run.method})" for run in left_out)
        notes.append(f"Left out, because they store no widths or logits of a classifier: {names}.")
    return tuple(notes)
