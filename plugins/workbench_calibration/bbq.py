"""Bayesian binning into quantiles: histogram binning averaged over many numbers of bins, so that none has to be chosen.

Naeini, Cooper, Hauskrecht (2015), Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI. Per class, the fit
probabilities are cut into B bins of equal mass for every B from max(1, floor(n^(1/3) / 10)) to min(ceil(n / 5),
ceil(10 n^(1/3))); each bin has a Beta(2 m / B, 2 (1 - m) / B) prior with m the bin's midpoint; a binning weighs as much as its
marginal likelihood (BDeu score), its bins give their posterior mean, and the prediction is the weighted mean over
binnings. Rows are renormalised.

The prior and N' = 2 follow the paper; `score="bic"` weighs by exp(-BIC / 2) instead, with plain bin frequencies, as some
libraries do (netcal also uses bins of equal width then, which this does not).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.special import betaln, logsumexp, xlogy
from torch import Tensor
from workbench import Inputs, Line, Method, Out, Output, Paper, Report, Result

from workbench_calibration.evaluation import OUTPUTS, EvaluationParams
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.per_class import KNOTS, SortedEvents, class_columns, most_frequent, through, write_knots
from workbench_calibration.recalibration import recalibrate
from workbench_calibration.samples import INPUTS, Samples

Score = Literal["bdeu", "bic"]
NAME = "bbq"
PRIOR_STRENGTH = 2.0
NEGLIGIBLE = 1e-8
"""Binnings with less weight than this are left out of predictions."""


@dataclass(frozen=True)
class Binning:
    """One binning of one class: inner edges, value of each bin, normalised weight."""

    edge: np.ndarray
    value: np.ndarray
    weight: float


@dataclass(frozen=True)
class BayesianBinningMap:
    """Per class the binnings with noticeable weight, and `weight` (class, binning) of all of them."""

    classes: tuple[tuple[Binning, ...], ...]
    bins: np.ndarray
    weight: np.ndarray

    def values(self, probability: np.ndarray) -> np.ndarray:
        """Weighted mean of bin values, (sample, class), before rows are renormalised."""
        result = np.zeros(probability.shape)
        for k, binnings in enumerate(self.classes):
            for one in binnings:
                result[:, k] += one.weight * one.value[np.searchsorted(one.edge, probability[:, k], side="left")]
        return result

    def steps(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per class the mean over binnings, a step function: upper ends of its steps (1 at last) and their values."""
        steps = []
        for k, binnings in enumerate(self.classes):
            upper = np.unique(np.concatenate([*(one.edge for one in binnings), [1.0]]))
            inside = np.zeros((len(upper), len(self.classes)))
            inside[:, k] = upper  # steps are closed above
            steps.append((upper, self.values(inside)[:, k]))
        return steps

    @property
    def numbers(self) -> int:
        """How many numbers were fitted: the bins of all classes, in the mean over binnings."""
        return round(float((self.weight * self.bins).sum()))

    def __call__(self, logit: Tensor) -> Tensor:
        """Calibrated probabilities, (sample, class)."""
        return through(self.values, logit)


def bin_numbers(samples: int) -> np.ndarray:
    """The numbers of bins averaged over."""
    root = round(float(np.cbrt(samples)), 9)  # so that the root of a cube is whole
    return np.arange(max(1, math.floor(root / 10)), min(math.ceil(samples / 5), math.ceil(10 * root)) + 1)


def score_binning(events: SortedEvents, bins: int, score: Score) -> tuple[np.ndarray, np.ndarray, float]:
    """Inner edges, bin values and log score of one binning of equal mass.

    Args:
        events: probability of one class, and whether the label was the class.
        bins: number of bins B.
        score: how binnings are weighed.
    """
    edge = events.mass_edges(bins)
    count, hits, middle = events.binned(edge)
    middle = np.clip(middle, 1e-6, 1 - 1e-6)
    if score == "bdeu":
        alpha, beta = PRIOR_STRENGTH / bins * middle, PRIOR_STRENGTH / bins * (1 - middle)
        log_score = float((betaln(hits + alpha, count - hits + beta) - betaln(alpha, beta)).sum())
        return edge, (hits + alpha) / (count + alpha + beta), log_score
    value = np.where(count > 0, hits / np.maximum(count, 1), middle)
    likelihood = float((xlogy(hits, value) + xlogy(count - hits, 1 - value)).sum())
    return edge, value, likelihood - 0.5 * bins * math.log(len(events.score))


def fit_bbq(samples: Samples, *, score: Score) -> BayesianBinningMap:
    """All binnings of all classes with their weights; a few classes at a time are held.

    Args:
        samples: logits and labels.
        score: how binnings are weighed.
    """
    label = samples.label.cpu().numpy()
    numbers = bin_numbers(len(label))
    classes, weights = [], []
    for k, column in class_columns(samples):
        events = SortedEvents.of(column, label == k)
        scored = [score_binning(events, int(bins), score) for bins in numbers]
        logs = np.array([log_score for *_, log_score in scored])
        weight = np.exp(logs - logsumexp(logs))
        used = np.where(weight >= NEGLIGIBLE, weight, 0.0)
        used /= used.sum()
        classes.append(tuple(
            Binning(edge, value, float(w)) for (edge, value, _), w in zip(scored, used, strict=True) if w > 0
        ))
        weights.append(weight)
    return BayesianBinningMap(tuple(classes), numbers, np.stack(weights))


class BayesianBinning(Method):
    """Bayesian averaging of histogram binnings."""

    id = "calibration.bbq"
    title = "Histogram binning without choosing a number of bins: a Bayesian average over all of them"
    version = "3"
    paper = Paper(
        title="Obtaining Well Calibrated Probabilities Using Bayesian Binning",
        authors="Naeini, Cooper, Hauskrecht",
        year=2015,
        venue="AAAI 2015",
    )
    inputs = INPUTS
    outputs = (
        *OUTPUTS,
        Output("weight", ("class", "number_of_bins"), "float64", "weight of each binning"),
        *KNOTS,
    )

    class Params(EvaluationParams):
        """Parameters."""

        score: Score = Field("bdeu", description="Weight of a binning: marginal likelihood (paper), or exp(-BIC / 2)")

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit on the fit rows and judge on the others."""
        _, fitted = recalibrate(
            inputs, params, out, name=NAME, fit=lambda samples: fit_bbq(samples, score=params.score)
        )
        assert isinstance(fitted, BayesianBinningMap)
        out.coordinate("number_of_bins", fitted.bins)
        out.write("weight", fitted.weight)
        write_knots(out, fitted.steps())

    def report(self, result: Result) -> Report:
        """Which numbers of bins the data support, and what they change."""
        weight = result["weight"]
        mean = float((weight.values * weight["number_of_bins"].values).sum(axis=1).mean())
        return evaluation_report(
            result,
            main=NAME,
            summary=f"The average over binnings puts its weight on {mean:.1f} bins per class.",
            views=(
                Line(title="Weight of each number of bins", y=("weight",), x="number_of_bins", by="class",
                     log_x=True, select={"class": most_frequent(result)}, x_label="bins", y_label="weight",
                     caption="How well each number of bins explains the fit samples; a single peak: the data settle it."),
            ),
        )
