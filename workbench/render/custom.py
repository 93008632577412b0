"""Views that plugins bring: drawn by the plugin, or, where it is missing, a table of what they would draw.

A drawing that fails is replaced by a sentence that says so: a plugin must not take the rest of a report with it.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.render import palette
from workbench.render.interactive_layout import make_figure, plain, style, wrapped
from workbench.render.parts import caption
from workbench.render.plots import CustomPlot, DataTable, TablesPlot
from workbench.render.reading import Reader, dim_labels, load
from workbench.render.static_axes import HEIGHT, WIDTH
from workbench.render.static_axes import plain as printed
from workbench.render.texts import cell_texts, label_text, plain_name
from workbench.report import CustomView, UnknownView

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = [
    "custom_drawing",
    "custom_figure",
    "draw_custom",
    "draw_tables",
    "interactive_drawing",
    "resolve_custom",
    "resolve_unknown",
    "tables_figure",
]

ENTRIES = 4_000_000
"""Most entries of one array that are handed to a plugin (32 MB as float64)."""
ROWS = 100
"""Most rows of a table in place of a view."""
PICTURED_ROWS = 12
"""Most of them in a picture."""


# ------------------------------------------------------------------------------------------------------------- reading


def resolve_custom(view: CustomView, reader: Reader) -> CustomPlot:
    """Read the arrays that a plugin's view asks for.

    Raises:
        OutputError: one is not stored.
        InputError: one is too large to draw.
    """
    data = {}
    for name in view.arrays:
        array = reader.array(name)
        if array.size > ENTRIES:
            raise reader.error(
                name,
                expected=f"at most {ENTRIES:,} entries",
                got=f"{array.size:,}",
                hint="Fix dims with select, or store a summary.",
            )
        data[name] = array.load()
    return CustomPlot(view.title, caption(view.caption, reader), view, data)


def resolve_unknown(view: UnknownView, reader: Reader) -> TablesPlot:
    """The first entries of the arrays that a view would draw; those over the same dims share a table."""
    shared: dict[tuple[str, ...], dict[str, xr.DataArray]] = {}
    for name in view.arrays:
        array = reader.array(name)
        shared.setdefault(tuple(f"{dim} {array.sizes[dim]}" for dim in array.dims), {})[name] = array
    tables = tuple(_table(arrays, reader) for arrays in shared.values())
    message = f"This is a figure of the kind {view.kind!r}, but {view.reason}." + (" Its data:" if tables else "")
    return TablesPlot(view.title, caption(view.caption, reader), message, tables)


def _table(arrays: dict[str, xr.DataArray], reader: Reader) -> DataTable:
    first = next(iter(arrays.values()))
    dims = [str(dim) for dim in first.dims]
    total, most, kept = first.size, ROWS, {}
    for dim in reversed(dims):  # the last dim runs fastest
        kept[dim] = slice(0, min(first.sizes[dim], max(most, 1)))
        most //= max(first.sizes[dim], 1)
    values = {name: load(array.isel(kept)).reshape(-1)[:ROWS] for name, array in arrays.items()}
    count = len(next(iter(values.values())))
    if count < total:
        reader.notes.append(f"The first {count:,} of {total:,} entries of {', '.join(map(plain_name, arrays))}.")
    part = first.isel(kept)
    places = np.unravel_index(np.arange(count), part.shape) if dims else ()
    labels = []
    for dim, where in zip(dims, places, strict=True):
        known = dim_labels(part, dim)
        labels.append([label_text(entry) for entry in (where if known is None else known[where])])
    columns = [cell_texts([_cell(value) for value in column]) for column in values.values()]
    names = (*map(plain_name, dims), *map(plain_name, arrays))
    return DataTable(names, tuple(zip(*labels, *columns, strict=True)))


def _cell(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, bool | int | float) else label_text(value)


# -------------------------------------------------------------------------------------------------- drawn by the plugin


def custom_drawing(plot: CustomPlot, figure: Figure) -> None:
    """Let the plugin draw on a matplotlib figure; whatever it raises, now or when the figure is laid out."""
    plot.view.draw(plot.data, figure)
    figure.draw_without_rendering()


def draw_custom(plot: CustomPlot, figure: Figure) -> None:
    """The plugin's drawing, or a sentence in its place."""
    try:
        custom_drawing(plot, figure)
    except Exception as error:
        figure.clear()
        figure.set_size_inches(WIDTH, HEIGHT)
        figure.text(
            0.5, 0.5, _paragraph(_apology(plot, error)), ha="center", va="center", fontsize=8, color=palette.MUTED
        )


def custom_figure(plot: CustomPlot) -> go.Figure:
    """The plugin's plotly figure, or a sentence in its place."""
    try:
        return interactive_drawing(plot)
    except Exception as error:
        return _sentence(_apology(plot, error))


def interactive_drawing(plot: CustomPlot) -> go.Figure:
    """Let the plugin make a plotly figure; whatever it raises.

    Raises:
        TypeError: what it returned is none.
    """
    import plotly.graph_objects as go

    made = plot.view.interact(plot.data)
    if not isinstance(made, go.Figure):
        raise TypeError(f"interact returned a {type(made).__name__}, not a plotly figure")
    made.to_json()  # what cannot be sent to a notebook fails here
    looks = make_figure([], height=int(made.layout.height or 400)).layout
    made.update_layout(
        {name: looks[name] for name in ("template", "colorway", "font", "paper_bgcolor", "plot_bgcolor", "height")}
    )
    return made


def _sentence(text: str) -> go.Figure:
    made = make_figure([], height=200)
    made.layout.annotations = ()
    made.add_annotation(text=wrapped(text, 90), showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    made.update_xaxes(visible=False)
    made.update_yaxes(visible=False)
    return made


def _apology(plot: CustomPlot, error: Exception) -> str:
    return f"The plugin that draws {plot.view.kind!r} failed: {type(error).__name__}: {error}"


# ------------------------------------------------------------------------------------------------- a table in its place


def draw_tables(plot: TablesPlot, figure: Figure) -> None:
    """Message and first rows as a picture."""
    rows = [table.rows[:PICTURED_ROWS] for table in plot.tables]
    figure.set_figheight(0.7 + sum(0.24 * (len(part) + 2) for part in rows))
    grid = figure.subplots(len(rows) + 1, 1, squeeze=False, height_ratios=[2, *(len(part) + 2 for part in rows)])
    for axes in grid[:, 0]:
        axes.axis("off")
    grid[0, 0].text(0, 0.5, _paragraph(plot.message), va="center", fontsize=8, color=palette.MUTED)
    for axes, table, part in zip(grid[1:, 0], plot.tables, rows, strict=True):
        cells = [[printed(str(cell), 28) for cell in row] for row in part] or [[""] * len(table.columns)]
        columns = [printed(name, 28) for name in table.columns]
        drawn = axes.table(
            cells, colLabels=columns, loc="upper left", cellLoc="left", colLoc="left", edges="horizontal"
        )
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(8)
        for cell in drawn.get_celld().values():
            cell.set_edgecolor(palette.GRID)


def _paragraph(text: str) -> str:
    return "\n".join(textwrap.wrap(printed(text, 300), 80))


def tables_figure(plot: TablesPlot) -> go.Figure:
    """Message and tables as a plotly figure."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if not plot.tables:
        return _sentence(plot.message)
    specs = [[{"type": "table"}] for _ in plot.tables]
    made = make_subplots(rows=len(plot.tables), cols=1, specs=specs, vertical_spacing=0.04)
    for index, table in enumerate(plot.tables, start=1):
        columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
        made.add_trace(
            go.Table(
                header={"values": [plain(name, 40) for name in table.columns], "align": "left"},
                cells={"values": [[plain(str(cell), 60) for cell in cells] for cells in columns], "align": "left"},
            ),
            row=index,
            col=1,
        )
    style(made, 160 + 240 * len(plot.tables))
    made.update_layout(margin={"l": 24, "r": 24, "t": 96, "b": 16})
    place = {"x": 0, "y": 1.0, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    made.add_annotation(text=wrapped(plot.message, 110), showarrow=False, align="left", **place)
    return made
