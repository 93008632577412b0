"""The family's view: what every stored run of one model reached, accuracy against size and against bit operations.

    bench.compare(bench.runs("family = quantization")).report()

Runs count as repetitions of one another if they differ only in seed; their points are drawn once, at the mean, with Student's
t interval over seeds. Sizes are those of the integers alone, sum of n_i b_i / 8, the same measure for every method: scales,
zero-points and what stays in full precision by design come on top (the methods' own reports count them).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from workbench import InputError, Metric, Report, Run, Scatter, Table
from workbench.report import View
from workbench.toolkit import mean_interval

from workbench_quantization.allocator import pareto_front
from workbench_quantization.hawq_solutions import MEGABYTE
from workbench_quantization.quantizer import FULL_PRECISION

TOLERATED = 0.01
"""Loss of accuracy up to which a solution is said to keep the accuracy."""


ROUNDING = "rounding, one width"
RANDOM = "random widths"
RIVALS = {"random": RANDOM, "uniform": ROUNDING, "reversed": "reversed order"}
"""Series of what methods are compared with, by the kind of HAWQ's solutions."""


@dataclass(frozen=True)
class Reached:
    """What one table of widths reached in one run.

    Attributes:
        series: what is drawn in one colour: a method, or what the methods are compared with.
        solution: name of the table within the run; tables of one name are drawn as one point, at their mean.
        bits: width of every layer, (layer,).
        accuracy: on the report images.
        input_bits: width of every layer's input, (layer,); None where `act_bits` of the run says it.
    """

    series: str
    solution: str
    bits: np.ndarray
    accuracy: float
    input_bits: np.ndarray | None = None


@dataclass(frozen=True)
class Point:
    """A solution over all seeds it was found with; `lower` and `upper` are NaN for a single seed."""

    series: str
    name: str
    size_mb: float
    average_bits: float
    bops: float
    accuracy: float
    lower: float
    upper: float
    seeds: int


def _uniform(run: Run) -> Iterator[Reached]:
    params, accuracy = run.record.params, run["accuracy"].values
    for row, sharing in enumerate(params["sharings"]):
        for column, width in enumerate(params["widths"]):
            bits = np.full(run["parameter_count"].size, width)
            if params["first_last_bits"] is not None:
                bits[[0, -1]] = params["first_last_bits"]
            yield Reached(ROUNDING, f"{width} bit, range per {sharing}", bits, float(accuracy[row, column]))
    if "accuracy_given" in run:
        given, bits = run["accuracy_given"].values, run["bits"].values
        for row, sharing in enumerate(params["sharings"]):
            yield Reached("rounding, given widths", f"given, range per {sharing}", bits, float(given[row]))


def _hawq(run: Run) -> Iterator[Reached]:
    accuracy = run["accuracy"].to_series()
    tables = dict(zip(accuracy.index, run["solution_bits"].values, strict=True))
    for kind, (name, reached) in zip(run["solution_kind"].values, accuracy.items(), strict=True):
        series = "hawq" if kind in ("chosen", "other", "sweep") else RIVALS.get(str(kind), "baselines")
        yield Reached(series, "random orders" if series == RANDOM else str(name), tables[name], float(reached))
    if "finetuned_accuracy" in run:
        for name, reached in run["finetuned_accuracy"].to_series().items():
            yield Reached("hawq, fine-tuned", f"{name}, fine-tuned", tables[name], float(reached))


def _adaquant(run: Run) -> Iterator[Reached]:
    accuracy, tables = run["accuracy"].load(), run["solution_bits"].values
    first, *_, last = map(str, accuracy["stage"].values)
    for row, (kind, name) in enumerate(zip(run["solution_kind"].values, accuracy["solution"].values, strict=True)):
        yield Reached("adaquant", f"{name}, {last}", tables[row], float(accuracy[row, -1]))
        if kind == "uniform":  # before any repair: plain rounding
            yield Reached(ROUNDING, f"{name}, {first}", tables[row], float(accuracy[row, 0]))


def _interlayer(run: Run) -> Iterator[Reached]:
    accuracy, tables = run["accuracy"].load(), run["solution_bits"].values
    for row, name in enumerate(map(str, accuracy["solution"].values)):
        series = RANDOM if name.startswith("random") else "interlayer" if row == 0 else "interlayer, other orders"
        for column, target in enumerate(accuracy["target"].values):
            solution = f"{'random orders' if series == RANDOM else name}, target {target:g}"
            yield Reached(series, solution, tables[row, column], float(accuracy[row, column]))


def _double_rounding(run: Run) -> Iterator[Reached]:
    accuracy, quantised = run["accuracy"].load(), run["quantised"].values
    for variant in map(str, accuracy["variant"].values):
        for width in map(int, accuracy["bit"].values):
            bits = np.where(quantised, width, FULL_PRECISION)
            reached = float(accuracy.sel(variant=variant, bit=width))
            yield Reached("double_rounding", f"{variant}, {width} bit", bits, reached, _switched_inputs(run, bits))
    if "subnet_accuracy" in run:
        main = run["subnet_accuracy"][0].load()
        for row, (kind, bits) in enumerate(zip(run["subnet_kind"].values, run["subnet_bits"].values, strict=True)):
            series = RANDOM if kind == "random" else "double_rounding, mixed"
            name = "random widths" if kind == "random" else str(main["subnet"].values[row])
            yield Reached(series, name, bits, float(main[row]), _switched_inputs(run, bits))


def _switched_inputs(run: Run, bits: np.ndarray) -> np.ndarray:
    return bits if run.record.params["quantise_inputs"] else np.full(len(bits), FULL_PRECISION)


def _stored(run: Run) -> Iterator[Reached]:
    """The stored model of any other method, by its logits."""
    accuracy = float((run["logit"].values.argmax(1) == run["label"].values).mean())
    yield Reached(
        run.method.partition(".")[2], "stored model", run["bits"].values, accuracy, run["input_bits"].values
    )


READERS: Mapping[str, Callable[[Run], Iterator[Reached]]] = {
    "quantization.uniform": _uniform,
    "quantization.hawq": _hawq,
    "quantization.adaquant": _adaquant,
    "quantization.interlayer": _interlayer,
    "quantization.double_rounding": _double_rounding,
}
"""How to read a method's solutions; of others the stored model is read."""

NEEDED = ("parameter_count", "macs", "bits", "input_bits", "logit", "label", "sample_index")


def input_widths(bits: np.ndarray, act_bits: int | str, fixed: int | None) -> np.ndarray:
    """Width of every layer's input, (layer,), as `Costs.input_bits` has it.

    Args:
        bits: width of every layer, (layer,).
        act_bits: width of the inputs, or "weight" for that of the weights.
        fixed: width of the first and last layer where it is given; their inputs are not narrower than that.
    """
    if act_bits == "weight":
        return bits
    inputs = np.full(len(bits), int(act_bits))
    if fixed is not None:
        inputs[[0, -1]] = max(fixed, int(act_bits))
    return inputs


def frontier(runs: Sequence[Run]) -> tuple[Report, xr.Dataset]:
    """Accuracy against size and bit operations of everything that these runs found, with intervals over seeds.

    Args:
        runs: complete runs of methods of this family, of one model and with the same report images.

    Returns:
        the report, and a Dataset over `solution`: series, size_mb, average_bits, bops, accuracy, accuracy_lower,
        accuracy_upper, seed_count, pareto (of size and accuracy) and pareto_bops.

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
    data = _dataset(points)
    full = float(np.mean([_full_precision(run) for run in known]))
    return _report(points, data, full, known, left_out), data


def _full_precision(run: Run) -> float:
    return float(run["accuracy_full_precision"]) if "accuracy_full_precision" in run else float("nan")


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


def collect(runs: Sequence[Run]) -> list[Point]:
    """Every solution of every run, those of runs that differ only in seed as one point, in order of size.

    Random tables of one run are one point: their mean, which the seeds then repeat. Solutions of one series and variant whose
    figures are all equal are one point, under the first name: with one candidate width a program has nothing to choose.
    """
    variants = _variants(runs)
    found: dict[tuple[str, str, str], dict[int, list[tuple[float, float, float, float]]]] = {}
    for run in runs:
        sizes, macs = run["parameter_count"].values.astype(float), run["macs"].values
        for item in READERS.get(run.method, _stored)(run):
            variant = f"{run.method.partition('.')[2]}{variants[run.id]}"
            total = float((sizes * item.bits).sum())
            inputs = item.input_bits
            if inputs is None:
                params = run.record.params
                inputs = input_widths(item.bits, params["act_bits"], params.get("first_last_bits"))
            bops = float((macs.astype(float) * item.bits * inputs).sum())
            row = (total / 8 / MEGABYTE, total / float(sizes.sum()), bops, item.accuracy)
            found.setdefault((item.series, variant, item.solution), {}).setdefault(run.seed, []).append(row)
    points = []
    seen: set[tuple[str, str, tuple[int, ...], bytes]] = set()
    for (series, variant, solution), by_seed in found.items():
        rows = np.array([np.mean(parts, axis=0) for parts in by_seed.values()])
        figures = (series, variant, tuple(by_seed), rows.tobytes())
        if figures in seen:
            continue
        seen.add(figures)
        size, bits, bops, accuracy = rows.mean(axis=0)
        estimate = mean_interval(rows[:, 3]) if len(rows) > 1 else None
        low, high = (float(estimate.lower), float(estimate.upper)) if estimate is not None else (np.nan, np.nan)
        points.append(Point(series, f"{variant}: {solution}", size, bits, bops, accuracy, low, high, len(rows)))
    return sorted(points, key=lambda point: (point.size_mb, point.name))


def _variants(runs: Sequence[Run]) -> dict[str, str]:
    """By run, what its parameters have that other runs of its method do not: ` (budget_value 3)`; empty where all agree."""
    texts = {}
    for method in {run.method for run in runs}:
        of_method = [run for run in runs if run.method == method]
        spelled = [{key: json.dumps(value) for key, value in run.record.params.items()} for run in of_method]
        differing = sorted({key for one in spelled for key in one if len({other.get(key) for other in spelled}) > 1})
        for run, one in zip(of_method, spelled, strict=True):
            what = ", ".join(f"{key} {one.get(key, '-')}" for key in differing)
            texts[run.id] = f" ({what})" if what else ""
    return texts


def _dataset(points: Sequence[Point]) -> xr.Dataset:
    def column(name: str) -> np.ndarray:
        return np.array([getattr(point, name) for point in points])

    data = xr.Dataset(
        {name: ("solution", column(name)) for name in ("series", "size_mb", "average_bits", "bops", "accuracy")},
        coords={"solution": column("name")},
    )
    data["accuracy_lower"], data["accuracy_upper"] = ("solution", column("lower")), ("solution", column("upper"))
    data["seed_count"] = ("solution", column("seeds"))
    data["pareto"] = ("solution", pareto_front(column("size_mb"), -column("accuracy")))
    data["pareto_bops"] = ("solution", pareto_front(column("bops"), -column("accuracy")))
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
        summary=_summary(full, smallest, plain),
        metrics=_metrics(full, smallest, plain),
        tables=(_table(points, data),),
        views=_views(data, seeds),
        notes=_notes(runs, left_out, seeds),
    )


def _by_worth(point: Point) -> tuple[float, float, bool]:
    """Small first, of equal sizes the most accurate, and of those the one that takes the least effort."""
    return round(point.size_mb, 12), -point.accuracy, point.series != ROUNDING


def _summary(full: float, smallest: Point | None, plain: Point | None) -> str:
    if smallest is None:
        return f"No solution keeps accuracy within {TOLERATED:.0%} of {full:.1%}."
    text = (
        f"{smallest.name} is the smallest that keeps accuracy within {TOLERATED:.0%} of {full:.1%}: "
        f"{smallest.accuracy:.1%} at {smallest.average_bits:.2f} bits per weight."
    )
    if plain is None:
        return f"{text} No single width for all layers does without further repair."
    if plain.name == smallest.name:
        return f"{text} It is plain rounding: nothing else was smaller."
    if np.isclose(plain.size_mb, smallest.size_mb, rtol=1e-9):
        return f"{text} Plain rounding is as small and has {plain.accuracy:.1%} ({plain.name})."
    return f"{text} Plain rounding needs {plain.average_bits:.2f} bits ({plain.name})."


def _metrics(full: float, smallest: Point | None, plain: Point | None) -> tuple[Metric, ...]:
    metrics = [Metric(name="accuracy_full_precision", value=full, direction="higher", description="mean over the runs")]
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
                    description=f"bits per weight of the smallest {text} that keeps accuracy within {TOLERATED:.0%}",
                )
            )
    return tuple(metrics)


CAPTION = "Sizes are those of the integers alone. What is equal in every figure is listed once."


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
    columns = ("solution", "series", "bits/weight", "size (MB)", "BOPS (10^9)", "accuracy", "95 % over seeds", "seeds", "front")
    return Table(title="Solutions by size", columns=columns, rows=rows, caption=CAPTION)


def _views(data: xr.Dataset, seeds: int) -> tuple[View, ...]:
    whiskers = f"Whiskers: 95 % intervals over up to {seeds} seeds." if seeds > 1 else "One seed each: no intervals."
    return tuple(
        Scatter(
            title=f"Accuracy against {title}",
            x=x,
            y="accuracy",
            color="series",
            lower="accuracy_lower",
            upper="accuracy_upper",
            highlight=front,
            x_label=label,
            y_label="accuracy",
            log_x=True,
            caption=f"{whiskers} Large: no other is {less} and more accurate.",
        )
        for title, x, label, front, less in (
            ("size", "size_mb", "MB of integers", "pareto", "smaller"),
            ("bit operations", "bops", "bit operations of one sample", "pareto_bops", "cheaper"),
        )
    )


def _notes(runs: Sequence[Run], left_out: Sequence[Run], seeds: int) -> tuple[str, ...]:
    notes = [
        f"{len(runs)} runs, accuracies of {runs[0]['label'].size:,} report images. Intervals cover the choice of calibration "
        "images and other chance of a run, not the choice of report images.",
        "Methods quantise inputs as their parameters say; widths of inputs enter the bit operations, not the size.",
        "Random widths are the mean of a run's random tables.",
    ]
    if seeds == 1:
        notes.append("Repeat the runs with other seeds (`bench.sweep(..., seed=range(5))`) to see what is chance.")
    if left_out:
        names = ", ".join(f"{run.id} ({run.method})" for run in left_out)
        notes.append(f"Left out, because they store no widths or logits of a classifier: {names}.")
    return tuple(notes)
