"""Calibration without bins: a spline through the cumulated gap of confidence and hits recalibrates the top score.

Gupta, Rahimi, Ajanthan, Mensink, Sminchisescu, Hartley (2021), Calibration of Neural Networks using Splines, ICLR, arXiv
2006.12800: sort the fit samples by their top score s; fit a natural cubic spline with equally spaced knots on
u = 0..1 to (cumulated hits - cumulated scores) / N by least squares; its derivative is the gap at u, so s + derivative is
the calibrated score. New scores are interpolated between those of the fit samples, and constant beyond them.

The same serves the r-th largest score and whether its class is the label (`rank`; the paper's calibration of the r-th top
prediction). Of equal probabilities that of the lowest class counts as the larger.

The method recalibrates one score, not a distribution. To give one, the other probabilities are scaled to the rest
1 - new score. This can change the most probable class: for the top score s and the second largest t where the new score s' is
below t (1 - s') / (1 - s), for a lower rank where its new score exceeds what the scaling leaves the others. The report counts
it; the calibrated score of the class that had the rank before is stored as `top_score`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from scipy.interpolate import CubicSpline
from torch import Tensor
from workbench import InputError, Inputs, Line, Method, Metric, Out, Output, Paper, Report, Result
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
    rank: int
    """Which score of a sample is calibrated: 1 is the largest."""

    def knots(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct scores of the fit samples, ascending, and their calibrated ones before they are cut at 0 and 1."""
        distinct, first = np.unique(self.score, return_inverse=True)
        mean = np.bincount(first, weights=self.calibrated) / np.bincount(first)  # equal scores share their mean
        return distinct, mean

    def calibrate(self, score: np.ndarray) -> np.ndarray:
        """Calibrated scores of scores of the rank."""
        return np.clip(np.interp(score, *self.knots()), 0.0, 1.0)

    def __call__(self, logit: Tensor) -> Tensor:
        """Probabilities whose entry of the rank is calibrated, (sample, class)."""
        given = torch.softmax(logit, dim=1)
        ranked = class_of_rank(given, self.rank).cpu().numpy()
        p, rows = given.cpu().numpy(), np.arange(len(given))
        new = self.calibrate(p[rows, ranked])
        # Not 1 - score: where the top score is nearly 1 that is rounding error, larger or smaller than what the others hold.
        p[rows, ranked] = 0
        rest = p.sum(axis=1, keepdims=True)
        shares = np.where(rest > 0, p / np.where(rest > 0, rest, 1), 1 / (p.shape[1] - 1))  # p = 1 leaves nothing to share
        result = shares * (1 - new)[:, None]
        result[rows, ranked] = new
        return torch.as_tensor(result, device=logit.device)


def class_of_rank(probability: Tensor, rank: int) -> Tensor:
    """Class with the `rank`-th largest of the probabilities (sample, class), (sample,); equal ones rank by their class."""
    if rank == 1:
        return probability.argmax(dim=1)
    return probability.sort(dim=1, descending=True, stable=True).indices[:, rank - 1]


def scores_of_rank(samples: Samples, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The `rank`-th largest probability of each sample and whether its class is the label (0. or 1.), both (sample,)."""
    score, hit = [], []
    for logit, label in samples.labelled_blocks():
        probability = torch.softmax(logit, dim=1)
        ranked = class_of_rank(probability, rank)
        score.append(probability.gather(1, ranked[:, None])[:, 0])
        hit.append((ranked == label).double())
    return torch.cat(score).cpu().numpy(), torch.cat(hit).cpu().numpy()


def fit_spline(samples: Samples, *, knots: int, rank: int = 1) -> SplineMap:
    """Least-squares natural cubic spline of the cumulated gap.

    Args:
        samples: logits and labels.
        knots: equally spaced on 0..1, ends included.
        rank: which score is calibrated: 1 is the largest.

    Raises:
        InputError: there are fewer classes than `rank`.
    """
    if rank > samples.classes:
        raise InputError("rank", expected=f"at most the number of classes, {samples.classes}", got=str(rank))
    score, hit = scores_of_rank(samples, rank)
    order = np.argsort(score, kind="stable")
    score, hit = score[order], hit[order]
    u = np.linspace(0.0, 1.0, len(score))
    cumulated = np.cumsum(hit - score) / len(score)
    # natural splines are determined by their values at the knots: each knot's unit spline is a basis function
    basis = CubicSpline(np.linspace(0.0, 1.0, knots), np.eye(knots), bc_type="natural")
    value, *_ = np.linalg.lstsq(basis(u), cumulated, rcond=None)
    return SplineMap(score, score + basis(u, 1) @ value, u, cumulated, basis(u) @ value, knots, rank)


def rank_words(rank: int) -> str:
    """How the score of a rank is called: the top score, the 2nd largest score."""
    ending = "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return "top score" if rank == 1 else f"{rank}{ending} largest score"


class SplineCalibration(Method):
    """Spline recalibration of the top score, or of that of another rank."""

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
        Output("top_score", ("sample",), "float64", "calibrated score that the class of the rank (the predicted "
               "one unless `rank` says otherwise) is the label"),
        Output("top_score_ece_width_l1", (), "float64", "calibration error of that score, bins of equal width"),
        Output("top_score_ks_error", (), "float64", "Kolmogorov-Smirnov error of that score"),
        Output("cumulated_gap", ("position",), "float64", "(cumulated hits - cumulated scores) / N of the fit samples"),
        Output("fitted_gap", ("position",), "float64", "the spline through it"),
        Output("curve", ("given_score",), "float64", "calibrated score"),
        *KNOTS,  # straight lines between them, cut at 0 and 1
    )

    class Params(EvaluationParams):
        """Parameters."""

        knots: int = Field(6, ge=3, le=50, description="Knots of the spline (paper 6; sane: 4-14)")
        rank: int = Field(1, ge=1, description="Which score of a sample is calibrated: 1 is the largest, r the r-th largest")

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit on the fit rows and judge on the others."""
        parts, fitted = recalibrate(
            inputs, params, out, name=NAME, fit=lambda samples: fit_spline(samples, knots=params.knots, rank=params.rank)
        )
        assert isinstance(fitted, SplineMap)
        given, hit = scores_of_rank(parts.report, params.rank)
        score = fitted.calibrate(given)
        out.write("top_score", score)
        out.write("top_score_ece_width_l1", binned_calibration_error(score, hit, n_bins=params.n_bins))
        out.write("top_score_ks_error", kolmogorov_smirnov_error(score, hit))
        out.coordinate("position", fitted.position)
        out.write("cumulated_gap", fitted.cumulated)
        out.write("fitted_gap", fitted.fitted)
        grid = GRID / params.rank  # the r-th largest of numbers that sum to 1 is at most 1/r
        out.coordinate("given_score", grid)
        out.write("curve", fitted.calibrate(grid))
        write_knots(out, [fitted.knots()])

    def report(self, result: Result) -> Report:
        """The spline and what it changes."""
        rank = result.params.rank
        words = rank_words(rank)
        predicted = "the predicted class" if rank == 1 else f"the class with the {words}"
        return evaluation_report(
            result,
            main=NAME,
            summary=f"A natural cubic spline with {result.params.knots} knots corrects the {words}: its KS error is "
            f"{float(result['top_score_ks_error']):.4f}.",
            metrics=[
                Metric(name=name, value=float(result[name]), direction="lower",
                       description=f"of the calibrated score of {predicted}, predictions unchanged")
                for name in ("top_score_ece_width_l1", "top_score_ks_error")
            ],
            views=(
                Line(title="Cumulated gap of the fit samples", y=("cumulated_gap", "fitted_gap"), x="position",
                     x_label=f"share of samples, ascending in {'confidence' if rank == 1 else f'the {words}'}",
                     y_label="cumulated (hit - score) / N"),
                Line(title=f"Calibrated {words}", y=("curve",), x="given_score", x_label="score before", y_label="after"),
            ),
            notes=(f"Only the {words} (`top_score`) is calibrated. To make a distribution of it the other probabilities are "
                   "scaled to what it leaves, which can change predictions: judge the method by the top-score metrics."
                   + ("" if rank == 1 else " All other calibration errors here are of the largest probability."),),
        )
