"""Plots as interactive figures: plotly, on a white card that turns dark with the notebook (`interactive_theme`).

Numbers are handed over as plain lists, which every front end's plotly can read (older ones do not know plotly 6's packed
arrays). Texts are escaped, because plotly takes `<b>`, `<a>` and dollars in them for markup.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.render import palette
from workbench.render.custom import custom_figure, tables_figure
from workbench.render.interactive_layout import (
    as_list,
    axis_layout,
    color_bar,
    legend_layout,
    make_figure,
    plain,
    style,
    translucent,
    wrapped,
)
from workbench.render.plots import (
    Axis,
    BarPlot,
    CustomPlot,
    HeatMapPlot,
    HistogramPlot,
    ImageGridPlot,
    LinePlot,
    PicturePlot,
    Plot,
    ReliabilityPanel,
    ReliabilityPlot,
    ScatterPlot,
    TablesPlot,
)
from workbench.render.texts import number_text, power_text, value_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.render.plots import Floats

__all__ = ["figure"]

_HOVER_POINTS = "%{xaxis.title.text}: %{x}<br>%{yaxis.title.text}: %{y}"


def figure(plot: Plot) -> go.Figure:
    """The plot as a plotly figure that can be changed further."""
    kinds: dict[type, Callable[[Any], go.Figure]] = {
        LinePlot: _line,
        BarPlot: _bar,
        HeatMapPlot: _heat_map,
        HistogramPlot: _histogram,
        ScatterPlot: _scatter,
        ImageGridPlot: _image_grid,
        ReliabilityPlot: _reliability,
        PicturePlot: _picture,
        CustomPlot: custom_figure,
        TablesPlot: tables_figure,
    }
    made = kinds[type(plot)](plot)
    made.update_layout(
        title={"text": f"<b>{plain(plot.title, 90)}</b>", "font": {"size": 15}, "x": 0.01, "xanchor": "left"}
    )
    return made


# -------------------------------------------------------------------------------------------------------------- kinds


def _line(plot: LinePlot) -> go.Figure:
    import plotly.graph_objects as go

    traces: list[Any] = []
    for index, curve in enumerate(plot.curves):
        color = palette.color(index)
        group = f"curve {index}"
        if curve.lower is not None and curve.upper is not None:
            # A gap in a band needs a polygon of its own: plotly would close it across the gap.
            for run in _runs(np.isfinite(curve.x) & np.isfinite(curve.lower) & np.isfinite(curve.upper)):
                x, lower, upper = curve.x[run], curve.lower[run], curve.upper[run]
                traces.append(
                    go.Scatter(
                        x=as_list(np.concatenate([x, x[::-1]])),
                        y=as_list(np.concatenate([lower, upper[::-1]])),
                        fill="toself",
                        fillcolor=translucent(color, 0.18),
                        mode="none",
                        line={"width": 0},
                        hoverinfo="skip",
                        showlegend=False,
                        legendgroup=group,
                    )
                )
        else:
            traces += [
                go.Scatter(
                    x=as_list(curve.x), y=as_list(edge), mode="lines", line={"color": color, "width": 1, "dash": "dot"},
                    hoverinfo="skip", showlegend=False, legendgroup=group,
                )
                for edge in (curve.lower, curve.upper)
                if edge is not None
            ]  # fmt: skip
        traces.append(
            go.Scatter(
                x=as_list(curve.x),
                y=as_list(curve.y),
                mode="lines+markers" if plot.markers else "lines",
                line={"color": color, "width": 2, "dash": palette.dash(index)},
                marker={"size": 6},
                name=plain(curve.name, 30) or "value",
                legendgroup=group,
                connectgaps=False,
            )
        )
    return make_figure(
        traces,
        xaxis=axis_layout(plot.x),
        yaxis=axis_layout(plot.y),
        hovermode="closest" if plot.x.categories else "x unified",
        **legend_layout([curve.name for curve in plot.curves], plot.legend),
    )


def _runs(good: Any) -> list[slice]:
    """Slices of consecutive True entries."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
    return [slice(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _bar(plot: BarPlot) -> go.Figure:
    import plotly.graph_objects as go

    # plotly's own hover would show positions 0, 1, 2; the category stands in the hover text instead.
    categories = [plain(text, 60) for text in plot.x.categories]
    traces = [
        go.Bar(
            x=list(range(len(categories))),
            y=as_list(group.values),
            customdata=categories,
            marker={
                "color": palette.color(index),
                "pattern": {"shape": "" if index < len(palette.COLORS) else "/"},
            },
            name=plain(group.name, 30) or "value",
            hovertemplate="%{customdata}: %{y}",
            error_y=None if group.errors is None else _error_bars(group.errors),
        )
        for index, group in enumerate(plot.groups)
    ]
    return make_figure(
        traces,
        xaxis=axis_layout(plot.x),
        yaxis=axis_layout(plot.y),
        barmode="group",
        bargap=0.2,
        **legend_layout([group.name for group in plot.groups], plot.legend),
    )


def _error_bars(lengths: Floats) -> dict[str, Any]:
    """Whiskers of half-lengths (category,), or of lengths below and above (2, category)."""
    bars = {"type": "data", "color": palette.INK, "thickness": 1.2, "width": 3}
    if lengths.ndim == 1:
        return bars | {"array": as_list(lengths)}
    return bars | {"symmetric": False, "arrayminus": as_list(lengths[0]), "array": as_list(lengths[1])}


def _heat_map(plot: HeatMapPlot) -> go.Figure:
    import plotly.graph_objects as go

    values, (low, high) = plot.values, plot.limits
    bar = color_bar(plot.label)
    if plot.log:
        values, low, high = np.log10(np.where(values > 0, values, np.nan)), float(np.log10(low)), float(np.log10(high))
        ticks: list[float] = list(range(int(np.ceil(low - 1e-9)), int(np.floor(high + 1e-9)) + 1)) or [low, high]
        bar |= {"tickvals": ticks, "ticktext": [power_text(float(f"{10.0**tick:.3g}")) for tick in ticks]}
    texts = [[value_text(float(value)) if np.isfinite(value) else "no value" for value in row] for row in plot.values]
    rows = len(plot.values)
    trace = go.Heatmap(
        x=as_list(plot.x_values),
        y=as_list(plot.y_values),
        z=as_list(values),
        zmin=low,
        zmax=high,
        colorscale=_scale(palette.DIVERGING if plot.diverging else palette.SEQUENTIAL),
        colorbar=bar,
        hoverongaps=False,
        text=texts,
        customdata=[[[y, x] for x in _names(plot.x, plot.x_values)] for y in _names(plot.y, plot.y_values)],
        hovertemplate="%{yaxis.title.text}: %{customdata[0]}<br>%{xaxis.title.text}: %{customdata[1]}<br>"
        "<b>%{text}</b><extra></extra>",
        texttemplate="%{text}" if plot.annotate else None,
        textfont={"size": 11},
    )
    x_axis, y_axis = (axis_layout(axis) | {"showgrid": False, "showline": False} for axis in (plot.x, plot.y))
    for settings, places in ((x_axis, plot.x_values), (y_axis, plot.y_values)):
        if "tickvals" not in settings and len(places) <= 12:
            settings |= {"tickmode": "array", "tickvals": as_list(places)}
    x_axis["constrain"] = "domain"
    if plot.square:
        y_axis |= {"scaleanchor": "x", "constrain": "domain"}
    return make_figure(
        [trace] if values.size else [],
        height=int(np.clip(180 + 22 * rows, 360, 760)) if not plot.square else 460,
        xaxis=x_axis,
        yaxis=y_axis,
        shapes=_frames(plot),
    )


def _frames(plot: HeatMapPlot) -> list[dict[str, Any]]:
    """All frames as one path per colour: thousands of single shapes would be slow."""
    corners = [" L".join(f"{x:.9g},{y:.9g}" for x, y in frame) for frame in plot.frames()]
    path = " ".join(f"M{around} Z" for around in corners)
    return [{"type": "path", "path": path, "line": {"color": c, "width": w}} for c, w in palette.FRAME if path]


def _scale(name: str) -> list[list[Any]]:
    """A matplotlib colour scale in plotly's form, so that both drawers show the same colours."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [[float(at), to_hex(colormaps[name](float(at)))] for at in np.linspace(0.0, 1.0, 17)]


def _names(axis: Axis, values: Any) -> list[str]:
    return [plain(text, 60) for text in axis.categories] if axis.categories else [f"{value:.6g}" for value in values]


def _histogram(plot: HistogramPlot) -> go.Figure:
    import plotly.graph_objects as go

    several = len(plot.distributions) > 1
    traces = []
    for index, distribution in enumerate(plot.distributions):
        heights, color = plot.heights(distribution), palette.color(index)
        if plot.y.log:
            heights = np.where(heights > 0, heights, np.nan)
        name = plain(distribution.name, 30) or "value"
        # Bars of uneven width are wrong on a logarithmic axis; a stepped line is right on both.
        traces.append(
            go.Scatter(
                x=as_list(plot.edges),
                y=as_list(np.append(heights, heights[-1:])),
                customdata=[
                    [f"{low:.4g} … {high:.4g}", f"{count:,}"]
                    for low, high, count in zip(plot.edges[:-1], plot.edges[1:], distribution.counts, strict=True)
                ]
                + [["", ""]],
                hovertemplate="%{customdata[0]}: %{customdata[1]} values",
                mode="lines",
                line={"shape": "hv", "color": color, "width": 1.6},
                fill=None if plot.y.log else "tozeroy",
                fillcolor=translucent(color, 0.22 if several else 0.75),
                name=name,
            )
        )
    return make_figure(
        traces,
        xaxis=axis_layout(plot.x),
        yaxis=axis_layout(plot.y) | ({} if plot.y.log else {"rangemode": "tozero"}),
        **legend_layout([distribution.name for distribution in plot.distributions], plot.legend),
    )


def _scatter(plot: ScatterPlot) -> go.Figure:
    import plotly.graph_objects as go

    traces: list[Any] = []
    total = sum(len(group.x) for group in plot.groups)
    for index, group in enumerate(plot.groups):
        marked = np.zeros(len(group.x), dtype=bool) if group.highlighted is None else group.highlighted
        marker: dict[str, Any] = {
            "size": np.where(marked, 13, 6 if total > 300 else 8).tolist(),
            "opacity": 0.55 if total > 1000 else 0.85,
            "line": {"width": np.where(marked, 1.5, 0).tolist(), "color": palette.INK},
            "color": palette.color(index),
            "symbol": palette.symbol(index),
        }
        if group.color is not None and plot.color_limits is not None:
            marker |= {
                "color": as_list(group.color),
                "colorscale": _scale(palette.SEQUENTIAL),
                "cmin": plot.color_limits[0],
                "cmax": plot.color_limits[1],
                "colorbar": color_bar(plot.legend),
                "showscale": True,
            }
        traces.append(
            (go.Scattergl if total > 2_000 else go.Scatter)(
                x=as_list(group.x),
                y=as_list(group.y),
                mode="markers+text" if any(group.texts) else "markers",
                text=[plain(text) for text in group.texts] or None,
                hovertext=[plain(text, 120) for text in group.labels] or None,
                textposition="top right",
                textfont={"size": 10},
                marker=marker,
                error_y=None if group.whiskers is None else _error_bars(group.whiskers) | {"color": palette.MUTED},
                name=plain(group.name, 30) or "value",
                hovertemplate=("<b>%{hovertext}</b><br>" if group.labels else "") + _HOVER_POINTS + "<extra></extra>",
            )
        )
    settings = legend_layout([group.name for group in plot.groups], plot.legend)
    if plot.color_limits is not None:
        settings = {"showlegend": False}
    made = make_figure(traces if total else [], xaxis=axis_layout(plot.x), yaxis=axis_layout(plot.y), **settings)
    if plot.identity and total:
        x, y = (np.concatenate([getattr(group, name) for group in plot.groups]) for name in ("x", "y"))
        # Where x and y overlap: anything longer would stretch the axes.
        low, high = max(float(x.min()), float(y.min())), min(float(x.max()), float(y.max()))
        if low < high:
            line = {"color": palette.MUTED, "width": 1, "dash": "dash"}
            made.add_shape(type="line", x0=low, y0=low, x1=high, y1=high, line=line, layer="below")
    return made


def _image_grid(plot: ImageGridPlot) -> go.Figure:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    from workbench.render.pixels import data_uri, pixels, to_png

    rows, columns = len(plot.rows), max((len(row) for row in plot.cells), default=0)
    if not rows or not columns:
        return make_figure([])
    grid = make_subplots(rows=rows, cols=columns, horizontal_spacing=0.06 / columns, vertical_spacing=0.06 / rows)
    shape = next(picture.shape for row in plot.cells for picture in row)
    for row, cells in enumerate(plot.cells):
        for column, picture in enumerate(cells):
            if not picture.size:
                continue
            image = go.Image(
                source=data_uri(to_png(pixels(picture, plot.color_map))),
                colormodel="rgba256",
                name="",
                hovertemplate="x %{x}, y %{y}: %{z}",
            )
            grid.add_trace(image, row=row + 1, col=column + 1)
    made = style(grid, 400)
    hidden = {"showticklabels": False, "ticks": "", "showgrid": False, "showline": False, "constrain": "domain"}
    made.update_xaxes(**hidden)
    made.update_yaxes(**hidden)
    side = min(150.0, 840 / columns)
    for column, text in enumerate(plot.columns[:columns]):
        title = {"text": wrapped(text, max(4, int(side / 6.5))), "font": {"size": 11}, "standoff": 2}
        made.update_xaxes(title=title, side="top", row=1, col=column + 1)
    for row, text in enumerate(plot.rows):
        title = {"text": plain(text, 24), "font": {"size": 11}, "standoff": 4}
        made.update_yaxes(title=title, row=row + 1, col=1)
    height = int(rows * side * shape[0] / max(shape[1], 1) * 1.08 + 120)
    made.update_layout(
        showlegend=False,
        height=max(height, 240),
        width=int(columns * side + 150),
        margin={"l": 90, "r": 20, "t": 84, "b": 20},
    )
    return made


def _reliability(plot: ReliabilityPlot) -> go.Figure:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    count = len(plot.panels)
    if not count:
        return make_figure([])
    grid = make_subplots(
        rows=2, cols=count, shared_xaxes=True, row_heights=[0.78, 0.22], vertical_spacing=0.06,
        subplot_titles=[f"{plain(panel.name, 30)}  (mean gap {number_text(panel.gap, 3)})" for panel in plot.panels],
    )  # fmt: skip
    for index, panel in enumerate(plot.panels, start=1):
        centers, widths, full = (panel.edges[1:] + panel.edges[:-1]) / 2, np.diff(panel.edges), panel.count > 0
        shared = {"x": as_list(centers), "width": as_list(widths * 0.96)}
        accuracy = go.Bar(
            **shared, y=as_list(panel.accuracy), name="accuracy", legendgroup="accuracy", showlegend=index == 1,
            marker={"color": palette.color(0)}, hovertemplate="accuracy %{y:.4f}<extra></extra>",
            error_y={
                "type": "data", "symmetric": False, "color": palette.INK, "thickness": 1, "width": 2,
                "array": as_list(np.where(full, np.clip(panel.upper - panel.accuracy, 0, None), 0)),
                "arrayminus": as_list(np.where(full, np.clip(panel.accuracy - panel.lower, 0, None), 0)),
            },
        )  # fmt: skip
        gap = go.Bar(
            **shared, y=as_list(panel.confidence - panel.accuracy), base=as_list(panel.accuracy), legendgroup="gap",
            name="gap to mean confidence", showlegend=index == 1,
            marker={"color": translucent(palette.color(1), 0.35), "line": {"color": palette.color(1), "width": 1}},
            customdata=as_list(panel.confidence), hovertemplate="mean confidence %{customdata:.4f}<extra></extra>",
        )  # fmt: skip
        line = go.Scatter(
            x=[0, 1], y=[0, 1], mode="lines", name="calibrated", legendgroup="calibrated", showlegend=index == 1,
            line={"color": palette.MUTED, "width": 1, "dash": "dash"}, hoverinfo="skip",
        )  # fmt: skip
        counts = go.Bar(
            **shared, y=as_list(panel.count), marker={"color": translucent(palette.MUTED, 0.6)}, showlegend=False,
            hovertemplate="%{y:,} samples<extra></extra>",
        )  # fmt: skip
        traces = [accuracy, gap, line, *_band(panel, centers, widths, show=index == 1)]
        grid.add_traces([*traces, counts], rows=[1] * len(traces) + [2], cols=[index] * (len(traces) + 1))
    made = style(grid, 500)
    made.update_annotations(font={"size": 12})
    made.update_xaxes(range=[0, 1])
    made.update_xaxes(title={"text": "confidence", "standoff": 10}, row=2)
    made.update_yaxes(range=[0, 1.02], row=1)
    made.update_yaxes(title={"text": "accuracy"}, row=1, col=1)
    made.update_yaxes(title={"text": "count"}, row=2, col=1)
    made.update_layout(barmode="overlay", hovermode="x", legend={"orientation": "h", "y": -0.2})
    return made


def _band(panel: ReliabilityPanel, centers: Floats, widths: Floats, *, show: bool) -> list[Any]:
    """Where the accuracies would lie if the confidence were right: open boxes."""
    import plotly.graph_objects as go

    if panel.band is None:
        return []
    low, high = panel.band
    return [
        go.Bar(
            x=as_list(centers), width=as_list(widths * 0.96), base=as_list(low), y=as_list(high - low), showlegend=show,
            name="95 % if calibrated", legendgroup="band", customdata=as_list(high), opacity=1,
            marker={"color": "rgba(0,0,0,0)", "line": {"color": palette.color(2), "width": 1.6}},
            hovertemplate="if calibrated %{base:.4f} to %{customdata:.4f}<extra></extra>",
        )
    ]  # fmt: skip


def _picture(plot: PicturePlot) -> go.Figure:
    import plotly.graph_objects as go

    from workbench.render.pixels import data_uri, from_png

    rows, columns = from_png(plot.png).shape[:2]
    made = make_figure([go.Image(source=data_uri(plot.png), hoverinfo="skip", zsmooth="fast")])
    made.update_xaxes(visible=False, constrain="domain")
    made.update_yaxes(visible=False, constrain="domain")
    made.update_layout(
        height=int(min(rows, 560, 900 * rows / columns) + 80), margin={"l": 10, "r": 10, "t": 52, "b": 10}
    )
    return made
