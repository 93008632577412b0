"""The plainest calibration: replace each class probability by the frequency of that class in its bin.

Zadrozny and Elkan (2001), Obtaining calibrated probability estimates from decision trees and naive Bayesian classifiers,
ICML: per class, p_k is sorted into bins and replaced by the mean of [label = k] of the fit samples there; rows are
renormalised afterwards, as Guo et al. (2017) do. Faithful; an empty bin keeps its centre, and a row of zeros becomes
uniform. Bins are of equal width or equal mass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from workbench import HeatMap, Inputs, Method, Out, Output, Paper, Report, Result

from workbench_calibration.evaluation import OUTPUTS, EvaluationParams
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.isotonic import renormalise
from workbench_calibration.recalibration import recalibrate
from workbench_calibration.samples import INPUTS

NAME = "histogram_binning"


@dataclass(frozen=True)
class HistogramMap:
    """`edge` (class, bin - 1): inner edges, bins are (lower, upper]; `value`, `count` (class, bin)."""

    edge: np.ndarray
    value: np.ndarray
    count: np.ndarray

    def __call__(self, logit: Tensor) -> Tensor:
        """Calibrated probabilities, (sample, class)."""
        p = torch.softmax(logit, dim=1).cpu().numpy()
        columns = [
            value[np.searchsorted(edge, column, side="left")]
            for edge, value, column in zip(self.edge, self.value, p.T, strict=True)
        ]
        return torch.as_tensor(renormalise(np.stack(columns, axis=1)), device=logit.device)


def inner_edges(score: np.ndarray, n_bins: int, binning: Literal["width", "mass"]) -> np.ndarray:
    """Inner edges (bin - 1,) of bins of equal width, or between the parts of sorted scores of equal count."""
    if binning == "width":
        return np.linspace(0.0, 1.0, n_bins + 1)[1:-1]
    ordered = np.sort(score)
    cut = np.cumsum([len(part) for part in np.array_split(ordered, n_bins)])[:-1]
    upper = np.minimum(cut, len(ordered) - 1)
    return np.asarray((ordered[cut - 1] + ordered[upper]) / 2)


def fit_histogram(logit: Tensor, label: Tensor, *, n_bins: int, binning: Literal["width", "mass"]) -> HistogramMap:
    """Class frequencies of the fit samples per class and bin.

    Args:
        logit: float64 (sample, class).
        label: int64 (sample,).
        n_bins: bins per class.
        binning: equal width or equal mass.
    """
    p, y = torch.softmax(logit, dim=1).cpu().numpy(), label.cpu().numpy()
    edges, values, counts = [], [], []
    for k, column in enumerate(p.T):
        edge = inner_edges(column, n_bins, binning)
        member = np.searchsorted(edge, column, side="left")
        count = np.bincount(member, minlength=n_bins)
        hits = np.bincount(member, weights=(y == k).astype(np.float64), minlength=n_bins)
        full = np.concatenate([[0.0], edge, [1.0]])
        edges.append(edge)
        values.append(np.where(count > 0, hits / np.maximum(count, 1), (full[:-1] + full[1:]) / 2))
        counts.append(count)
    return HistogramMap(np.stack(edges), np.stack(values), np.stack(counts))


class HistogramBinning(Method):
    """Frequencies per class and bin of probability."""

    id = "calibration.histogram_binning"
    title = "Calibrates by replacing probabilities with the class frequencies seen in their bin"
    paper = Paper(
        title="Obtaining calibrated probability estimates from decision trees and naive Bayesian classifiers",
        authors="Zadrozny, Elkan",
        year=2001,
        venue="ICML 2001",
    )
    inputs = INPUTS
    outputs = (
        *OUTPUTS,
        Output("bin_edge", ("class", "inner_edge"), "float64", "inner edges of the bins of each class"),
        Output("bin_value", ("class", "value_bin"), "float64", "calibrated value of each bin, before renormalising"),
        Output("bin_count", ("class", "value_bin"), "int64", "fit samples in each bin"),
    )

    class Params(EvaluationParams):
        """Parameters."""

        map_bins: int = Field(15, ge=2, le=1000, description="Bins of the map, per class")
        binning: Literal["width", "mass"] = Field("width", description="Bins of equal width or of equal mass")

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit on the fit rows and judge on the others."""
        _, fitted = recalibrate(
            inputs, params, out, name=NAME,
            fit=lambda logit, label: fit_histogram(logit, label, n_bins=params.map_bins, binning=params.binning),
        )
        assert isinstance(fitted, HistogramMap)
        out.write("bin_edge", fitted.edge)
        out.write("bin_value", fitted.value)
        out.write("bin_count", fitted.count)

    def report(self, result: Result) -> Report:
        """The values of the bins and what they change."""
        empty = int((result["bin_count"].values == 0).sum())
        return evaluation_report(
            result,
            main=NAME,
            summary=f"Class frequencies in {result['bin_value'].sizes['value_bin']} bins per class of equal "
            f"{result.params.binning}.",
            views=(HeatMap(title="Value of each bin", z="bin_value", x="value_bin", y="class"),),
            notes=[f"{empty} of {result['bin_count'].size} bins hold no fit sample and keep their centre."] if empty else [],
        )
