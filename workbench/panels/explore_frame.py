"""From a view to what is sent to the front end: only the region on view is read, and it stays numbers until it is drawn.

Pictures are handed over as they are stored (uint8, or float32) so that hover texts tell values; colours are the front
end's business. A frame is a JSON part and a list of buffers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.panels.explore_sources import RunArrays, Source, sizes_of
from workbench.panels.explore_view import View, extent, page_size, picture_step, region, settled, slicing_code
from workbench.render.markup import visible
from workbench.render.texts import cell_texts, label_text

__all__ = ["Frame", "color_maps", "make_frame", "spec"]

SEQUENTIAL = ("gray", "cividis", "viridis", "magma")
DIVERGING = ("RdBu_r", "PuOr_r")
MOST_CLASSES = 12
"""An overlay of whole numbers with at most this many classes is a mask: one colour each, 0 is transparent."""
BINS = 64


def _text(label: Any, most: int = 300) -> str:
    """A label for the front end: without marks that reorder or hide text, and of a bearable length."""
    return visible(label_text(label), most)


@dataclass(frozen=True)
class Frame:
    """What is drawn: `info` (JSON) and, for pictures, the buffers it describes."""

    info: dict[str, Any]
    buffers: list[bytes] = field(default_factory=list)


def color_maps() -> dict[str, list[int]]:
    """256 colours (r, g, b, r, g, b, ...) of each colour map on offer; none needs red told from green."""
    from matplotlib import colormaps

    return {
        name: (colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(int).ravel().tolist()
        for name in (*SEQUENTIAL, *DIVERGING)
    }


def spec(arrays: RunArrays, source: Source, view: View) -> dict[str, Any]:
    """What the controls offer for an array."""
    sizes = sizes_of(source)
    entry = arrays.entry(source.name)
    return {
        "array": source.name,
        "dims": [
            {"name": dim, "size": size, "labelled": source.labels(dim) is not None} for dim, size in sizes.items()
        ],
        "dtype": "text" if source.dtype.kind == "O" else str(source.dtype),
        "units": source.units,
        "description": source.description,
        "bytes": entry["bytes"],
        "chunk": list(entry["chunk"]),
        "shard": list(entry["shard"] or ()),
        "numeric": source.dtype.kind in "biuf",
        "diverging": False,
        "view": view.model_dump(mode="json"),
    }


def make_frame(view: View, source: Source, arrays: RunArrays) -> Frame:
    """Read what is on view.

    Raises:
        InputError: the view names dims that the array lacks. IntegrityError: chunks are damaged or missing.
    """
    view = settled(view, source)
    before = arrays.bytes_read
    if 0 in source.shape:
        made = Frame({"kind": "empty"})
    else:
        made = {"image": _pictures, "line": _curves, "histogram": _histogram, "table": _table}[view.kind](
            view, source, arrays
        )
    info = {
        "view": view.model_dump(mode="json"),
        "places": _places(view, source),
        "page": page_size(view, source) if view.kind in ("image", "table") else 1,
        "code": slicing_code(view, source) if 0 not in source.shape else source.opening(),
        "read": arrays.bytes_read - before,
        "read_in_all": arrays.bytes_read,
        **made.info,
    }
    if view.kind == "image" and view.x and view.y:
        info["overlays"] = arrays.overlays(source, view.x, view.y)
        info["caption_choices"] = arrays.captions(source, view.facet) if view.facet else []
    return Frame(info, made.buffers)


def _places(view: View, source: Source) -> dict[str, str]:
    """Label of the entry at which each slider stands."""
    found = {}
    for dim, index in view.index.items():
        labels = source.labels(dim)
        if labels is not None and index < len(labels):
            found[dim] = _text(labels[index], 60)
    return found


def _shown(source: Source, parts: dict[str, int | slice]) -> int:
    """Bytes of the entries on view, as they are stored."""
    sizes = sizes_of(source)
    counts = (len(range(*part.indices(sizes[dim]))) if isinstance(part, slice) else 1 for dim, part in parts.items())
    return math.prod(counts) * (source.dtype.itemsize if source.dtype.kind in "biuf" else 1)


# ------------------------------------------------------------------------------------------------------------- pictures


def _pictures(view: View, source: Source, arrays: RunArrays) -> Frame:
    parts = region(view, source)
    order = [dim for dim in (view.facet, view.y, view.x, view.color) if dim]
    read, known = _thinned(view, source, arrays, parts, order)
    values = _sendable(read)
    if not view.facet:
        values = values[np.newaxis]
    limits = _limits(view, values, source.dtype)
    info: dict[str, Any] = {
        "kind": "image",
        "count": values.shape[0],
        "height": values.shape[1],
        "width": values.shape[2],
        "channels": values.shape[3] if view.color else 1,
        "type": str(values.dtype),
        "limits": limits,
        "step": picture_step(view, source),
        "extent": list(extent(view, source)),
        "square": {view.y, view.x} <= {"y", "x", "height", "width", "row", "column"},
        "shown": _shown(source, parts),
        "known": known,
        "titles": _titles(view, source),
        "ticks": {dim: _edges(source, dim) for dim in (view.y, view.x) if dim},
    }
    buffers = [values.tobytes()]
    if view.captions and view.facet and view.captions in arrays.captions(source, view.facet):
        part = parts[view.facet]
        assert isinstance(part, slice)
        info["captions"] = arrays.caption_texts(view.captions, part)
    if view.overlay and view.x and view.y and view.overlay in arrays.overlays(source, view.x, view.y):
        over, extra = _overlay(view, source, arrays, parts, values.shape[0])
        info["overlay"], info["shown"] = extra, info["shown"] + extra.pop("shown")
        info["known"] = min(known, extra.pop("known"))
        buffers.append(over.tobytes())
    return Frame(info, buffers)


def _thinned(
    view: View, source: Source, arrays: RunArrays, parts: dict[str, int | slice], order: list[str]
) -> tuple[np.ndarray, float]:
    """A region of pictures, and the share of it that is known: of a large one only some chunks are read at a time."""
    assert view.y is not None
    assert view.x is not None
    return arrays.overviews.read(source, arrays.chunk(source.name), parts, order, view.y, view.x)


def _ordered(source: Source, parts: dict[str, int | slice], order: list[str]) -> np.ndarray:
    values = source.read(tuple(parts[dim] for dim in source.dims))
    left = [dim for dim in source.dims if isinstance(parts[dim], slice)]
    return np.transpose(values, [left.index(dim) for dim in order])


def _sendable(values: np.ndarray) -> np.ndarray:
    """uint8 as it is, all else as float32."""
    if values.dtype in (np.bool_, np.uint8):
        return np.ascontiguousarray(values, dtype=np.uint8)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)


def _limits(view: View, values: np.ndarray, dtype: np.dtype[Any]) -> list[list[float]]:
    """Ends of the colour scale of each picture."""
    if view.scale == "full" and dtype == np.bool_:
        return [[0.0, 1.0]] * len(values)
    if view.scale == "full" and values.dtype == np.uint8:
        return [[0.0, 255.0]] * len(values)
    if view.scale == "full":
        low, high = _span(values, 0.0)
        return [[min(low, 0.0), max(high, 1.0)]] * len(values)  # 0..1, wider where the numbers are
    if view.scale == "each":
        return [list(_span(picture, view.clip)) for picture in values]
    return [list(_span(values, view.clip))] * len(values)


def _span(values: np.ndarray, clip: float) -> tuple[float, float]:
    finite = values.ravel() if values.dtype == np.uint8 else values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [clip, 100 - clip]) if clip > 0 else (finite.min(), finite.max())
    return float(low), float(high)


def _titles(view: View, source: Source) -> list[str]:
    """What each picture is of: the label of its facet."""
    if not view.facet:
        return [""]
    part = region(view, source)[view.facet]
    assert isinstance(part, slice)
    labels = source.labels(view.facet)
    places = range(part.start, part.stop)
    return [_text(labels[place]) if labels is not None else f"{view.facet} {place}" for place in places]


def _edges(source: Source, dim: str) -> list[str] | None:
    """First and last label of an axis that has labels."""
    labels = source.labels(dim)
    return None if labels is None or not len(labels) else [_text(labels[0]), _text(labels[-1])]


def _overlay(
    view: View, source: Source, arrays: RunArrays, parts: dict[str, int | slice], count: int
) -> tuple[np.ndarray, dict[str, Any]]:
    over = arrays.source(view.overlay or "")
    own = {dim: parts[dim] for dim in over.dims}
    order = [dim for dim in (view.facet, view.y, view.x) if dim and dim in over.dims]
    color = view.color if view.color in over.dims else None
    if color:
        own[color] = slice(0, 1)
    values, known = _thinned(view, over, arrays, own, [*order, *([color] if color else [])])
    values = values[..., 0] if color else values
    if values.ndim == 2:
        values = np.broadcast_to(values, (count, *values.shape))
    sent = _sendable(values)
    mask = False
    if values.dtype.kind in "biu":
        classes = np.unique(sent)
        mask = len(classes) <= MOST_CLASSES and classes.min() >= 0 and classes.max() <= 255
        sent = sent.astype(np.uint8) if mask else sent
    return np.ascontiguousarray(sent), {
        "name": over.name,
        "type": str(sent.dtype),
        "mask": bool(mask),
        "limits": list(_span(sent, view.clip)),
        "shown": _shown(over, own),
        "known": known,
    }


# ------------------------------------------------------------------------------------------------- curves, counts, cells


def _curves(view: View, source: Source, arrays: RunArrays) -> Frame:
    assert view.x is not None
    parts = region(view, source)
    values = _ordered(source, parts, [dim for dim in (view.color, view.x) if dim])
    rows = values if view.color else values[np.newaxis]
    part = parts[view.x]
    assert isinstance(part, slice)
    labels = source.labels(view.x)
    places = np.arange(sizes_of(source)[view.x])[part]
    numeric = labels is None or labels.dtype.kind in "iuf"
    x = places if labels is None or not numeric else labels[part]
    notes = []
    if (part.step or 1) > 1:
        notes.append(f"One in {part.step} of the {sizes_of(source)[view.x]:,} entries along {view.x} is drawn.")
    if view.color and sizes_of(source)[view.color] > len(rows):
        notes.append(f"The first {len(rows)} of {sizes_of(source)[view.color]:,} entries of {view.color} are drawn.")
    return Frame(
        {
            "kind": "line",
            "x": _numbers(x if numeric else np.arange(len(places))),
            "categories": None if numeric else [_text(label) for label in np.asarray(labels)[part]],
            "curves": [
                {"name": name, "y": _numbers(row)}
                for name, row in zip(_groups(view, source, len(rows)), rows, strict=True)
            ],
            "x_label": view.x,
            "y_label": f"{source.name} [{source.units}]" if source.units else source.name,
            "notes": notes,
            "shown": _shown(source, parts),
        }
    )


def _groups(view: View, source: Source, count: int) -> list[str]:
    if not view.color:
        return [""]
    labels = source.labels(view.color)
    return [_text(labels[i]) if labels is not None else f"{view.color} {i}" for i in range(count)]


def _numbers(values: np.ndarray) -> list[float | None]:
    """JSON numbers; None where there is no value."""
    return [float(value) if math.isfinite(value) else None for value in np.asarray(values, dtype=np.float64)]


def _histogram(view: View, source: Source, arrays: RunArrays) -> Frame:
    parts = region(view, source)
    order = [dim for dim in (view.color, view.y, view.x) if dim]
    values = _ordered(source, parts, order).astype(np.float64)
    rows = values.reshape(len(values) if view.color else 1, -1)
    finite = rows[np.isfinite(rows)]
    low, high = _span(finite, view.clip)
    if source.dtype.kind in "biu" and high - low < BINS:
        edges = np.arange(np.floor(low), np.floor(high) + 2) - 0.5  # one bar per whole number
    else:
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = [np.histogram(row[np.isfinite(row)], edges)[0] for row in rows]
    outside = int(finite.size - sum(int(row.sum()) for row in counts))
    notes = []
    if outside:
        notes.append(f"{outside:,} values lie outside of the percentiles drawn.")
    if rows.size > finite.size:
        notes.append(f"{rows.size - finite.size:,} entries are no finite numbers.")
    return Frame(
        {
            "kind": "histogram",
            "edges": _numbers(edges),
            "curves": [
                {"name": name, "y": [int(n) for n in row]}
                for name, row in zip(_groups(view, source, len(rows)), counts, strict=True)
            ],
            "x_label": f"{source.name} [{source.units}]" if source.units else source.name,
            "y_label": "entries",
            "notes": notes,
            "mean": float(finite.mean()) if finite.size else None,
            "deviation": float(finite.std()) if finite.size else None,
            "total": int(rows.size),
            "shown": _shown(source, parts),
        }
    )


def _table(view: View, source: Source, arrays: RunArrays) -> Frame:
    parts = region(view, source)
    order = [dim for dim in (view.y, view.x) if dim]
    values = _ordered(source, parts, order) if source.dims else source.read(())
    cells = np.atleast_1d(np.asarray(values))
    cells = cells.reshape(len(cells), -1) if view.y or not view.x else cells.reshape(1, -1)
    columns = [cell_texts([_plain(value) for value in column]) for column in cells.T]
    return Frame(
        {
            "kind": "table",
            "rows": [list(row) for row in zip(*columns, strict=True)],
            "row_labels": _axis(view.y, source, parts),
            "column_labels": _axis(view.x, source, parts),
            "numeric": source.dtype.kind in "biuf",
            "row_dim": view.y,
            "column_dim": view.x,
            "shown": _shown(source, parts),
        }
    )


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, (bool, int, float)) else _text(value)


def _axis(dim: str | None, source: Source, parts: dict[str, int | slice]) -> list[str]:
    if dim is None:
        return [source.name]
    part = parts[dim]
    assert isinstance(part, slice)
    labels = source.labels(dim)
    return [_text(labels[i]) if labels is not None else str(i) for i in range(part.start, part.stop)]
