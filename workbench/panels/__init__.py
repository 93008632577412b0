"""Panels: widgets to look at a store with, in a notebook. Nothing of ipywidgets is imported before a panel is displayed.

`panel` says what a panel is, `style` how all of them look; every other file is one panel, or one part of it.
"""

from __future__ import annotations

__all__: list[str] = []
