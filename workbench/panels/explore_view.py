"""What is looked at: which dims lie along x, y, colour and facet, where the others stand, and the region that means.

Pure functions of a source's dims and sizes; nothing here reads or draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pydantic

from workbench.errors import InputError
from workbench.panels.explore_sources import Source, sizes_of

__all__ = ["MOST_CURVES", "MOST_SIDE", "View", "default_view", "region", "settled", "slicing_code"]

Kind = Literal["image", "line", "histogram", "table"]
KINDS: tuple[Kind, ...] = ("image", "line", "histogram", "table")

MOST_SIDE = 1024
"""Pixels along a side of what is sent for one picture; a larger region is thinned."""
PAGE_BYTES = 4 * 1024 * 1024
"""Most bytes of one page of pictures (one picture may have more)."""
MOST_CURVES = 16
MOST_POINTS = 4_000
"""Entries of one curve; a longer one is thinned."""
ROWS, COLUMNS = 60, 24
"""Cells of a table shown at once."""
LONGEST_LABEL = 60
"""Characters of a label that is written into code; entries with longer ones are given by position."""
PAGE = 24
"""Pictures on a page."""

_X, _Y = ("x", "width", "column"), ("y", "height", "row")
_ORDERED = ("step", "epoch", "bin", "threshold", "severity", "bits", "fraction", "frequency", "rank")


class View(pydantic.BaseModel):
    """One way of looking at an array. Dims that are named in none of x, y, color, facet stand at `index`."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "image"
    x: str | None = None
    y: str | None = None
    color: str | None = None
    """image: the dim of red, green, blue; line and histogram: one curve per entry."""
    facet: str | None = None
    """image: one picture per entry, `count` of them from `start` on."""
    index: dict[str, int] = pydantic.Field(default_factory=dict)
    start: int = pydantic.Field(default=0, ge=0)
    """First entry of the facet, or first row of a table."""
    count: int = pydantic.Field(default=PAGE, ge=1, le=96)
    window: tuple[int, int, int, int] | None = None
    """Part of the picture: first and last row (exclusive), first and last column."""
    overlay: str | None = None
    captions: str | None = None
    clip: float = pydantic.Field(default=0.0, ge=0.0, le=25.0)
    """Percent of the values cut off at each end of the colour scale."""
    scale: Literal["shared", "each", "full"] = "shared"
    """Colours span the values of the page, of each picture, or the range of the type (0..255, 0..1)."""


def default_view(source: Source) -> View:
    """A way to begin: pictures where there are y and x, else the form that suits the number of dims."""
    sizes = sizes_of(source)
    dims = [dim for dim in source.dims if sizes[dim] > 1] or list(source.dims)
    if source.dtype.kind not in "biuf" or not dims:
        return settled(View(kind="table", x=None, y=dims[0] if dims else None), source)
    x = next((dim for dim in source.dims if dim in _X), None)
    y = next((dim for dim in source.dims if dim in _Y), None)
    if x is not None and y is not None:
        color = "channel" if sizes.get("channel") == 3 else None
        left = [dim for dim in dims if dim not in (x, y, color)]
        facet = next((dim for dim in ("run", "sample") if dim in left), left[0] if left else None)
        # Red, green and blue are read against their full range; anything else against its own.
        scale: Literal["shared", "full"] = "full" if color or source.dtype == np.uint8 else "shared"
        return settled(View(x=x, y=y, color=color, facet=facet, scale=scale), source)
    if len(dims) == 1:
        one = dims[0]
        line = one in _ORDERED or sizes[one] <= 64
        return settled(View(kind="line" if line else "histogram", x=one), source)
    if dims[-1] in _ORDERED:
        color = next((dim for dim in reversed(dims[:-1]) if sizes[dim] <= MOST_CURVES), None)
        return settled(View(kind="line", x=dims[-1], color=color), source)
    return settled(View(kind="image", x=dims[-1], y=dims[-2]), source)


def settled(view: View, source: Source) -> View:
    """The view with every dim in one place only, indices within the sizes, and what its kind does not use left out.

    Raises:
        InputError: it names a dim that the array lacks, or asks for pictures of texts.
    """
    sizes = sizes_of(source)
    for place in ("x", "y", "color", "facet"):
        dim = getattr(view, place)
        if dim is not None and dim not in sizes:
            raise InputError(place, expected=f"a dim of {source.name!r}: {', '.join(sizes) or 'none'}", got=repr(dim))
    kind: Kind = view.kind
    if source.dtype.kind not in "biuf" and kind != "table":
        raise InputError("kind", expected="table, for an array of texts", got=kind)
    x, y, color, facet = view.x, view.y, view.color, view.facet
    free = [dim for dim in reversed(source.dims) if dim not in (x, y, color, facet)]
    if kind in ("image", "line", "histogram") and x is None:
        x = free.pop(0) if free else facet or color or y
    if kind == "image" and y is None:
        y = free.pop(0) if free else next((dim for dim in (facet, color) if dim not in (None, x)), None)
    if kind == "image" and (x is None or y is None or x == y):
        kind = "line" if sizes else "table"  # pictures need two dims
    if kind == "table" and y is None and x is None and source.dims:
        y = source.dims[0]
    y = y if y != x and kind != "line" else None
    color = color if color not in (x, y) and kind != "table" else None
    if kind == "image" and color is not None and sizes[color] not in (3, 4):
        color = None
    facet = facet if facet not in (x, y, color) and kind == "image" else None
    taken = {x, y, color, facet}
    index = {
        dim: min(max(view.index.get(dim, 0), 0), max(size - 1, 0)) for dim, size in sizes.items() if dim not in taken
    }
    rows = sizes[facet] if facet else sizes[y] if kind == "table" and y else 0
    window = _window(view.window, sizes[y], sizes[x]) if kind == "image" and x and y else None
    return view.model_copy(
        update={
            "kind": kind, "x": x, "y": y, "color": color, "facet": facet, "index": index, "window": window,
            "start": min(view.start, max(rows - 1, 0)),
        }
    )  # fmt: skip


def _window(window: tuple[int, int, int, int] | None, height: int, width: int) -> tuple[int, int, int, int] | None:
    if window is None:
        return None
    top, left = (min(max(low, 0), size - 1) for low, size in ((window[0], height), (window[2], width)))
    bottom, right = (
        min(max(high, low + 1), size) for high, low, size in ((window[1], top, height), (window[3], left, width))
    )
    whole = (top, bottom, left, right) == (0, height, 0, width)
    return None if whole else (top, bottom, left, right)


def page_size(view: View, source: Source) -> int:
    """Entries on a full page: as many pictures as asked for, fewer where they are large; rows of a table."""
    if view.kind != "image":
        return ROWS
    top, bottom, left, right = extent(view, source)
    step = picture_step(view, source)
    item = math.ceil((bottom - top) / step) * math.ceil((right - left) / step) * min(source.dtype.itemsize, 4)
    item *= 3 if view.color else 1
    return min(view.count, max(1, PAGE_BYTES // max(item, 1)))


def page(view: View, source: Source) -> slice:
    """Entries of the facet on view."""
    stop = view.start + page_size(view, source)
    return slice(view.start, min(stop, sizes_of(source)[view.facet or ""]))


def extent(view: View, source: Source) -> tuple[int, int, int, int]:
    """Rows and columns on view: top, bottom, left, right."""
    sizes = sizes_of(source)
    return view.window or (0, sizes[view.y or ""], 0, sizes[view.x or ""])


def picture_step(view: View, source: Source) -> int:
    """Every how many pixels are sent: 1 unless the region is larger than a screen."""
    top, bottom, left, right = extent(view, source)
    return max(1, math.ceil(max(bottom - top, right - left) / MOST_SIDE))


def region(view: View, source: Source) -> dict[str, int | slice]:
    """What is read, by dim: an index where a dim is left out of the drawing, else a slice."""
    sizes = sizes_of(source)
    parts: dict[str, int | slice] = {dim: view.index[dim] for dim in source.dims if dim in view.index}
    if view.kind == "image":
        assert view.x is not None
        assert view.y is not None
        top, bottom, left, right = extent(view, source)
        step = picture_step(view, source)
        parts |= {view.y: slice(top, bottom, step), view.x: slice(left, right, step)}
        if view.color:
            parts[view.color] = slice(0, 3)
        if view.facet:
            parts[view.facet] = page(view, source)
    elif view.kind == "table":
        if view.y:
            parts[view.y] = slice(view.start, min(view.start + ROWS, sizes[view.y]))
        if view.x:
            parts[view.x] = slice(0, min(COLUMNS, sizes[view.x]))
    else:
        for dim in (view.x, view.y):
            if dim:
                step = max(1, math.ceil(sizes[dim] / MOST_POINTS)) if view.kind == "line" else 1
                parts[dim] = slice(0, sizes[dim], step)
        if view.color:
            parts[view.color] = slice(0, min(MOST_CURVES, sizes[view.color]))
    return {dim: parts[dim] for dim in source.dims}


def slicing_code(view: View, source: Source) -> str:
    """Python that gives what is on view: labels where dims have unique ones, positions elsewhere."""
    by_label: dict[str, str] = {}
    by_place: dict[str, str] = {}
    for dim, part in region(view, source).items():
        if isinstance(part, slice):
            whole = (part.start, part.stop, part.step or 1) == (0, sizes_of(source)[dim], 1)
            if not whole:
                step = f", {part.step}" if part.step not in (None, 1) else ""
                by_place[dim] = f"slice({part.start}, {part.stop}{step})"
            continue
        label = _label(source, dim, part)
        (by_place if label is None else by_label)[dim] = str(part) if label is None else label
    code = source.opening()
    if by_label:
        code += f".sel({_arguments(by_label)})"
    if by_place:
        code += f".isel({_arguments(by_place)})"
    return code


def _label(source: Source, dim: str, index: int) -> str | None:
    labels = source.labels(dim)
    if labels is None or dim == "run" or labels.dtype.kind not in "iuOUb" or len(labels) > 100_000:
        return None  # numbers with fractions are found by position: as text they may be another number
    wanted = labels[index]
    if isinstance(wanted, str) and (len(wanted) > LONGEST_LABEL or not wanted.isprintable()):
        return None
    if np.count_nonzero(labels == wanted) != 1:
        return None
    return repr(wanted.item() if hasattr(wanted, "item") else wanted)


def _arguments(parts: Mapping[str, str]) -> str:
    if all(name.isidentifier() for name in parts):
        return ", ".join(f"{name}={value}" for name, value in parts.items())
    return "{" + ", ".join(f"{name!r}: {value}" for name, value in parts.items()) + "}"


def spelled(view: Mapping[str, Any]) -> View:
    """A view as a front end sends it.

    Raises:
        InputError: it is none.
    """
    try:
        return View.model_validate(dict(view))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            ".".join(map(str, first["loc"])), expected=first["msg"], got=repr(first.get("input"))[:100]
        ) from None
