"""What became of every plugin, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.host import PluginStatus
from workbench.render.html import notebook_fragment
from workbench.render.markup import Html, element, join, visible
from workbench.render.sections import table_html

__all__ = ["plugins_html", "plugins_table"]

TRACEBACK = 6_000
"""Characters of a traceback that are shown, from its end."""


def plugins_html(plugins: Sequence[PluginStatus]) -> str:
    """The table in a notebook."""
    return notebook_fragment(plugins_table(plugins))


def plugins_table(plugins: Sequence[PluginStatus]) -> Html:
    """One row per plugin; what failed says why."""
    rows = []
    for status in plugins:
        notes: list[object] = [element("div", status.reason)] if status.reason else []
        notes += [element("div", f"{name}: {reason}") for name, reason in status.rejected.items()]
        if status.traceback:
            trace = visible(status.traceback[-TRACEBACK:], TRACEBACK)
            notes.append(element("details", element("summary", "traceback"), element("pre", trace)))
        kind = {"loaded": "complete", "failed": "failed", "blocked": "cancelled"}[status.state]
        pill = element("span", status.state, class_=f"wb-pill wb-{kind}")
        origin = " ".join(part for part in (status.distribution, status.version) if part)
        rows.append((status.name, pill, origin, str(len(status.methods)), f"{status.seconds:.2f} s", join(notes)))
    columns = ("plugin", "state", "from", "methods", "import", "why")
    return table_html(columns, rows, (False, False, False, True, True, False))
