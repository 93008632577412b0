"""How the arrays of a run lie in the store, as a table: dims, chunks (what is read together), files, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.render.html import notebook_fragment
from workbench.render.markup import Html, element
from workbench.render.sections import table_html
from workbench.render.texts import bytes_text

__all__ = ["arrays_html", "layout_table"]


def arrays_html(arrays: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """The arrays of a run as a table."""
    if not names:
        return notebook_fragment(element("div", "No arrays are stored.", class_="wb-dim"))
    return notebook_fragment(layout_table(arrays, names))


def layout_table(arrays: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Html:
    """One row per array of `names`; `arrays` are the entries of the run's record."""
    rows = []
    for name in names:
        entry = arrays[name]
        sizes = [f"{dim} {size:,}" for dim, size in zip(entry["dims"], entry["shape"], strict=True)]
        units = f"[{entry['units']}]" if entry.get("units") else ""
        row = (
            element("code", name),
            " × ".join(sizes) or "one number",
            "text" if entry["dtype"] == "string" else entry["dtype"],
            " × ".join(f"{part:,}" for part in entry["chunk"]),
            f"{entry['files']:,}",
            bytes_text(entry["bytes"]),
            " ".join(str(part) for part in (entry.get("description"), units) if part),
        )
        rows.append(row)
    columns = ("array", "dims", "dtype", "chunk", "files", "size", "what")
    return table_html(columns, rows, (False, False, False, False, True, True, False))
