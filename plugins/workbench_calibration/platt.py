"""A sigmoid for every class: Platt scaling one class against the rest, for classifiers whose classes are off differently.

Platt (1999), Probabilistic Outputs for Support Vector Machines and Comparisons to Regularized Likelihood Methods, Advances in
Large Margin Classifiers: q = 1 / (1 + exp(A f + B)) of a decision value f, by maximum likelihood with targets
(N+ + 1) / (N+ + 2) and 1 / (N- + 2) in place of 1 and 0. For more classes one sigmoid each against the rest, rows renormalised
(Zadrozny and Elkan 2002, Transforming Classifier Scores into Accurate Multiclass Probability Estimates, KDD).

The decision value of a softmax classifier for class k is its log odds, log p_k - log(1 - p_k), with p and 1 - p clipped at
1e-30: it does not change when a constant is added to all logits of a sample, and stored probabilities give the same as stored
logits. (Taking the logit z_k itself, as `calibration.sklearn_sigmoid` does, gives another map.) Signs are turned so that
larger means more likely: `slope` = -A, `intercept` = -B. Platt's optimiser is replaced by Newton's method, which reaches the
optimum of the same convex objective. Predictions may change, and accuracy with them.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from workbench import Bar, Inputs, Method, Out, Output, Paper, Report, Result

from workbench_calibration.evaluation import OUTPUTS, EvaluationParams
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.logistic import GRID, LogisticMap, Targets, curve_view, fit_logistic
from workbench_calibration.recalibration import recalibrate
from workbench_calibration.samples import INPUTS, PROBABILITY_FLOOR, Samples

NAME = "platt"
LEAST = math.log(PROBABILITY_FLOOR)


def log_odds(log_p: Tensor, log_rest: Tensor) -> Tensor:
    """Decision value and 1, (2, row, class), of log p and log(1 - p)."""
    value = log_p.clamp_min(LEAST) - log_rest.clamp_min(LEAST)
    return torch.stack([value, torch.ones_like(value)])


def fit_platt(samples: Samples, *, targets: Targets) -> LogisticMap:
    """Slope and intercept of every class, `weight` (class, 2).

    Args:
        samples: logits and labels.
        targets: smoothed: Platt's; labels: 0 and 1.
    """
    return fit_logistic(samples, log_odds, targets=targets, non_negative=(False, False))


class PlattScaling(Method):
    """Sigmoids of the log odds, one per class."""

    id = "calibration.platt"
    title = "Calibrates each class against the rest with a sigmoid of its log odds"
    version = "1"
    paper = Paper(
        title="Probabilistic Outputs for Support Vector Machines and Comparisons to Regularized Likelihood Methods",
        authors="Platt",
        year=1999,
        venue="Advances in Large Margin Classifiers",
    )
    inputs = INPUTS
    outputs = (
        *OUTPUTS,
        Output("slope", ("class",), "float64", "factor of each class's log odds, Platt's -A"),
        Output("intercept", ("class",), "float64", "added to each class's scaled log odds, Platt's -B"),
        Output("curve", ("curve_class", "given_probability"), "float64", "calibrated value, before renormalising"),
        Output("gradient", (), "float64", "largest slope of the fit likelihood at the solution; 0 when converged"),
    )

    class Params(EvaluationParams):
        """Parameters."""

        targets: Targets = Field(
            "smoothed", description="smoothed: Platt's targets, kept off 0 and 1; labels: plain maximum likelihood"
        )

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit on the fit rows and judge on the others."""
        _, fitted = recalibrate(
            inputs, params, out, name=NAME, fit=lambda samples: fit_platt(samples, targets=params.targets)
        )
        assert isinstance(fitted, LogisticMap)
        out.write("slope", fitted.weight[:, 0])
        out.write("intercept", fitted.weight[:, 1])
        out.coordinate("given_probability", GRID)
        out.write("curve", fitted.curve(GRID))
        out.write("gradient", fitted.gradient)

    def report(self, result: Result) -> Report:
        """Slopes, intercepts, and what they change."""
        slope = result["slope"].values
        falling = int((slope < 0).sum())
        return evaluation_report(
            result,
            main=NAME,
            summary=f"Platt scaling multiplies the log odds of a class by {slope.min():.2f} to {slope.max():.2f}.",
            views=(
                curve_view(result),
                Bar(title="Slope of each class", y=("slope",), x="class", caption="Below 1: overconfident class."),
                Bar(
                    title="Intercept of each class",
                    y=("intercept",),
                    x="class",
                    caption="Above 0: predicted too rarely.",
                ),
            ),
            notes=[
                f"The slope is negative in {falling} of {len(slope)} classes: a larger probability means a rarer class there. "
                "These have too few fit samples, or labels that contradict the classifier."
            ]
            if falling
            else [],
        )
