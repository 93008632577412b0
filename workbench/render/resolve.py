"""View + result -> plot: all data access of the renderer, so that the drawers only draw."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.render.custom import resolve_custom, resolve_unknown
from workbench.render.histogram import resolve_histogram
from workbench.render.parts import above_zero, caption, first, group_name, positions, spread, value_label
from workbench.render.plots import (
    Axis,
    BarGroup,
    BarPlot,
    Curve,
    HeatMapPlot,
    ImageGridPlot,
    LinePlot,
    PicturePlot,
    Plot,
)
from workbench.render.points import resolve_scatter
from workbench.render.reading import Reader, dim_texts, load, numbers, thin
from workbench.render.reliability import resolve_reliability
from workbench.render.texts import label_text, plain_name, value_text
from workbench.report import (
    Bar,
    CustomView,
    FreeForm,
    HeatMap,
    Histogram,
    ImageGrid,
    Line,
    ReliabilityDiagram,
    Scatter,
    UnknownView,
    View,
)

if TYPE_CHECKING:
    import xarray as xr

    from workbench.method import Result
    from workbench.render.plots import Floats

__all__ = ["resolve"]

POINTS = 2_000
"""Most points of one curve."""
CATEGORIES = 120
"""Most bars of one group."""
CELLS = 400
"""Most rows and most columns of a heat map."""
PIXELS = 256
"""Most pixels along a side of a picture in a grid."""


def resolve(view: View, result: Result) -> Plot:
    """Read what a view draws, and no more than it draws.

    Args:
        view: a view of a report.
        result: the run it was made from.

    Raises:
        OutputError: the view names an array or series that is not stored.
        InputError: the view names a dim, label or position that the arrays do not have.
    """
    kinds: dict[type, Callable[[Any, Reader], Plot]] = {
        Line: _line,
        Bar: _bar,
        HeatMap: _heat_map,
        Histogram: resolve_histogram,
        Scatter: resolve_scatter,
        ImageGrid: _image_grid,
        ReliabilityDiagram: resolve_reliability,
        FreeForm: _free_form,
        UnknownView: resolve_unknown,
    }
    reader = Reader(view.title, result, view.select)
    plot = resolve_custom(view, reader) if isinstance(view, CustomView) else kinds[type(view)](view, reader)
    if not isinstance(view, FreeForm):
        reader.finish()
    return plot


def _line(view: Line, reader: Reader) -> LinePlot:
    if (view.lower or view.upper) and len(view.y) != 1:
        raise reader.error("y", expected="one array where lower or upper is given", got=f"{len(view.y)}")
    curves: list[Curve] = []
    axis = Axis(view.x_label or plain_name(view.x), view.log_x)
    label = view.y_label
    for name in view.y:
        array = reader.array(name)
        label = label or value_label("", view.y, array)
        bounds = {bound: reader.array(bound) for bound in (view.lower, view.upper) if bound}
        parts = {key: spread(part, view.by, reader) for key, part in {name: array, **bounds}.items()}
        for index, (text, part) in enumerate(parts[name]):
            part, note = thin(reader.only(part, name, view.x), view.x, POINTS, log=view.log_x)
            reader.notes.append(note)
            axis, x = positions(part, view.x, view.x_label, log=view.log_x)
            values = {name: numbers(part, view.title)}
            for bound in bounds:
                edge = reader.only(parts[bound][index][1], bound, view.x)
                values[bound] = numbers(thin(edge, view.x, POINTS, log=view.log_x)[0], view.title)
            keep = np.isfinite(values[name]) if name.startswith("series/") else np.ones(len(x), dtype=bool)
            x, values = x[keep], {key: above_zero(column[keep], view.log_y, reader) for key, column in values.items()}
            curves.append(
                Curve(
                    group_name(name, text, len(view.y) > 1),
                    above_zero(x, view.log_x and not axis.categories, reader),
                    values[name],
                    values[view.lower] if view.lower else None,
                    values[view.upper] if view.upper else None,
                )
            )
    return LinePlot(
        view.title,
        caption(view.caption, reader),
        axis,
        Axis(label, view.log_y),
        tuple(curves),
        view.markers or max((len(curve.x) for curve in curves), default=0) == 1,
        plain_name(view.by) if view.by else "",
    )


def _bar(view: Bar, reader: Reader) -> BarPlot:
    if (view.error or view.lower or view.upper) and len(view.y) != 1:
        raise reader.error("y", expected="one array where error is given", got=f"{len(view.y)}")
    if bool(view.lower) != bool(view.upper):
        raise reader.error("lower, upper", expected="both or none", got=f"only {view.lower or view.upper}")
    groups: list[BarGroup] = []
    axis, label = Axis(view.x_label or plain_name(view.x)), view.y_label
    for name in view.y:
        array = reader.array(name)
        label = label or value_label("", view.y, array)
        names = [name for name in (view.error, view.lower, view.upper) if name]
        errors = [(name, spread(reader.array(name), view.by, reader)) for name in names]
        for index, (text, part) in enumerate(spread(array, view.by, reader)):
            part = first(reader.only(part, name, view.x), view.x, CATEGORIES, reader)
            whiskers = [
                numbers(first(reader.only(parts[index][1], name, view.x), view.x, CATEGORIES, reader), view.title)
                for name, parts in errors
            ]
            axis = Axis(view.x_label or plain_name(view.x), categories=dim_texts(part, view.x))
            groups.append(
                BarGroup(
                    group_name(name, text, len(view.y) > 1),
                    above_zero(numbers(part, view.title), view.log_y, reader),
                    _whiskers(numbers(part, view.title), whiskers),
                )
            )
    return BarPlot(
        view.title,
        caption(view.caption, reader),
        axis,
        Axis(label, view.log_y),
        tuple(groups),
        plain_name(view.by) if view.by else "",
    )


def _whiskers(values: Floats, given: list[Floats]) -> Floats | None:
    """Half-lengths (category,) as given, or lengths below and above (2, category) from the two ends of an interval."""
    if not given:
        return None
    if len(given) == 1:
        return _half_lengths(given[0])
    return _half_lengths(np.clip(np.stack([values - given[-2], given[-1] - values]), 0, None))


def _half_lengths(values: Floats) -> Floats:
    """Lengths of error bars; NaN (no bar) for what is no length."""
    return np.where(np.isfinite(values) & (values >= 0), values, np.nan)


def _heat_map(view: HeatMap, reader: Reader) -> HeatMapPlot:
    array = reader.only(reader.array(view.z), view.z, view.y, view.x)
    framed = _framed(view, array, reader)
    for dim in (view.y, view.x):
        array, note = thin(array, dim, CELLS)
        reader.notes.append(note)
    values = above_zero(numbers(array, view.title), view.log, reader)
    x, x_values = _cells_axis(array, view.x)
    y, y_values = _cells_axis(array, view.y)
    if view.y == "y" or y.categories:  # rows of pictures and of named things read from the top
        y = Axis(y.label, categories=y.categories, downwards=True)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if view.log and not finite.size:
        low, high = 1.0, 10.0
    elif view.log and view.diverging:  # factors: as far above 1 as below
        low, high = 1 / max(high, 1 / low), max(high, 1 / low)
    elif view.diverging:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    if low == high:
        low, high = (low / 2, high * 2) if view.log else (low - 0.5, high + 0.5)
    return HeatMapPlot(
        view.title,
        caption(view.caption, reader),
        x,
        y,
        x_values,
        y_values,
        values,
        (low, high),
        view.log,
        view.diverging,
        view.annotate and values.size <= 400,
        view.z_label or value_label("", (view.z,), array),
        (view.x, view.y) == ("x", "y"),
        framed,
    )


def _framed(view: HeatMap, cells: xr.DataArray, reader: Reader) -> NDArray[np.bool_] | None:
    """Which of the cells that are drawn get a frame (y, x)."""
    if view.frame is None:
        return None
    marks = reader.only(reader.array(view.frame), view.frame, view.y, view.x)
    if marks.dtype != bool or marks.shape != cells.shape:
        shapes = [" by ".join(map(str, array.shape)) for array in (cells, marks)]
        raise reader.error("frame", expected=f"booleans, {shapes[0]}", got=f"{marks.dtype}, {shapes[1]}")
    for dim in (view.y, view.x):
        marks, _ = thin(marks, dim, CELLS)
    return load(marks).astype(bool)


def _cells_axis(array: xr.DataArray, dim: str) -> tuple[Axis, Floats]:
    """Cells have equal width, so numbers that are not evenly spaced are shown as categories."""
    axis, places = positions(array, dim, "")
    steps = np.diff(places)
    if axis.categories or len(places) < 2 or ((steps > 0).all() and np.allclose(steps, steps[0])):
        return axis, places
    return Axis(axis.label, categories=dim_texts(array, dim)), np.arange(len(places), dtype=np.float64)


def _image_grid(view: ImageGrid, reader: Reader) -> ImageGridPlot:
    if view.row and len(view.images) != 1:
        raise reader.error("row", expected="one array where row is given", got=f"{len(view.images)} arrays")
    rows: list[tuple[str, xr.DataArray]] = []
    for name in view.images:
        array = first(_with_dim(reader.array(name), view.column, name, reader), view.column, view.limit, reader)
        if view.row:
            array = first(_with_dim(array, view.row, name, reader), view.row, view.limit, reader)
            texts = dim_texts(array, view.row, named=True)
            rows += [(text, array.isel({view.row: index})) for index, text in enumerate(texts)]
        else:
            rows.append((plain_name(name), array))
    columns = dim_texts(rows[0][1], view.column, named=True) if rows else ()
    if view.labels:
        labels = reader.only(reader.array(view.labels), view.labels, view.column)
        columns = tuple(_above(label) for label in load(labels.isel({view.column: slice(0, len(columns))})))
    cells = tuple(_pictures(array, view, reader) for _, array in rows)
    return ImageGridPlot(
        view.title, caption(view.caption, reader), tuple(text for text, _ in rows), columns, cells, view.color_map
    )


def _above(label: object) -> str:
    """What is printed above a picture: there is room for three digits of a measured number."""
    return value_text(float(label), 3) if isinstance(label, np.floating) else label_text(label)


def _with_dim(array: xr.DataArray, dim: str, name: str, reader: Reader) -> xr.DataArray:
    if dim not in array.dims:
        raise reader.error(
            name,
            expected=f"an array with dim {dim!r}",
            got=f"dims ({', '.join(map(str, array.dims))})",
        )
    return array


def _pictures(array: xr.DataArray, view: ImageGrid, reader: Reader) -> tuple[Floats, ...]:
    """One row of the grid, read at once: each picture (y, x) or (y, x, 3) in 0..1."""
    rest = [str(dim) for dim in array.dims if dim != view.column]
    y, x = ("y", "x") if {"y", "x"} <= set(rest) else tuple(rest[-2:]) if len(rest) >= 2 else ("y", "x")
    colored = "channel" in rest and array.sizes["channel"] == 3
    for dim in (y, x):
        if dim in array.dims:
            array, note = thin(array, dim, PIXELS)
            reader.notes.append(note)
    array = reader.only(array, str(array.name), view.column, y, x, *(["channel"] if colored else []))
    whole = array.dtype == np.uint8
    values = numbers(array, view.title)
    pictures = []
    for picture in values:
        finite = picture[np.isfinite(picture)]
        if view.value_range is None:
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        elif whole and view.value_range == (0.0, 1.0):
            low, high = 0.0, 255.0
        else:
            low, high = view.value_range
        pictures.append(np.clip((picture - low) / (high - low if high > low else 1.0), 0.0, 1.0))
    return tuple(pictures)


def _free_form(view: FreeForm, reader: Reader) -> PicturePlot:
    try:
        png = base64.b64decode(view.png, validate=True)
    except binascii.Error as error:
        raise reader.error("png", expected="a PNG in base64", got=str(error)) from None
    if not png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise reader.error("png", expected="a PNG", got=f"{len(png)} bytes of something else")
    return PicturePlot(view.title, view.caption, png)
