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
from pydantic import Field
from torch import Tensor
from workbench import HeatMap, Inputs, Method, Out, Output, Paper, Report, Result
from workbench.toolkit import ClassBins

from workbench_calibration.evaluation import OUTPUTS, EvaluationParams
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.per_class import SortedEvents, bin_middles, class_columns, probability_blocks, through
from workbench_calibration.recalibration import recalibrate
from workbench_calibration.samples import INPUTS, Samples

NAME = "histogram_binning"


@dataclass(frozen=True)
class HistogramMap:
    """`edge` (class, bin - 1): inner edges, bins are (lower, upper]; `value`, `count` (class, bin)."""

    edge: np.ndarray
    value: np.ndarray
    count: np.ndarray

    @property
    def numbers(self) -> int:
        """How many numbers were fitted: the bins that hold a sample."""
        return int((self.count > 0).sum())

    def __call__(self, logit: Tensor) -> Tensor:
        """Calibrated probabilities, (sample, class)."""
        return through(self.values, logit)

    def values(self, probability: np.ndarray) -> np.ndarray:
        """Bin values of probabilities (sample, class), before rows are renormalised."""
        columns = [
            value[np.searchsorted(edge, column, side="left")]
            for edge, value, column in zip(self.edge, self.value, probability.T, strict=True)
        ]
        return np.stack(columns, axis=1)


def fit_histogram(samples: Samples, *, n_bins: int, binning: Literal["width", "mass"]) -> HistogramMap:
    """Class frequencies of the fit samples per class and bin.

    Args:
        samples: logits and labels.
        n_bins: bins per class.
        binning: equal width or equal mass.
    """
    if binning == "width":
        bins = ClassBins(samples.classes, n_bins)
        for _, p, y in probability_blocks(samples):
            bins.add(p, y)
        edge = np.tile(bins.upper[:-1], (samples.classes, 1))
        count, hits = bins.count.astype(np.int64), bins.hit
    else:
        label = samples.label.cpu().numpy()
        edges, counts, occurred = [], [], []
        for k, column in class_columns(samples):
            events = SortedEvents.of(column, label == k)
            edges.append(events.mass_edges(n_bins))
            inside, hit, _ = events.binned(edges[-1])
            counts.append(inside)
            occurred.append(hit)
        edge, count, hits = np.stack(edges), np.stack(counts), np.stack(occurred)
    return HistogramMap(edge, np.where(count > 0, hits / np.maximum(count, 1), bin_middles(edge)), count)


class HistogramBinning(Method):
    """Frequencies per class and bin of probability."""

    id = "calibration.histogram_binning"
    title = "Calibrates by replacing probabilities with the class frequencies seen in their bin"
    version = "3"
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
            fit=lambda samples: fit_histogram(samples, n_bins=params.map_bins, binning=params.binning),
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
