"""One run to look through: what it found, its arrays, parameters, lineage, curves, provenance, code and what people say of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.panels import style
from workbench.panels.lineage import lineage, lineage_view
from workbench.panels.panel import Panel
from workbench.panels.parts import code_view, curves_view, figures_view, fragment, series_curves, sheet, tabs
from workbench.render import RenderedReport, sections
from workbench.render.html import CARDS, run_head, run_html
from workbench.render.layout import layout_table
from workbench.render.markup import Html, element, join, visible
from workbench.render.texts import bytes_text

if TYPE_CHECKING:
    import ipywidgets

    from workbench.runs import Run

__all__ = ["RunPanel"]

MOST_FIGURES = 24
"""Figures drawn at once; a report with more says so."""
TRACEBACK = 12_000
"""Characters of a traceback that are shown, from its end."""


class RunPanel(Panel):
    """`run.panel()`. Tabs are filled when they are opened; a click in the lineage opens that run in the same place."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._before: list[Run] = []

    def __repr__(self) -> str:
        return f"<panel of {self.run!r}>"

    def _static(self) -> str:
        return run_html(self.run.info)

    def _widget(self) -> ipywidgets.DOMWidget:
        import ipywidgets

        self._content = ipywidgets.VBox()
        self._content.add_class("wbr")
        self._fill()
        return style.frame(sheet("run.css"), self._content)

    # --- going from run to run --------------------------------------------------------------------------------------

    def open(self, run_id: str) -> None:
        """Show another run in the panel's place; the button back leads to this one.

        Raises:
            RunNotFoundError: there is none.
        """
        self._before.append(self.run)
        self.run = self.run._bench[run_id]
        self._fill()

    def back(self) -> None:
        """Show the run from before."""
        if self._before:
            self.run = self._before.pop()
            self._fill()

    def look_again(self) -> None:
        """Read the run anew: one that was running may have gone on, or ended."""
        self.run = self.run._bench[self.run.id]
        self._fill()

    def _fill(self) -> None:
        import ipywidgets

        bar: list[ipywidgets.Widget] = []
        if self._before:
            back = ipywidgets.Button(description=f"Back to {self._before[-1].method}", icon="arrow-left")
            back.on_click(lambda _: self.back())
            back.layout.width = "auto"
            bar.append(back)
        if self.run.status == "running":
            look = ipywidgets.Button(description="Look again", icon="refresh", tooltip="Read the run's record anew")
            look.on_click(lambda _: self.look_again())
            look.layout.width = "auto"
            bar.append(look)
        bars = [ipywidgets.HBox(bar)] if bar else []
        self._content.children = [*bars, _head(self.run), self._tabs()]

    def _tabs(self) -> ipywidgets.DOMWidget:
        run = self.run
        running = run.status == "running"
        pages: dict[str, Callable[[], list[ipywidgets.Widget]]] = {
            "Found": lambda: _found(run),
            "Arrays": lambda: _arrays(run),
            "Parameters": lambda: [_parameters(run)],
            "Curves and log": lambda: _log(run),
            "Lineage": lambda: [lineage_view(lineage(run._bench.store, run.id), self.open)],
            "Provenance": lambda: [fragment(sections.provenance_list(run.info))],
            "Code": lambda: [code_view(run.info.code())],
            "Notes": lambda: _notes(run, self._heading),
        }
        unread = running or run.record.report is None
        return tabs(pages, first=list(pages).index("Curves and log") if unread else 0)

    def _heading(self) -> None:
        """Draw the head anew, after tags changed."""
        children = list(self._content.children)
        at = len(children) - 2
        children[at] = _head(self.run)
        self._content.children = children


# ------------------------------------------------------------------------------------------------------------- contents


def _head(run: Run) -> ipywidgets.HTML:
    info, said = run.info, run.annotations
    tags: list[object] = [element("span", tag, class_="wbr-tag wb-text") for tag in said.tags]
    if said.pinned:
        tags.insert(0, element("span", "pinned", class_="wbr-tag wbr-pinned"))
    if said.archived:
        tags.insert(0, element("span", "archived", class_="wbr-tag"))
    lead = element("p", info.report.summary, class_="wb-lead wb-text") if info.report is not None else None
    return fragment(run_head(info), element("div", *tags, class_="wbr-tags") if tags else None, lead)


def _found(run: Run) -> list[ipywidgets.Widget]:
    if run.record.report is None:
        advice = (
            "It is still running: its curves are in the next tabs."
            if run.status == "running"
            else "See “Curves and log”."
        )
        return [style.markup(style.empty(f"A run that is {run.status} has no report", advice))]
    report = run.report_data()
    rendered = RenderedReport(report, run.stored, run.info)
    parts: list[ipywidgets.Widget] = []
    if report.metrics:
        every = element(
            "details",
            element("summary", f"all {len(report.metrics)} metrics"),
            sections.metrics_table(report.metrics),
        )
        more = every if len(report.metrics) > CARDS else None
        parts.append(fragment(sections.metric_cards(report.metrics[:CARDS]), more))
    figures = list(rendered.figures.values())
    undrawn = rendered._undrawn()
    if undrawn:
        parts.append(fragment(*undrawn))
    if figures:
        parts.append(
            figures_view([{"application/vnd.plotly.v1+json": _plotly(figure)} for figure in figures[:MOST_FIGURES]])
        )
    rest: list[Html] = [sections.report_table(table) for table in report.tables]
    if report.notes:
        rest += [element("h3", "Notes"), sections.notes_list(report.notes)]
    if len(figures) > MOST_FIGURES:
        rest.append(element("p", f"{len(figures) - MOST_FIGURES} more figures are in run.report().", class_="wb-dim"))
    if rest:
        parts.append(fragment(*rest))
    return parts or [
        style.markup(style.empty("The report is empty", "The method reported neither metrics nor figures."))
    ]


def _plotly(figure: Any) -> dict[str, Any]:
    import json

    document: dict[str, Any] = json.loads(figure.to_json())
    return document | {"config": {"displaylogo": False, "responsive": True}}


def _arrays(run: Run) -> list[ipywidgets.Widget]:
    from workbench.panels.explore import Explorer

    explorer = Explorer([run.stored])
    if not run.stored.outputs:
        return [explorer.widget]
    count = len(run.stored.outputs)
    total = bytes_text(sum(run.record.arrays[name]["bytes"] for name in run.stored.outputs))
    summary = element("summary", f"{count} array{'' if count == 1 else 's'}, {total} before compression")
    table = element("details", summary, layout_table(run.record.arrays, run.stored.outputs))
    return [fragment(table), explorer.widget]


def _parameters(run: Run) -> ipywidgets.HTML:
    info = run.info
    changed = sum(info.changed(name) for name in info.params)
    told = f"{changed} of {len(info.params)} differ from the defaults; those are marked." if info.params else ""
    parts: list[object] = []
    if info.params:
        ordered = sorted(info.params, key=lambda name: not info.changed(name))
        parts += [element("div", told, class_="wb-dim"), sections.parameters_table(info, ordered)]
    else:
        parts.append(element("div", "The method has no parameters.", class_="wb-dim"))
    if info.inputs:
        parts += [element("h3", "Inputs"), sections.inputs_table(info)]
    return fragment(*parts)


def _log(run: Run) -> list[ipywidgets.Widget]:
    parts: list[ipywidgets.Widget] = []
    record = run.record
    if record.failure:
        what = f"{record.failure.get('type', 'Error')}: {record.failure.get('message', '')}"
        trace = visible(str(record.failure.get("traceback") or "")[-TRACEBACK:], TRACEBACK + 100)
        parts.append(
            style.markup(join_box(style.error(what), element("pre", trace, class_="wbr-trace") if trace else None))
        )
    if record.status == "running":
        done, total = record.progress.get("done"), record.progress.get("total")
        share = (
            f"{done / total:.0%} " if isinstance(done, int | float) and isinstance(total, int | float) and total else ""
        )
        parts.append(style.markup(element("div", share, str(record.progress.get("message") or ""), class_="wb-text")))
    charts = series_curves({"": run.series})
    if charts:
        parts.append(curves_view(charts))
    if not parts:
        parts.append(style.markup(style.empty("The run logged no series", "Methods log with out.log(step, loss=...).")))
    return parts


def join_box(*content: object) -> Html:
    """Parts in one block."""
    return element("div", join(part for part in content if part is not None))


def _notes(run: Run, changed: Callable[[], None]) -> list[ipywidgets.Widget]:
    """Tags, pin and notes, to read and to write."""
    import ipywidgets

    said = run.annotations
    trouble = ipywidgets.VBox()
    listed = ipywidgets.VBox()

    def attempt(act: Callable[[], None]) -> None:
        try:
            act()
            trouble.children = ()
        except (WorkbenchError, OSError) as error:
            trouble.children = (style.markup(style.error(str(error))),)
        show()
        changed()

    def show() -> None:
        notes = said.notes
        rows = [
            element(
                "li",
                element("span", f"{note.user}, {note.time[:10]}: ", class_="wb-muted"),
                element("span", note.text, class_="wb-text"),
            )
            for note in notes
        ]
        listed.children = (
            style.markup(
                element("ul", *rows, class_="wbr-notes") if rows else element("div", "No notes yet.", class_="wb-muted")
            ),
        )

    if not run._bench.store.backend.writable:
        show()
        words = ", ".join(said.tags) or "none"
        told = element("div", f"Tags: {words}. This store cannot be written here.", class_="wb-muted wb-text")
        return [style.markup(told), listed]
    tags = ipywidgets.TagsInput(value=list(said.tags), allow_duplicates=False, placeholder="add a tag")
    tags.tooltip = "Tags to search for: tag = paper"

    def retag(change: Any) -> None:
        new, old = set(change["new"]), set(said.tags)

        def act() -> None:
            said.tag(*sorted(new - old))
            said.untag(*sorted(old - new))

        attempt(act)

    tags.observe(retag, names="value")
    pin = ipywidgets.ToggleButton(said.pinned, description="Pinned" if said.pinned else "Pin", icon="thumb-tack")
    pin.tooltip = "A pinned run is never cleaned up"

    def repin(change: Any) -> None:
        pin.description = "Pinned" if change["new"] else "Pin"
        attempt(said.pin if change["new"] else said.unpin)

    pin.observe(repin, names="value")
    text = ipywidgets.Textarea(placeholder="What should a colleague know about this run?", rows=3)
    text.layout.width = "min(560px, 100%)"
    text.tooltip = "A note on this run"
    add = ipywidgets.Button(description="Add note", button_style="primary")

    def write(_: Any) -> None:
        def act() -> None:
            said.note(text.value)
            text.value = ""

        attempt(act)

    add.on_click(write)
    show()
    return [ipywidgets.HBox([pin, tags]), listed, text, add, trouble]
