"""What the numbers say, in words, by plain rules. `RULES` states them; the report prints them beside what they gave."""

from __future__ import annotations

import itertools

import numpy as np

from workbench.render.texts import number_text
from workbench.study.comparing import BOOTSTRAP, BOTH, INTERVALS, LEVEL, SEEDS
from workbench.study.matrix import Matrix

__all__ = ["RULES", "conclusion_sentences", "conclusions", "how_compared"]

RULES = (
    "A metric changes where the adjusted p-value is at most 0.05, or, where only intervals are stored, where the two do not "
    "overlap. For each metric the comparisons that changed are counted (over all its columns) and the worst and the best of "
    "them named by the size of the difference.",
    "Among variants that are worse in no compared metric (by more than the study tolerates, where it says so) and whose "
    "comparisons were all possible, the one of least cost is named for each baseline, with its difference in the first metric. "
    "Not finding a loss is no proof that there is none, and where few samples tell two variants apart resampled intervals are "
    "too short.",
    "Of repairs, the one of lowest (or highest, where more is better) median is named, over the variants that all of them were "
    "tried on, and in how many variants each of them is better than before; that is a count, not a test.",
)


def conclusions(matrix: Matrix, cost: str) -> str:
    """One paragraph.

    Args:
        matrix: the numbers.
        cost: label of the column that says what a variant costs; empty: none.
    """
    return " ".join(itertools.chain(*conclusion_sentences(matrix, cost)))


def conclusion_sentences(matrix: Matrix, cost: str) -> tuple[list[str], list[str]]:
    """The paragraph in two parts: which variant and which repair to take; and a sentence on each metric that was compared.

    Args:
        matrix: the numbers.
        cost: label of the column that says what a variant costs; empty: none.
    """
    metrics: dict[tuple[str, str, str], list[int]] = {}
    for number, column in enumerate(matrix.columns):
        metrics.setdefault((column.asked.label or column.label, column.asked.step, column.asked.metric), []).append(
            number
        )
    advice: list[str] = []
    if cost and matrix.labelled(cost):
        bases = dict.fromkeys(matrix.baselines)
        advice += [_cheapest(matrix, matrix.labelled(cost)[0], base, several=len(bases) > 1) for base in bases]
    advice += [text for (label, *_), columns in metrics.items() if (text := _repairs(matrix, label, columns))]
    changes = [text for (label, *_), columns in metrics.items() if (text := _metric(matrix, label, columns))]
    if not advice and not changes:
        advice = ["There is nothing to compare: no metric of the study is known for two variants."]
    return advice, changes


def _is_compared(matrix: Matrix, row: int, column: int) -> bool:
    return matrix.cells[row, column].basis in (BOOTSTRAP, BOTH, SEEDS, INTERVALS)


def _metric(matrix: Matrix, label: str, columns: list[int]) -> str:
    """Which comparisons of a metric show a change."""
    direction = matrix.columns[columns[0]].direction
    compared = [(row, c) for c in columns for row in range(len(matrix.rows)) if _is_compared(matrix, row, c)]
    if not compared or direction == "neutral":
        return ""
    what = "variants" if len(columns) == 1 else "comparisons"
    worse = [key for key in compared if matrix.better(*key) is False]
    better = [key for key in compared if matrix.better(*key)]
    if not worse and not better:
        many = f"none of {len(compared)} {what} differs"
        if len(compared) == 1:
            many = "the one variant compared does not differ"
        return f"{_start(label)}: {many} significantly from {matrix.baseline}."
    sign = 1 if direction == "higher" else -1
    parts = []
    for kind, found, extreme in (("worse", worse, min), ("better", better, max)):
        if found:
            row, column = extreme(found, key=lambda key: sign * matrix.cells[key].difference)
            value = number_text(matrix.cells[row, column].value)
            reference = number_text(matrix.cells[matrix.baselines[row], column].value)
            which = "most so " if len(found) > 1 else ""
            words = matrix.columns[column].words
            where = f"{matrix.rows[row].label}{f' ({words})' if len(columns) > 1 and words else ''}"
            counted = f"{len(found)} of {len(compared)}{'' if len(columns) == 1 else ' comparisons'}"
            parts.append(f"{counted} {kind} than {matrix.baseline} ({which}{where}: {value} against {reference})")
    return f"{_start(label)}: {', '.join(parts)}."


def _start(label: str) -> str:
    return label[:1].upper() + label[1:]


def _repairs(matrix: Matrix, label: str, columns: list[int]) -> str:
    """Which of several repairs of a metric leaves the best median, and how often each is better than before."""
    asked, direction = matrix.columns[columns[0]].asked, matrix.columns[columns[0]].direction
    if not asked.before or direction == "neutral":
        return ""
    before = matrix.column(matrix.labelled(asked.before)[0])
    after = {column: values for column in columns if np.isfinite((values := matrix.column(column)) + before).any()}
    # Medians of what all repairs were tried on: one that failed where errors are large would look better than it is.
    shared = np.isfinite([before, *after.values()]).all(axis=0)
    if not after or not shared.any():
        return ""
    medians = {column: float(np.median(values[shared])) for column, values in after.items()}
    gains: dict[int, str] = {}
    for column, values in after.items():
        gained = (values < before) if direction == "lower" else (values > before)
        known = np.isfinite(values + before)
        gains[column] = f"{matrix.columns[column].words} in {int((gained & known).sum())} of {int(known.sum())}".strip()
    best = (min if direction == "lower" else max)(medians, key=lambda column: medians[column])
    reference = number_text(float(np.median(before[shared])))
    words = matrix.columns[best].words
    which = f"its {'lowest' if direction == 'lower' else 'highest'} median with {words}" if words else "a median"
    middle = f"{number_text(medians[best])} against {reference} before"
    return (
        f"{_start(label)} has {which} ({middle}); better than before: {', '.join(gains.values())} variants."
        if words
        else f"{_start(label)} has {which} of {middle} and is better than before {', '.join(gains.values())} variants."
    )


def _loses(matrix: Matrix, row: int, column: int) -> bool:
    """Whether a variant is worse by more than what the study tolerates."""
    return (
        matrix.better(row, column) is False
        and abs(matrix.cells[row, column].difference) > matrix.columns[column].asked.tolerance
    )


def _cheapest(matrix: Matrix, cost: int, base: int, *, several: bool) -> str:
    """The variant of least cost that shows no loss against this baseline."""
    members = [row for row in range(len(matrix.rows)) if matrix.baselines[row] == base]
    others = [
        c
        for c in range(len(matrix.columns))
        if matrix.columns[c].asked.label != matrix.columns[cost].asked.label
        and matrix.columns[c].direction != "neutral"
        and any(_is_compared(matrix, row, c) for row in members)
    ]
    if not others:
        return "Which variant is worth its cost cannot be said: no other metric could be compared."
    prices = matrix.column(cost)
    sign = -1 if matrix.columns[cost].direction == "higher" else 1
    fitting = [
        row
        for row in members
        if np.isfinite(prices[row])
        and (row == base or all(_is_compared(matrix, row, c) and not _loses(matrix, row, c) for c in others))
    ]
    label = matrix.columns[cost].label
    if not fitting:
        return f"No variant has a known {label} and no significant loss."
    best = min(fitting, key=lambda row: sign * prices[row])
    name = f" compared with {matrix.rows[base].label}" if several else ""
    if best == base:
        return (
            f"Every variant of less {label}{name} is significantly worse in at least one of the {len(others)} compared metrics, "
            "or could not be compared."
        )
    column = others[0]
    cell, described = matrix.cells[best, column], matrix.columns[column]
    judged = ""
    if cell.difference_lower == cell.difference_upper:
        judged = (
            f" In {described.label} the two agree on every sample; resampling cannot say how far they differ on others."
            if cell.difference == 0 and not described.asked.metric.startswith("auroc_")
            else f" Its {described.label} differs by {number_text(cell.difference)} in every resample; that cannot say how far "
            "they differ on other samples."
        )
    elif np.isfinite(cell.difference_lower):
        span = f"{number_text(cell.difference_lower)} to {number_text(cell.difference_upper)}"
        judged = (
            f" Its {described.label} differs by {number_text(cell.difference)} ({100 * LEVEL:.0f} % interval {span})."
        )
    return (
        f"The variant of least {label} without a significant loss in any of the {len(others)} compared metrics{name} is "
        f"{matrix.rows[best].label} ({label} {number_text(float(prices[best]))} against "
        f"{number_text(float(prices[base]))}).{judged}"
    )


def how_compared(matrix: Matrix) -> tuple[str, ...]:
    """Notes: how many comparisons were made in which way, and the correction."""
    bases = [cell.basis for (row, _), cell in matrix.cells.items() if not matrix.is_baseline(row) and cell.basis]
    notes = []
    if count := bases.count(BOOTSTRAP):
        notes.append(
            f"{count} comparisons by paired bootstrap over the samples that both runs were judged on ({matrix.resamples:,} "
            "resamples, percentile interval, two-sided; p-values too small for that many resamples are those of a normal "
            "variable with their standard error). It covers the choice of test samples, not that of training seeds. "
            "Differences of calibration errors are differences of two numbers that small samples bias upwards."
        )
    if count := bases.count(BOTH):
        notes.append(
            f"{count} comparisons by paired bootstrap over samples and by repetitions: the variance of the mean over the "
            "repetitions under resampling plus that between repetitions over their number (where several steps are repeated, of "
            "each step's means per seed over theirs), Student's t with Satterthwaite's degrees of freedom."
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
