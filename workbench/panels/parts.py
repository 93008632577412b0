"""Small widgets that several panels are made of: code to copy, curves, figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.panels import style
from workbench.render.palette import COLORS, COLORS_ON_DARK
from workbench.render.texts import plain_name

if TYPE_CHECKING:
    import ipywidgets
    import xarray as xr

__all__ = ["PALETTE", "code_view", "curves_view", "figures_view", "series_curves"]

PALETTE = {"light": list(COLORS), "dark": list(COLORS_ON_DARK)}
MOST_POINTS = 2_000
"""Points of one curve; a longer one is thinned."""


@cache
def _classes() -> tuple[Any, Any]:
    import anywidget
    import traitlets

    class CodeView(anywidget.AnyWidget):  # type: ignore[misc]
        _esm = style.asset("common.js") + style.asset("code.js")
        _css = style.asset("parts.css")
        code = traitlets.Unicode().tag(sync=True)

    class CurvesView(anywidget.AnyWidget):  # type: ignore[misc]
        _esm = style.asset("common.js") + style.asset("curves.js")
        _css = style.asset("common.css") + style.asset("parts.css")
        charts: Any = traitlets.List().tag(sync=True)
        palette = traitlets.Dict().tag(sync=True)

    return CodeView, CurvesView


def code_view(code: str) -> ipywidgets.DOMWidget:
    """Python with a button that copies it."""
    made: ipywidgets.DOMWidget = _classes()[0](code=code)
    return made


def curves_view(charts: Sequence[Mapping[str, Any]]) -> ipywidgets.DOMWidget:
    """Charts below one another; assign to `charts` to change them. See `series_curves` for what one is."""
    made: ipywidgets.DOMWidget = _classes()[1](charts=list(charts), palette=PALETTE)
    return made


def series_curves(series: Mapping[str, xr.Dataset]) -> list[dict[str, Any]]:
    """One chart per logged series, one curve per entry of `series` (a run's name -> its series over `step`)."""
    names = dict.fromkeys(str(name) for dataset in series.values() for name in dataset.data_vars)
    charts = []
    for name in names:
        curves = []
        for slot, (label, dataset) in enumerate(series.items()):
            if name not in dataset:
                continue
            values = np.asarray(dataset[name].values, dtype=np.float64)
            steps = np.asarray(dataset["step"].values if "step" in dataset.coords else np.arange(len(values)))
            logged = np.isfinite(values)
            values, steps = values[logged], steps[logged]
            every = max(1, -(-len(values) // MOST_POINTS))
            curves.append(
                {"name": label, "slot": slot, "x": steps[::every].astype(float).tolist(), "y": values[::every].tolist()}
            )
        if any(curve["y"] for curve in curves):
            charts.append({"curves": curves, "x_label": "step", "y_label": plain_name(name), "legend": len(series) > 1})
    return charts


def figures_view(bundles: Sequence[Mapping[str, Any]]) -> ipywidgets.Output:
    """MIME bundles (plotly's JSON, escaped HTML), shown by the notebook's own renderers."""
    import ipywidgets

    outputs = tuple({"output_type": "display_data", "data": dict(bundle), "metadata": {}} for bundle in bundles)
    return ipywidgets.Output(outputs=outputs)
