"""Pieces that several kinds of view resolve in the same way: captions, labels of axes, groups, thinning with a note."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.render.plots import Axis
from workbench.render.reading import Reader, dim_labels, dim_texts, thin
from workbench.render.texts import plain_name

if TYPE_CHECKING:
    import xarray as xr

    from workbench.render.plots import Floats

__all__ = ["GROUPS", "above_zero", "caption", "first", "group_name", "positions", "spread", "value_label"]

GROUPS = 16
"""Most curves, groups of bars or histograms in one view."""


def caption(given: str, reader: Reader) -> str:
    """The view's caption followed by what the reader noted (each remark once)."""
    return " ".join(part for part in dict.fromkeys((given, *reader.notes)) if part)


def value_label(given: str, names: tuple[str, ...], array: xr.DataArray) -> str:
    """Label of a value axis: what the view says, else the array's name and unit where the view draws one array."""
    if given or len(names) != 1:
        return given
    unit = array.attrs.get("units") or array.attrs.get("unit") or ""
    return f"{plain_name(names[0])} [{unit}]" if unit else plain_name(names[0])


def group_name(name: str, label: str, several_arrays: bool) -> str:
    """Legend entry of one array and one label of `by`."""
    if not label:
        return plain_name(name)
    return f"{plain_name(name)}, {label}" if several_arrays else label


def spread(array: xr.DataArray, by: str | None, reader: Reader, most: int = GROUPS) -> list[tuple[str, xr.DataArray]]:
    """One (label, array) per label of dim `by`, at most `most` of them; one unnamed array without `by`."""
    if by is None:
        return [("", array)]
    if by not in array.dims:
        raise reader.error(
            "by",
            expected=f"a dim of {array.name!r}: {', '.join(map(str, array.dims))}",
            got=repr(by),
        )
    array, note = thin(array, by, most)
    reader.notes.append(note)
    return [(text, array.isel({by: index})) for index, text in enumerate(dim_texts(array, by))]


def positions(array: xr.DataArray, dim: str, label: str, *, log: bool = False) -> tuple[Axis, Floats]:
    """Axis and places of the entries of a dim: its numbers, or categories where it has texts."""
    labels = dim_labels(array, dim)
    label = label or plain_name(dim)
    if labels is None:
        return Axis(label, log), np.arange(array.sizes[dim], dtype=np.float64)
    if labels.dtype.kind in "iuf":
        return Axis(label, log), labels.astype(np.float64)
    return Axis(label, categories=dim_texts(array, dim)), np.arange(len(labels), dtype=np.float64)


def above_zero(values: Floats, log: bool, reader: Reader) -> Floats:
    """NaN for what a logarithmic axis cannot show; the caption says so."""
    if not log or not (values <= 0).any():
        return values
    reader.notes.append("Values of 0 and below are not drawn on the logarithmic axis.")
    return np.where(values > 0, values, np.nan)


def first(array: xr.DataArray, dim: str, most: int, reader: Reader) -> xr.DataArray:
    """The first `most` entries of a dim; the caption says so."""
    if array.sizes[dim] <= most:
        return array
    reader.notes.append(f"The first {most:,} of {array.sizes[dim]:,} entries of {dim} are drawn.")
    return array.isel({dim: slice(0, most)})
