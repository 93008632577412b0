"""Calibration without bins: a spline through the cumulated gap of confidence and hits recalibrates the top score.

Gupta, Rahimi, Ajanthan, Mensink, Sminchisescu, Hartley (2021), Calibration of Neural Networks using Splines, ICLR, arXiv
2006.12800: sort the fit samples by their top score s; fit a natural cubic spline with equally spaced knots on
u = 0..1 to (cumulated hits - cumulated scores) / N by least squares; its derivative is the gap at u, so s + derivative is
the calibrated score. New scores are interpolated between those of the fit samples, and constant beyond them.

The method recalibrates one score, not a distribution. To give one, the other probabilities are scaled to the rest
1 - new score. This can change the most probable class (the report counts it); the calibrated score of the unchanged
prediction is stored as `top_score`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from scipy.interpolate import CubicSpline
from torch import Tensor
from workbench import Inputs, Line, Method, Metric, Out, Output, Paper, Report, Result
from workbench.toolkit import binned_calibration_error, kolmogorov_smirnov_error

from workbench_calibration.evaluation import OUTPUTS, EvaluationParams
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.per_class import KNOTS, write_knots
from workbench_calibration.recalibration import recalibrate
from workbench_calibration.samples import INPUTS, Samples

NAME = "spline"
GRID = np.linspace(0.0, 1.0, 201)


@dataclass(frozen=True)
class SplineMap:
    """`score` ascending (fit sample,), `calibrated` (fit sample,), and the curve that gave it, over `position` u."""

    score: np.ndarray
    calibrated: np.ndarray
    position: np.ndarray
    cumulated: np.ndarray
    fitted: np.ndarray
    numbers: int
    """How many numbers were fitted: the values at the knots."""

    def knots(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct top scores of the fit samples, ascending, and their calibrated ones before they are cut at 0 and 1."""
        distinct, first = np.unique(self.score, return_inverse=True)
        mean = np.bincount(first, weights=self.calibrated) / np.bincount(first)  # equal scores share their mean
        return distinct, mean

    def top(self, score: np.ndarray) -> np.ndarray:
        """Calibrated top scores of top scores."""
        return np.clip(np.interp(score, *self.knots()), 0.0, 1.0)

    def __call__(self, logit: Tensor) -> Tensor:
        """Probabilities whose top entry is calibrated, (sample, class)."""
        p = torch.softmax(logit, dim=1).cpu().numpy()
        rows, best = np.arange(len(p)), p.argmax(axis=1)
        old = p[rows, best]
        new = self.top(old)
        # Not 1 - old: where the top score is nearly 1 that is rounding error, larger or smaller than what the others hold.
        p[rows, best] = 0
        rest = p.sum(axis=1, keepdims=True)
        shares = np.where(rest > 0, p / np.where(rest > 0, rest, 1), 1 / (p.shape[1] - 1))  # p = 1 leaves nothing to share
        result = shares * (1 - new)[:, None]
        result[rows, best] = new
        return torch.as_tensor(result, device=logit.device)


def top_scores(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Largest probability of each sample and whether its class is the label (0. or 1.), both (sample,)."""
    found = [torch.softmax(logit, dim=1).max(dim=1) for _, logit in samples.blocks()]
    score, best = (torch.cat(one) for one in zip(*found, strict=True))
    return score.cpu().numpy(), (best == samples.label).double().cpu().numpy()


def fit_spline(samples: Samples, *, knots: int) -> SplineMap:
    """Least-squares natural cubic spline of the cumulated gap.

    Args:
        samples: logits and labels.
        knots: equally spaced on 0..1, ends included.
    """
    score, hit = top_scores(samples)
    order = np.argsort(score, kind="stable")
    score, hit = score[order], hit[order]
    u = np.linspace(0.0, 1.0, len(score))
    cumulated = np.cumsum(hit - score) / len(score)
    # natural splines are determined by their values at the knots: each knot's unit spline is a basis function
    basis = CubicSpline(np.linspace(0.0, 1.0, knots), np.eye(knots), bc_type="natural")
    value, *_ = np.linalg.lstsq(basis(u), cumulated, rcond=None)
    return SplineMap(score, score + basis(u, 1) @ value, u, cumulated, basis(u) @ value, knots)


class SplineCalibration(Method):
    """Spline recalibration of the top score."""

    id = "calibration.spline"
    title = "Calibrates the top score with a smooth curve and no bins"
    version = "4"
    paper = Paper(
        title="Calibration of Neural Networks using Splines",
        authors="Gupta, Rahimi, Ajanthan, Mensink, Sminchisescu, Hartley",
        year=2021,
        arxiv="2006.12800",
        venue="ICLR 2021",
        code="kartikgupta-at-anu/spline-calibration (MIT)",
    )
    inputs = INPUTS
    outputs = (
        *OUTPUTS,
        Output("top_score", ("sample",), "float64", "calibrated score that the predicted class of the logits is right"),
        Output("top_score_ece_width_l1", (), "float64", "calibration error of that score, bins of equal width"),
        Output("top_score_ks_error", (), "float64", "Kolmogorov-Smirnov error of that score"),
        Output("cumulated_gap", ("position",), "float64", "(cumulated hits - cumulated scores) / N of the fit samples"),
        Output("fitted_gap", ("position",), "float64", "the spline through it"),
        Output("curve", ("given_score",), "float64", "calibrated top score"),
        *KNOTS,  # straight lines between them, cut at 0 and 1
    )

    class Params(EvaluationParams):
        """Parameters."""

        knots: int = Field(6, ge=3, le=50, description="Knots of the spline (paper 6; sane: 4-14)")

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit on the fit rows and judge on the others."""
        parts, fitted = recalibrate(
            inputs, params, out, name=NAME, fit=lambda samples: fit_spline(samples, knots=params.knots)
        )
        assert isinstance(fitted, SplineMap)
        confidence, hit = top_scores(parts.report)
        score = fitted.top(confidence)
        out.write("top_score", score)
        out.write("top_score_ece_width_l1", binned_calibration_error(score, hit, n_bins=params.n_bins))
        out.write("top_score_ks_error", kolmogorov_smirnov_error(score, hit))
        out.coordinate("position", fitted.position)
        out.write("cumulated_gap", fitted.cumulated)
        out.write("fitted_gap", fitted.fitted)
        out.coordinate("given_score", GRID)
        out.write("curve", fitted.top(GRID))
        write_knots(out, [fitted.knots()])

    def report(self, result: Result) -> Report:
        """The spline and what it changes."""
        return evaluation_report(
            result,
            main=NAME,
            summary=f"A natural cubic spline with {result.params.knots} knots corrects the top score: its KS error is "
            f"{float(result['top_score_ks_error']):.4f}.",
            metrics=[
                Metric(name=name, value=float(result[name]), direction="lower",
                       description="of the calibrated score of the predicted class, predictions unchanged")
                for name in ("top_score_ece_width_l1", "top_score_ks_error")
            ],
            views=(
                Line(title="Cumulated gap of the fit samples", y=("cumulated_gap", "fitted_gap"), x="position",
                     x_label="share of samples, ascending in confidence", y_label="cumulated (hit - score) / N"),
                Line(title="Calibrated top score", y=("curve",), x="given_score", x_label="score before",
                     y_label="after"),
            ),
            notes=("Only the top score (`top_score`) is calibrated. To make a distribution of it the other probabilities are "
                   "scaled to what it leaves, which can change predictions: judge the method by the top-score metrics.",),
        )
