"""Reading for views: find an array, fix dims by label or position, thin what is too much to draw, and only then load.

Everything that touches stored data for drawing is here. Arrays stay lazy until `load`: what is read is what is drawn.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError, OutputError
from workbench.render.texts import label_text, plain_name

if TYPE_CHECKING:
    import xarray as xr

    from workbench.method import Result

__all__ = ["Reader", "blocks", "dim_labels", "dim_texts", "load", "numbers", "thin"]

BLOCK = 4_000_000
"""Entries read at once where an array is worked through block by block (32 MB as float64)."""


class Reader:
    """Arrays of a result for one view, with the view's `select` applied; `notes` collects what the caption must say."""

    def __init__(self, title: str, result: Result, select: Mapping[str, Any]) -> None:
        self.title, self.result, self.select = title, result, select
        self.notes: list[str] = []
        self._unused = set(select)

    def error(self, what: str, *, expected: str, got: str, hint: str = "") -> InputError:
        """An error about one field of the view, for raising."""
        return InputError(f"view {self.title!r}: {what}", expected=expected, got=got, hint=hint)

    def array(self, name: str) -> xr.DataArray:
        """The stored array or series `name` with dims fixed by `select`, still lazy.

        Raises:
            OutputError: nothing of this name is stored.
            InputError: `select` asks for a label or position that the array does not have.
        """
        array = self._stored(name)
        for dim, wanted in self.select.items():
            if dim in array.dims:
                self._unused.discard(dim)
                array = array.isel({dim: self._positions(array, dim, wanted)})
        return array

    def has(self, name: str) -> bool:
        """Whether an array or series of this name is stored."""
        if name.startswith("series/"):
            return name.removeprefix("series/") in self.result.series
        return name in self.result

    def finish(self) -> None:
        """Raise InputError if an entry of `select` fits no array of the view (a typing error in a report)."""
        if self._unused:
            raise self.error(
                "select",
                expected="dims of the arrays in the view",
                got=", ".join(repr(dim) for dim in sorted(self._unused)),
            )

    def only(self, array: xr.DataArray, name: str, *dims: str) -> xr.DataArray:
        """`array` reduced and ordered to `dims`; leftover dims of length 1 are dropped.

        Raises:
            InputError: a dim is missing, or a leftover dim has more than one entry.
        """
        missing = [dim for dim in dims if dim not in array.dims]
        if missing:
            raise self.error(
                name,
                expected=f"an array with dim {', '.join(map(repr, missing))}",
                got=f"dims ({', '.join(map(str, array.dims))})",
            )
        leftover = [str(dim) for dim in array.dims if dim not in dims]
        long = [dim for dim in leftover if array.sizes[dim] != 1]
        if long:
            raise self.error(
                name,
                expected=f"dims ({', '.join(dims)})",
                got=f"({', '.join(f'{dim}: {array.sizes[dim]}' for dim in array.dims)})",
                hint=f"Fix {', '.join(map(repr, long))} with select.",
            )
        return array.isel(dict.fromkeys(leftover, 0)).transpose(*dims)

    def _stored(self, name: str) -> xr.DataArray:
        if name.startswith("series/"):
            series, short = self.result.series, name.removeprefix("series/")
            if short not in series:
                logged = ", ".join(map(str, series)) or "none"
                raise OutputError(f"view {self.title!r}: no time series {short!r} was logged (logged: {logged})")
            return series[short]
        if name not in self.result:
            raise OutputError(f"view {self.title!r}: no array {name!r} is stored in this run")
        return self.result[name]

    def _positions(self, array: xr.DataArray, dim: str, wanted: Any) -> int | list[int]:
        if isinstance(wanted, (list, tuple)):
            return [self._position(array, dim, item) for item in wanted]
        return self._position(array, dim, wanted)

    def _position(self, array: xr.DataArray, dim: str, wanted: Any) -> int:
        labels, size = dim_labels(array, dim), array.sizes[dim]
        argument = f"select[{dim!r}]"
        if labels is None:
            if isinstance(wanted, bool) or not isinstance(wanted, (int, np.integer)) or not -size <= wanted < size:
                range_text = f"a position in 0..{size - 1}" if size else "no position"
                raise self.error(argument, expected=f"{range_text} ({dim!r} has no labels)", got=repr(wanted))
            return int(wanted) % size
        if labels.dtype.kind in "iuf" and isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
            close = 1e-6 if labels.dtype.itemsize < 8 and labels.dtype.kind == "f" else 1e-9  # 0.1 of a float32 label
            found = np.flatnonzero(np.isclose(labels.astype(np.float64), wanted, rtol=close, atol=0.0))
        else:
            found = np.flatnonzero(np.array([_plain(label) == _plain(wanted) for label in labels], dtype=bool))
        if len(found) != 1:
            known = ", ".join(label_text(label) for label in labels[:8]) + (", ..." if len(labels) > 8 else "")
            problem = f"{wanted!r} ({len(found)} times)" if len(found) else repr(wanted)
            raise self.error(argument, expected=f"one label of {dim!r}: {known}", got=problem)
        return int(found[0])


def _plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label


def dim_labels(array: xr.DataArray, dim: str) -> NDArray[Any] | None:
    """The coordinate of a dim (n,), or None where it has none. Dates become strings."""
    if dim not in array.coords or array.coords[dim].dims != (dim,):
        return None
    labels = np.asarray(array.coords[dim].values)
    return labels.astype(str) if labels.dtype.kind in "mM" else labels


def dim_texts(array: xr.DataArray, dim: str, *, named: bool = False) -> tuple[str, ...]:
    """One text per entry of a dim: its labels, or positions; `named` puts the dim before numbers (`bit 4`)."""
    labels = dim_labels(array, dim)
    entries = np.arange(array.sizes[dim]) if labels is None else labels
    prefix = f"{plain_name(dim)} " if named and entries.dtype.kind in "iuf" else ""
    return tuple(prefix + label_text(label) for label in entries)


def thin(array: xr.DataArray, dim: str, most: int, *, log: bool = False) -> tuple[xr.DataArray, str]:
    """Keep about `most` entries of a dim, spread evenly (`log`: evenly in the logarithm of the position), still lazy.

    Returns:
        The array and what to say in the caption ("" if nothing was dropped).
    """
    size = array.sizes[dim]
    if size <= most:
        return array, ""
    of = f"of {size:,} entries of {dim}"
    if log:
        kept = np.unique(np.round(np.geomspace(1, size, most)).astype(np.int64)) - 1
        return array.isel({dim: kept}), f"{len(kept):,} {of} are drawn, closer at the start."
    every = -(-size // most)
    return array.isel({dim: slice(None, None, every)}), f"Every {_ordinal(every)} {of} is drawn."


def _ordinal(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{suffix}"


def load(array: xr.DataArray) -> NDArray[Any]:
    """Read the (already selected and thinned) array."""
    return np.asarray(array.values)


def numbers(array: xr.DataArray, title: str) -> NDArray[np.float64]:
    """Read as float64.

    Raises:
        InputError: the array holds no real numbers.
    """
    values = load(array)
    if values.dtype.kind not in "biuf":
        raise InputError(f"view {title!r}: {array.name}", expected="an array of numbers", got=f"dtype {values.dtype}")
    return values.astype(np.float64)


def blocks(array: xr.DataArray, most: int = BLOCK) -> Iterator[dict[Hashable, slice]]:
    """Regions that cover the array once, each of at most `most` entries, along its chunks where they are known."""
    yield from _blocks(list(array.dims), list(array.shape), _chunk_lengths(array), most)


def _blocks(
    dims: Sequence[Hashable], shape: Sequence[int], chunks: Mapping[Hashable, int], most: int
) -> Iterator[dict[Hashable, slice]]:
    if not dims or int(np.prod(shape, dtype=np.int64)) <= most:
        yield {dim: slice(0, length) for dim, length in zip(dims, shape, strict=True)}
        return
    rest = int(np.prod(shape[1:], dtype=np.int64))
    length = max(1, most // max(rest, 1))
    chunk = chunks.get(dims[0], 1)
    if length > chunk:
        length -= length % chunk
    for start in range(0, shape[0], length):
        part = {dims[0]: slice(start, min(start + length, shape[0]))}
        for inner in _blocks(dims[1:], shape[1:], chunks, most) if rest > most else [_whole(dims[1:], shape[1:])]:
            yield part | inner


def _whole(dims: Sequence[Hashable], shape: Sequence[int]) -> dict[Hashable, slice]:
    return {dim: slice(0, length) for dim, length in zip(dims, shape, strict=True)}


def _chunk_lengths(array: xr.DataArray) -> dict[Hashable, int]:
    preferred = array.encoding.get("preferred_chunks") or {}
    if preferred:
        return {dim: int(length) for dim, length in preferred.items() if isinstance(length, (int, np.integer))}
    chunks = array.encoding.get("chunks")
    if chunks and len(chunks) == array.ndim:
        return dict(zip(array.dims, map(int, chunks), strict=True))
    return {}
