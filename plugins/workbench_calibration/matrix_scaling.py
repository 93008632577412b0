"""A full linear map of logits or log-probabilities: matrix scaling and Dirichlet calibration, kept in bounds by ODIR.

Guo et al. (2017), On Calibration of Modern Neural Networks, arXiv 1706.04599: p = softmax(W z + b), which overfits with many
classes. Kull, Perello-Nieto, Kangsepp, Silva Filho, Song, Flach (2019), Beyond temperature scaling: Obtaining
well-calibrated multiclass probabilities with Dirichlet calibration, NeurIPS, arXiv 1910.12656: the same with log p in place
of z, and a penalty on off-diagonal entries and intercepts (ODIR) for both.

Differs from the authors' code in how the penalties are chosen: three stratified folds of the fit samples, first lambda
(off-diagonal) with mu = lambda, then mu with that lambda, each from 1e7 down towards 1e-3 in tens, by the negative log
likelihood; not the full grid, and no further than a candidate that is clearly worse. (With 100 classes the best lambda lies at
1e4 or above, beyond the usual 1e-3..1e3, because the penalty is divided by the number of off-diagonal entries.) The convex
objective is minimised to the optimum by L-BFGS, each time from a neighbour's solution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from workbench import HeatMap, Inputs, Line, Method, Out, Output, Paper, Report, Result

from workbench_calibration.affine import AffineMap, fit_full
from workbench_calibration.evaluation import OUTPUTS, EvaluationParams
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.recalibration import recalibrate
from workbench_calibration.samples import INPUTS, Samples, cross_validation_folds

Kind = Literal["matrix", "dirichlet"]
Float = NDArray[np.float64]
PENALTIES = tuple(10.0**power for power in range(7, -4, -1))
"""Candidates, strongest first, so that each fit starts from its stronger neighbour's solution."""
WORSE_IN_A_ROW = 2
"""The search stops after so many candidates in a row that are worse than the best: weaker penalties fit slowly."""
CLEARLY = 2.0
"""It stops at once at a candidate that is worse by more than so many standard errors, paired over samples."""
RESOLVED = 1e-5
"""Differences in likelihood (nats) below this tell nothing: strong penalties leave nothing to fit, all are alike there, and what
the search by L-BFGS leaves unfinished would decide."""
FOLDS = 3
LOG_FLOOR = 1e-12
SEARCH_TOLERANCE = 1e-5


@dataclass(frozen=True)
class MatrixFit:
    """A fitted map with the penalties it was fitted with and the likelihoods that chose them (NaN: given, or not reached)."""

    map: AffineMap
    kind: Kind
    off_diagonal: float
    intercept: float
    search: Float

    @property
    def numbers(self) -> int:
        """How many numbers were fitted (penalties hold most of them down)."""
        return self.map.numbers

    def __call__(self, logit: Tensor) -> Tensor:
        """Calibrated probabilities, (sample, class)."""
        return self.map(scores(logit, self.kind))


def scores(logit: Tensor, kind: Kind) -> Tensor:
    """What W multiplies: the logits, or for Dirichlet calibration log p with p clipped at 1e-12."""
    if kind == "matrix":
        return logit
    return torch.log(torch.softmax(logit, dim=1).clamp_min(LOG_FLOOR))


def cross_validated(samples: Samples, kind: Kind, off_diagonal: float, intercept: float, seed: int,
                    starts: dict[int, AffineMap]) -> Float:
    """Negative log likelihood of each sample when its fold is held out; `starts` carries each fold's last solution."""
    found = []
    for fold, (rest, held) in enumerate(cross_validation_folds(samples, FOLDS, seed)):
        starts[fold] = fit_full(
            samples.subset(rest), off_diagonal=off_diagonal, intercept=intercept, start=starts.get(fold),
            scores=lambda logit: scores(logit, kind), tolerance=SEARCH_TOLERANCE,
        )
        for logit, label in samples.subset(held).labelled_blocks():
            p = starts[fold](scores(logit, kind))
            found.append(-torch.log(p.gather(1, label[:, None])[:, 0].clamp_min(LOG_FLOOR)).cpu().numpy())
    return np.concatenate(found)


def clearly_above(one: Float, other: Float) -> bool:
    """Whether the mean of paired numbers (sample,) is larger by more than `CLEARLY` standard errors."""
    difference = one - other
    return bool(difference.mean() > CLEARLY * difference.std(ddof=1) / np.sqrt(len(one)))


def fit_matrix(
    samples: Samples,
    *,
    kind: Kind,
    off_diagonal: float | None,
    intercept: float | None,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> MatrixFit:
    """Fit W and b, with penalties that are given or (None) chosen by cross-validation on these samples.

    Args:
        samples: logits and labels.
        kind: what W multiplies.
        off_diagonal: lambda.
        intercept: mu.
        seed: of the folds.
        progress: called after every cross-validation.
    """
    search = np.full((2, len(PENALTIES)), np.nan)
    chosen = [off_diagonal, intercept]
    starts: dict[int, AffineMap] = {}
    for which in (0, 1):
        if chosen[which] is not None:
            continue
        held: list[Float] = []
        solutions: list[dict[int, AffineMap]] = []
        best = 0
        for index, penalty in enumerate(PENALTIES):
            given = (intercept, chosen[0])[which]  # the other penalty, or None while neither is known
            other = penalty if given is None else given
            pair = (penalty, other) if which == 0 else (other, penalty)
            held.append(cross_validated(samples, kind, *pair, seed, starts))
            solutions.append(dict(starts))
            search[which, index] = held[index].mean()
            progress()
            best = int(np.nanargmin(search[which]))
            resolved = search[which, index] - search[which, best] > RESOLVED
            if resolved and (index - best >= WORSE_IN_A_ROW or clearly_above(held[index], held[best])):
                break
        chosen[which], starts = PENALTIES[best], solutions[best]
    first, second = float(chosen[0] or 0), float(chosen[1] or 0)
    fitted = fit_full(
        samples, off_diagonal=first, intercept=second, start=starts.get(0), scores=lambda logit: scores(logit, kind)
    )
    return MatrixFit(fitted, kind, first, second, search)


def canonical(weight: Tensor) -> Tensor:
    """W with the smallest entry of every column taken off it: the one of all equal maps that Kull et al. print."""
    return weight - weight.amin(dim=0, keepdim=True)


class _MatrixParams(EvaluationParams):
    odir_lambda: float | None = Field(
        None, ge=0, le=1e9, description="Penalty of off-diagonal entries; None: by cross-validation from 1e7 to 1e-3"
    )
    odir_mu: float | None = Field(
        None, ge=0, le=1e9, description="Penalty of intercepts; None: by cross-validation from 1e7 to 1e-3"
    )


_OUTPUTS = (
    *OUTPUTS,
    Output("weight", ("class", "score_class"), "float64", "W: rows give classes, columns are weighted scores"),
    Output("intercept", ("class",), "float64", "b"),
    Output("odir_lambda", (), "float64", "penalty of off-diagonal entries that was used"),
    Output("odir_mu", (), "float64", "penalty of intercepts that was used"),
    Output("search", ("penalty_kind", "penalty"), "float64", "cross-validated negative log likelihood; NaN: not tried"),
    Output("gradient", (), "float64", "largest slope of the objective at the solution; 0 when converged"),
)


def _run(kind: Kind, name: str, inputs: Inputs, params: _MatrixParams, out: Out) -> None:
    def fit(samples: Samples) -> MatrixFit:
        return fit_matrix(samples, kind=kind, off_diagonal=params.odir_lambda, intercept=params.odir_mu,
                          seed=out.seed, progress=lambda: out.progress(0, 2, "choosing penalties"))

    _, fitted = recalibrate(inputs, params, out, name=name, fit=fit)
    assert isinstance(fitted, MatrixFit)
    out.coordinate("penalty_kind", ["lambda", "mu"])
    out.coordinate("penalty", list(PENALTIES))
    out.write("search", fitted.search)
    out.write("weight", canonical(fitted.map.weight) if kind == "dirichlet" else fitted.map.weight)
    out.write("intercept", fitted.map.bias)
    out.write("odir_lambda", fitted.off_diagonal)
    out.write("odir_mu", fitted.intercept)
    out.write("gradient", fitted.map.gradient)


def _report(name: str, title: str, result: Result) -> Report:
    first, second = float(result["odir_lambda"]), float(result["odir_mu"])
    views: list[object] = [HeatMap(title="Weights", z="weight", x="score_class", y="class", diverging=True)]
    if np.isfinite(result["search"].values).any():
        views.append(Line(title="Choice of penalties", y=("search",), x="penalty", by="penalty_kind", log_x=True,
                          markers=True, y_label="cross-validated negative log likelihood (nats)",
                          caption="Three folds of the fit samples; first lambda with mu = lambda, then mu."))
    notes = [] if first else ["Without a penalty a full matrix overfits when there are many classes: compare fit and "
                              "report likelihood."]
    return evaluation_report(
        result, main=name, summary=f"{title} was fitted with ODIR penalties lambda = {first:g} and mu = {second:g}.",
        views=views, notes=notes,
    )


class MatrixScaling(Method):
    """softmax(W z + b) with ODIR penalties."""

    id = "calibration.matrix_scaling"
    title = "Calibrates by a full linear map of the logits, kept from overfitting by a chosen penalty"
    version = "4"
    paper = Paper(title="On Calibration of Modern Neural Networks", authors="Guo, Pleiss, Sun, Weinberger", year=2017,
                  arxiv="1706.04599", venue="ICML 2017")
    inputs = INPUTS
    outputs = _OUTPUTS

    class Params(_MatrixParams):
        """Parameters."""

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Choose penalties and fit on the fit rows, judge on the others."""
        _run("matrix", "matrix_scaling", inputs, params, out)

    def report(self, result: Result) -> Report:
        """The matrix, its penalties, and what it changes."""
        return _report("matrix_scaling", "Matrix scaling", result)


class DirichletCalibration(Method):
    """softmax(W log p + b) with ODIR penalties."""

    id = "calibration.dirichlet"
    title = "Dirichlet calibration: a full linear map of log-probabilities with a chosen penalty"
    version = "4"
    paper = Paper(
        title="Beyond temperature scaling: Obtaining well-calibrated multiclass probabilities with Dirichlet calibration",
        authors="Kull, Perello-Nieto, Kangsepp, Silva Filho, Song, Flach", year=2019, arxiv="1910.12656",
        venue="NeurIPS 2019", code="dirichletcal/dirichlet_python (MIT)",
    )
    inputs = INPUTS
    outputs = _OUTPUTS

    class Params(_MatrixParams):
        """Parameters."""

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Choose penalties and fit on the fit rows, judge on the others."""
        _run("dirichlet", "dirichlet", inputs, params, out)

    def report(self, result: Result) -> Report:
        """The matrix in canonical form, its penalties, and what it changes."""
        return _report("dirichlet", "Dirichlet calibration", result)
