"""Reliability diagrams: accuracy against confidence per bin, with intervals and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.render.parts import caption, spread
from workbench.render.plots import ReliabilityPanel, ReliabilityPlot
from workbench.render.reading import Reader, numbers
from workbench.report import ReliabilityDiagram

if TYPE_CHECKING:
    from workbench.render.plots import Floats

__all__ = ["bin_edges", "resolve_reliability", "wilson_interval"]

PANELS = 6
"""Most diagrams side by side."""


def resolve_reliability(view: ReliabilityDiagram, reader: Reader) -> ReliabilityPlot:
    """One panel per label of `by`; interval bounds that are not stored are Wilson's at 95 %."""
    names = {"confidence": view.confidence, "accuracy": view.accuracy, "count": view.count}
    names |= {"lower": view.accuracy_lower} if view.accuracy_lower else {}
    names |= {"upper": view.accuracy_upper} if view.accuracy_upper else {}
    if view.band_lower and view.band_upper:
        names |= {"band_lower": view.band_lower, "band_upper": view.band_upper}
    panels: dict[str, dict[str, Floats]] = {}
    for role, name in names.items():
        for text, part in spread(reader.array(name), view.by, reader, PANELS):
            panels.setdefault(text, {})[role] = numbers(reader.only(part, name, "bin"), view.title)
    if not view.accuracy_lower or not view.accuracy_upper:
        reader.notes.append("Whiskers: 95 % Wilson intervals.")
    return ReliabilityPlot(
        view.title, caption(view.caption, reader), tuple(_panel(text, columns) for text, columns in panels.items())
    )


def _panel(name: str, columns: dict[str, Floats]) -> ReliabilityPanel:
    count = np.nan_to_num(columns["count"])
    full = count > 0
    confidence, accuracy = (np.where(full, columns[key], np.nan) for key in ("confidence", "accuracy"))
    lower, upper = wilson_interval(accuracy, count)
    lower = np.where(full, columns.get("lower", lower), np.nan)
    upper = np.where(full, columns.get("upper", upper), np.nan)
    ends = [np.where(full, columns[key], np.nan) for key in ("band_lower", "band_upper") if key in columns]
    band = (ends[0], ends[1]) if ends else None
    return ReliabilityPanel(name, bin_edges(confidence), confidence, accuracy, count, lower, upper, band)


def wilson_interval(accuracy: Floats, count: Floats, z: float = 1.959963984540054) -> tuple[Floats, Floats]:
    """Wilson score interval of a proportion (bin,) observed in `count` trials; NaN where count is 0. Default: 95 %."""
    trials = np.where(count > 0, count, np.nan)
    center = (accuracy + z**2 / (2 * trials)) / (1 + z**2 / trials)
    spread = np.clip(accuracy * (1 - accuracy), 0.0, None)  # an accuracy of 1 + 1e-16 must not become NaN
    half = z / (1 + z**2 / trials) * np.sqrt(spread / trials + z**2 / (4 * trials**2))
    return center - half, center + half


def bin_edges(confidence: Floats) -> Floats:
    """Edges (bin + 1,) in 0..1: bins of equal width where every mean confidence lies in its own, else halfway between.

    Stored diagrams carry mean confidences, not edges; bins of equal mass have their means anywhere.
    """
    bins = len(confidence)
    equal = np.linspace(0.0, 1.0, bins + 1)
    full = np.isfinite(confidence)
    slack = 1e-6
    inside = (confidence >= equal[:-1] - slack) & (confidence <= equal[1:] + slack)
    if bool(inside[full].all()):
        return equal
    known = np.flatnonzero(full)
    centers = np.interp(np.arange(bins), known, np.maximum.accumulate(confidence[known]))
    return np.concatenate([[0.0], (centers[:-1] + centers[1:]) / 2, [1.0]])
