"""Which inputs does a classifier itself give away as foreign: MSP, max-logit and energy scores from stored logits.

Hendrycks and Gimpel (2017), A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks,
arXiv 1610.02136 (MSP); Hendrycks et al. (2022), Scaling Out-of-Distribution Detection for Real-World Settings,
arXiv 1911.11132 (max-logit); Liu et al. (2020), Energy-based Out-of-distribution Detection, arXiv 2010.03759 (energy).

Faithful in every formula. All scores are stored so that larger means more anomalous, also those whose papers state a
confidence. Any detector of this family should be shown beside these. With labels, the same scores are also judged by
how well they find the classifier's own errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from workbench_detection.metrics import DETECTION_METRICS, auroc, bootstrap_intervals, detection_metrics, roc_at

from workbench import DataRole, Histogram, InputError, Inputs, Line, Method, Metric, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams
from workbench import Table
from workbench.toolkit import to_tensor

TITLES = {"msp": "MSP", "max_logit": "max-logit", "energy": "energy"}
ROC_POINTS = 201


def maximum_softmax_probability(logit: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """MSP: minus the largest softmax probability of logit / temperature; (sample, class) to (sample,)."""
    return -torch.softmax(logit / temperature, dim=1).amax(1)


def maximum_logit(logit: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Max-logit: minus the largest logit; (sample, class) to (sample,). A temperature would only rescale it."""
    return -logit.amax(1)


def energy(logit: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Energy: -t logsumexp(logit / t); (sample, class) to (sample,)."""
    return -temperature * torch.logsumexp(logit / temperature, dim=1)


SCORES: Mapping[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "msp": maximum_softmax_probability,
    "max_logit": maximum_logit,
    "energy": energy,
}


class LogitScores(Method):
    """Scores of in-distribution and out-of-distribution samples from logits alone, with their detection metrics."""

    id = "detection.logit_scores"
    title = "MSP, max-logit and energy scores from stored logits"
    paper = Paper(
        title="Energy-based Out-of-distribution Detection",
        authors="Liu, Wang, Owens, Li",
        year=2020,
        arxiv="2010.03759",
        venue="NeurIPS 2020",
        code="wetliu/energy_ood",
    )
    inputs = {
        "data": DataRole(
            "logits of in-distribution samples the classifier was not trained on",
            variables={"logit": ("sample", "class")},
            optional_variables={"label": ("sample",)},
        ),
        "anomalous": DataRole("logits of out-of-distribution samples", variables={"logit": ("sample", "class")}),
    }
    outputs = (
        Output("score", ("method", "sample"), "float64", "in-distribution samples first; larger = more anomalous"),
        Output("anomalous", ("sample",), "bool", "True for the samples of role `anomalous`"),
        *(Output(name, ("method",), "float64", f"{name}, see `metrics`") for name in DETECTION_METRICS),
        *(
            Output(f"{name}_{bound}", ("method",), "float64", f"{bound} end of the 95 % bootstrap interval of {name}")
            for name in DETECTION_METRICS
            for bound in ("low", "high")
        ),
        Output(
            "true_positive_rate",
            ("method", "false_positive_rate"),
            "float64",
            "ROC: share of anomalous samples flagged when this share of normal ones is",
        ),
        Output("accuracy", (), "float64", "of the classifier on the in-distribution samples", optional=True),
        Output("error_auroc", ("method",), "float64", "AUROC of finding the classifier's errors", optional=True),
    )

    class Params(BaseParams):
        """Parameters."""

        methods: tuple[str, ...] = Field(tuple(SCORES), min_length=1, description="Scores: msp, max_logit, energy")
        temperature: float = Field(1.0, gt=0, le=10_000, description="Divides the logits in MSP and energy (papers 1)")
        bootstrap: int = Field(1000, ge=100, le=100_000, description="Resamples for the confidence intervals")

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Score both sets and judge the scores."""
        unknown = [name for name in params.methods if name not in SCORES]
        if unknown or len(set(params.methods)) != len(params.methods):
            raise InputError("methods", expected=f"distinct names out of {tuple(SCORES)}", got=str(params.methods))
        normal, foreign = inputs["data"], inputs["anomalous"]
        if normal.sizes["class"] != foreign.sizes["class"]:
            raise InputError(
                "anomalous",
                expected=f"logits of the same classifier, {normal.sizes['class']} classes",
                got=f"{foreign.sizes['class']} classes",
            )
        logits = [
            to_tensor(dataset["logit"], device=out.device, dtype=torch.float64) for dataset in (normal, foreign)
        ]
        logit = torch.cat(logits)
        anomalous = np.repeat([False, True], [len(part) for part in logits])
        scores = np.stack([SCORES[name](logit, params.temperature).cpu().numpy() for name in params.methods])
        out.coordinate("method", list(params.methods))
        out.write("score", scores)
        out.write("anomalous", anomalous)
        judge(scores, anomalous, params.methods, params.bootstrap, out)
        if "label" in normal:
            label = to_tensor(normal["label"]).numpy()
            wrong = logits[0].argmax(1).cpu().numpy() != label
            out.write("accuracy", float(1 - wrong.mean()))
            if wrong.any() and not wrong.all():
                out.write("error_auroc", np.array([auroc(score[: len(label)], wrong) for score in scores]))

    def report(self, result: Result) -> Report:
        """Metrics with intervals, score histograms and ROC curves."""
        names = [str(name) for name in result["auroc"]["method"].values]
        best = names[int(result["auroc"].argmax())]
        metrics: list[Metric] = []
        for position, name in enumerate(names):
            metrics += [_metric(result, metric, position, f"{metric}_{name}") for metric in DETECTION_METRICS]
        if "accuracy" in result:
            metrics.append(Metric(name="accuracy", value=float(result["accuracy"]), direction="higher"))
        if "error_auroc" in result:
            values = result["error_auroc"].values
            metrics += [
                Metric(
                    name=f"error_auroc_{name}",
                    value=float(value),
                    direction="higher",
                    description="AUROC of telling wrong from right predictions on the in-distribution samples",
                )
                for name, value in zip(names, values, strict=True)
            ]
        anomalous = result["anomalous"].values
        return Report(
            summary=(
                f"{TITLES[best]} separates {int(anomalous.sum())} out-of-distribution from {int((~anomalous).sum())} "
                f"in-distribution samples best: AUROC {float(result['auroc'].max()):.3f}, "
                f"FPR95 {float(result['fpr95_id'].sel(method=best)):.2f}."
            ),
            metrics=metrics,
            tables=(_table(result, names),),
            views=(
                Histogram(title=f"Score of {TITLES[best]}", values=("score",), by="anomalous", select={"method": best},
                          x_label="score (larger = more anomalous)"),
                Line(title="ROC", y=("true_positive_rate",), x="false_positive_rate", by="method",
                     x_label="normal samples flagged", y_label="anomalous samples flagged"),
            ),
            notes=(
                "fpr95_id: anomalous samples accepted when 95 % of the normal ones are kept (most papers); fpr95_ood: "
                "normal samples flagged when 95 % of the anomalous ones are found (OpenOOD). Do not mix the two.",
                "AUPR is average precision (step-wise area), not the trapezoid.",
            ),
        )


def judge(scores: np.ndarray, anomalous: np.ndarray, names: Sequence[str], resamples: int, out: Out) -> None:
    """Write metrics, their intervals and ROC points of scores (method, sample)."""
    points: dict[str, list[float]] = {name: [] for name in DETECTION_METRICS}
    bounds: dict[str, list[tuple[float, float]]] = {name: [] for name in DETECTION_METRICS}
    grid = np.linspace(0, 1, ROC_POINTS)
    curves = []
    for name, score in zip(names, scores, strict=True):
        values = detection_metrics(score, anomalous)
        intervals = bootstrap_intervals(score, anomalous, out.rng(f"bootstrap {name}"), resamples=resamples)
        for metric in DETECTION_METRICS:
            points[metric].append(values[metric])
            bounds[metric].append(intervals[metric])
        curves.append(roc_at(score, anomalous, grid))
    for metric in DETECTION_METRICS:
        out.write(metric, np.array(points[metric]))
        out.write(f"{metric}_low", np.array([low for low, _ in bounds[metric]]))
        out.write(f"{metric}_high", np.array([high for _, high in bounds[metric]]))
    out.coordinate("false_positive_rate", grid)
    out.write("true_positive_rate", np.stack(curves))


def _metric(result: Result, metric: str, position: int, name: str) -> Metric:
    value, low, high = (float(result[key][position]) for key in (metric, f"{metric}_low", f"{metric}_high"))
    direction: Any = "lower" if metric.startswith("fpr") else "higher"
    return Metric(name=name, value=value, direction=direction, interval=(low, high))


def _table(result: Result, names: list[str]) -> Table:
    rows = tuple(
        (TITLES[name], *(round(float(result[metric].sel(method=name)), 4) for metric in DETECTION_METRICS))
        for name in names
    )
    return Table(title="Scores", columns=("score", *DETECTION_METRICS), rows=rows)
