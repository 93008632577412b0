"""Scatter plots: points over a shared dim, in groups of one colour or along a colour scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.render.parts import GROUPS, above_zero, caption, value_label
from workbench.render.plots import Axis, PointGroup, ScatterPlot
from workbench.render.reading import Reader, dim_labels, load, numbers
from workbench.render.texts import label_text, plain_name, shorten_all
from workbench.report import Scatter

if TYPE_CHECKING:
    import xarray as xr

    from workbench.render.plots import Floats

__all__ = ["resolve_scatter"]

SCATTERED = 4_000
"""Most points that are drawn."""
PRINTED = 30
"""Most points whose labels are printed beside them."""


def resolve_scatter(view: Scatter, reader: Reader) -> ScatterPlot:
    """Points of a view, in groups of one colour."""
    x_array, y_array = reader.array(view.x), reader.array(view.y)
    shared = [str(dim) for dim in y_array.dims if dim in x_array.dims and y_array.sizes[dim] != 1]
    dim = shared[0] if shared else str(next((dim for dim in y_array.dims if dim in x_array.dims), ""))
    if not dim:
        raise reader.error(
            "x and y",
            expected="arrays over a shared dim",
            got=f"dims ({', '.join(map(str, x_array.dims))}) and ({', '.join(map(str, y_array.dims))})",
        )
    columns = {"x": reader.only(x_array, view.x, dim), "y": reader.only(y_array, view.y, dim)}
    for role in ("color", "label", "text", "highlight", "lower", "upper"):
        if name := getattr(view, role):
            columns[role] = _column(name, dim, y_array, reader)
    size = y_array.sizes[dim]
    marked = load(columns.pop("highlight")).astype(bool) if view.highlight else None
    if size > SCATTERED:
        columns, marked = _sample(columns, marked, dim, SCATTERED, reader)
    x = above_zero(numbers(columns["x"], view.title), view.log_x, reader)
    y = above_zero(numbers(columns["y"], view.title), view.log_y, reader)
    labels = tuple(label_text(label) for label in load(columns["label"])) if view.label else ()
    texts = tuple(label_text(text) for text in load(columns["text"])) if view.text else ()
    if not texts and len(labels) <= PRINTED:
        texts = tuple(shorten_all(labels, 22))
    colors = load(columns["color"]) if view.color else None
    shown = np.isfinite(x) & np.isfinite(y)
    if not shown.all():
        reader.notes.append(f"{int((~shown).sum()):,} points without a finite value on both axes are not drawn.")
    whiskers = _whiskers(columns, y, view, reader)
    groups, limits = _point_groups(view, x, y, labels, texts, colors, marked, whiskers, shown)
    return ScatterPlot(
        view.title,
        caption(view.caption, reader),
        Axis(value_label(view.x_label, (view.x,), columns["x"]), view.log_x),
        Axis(value_label(view.y_label, (view.y,), columns["y"]), view.log_y),
        groups,
        plain_name(view.color) if view.color else "",
        limits,
        view.identity,
    )


def _whiskers(columns: dict[str, xr.DataArray], y: Floats, view: Scatter, reader: Reader) -> Floats | None:
    """(2, point): lengths below and above; 0 where an end is not known."""
    if not {"lower", "upper"} & set(columns):
        return None
    lengths = np.zeros((2, len(y)))
    for row, (role, sign) in enumerate((("lower", -1.0), ("upper", 1.0))):
        if role in columns:
            end = above_zero(numbers(columns[role], view.title), view.log_y, reader)
            lengths[row] = np.nan_to_num(np.maximum(sign * (end - y), 0.0), nan=0.0, posinf=0.0)
    return lengths


def _column(name: str, dim: str, array: xr.DataArray, reader: Reader) -> xr.DataArray:
    """A stored array over `dim`, or the labels of `dim` itself."""
    if reader.has(name):
        return reader.only(reader.array(name), name, dim)
    if name == dim:
        import xarray as xr

        labels = dim_labels(array, dim)
        return xr.DataArray(np.arange(array.sizes[dim]) if labels is None else labels, dims=(dim,), name=dim)
    return reader.array(name)  # raises: not stored


def _sample(
    columns: dict[str, xr.DataArray], marked: Any, dim: str, most: int, reader: Reader
) -> tuple[dict[str, xr.DataArray], Any]:
    """A fixed random sample of the points that keeps the highlighted ones."""
    size = columns["x"].sizes[dim]
    always = np.flatnonzero(marked)[:most] if marked is not None else np.array([], dtype=np.int64)
    others = np.setdiff1d(np.arange(size), always, assume_unique=True)
    drawn = np.random.default_rng(0).choice(others, min(len(others), most - len(always)), replace=False)
    kept = np.sort(np.concatenate([always, drawn]))
    reader.notes.append(f"A random sample of {len(kept):,} of {size:,} points is drawn.")
    thinned = {role: column.isel({dim: kept}) for role, column in columns.items()}
    return thinned, None if marked is None else marked[kept]


def _point_groups(
    view: Scatter,
    x: Floats,
    y: Floats,
    labels: tuple[str, ...],
    texts: tuple[str, ...],
    colors: Any,
    marked: Any,
    whiskers: Any,
    shown: Any,
) -> tuple[tuple[PointGroup, ...], tuple[float, float] | None]:
    def group(name: str, member: Any, color: Floats | None = None) -> PointGroup:
        kept = np.flatnonzero(member & shown)
        return PointGroup(
            name,
            x[kept],
            y[kept],
            None if color is None else color[kept],
            tuple(labels[index] for index in kept) if labels else (),
            tuple(texts[index] for index in kept) if texts else (),
            None if marked is None else marked[kept],
            None if whiskers is None else whiskers[:, kept],
        )

    everything = np.ones(len(x), dtype=bool)
    if colors is None:
        return (group("", everything),), None
    kind = colors.dtype.kind
    distinct = list(dict.fromkeys(colors.tolist())) if kind not in "f" else []
    if kind == "f" or (kind in "iu" and len(distinct) > 8):
        values = colors.astype(np.float64)
        finite = values[np.isfinite(values)]
        if not finite.size:
            return (group("", everything),), None
        known = np.isfinite(values)
        colored = group("", known, values)
        others = () if known.all() else (group(f"no {plain_name(view.color or '')}", ~known),)
        return (colored, *others), (float(finite.min()), float(finite.max()))
    if kind in "biu":
        distinct.sort()
    name = plain_name(view.color or "")
    names = {value: (name if value else f"not {name}") if kind == "b" else label_text(value) for value in distinct}
    distinct, rest = distinct[:GROUPS], distinct[GROUPS:]
    groups = [group(names[value], colors == value) for value in distinct]
    if rest:
        drawn = np.zeros(len(x), dtype=bool)
        for value in distinct:
            drawn |= colors == value
        groups.append(group(f"{len(rest)} others", ~drawn))
    return tuple(groups), None
