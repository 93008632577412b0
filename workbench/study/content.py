"""The report of a study as data: tables and views, and the arrays that the views draw from."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError, WorkbenchError
from workbench.render.arrays import ViewArrays
from workbench.render.texts import number_text
from workbench.report import HeatMap, ImageGrid, Line, Report, Scatter, Table, View
from workbench.study.conclusions import RULES, conclusions, how_compared
from workbench.study.matrix import Matrix
from workbench.study.samples import ENTRIES
from workbench.study.significance import disagreement, pareto_front

if TYPE_CHECKING:
    import xarray as xr

    from workbench.runs import Run
    from workbench.study.result import StudyResult

__all__ = ["front", "study_content"]

PICTURES = 12
NAMED = 8
"""Variants that are all named in a scatter; of more, those on the front are numbered."""
FEW = 6
"""Variants whose predictions are all named above a picture."""
ARROWS = {"higher": " ↑", "lower": " ↓", "neutral": ""}


def study_content(result: StudyResult) -> tuple[Report, ViewArrays]:
    """Everything that the page of a study shows but its matrix (the page writes that) and its runs."""
    import xarray as xr

    matrix, study = result.matrix, result.plan.study
    data: dict[str, Any] = {"variant": [row.label for row in matrix.rows]}
    views: list[View] = [*_fronts(matrix, study.questions.fronts, data), *_parallel(matrix, data)]
    notes = list(study.notes)
    try:
        views += _samples(result, data)
    except WorkbenchError as error:
        notes.append(f"Samples on which variants disagree cannot be shown: {error}")
    tables = (_differences(matrix),)
    notes += [*how_compared(matrix), *(f"Rule of the conclusions: {rule}" for rule in RULES)]
    report = Report(conclusions(matrix, study.questions.cost), (), tables, views, notes)
    return report, ViewArrays(xr.Dataset(data), study.name)


def _differences(matrix: Matrix) -> Table:
    rows = []
    for row in range(len(matrix.rows)):
        for number, column in enumerate(matrix.columns):
            cell = matrix.cells[row, number]
            if matrix.is_baseline(row) or not np.isfinite(cell.difference):
                continue
            tested = np.isfinite(cell.p_value)
            span = f"{number_text(cell.difference_lower)} to {number_text(cell.difference_upper)}" if tested else ""
            verdict = {True: "better", False: "worse", None: "differs" if cell.differs else ""}[
                matrix.better(row, number)
            ]
            rows.append((
                matrix.rows[row].label, column.label, cell.difference, span,
                _probability(cell.p_value), _probability(cell.adjusted), verdict, cell.basis,
            ))  # fmt: skip
    columns = ("variant", "metric", "difference", "95 % interval", "p", "p (Holm)", "verdict", "compared by")
    title = f"Differences from {matrix.baseline}"
    return Table(title=title, columns=columns, rows=tuple(rows))


def _probability(value: float) -> str:
    return "" if not np.isfinite(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _fronts(matrix: Matrix, pairs: list[tuple[str, str]], data: dict[str, Any]) -> list[View]:
    """A scatter of two metrics for each pair; what is on the front is drawn large."""
    views: list[View] = []
    drawn = [(x, y) for first, second in pairs for x in matrix.labelled(first) for y in matrix.labelled(second)]
    for number, (x, y) in enumerate(drawn):
        for column in (matrix.columns[x], matrix.columns[y]):
            if column.direction == "neutral":
                where = f"questions.metrics ({column.label})"
                raise InputError(
                    where, expected="a direction, because fronts need to know which way is better", got="none"
                )
        view, arrays = front(matrix, x, y, number)
        data |= arrays
        views.append(view)
    return views


def front(matrix: Matrix, x: int, y: int, number: int = 0) -> tuple[Scatter, dict[str, Any]]:
    """Two columns against each other with the Pareto front, where both have a direction; and the arrays it is drawn from.

    Args:
        matrix: the numbers.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        number: tells the arrays of several such views apart.
    """
    first, second = matrix.columns[x], matrix.columns[y]
    known = "neutral" not in (first.direction, second.direction)
    higher = (first.direction == "higher", second.direction == "higher")
    on_front = pareto_front(matrix.column(x), matrix.column(y), higher=higher) & known
    arrays = {
        f"front_x_{number}": ("variant", matrix.column(x)),
        f"front_y_{number}": ("variant", matrix.column(y)),
        f"front_{number}": ("variant", on_front),
    }
    ends = {end: [getattr(matrix.cells[row, y], end) for row in range(len(matrix.rows))] for end in ("lower", "upper")}
    spans = bool(np.isfinite([*ends["lower"], *ends["upper"]]).any())
    if spans:
        arrays |= {f"front_{end}_{number}": ("variant", np.array(values)) for end, values in ends.items()}
    finite = matrix.column(x)[np.isfinite(matrix.column(x))]
    wide = bool(len(finite)) and finite.min() > 0 and finite.max() >= 8 * finite.min()
    few = len(matrix.rows) <= NAMED
    placed = [int(row) for row in np.argsort(matrix.column(x), kind="stable") if on_front[row]]
    # Names of many would cover each other: numbers stand for them.
    numbers = {row: "" if few else f"{place} " for place, row in enumerate(placed, start=1)}
    names = "; ".join(f"{numbers[row]}{matrix.rows[row].label}" for row in placed) or "none"
    view = Scatter(
        title=f"{first.label} against {second.label}",
        x=f"front_x_{number}",
        y=f"front_y_{number}",
        label="variant",
        text=None if few else f"front_name_{number}",
        highlight=f"front_{number}",
        lower=f"front_lower_{number}" if spans else None,
        upper=f"front_upper_{number}" if spans else None,
        log_x=wide,
        x_label=first.label + ARROWS[first.direction],
        y_label=second.label + ARROWS[second.direction],
        caption=(f"On the Pareto front (large): {names}." if known else "No front: one of them has no better side.")
        + (f" Whiskers: 95 % intervals of {second.label}." if spans else ""),
    )
    if not few:
        shown = np.array([numbers.get(row, "").strip() for row in range(len(matrix.rows))])
        arrays[f"front_name_{number}"] = ("variant", shown)
    return view, arrays


def _parallel(matrix: Matrix, data: dict[str, Any]) -> list[View]:
    """Every metric scaled so that 0 is the worst and 1 the best of the variants: parallel coordinates."""
    kept, scaled = [], []
    for number, column in enumerate(matrix.columns):
        values = matrix.column(number)
        known = values[np.isfinite(values)]
        if column.direction == "neutral" or len(known) < 2 or np.ptp(known) == 0:
            continue
        share = (values - known.min()) / np.ptp(known)
        kept.append(column.label + ARROWS[column.direction])
        scaled.append(share if column.direction == "higher" else 1 - share)
    if len(kept) < 2:
        return []
    data["metric"] = kept
    data["standing"] = (("variant", "metric"), np.array(scaled).T)
    caption = "Every metric scaled over the variants: 1 is the best of them, 0 the worst, however near they are."
    title = "Standing of the variants in every metric"
    if len(matrix.rows) > 8:
        return [HeatMap(title=title, caption=caption, z="standing", x="metric", y="variant", z_label="standing")]
    label = "standing (1 is best)"
    return [Line(title=title, caption=caption, y=("standing",), x="metric", by="variant", markers=True, y_label=label)]


# -------------------------------------------------------------------------------------------------- samples in dispute


def _samples(result: StudyResult, data: dict[str, Any]) -> list[View]:
    """The samples on which variants disagree most, as pictures where the data are pictures."""
    step = result.plan.study.questions.disagreement
    found = _judges(result, step) if step else []
    if len(found) < 2:
        return []
    labels, runs, root = [item[0] for item in found], [item[1] for item in found], found[0][2]
    logits = [run["logit"].values for run in runs]
    if len({item.shape for item in logits}) > 1:
        raise InputError(
            "questions.disagreement", expected="runs on the same samples", got=f"logits of different sizes in {step}"
        )
    divergence = disagreement(logits)
    # Positions in the data of a run that kept only a part of it.
    rows = runs[0]["sample_index"].values if "sample_index" in runs[0] else np.arange(len(divergence))
    worst = np.argsort(-divergence, kind="stable")[:PICTURES]
    worst = worst[divergence[worst] > 0]
    if not len(worst) or not isinstance(root, str):
        return []
    predictions = np.stack([item.argmax(axis=1) for item in logits])
    names = [str(name) for name in runs[0]["logit"]["class"].values]
    label = runs[0]["label"].values if "label" in runs[0] else None
    subject = result.dataset_of(root)
    if "image" not in subject:
        return []
    captions = []
    for sample in worst:
        true = f"{names[int(label[sample])]}? " if label is not None else ""
        said = [names[int(row[sample])] for row in predictions]
        counted = [f"{name} {count}" for name, count in Counter(said).most_common(3)]
        captions.append(f"{true}{'/'.join(said) if len(said) <= FEW else ', '.join(counted)}")
    data["disputed"] = (("dispute", "channel", "y", "x"), _pictures(subject, rows[worst]))
    data["disputed_said"] = ("dispute", captions)
    data["disputed_divergence"] = ("dispute", divergence[worst])
    said_by = f"what {', '.join(labels)} say, in this order" if len(labels) <= FEW else "what most of the variants say"
    what = f"Above each: {'its label, then ' if label is not None else ''}{said_by}. "
    caption = (
        f"{what}Largest Jensen-Shannon divergence of the predictions in {step}: {divergence[worst[0]]:.2f} down to "
        f"{divergence[worst[-1]]:.2f} nats of at most {np.log(len(runs)):.2f}; the median sample has {np.median(divergence):.2g}."
    )
    title = "Samples on which the variants disagree most"
    return [
        ImageGrid(
            title=title, images=("disputed",), column="dispute", limit=PICTURES, labels="disputed_said", caption=caption
        )
    ]


def _pictures(subject: xr.Dataset, rows: Any) -> np.ndarray:
    image = np.asarray(subject["image"].isel(sample=rows).values)
    return image.astype(np.float32) / 255 if image.dtype == np.uint8 else image


def _judges(result: StudyResult, step: str) -> list[tuple[str, Run, Any]]:
    """Per variant the first run of the step that has logits, all on the same subject."""
    found: list[tuple[str, Run, Any]] = []
    for row in result.matrix.rows:
        for branch in result.branches_of(step, row.options):
            run = result.run(branch)
            if run is None or "logit" not in run or run["logit"].size > ENTRIES:
                continue
            root = branch.root("data")
            if not found or root is found[0][2] or root == found[0][2]:
                found.append((row.label, run, root))
                break
    return found
