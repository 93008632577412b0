"""Histograms of arrays that may be far larger than memory: counted block by block, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.render.parts import GROUPS, caption, group_name, spread, value_label
from workbench.render.plots import Axis, Distribution, HistogramPlot
from workbench.render.reading import BLOCK, Reader, blocks, load, numbers
from workbench.render.texts import label_text, plain_name
from workbench.report import Histogram

if TYPE_CHECKING:
    import xarray as xr

    from workbench.render.plots import Floats

__all__ = ["resolve_histogram"]


@dataclass
class _Source:
    """An array to count: as one group, or split by `labels` into one group per entry of `distinct`."""

    array: xr.DataArray
    names: list[str]
    labels: xr.DataArray | None = None
    distinct: list[Any] | None = None
    kept: Floats | None = None

    def blocks(self, title: str) -> Iterator[list[Floats]]:
        """Per block one flat array of values per group. What fits into one block is read once."""
        for region in blocks(self.array):
            values = self.kept if self.kept is not None else numbers(self.array.isel(region), title)
            if self.array.size <= BLOCK:
                self.kept = values
            if self.labels is None or self.distinct is None:
                yield [values.ravel()]
                continue
            # Labels lack some dims of the values: an axis of length 1 stands for each of those.
            labels = self.labels.transpose(*[dim for dim in self.array.dims if dim in self.labels.dims])
            part = load(labels.isel({dim: where for dim, where in region.items() if dim in labels.dims}))
            lengths = iter(part.shape)
            part = part.reshape([next(lengths) if dim in labels.dims else 1 for dim in self.array.dims])
            part = np.broadcast_to(part, values.shape)
            yield [values[part == label] for label in self.distinct]


def resolve_histogram(view: Histogram, reader: Reader) -> HistogramPlot:
    """Two passes: the range of the values that can be drawn, then exact counts in shared bins."""
    sources = [source for name in view.values for source in _sources(view, name, reader)]
    low, high, dropped = np.inf, -np.inf, 0
    for source in sources:
        for group in source.blocks(view.title):
            for values in group:
                good = _drawable(values, view.log_x)
                dropped += values.size - good.size
                if good.size:
                    low, high = min(low, float(good.min())), max(high, float(good.max()))
    if dropped:
        what = "not finite or not above 0" if view.log_x else "not finite"
        reader.notes.append(f"{dropped:,} values are {what} and left out.")
    edges = _edges(low, high, view, all(source.array.dtype.kind in "biu" for source in sources))
    distributions: list[Distribution] = []
    for source in sources:
        counts = np.zeros((len(source.names), len(edges) - 1), dtype=np.int64)
        for group in source.blocks(view.title):
            counts += np.array([np.histogram(_drawable(values, view.log_x), edges)[0] for values in group])
        distributions += [Distribution(name, row) for name, row in zip(source.names, counts, strict=True)]
    shares = len({distribution.total for distribution in distributions}) > 1
    return HistogramPlot(
        view.title,
        caption(view.caption, reader),
        Axis(value_label(view.x_label, view.values, sources[0].array) if sources else view.x_label, view.log_x),
        Axis("share of group" if shares else "count", view.log_y),
        edges,
        tuple(distributions),
        shares,
        plain_name(view.by) if view.by else "",
    )


def _drawable(values: Floats, log: bool) -> Floats:
    return values[np.isfinite(values) & (values > 0)] if log else values[np.isfinite(values)]


def _sources(view: Histogram, name: str, reader: Reader) -> list[_Source]:
    array = reader.array(name)
    several = len(view.values) > 1
    if view.by is None or view.by in array.dims:
        return [_Source(part, [group_name(name, text, several)]) for text, part in spread(array, view.by, reader)]
    labels = reader.array(view.by)
    if not set(labels.dims) <= set(array.dims):
        raise reader.error(
            "by",
            expected=f"a dim of {name!r} or an array over some of ({', '.join(map(str, array.dims))})",
            got=f"{view.by!r} over ({', '.join(map(str, labels.dims))})",
        )
    labels = labels.compute()
    distinct = sorted(set(np.ravel(labels.values).tolist()), key=lambda label: (str(type(label)), label))
    if len(distinct) > GROUPS:
        reader.notes.append(f"The first {GROUPS} of {len(distinct):,} groups of {view.by} are drawn.")
        distinct = distinct[:GROUPS]
    names = [group_name(name, _group_text(view.by, label), several) for label in distinct]
    return [_Source(array, names, labels, distinct)]


def _group_text(by: str, label: Any) -> str:
    if isinstance(label, bool):
        return plain_name(by) if label else f"not {plain_name(by)}"
    return label_text(label)


def _edges(low: float, high: float, view: Histogram, whole: bool) -> Floats:
    """Shared bin edges; whole numbers get bins of whole width around them."""
    if not low <= high:
        return np.array([0.0, 1.0])
    if view.log_x:
        low, high = (low / 2, high * 2) if low == high else (low, high)
        edges = np.geomspace(low, high, view.bins + 1)
        edges[0], edges[-1] = low, high  # rounding must not push the extremes out
        return edges
    if whole:
        width = max(1, int(np.ceil((high - low + 1) / view.bins)))
        return np.arange(low - 0.5, high + 0.5 + width, width)
    if low == high:
        return np.linspace(low - 0.5, high + 0.5, view.bins + 1)
    edges = np.linspace(low, high, view.bins + 1)
    return edges if (np.diff(edges) > 0).all() else np.array([low - 0.5, high + 0.5])
