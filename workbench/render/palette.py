"""Colours and type sizes of every figure and page, in one place.

Categories use the palette of Okabe and Ito (2008, "Color Universal Design"), which people with any of the common kinds
of colour blindness can tell apart; its yellow and its pale blue come last because they are faint on white. Scales are
perceptually uniform: cividis (made for colour-blind readers) for amounts, and blue - grey - red around zero.
"""

from __future__ import annotations

__all__ = [
    "CARD",
    "COLORS",
    "COLORS_ON_DARK",
    "DASHES",
    "DIVERGING",
    "FRAME",
    "GRID",
    "INK",
    "MUTED",
    "SEQUENTIAL",
    "SYMBOLS",
    "color",
    "dash",
    "symbol",
]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a800")
"""Colours of groups, in order of use."""

COLORS_ON_DARK = ("#4aa8e0", "#ff8340", "#2fc497", "#e39bc6", "#f2b63d", "#8accf5", "#a3a3a3", "#d8cc3a")
"""The same hues where the background is dark."""

DASHES = ("solid", "dash", "dot", "dashdot")
"""Line styles (in plotly's words): the next one each time the colours are used up."""

SYMBOLS = ("circle", "diamond", "square", "triangle-up")
"""Shapes of points (in plotly's words), likewise."""

SEQUENTIAL = "cividis"
DIVERGING = "RdBu_r"
"""Colour scales: names that matplotlib and plotly share."""

FRAME = (("#101010", 2.6), ("#fefefe", 1.2))
"""Frames around cells, the wide line first: colour and width in points. Near-black and near-white, not the page's own ink and
card, because cells keep their colours in the dark; one of the two is seen on every colour."""

INK = "#1f2430"
MUTED = "#667085"
GRID = "#e4e7ec"
CARD = "#ffffff"
"""Text, secondary text, grid lines and background of figures on a white card."""


def color(index: int) -> str:
    """Colour of group number `index`."""
    return COLORS[index % len(COLORS)]


def dash(index: int) -> str:
    """Line style of curve number `index`."""
    return DASHES[index // len(COLORS) % len(DASHES)]


def symbol(index: int) -> str:
    """Shape of the points of group number `index`."""
    return SYMBOLS[index // len(COLORS) % len(SYMBOLS)]
