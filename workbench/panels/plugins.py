"""Every plugin and what it brings: methods by family with versions and papers, and why something is not available.

Versions and papers stand in the methods' modules, which may import torch; they are read in the background, family by
family, after the panel is there.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.errors import WorkbenchError
from workbench.panels import style
from workbench.panels.panel import Panel
from workbench.panels.parts import fragment, sheet
from workbench.render.html import notebook_fragment
from workbench.render.markup import Html, element, join
from workbench.render.plugins import plugins_table
from workbench.render.sections import table_html

if TYPE_CHECKING:
    import ipywidgets

    from workbench.host import Host
    from workbench.method import Method

__all__ = ["MethodFacts", "PluginsPanel", "facts"]


@dataclass(frozen=True)
class MethodFacts:
    """One method: what is known without importing it, and, once it was, version and paper, or why it cannot be used."""

    id: str
    title: str
    read: bool = False
    version: str = ""
    paper: str = ""
    problem: str = ""


def facts(host: Host, method_id: str, *, load: bool) -> MethodFacts:
    """What is known of a method; with `load` its module is imported."""
    item = host.methods[method_id]
    if not load and not isinstance(item, type):
        return MethodFacts(method_id, item.title)
    from workbench.execution.inputs import check_requirements

    try:
        cls: type[Method] = host.method(method_id)
    except WorkbenchError as error:
        return MethodFacts(method_id, item.title, True, problem=str(error))
    try:
        check_requirements(cls)
        problem = ""
    except WorkbenchError as error:
        problem = str(error)
    return MethodFacts(method_id, cls.title, True, cls.version, cls.paper.citation if cls.paper else "", problem)


class PluginsPanel(Panel):
    """`bench.plugins()`."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._known: dict[str, MethodFacts] = {name: facts(host, name, load=False) for name in host.methods}
        self._reader: threading.Thread | None = None

    def __repr__(self) -> str:
        failed = sum(status.state == "failed" for status in self.host.plugins)
        return f"<{len(self.host.plugins)} plugins, {failed} failed, {len(self._known)} methods>"

    def _families(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._known:
            found.setdefault(name.partition(".")[0], []).append(name)
        return found

    def _static(self) -> str:
        methods = [(element("code", item.id), item.title, item.version) for item in self._known.values()]
        return notebook_fragment(
            plugins_table(self.host.plugins),
            element("h3", "Methods"),
            table_html(("method", "what it tells", "version"), methods),
        )

    def _widget(self) -> ipywidgets.DOMWidget:
        import ipywidgets

        families = self._families()
        boxes = {family: ipywidgets.VBox([fragment(self._family(family, names))]) for family, names in families.items()}
        if not self.host.plugins and not families:
            advice = "Install a package that has an entry point in the group workbench, or bench.register(YourMethod)."
            return style.frame(style.markup(style.empty("No plugins are installed", advice)))

        def read() -> None:
            for family, names in families.items():
                self._known |= {name: facts(self.host, name, load=True) for name in names}
                boxes[family].children = (fragment(self._family(family, names)),)

        self._reader = threading.Thread(target=read, name="workbench-plugins-panel", daemon=True)
        made = style.frame(sheet("plugins.css"), fragment(plugins_table(self.host.plugins)), *boxes.values())
        self._reader.start()
        return made

    def wait(self, timeout: float | None = None) -> None:
        """Until versions and papers were read."""
        if self._reader is not None:
            self._reader.join(timeout)

    def _family(self, family: str, names: Sequence[str]) -> Html:
        rows = [_row(self._known[name]) for name in names]
        table = table_html(("method", "what it tells", "version", "paper"), rows)
        return element("div", element("h3", f"{family} ({len(names)})"), table, class_="wbg")


def _row(item: MethodFacts) -> tuple[object, ...]:
    what: object = item.title
    if item.problem:
        what = join(
            [element("div", item.title), element("div", "not available: ", item.problem, class_="wb-error wb-text")]
        )
    paper = item.paper if item.read else "…"
    return element("code", item.id), what, item.version if item.read else "…", paper
