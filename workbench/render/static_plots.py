"""One matplotlib figure per kind of plot, and the axes, legends and texts that they share. `static` makes files of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.render import palette
from workbench.render.custom import draw_custom, draw_tables
from workbench.render.plots import (
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
from workbench.render.static_axes import HEIGHT, WIDTH, add_legend, plain, say_nothing, set_axes, wrapped
from workbench.render.texts import number_text, power_text, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_figure"]

_RASTERIZED = 2_000
"""More points than these become pixels inside an SVG."""
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_SYMBOLS = {"circle": "o", "diamond": "D", "square": "s", "triangle-up": "^"}


def draw_figure(plot: Plot, titled: bool) -> Figure:
    """The plot as a figure in the current matplotlib style; `titled` prints its title above."""
    from matplotlib.figure import Figure

    kinds: dict[type, Callable[[Any, Any], None]] = {
        LinePlot: _line,
        BarPlot: _bar,
        HeatMapPlot: _heat_map,
        HistogramPlot: _histogram,
        ScatterPlot: _scatter,
        ImageGridPlot: _image_grid,
        ReliabilityPlot: _reliability,
        PicturePlot: _picture,
        CustomPlot: draw_custom,
        TablesPlot: draw_tables,
    }
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    kinds[type(plot)](plot, figure)
    if titled:
        figure.suptitle(plain(plot.title, 90), fontsize=10, fontweight="bold")
    return figure


# -------------------------------------------------------------------------------------------------------------- kinds


def _line(plot: LinePlot, figure: Figure) -> None:
    axes = figure.subplots()
    drawn = False
    for index, curve in enumerate(plot.curves):
        color = palette.color(index)
        if curve.lower is not None and curve.upper is not None:
            axes.fill_between(curve.x, curve.lower, curve.upper, color=color, alpha=0.18, linewidth=0)
        for edge in (curve.lower, curve.upper):
            if edge is not None and (curve.lower is None or curve.upper is None):
                axes.plot(curve.x, edge, color=color, linewidth=0.8, linestyle=":")
        axes.plot(
            curve.x,
            curve.y,
            color=color,
            linestyle=_DASHES[palette.dash(index)],
            marker="o" if plot.markers else None,
            markersize=3.5,
            label=plain(curve.name, 30) or "value",
        )
        drawn = drawn or bool((np.isfinite(curve.x) & np.isfinite(curve.y)).any())
    set_axes(axes, plot.x, plot.y)
    add_legend(figure, axes, plot.legend)
    if not drawn:
        say_nothing(axes)


def _bar(plot: BarPlot, figure: Figure) -> None:
    count = len(plot.x.categories)
    if count * len(plot.groups) > 24:
        figure.set_figwidth(7.2)
    axes = figure.subplots()
    width = 0.8 / max(len(plot.groups), 1)
    places = np.arange(count)
    for index, group in enumerate(plot.groups):
        axes.bar(
            places + (index - (len(plot.groups) - 1) / 2) * width,
            group.values,
            width * 0.94,
            color=palette.color(index),
            hatch=None if index < len(palette.COLORS) else "///",
            yerr=group.errors,
            error_kw={"elinewidth": 1.0, "ecolor": palette.INK, "capsize": 2.0},
            label=plain(group.name, 30) or "value",
        )
    set_axes(axes, plot.x, plot.y)
    if count:
        axes.set_xlim(-0.6, count - 0.4)
    add_legend(figure, axes, plot.legend)
    if not any(np.isfinite(group.values).any() for group in plot.groups):
        say_nothing(axes)


def _heat_map(plot: HeatMapPlot, figure: Figure) -> None:
    from matplotlib.colors import LogNorm, Normalize

    axes = figure.subplots()
    rows, columns = plot.values.shape
    if plot.square or max(rows, columns) <= 12:
        figure.set_size_inches(5.2, min(max(4.3 * rows / max(columns, 1), 2.2), 6.0))
    elif rows > 16:
        figure.set_figheight(min(HEIGHT + (rows - 16) * 0.12, 6.5))
    axes.grid(False)
    if not plot.values.size:
        set_axes(axes, plot.x, plot.y)
        say_nothing(axes)
        return
    (left, right), (start, stop) = _ends(plot.x_values), _ends(plot.y_values)
    norm = LogNorm(*plot.limits) if plot.log else Normalize(*plot.limits)
    scale = palette.DIVERGING if plot.diverging else palette.SEQUENTIAL
    shown = axes.imshow(
        np.ma.masked_invalid(plot.values),
        cmap=scale,
        norm=norm,
        extent=(left, right, start, stop),
        origin="lower",
        aspect="equal" if plot.square else "auto",
        interpolation="none",
    )
    set_axes(axes, plot.x, plot.y)
    for axis, ours, places in ((axes.xaxis, plot.x, plot.x_values), (axes.yaxis, plot.y, plot.y_values)):
        if not ours.categories and len(places) <= 12:
            axis.set_ticks(places, [f"{place:g}".replace("-", "−") for place in places])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if plot.y.downwards:
        axes.set_ylim(stop, start)
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02, aspect=32)
    bar.outline.set_visible(False)
    bar.set_label(plain(plot.label))
    if plot.log:
        from matplotlib.ticker import FuncFormatter, NullFormatter

        narrow = plot.limits[1] / plot.limits[0] < 30
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_text(value)))
        bar.ax.yaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: power_text(value)) if narrow else NullFormatter()
        )
    if plot.framed is not None:
        _frame(plot, axes)
    if plot.annotate:
        _annotate(plot, axes, shown)
    if not np.isfinite(plot.values).any():
        say_nothing(axes)


def _ends(centers: Any) -> tuple[float, float]:
    """Outer edges of cells around evenly spaced centers, either way round."""
    half = (centers[-1] - centers[0]) / (len(centers) - 1) / 2 if len(centers) > 1 else 0.5
    return float(centers[0] - half), float(centers[-1] + half)


def _frame(plot: HeatMapPlot, axes: Axes) -> None:
    from matplotlib.collections import PolyCollection

    for color, width in palette.FRAME:
        axes.add_collection(
            PolyCollection(plot.frames(), facecolors="none", edgecolors=color, linewidths=width), autolim=False
        )


def _annotate(plot: HeatMapPlot, axes: Axes, shown: Any) -> None:
    columns = len(plot.x_values)
    size = min(8.0, 52 / max(columns, 1) + 2.6)
    for row, y in enumerate(plot.y_values):
        for column, x in enumerate(plot.x_values):
            value = plot.values[row, column]
            if np.isfinite(value):
                red, green, blue, _ = shown.cmap(shown.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
                text = value_text(float(value), 3)
                # Near-black and near-white that are not the page's own ink and card: cells keep their colours in the dark.
                axes.text(x, y, text, ha="center", va="center", fontsize=size, color="#fefefe" if dark else "#101010")


def _histogram(plot: HistogramPlot, figure: Figure) -> None:
    axes = figure.subplots()
    several = len(plot.distributions) > 1
    for index, distribution in enumerate(plot.distributions):
        heights, color = plot.heights(distribution), palette.color(index)
        if plot.y.log:
            heights = np.where(heights > 0, heights, np.nan)
        name = plain(distribution.name, 30) or "value"
        if several:
            axes.stairs(heights, plot.edges, fill=True, color=color, alpha=0.22, linewidth=0)
            axes.stairs(heights, plot.edges, color=color, linewidth=1.4, label=name)
        else:
            axes.stairs(heights, plot.edges, fill=True, color=color, alpha=0.85, label=name)
    set_axes(axes, plot.x, plot.y)
    if not plot.y.log:
        axes.set_ylim(bottom=0)
    add_legend(figure, axes, plot.legend)
    if not any(distribution.total for distribution in plot.distributions):
        say_nothing(axes)


def _scatter(plot: ScatterPlot, figure: Figure) -> None:
    axes = figure.subplots()
    total = sum(len(group.x) for group in plot.groups)
    bar_drawn = False
    for index, group in enumerate(plot.groups):
        marked = np.zeros(len(group.x), dtype=bool) if group.highlighted is None else group.highlighted
        name: str | None = plain(group.name, 30) or "value"
        for members, size, edge in ((~marked, 14 if total > 300 else 22, "none"), (marked, 70, palette.INK)):
            if not members.any():
                continue
            if group.color is None or plot.color_limits is None:
                color: dict[str, Any] = {"color": palette.color(index)}
            else:
                low, high = plot.color_limits
                edge = palette.MUTED if edge == "none" else edge  # either end of the scale may be the page's own colour
                color = {"c": group.color[members], "cmap": palette.SEQUENTIAL, "vmin": low, "vmax": high}
            if group.whiskers is not None:
                axes.errorbar(
                    group.x[members],
                    group.y[members],
                    yerr=group.whiskers[:, members],
                    fmt="none",
                    ecolor=palette.MUTED,
                    elinewidth=0.8,
                    capsize=2,
                    zorder=1,
                )
            points = axes.scatter(
                group.x[members],
                group.y[members],
                s=size,
                marker=_SYMBOLS[palette.symbol(index)],
                edgecolors=edge,
                linewidths=1.0 if members is marked else 0.5,
                alpha=0.55 if total > 1000 else 0.85,
                rasterized=total > _RASTERIZED,
                label=name,
                **color,
            )
            name = None  # one entry in the legend
            if "c" in color and not bar_drawn:
                bar_drawn = True
                bar = figure.colorbar(points, ax=axes, fraction=0.05, pad=0.02, aspect=32)
                bar.outline.set_visible(False)
                bar.set_label(plain(plot.legend))
                if bar.solids is not None:
                    bar.solids.set_alpha(1.0)
    set_axes(axes, plot.x, plot.y)
    for group in plot.groups:
        if group.texts:
            for x, y, text in zip(group.x, group.y, group.texts, strict=True):
                right = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[0] > 0.75
                axes.annotate(
                    plain(text), (x, y), (-4 if right else 4, 3), textcoords="offset points", fontsize=7,
                    ha="right" if right else "left",
                )  # fmt: skip
    if plot.identity:
        axes.autoscale_view()  # limits are found lazily: switched off before, they would stay 0..1
        axes.autoscale(False)
        axes.axline((1, 1), (2, 2), color=palette.MUTED, linewidth=0.9, linestyle="--", zorder=0)
    if not bar_drawn:
        add_legend(figure, axes, plot.legend)
    if not total:
        say_nothing(axes)


def _image_grid(plot: ImageGridPlot, figure: Figure) -> None:
    from workbench.render.pixels import pixels

    rows, columns = len(plot.rows), max((len(row) for row in plot.cells), default=0)
    if not rows or not columns:
        axes = figure.subplots()
        axes.axis("off")
        say_nothing(axes)
        return
    shape = next(picture.shape for row in plot.cells for picture in row)
    side = min(1.5, max(0.55, 7.2 / columns))
    figure.set_size_inches(max(columns * side + 0.9, 3.2), rows * (side * shape[0] / max(shape[1], 1) + 0.08) + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    letters = max(4, int(side * 15))
    for row, cells in enumerate(plot.cells):
        for column in range(columns):
            axes = grid[row][column]
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set_visible(False)
            if column < len(cells) and cells[column].size:
                axes.imshow(pixels(cells[column], plot.color_map), interpolation="none")
            if row == 0 and column < len(plot.columns):
                axes.set_title(wrapped(plot.columns[column], letters), fontsize=7.5)
            if column == 0:
                axes.set_ylabel(plain(plot.rows[row], 24), rotation=0, ha="right", va="center", fontsize=8, labelpad=5)


def _reliability(plot: ReliabilityPlot, figure: Figure) -> None:
    panels = plot.panels
    if not panels:
        say_nothing(figure.subplots())
        return
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure.set_size_inches({1: 4.4, 2: 6.4, 3: 8.2}[columns], rows * (4.4 if columns == 1 else 3.9))
    heights = [height for _ in range(rows) for height in (3.4, 1.0)]
    grid = figure.subplots(rows * 2, columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        upper, lower = grid[2 * row][column], grid[2 * row + 1][column]
        if index >= len(panels):
            upper.axis("off")
            lower.axis("off")
            continue
        _reliability_panel(panels[index], upper, lower)
        if column == 0:
            upper.set_ylabel("accuracy")
            lower.set_ylabel("count")
        lower.set_xlabel("confidence")
        lower.tick_params(labelbottom=True)
    add_legend(figure, grid[0][0], "", always=True)


def _reliability_panel(panel: ReliabilityPanel, upper: Axes, lower: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    centers, widths = (panel.edges[1:] + panel.edges[:-1]) / 2, np.diff(panel.edges)
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1.02)
    upper.bar(centers, panel.accuracy, widths * 0.96, color=palette.color(0), alpha=0.85, label="accuracy")
    gap = panel.confidence - panel.accuracy
    upper.bar(
        centers, gap, widths * 0.96, bottom=panel.accuracy, label="gap to mean confidence",
        facecolor=palette.color(1), edgecolor=palette.color(1), alpha=0.35, linewidth=0.8,
    )  # fmt: skip
    upper.plot([0, 1], [0, 1], color=palette.MUTED, linewidth=0.9, linestyle="--", label="calibrated")
    if panel.band is not None:
        low, high = panel.band
        upper.bar(
            centers, high - low, widths * 0.96, bottom=low, label="95 % if calibrated",
            facecolor="none", edgecolor=palette.color(2), linewidth=1.1,
        )  # fmt: skip
    below, above = panel.accuracy - panel.lower, panel.upper - panel.accuracy
    full = panel.count > 0
    upper.errorbar(
        centers[full],
        panel.accuracy[full],
        yerr=np.clip(np.nan_to_num(np.stack([below, above])[:, full]), 0, None),
        fmt="none", ecolor=palette.INK, elinewidth=0.9, capsize=1.5,
    )  # fmt: skip
    title = plain(panel.name, 34)
    upper.set_title(f"{title}  " if title else "", loc="left", fontsize=8.5, fontweight="bold")
    if full.any():
        upper.text(0.04, 0.95, f"mean gap {number_text(panel.gap, 3)}", transform=upper.transAxes, va="top", fontsize=8)
    else:
        say_nothing(upper)
    lower.bar(centers, panel.count, widths * 0.96, color=palette.MUTED, alpha=0.6)
    lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    upper.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])


def _picture(plot: PicturePlot, figure: Figure) -> None:
    from workbench.render.pixels import from_png

    values = from_png(plot.png)
    figure.set_size_inches(WIDTH, WIDTH * values.shape[0] / values.shape[1])
    axes = figure.subplots()
    axes.axis("off")
    axes.imshow(values)
