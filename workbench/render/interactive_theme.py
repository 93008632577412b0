"""Interactive figures on dark pages: a style sheet, because a figure's JSON cannot follow the theme of a notebook.

A figure is drawn for a white card, which every front end shows as it is. Where a notebook is dark and this style sheet is
in the page, card, text, grid and the colours of groups change with the theme, at once and in both directions. Figures of
others stay as they are: ours are known by `PAPER`, a white of our own.
"""

from __future__ import annotations

from functools import cache

from workbench.render import palette

__all__ = ["PAPER", "dark_figures"]

PAPER = "#fefefe"
"""Background of interactive figures."""

_ON_DARK = {palette.INK: "#dfe3ea", palette.MUTED: "#98a2b3", palette.GRID: "#333b49"} | dict(
    zip(palette.COLORS, palette.COLORS_ON_DARK, strict=True)
)
_DARK = '[data-jp-theme-light="false"], .vscode-dark, .vscode-high-contrast:not(.vscode-high-contrast-light)'


@cache
def dark_figures() -> str:
    """CSS; every rule holds for our figures in a dark notebook only. Boxes that show while one hovers stay light."""
    figure = f':is({_DARK}) .js-plotly-plot:has(.main-svg[style*="{_rgb(PAPER)}"])'
    rules = {
        ".main-svg": "background: transparent",
        ":is(.bglayer, .infolayer) .bg": "fill: transparent",
        ".parcoords text": "text-shadow: none",  # plotly's is white
        ".modebar-group": "background: transparent",
        ".modebar-btn path": f"fill: {_ON_DARK[palette.MUTED]}",
    }
    for light, dark in _ON_DARK.items():
        for what in ("stroke", "fill"):
            rules[f'[style*="{what}: {_rgb(light)}"]:not(.hoverlayer *)'] = f"{what}: {dark}"
    return "\n".join([f"{figure} {{", *[f"{part} {{ {look} !important; }}" for part, look in rules.items()], "}"])


def _rgb(color: str) -> str:
    """A `#rrggbb` colour as browsers write it back."""
    return f"rgb({', '.join(str(int(color[at : at + 2], 16)) for at in (1, 3, 5))})"
