"""Before and after: the judgement that every recalibrator of the family ends with.

`evaluate` scores calibrators on the report rows only and writes metrics with bootstrap intervals, differences from the
uncalibrated probabilities on the same resamples, the values chance alone would give, and reliability diagrams.
`evaluation_report` makes the report of them. All metrics are those of `workbench.toolkit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from workbench import Out, Output, Params
from workbench.toolkit import (
    calibration_metrics,
    classwise_calibration_error,
    clipped_probability_count,
    negative_log_likelihood,
    reliability_diagram,
)

from workbench_calibration.resampling import (
    CLIP,
    ERRORS,
    RESAMPLED,
    BinnedProbability,
    chance_metrics,
    metric_interval,
    paired_difference,
    resample_counts,
)
from workbench_calibration.samples import PROBABILITY_FLOOR, Parts

SCORE_ARRAYS = ("value", "lower", "upper", "change", "change_lower", "change_upper", "chance", "chance_lower",
                "chance_upper", "p_value")
"""What `evaluate` writes over (method, metric)."""

Calibrator = Callable[[Tensor], Tensor]
"""Logits float64 (sample, class) to probabilities float64 (sample, class)."""

UNCALIBRATED = "uncalibrated"


class EvaluationParams(Params):
    """Parameters that every method of the family shares."""

    fit_fraction: float = Field(
        0.5, gt=0, lt=1, description="Share of `data` to fit on (stratified); not used when a role `fit` is given"
    )
    n_bins: int = Field(15, ge=2, le=200, description="Bins of calibration errors and diagrams; keep 50 samples a bin")
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of the report samples")
    chance_draws: int = Field(
        200, ge=20, le=10_000, description="Label sets drawn from the probabilities to see what chance alone gives"
    )


OUTPUTS = (
    Output("label", ("sample",), "int64", "true class of each report sample"),
    Output("sample_index", ("sample",), "int64", "row of each report sample in `data`"),
    Output("prediction", ("sample",), "int64", "most probable class after calibration"),
    Output("probability", ("sample", "class"), "float32", "calibrated probabilities of the report samples"),
    Output("logit", ("sample", "class"), "float32", f"log of the calibrated probabilities (at least {PROBABILITY_FLOOR:g})"),
    Output("fit_index", ("fit_sample",), "int64", "row of each fit sample in `fit`, or in `data` if that was split"),
    Output("value", ("method", "metric"), "float64", "metrics on the report samples"),
    Output("lower", ("method", "metric"), "float64", "lower end of the 95 % bootstrap interval; NaN: none computed"),
    Output("upper", ("method", "metric"), "float64", "upper end of it"),
    Output("change", ("method", "metric"), "float64", "metric less that of the uncalibrated probabilities"),
    Output("change_lower", ("method", "metric"), "float64", "lower end of its paired 95 % bootstrap interval"),
    Output("change_upper", ("method", "metric"), "float64", "upper end of it"),
    Output("chance", ("method", "metric"), "float64", "mean of the metric if labels were drawn from the probabilities"),
    Output("chance_lower", ("method", "metric"), "float64", "2.5 % quantile of it"),
    Output("chance_upper", ("method", "metric"), "float64", "97.5 % quantile of it"),
    Output("p_value", ("method", "metric"), "float64", "consistency test: chance of so large an error if calibrated"),
    Output("reliability_confidence", ("method", "bin"), "float64", "mean confidence in bins of equal width"),
    Output("reliability_accuracy", ("method", "bin"), "float64", "accuracy in the bin; NaN: empty"),
    Output("reliability_accuracy_lower", ("method", "bin"), "float64", "lower end of its 95 % Wilson interval"),
    Output("reliability_accuracy_upper", ("method", "bin"), "float64", "upper end of it"),
    Output("reliability_count", ("method", "bin"), "int64", "samples in the bin"),
    Output("class_error", ("method", "class"), "float64", "calibration error of each class's probability, equal width"),
    Output("class_count", ("class",), "int64", "report samples whose label is the class"),
    Output("fit_negative_log_likelihood", ("method",), "float64", "on the fit samples"),
    Output("changed_predictions", ("method",), "int64", "report samples whose most probable class changed"),
    Output("clipped", ("method",), "int64", f"report samples whose label has p < {CLIP:g}"),
    Output("raised", (), "int64", f"given probabilities below {PROBABILITY_FLOOR:g}; -1: logits were given"),
    Output("shared", (), "int64", "rows of `data` that occur in `fit` too"),
)
"""What `evaluate` writes: part of every method's outputs."""


def require_kept_predictions(logit: Tensor, probability: Tensor, name: str) -> None:
    """Raise if a map that must keep the order of classes changed a most probable class: then accuracy would change.

    Args:
        logit: before, (sample, class).
        probability: after, (sample, class).
        name: of the map, for the message.
    """
    changed = int((logit.argmax(1) != probability.argmax(1)).sum())
    if changed:
        raise RuntimeError(f"{name} keeps the order of classes by construction, yet {changed} predictions changed")


def evaluate(
    out: Out, parts: Parts, calibrators: Mapping[str, Calibrator], *, main: str, params: EvaluationParams
) -> dict[str, Tensor]:
    """Score the uncalibrated probabilities and each calibrator on the report rows, and write all of `OUTPUTS`.

    Args:
        out: of the run.
        parts: fit and report rows.
        calibrators: by name, already fitted (on the fit rows alone).
        main: whose probabilities become the run's `probability` and `logit`.
        params: numbers of bins and draws.

    Returns:
        Per method the probabilities of the report samples, float64 (sample, class).
    """
    everyone: dict[str, Calibrator] = {UNCALIBRATED: lambda logit: torch.softmax(logit, dim=1), **calibrators}
    probability = {name: calibrate(parts.report.logit) for name, calibrate in everyone.items()}
    fitted = {name: calibrate(parts.fit.logit) for name, calibrate in everyone.items()}
    label = parts.report.label.cpu().numpy()
    counts = resample_counts(len(label), params.resamples, out.rng("bootstrap"))
    tables: dict[str, dict[str, dict[str, float]]] = {}
    before: dict[str, np.ndarray] = {}
    for name in out.track(everyone, "scoring"):
        p = probability[name].cpu().numpy()
        binned = BinnedProbability(p, params.n_bins)
        drawn = binned.metrics(label, counts)
        before = before or drawn
        value = calibration_metrics(p, label, n_bins=params.n_bins, clip=CLIP)
        first = tables[UNCALIBRATED]["value"] if tables else value
        tables[name] = _uncertainty(value, first, drawn, before, chance_metrics(
            binned, out.rng(f"chance {name}"), params.chance_draws
        ))
    names = tuple(everyone)
    out.coordinate("method", list(names))
    out.coordinate("metric", list(tables[UNCALIBRATED]["value"]))
    for column in next(iter(tables.values())):
        out.write(column, np.array([list(tables[name][column].values()) for name in names]))
    _write_diagrams(out, [probability[name].cpu().numpy() for name in names], label, params.n_bins)
    reference = parts.report.logit.argmax(1)
    out.write("changed_predictions", np.array([int((probability[n].argmax(1) != reference).sum()) for n in names]))
    fit_label = parts.fit.label.cpu().numpy()
    out.write(
        "fit_negative_log_likelihood",
        np.array([negative_log_likelihood(fitted[n].cpu().numpy(), fit_label, clip=CLIP) for n in names]),
    )
    out.write("label", label)
    out.write("sample_index", parts.report.index)
    out.write("fit_index", parts.fit.index)
    out.write("prediction", probability[main].argmax(1))
    out.write("probability", probability[main].float())
    out.write("logit", torch.log(probability[main].clamp_min(PROBABILITY_FLOOR)).float())
    out.write("raised", parts.raised)
    out.write("shared", parts.shared)
    return probability


def _uncertainty(
    value: Mapping[str, float],
    first: Mapping[str, float],
    drawn: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray],
    chance: Mapping[str, np.ndarray],
) -> dict[str, dict[str, float]]:
    """Per stored array a row of numbers by metric; NaN where a metric is not resampled."""
    rows: dict[str, dict[str, float]] = {"value": dict(value)}
    for column in SCORE_ARRAYS[1:]:
        rows[column] = dict.fromkeys(value, math.nan)
    for name in value:
        change = value[name] - first[name]
        rows["change"][name] = change
        if name in RESAMPLED:
            rows["lower"][name], rows["upper"][name] = metric_interval(name, value[name], drawn[name])
            low, high = paired_difference(drawn, before, name, change)
            rows["change_lower"][name], rows["change_upper"][name] = low, high
            rows["chance"][name] = float(chance[name].mean())
            if name in ERRORS:
                larger = int((chance[name] >= value[name] - 1e-12).sum())
                rows["p_value"][name] = (1 + larger) / (1 + len(chance[name]))
            rows["chance_lower"][name], rows["chance_upper"][name] = np.quantile(chance[name], [0.025, 0.975])
    return rows


def _write_diagrams(out: Out, probability: Sequence[np.ndarray], label: np.ndarray, n_bins: int) -> None:
    bins = [reliability_diagram(p, label, n_bins=n_bins) for p in probability]
    for field in ("confidence", "accuracy", "accuracy_lower", "accuracy_upper", "count"):
        out.write(f"reliability_{field}", np.stack([getattr(one, field) for one in bins]))
    out.write(
        "class_error",
        np.stack([classwise_calibration_error(p, label, n_bins=n_bins, reduction="none") for p in probability]),
    )
    out.write("class_count", np.bincount(label, minlength=probability[0].shape[1]))
    out.write("clipped", np.array([clipped_probability_count(p, label, clip=CLIP)[0] for p in probability]))
