"""What a bench lists: every method by id, every plugin with what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from workbench.host import Host, PluginStatus
from workbench.method import Method, MethodReference
from workbench.runs import panel_module

if TYPE_CHECKING:
    from workbench.panels.plugins import PluginsPanel

__all__ = ["Methods", "Plugins"]


class Methods(Mapping[str, "MethodReference | type[Method]"]):
    """All methods by id; shows itself as a table."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._methods = host.methods

    def __getitem__(self, method_id: str) -> MethodReference | type[Method]:
        return self._methods[method_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{method_id:<{width}}  {item.title}" for method_id, item in self.items())

    def _repr_html_(self) -> str:
        from workbench.render import methods_html

        return methods_html({method_id: item.title for method_id, item in self.items()})


class Plugins(list[PluginStatus]):
    """What became of every plugin. Shows itself as a table; called, it opens the panel of families, methods and papers."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.plugins)
        self._host = host

    def __call__(self) -> PluginsPanel:
        """Families, methods, versions and papers, and why something is not available: `bench.plugins()`."""
        return panel_module("plugins").PluginsPanel(self._host)  # type: ignore[no-any-return]

    def _repr_html_(self) -> str:
        from workbench.render.plugins import plugins_html

        return plugins_html(self)
