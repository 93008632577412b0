"""What the numbers say, in words, by plain rules. `RULES` states them; the report prints them beside what they gave."""

from __future__ import annotations

import numpy as np

from workbench.render.texts import number_text
from workbench.study.matrix import BOOTSTRAP, INTERVALS, LEVEL, SEEDS, Matrix

__all__ = ["RULES", "conclusions", "how_compared"]

RULES = (
    "A metric changes where the adjusted p-value is at most 0.05, or, where only intervals are stored, where the two do not "
    "overlap. For each metric the variants that change are counted and the worst and the best of them named.",
    "Among variants that are worse in no compared metric and whose comparisons were all possible, the one of least cost is "
    "named, with the largest loss in the first metric that its interval leaves open. Not finding a loss is no proof that there "
    "is none.",
)


def conclusions(matrix: Matrix, cost: str) -> str:
    """One paragraph.

    Args:
        matrix: the numbers.
        cost: label of the column that says what a variant costs; empty: none.
    """
    sentences = [text for column in range(len(matrix.columns)) if (text := _metric(matrix, column))]
    if cost and matrix.labelled(cost):
        sentences.append(_cheapest(matrix, matrix.labelled(cost)[0]))
    return " ".join(sentences) or "There is nothing to compare: no metric of the study is known for two variants."


def _compared(matrix: Matrix, column: int) -> list[int]:
    tested = [*range(len(matrix.rows))]
    return [row for row in tested if matrix.cells[row, column].basis in (BOOTSTRAP, SEEDS, INTERVALS)]


def _metric(matrix: Matrix, column: int) -> str:
    described, rows = matrix.columns[column], _compared(matrix, column)
    if not rows or described.direction == "neutral":
        return ""
    base = matrix.rows[matrix.baseline].label
    worse = [row for row in rows if matrix.better(row, column) is False]
    better = [row for row in rows if matrix.better(row, column)]
    if not worse and not better:
        many = "the one variant compared does not differ" if len(rows) == 1 else f"none of {len(rows)} variants differs"
        return f"{_start(described.label)}: {many} significantly from {base}."
    sign = 1 if described.direction == "higher" else -1
    parts = []
    for kind, found, extreme in (("worse", worse, min), ("better", better, max)):
        if found:
            far = extreme(found, key=lambda row: sign * matrix.cells[row, column].value)
            value, reference = (number_text(matrix.cells[row, column].value) for row in (far, matrix.baseline))
            which = "most so " if len(found) > 1 else ""
            parts.append(
                f"{len(found)} of {len(rows)} {kind} than {base} ({which}{matrix.rows[far].label}: {value} against {reference})"
            )
    return f"{_start(described.label)}: {', '.join(parts)}."


def _start(label: str) -> str:
    return label[:1].upper() + label[1:]


def _cheapest(matrix: Matrix, cost: int) -> str:
    others = [
        c
        for c in range(len(matrix.columns))
        if c != cost and matrix.columns[c].direction != "neutral" and _compared(matrix, c)
    ]
    if not others:
        return "Which variant is worth its cost cannot be said: no other metric could be compared."
    prices = matrix.column(cost)
    sign = -1 if matrix.columns[cost].direction == "higher" else 1
    fitting = [
        row
        for row in range(len(matrix.rows))
        if np.isfinite(prices[row])
        and (
            row == matrix.baseline
            or all(row in _compared(matrix, c) and matrix.better(row, c) is not False for c in others)
        )
    ]
    label = matrix.columns[cost].label
    if not fitting:
        return f"No variant has a known {label} and no significant loss."
    best = min(fitting, key=lambda row: sign * prices[row])
    if best == matrix.baseline:
        return (
            f"Every variant of less {label} is significantly worse in at least one of the {len(others)} compared metrics, "
            "or could not be compared."
        )
    column = others[0]
    cell, described = matrix.cells[best, column], matrix.columns[column]
    bound = cell.difference_lower if described.direction == "higher" else cell.difference_upper
    loss = -bound if described.direction == "higher" else bound
    open_loss = ""
    if cell.difference_lower == cell.difference_upper:
        open_loss = (
            f" In {described.label} the two agree on every sample; resampling cannot say how far they differ on others."
        )
    elif np.isfinite(loss):
        kind = "loss" if described.direction == "higher" else "increase"
        how_much = f"a {kind} of up to {number_text(float(loss))}" if loss > 0 else f"no {kind}"
        open_loss = f" Its {100 * LEVEL:.0f} % interval leaves open {how_much} in {described.label}."
    return (
        f"The variant of least {label} without a significant loss in any of the {len(others)} compared metrics is "
        f"{matrix.rows[best].label} ({label} {number_text(float(prices[best]))} against "
        f"{number_text(float(prices[matrix.baseline]))}).{open_loss}"
    )


def how_compared(matrix: Matrix) -> tuple[str, ...]:
    """Notes: how many comparisons were made in which way, and the correction."""
    bases = [cell.basis for (row, _), cell in matrix.cells.items() if row != matrix.baseline and cell.basis]
    notes = []
    if count := bases.count(BOOTSTRAP):
        notes.append(
            f"{count} comparisons by paired bootstrap over the samples that both runs were judged on ({matrix.resamples:,} "
            "resamples, percentile interval, two-sided). It covers the choice of test samples, not that of training seeds. "
            "Differences of calibration errors are differences of two numbers that small samples bias upwards."
        )
    if count := bases.count(SEEDS):
        notes.append(
            f"{count} comparisons by paired t test over seeds: what a new training would give on the same samples."
        )
    if count := bases.count(INTERVALS):
        notes.append(
            f"{count} comparisons by stored intervals, because no per-sample outputs on the same samples are stored: "
            "“differs” means that the two intervals do not overlap, which is stricter than a test at 5 %. No p-value."
        )
    if count := sum(basis.startswith("not compared") for basis in bases):
        notes.append(f"{count} numbers stand without a comparison: they have neither shared samples nor intervals.")
    tested = sum(bool(np.isfinite(cell.p_value)) for cell in matrix.cells.values())
    if tested:
        notes.append(
            f"p-values are corrected with Holm's method over all {tested} tests of the matrix; comparisons by intervals are "
            "not part of it and not corrected."
        )
    elif bases:
        notes.append("No correction for multiple comparisons is made: there are no p-values.")
    return tuple(notes)
