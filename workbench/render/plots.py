"""What a view comes down to once its arrays were read: numbers, labels and axes, with no drawing library in sight.

Both drawers take these and nothing else, so that an interactive figure and a static one cannot disagree. All numbers
are float64 with NaN for "no value"; all texts are plain text, never markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xarray as xr

    from workbench.report import CustomView

__all__ = [
    "Axis",
    "BarGroup",
    "BarPlot",
    "Curve",
    "CustomPlot",
    "DataTable",
    "Distribution",
    "HeatMapPlot",
    "HistogramPlot",
    "ImageGridPlot",
    "LinePlot",
    "PicturePlot",
    "Plot",
    "PointGroup",
    "ReliabilityPanel",
    "ReliabilityPlot",
    "ScatterPlot",
    "TablesPlot",
]

Floats = NDArray[np.float64]
_INSIDE = 0.46
"""Half the side of a frame around a cell of a heat map, in cells."""


@dataclass(frozen=True)
class Axis:
    """One axis. With `categories` the positions are 0, 1, 2, ... and these are their texts."""

    label: str
    log: bool = False
    categories: tuple[str, ...] = ()
    downwards: bool = False


@dataclass(frozen=True, eq=False)
class _Plot:
    title: str
    caption: str
    """The view's caption, then what was left out or thinned."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One line: `x`, `y` (n,) and, where there is a band, its bounds `lower`, `upper` (n,)."""

    name: str
    x: Floats
    y: Floats
    lower: Floats | None = None
    upper: Floats | None = None


@dataclass(frozen=True, eq=False)
class LinePlot(_Plot):
    """Curves over a shared x axis."""

    x: Axis
    y: Axis
    curves: tuple[Curve, ...]
    markers: bool = False
    legend: str = ""


@dataclass(frozen=True, eq=False)
class BarGroup:
    """Bars of one colour: `values` (category,); `errors` half-lengths (category,), or lengths below and above (2, category)."""

    name: str
    values: Floats
    errors: Floats | None = None


@dataclass(frozen=True, eq=False)
class BarPlot(_Plot):
    """Grouped bars over categories."""

    x: Axis
    y: Axis
    groups: tuple[BarGroup, ...]
    legend: str = ""


@dataclass(frozen=True, eq=False)
class HeatMapPlot(_Plot):
    """Cells `values` (y, x). `limits` are the ends of the colour scale, in the units of the values even if `log`.

    `framed` (y, x) marks cells to draw a frame around; None: no frames.
    """

    x: Axis
    y: Axis
    x_values: Floats
    y_values: Floats
    values: Floats
    limits: tuple[float, float]
    log: bool = False
    diverging: bool = False
    annotate: bool = False
    label: str = ""
    square: bool = False
    framed: NDArray[np.bool_] | None = None

    def frames(self) -> list[list[tuple[float, float]]]:
        """The four corners (x, y) of every frame, a little inside its cell, so that neighbours keep a frame each."""
        if self.framed is None:
            return []
        x_step, y_step = (
            float(places[1] - places[0]) if len(places) > 1 else 1.0 for places in (self.x_values, self.y_values)
        )
        around = ((-_INSIDE, -_INSIDE), (_INSIDE, -_INSIDE), (_INSIDE, _INSIDE), (-_INSIDE, _INSIDE))
        return [
            [
                (float(self.x_values[column]) + across * x_step, float(self.y_values[row]) + along * y_step)
                for across, along in around
            ]
            for row, column in np.argwhere(self.framed).tolist()
        ]


@dataclass(frozen=True, eq=False)
class Distribution:
    """Counts of one group per bin (bin,), and their sum."""

    name: str
    counts: NDArray[np.int64]

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())


@dataclass(frozen=True, eq=False)
class HistogramPlot(_Plot):
    """Histograms over shared `edges` (bin + 1,). With `shares` heights are counts divided by the group's total."""

    x: Axis
    y: Axis
    edges: Floats
    distributions: tuple[Distribution, ...]
    shares: bool = False
    legend: str = ""

    def heights(self, distribution: Distribution) -> Floats:
        """What is drawn for one group (bin,)."""
        counts = distribution.counts.astype(np.float64)
        return counts / max(distribution.total, 1) if self.shares else counts


@dataclass(frozen=True, eq=False)
class PointGroup:
    """Points of one colour or, where `color` holds numbers, of one colour scale. All arrays have shape (n,).

    `whiskers` (2, n) are the lengths below and above each point, 0 where it has none.
    """

    name: str
    x: Floats
    y: Floats
    color: Floats | None = None
    labels: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    highlighted: NDArray[np.bool_] | None = None
    whiskers: Floats | None = None


@dataclass(frozen=True, eq=False)
class ScatterPlot(_Plot):
    """Points in groups; their `texts` are printed beside them, their `labels` tell what a point is to those who ask."""

    x: Axis
    y: Axis
    groups: tuple[PointGroup, ...]
    legend: str = ""
    color_limits: tuple[float, float] | None = None
    identity: bool = False


@dataclass(frozen=True, eq=False)
class ImageGridPlot(_Plot):
    """Pictures by row and column, each (y, x) or (y, x, 3), scaled to 0..1; (y, x) ones go through `color_map`."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Floats, ...], ...]
    color_map: str = "gray"


@dataclass(frozen=True, eq=False)
class ReliabilityPanel:
    """One reliability diagram: bins between `edges` (bin + 1,); all else (bin,), NaN where `count` is 0."""

    name: str
    edges: Floats
    confidence: Floats
    accuracy: Floats
    count: Floats
    lower: Floats
    upper: Floats
    band: tuple[Floats, Floats] | None = None
    """Lower and upper ends of where the accuracy would lie if the confidence were right."""

    @property
    def gap(self) -> float:
        """Mean of |accuracy - confidence| over the bins, weighted by count: the calibration error of these bins."""
        total = self.count.sum()
        return float(np.nansum(self.count * np.abs(self.accuracy - self.confidence)) / total) if total > 0 else np.nan


@dataclass(frozen=True, eq=False)
class ReliabilityPlot(_Plot):
    """Reliability diagrams side by side."""

    panels: tuple[ReliabilityPanel, ...]


@dataclass(frozen=True, eq=False)
class PicturePlot(_Plot):
    """A picture drawn when the report was made."""

    png: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class CustomPlot(_Plot):
    """What a plugin draws: its view and the arrays it asked for, in memory."""

    view: CustomView
    data: Mapping[str, xr.DataArray]


@dataclass(frozen=True)
class DataTable:
    """Arrays over the same dims, one row per entry: columns of labels of the dims, then of values."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, eq=False)
class TablesPlot(_Plot):
    """What stands in for a view that cannot be drawn here: why, and its data."""

    message: str
    tables: tuple[DataTable, ...]


Plot = (
    LinePlot
    | BarPlot
    | HeatMapPlot
    | HistogramPlot
    | ScatterPlot
    | ImageGridPlot
    | ReliabilityPlot
    | PicturePlot
    | CustomPlot
    | TablesPlot
)
