"""Which inputs does a classifier itself give away as foreign: MSP, max-logit, energy, entropy, GradNorm from stored outputs.

Hendrycks and Gimpel (2017), A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks,
arXiv 1610.02136 (MSP); Hendrycks et al. (2022), Scaling Out-of-Distribution Detection for Real-World Settings,
arXiv 1911.11132 (max-logit); Liu et al. (2020), Energy-based Out-of-distribution Detection, arXiv 2010.03759 (energy);
Huang et al. (2021), On the Importance of Gradients for Detecting Distributional Shifts in the Wild, arXiv 2110.00218
(GradNorm, needs penultimate features as well). The entropy of the softmax is added as a classical score.

Faithful in every formula. All scores are stored so that larger means more anomalous, also those whose papers state a
confidence. None of them is fitted to anything. Any detector of this family should be shown beside these. With labels,
the same scores are also judged by how well they find the classifier's own errors. Scores that need statistics of the
training data (kNN, Mahalanobis, ViM, ReAct) or the model itself (ODIN, ASH) are not part of this method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from workbench import (
    Bar,
    DataRole,
    Histogram,
    InputError,
    Inputs,
    Line,
    Method,
    Metric,
    Out,
    Output,
    Paper,
    Report,
    Result,
    Table,
)
from workbench import Params as BaseParams
from workbench.toolkit import to_tensor

from workbench_detection.metrics import DETECTION_METRICS, auroc, bootstrap_intervals, detection_metrics, roc_at

Score = Literal["msp", "max_logit", "energy", "entropy", "grad_norm"]
TITLES: Mapping[str, str] = {
    "msp": "MSP",
    "max_logit": "max-logit",
    "energy": "energy",
    "entropy": "entropy",
    "grad_norm": "GradNorm",
}
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


def entropy(logit: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Entropy of softmax(logit / t) in nats; (sample, class) to (sample,)."""
    log_probability = torch.log_softmax(logit / temperature, dim=1)
    return -(log_probability.exp() * log_probability).nan_to_num(0.0).sum(1)


def grad_norm(logit: torch.Tensor, feature: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """GradNorm: minus the L1 norm of the gradient of CE(uniform, softmax(logit / t)) in the last layer's weights.

    For logits W z + b that gradient is (softmax - 1 / class) z^T / t, so its norm is a product and needs no autograd.

    Args:
        logit: (sample, class).
        feature: what the last layer receives, (sample, feature).
        temperature: t.
    """
    distance = (torch.softmax(logit / temperature, dim=1) - 1 / logit.shape[1]).abs().sum(1)
    return -distance * feature.abs().sum(1) / temperature


SCORES: Mapping[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "msp": maximum_softmax_probability,
    "max_logit": maximum_logit,
    "energy": energy,
    "entropy": entropy,
}
"""Scores of logits alone."""


class LogitScores(Method):
    """Scores of in-distribution and out-of-distribution samples from logits alone, with their detection metrics."""

    id = "detection.logit_scores"
    title = "MSP, max-logit, energy, entropy and GradNorm: what a classifier's own outputs say about foreign inputs"
    version = "2"
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
            optional_variables={"label": ("sample",), "feature": ("sample", "feature")},
        ),
        "ood": DataRole(
            "logits of out-of-distribution samples from the same classifier",
            variables={"logit": ("sample", "class")},
            optional_variables={"feature": ("sample", "feature")},
        ),
    }
    outputs = (
        Output("score", ("detector", "sample"), "float64", "in-distribution samples first; larger = more anomalous"),
        Output("anomalous", ("sample",), "bool", "True for the samples of role `ood`"),
        *(Output(name, ("detector",), "float64", f"{name}, see `metrics`") for name in DETECTION_METRICS),
        *(
            Output(f"{name}_{bound}", ("detector",), "float64", f"{bound} end of the 95 % bootstrap interval of {name}")
            for name in DETECTION_METRICS
            for bound in ("low", "high")
        ),
        Output(
            "true_positive_rate",
            ("detector", "false_positive_rate"),
            "float64",
            "ROC: share of anomalous samples flagged when this share of normal ones is",
        ),
        Output("accuracy", (), "float64", "of the classifier on the in-distribution samples", optional=True),
        Output("error_auroc", ("detector",), "float64", "AUROC of finding the classifier's errors", optional=True),
    )

    class Params(BaseParams):
        """Parameters."""

        methods: tuple[Score, ...] | None = Field(
            None, min_length=1, description="Which scores; None: all that the data allow (grad_norm needs `feature`)"
        )
        temperature: float = Field(
            1.0, gt=0, le=10_000, description="Divides the logits in all scores but max-logit (papers 1)"
        )
        bootstrap: int = Field(1000, ge=100, le=100_000, description="Resamples for the confidence intervals")

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Score both sets and judge the scores."""
        normal, foreign = inputs["data"], inputs["ood"]
        names = choose_scores(params.methods, "feature" in normal and "feature" in foreign)
        for dim, needed in (("class", True), ("feature", "grad_norm" in names)):
            if needed and normal.sizes[dim] != foreign.sizes[dim]:
                raise InputError(
                    "ood",
                    expected=f"outputs of the same classifier, {normal.sizes[dim]} entries along {dim!r}",
                    got=f"{foreign.sizes[dim]}",
                )

        def both(variable: str) -> torch.Tensor:
            parts = [to_tensor(d[variable], device=out.device, dtype=torch.float64) for d in (normal, foreign)]
            return torch.cat(parts)

        logit = both("logit")
        anomalous = np.repeat([False, True], [normal.sizes["sample"], foreign.sizes["sample"]])
        scores = np.stack(
            [
                (
                    grad_norm(logit, both("feature"), params.temperature)
                    if name == "grad_norm"
                    else SCORES[name](logit, params.temperature)
                )
                .cpu()
                .numpy()
                for name in out.track(names, "scoring")
            ]
        )
        out.coordinate("detector", names)
        out.write("score", scores)
        out.write("anomalous", anomalous)
        judge(scores, anomalous, names, params.bootstrap, out)
        if "label" in normal:
            label = to_tensor(normal["label"]).numpy()
            wrong = logit[: len(label)].argmax(1).cpu().numpy() != label
            out.write("accuracy", float(1 - wrong.mean()))
            if wrong.any() and not wrong.all():
                out.write("error_auroc", np.array([auroc(score[: len(label)], wrong) for score in scores]))

    def report(self, result: Result) -> Report:
        """Metrics with intervals, score histograms and ROC curves."""
        names = [str(name) for name in result["auroc"]["detector"].values]
        best = names[int(np.argmax(result["auroc"].values))]
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
        return Report(
            summary=_summary(result, best),
            metrics=metrics,
            tables=(_table(result, names),),
            views=_views(names, best, "error_auroc" in result),
            notes=(
                "fpr95_id: out-of-distribution samples accepted when 95 % of the in-distribution ones are kept (most "
                "papers); fpr95_ood: in-distribution samples flagged when 95 % of the others are found (OpenOOD). Do not "
                "mix the two.",
                "AUPR is average precision (step-wise area), not the trapezoid; it depends on the share of "
                "out-of-distribution samples, here "
                f"{float(result['anomalous'].values.mean()):.0%}.",
                "Intervals are bootstraps over the samples; they do not cover another training of the classifier. The "
                "scores are judged on the same samples, so intervals that overlap do not show that two scores are alike.",
            ),
        )


def choose_scores(asked: Sequence[str] | None, has_features: bool) -> list[str]:
    """The scores to compute: those asked for, or all that the data allow.

    Raises:
        InputError: a score is named twice, or GradNorm is asked for without features.
    """
    if asked is None:
        return [*SCORES, *(["grad_norm"] if has_features else [])]
    if len(set(asked)) != len(asked):
        raise InputError("methods", expected="each score once", got=str(tuple(asked)))
    if "grad_norm" in asked and not has_features:
        raise InputError(
            "methods",
            expected="scores of logits alone where a role has no variable 'feature'",
            got="grad_norm",
            hint="Give both roles the penultimate features (sample, feature), or leave grad_norm out.",
        )
    return list(asked)


def judge(scores: np.ndarray, anomalous: np.ndarray, names: Sequence[str], resamples: int, out: Out) -> None:
    """Write metrics, their intervals and ROC points of scores (detector, sample)."""
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


def _summary(result: Result, best: str) -> str:
    anomalous = result["anomalous"].values
    chosen = {"detector": best}
    foreign, reached = int(anomalous.sum()), float(result["auroc"].sel(chosen))
    low, high = (float(result[f"auroc_{bound}"].sel(chosen)) for bound in ("low", "high"))
    if low <= 0.5:
        why = "below 0.5: they look more normal than the in-distribution ones" if high < 0.5 else "no better than chance"
        text = (
            f"No score finds the {foreign} out-of-distribution samples: the best, {TITLES[best]}, reaches AUROC "
            f"{reached:.3f} ({why})."
        )
    else:
        text = (
            f"{TITLES[best]} separates {foreign} out-of-distribution from {int((~anomalous).sum())} "
            f"in-distribution samples best: AUROC {reached:.3f}, FPR95 {float(result['fpr95_id'].sel(chosen)):.2f}."
        )
    if "error_auroc" not in result:
        return text
    errors = result["error_auroc"]
    finder = str(errors["detector"].values[int(np.argmax(errors.values))])
    return f"{text} The classifier's own errors are found best by {TITLES[finder]} (AUROC {float(errors.max()):.3f})."


def _views(names: Sequence[str], best: str, finds_errors: bool) -> list[Any]:
    views: list[Any] = [
        Histogram(
            title=f"Scores: {TITLES[best]}",
            caption="The score with the largest AUROC.",
            values=("score",),
            by="anomalous",
            select={"detector": best},
            x_label="score (larger = more anomalous)",
        ),
        Line(
            title="ROC",
            y=("true_positive_rate",),
            x="false_positive_rate",
            by="detector",
            x_label="in-distribution samples flagged",
            y_label="out-of-distribution samples found",
        ),
        Bar(
            title="FPR95 of each score",
            caption="Out-of-distribution samples accepted when 95 % of the in-distribution ones are kept; lower is better.",
            y=("fpr95_id",),
            x="detector",
        ),
    ]
    views += [
        Histogram(
            title=f"Scores: {TITLES[name]}",
            values=("score",),
            by="anomalous",
            select={"detector": name},
            x_label="score (larger = more anomalous)",
        )
        for name in names
        if name != best
    ]
    if finds_errors:
        views.append(
            Bar(
                title="Foreign samples and own errors",
                caption="AUROC of finding out-of-distribution samples, and of finding errors among the in-distribution ones.",
                y=("auroc", "error_auroc"),
                x="detector",
                y_label="AUROC",
            )
        )
    return views


def _table(result: Result, names: list[str]) -> Table:
    rows = []
    for name in names:
        values = [round(float(result[metric].sel(detector=name)), 4) for metric in DETECTION_METRICS]
        low, high = (float(result[f"auroc_{bound}"].sel(detector=name)) for bound in ("low", "high"))
        errors = [round(float(result["error_auroc"].sel(detector=name)), 4)] if "error_auroc" in result else []
        rows.append((TITLES[name], values[0], f"{low:.3f} to {high:.3f}", *values[1:], *errors))
    found = ("finds errors (AUROC)",) if "error_auroc" in result else ()
    columns = ("score", "auroc", "95 % interval", *DETECTION_METRICS[1:], *found)
    return Table(title="Scores", columns=columns, rows=tuple(rows))
