"""What interactive figures share: fonts, axes, legends, colour bars, and texts that plotly prints as they are."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.render import palette
from workbench.render.interactive_theme import PAPER
from workbench.render.markup import visible
from workbench.render.plots import Axis
from workbench.render.texts import shorten, shorten_all

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "as_list",
    "axis_layout",
    "color_bar",
    "legend_layout",
    "make_figure",
    "plain",
    "style",
    "translucent",
    "wrapped",
]

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def plain(text: str, most: int = 60) -> str:
    """Text that plotly prints as it is: no tags, no entities, no mathematics."""
    return html.escape(shorten(" ".join(visible(text).split()), most), quote=False).replace("$", "&#36;")


def wrapped(text: str, letters: int) -> str:
    """Text on at most two lines of about `letters` characters."""
    lines = textwrap.wrap(" ".join(visible(text).split()), letters, break_long_words=False)
    lines = [lines[0], " ".join(lines[1:])] if len(lines) > 1 else lines
    return "<br>".join(plain(line, letters + 1) for line in lines)


def as_list(values: Any) -> list[Any]:
    """Numbers for JSON: None for NaN and infinities, nested as the array is."""
    array = np.asarray(values, dtype=np.float64)
    objects = array.astype(object)
    objects[~np.isfinite(array)] = None
    return list(objects.tolist())


def make_figure(traces: Sequence[Any], *, height: int = 380, **layout: Any) -> go.Figure:
    """Traces as a figure in our style; `layout` is plotly's."""
    import plotly.graph_objects as go

    made = style(go.Figure(list(traces)), height)
    made.update_layout(**layout)
    if not traces:
        made.add_annotation(text="no values to draw", x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return made


def style(made: go.Figure, height: int) -> go.Figure:
    """Our looks, and only ours: templates set in the notebook do not reach a report."""
    import plotly.graph_objects as go

    made.update_layout(
        template=go.layout.Template(),
        colorway=list(palette.COLORS),
        font={"family": _FONT, "size": 12, "color": palette.INK},
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        margin={"l": 60, "r": 24, "t": 52, "b": 52},
        height=height,
        hoverlabel={"font": {"family": _FONT}},
        legend={"title": {"font": {"size": 11}}, "font": {"size": 11}},
    )
    made.update_xaxes(**_LINES)
    made.update_yaxes(**_LINES)
    return made


_LINES = {
    "gridcolor": palette.GRID,
    "linecolor": palette.MUTED,
    "showline": True,
    "zeroline": False,
    "ticks": "outside",
    "ticklen": 4,
    "tickcolor": palette.MUTED,
    "automargin": True,
    "title": {"standoff": 10},
}


def axis_layout(axis: Axis) -> dict[str, Any]:
    """Plotly's settings of one axis: title, logarithm, categories."""
    settings: dict[str, Any] = {"title": {"text": plain(axis.label), "standoff": 10}}
    if axis.categories:
        every = -(-len(axis.categories) // 60)
        settings |= {
            "tickmode": "array",
            "tickvals": list(range(0, len(axis.categories), every)),
            "ticktext": [plain(text) for text in shorten_all(axis.categories[::every], 26)],
            "showgrid": False,
        }
    elif axis.log:
        settings |= {"type": "log", "exponentformat": "power"}
    if axis.downwards:
        settings["autorange"] = "reversed"
    return settings


def translucent(color: str, alpha: float) -> str:
    """A `#rrggbb` colour with an opacity in 0..1."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def legend_layout(names: Sequence[str], title: str) -> dict[str, Any]:
    """Settings of the legend of these groups; none is shown for a single one."""
    settings: dict[str, Any] = {"showlegend": len(names) > 1}
    if title:
        settings["legend_title_text"] = plain(title)
    return settings


def color_bar(label: str) -> dict[str, Any]:
    """Settings of a colour bar."""
    return {"title": {"text": plain(label), "side": "right"}, "outlinewidth": 0, "thickness": 14}
