"""Calibration curves without a formula: isotonic regression of probabilities, one curve per class or one for all.

Zadrozny and Elkan (2002), Transforming Classifier Scores into Accurate Multiclass Probability Estimates, KDD: the pool
adjacent violators algorithm per class on p_k against [label = k], rows renormalised afterwards (`one_vs_rest`). Zhang,
Kailkhura, Han (2020), Mix-n-Match, ICML, arXiv 2003.07329: a single curve through all pairs, plus a small multiple of p so
that it is strictly increasing (`multi_class`); this keeps the order of classes.

Faithful, and exact without sorting all probabilities: a level of the curve begins at the score of an event that occurred and
ends before the next, so the fit needs these scores, and between them the number of the other events and their largest
score. They are counted in a second pass over the samples, which may be larger than memory.

Both variants give probabilities of exactly 0, whose labels dominate the negative log likelihood: the number of them and the
bound they are counted with stand in the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from sklearn.isotonic import IsotonicRegression
from torch import Tensor
from workbench import Inputs, Line, Method, Out, Output, Paper, Report, Result

from workbench_calibration.evaluation import OUTPUTS, EvaluationParams
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.per_class import KNOTS, most_frequent, probability_blocks, through, write_knots
from workbench_calibration.recalibration import recalibrate
from workbench_calibration.samples import INPUTS, Samples

Variant = Literal["one_vs_rest", "multi_class"]
NAME = "isotonic"
STRICT = 1e-9
"""Multiple of p that makes the single curve strictly increasing."""
GRID = np.linspace(0.0, 1.0, 201)
TIE = 1e-15
"""Scores nearer than this are equal, as scikit-learn has it: rounding must not order them."""


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


class EventCounts:
    """The events of one curve as far as isotonic regression needs them; see the head of this file."""

    def __init__(self, occurred: np.ndarray) -> None:
        """Scores of all events that occurred, in any order."""
        distinct, times = np.unique(occurred, return_counts=True)
        first = np.flatnonzero(np.diff(distinct, prepend=-1.0) >= TIE)
        self.score, self.times = distinct[first], np.add.reduceat(times, first) if len(first) else times
        # in front of the first of them, between them, behind the last
        self.others = np.zeros(len(self.score) + 1, dtype=np.int64)
        self.largest = np.zeros(len(self.score) + 1)

    def add(self, score: np.ndarray) -> None:
        """Scores of events that did not occur."""
        interval = np.searchsorted(self.score, score + TIE, side="right")
        self.others += np.bincount(interval, minlength=len(self.others))
        np.maximum.at(self.largest, interval, score)
        self.largest[1:] = np.maximum(self.largest[1:], self.score)  # those that tie with a score count as that score

    def curve(self) -> IsotonicRegression:
        """Pool adjacent violators; beyond the fitted range the curve is constant."""
        some = self.others > 0
        x = np.concatenate([self.score, self.largest[some]])
        y = np.concatenate([np.ones(len(self.score)), np.zeros(int(some.sum()))])
        weight = np.concatenate([self.times, self.others[some]]).astype(np.float64)
        return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, y, sample_weight=weight)


def fit_isotonic(samples: Samples, variant: Variant) -> IsotonicMap:
    """Fit the curves in two passes over the samples.

    Args:
        samples: logits and labels.
        variant: one curve per class, or one for all classes.
    """
    own = np.concatenate([p[np.arange(len(y)), y] for _, p, y in probability_blocks(samples)])
    label = samples.label.cpu().numpy()
    single = variant == "multi_class"
    counts = [EventCounts(own)] if single else [EventCounts(own[label == k]) for k in range(samples.classes)]
    for _, p, y in probability_blocks(samples):
        other = y[:, None] != np.arange(samples.classes)
        if single:
            counts[0].add(p[other])
            continue
        for one, column, inside in zip(counts, p.T, other.T, strict=True):
            one.add(column[inside])
    return IsotonicMap(tuple(one.curve() for one in counts))


class Isotonic(Method):
    """Isotonic regression of class probabilities."""

    id = "calibration.isotonic"
    title = "Calibrates with monotone curves of any shape, per class or one for all classes"
    version = "3"
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
        *KNOTS,
    )

    class Params(EvaluationParams):
        """Parameters."""

        variant: Variant = Field("one_vs_rest", description="one_vs_rest: a curve per class; multi_class: one for all")

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit on the fit rows and judge on the others."""
        _, fitted = recalibrate(
            inputs, params, out, name=NAME, fit=lambda samples: fit_isotonic(samples, params.variant),
            keeps_predictions=params.variant == "multi_class",
        )
        assert isinstance(fitted, IsotonicMap)
        out.coordinate("given_probability", GRID)
        out.write("curve", np.stack([curve.predict(GRID) for curve in fitted.curves]))
        write_knots(out, [(curve.X_thresholds_, curve.y_thresholds_) for curve in fitted.curves])  # straight lines between them

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
