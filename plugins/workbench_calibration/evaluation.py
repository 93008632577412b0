"""Before and after: the judgement that every recalibrator of the family ends with.

`evaluate` scores calibrators on the report rows only and writes metrics with bootstrap intervals, differences from the
uncalibrated probabilities on the same resamples, the values chance alone would give, and reliability diagrams.
`evaluation_report` makes the report of them. All metrics are those of `workbench.toolkit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from workbench import Out, Output, Params
from workbench.toolkit import CalibrationScores, consistency_band

from workbench_calibration.resampling import (
    CLIP,
    ERRORS,
    RESAMPLED,
    ResampleCounts,
    ResampledScores,
    metric_interval,
    paired_difference,
    resampled_metrics,
)
from workbench_calibration.samples import PROBABILITY_FLOOR, Parts, Samples

SCORE_ARRAYS = ("value", "lower", "upper", "change", "change_lower", "change_upper", "chance", "chance_lower",
                "chance_upper", "p_value")
"""What `evaluate` writes over (recalibrator, metric)."""

Calibrator = Callable[[Tensor], Tensor]
"""Logits float64 (sample, class) to probabilities float64 (sample, class)."""

UNCALIBRATED = "uncalibrated"
TOP = 5
"""Of more classes than this, it is also counted how often the label is among so many most probable ones."""


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
    Output("value", ("recalibrator", "metric"), "float64", "metrics on the report samples"),
    Output("lower", ("recalibrator", "metric"), "float64", "lower end of the 95 % bootstrap interval; NaN: none computed"),
    Output("upper", ("recalibrator", "metric"), "float64", "upper end of it"),
    Output("change", ("recalibrator", "metric"), "float64", "metric less that of the uncalibrated probabilities"),
    Output("change_lower", ("recalibrator", "metric"), "float64", "lower end of its paired 95 % bootstrap interval"),
    Output("change_upper", ("recalibrator", "metric"), "float64", "upper end of it"),
    Output("chance", ("recalibrator", "metric"), "float64", "mean of the metric if labels were drawn from the probabilities"),
    Output("chance_lower", ("recalibrator", "metric"), "float64", "2.5 % quantile of it"),
    Output("chance_upper", ("recalibrator", "metric"), "float64", "97.5 % quantile of it"),
    Output("p_value", ("recalibrator", "metric"), "float64", "consistency test: chance of so large an error if calibrated"),
    Output("metric_draw", ("recalibrator", "resampled_metric", "resample"), "float32", "metrics of each bootstrap resample, the "
           "same resamples for all", optional=True),
    Output("reliability_confidence", ("recalibrator", "bin"), "float64", "mean confidence in bins of equal width"),
    Output("reliability_accuracy", ("recalibrator", "bin"), "float64", "accuracy in the bin; NaN: empty"),
    Output("reliability_accuracy_lower", ("recalibrator", "bin"), "float64", "lower end of its 95 % Wilson interval"),
    Output("reliability_accuracy_upper", ("recalibrator", "bin"), "float64", "upper end of it"),
    Output("reliability_count", ("recalibrator", "bin"), "int64", "samples in the bin"),
    Output("reliability_band_lower", ("recalibrator", "bin"), "float64", "2.5 % quantile of the accuracy if calibrated"),
    Output("reliability_band_upper", ("recalibrator", "bin"), "float64", "97.5 % quantile of it"),
    Output("confidence", ("recalibrator", "sample"), "float32", "largest probability of each report sample"),
    Output("class_error", ("recalibrator", "class"), "float64", "calibration error of each class's probability, equal width"),
    Output("class_gap", ("recalibrator", "class", "bin"), "float32", "frequency less mean probability of a class; NaN: empty"),
    Output("class_count", ("class",), "int64", "report samples whose label is the class"),
    Output("fit_negative_log_likelihood", ("recalibrator",), "float64", "on the fit samples"),
    Output("changed_predictions", ("recalibrator",), "int64", "report samples whose most probable class changed"),
    Output("top5_accuracy", ("recalibrator",), "float64", "share of report samples whose label is among the five most probable "
           "classes; where there are more", optional=True),
    Output("clipped", ("recalibrator",), "int64", f"report samples whose label has p < {CLIP:g}"),
    Output("zeros", ("recalibrator",), "int64", "report samples whose label has p = 0", optional=True),
    Output("raised", (), "int64", f"given probabilities below {PROBABILITY_FLOOR:g}; -1: logits were given"),
    Output("shared", (), "int64", "rows of `data` that occur in `fit` too"),
)
"""What `evaluate` writes: part of every method's outputs."""


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` found: per method the metrics of the report samples and how many predictions it changed.

    `resampled` are the metrics that have intervals, of each bootstrap resample (resample,); it is the same for all methods.
    """

    metrics: dict[str, dict[str, float]]
    changed: dict[str, int]
    resampled: dict[str, dict[str, np.ndarray]]

    def require_kept_predictions(self, name: str) -> None:
        """Raise if a map that must keep the order of classes changed a most probable class: then accuracy would change."""
        if self.changed[name]:
            raise RuntimeError(
                f"{name} keeps the order of classes by construction, yet {self.changed[name]} predictions changed"
            )


def evaluate(
    out: Out,
    parts: Parts,
    calibrators: Mapping[str, Calibrator],
    *,
    main: str,
    params: EvaluationParams,
    keep_all: bool = False,
) -> Evaluated:
    """Score the uncalibrated probabilities and each calibrator on the report rows, and write all of `OUTPUTS`.

    Block by block, so that neither logits nor probabilities need fit into memory.

    Args:
        out: of the run.
        parts: fit and report rows.
        calibrators: by name, already fitted (on the fit rows alone).
        main: whose probabilities become the run's `probability` and `logit`.
        params: numbers of bins and draws.
        keep_all: also write `method_probability`, the probabilities of every method.
    """
    everyone: dict[str, Calibrator] = {UNCALIBRATED: lambda logit: torch.softmax(logit, dim=1), **calibrators}
    names, shape = tuple(everyone), (len(parts.report.label), parts.report.classes)
    counts = ResampleCounts(shape[0], params.resamples, out.rng("bootstrap"))
    out.coordinate("recalibrator", list(names))
    stored = {name: out.array(name, shape) for name in ("probability", "logit")}
    if keep_all:
        stored["method_probability"] = out.array("method_probability", (len(names), *shape))
    scores = {name: CalibrationScores(n_bins=params.n_bins, clip=CLIP) for name in names}
    resampled = {
        name: ResampledScores(*shape, params.n_bins, counts, params.chance_draws, out.rng(f"chance {name}"))
        for name in names
    }
    changed, among = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    prediction = np.empty(shape[0], dtype=np.int64)
    label = parts.report.label.cpu().numpy()
    for rows, logit in parts.report.blocks():
        before = logit.argmax(1)
        for number, (name, calibrate) in enumerate(everyone.items()):
            out.progress(rows.start + (rows.stop - rows.start) * number / len(names), shape[0], f"scoring {name}")
            probability = calibrate(logit)
            changed[name] += int((probability.argmax(1) != before).sum())
            p = probability.cpu().numpy()
            scores[name].update(p, label[rows])
            resampled[name].add(p, label[rows])
            if shape[1] > TOP:
                among[name] += int(label_among(p, label[rows], TOP).sum())
            if keep_all:
                stored["method_probability"][number : number + 1, rows] = probability[None].float()
            if name == main:
                stored["probability"][rows] = probability.float()
                stored["logit"][rows] = torch.log(probability.clamp_min(PROBABILITY_FLOOR)).float()
                prediction[rows] = p.argmax(axis=1)
    metrics = {name: one.metrics() for name, one in scores.items()}
    drawn = dict(zip(resampled, resampled_metrics(list(resampled.values())), strict=True))
    _write_tables(out, metrics, drawn, {name: one.chance() for name, one in resampled.items()})
    _write_diagrams(out, scores, params.n_bins, np.bincount(label, minlength=shape[1]))
    if shape[1] > TOP:
        out.write("top5_accuracy", np.array(list(among.values())) / shape[0])
    out.write("changed_predictions", np.array(list(changed.values())))
    out.write("fit_negative_log_likelihood", np.array([_fit_likelihood(parts.fit, one) for one in everyone.values()]))
    out.write("label", label)
    out.write("sample_index", parts.report.index)
    out.write("fit_index", parts.fit.index)
    out.write("prediction", prediction)
    out.write("raised", parts.raised)
    out.write("shared", parts.shared)
    return Evaluated(metrics, changed, drawn)


def label_among(p: np.ndarray, label: np.ndarray, most: int) -> np.ndarray:
    """Whether the label (sample,) is among the `most` most probable classes of (sample, class); of equal ones the lower first."""
    own = p[np.arange(len(p)), label][:, None]
    before = (p > own).sum(axis=1) + ((p == own) & (np.arange(p.shape[1]) < label[:, None])).sum(axis=1)
    return np.asarray(before < most)


def _fit_likelihood(fit: Samples, calibrate: Calibrator) -> float:
    """Negative log likelihood of the fit samples."""
    total = 0.0
    for logit, label in fit.labelled_blocks():
        own = calibrate(logit).gather(1, label[:, None])
        total -= float(torch.log(own.clamp_min(CLIP)).sum())
    return total / len(fit.label)


def _write_tables(
    out: Out,
    metrics: Mapping[str, Mapping[str, float]],
    drawn: Mapping[str, Mapping[str, np.ndarray]],
    chance: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """The arrays over (recalibrator, metric)."""
    tables = {
        name: _uncertainty(value, metrics[UNCALIBRATED], drawn[name], drawn[UNCALIBRATED], chance[name])
        for name, value in metrics.items()
    }
    out.coordinate("metric", list(metrics[UNCALIBRATED]))
    for column in SCORE_ARRAYS:
        out.write(column, np.array([list(tables[name][column].values()) for name in metrics]))
    out.coordinate("resampled_metric", list(RESAMPLED))
    out.write("metric_draw", np.array([[drawn[name][one] for one in RESAMPLED] for name in metrics], dtype=np.float32))


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


def _write_diagrams(out: Out, scores: Mapping[str, CalibrationScores], n_bins: int, class_count: np.ndarray) -> None:
    """Reliability of the top label and of every class."""
    bins = [one.reliability_bins() for one in scores.values()]
    for field in ("confidence", "accuracy", "accuracy_lower", "accuracy_upper", "count"):
        out.write(f"reliability_{field}", np.stack([getattr(one, field) for one in bins]))
    events = [one.events() for one in scores.values()]
    bands = [
        consistency_band(confidence, rng=out.rng(f"band {name}"), n_bins=n_bins)
        for name, (confidence, _, _) in zip(scores, events, strict=True)
    ]
    out.write("reliability_band_lower", np.stack([low for low, _ in bands]))
    out.write("reliability_band_upper", np.stack([high for _, high in bands]))
    out.write("confidence", np.stack([confidence for confidence, _, _ in events]))
    classes = [one.classes for one in scores.values() if one.classes is not None]
    out.write("class_error", np.stack([one.errors() for one in classes]))
    out.write("class_gap", np.stack([one.gap() for one in classes]))
    out.write("class_count", class_count)
    out.write("clipped", np.array([int((own < CLIP).sum()) for _, _, own in events]))
    out.write("zeros", np.array([int((own <= 0).sum()) for _, _, own in events]))
