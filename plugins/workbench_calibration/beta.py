"""Beta calibration of every class against the rest: curves that a sigmoid cannot take, the identity among them.

Kull, Silva Filho, Flach (2017), Beta calibration: a well-founded and easily implemented improvement on logistic calibration for
binary classifiers, AISTATS: if the probabilities of both classes are beta distributed, the calibrated log odds are
a ln p - b ln(1 - p) + c with a, b >= 0. a = b gives Platt's family; a = b = 1 and c = 0 leave p as it is, which no
sigmoid of p does; a different from b bends the two ends differently. For more classes one curve each against the rest, rows
renormalised, as the paper's follow-up does (Kull et al. 2019, arXiv 1910.12656).

Differs from the authors' code where the likelihood wants a negative a or b: there the weight is set to 0 and the rest fitted
again; here the optimum under both constraints is computed, which is the same unless that drives the other one below 0. p and
1 - p are clipped at the rounding error of double precision, as there. Predictions may change, and accuracy with them.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from workbench import Bar, Inputs, Method, Out, Output, Paper, Report, Result

from workbench_calibration.evaluation import OUTPUTS, EvaluationParams
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.logistic import GRID, LogisticMap, curve_view, fit_logistic
from workbench_calibration.recalibration import recalibrate
from workbench_calibration.samples import INPUTS, Samples

Variant = Literal["abm", "am", "ab"]
NAME = "beta"
LEAST = math.log(np.finfo(np.float64).eps)


def clipped(log_p: Tensor, log_rest: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms ln p and -ln(1 - p), of p and 1 - p no smaller than double precision resolves at 1."""
    return log_p.clamp_min(LEAST), -log_rest.clamp_min(LEAST)


def features_abm(log_p: Tensor, log_rest: Tensor) -> Tensor:
    """Features ln p, -ln(1 - p) and 1, (3, row, class)."""
    own, rest = clipped(log_p, log_rest)
    return torch.stack([own, rest, torch.ones_like(own)])


def features_am(log_p: Tensor, log_rest: Tensor) -> Tensor:
    """Features ln p - ln(1 - p) and 1, (2, row, class): a = b."""
    own, rest = clipped(log_p, log_rest)
    return torch.stack([own + rest, torch.ones_like(own)])


def features_ab(log_p: Tensor, log_rest: Tensor) -> Tensor:
    """Features ln 2p and -ln 2(1 - p), (2, row, class): the curve passes through (1/2, 1/2)."""
    own, rest = clipped(log_p, log_rest)
    return torch.stack([own + math.log(2), rest - math.log(2)])


def fit_beta(samples: Samples, *, variant: Variant) -> LogisticMap:
    """The weights of every class, `weight` (class, feature), features as the variant has them.

    Args:
        samples: logits and labels.
        variant: which parameters are free; see `Params`.
    """
    if variant == "abm":
        return fit_logistic(samples, features_abm, targets="labels", non_negative=(True, True, False))
    if variant == "am":
        return fit_logistic(samples, features_am, targets="labels", non_negative=(True, False))
    return fit_logistic(samples, features_ab, targets="labels", non_negative=(True, True), intercept=False)


def abc(weight: np.ndarray, variant: Variant) -> np.ndarray:
    """a, b and c of every class, (class, 3), of the weights of any variant (class, feature)."""
    if variant == "abm":
        return weight
    if variant == "am":
        return weight[:, [0, 0, 1]]
    return np.column_stack([weight, math.log(2) * (weight[:, 0] - weight[:, 1])])


class BetaCalibration(Method):
    """Beta curves, one per class."""

    id = "calibration.beta"
    title = "Calibrates each class against the rest with a curve of three parameters that may leave it as it is"
    version = "1"
    paper = Paper(
        title="Beta calibration: a well-founded and easily implemented improvement on logistic calibration for binary "
        "classifiers",
        authors="Kull, Silva Filho, Flach",
        year=2017,
        venue="AISTATS 2017",
        code="betacal/python (MIT)",
    )
    inputs = INPUTS
    outputs = (
        *OUTPUTS,
        Output("shape_a", ("class",), "float64", "a: factor of ln p; it bends the curve near 0"),
        Output("shape_b", ("class",), "float64", "b: factor of -ln(1 - p); it bends the curve near 1"),
        Output("intercept", ("class",), "float64", "c"),
        Output("curve", ("curve_class", "given_probability"), "float64", "calibrated value, before renormalising"),
        Output("gradient", (), "float64", "largest slope of the fit likelihood at the solution; 0 when converged"),
    )

    class Params(EvaluationParams):
        """Parameters."""

        variant: Variant = Field(
            "abm",
            description="abm: all three parameters (the paper's); am: a = b, as Platt; ab: (1/2, 1/2) stays where it is",
        )

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit on the fit rows and judge on the others."""
        _, fitted = recalibrate(
            inputs, params, out, name=NAME, fit=lambda samples: fit_beta(samples, variant=params.variant)
        )
        assert isinstance(fitted, LogisticMap)
        for name, column in zip(
            ("shape_a", "shape_b", "intercept"), abc(fitted.weight.cpu().numpy(), params.variant).T, strict=True
        ):
            out.write(name, column)
        out.coordinate("given_probability", GRID)
        out.write("curve", fitted.curve(GRID))
        out.write("gradient", fitted.gradient)

    def report(self, result: Result) -> Report:
        """Curves, their parameters, and what they change."""
        a, b = result["shape_a"].values, result["shape_b"].values
        flat = int(((a == 0) | (b == 0)).sum())
        return evaluation_report(
            result,
            main=NAME,
            summary=f"Beta curves of the classes have a from {a.min():.2f} to {a.max():.2f} and b from {b.min():.2f} to "
            f"{b.max():.2f}; 1 and 1 would leave the odds as they are.",
            views=(
                curve_view(result),
                Bar(
                    title="Shape of each class",
                    y=("shape_a", "shape_b"),
                    x="class",
                    caption="a for small probabilities, b for large ones; below 1: too extreme there.",
                ),
                Bar(title="Intercept of each class", y=("intercept",), x="class", caption="c, in log odds."),
            ),
            notes=[f"a or b lies at its bound 0 in {flat} of {len(a)} classes: the curve is flat at one end."]
            if flat
            else [],
        )
