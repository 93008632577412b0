"""Plots as still pictures: matplotlib figures, SVG for self-contained pages, PNG where only pictures survive.

Figures are made with `Figure()`, never pyplot, so that no global state of the notebook is touched. An SVG takes its
colours from the page (`--wb-ink`, `--wb-muted`, `--wb-grid`, `--wb-color-0`, ...), so it reads on light and dark.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from workbench.render import palette
from workbench.render.markup import Html, embedded, visible
from workbench.render.plots import PicturePlot, Plot
from workbench.render.static_plots import draw_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "png", "svg"]


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


@contextmanager
def _styled(salt: str = "") -> Iterator[None]:
    """Our style on top of matplotlib's defaults, whatever the notebook has set; one drawing at a time."""
    from cycler import cycler
    from matplotlib import style

    ours = {"axes.prop_cycle": cycler(color=palette.COLORS), "svg.hashsalt": visible(salt) or "workbench"}
    with (
        _LOCK,
        style.context(["default", _STYLE | ours]),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def draw(plot: Plot, *, titled: bool = False) -> Figure:
    """The plot as a matplotlib figure; `titled` prints its title above it."""
    with _styled():
        return draw_figure(plot, titled)


def png(plot: Plot, *, dpi: int = 144) -> bytes:
    """The plot with its title as a PNG on white."""
    if isinstance(plot, PicturePlot):
        return plot.png
    with _styled():
        buffer = io.BytesIO()
        draw_figure(plot, True).savefig(buffer, format="png", dpi=dpi, facecolor=palette.CARD)
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
        figure = draw_figure(plot, False)
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
