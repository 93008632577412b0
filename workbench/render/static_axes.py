"""Axes, legends and texts that all matplotlib figures share."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.render import palette
from workbench.render.markup import visible
from workbench.render.plots import Axis
from workbench.render.texts import power_text, shorten, shorten_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["HEIGHT", "WIDTH", "add_legend", "plain", "say_nothing", "set_axes", "wrapped"]

WIDTH, HEIGHT = 5.6, 3.3
"""Inches of an ordinary figure."""


def plain(text: str, most: int = 60) -> str:
    """Text that matplotlib prints as it is: on one line, not too long, without mathematics between dollars."""
    return shorten(" ".join(visible(text).split()), most).replace("$", r"\$")


def wrapped(text: str, letters: int) -> str:
    """Text on at most two lines of about `letters` characters."""
    lines = textwrap.wrap(plain(text), letters, break_long_words=False)
    lines = [lines[0], " ".join(lines[1:])] if len(lines) > 1 else lines
    return "\n".join(shorten(line, letters + 1) for line in lines)


def set_axes(axes: Axes, x: Axis, y: Axis) -> None:
    """Label both axes and make them linear, logarithmic or of categories."""
    axes.set_xlabel(plain(x.label))
    axes.set_ylabel(plain(y.label))
    for axis, ours in ((axes.xaxis, x), (axes.yaxis, y)):
        if ours.categories:
            name_categories(axes, axis, ours.categories)
        elif ours.log:
            set_log(axes, axis)
        else:
            set_linear(axis)


def set_linear(axis: Any) -> None:
    from matplotlib.ticker import ScalarFormatter

    formatter = ScalarFormatter(useMathText=False)
    formatter.set_powerlimits((-4, 6))
    axis.set_major_formatter(formatter)


def set_log(axes: Axes, axis: Any) -> None:
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


def name_categories(axes: Axes, axis: Any, texts: Sequence[str], most: int = 40) -> None:
    """Ticks at 0, 1, 2, ... with these texts; every second or third one where there are many."""
    every = -(-len(texts) // most)
    shown = [plain(text) for text in shorten_all(texts[::every], 24)]
    places = np.arange(0, len(texts), every)
    if axis is not axes.xaxis:
        axes.set_yticks(places, shown)
        axes.grid(False, axis="y")
        return
    axes.grid(False, axis="x")
    root = axes.get_figure(root=True)
    inches = (root.get_figwidth() if root is not None else WIDTH) - 1.0
    if sum(map(len, shown)) + 2 * len(shown) <= inches * 13:
        axes.set_xticks(places, shown)
    elif max(map(len, shown)) <= 4 or len(shown) > 24:
        axes.set_xticks(places, shown, rotation=90, fontsize=7)
    else:
        axes.set_xticks(places, shown, rotation=38, ha="right", rotation_mode="anchor", fontsize=7.5)


def add_legend(figure: Figure, axes: Axes, title: str, *, always: bool = False) -> None:
    """A legend below the axes, where there is more than one entry or `always`."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) < 2 and not always:
        return
    longest = max(map(len, names))
    columns = max(1, min(len(names), int(figure.get_figwidth() * 13.5 // (longest + 5)), 6))
    figure.legend(
        handles, names, title=plain(title) or None, loc="outside lower center", ncols=columns, handlelength=1.6
    )
    figure.set_figheight(figure.get_figheight() + 0.17 * (-(-len(names) // columns)) + (0.2 if title else 0.05))


def say_nothing(axes: Axes) -> None:
    """Say in the middle of the axes that there is nothing to draw."""
    axes.text(0.5, 0.5, "no values to draw", transform=axes.transAxes, ha="center", va="center", color=palette.MUTED)
