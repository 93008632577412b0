"""All runs of a store in a table: search, facets, order, columns, saved views; select to compare, click to open.

    bench.browse()
    bench.browse("family = quantization and accuracy > 0.9", sort="accuracy")
    bench.browse(view="figure 3")

The script in `static/browse*.js` draws the rows on view and asks for them by messages; `browse_model` answers. The index
on this machine serves every question, so the table stays quick with 100,000 runs wherever the store lies.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, WorkbenchError
from workbench.panels import style
from workbench.panels.browse_model import BrowseModel, State, view_state
from workbench.panels.panel import Panel
from workbench.render.html import runs_html
from workbench.render.markup import element, join, visible
from workbench.runs import Run, Runs
from workbench.store import StoredRun
from workbench.store.query import compile_query
from workbench.store.store import current_user

if TYPE_CHECKING:
    import ipywidgets

    from workbench.bench import Workbench

__all__ = ["BrowsePanel"]

PROMPT = 0.7
"""Seconds that the first look at the store may take before the table opens without rows."""
INTERVAL, REMOTE_INTERVAL = 2_000, 10_000
"""Milliseconds between looks at the store while the table is on view; longer where each look costs requests."""
MOST_COMPARED = 50
STATIC_ROWS = 25


@cache
def _table_class() -> Any:
    import anywidget
    import traitlets

    scripts = ("common.js", "browse_grid.js", "browse_search.js", "browse_side.js", "browse.js")

    class RunTableView(anywidget.AnyWidget):  # type: ignore[misc]
        _esm = "".join(map(style.asset, scripts))
        _css = style.asset("style.css") + style.asset("browse.css")
        label = traitlets.Unicode().tag(sync=True)
        interval = traitlets.Int(INTERVAL).tag(sync=True)
        state: Any = traitlets.Dict().tag(sync=True)
        first: Any = traitlets.Dict().tag(sync=True)
        selected: Any = traitlets.List().tag(sync=True)
        widths: Any = traitlets.Dict().tag(sync=True)
        writable = traitlets.Bool(True).tag(sync=True)
        opened = traitlets.Unicode().tag(sync=True)

    return RunTableView


class BrowsePanel(Panel):
    """`bench.browse(...)`."""

    def __init__(
        self,
        bench: Workbench,
        where: str = "",
        *,
        view: str | None = None,
        columns: Sequence[str] = (),
        sort: str = "started",
        descending: bool | None = None,
    ) -> None:
        self._bench = bench
        if view is not None:
            state = _saved(bench, view)
        else:
            texts = ("status", "family", "method", "user", "host", "device", "study", "tag", "input")
            falling = sort.lower() not in texts if descending is None else descending
            value = {"query": where, "columns": list(columns), "sort": sort, "descending": falling}
            state = State.from_json(value)
        compile_query(state.question.query, user=current_user())
        self._model = BrowseModel(bench.store, state)
        self._ready = threading.Event()

    # --- for people ---------------------------------------------------------------------------------------------------

    @property
    def selected(self) -> Runs:
        """The runs that are selected in the table."""
        return Runs(self._bench[run] for run in self._table.selected) if "widget" in self.__dict__ else Runs()

    @property
    def where(self) -> str:
        """The query in the search box."""
        return self._model.state.question.query

    def save(self, name: str) -> None:
        """Save what the table shows under a name; a colleague opens it with `bench.browse(view=name)`.

        Raises:
            InputError: the name is empty, long or not printable. StoreError: the store cannot be written.
        """
        if not self._model.state.columns:
            self._model.first()  # columns are chosen from the first rows
        self._model.save(name)

    def __repr__(self) -> str:
        asked = self._model.state.question
        return f"<table of the runs in {self._bench.store.url}{f' where {asked.query}' if asked.query else ''}>"

    # --- the widget ---------------------------------------------------------------------------------------------------

    def _widget(self) -> ipywidgets.DOMWidget:
        import ipywidgets

        remote = self._bench.store.backend.remote
        first = self._first()
        self._table = _table_class()(
            label=f"Runs of {visible(self._bench.store.url, 200)}",
            interval=REMOTE_INTERVAL if remote else INTERVAL,
            state=self._model.state.to_json(),
            first=first,
            writable=self._bench.store.backend.writable,
        )
        self._table.on_msg(self._hear)
        self._below = ipywidgets.VBox()
        return style.frame(self._table, self._below)

    def _first(self) -> dict[str, Any]:
        """The first page; where the store has to be read first, that goes on in the background and the table opens at once."""
        found: dict[str, Any] = {}

        def look() -> None:
            try:
                found.update(self._model.first())
            except WorkbenchError as error:
                found["error"] = visible(error, 1_000)
            finally:
                self._ready.set()

        threading.Thread(target=look, name="workbench-browse", daemon=True).start()
        return found if self._ready.wait(PROMPT) else {}

    def _hear(self, _: Any, message: Any, buffers: Any) -> None:
        """Answer a message of the script. Everything in it is checked, and an error is part of the answer."""
        if not isinstance(message, Mapping) or not isinstance(message.get("id"), str):
            return
        kind = message.get("kind")
        if not self._ready.is_set():
            reply: dict[str, Any] = {"building": True}
        elif kind == "open":
            reply = self._open(str(message.get("run", "")))
        elif kind == "close":
            self._close()
            reply = {}
        elif kind == "compare":
            reply = self._compare(message.get("runs"))
        else:
            try:
                reply = self._model.answer(message)
            except (ValueError, TypeError, KeyError, OSError, LookupError) as error:
                reply = {"error": visible(f"{type(error).__name__}: {error}", 500)}
            if kind == "ask" and "state" in reply:
                self._table.state = reply["state"]  # read when the page is loaded again
        self._table.send({**reply, "id": message["id"]})

    def _open(self, run_id: str) -> dict[str, Any]:
        """Show a run below the table."""
        return self._show(lambda: self._bench[run_id].panel().widget, run_id)

    def _compare(self, runs: Any) -> dict[str, Any]:
        if not isinstance(runs, list) or not 2 <= len(runs) <= MOST_COMPARED:
            return {"error": f"Select 2 to {MOST_COMPARED} runs to compare."}
        return self._show(lambda: self._bench.compare([str(run) for run in runs]).panel().widget, "")

    def _show(self, make: Any, opened: str) -> dict[str, Any]:
        import ipywidgets

        try:
            shown = make()
        except (WorkbenchError, ValueError, OSError, LookupError, TypeError) as error:
            shown = style.markup(style.error(f"{error}" or type(error).__name__))
        close = ipywidgets.Button(description="Close", icon="times", layout=ipywidgets.Layout(width="auto"))
        close.on_click(lambda _: self._close())
        bar = ipywidgets.HBox([close], layout=ipywidgets.Layout(justify_content="flex-end", margin="6px 0 0"))
        for before in self._below.children:
            before.close()
        self._below.children = [bar, shown]
        self._table.opened = opened
        return {"opened": opened}

    def _close(self) -> None:
        self._below.children = []
        self._table.opened = ""

    # --- without a kernel ---------------------------------------------------------------------------------------------

    def _static(self) -> str:
        """The first rows as a table without scripts."""
        if not self._ready.wait(PROMPT):
            return str(
                element("p", "The store is being read for the first time; run the cell again for a table of its runs.")
            )
        where = self._model.state.question
        numbers, total = self._model.table.first(where, STATIC_ROWS)
        ids = [row.id for row in self._model.table.rows(numbers, ())]
        # By number: looking runs up by their ids one by one takes longer than all the rest of the cell.
        store = self._bench.store
        chosen = ",".join("?" * len(numbers))
        records = {item.id: item for item in store.index.select((f"n IN ({chosen})", numbers.tolist()))}
        runs = Runs(Run(self._bench, StoredRun(store.backend, records[run])) for run in ids if run in records)
        more = f"{total:,} run{'' if total == 1 else 's'}" + (
            f", the first {len(runs)} are shown" if total > len(runs) else ""
        )
        asked = f" where {where.query}" if where.query else ""
        return str(
            join([element("p", f"{more}{asked}. With a kernel, bench.browse() searches all of them.")])
        ) + runs_html([run.info for run in runs])


def _saved(bench: Workbench, name: str) -> State:
    """A view by its name.

    Raises:
        InputError: there is none of this name, or somebody saved something that is no view.
    """
    views = bench.store.annotations.views()
    if name not in views:
        close = difflib.get_close_matches(name, views, n=1)
        listed = ", ".join(repr(visible(other, 80)) for other in sorted(views)[:10]) or "none is saved yet"
        raise InputError(
            "view",
            expected=f"the name of a saved view ({listed})",
            got=repr(name),
            hint=f"Did you mean {close[0]!r}?" if close else "",
        )
    return view_state(views[name])
