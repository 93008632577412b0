"""Calibration curves without a formula: isotonic regression of probabilities, one curve per class or one for all.

Zadrozny and Elkan (2002), Transforming Classifier Scores into Accurate Multiclass Probability Estimates, KDD: the pool
adjacent violators algorithm per class on p_k against [label = k], rows renormalised afterwards (`one_vs_rest`). Zhang,
Kailkhura, Han (2020), Mix-n-Match, ICML, arXiv 2003.07329: a single curve through all pairs, plus a small multiple of p so
that it is strictly increasing (`multi_class`); this keeps the order of classes.

Faithful. Both give probabilities of exactly 0, whose labels dominate the negative log likelihood: the number of them and
the bound they are counted with stand in the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from sklearn.isotonic import IsotonicRegression
from torch import Tensor
from workbench import Inputs, Line, Method, Out, Output, Paper, Report, Result

from workbench_calibration.evaluation import OUTPUTS, EvaluationParams
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.per_class import most_frequent, through
from workbench_calibration.recalibration import recalibrate
from workbench_calibration.samples import INPUTS

Variant = Literal["one_vs_rest", "multi_class"]
NAME = "isotonic"
STRICT = 1e-9
"""Multiple of p that makes the single curve strictly increasing."""
GRID = np.linspace(0.0, 1.0, 201)


@dataclass(frozen=True)
class IsotonicMap:
    """Fitted curves: one per class, or a single one."""

    curves: tuple[IsotonicRegression, ...]

    def values(self, probability: np.ndarray) -> np.ndarray:
        """Curve values of probabilities (sample, class), before rows are renormalised."""
        if len(self.curves) == 1:
            flat = self.curves[0].predict(probability.ravel()).reshape(probability.shape)
            return np.asarray(flat + STRICT * probability)
        return np.stack([curve.predict(column) for curve, column in zip(self.curves, probability.T, strict=True)], axis=1)

    @property
    def numbers(self) -> int:
        """How many numbers were fitted: the steps of all curves."""
        return sum(len(np.unique(curve.y_thresholds_)) for curve in self.curves)

    def __call__(self, logit: Tensor) -> Tensor:
        """Calibrated probabilities, (sample, class)."""
        return through(self.values, logit)


def fit_isotonic(logit: Tensor, label: Tensor, variant: Variant) -> IsotonicMap:
    """Fit the curves by pooling adjacent violators; beyond the fitted range they are constant.

    Args:
        logit: float64 (sample, class).
        label: int64 (sample,).
        variant: one curve per class, or one for all classes.
    """
    p = torch.softmax(logit, dim=1).cpu().numpy()
    hit = np.eye(p.shape[1])[label.cpu().numpy()]
    pairs = [(p.ravel(), hit.ravel())] if variant == "multi_class" else list(zip(p.T, hit.T, strict=True))
    return IsotonicMap(
        tuple(IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, y) for x, y in pairs)
    )


class Isotonic(Method):
    """Isotonic regression of class probabilities."""

    id = "calibration.isotonic"
    title = "Calibrates with monotone curves of any shape, per class or one for all classes"
    version = "2"
    paper = Paper(
        title="Transforming Classifier Scores into Accurate Multiclass Probability Estimates",
        authors="Zadrozny, Elkan",
        year=2002,
        venue="KDD 2002",
    )
    inputs = INPUTS
    outputs = (
        *OUTPUTS,
        Output("curve", ("curve_class", "given_probability"), "float64", "calibrated value, before renormalising"),
    )

    class Params(EvaluationParams):
        """Parameters."""

        variant: Variant = Field("one_vs_rest", description="one_vs_rest: a curve per class; multi_class: one for all")

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit on the fit rows and judge on the others."""
        _, fitted = recalibrate(
            inputs, params, out, name=NAME, fit=lambda logit, label: fit_isotonic(logit, label, params.variant),
            keeps_predictions=params.variant == "multi_class",
        )
        assert isinstance(fitted, IsotonicMap)
        out.coordinate("given_probability", GRID)
        out.write("curve", np.stack([curve.predict(GRID) for curve in fitted.curves]))

    def report(self, result: Result) -> Report:
        """The curves and what they change."""
        single = result.params.variant == "multi_class"
        return evaluation_report(
            result,
            main=NAME,
            summary="One monotone curve for all classes." if single else "One monotone curve per class.",
            views=(
                Line(title="Curves", y=("curve",), x="given_probability", by=None if single else "curve_class",
                     select={"curve_class": 0} if single else {"curve_class": most_frequent(result)},
                     x_label="probability before", y_label="after"),
            ),
        )
