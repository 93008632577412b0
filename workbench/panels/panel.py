"""What every panel is: a plain object that displays itself, as widgets where a kernel runs and as static HTML elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import ipywidgets

__all__ = ["Panel"]


class Panel(ABC):
    """A panel. Widgets are made when it is first displayed, so making one costs nothing.

    JupyterLab, Notebook 7, VS Code and voila show the widget; GitHub and nbconvert show the static page. In JupyterLab a
    saved widget whose kernel has ended is "model not found", as any widget there, until the cell is run again.
    """

    @cached_property
    def widget(self) -> ipywidgets.DOMWidget:
        """The widget, to put into a layout of your own."""
        return self._widget()

    @abstractmethod
    def _widget(self) -> ipywidgets.DOMWidget:
        """Make the widget."""

    @abstractmethod
    def _static(self) -> str:
        """The panel as HTML without scripts; every text in it escaped (`workbench.render.markup.element`)."""

    def _repr_mimebundle_(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None
    ) -> dict[str, Any]:
        shown = self.widget._repr_mimebundle_()
        bundle: dict[str, Any] = dict(shown[0] if isinstance(shown, tuple) else shown or {})
        bundle["text/plain"] = repr(self)
        try:
            bundle["text/html"] = self._static()
        except WorkbenchError as error:
            from workbench.render.markup import element

            bundle["text/html"] = str(element("p", str(error)))
        return bundle
