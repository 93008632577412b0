"""Before and after: the report that every recalibrator of the family gives of its `evaluate`d probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from workbench import HeatMap, Histogram, Metric, ReliabilityDiagram, Report, Result, Table
from workbench.toolkit import wilson_interval

from workbench_calibration.evaluation import SCORE_ARRAYS, UNCALIBRATED
from workbench_calibration.resampling import CLIP, ERRORS
from workbench_calibration.samples import PROBABILITY_FLOOR

HIGHER = ("accuracy", "confidence_auroc", "brier_top_resolution_mass")
NEUTRAL = ("overconfidence", "mean_entropy", "brier_top_uncertainty")
SIGNED = ("ece_mass_debiased", "squared_ce_mass_debiased")
"""Best at 0 and negative by chance: neither less nor more is better."""
HEADLINE = ("ece_width_l1", "ece_mass_l1", "ks_error", "classwise_ece_width_mean", "negative_log_likelihood",
            "brier_score", "accuracy")
DESCRIPTIONS = {
    "accuracy": "share of samples whose most probable class is the label",
    "negative_log_likelihood": f"mean -log p of the label, nats; p below {CLIP:g} counts as that",
    "brier_score": "mean over samples of sum_k (p_k - y_k)^2, 0..2",
    "brier_top_reliability_mass": "Murphy's part of the top label's Brier score that calibration could mend, bins of equal count",
    "brier_top_resolution_mass": "the part that the confidence wins by telling hits from misses",
    "brier_top_uncertainty": "what the error rate alone gives; reliability - resolution + this = score at the bins' means",
    "ece_width_l1": "top-label calibration error, bins of equal width, weighted mean |accuracy - confidence|",
    "ece_width_l2": "the same, quadratic mean of the gaps",
    "ece_width_max": "largest gap of a bin of equal width (MCE)",
    "ace_width": "plain mean gap of the non-empty bins of equal width",
    "ece_mass_l1": "top-label calibration error, bins of equal count",
    "ece_mass_debiased": "the same less its expected upward bias; may be negative",
    "squared_ce_mass_debiased": "unbiased squared top-label calibration error; may be negative",
    "ks_error": "largest distance of cumulated confidence and hits; no bins",
    "sweep_ece_mass_l1": "the same with the most bins of equal count whose accuracies still rise",
    "kde_ece_l1": "top-label calibration error under a kernel density of the confidence; no bins",
    "mmce_laplacian": "top-label kernel calibration error, Laplacian kernel of width 0.4; no bins",
    "classwise_ece_width_mean": "calibration error of p_k against [label = k], mean over classes",
    "classwise_ece_width_sum": "the same, summed over classes",
    "classwise_ece_width_thresholded": "the same mean, events with p_k below 1/classes left out",
    "aurc": "mean error rate over coverages when the least confident are refused first",
    "confidence_auroc": "chance that a hit is more confident than a miss",
    "mean_entropy": "mean entropy of the probabilities, nats",
    "overconfidence": "mean confidence less accuracy",
}


def evaluation_report(
    result: Result,
    *,
    main: str,
    summary: str,
    first: Sequence[Table] = (),
    tables: Sequence[Table] = (),
    views: Sequence[Any] = (),
    metrics: Sequence[Metric] = (),
    notes: Sequence[str] = (),
    shown: Sequence[str] | None = None,
) -> Report:
    """The family's report around what a method has to say itself.

    Args:
        result: of a run that ended with `evaluate`.
        main: the method's own label on dim `recalibrator`.
        summary: the method's sentence; one about the metrics follows it.
        first: tables before the table of metrics.
        tables: after it.
        views: after the reliability diagrams.
        metrics: after those of the evaluation.
        notes: before the family's caveats.
        shown: methods whose diagrams are drawn (all unless given).
    """
    scores = Scores(result)
    return Report(
        summary=f"{summary} {_headline(result, scores, main)}",
        metrics=(*_metrics(scores, main), *_top_metrics(result, main), *metrics),
        tables=(*first, _metric_table(scores), *tables, _class_table(result, main), _order_table(result, scores)),
        views=(
            reliability_view(result, scores, shown or scores.methods),
            confidence_view(shown or scores.methods),
            *views,
            *class_views(main),
        ),
        notes=(*notes, *_notes(result, scores, main)),
    )


class Scores:
    """The arrays over (recalibrator, metric) of a result, read once: `scores("value", "temperature", "ks_error")`."""

    def __init__(self, result: Result) -> None:
        first = result["value"]
        self.methods = [str(name) for name in first["recalibrator"].values]
        self.metrics = [str(name) for name in first["metric"].values]
        self._tables = {name: result[name].values for name in SCORE_ARRAYS}

    def __call__(self, array: str, method: str, metric: str) -> float:
        """One entry of a stored array."""
        return float(self._tables[array][self.methods.index(method), self.metrics.index(metric)])

    def span(self, array: str, method: str, metric: str) -> tuple[float, float]:
        """The interval stored beside `value`, `change` or `chance`."""
        prefix = "" if array == "value" else f"{array}_"
        return self(f"{prefix}lower", method, metric), self(f"{prefix}upper", method, metric)


def reliability_view(result: Result, scores: Scores, shown: Sequence[str]) -> ReliabilityDiagram:
    """Reliability diagrams of some methods, side by side."""
    texts = ", ".join(f"{name} {scores('value', name, 'ece_width_l1'):.4f}" for name in shown)
    return ReliabilityDiagram(
        title=f"Reliability before and after ({result['label'].size} samples)",
        caption=f"Bins of equal width with 95 % Wilson intervals; boxes: where 95 % of accuracies would lie if the confidence "
        f"were right. ECE: {texts}.",
        confidence="reliability_confidence",
        accuracy="reliability_accuracy",
        count="reliability_count",
        accuracy_lower="reliability_accuracy_lower",
        accuracy_upper="reliability_accuracy_upper",
        band_lower="reliability_band_lower",
        band_upper="reliability_band_upper",
        by="recalibrator",
        select={"recalibrator": list(shown)},
    )


def confidence_view(shown: Sequence[str]) -> Histogram:
    """How confident each method is."""
    return Histogram(title="Confidence", values=("confidence",), by="recalibrator", bins=30, log_y=True,
                     x_label="largest probability of a sample", select={"recalibrator": list(shown)})


def class_views(main: str) -> tuple[HeatMap, HeatMap]:
    """Where which class is off, and by how much before and after."""
    return (
        HeatMap(title="Calibration error of every class", z="class_error", x="class", y="recalibrator", z_label="error"),
        HeatMap(title=f"Classwise gap of {main}", z="class_gap", x="bin", y="class", diverging=True,
                select={"recalibrator": main}, z_label="frequency - probability",
                caption="Bins of equal width of each class's probability, lowest left; empty ones are blank."),
    )


def _headline(result: Result, scores: Scores, main: str) -> str:
    before, after = (scores("value", name, "ece_width_l1") for name in (UNCALIBRATED, main))
    if main == UNCALIBRATED:
        return (
            f"On {result['label'].size} samples not used for fitting their calibration error is {before:.4f} and their negative "
            f"log likelihood {scores('value', main, 'negative_log_likelihood'):.4f}."
        )
    likelihood = [scores("value", name, "negative_log_likelihood") for name in (UNCALIBRATED, main)]
    low, high = scores.span("change", main, "ece_width_l1")
    clear = "" if low > 0 or high < 0 else " (a change that sampling alone can explain)"
    text = (
        f"On {result['label'].size} samples not used for fitting the calibration error goes from {before:.4f} to "
        f"{after:.4f}{clear} and the negative log likelihood from {likelihood[0]:.4f} to {likelihood[1]:.4f}"
    )
    changed = int(result["changed_predictions"].sel(recalibrator=main))
    if not changed:
        return f"{text}; no prediction changes."
    return f"{text}; {changed} predictions change, accuracy by {scores('change', main, 'accuracy'):+.4f}."


def _metrics(scores: Scores, main: str) -> list[Metric]:
    """Every metric after calibration, and before and change of those that have intervals."""
    metrics = []
    for name in scores.metrics:
        metrics.append(_metric(scores, name, name, main))
        if name in HEADLINE and name != "accuracy" and main != UNCALIBRATED:
            metrics.append(_metric(scores, name, f"{name}_{UNCALIBRATED}", UNCALIBRATED))
            change = Metric(
                name=f"{name}_change",
                value=scores("change", main, name),
                direction="lower",
                interval=scores.span("change", main, name),
                description="after less before, paired bootstrap over the report samples",
            )
            metrics.append(change)
    return metrics


def top_five(result: Result, method: str) -> tuple[float, float, float]:
    """How often the label is among a method's five most probable classes, with the ends of the 95 % Wilson interval."""
    samples, share = result["label"].size, float(result["top5_accuracy"].sel(recalibrator=method))
    low, high = wilson_interval(round(share * samples), samples)
    return share, float(low), float(high)


def _top_metrics(result: Result, main: str) -> list[Metric]:
    """Top-5 accuracy, where there are more classes."""
    if "top5_accuracy" not in result:
        return []
    share, *span = top_five(result, main)
    return [Metric(name="top5_accuracy", value=share, direction="higher", interval=(span[0], span[1]),
                   description="share of samples whose label is among the five most probable classes; Wilson interval")]


def _metric(scores: Scores, name: str, shown: str, method: str) -> Metric:
    interval = scores.span("value", method, name)
    return Metric(
        name=shown,
        value=scores("value", method, name),
        direction="higher" if name in HIGHER else "neutral" if name in (*NEUTRAL, *SIGNED) else "lower",
        unit="nats" if name in ("negative_log_likelihood", "mean_entropy") else "",
        interval=None if math.isnan(interval[0]) else interval,
        description=DESCRIPTIONS.get(name, ""),
    )


def _metric_table(scores: Scores) -> Table:
    """One row per headline metric and method."""
    rows = []
    for metric in HEADLINE:
        for name in scores.methods:
            value, first = scores("value", name, metric), name == UNCALIBRATED
            rows.append((
                metric,
                name,
                round(value, 4),
                _text(scores.span("value", name, metric)),
                None if first else round(scores("change", name, metric), 4),
                None if first else _text(scores.span("change", name, metric)),
                _chance_text(scores, name, metric),
                round(scores("p_value", name, metric), 3) if metric in ERRORS else None,
            ))
    return Table(
        title="Before and after",
        columns=("metric", "method", "value", "95 % interval", "change", "its interval", "by chance alone", "p"),
        rows=tuple(rows),
        caption="95 % intervals by bootstrap over the report samples with the fitted maps fixed: percentile intervals of means "
        "(accuracy, NLL, Brier score), reflected ones of calibration errors and of changes (paired); of changes of calibration "
        "errors the hull of both kinds, because either alone is too short near perfect calibration. The reflection takes off "
        "the upward bias of calibration errors at finite samples, so an interval may lie below its value. By chance alone: "
        "central 95 % of the metric if labels were drawn from the probabilities themselves, that is, under perfect calibration, "
        "and whether the value is within it (an error: not above it); "
        "p: the share of those draws with at least as large an error (consistency test).",
    )


def _text(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _chance_text(scores: Scores, name: str, metric: str) -> str:
    """What chance alone gives, and whether the value is no sign of more; an error below its range is none either."""
    low, high = scores.span("chance", name, metric)
    value = scores("value", name, metric)
    within = value <= high and (metric in ERRORS or low <= value)
    return f"{_text((low, high))}{', within' if within else ''}"


def _class_table(result: Result, main: str) -> Table:
    error = result["class_error"].sel(recalibrator=main).values
    first = result["class_error"].sel({"recalibrator": UNCALIBRATED}).values
    labels = result["class_error"]["class"].values if "class" in result["class_error"].coords else np.arange(len(error))
    worst = np.argsort(-error, kind="stable")[:5]
    rows = tuple(
        (str(labels[k]), round(float(first[k]), 4), round(float(error[k]), 4), int(result["class_count"].values[k]))
        for k in worst
    )
    return Table(title="Worst classes", columns=("class", "error before", "error after", "samples"), rows=rows)


def _order_table(result: Result, scores: Scores) -> Table:
    counted = ["clipped", *(["zeros"] if "zeros" in result else [])]  # runs of earlier versions do not have it
    columns = [result[name].values for name in ("fit_negative_log_likelihood", "changed_predictions")]
    labels = np.stack([result[name].values for name in counted], axis=1).tolist()
    rows = tuple(
        (
            name,
            round(float(fit), 4),
            round(scores("value", name, "negative_log_likelihood"), 4),
            int(changed),
            *low,
        )
        for name, fit, changed, low in zip(scores.methods, *columns, labels, strict=True)
    )
    return Table(
        title="Fit against report samples",
        columns=("method", "fit NLL", "report NLL", "predictions changed", f"labels with p < {CLIP:g}", "with p = 0")[
            : 4 + len(counted)
        ],
        rows=rows,
        caption="A fit NLL far below the report NLL is overfitting.",
    )


def _notes(result: Result, scores: Scores, main: str) -> list[str]:
    notes = []
    samples, bins = result["label"].size, result["reliability_count"].sizes["bin"]
    if samples / bins < 50:
        notes.append(f"Only {samples / bins:.0f} samples per bin: calibration errors are dominated by chance; read them "
                     "beside the column `by chance alone`.")
    present = np.flatnonzero(result["class_count"].values)
    if len(present) == 1:
        notes.append(f"Every report sample is of class {present[0]}: this says nothing about the other classes, and a map "
                     "fitted on samples of one class learns little but how common it is.")
    if int(result["raised"]) >= 0:
        notes.append(f"Probabilities were given: their logarithm serves as logit; {int(result['raised'])} of them were "
                     f"raised to {PROBABILITY_FLOOR:g}.")
    if int(result["shared"]):
        notes.append(f"{int(result['shared'])} rows of `data` occur in `fit` too: the figures may be too good.")
    if clipped := int(result["clipped"].sel(recalibrator=main)):
        notes.append(f"{clipped} labels have p < {CLIP:g}; that bound sets what they add to the negative log likelihood.")
    beyond = [name for name in ERRORS if scores("value", main, name) > scores("upper", main, name)]
    if beyond:
        notes.append(f"{', '.join(beyond)}: the value lies above its interval, because chance at this number of samples "
                     "adds more to it than calibration does; trust the interval.")
    notes.append(("Intervals cover the report samples only, not the noise of the fit" + (
                  "; but those of the table of methods fitted anew. " if "refit_lower" in result else ". "))
                 + "Fit and report samples must not have been used to train the classifier; that cannot be seen from logits.")
    return notes


def rank_table(scores: Scores) -> Table:
    """Average rank of the methods over the errors and losses, of which less is better (1 is best; ties share their rank)."""
    values = {name: {m: scores("value", name, m) for m in scores.metrics} for name in scores.methods}
    table = ranks(values)
    rows = tuple(
        (scores.methods[m], round(float(table[m].mean()), 2), int((table[m] == 1).sum()))
        for m in np.argsort(table.mean(axis=1), kind="stable")
    )
    return Table(
        title="Average rank",
        columns=("method", "average rank", "metrics where best"),
        rows=rows,
        caption=f"Over {table.shape[1]} metrics of the report samples; many of them measure nearly the same thing.",
    )


def ranks(values: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """Ranks (recalibrator, metric) over the metrics of which less is better; a debiased error is better the nearer to 0."""
    first = next(iter(values.values()))
    metrics = [name for name in first if name not in (*HIGHER, *NEUTRAL, "squared_ce_mass_debiased")]
    table = np.array([[abs(row[metric]) for metric in metrics] for row in values.values()])
    return np.asarray(stats.rankdata(np.round(table, 12), axis=0))
