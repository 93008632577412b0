"""The shared look of the panels: one style sheet, and the few parts that every panel is made of.

Colours, spacing and type sizes are CSS variables of `static/style.css` (`--wb-ink`, `--wb-muted`, `--wb-line`, `--wb-accent`,
`--wb-space-2`, ...); they follow the theme of the notebook, light or dark. Everything that comes from a store is text: the
functions here escape it.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from workbench.render.markup import Html, element

if TYPE_CHECKING:
    import ipywidgets

__all__ = ["asset", "empty", "error", "frame", "markup"]


@cache
def asset(name: str) -> str:
    """A style sheet or script of `workbench/panels/static` as text."""
    return files("workbench.panels").joinpath("static", name).read_text(encoding="utf-8")


def markup(content: Html) -> ipywidgets.HTML:
    """Markup that `workbench.render.markup.element` made, as a widget. Plain text is refused: it would not be escaped.

    Raises:
        TypeError: `content` was not made by `element`.
    """
    import ipywidgets

    if not isinstance(content, Html):
        raise TypeError("markup() takes what workbench.render.markup.element() made")
    return ipywidgets.HTML(str(content))


def error(text: object) -> Html:
    """An error inside a panel, announced to screen readers."""
    return element("div", text, class_="wb-error wb-text", role="alert")


def empty(title: str, *advice: object) -> Html:
    """What a panel shows where there is nothing to show: what is missing, and what to do next."""
    lines = [element("div", line, class_="wb-text") for line in advice]
    return element("div", element("div", title, class_="wb-title"), *lines, class_="wb-empty")


def frame(*children: ipywidgets.Widget) -> ipywidgets.VBox:
    """A panel's outermost box, its children from top to bottom: brings the style sheet along, has the class `wb-panel`."""
    import ipywidgets

    sheet = ipywidgets.HTML(f"<style>{asset('style.css')}</style>", layout=ipywidgets.Layout(display="none"))
    box = ipywidgets.VBox([sheet, *children], layout=ipywidgets.Layout(width="100%", overflow="visible"))
    box.add_class("wb-panel")
    return box
