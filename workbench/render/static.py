"""Plots as still pictures: matplotlib figures, SVG for self-contained pages, PNG where only pictures survive.

Figures are made with `Figure()`, never pyplot, so that no global state of the notebook is touched. An SVG takes its
colours from the page (`--wb-ink`, `--wb-muted`, `--wb-grid`, `--wb-color-0`, ...), so it reads on light and dark.
"""

from __future__ import annotations

import io
import re
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.render import palette
from workbench.render.markup import Html, embedded, visible
from workbench.render.plots import (
    Axis,
    BarPlot,
    HeatMapPlot,
    HistogramPlot,
    ImageGridPlot,
    LinePlot,
    PicturePlot,
    Plot,
    ReliabilityPanel,
    ReliabilityPlot,
    ScatterPlot,
)
from workbench.render.texts import number_text, power_text, shorten, shorten_all, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "png", "svg"]

_WIDTH, _HEIGHT = 5.6, 3.3
"""Inches of an ordinary figure."""
_RASTERIZED = 2_000
"""More points than these become pixels inside an SVG."""

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": palette.MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": palette.INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib; pages set their own font, which is narrower
    "font.size": 8.5,
    "grid.color": palette.GRID,
    "grid.linewidth": 0.7,
    "image.composite_image": False,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.title_fontsize": 8,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "text.color": palette.INK,
    "text.usetex": False,
    "xtick.color": palette.MUTED,
    "xtick.labelcolor": palette.INK,
    "xtick.labelsize": 8,
    "ytick.color": palette.MUTED,
    "ytick.labelcolor": palette.INK,
    "ytick.labelsize": 8,
}
_LOCK = threading.RLock()
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


@contextmanager
def _styled(salt: str = "") -> Iterator[None]:
    """Our style on top of matplotlib's defaults, whatever the notebook has set; one drawing at a time."""
    from matplotlib import style

    with _LOCK, style.context(["default", _STYLE | {"svg.hashsalt": visible(salt) or "workbench"}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def draw(plot: Plot, *, titled: bool = False) -> Figure:
    """The plot as a matplotlib figure; `titled` prints its title above it."""
    with _styled():
        return _draw(plot, titled)


def png(plot: Plot, *, dpi: int = 144) -> bytes:
    """The plot with its title as a PNG on white."""
    if isinstance(plot, PicturePlot):
        return plot.png
    with _styled():
        buffer = io.BytesIO()
        _draw(plot, True).savefig(buffer, format="png", dpi=dpi, facecolor=palette.CARD)
        return buffer.getvalue()


def jpeg(plot: Plot) -> bytes:
    """The plot with its title as a JPEG on white."""
    from PIL import Image

    with Image.open(io.BytesIO(png(plot))) as picture:
        flat = Image.new("RGB", picture.size, palette.CARD)
        flat.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    buffer = io.BytesIO()
    flat.save(buffer, format="JPEG", quality=90, subsampling=0, optimize=True)
    return buffer.getvalue()


def svg(plot: Plot, *, salt: str = "", small: bool = False) -> Html:
    """The plot as an `<svg>` element for a page; its texts are escaped by matplotlib's XML writer.

    Args:
        plot: what to draw.
        salt: makes the ids inside differ from those of other figures on the page.
        small: for a thumbnail: no legends, larger type.
    """
    with _styled(salt):
        figure = _draw(plot, False)
        if small:
            figure.set_size_inches(3.6, 2.1)
            for legend in (*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))):
                legend.remove()
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", dpi=160, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _opening(plot), text, count=1)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    return embedded(re.sub(r'(fill|stroke): (#[0-9a-f]{6})(?=[;"])', _variable, text))


_VARIABLES = {
    palette.INK: "ink", palette.MUTED: "muted", palette.GRID: "grid",
    **{color: f"color-{index}" for index, color in enumerate(palette.COLORS)},
}  # fmt: skip


def _variable(match: re.Match[str]) -> str:
    """A colour that the page may set; without a page it is what it was."""
    kind, color = match.groups()
    return f"{kind}: var(--wb-{_VARIABLES[color]}, {color})" if color in _VARIABLES else match[0]


def _opening(plot: Plot) -> Callable[[re.Match[str]], str]:
    import html

    label = html.escape(visible(plot.title), quote=True)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'

    def opening(match: re.Match[str]) -> str:
        width = 1.38 * float(match[1].split()[2])  # points as pixels, so that type has the size of the page's captions
        return f'<svg {names} role="img" aria-label="{label}" viewBox="{match[1]}" style="max-width: {width:.0f}px">'

    return opening


def _draw(plot: Plot, titled: bool) -> Figure:
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
    }
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    kinds[type(plot)](plot, figure)
    if titled:
        figure.suptitle(_plain(plot.title, 90), fontsize=10, fontweight="bold")
    return figure


# ---------------------------------------------------------------------------------------------------- texts and axes


def _plain(text: str, most: int = 60) -> str:
    """Text that matplotlib prints as it is: on one line, not too long, without mathematics between dollars."""
    return shorten(" ".join(visible(text).split()), most).replace("$", r"\$")


def _wrapped(text: str, letters: int) -> str:
    """Text on at most two lines of about `letters` characters."""
    lines = textwrap.wrap(_plain(text), letters, break_long_words=False)
    lines = [lines[0], " ".join(lines[1:])] if len(lines) > 1 else lines
    return "\n".join(shorten(line, letters + 1) for line in lines)


def _set_axes(axes: Axes, x: Axis, y: Axis) -> None:
    axes.set_xlabel(_plain(x.label))
    axes.set_ylabel(_plain(y.label))
    for axis, ours in ((axes.xaxis, x), (axes.yaxis, y)):
        if ours.categories:
            _name_categories(axes, axis, ours.categories)
        elif ours.log:
            _set_log(axes, axis)
        else:
            _set_linear(axis)


def _set_linear(axis: Any) -> None:
    from matplotlib.ticker import ScalarFormatter

    formatter = ScalarFormatter(useMathText=False)
    formatter.set_powerlimits((-4, 6))
    axis.set_major_formatter(formatter)


def _set_log(axes: Axes, axis: Any) -> None:
    from matplotlib.ticker import LogFormatter, NullFormatter

    class Powers(LogFormatter):
        """Decades, and minor ticks where there are few decades, without mathematics markup."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return power_text(x) if super().__call__(x, pos) else ""

    if not np.isfinite(axis.get_minpos()):
        return  # nothing above 0 is drawn
    (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
    axis.set_major_formatter(Powers(labelOnlyBase=False))
    low, high = axis.get_view_interval()
    crowded = low <= 0 or high / low > 30
    axis.set_minor_formatter(NullFormatter() if crowded else Powers(minor_thresholds=(2, 0.5)))
    axes.grid(True, which="major", axis=axis.axis_name)


def _name_categories(axes: Axes, axis: Any, texts: Sequence[str], most: int = 40) -> None:
    """Ticks at 0, 1, 2, ... with these texts; every second or third one where there are many."""
    every = -(-len(texts) // most)
    shown = [_plain(text) for text in shorten_all(texts[::every], 24)]
    places = np.arange(0, len(texts), every)
    if axis is not axes.xaxis:
        axes.set_yticks(places, shown)
        axes.grid(False, axis="y")
        return
    axes.grid(False, axis="x")
    root = axes.get_figure(root=True)
    inches = (root.get_figwidth() if root is not None else _WIDTH) - 1.0
    if sum(map(len, shown)) + 2 * len(shown) <= inches * 13:
        axes.set_xticks(places, shown)
    elif max(map(len, shown)) <= 4 or len(shown) > 24:
        axes.set_xticks(places, shown, rotation=90, fontsize=7)
    else:
        axes.set_xticks(places, shown, rotation=38, ha="right", rotation_mode="anchor", fontsize=7.5)


def _legend(figure: Figure, axes: Axes, title: str, *, always: bool = False) -> None:
    handles, names = axes.get_legend_handles_labels()
    if len(names) < 2 and not always:
        return
    longest = max(map(len, names))
    columns = max(1, min(len(names), int(figure.get_figwidth() * 13.5 // (longest + 5)), 6))
    figure.legend(
        handles, names, title=_plain(title) or None, loc="outside lower center", ncols=columns, handlelength=1.6
    )
    figure.set_figheight(figure.get_figheight() + 0.17 * (-(-len(names) // columns)) + (0.2 if title else 0.05))


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no values to draw", transform=axes.transAxes, ha="center", va="center", color=palette.MUTED)


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
            label=_plain(curve.name, 30) or "value",
        )
        drawn = drawn or bool((np.isfinite(curve.x) & np.isfinite(curve.y)).any())
    _set_axes(axes, plot.x, plot.y)
    _legend(figure, axes, plot.legend)
    if not drawn:
        _nothing(axes)


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
            label=_plain(group.name, 30) or "value",
        )
    _set_axes(axes, plot.x, plot.y)
    if count:
        axes.set_xlim(-0.6, count - 0.4)
    _legend(figure, axes, plot.legend)
    if not any(np.isfinite(group.values).any() for group in plot.groups):
        _nothing(axes)


def _heat_map(plot: HeatMapPlot, figure: Figure) -> None:
    from matplotlib.colors import LogNorm, Normalize

    axes = figure.subplots()
    rows, columns = plot.values.shape
    if plot.square or max(rows, columns) <= 12:
        figure.set_size_inches(5.2, min(max(4.3 * rows / max(columns, 1), 2.2), 6.0))
    elif rows > 16:
        figure.set_figheight(min(_HEIGHT + (rows - 16) * 0.12, 6.5))
    axes.grid(False)
    if not plot.values.size:
        _set_axes(axes, plot.x, plot.y)
        _nothing(axes)
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
    _set_axes(axes, plot.x, plot.y)
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
    bar.set_label(_plain(plot.label))
    if plot.log:
        from matplotlib.ticker import FuncFormatter, NullFormatter

        narrow = plot.limits[1] / plot.limits[0] < 30
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_text(value)))
        bar.ax.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: power_text(value)) if narrow else NullFormatter())
    if plot.annotate:
        _annotate(plot, axes, shown)
    if not np.isfinite(plot.values).any():
        _nothing(axes)


def _ends(centers: Any) -> tuple[float, float]:
    """Outer edges of cells around evenly spaced centers, either way round."""
    half = (centers[-1] - centers[0]) / (len(centers) - 1) / 2 if len(centers) > 1 else 0.5
    return float(centers[0] - half), float(centers[-1] + half)


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
        name = _plain(distribution.name, 30) or "value"
        if several:
            axes.stairs(heights, plot.edges, fill=True, color=color, alpha=0.22, linewidth=0)
            axes.stairs(heights, plot.edges, color=color, linewidth=1.4, label=name)
        else:
            axes.stairs(heights, plot.edges, fill=True, color=color, alpha=0.85, label=name)
    _set_axes(axes, plot.x, plot.y)
    if not plot.y.log:
        axes.set_ylim(bottom=0)
    _legend(figure, axes, plot.legend)
    if not any(distribution.total for distribution in plot.distributions):
        _nothing(axes)


def _scatter(plot: ScatterPlot, figure: Figure) -> None:
    axes = figure.subplots()
    total = sum(len(group.x) for group in plot.groups)
    bar_drawn = False
    for index, group in enumerate(plot.groups):
        marked = np.zeros(len(group.x), dtype=bool) if group.highlighted is None else group.highlighted
        name: str | None = _plain(group.name, 30) or "value"
        for members, size, edge in ((~marked, 14 if total > 300 else 22, "none"), (marked, 70, palette.INK)):
            if not members.any():
                continue
            if group.color is None or plot.color_limits is None:
                color: dict[str, Any] = {"color": palette.color(index)}
            else:
                low, high = plot.color_limits
                edge = palette.MUTED if edge == "none" else edge  # either end of the scale may be the page's own colour
                color = {"c": group.color[members], "cmap": palette.SEQUENTIAL, "vmin": low, "vmax": high}
            points = axes.scatter(
                group.x[members],
                group.y[members],
                s=size,
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
                bar.set_label(_plain(plot.legend))
                if bar.solids is not None:
                    bar.solids.set_alpha(1.0)
    _set_axes(axes, plot.x, plot.y)
    if plot.print_labels:
        for group in plot.groups:
            for x, y, text in zip(group.x, group.y, shorten_all(group.labels, 22), strict=True):
                right = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[0] > 0.75
                axes.annotate(
                    _plain(text), (x, y), (-4 if right else 4, 3), textcoords="offset points", fontsize=7,
                    ha="right" if right else "left",
                )  # fmt: skip
    if plot.identity:
        axes.autoscale(False)
        axes.axline((1, 1), (2, 2), color=palette.MUTED, linewidth=0.9, linestyle="--", zorder=0)
    if not bar_drawn:
        _legend(figure, axes, plot.legend)
    if not total:
        _nothing(axes)


def _image_grid(plot: ImageGridPlot, figure: Figure) -> None:
    from workbench.render.pixels import pixels

    rows, columns = len(plot.rows), max((len(row) for row in plot.cells), default=0)
    if not rows or not columns:
        axes = figure.subplots()
        axes.axis("off")
        _nothing(axes)
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
                axes.set_title(_wrapped(plot.columns[column], letters), fontsize=7.5)
            if column == 0:
                axes.set_ylabel(
                    _plain(plot.rows[row], 24), rotation=0, ha="right", va="center", fontsize=8, labelpad=5
                )


def _reliability(plot: ReliabilityPlot, figure: Figure) -> None:
    panels = plot.panels
    if not panels:
        _nothing(figure.subplots())
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
    _legend(figure, grid[0][0], "", always=True)


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
    below, above = panel.accuracy - panel.lower, panel.upper - panel.accuracy
    full = panel.count > 0
    upper.errorbar(
        centers[full],
        panel.accuracy[full],
        yerr=np.clip(np.nan_to_num(np.stack([below, above])[:, full]), 0, None),
        fmt="none", ecolor=palette.INK, elinewidth=0.9, capsize=1.5,
    )  # fmt: skip
    title = _plain(panel.name, 34)
    upper.set_title(f"{title}  " if title else "", loc="left", fontsize=8.5, fontweight="bold")
    if full.any():
        upper.text(0.04, 0.95, f"mean gap {number_text(panel.gap, 3)}", transform=upper.transAxes, va="top", fontsize=8)
    else:
        _nothing(upper)
    lower.bar(centers, panel.count, widths * 0.96, color=palette.MUTED, alpha=0.6)
    lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    upper.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])


def _picture(plot: PicturePlot, figure: Figure) -> None:
    from workbench.render.pixels import from_png

    values = from_png(plot.png)
    figure.set_size_inches(_WIDTH, _WIDTH * values.shape[0] / values.shape[1])
    axes = figure.subplots()
    axes.axis("off")
    axes.imshow(values)

