"""The explorer of n-d arrays: `run.explore("restored")`, and `run.arrays()` over all arrays of a run.

One custom widget; the front end asks for views, the kernel answers with frames. It asks again only when it has its
answer, so that a slider never runs ahead of the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.panels import style
from workbench.panels.explore_frame import color_maps, make_frame, spec
from workbench.panels.explore_sources import RunArrays
from workbench.panels.explore_view import View, default_view, settled, spelled
from workbench.panels.panel import Panel
from workbench.render.html import notebook_fragment
from workbench.render.markup import element, visible
from workbench.render.palette import COLORS, COLORS_ON_DARK
from workbench.render.sections import table_html
from workbench.render.texts import bytes_text

if TYPE_CHECKING:
    import ipywidgets

    from workbench.store import StoredRun

__all__ = ["Explorer"]


class Explorer(Panel):
    """Arrays of one run, or those that several runs share, side by side.

    Args:
        runs: one run, or several.
        array: which array is shown first; default: the first one with pictures, else the first.
        names: how the runs are called beside their pictures; default: their ids.

    Raises:
        OutputError: there is no such array.
    """

    def __init__(self, runs: Sequence[StoredRun], array: str | None = None, *, names: Sequence[str] = ()) -> None:
        self.arrays = RunArrays(runs, names)
        self.view: View | None = None
        self._choose(array if array is not None else _first(self.arrays))

    def _choose(self, name: str | None) -> None:
        self.array = name
        if name is not None:
            self.source = self.arrays.source(name)
            self.view = default_view(self.source)

    @property
    def bytes_read(self) -> int:
        """Bytes read from the store so far."""
        return self.arrays.bytes_read

    def answer(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """What the front end's message is answered with. Errors are answers, too: the panel shows them."""
        base = {"seq": message.get("seq", 0)}
        try:
            if message.get("array") is not None and message["array"] != self.array:
                self._choose(str(message["array"]))
                base["spec"] = self.spec()
            elif message.get("view") is not None:
                self.view = settled(spelled(message["view"]), self.source)
            assert self.view is not None
            frame = make_frame(self.view, self.source, self.arrays)
        except (WorkbenchError, ValueError, TypeError, LookupError, OSError, MemoryError) as error:
            text = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
            return base | {"error": visible(text)}, []
        return base | frame.info, frame.buffers

    def spec(self) -> dict[str, Any]:
        """What the controls offer."""
        assert self.view is not None
        return spec(self.arrays, self.source, self.view) | {
            "arrays": [_listed(self.arrays, n) for n in self.arrays.names]
        }

    def __repr__(self) -> str:
        ids = ", ".join(run.id for run in self.arrays.runs)
        return f"<arrays of {ids}: {', '.join(self.arrays.names) or 'none'}>"

    def _widget(self) -> ipywidgets.DOMWidget:
        if self.array is None:
            several = len(self.arrays.runs) > 1
            what = "These runs share no array" if several else "This run stored no arrays"
            advice = (
                "Arrays of one name are shown side by side where their dims and sizes are the same."
                if several
                else "Its metrics and series are in run.panel(); a run that is not complete may have arrays later."
            )
            return style.frame(style.markup(style.empty(what, advice)))
        return style.frame(_explorer_widget(self))

    def _static(self) -> str:
        rows = [
            (element("code", item["name"]), item["text"], item["dtype"], item["size"], item["description"])
            for item in (_listed(self.arrays, name) for name in self.arrays.names)
        ]
        head = element("div", "Arrays of ", *[element("code", run.id) for run in self.arrays.runs], class_="wb-head")
        if not rows:
            return notebook_fragment(head, element("p", "There are none.", class_="wb-dim"))
        columns = ("array", "dims", "dtype", "size", "what")
        note = element("div", "Run the cell to look into them.", class_="wb-dim")
        return notebook_fragment(head, table_html(columns, rows, (False, False, False, True, False)), note)


def _first(arrays: RunArrays) -> str | None:
    names = arrays.names
    pictures = [name for name in names if {"y", "x"} <= set(arrays.entry(name)["dims"])]
    return next(iter(pictures or names), None)


def _listed(arrays: RunArrays, name: str) -> dict[str, Any]:
    entry = arrays.entry(name)
    sizes = [f"{dim} {size:,}" for dim, size in zip(entry["dims"], entry["shape"], strict=True)]
    return {
        "name": name,
        "text": " × ".join(sizes) or "one number",
        "shape": " × ".join(f"{size:,}" for size in entry["shape"]) or "one number",
        "dtype": "text" if entry["dtype"] == "string" else entry["dtype"],
        "size": bytes_text(entry["bytes"]),
        "description": entry.get("description") or "",
    }


@cache
def _widget_class() -> Any:
    """Made when it is first displayed: ipywidgets takes a while to import."""
    import anywidget
    import traitlets

    class ExplorerWidget(anywidget.AnyWidget):  # type: ignore[misc]
        _esm = style.asset("common.js") + style.asset("explore_pictures.js") + style.asset("explore.js")
        _css = style.asset("common.css") + style.asset("explore.css")
        spec = traitlets.Dict().tag(sync=True)
        color_maps = traitlets.Dict().tag(sync=True)
        palette = traitlets.Dict().tag(sync=True)

    return ExplorerWidget


def _explorer_widget(explorer: Explorer) -> Any:
    palette = {"light": list(COLORS), "dark": list(COLORS_ON_DARK)}
    made = _widget_class()(spec=explorer.spec(), color_maps=color_maps(), palette=palette)

    def received(widget: Any, message: Any, buffers: Any) -> None:
        answer, frames = explorer.answer(message if isinstance(message, dict) else {})
        widget.send(answer, frames)

    made.on_msg(received)
    return made
