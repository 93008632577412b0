"""Reports made visible: one resolver that reads stored arrays, two thin drawers, and the pages around them.

    from workbench.render import RenderedReport, report_html

`resolve` turns a view and a result into plain numbers and labels (`plots`); `interactive` draws those with plotly for
notebooks, `static` with matplotlib for pages. Neither library is imported before something is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.render.display import RenderedReport
    from workbench.render.html import IndexCard, index_html, methods_html, report_html, run_html, runs_html
    from workbench.render.info import RunInfo

_HOME = {
    "IndexCard": "html",
    "RenderedReport": "display",
    "RunInfo": "info",
    "index_html": "html",
    "methods_html": "html",
    "report_html": "html",
    "run_html": "html",
    "runs_html": "html",
}

__all__ = [
    "IndexCard",
    "RenderedReport",
    "RunInfo",
    "index_html",
    "methods_html",
    "report_html",
    "run_html",
    "runs_html",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"workbench.render.{_HOME[name]}"), name)
    raise AttributeError(f"module 'workbench.render' has no attribute {name!r}")
