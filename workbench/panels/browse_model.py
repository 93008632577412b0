"""What the table of runs answers to the script in the browser: plain values in, plain values out, no widgets.

Every message is a dict with `kind`; `BrowseModel.answer` returns the reply. The order of the rows is computed once per
question and has a version; pages are asked for by version, so rows of two orders are never mixed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError, WorkbenchError
from workbench.panels import browse_cells
from workbench.panels.browse_completion import COLUMNS, advice, complete, problem
from workbench.render.markup import visible
from workbench.store.store import current_user
from workbench.store.table import FACETS, Question, RunTable

if TYPE_CHECKING:
    from workbench.store import Store

__all__ = ["BrowseModel", "State"]

PAGE = 60
"""Rows of the first page, and of every page."""
MOST_ROWS = 400
"""Rows of one answer."""
MOST_COLUMNS = 40
MOST_FACETS = 60
"""Values of a facet that are shown."""
MOST_SELECTED = 500
LONGEST_QUERY = 5_000


@dataclass(frozen=True)
class State:
    """What somebody is looking at; this is what a saved view keeps."""

    question: Question = field(default_factory=Question)
    columns: tuple[str, ...] = ()
    """Empty: chosen from the first rows."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the script has them."""
        asked = self.question
        return {
            "query": asked.query, "facets": {name: list(values) for name, values in asked.facets.items()},
            "sort": asked.sort, "descending": asked.descending, "columns": list(self.columns),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> State:
        """Checked: it may come from the browser or from a view that somebody else saved.

        Raises:
            InputError: it is not a state.
        """
        facets, columns = value.get("facets", {}), value.get("columns", ())
        query, sort = value.get("query", ""), value.get("sort", "started")
        sound = (
            isinstance(query, str)
            and len(query) <= LONGEST_QUERY
            and isinstance(sort, str)
            and isinstance(facets, Mapping)
            and all(name in FACETS and _texts(values) for name, values in facets.items())
            and _texts(columns)
        )
        if not sound:
            raise InputError("view", expected="query, facets, sort and columns", got=visible(value, 200))
        question = Question(
            query, {name: tuple(values) for name, values in facets.items() if values}, sort.lower(),
            bool(value.get("descending", True)),
        )  # fmt: skip
        return cls(question, tuple(dict.fromkeys(name.lower() for name in columns))[:MOST_COLUMNS])


class BrowseModel:
    """The table over one store, as one panel looks at it. May be called from several threads, one at a time works."""

    def __init__(self, store: Store, state: State | None = None) -> None:
        self.store = store
        self.table = RunTable(store.index, store.backend, current_user())
        self.state = state or State()
        self._order: np.ndarray | None = None
        self._version = 0
        self._lock = threading.RLock()
        self._described: dict[str, Mapping[str, Any]] = {}

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a message; what goes wrong is in it as `error`."""
        kinds = {
            "ask": self._ask, "rows": self._rows, "facets": self._facets, "tick": self._tick, "complete": self._complete,
            "names": self._names, "views": self._views, "save": self._save, "forget": self._forget, "ids": self._ids,
        }  # fmt: skip
        call = kinds.get(str(message.get("kind")))
        if call is None:
            return {"error": "an unknown question"}
        with self._lock:
            try:
                return call(message)
            except WorkbenchError as error:
                return {"error": visible(error, 1_000)}

    def first(self) -> dict[str, Any]:
        """The first page, as fast as it can be had: the order of all rows is not made for it.

        Raises:
            InputError: the query is not understood.
        """
        with self._lock:
            self.table.look()
            numbers, total = self.table.first(self.state.question, PAGE)
            self._order, self._version = None, self._version + 1
            return self._page(numbers, total)

    # --- answers ----------------------------------------------------------------------------------------------------

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Another question, other columns: a first page in a new order."""
        before = self.state
        state = State.from_json(message.get("state") or {})
        if message.get("look"):
            self.table.look()
        try:
            order = self.table.order(state.question)
        except InputError as error:
            found = problem(error, state.question.query)
            unfinished = found.place is not None and not state.question.query[found.place :].strip()
            return {"problem": found.message, "unfinished": unfinished}
        self.state = state
        self._order, self._version = order, self._version + 1
        if not state.columns:
            self.state = replace(state, columns=before.columns)
        start = max(0, min(int(message.get("start", 0)), len(order) - 1))
        reply = self._page(order[start : start + PAGE], len(order)) | {"start": start}
        if not len(order):
            reply["empty"] = self._empty()
        return reply

    def _page(self, numbers: np.ndarray, total: int) -> dict[str, Any]:
        if not self.state.columns and total:
            self.state = replace(self.state, columns=tuple(self._chosen(numbers)))
        columns = self.state.columns or browse_cells.DEFAULT_COLUMNS
        rows = self.table.rows(numbers, columns)
        reply = {
            "version": self._version, "total": total, "start": 0, "live": self.table.live,
            "columns": [browse_cells.column(name, self._described_as(name)) for name in columns],
            "rows": [browse_cells.row(found, columns) for found in rows], "state": self.state.to_json(),
        }  # fmt: skip
        return reply if total else reply | {"empty": self._empty()}

    def _chosen(self, numbers: np.ndarray) -> list[str]:
        metrics = [name for name in self.table.names() if not name.startswith("params.")][:300]
        rows = self.table.rows(numbers, metrics)
        return browse_cells.default_columns(rows, metrics, studies=any(row.cells.get("study") for row in rows))

    def _described_as(self, name: str) -> Mapping[str, Any]:
        if name in COLUMNS or name.startswith("params."):
            return {}
        if name not in self._described:
            self._described[name] = self.table.metric(name)
        return self._described[name]

    def _rows(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if message.get("version") != self._version:
            return {"stale": True, "version": self._version}
        start, count = int(message["start"]), max(0, min(int(message["count"]), MOST_ROWS))
        numbers = self._ordered()[max(0, start) : max(0, start) + count]
        found = {row.number: row for row in self.table.rows(numbers, self.state.columns)}
        rows = [browse_cells.row(found[n], self.state.columns) if n in found else None for n in numbers.tolist()]
        return {"version": self._version, "start": start, "rows": rows}

    def _ordered(self) -> np.ndarray:
        if self._order is None:
            self._order = self.table.order(self.state.question)
        return self._order

    def _facets(self, message: Mapping[str, Any]) -> dict[str, Any]:
        counts = self.table.counts(self.state.question)
        shown = []
        for name in FACETS:
            chosen = self.state.question.facets.get(name, ())
            values = [(value, count) for value, count in counts[name][:MOST_FACETS]]
            values += [item for item in counts[name][MOST_FACETS:] if item[0] in chosen]
            if values:
                listed = [{"value": value, "text": visible(value, 80), "count": count} for value, count in values]
                shown.append({"name": name, "values": listed, "more": max(0, len(counts[name]) - len(values))})
        return {"facets": shown, "version": self._version, "total": len(self._ordered())}

    def _tick(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Look at the store: a new order if runs came, went or ended, with the new place of the run that is on top."""
        if not self.table.look():
            return {"changed": False, "live": self.table.live, "version": self._version}
        self._order, self._version = self.table.order(self.state.question), self._version + 1
        anchor = message.get("anchor")
        place = self.table.position(self._order, str(anchor)) if anchor else None
        reply: dict[str, Any] = {
            "changed": True, "live": self.table.live, "version": self._version, "total": len(self._order), "place": place,
        }  # fmt: skip
        return reply if len(self._order) else reply | {"empty": self._empty()}

    def _complete(self, message: Mapping[str, Any]) -> dict[str, Any]:
        text = str(message.get("text", ""))[:LONGEST_QUERY]
        cursor = max(0, min(int(message.get("cursor", len(text))), len(text)))
        found = complete(text, cursor, self.table.names, self.table.values)
        options = [
            {"text": option.text, "shown": visible(option.text, 80), "detail": visible(option.detail, 80)}
            for option in found.options
        ]
        return {"from": found.start, "to": found.end, "options": options}

    def _names(self, message: Mapping[str, Any]) -> dict[str, Any]:
        names = self.table.names()
        return {
            "columns": [{"name": name, "help": COLUMNS[name]} for name in browse_cells.SHOWABLE],
            "metrics": [name for name in names if not name.startswith("params.")],
            "parameters": [name for name in names if name.startswith("params.")],
        }

    def _ids(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Ids of the runs between two places: to select a range."""
        if message.get("version") != self._version:
            return {"stale": True, "version": self._version}
        first, last = sorted((int(message["first"]), int(message["last"])))
        numbers = self._ordered()[max(0, first) : last + 1][:MOST_SELECTED]
        return {"ids": [row.id for row in self.table.rows(numbers, ())]}

    # --- saved views ------------------------------------------------------------------------------------------------

    def _views(self, message: Mapping[str, Any]) -> dict[str, Any]:
        views = sorted(self.store.annotations.views().values(), key=lambda view: view.name.lower())
        listed = []
        for view in views:
            shown: dict[str, Any] = {"name": view.name, "text": visible(view.name, 80), "user": visible(view.user, 40)}
            try:
                listed.append(shown | {"state": view_state(view).to_json(), "query": visible(view.query, 120)})
            except InputError:
                listed.append(shown | {"query": "cannot be read"})
        return {"views": listed}

    def _save(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self.save(str(message.get("name", "")))
        return self._views({})

    def save(self, name: str) -> None:
        """Save what is looked at under a name, for everybody who uses the store.

        Raises:
            InputError: the name is empty, long or not printable. StoreError: the store cannot be written.
        """
        name = name.strip()
        if not name or len(name) > 80 or not name.isprintable():
            raise InputError("name", expected="1 to 80 printable characters", got=repr(name[:100]))
        asked = self.state.question
        facets = {facet: tuple(values) for facet, values in asked.facets.items()}
        self.store.annotations.save_view(
            name, asked.query, self.state.columns, sort=asked.sort, descending=asked.descending, facets=facets
        )

    def _forget(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self.store.annotations.delete_view(str(message.get("name", "")))
        return self._views({})

    # --- nothing to show --------------------------------------------------------------------------------------------

    def _empty(self) -> dict[str, Any]:
        """What to do where there are no rows."""
        asked = self.state.question
        if not asked.query.strip() and not asked.facets:
            lines = [
                "The first run makes the store:",
                'bench.run("METHOD", data=..., ...)',
                "bench.methods lists what can be run.",
            ]
            return {"title": "No runs yet", "advice": lines}
        lines = advice(asked.query, self.table.names)
        if not lines and asked.facets:
            lines = ["The search and the filters on the left have no run in common."]
        return {"title": "No run meets this", "advice": lines or ["Try fewer conditions."], "clear": True}


def view_state(view: Any) -> State:
    """What a saved view shows.

    Raises:
        InputError: somebody saved something that is no view.
    """
    value = {"query": view.query, "columns": list(view.columns), "facets": dict(view.facets)}
    return State.from_json(value | {"sort": view.sort, "descending": view.descending})


def _texts(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(item, str) and len(item) <= 1_000 for item in values)
