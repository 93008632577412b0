"""Small widgets that several panels are made of: tabs that fill when opened, code to copy, curves, figures of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.panels import style
from workbench.render.html import notebook_fragment
from workbench.render.interactive_theme import dark_figures
from workbench.render.markup import element, embedded
from workbench.render.palette import COLORS, COLORS_ON_DARK
from workbench.render.texts import plain_name

if TYPE_CHECKING:
    import ipywidgets
    import xarray as xr

__all__ = [
    "PALETTE",
    "code_view",
    "curves_view",
    "error_text",
    "figures_view",
    "fragment",
    "guarded",
    "series_curves",
    "sheet",
    "tabs",
]

PALETTE = {"light": list(COLORS), "dark": list(COLORS_ON_DARK)}
MOST_POINTS = 2_000
"""Points of one curve; a longer one is thinned."""


@cache
def _classes() -> tuple[Any, Any]:
    import anywidget
    import traitlets

    class CodeView(anywidget.AnyWidget):  # type: ignore[misc]
        _esm = style.asset("common.js") + style.asset("code.js")
        code = traitlets.Unicode().tag(sync=True)

    class CurvesView(anywidget.AnyWidget):  # type: ignore[misc]
        _esm = style.asset("common.js") + style.asset("curves.js")
        _css = style.asset("common.css")
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


def figures_view(bundles: Sequence[Mapping[str, Any]]) -> ipywidgets.DOMWidget:
    """MIME bundles (plotly's JSON, escaped HTML), shown by the notebook's own renderers, light or dark."""
    import ipywidgets

    outputs = tuple({"output_type": "display_data", "data": dict(bundle), "metadata": {}} for bundle in bundles)
    look = style.markup(element("style", embedded(dark_figures())))
    look.layout.display = "none"
    return ipywidgets.VBox([look, ipywidgets.Output(outputs=outputs)])


def fragment(*content: object) -> ipywidgets.HTML:
    """Parts of a report (`workbench.render.sections`) with their style sheet, as a widget."""
    return style.markup(embedded(notebook_fragment(*content)))


def sheet(*names: str) -> ipywidgets.HTML:
    """Style sheets of `workbench/panels/static` for what ipywidgets draws itself."""
    made = style.markup(element("style", embedded("".join(map(style.asset, names)))))
    made.layout.display = "none"
    return made


def tabs(pages: Mapping[str, Callable[[], list[ipywidgets.Widget]]], *, first: int = 0) -> ipywidgets.DOMWidget:
    """Tabs whose content is made when they are opened; an error takes the place of the content it is about."""
    import ipywidgets

    boxes = [ipywidgets.VBox() for _ in pages]
    tab = ipywidgets.Tab(boxes, titles=list(pages))
    makers, filled = list(pages.values()), set[int]()

    def fill(change: Any = None) -> None:
        index = tab.selected_index
        if index is not None and index not in filled:
            filled.add(index)
            boxes[index].children = guarded(makers[index])

    tab.selected_index = first
    tab.observe(fill, names="selected_index")
    fill()
    box = ipywidgets.VBox([sheet("tabs.css"), tab])
    box.add_class("wbt")
    return box


def guarded(make: Callable[[], list[ipywidgets.Widget]]) -> list[ipywidgets.Widget]:
    """What `make` makes, or the error in its place: one damaged array must not hide the rest."""
    try:
        return make()
    except (WorkbenchError, ValueError, OSError, LookupError, TypeError) as error:
        return [style.markup(style.error(error_text(error)))]


def error_text(error: BaseException) -> str:
    """An error as people read it: ours say what to do; of others the kind is told, too."""
    return str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
