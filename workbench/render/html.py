"""Pages and fragments: a run's self-contained report, the page that links several, and what a notebook shows of runs.

Pages need no scripts and ask for nothing from anywhere; their content security policy says so to the browser. Every
text that comes from a store passes `markup.element`, which escapes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from workbench._version import __version__
from workbench.errors import InputError, WorkbenchError
from workbench.render import sections
from workbench.render.info import RunInfo
from workbench.render.markup import Html, element, embedded, join
from workbench.render.plots import BarPlot, ImageGridPlot, PicturePlot, Plot, ReliabilityPlot, TablesPlot
from workbench.render.stylesheet import NOTEBOOK, PAGE
from workbench.render.texts import bytes_text, duration_text
from workbench.report import FreeForm, Metric, Report, UnknownView, View

if TYPE_CHECKING:
    from workbench.method import Result

__all__ = [
    "IndexCard",
    "RunInfo",
    "figures_section",
    "index_html",
    "methods_html",
    "notebook_fragment",
    "page",
    "report_html",
    "resolve_views",
    "run_html",
    "runs_html",
    "section",
]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
CARDS = 10
"""Metrics shown as cards; a report may have dozens, and the first ones are the ones to read."""


def report_html(report: Report, result: Result, info: RunInfo) -> str:
    """One self-contained HTML file about a run.

    Args:
        report: what was found.
        result: the stored arrays its views draw from.
        info: everything else there is to say about the run.
    """
    body = join(
        [
            _header(info),
            element("p", report.summary, class_="wb-lead"),
            _failure(info),
            _metrics(report.metrics),
            figures_section(report.views, result, info.id),
            section(
                "Tables", *[element("div", sections.report_table(table), class_="wb-card") for table in report.tables]
            ),
            section("Notes", _card(sections.notes_list(report.notes)) if report.notes else None),
            section("Inputs", _card(sections.inputs_table(info)) if info.inputs else None),
            section("Parameters", *_parameters(info)),
            section("Arrays", _arrays(info)),
            section("Stored models", _card(sections.models_table(info)) if info.models else None),
            section("Provenance", _folded("Versions, machine, key", sections.provenance_list(info))),
            section("The same run in Python", _card(element("pre", element("code", info.code())))),
        ]
    )
    return page(f"{info.method_title} · {info.id}", body)


def page(title: str, body: Html) -> str:
    """A whole page around its body."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=f"workbench {__version__}"),
        element("title", title),
        element("style", embedded(PAGE)),
    )
    foot = element("p", f"Written by workbench {__version__}.", class_="wb-foot")
    return f"<!doctype html>\n{element('html', head, element('body', element('main', body, foot)), lang='en')}\n"


def section(title: str, *content: Html | None) -> Html | None:
    """A titled part of a page; nothing at all where it would be empty."""
    given = [part for part in content if part]
    if not given:
        return None
    return element("section", element("h2", title), element("div", *given, class_="wb-stack"))


def _card(content: Html) -> Html:
    return element("div", content, class_="wb-card")


def _folded(title: str, content: Html) -> Html:
    """Something for those who look for it: shown on a click, without scripts."""
    return element("details", element("summary", title), content, class_="wb-card")


def _metrics(metrics: Sequence[Metric]) -> Html | None:
    """The first metrics as cards; all of them in a folded table where there are more."""
    cards = sections.metric_cards(metrics[:CARDS])
    if cards is None or len(metrics) <= CARDS:
        return cards
    return join([cards, _folded(f"All {len(metrics)} metrics", sections.metrics_table(metrics))])


def _parameters(info: RunInfo) -> list[Html]:
    """What differs from the defaults in the open, everything else folded."""
    changed = [name for name in info.params if info.changed(name)]
    parts = [_card(sections.parameters_table(info, changed))] if changed else []
    unchanged = len(info.params) - len(changed)
    if unchanged:
        rest = [name for name in info.params if name not in changed]
        told = "1 parameter at its default" if unchanged == 1 else f"{unchanged} parameters at their defaults"
        parts.append(_folded(told, sections.parameters_table(info, rest)))
    return parts


def _header(info: RunInfo) -> Html:
    facts = {
        "run": element("code", info.id),
        "started": info.when,
        "by": info.who,
        "took": duration_text(info.seconds) if info.seconds is not None else "",
        "on": info.device,
        "seed": str(info.seed),
        "precision": info.precision,
        "code": "unpublished" if info.method_code else "",
    }
    facts |= {role: str(entry.get("label") or "") for role, entry in info.inputs.items() if role not in facts}
    listed = [element("div", element("dt", name), element("dd", text)) for name, text in facts.items() if text]
    return element(
        "header",
        element("div", element("span", info.method), sections.pill(info.status), class_="wb-eyebrow"),
        element("h1", info.method_title),
        element("dl", *listed, class_="wb-facts"),
    )


def _failure(info: RunInfo) -> Html | None:
    if not info.failure:
        return None
    what = f"{info.failure.get('type', 'Error')}: {info.failure.get('message', '')}"
    trace = str(info.failure.get("traceback") or "")
    return section("Why it ended", _card(join([element("p", what), element("pre", trace[-6_000:]) if trace else None])))


def _arrays(info: RunInfo) -> Html | None:
    if not info.arrays:
        return None
    sizes = [entry.get("bytes") for entry in info.arrays.values()]
    total = sum(size for size in sizes if isinstance(size, int))
    about = f"{len(info.arrays):,} arrays with coordinates and model states, {bytes_text(total)} before compression."
    return _folded(about, sections.arrays_table(info))


# -------------------------------------------------------------------------------------------------------------- views


def resolve_views(views: Sequence[View], result: Result) -> list[Plot | WorkbenchError]:
    """Every view as a plot, or the reason why it cannot be drawn: one damaged array must not hide the others."""
    from workbench.render.resolve import resolve

    plots: list[Plot | WorkbenchError] = []
    for view in views:
        try:
            plots.append(resolve(view, result))
        except WorkbenchError as error:
            plots.append(error)
    return plots


def figures_section(views: Sequence[View], result: Result, salt: str) -> Html | None:
    """Every view of a report as a still picture, or what is to be said in its place; `salt` tells it from others of a page."""
    if not views:
        return None
    from workbench.render.pixels import data_uri
    from workbench.render.static import svg

    cards = []
    for index, (view, plot) in enumerate(zip(views, resolve_views(views, result), strict=True)):
        if isinstance(plot, WorkbenchError):
            cards.append(_figure(view.title, _undrawn(plot), view.caption, wide=False))
        elif isinstance(plot, PicturePlot):
            picture = element("img", src=data_uri(plot.png), alt=plot.title)
            cards.append(_figure(plot.title, picture, plot.caption, wide=False))
        elif isinstance(plot, TablesPlot):
            cards.append(_figure(plot.title, sections.tables_of(plot), plot.caption, wide=False))
        else:
            picture = svg(plot, salt=f"{salt}/{index}")
            cards.append(_figure(plot.title, picture, plot.caption, wide=_wide(plot)))
    return section("Figures", element("div", *cards, class_="wb-views"))


def _figure(title: str, picture: Html, caption: str, *, wide: bool) -> Html:
    return element(
        "figure",
        element("h3", title),
        picture,
        element("figcaption", caption) if caption else None,
        class_="wb-card wb-wide" if wide else "wb-card",
    )


def _undrawn(error: WorkbenchError) -> Html:
    return element("p", f"This view cannot be drawn. {error}", class_="wb-missing wb-caption")


def _wide(plot: Plot) -> bool:
    """Whether a figure needs the width of the page."""
    if isinstance(plot, ReliabilityPlot):
        return len(plot.panels) > 2
    if isinstance(plot, ImageGridPlot):
        return len(plot.columns) > 5
    return isinstance(plot, BarPlot) and len(plot.x.categories) * len(plot.groups) > 24


# -------------------------------------------------------------------------------------------------------------- index


@dataclass(frozen=True)
class IndexCard:
    """One report on the page that links several. `thumbnail` is a drawing made by `static.svg`."""

    href: str
    """Address of the report, relative to the page."""
    method: str
    title: str
    summary: str
    metrics: tuple[Metric, ...] = ()
    status: str = "complete"
    device: str = ""
    seconds: float | None = None
    thumbnail: Html | None = None

    def __post_init__(self) -> None:
        if not self.href or re.match(r"(?:[a-zA-Z][a-zA-Z0-9+.-]*:|[/\\])", self.href.lstrip()) or "\\" in self.href:
            raise InputError("href", expected="a relative address", got=repr(self.href))

    @classmethod
    def from_report(
        cls, href: str, report: Report, result: Result, info: RunInfo, *, view: int | None = None
    ) -> IndexCard:
        """A card of a run's report.

        Args:
            href: address of its page, relative to the index.
            report: what was found.
            result: the arrays its views draw from.
            info: about the run.
            view: which view is the thumbnail; the first one that can be drawn if None.
        """
        from workbench.render.static import svg

        views = [item for item in report.views if not isinstance(item, FreeForm | UnknownView)]
        chosen = views if view is None else [report.views[view]]
        thumbnail = None
        for candidate in chosen:
            (plot,) = resolve_views([candidate], result)
            if not isinstance(plot, WorkbenchError):
                thumbnail = svg(_glimpse(plot), salt=f"card {href}", small=True)
                break
        return cls(
            href, info.method, info.method_title, report.summary, tuple(report.metrics), info.status,
            info.device, info.seconds, thumbnail,
        )  # fmt: skip


def _glimpse(plot: Plot) -> Plot:
    """As much of a plot as can be recognised at the size of a stamp."""
    if isinstance(plot, ReliabilityPlot):
        return replace(plot, panels=plot.panels[:1])
    if isinstance(plot, ImageGridPlot):
        cells = tuple(row[:4] for row in plot.cells[:3])
        return replace(plot, rows=plot.rows[:3], columns=tuple("" for _ in plot.columns[:4]), cells=cells)
    return plot


def index_html(cards: Sequence[IndexCard], *, title: str = "Workbench reports", intro: str = "") -> str:
    """The page that links several reports: what each found in one table, then a card for each."""
    links = [quote(card.href, safe="/.-_~#?=&%") for card in cards]
    rows = [
        (
            element("a", card.title, href=link),
            element("code", card.method),
            sections.metrics_line(card.metrics, 3),
            sections.pill(card.status),
            duration_text(card.seconds),
        )
        for card, link in zip(cards, links, strict=True)
    ]
    table = sections.table_html(("what", "method", "found", "status", "took"), rows, (False,) * 4 + (True,))
    boxes = [
        element(
            "a",
            element("div", element("span", card.method), class_="wb-eyebrow"),
            element("h3", card.title),
            card.thumbnail,
            element("p", card.summary, class_="wb-clip"),
            href=link,
            class_="wb-card",
        )
        for card, link in zip(cards, links, strict=True)
    ]
    body = join(
        [
            element("header", element("h1", title), element("p", intro, class_="wb-lead") if intro else None),
            _card(table) if cards else element("p", "There are no reports.", class_="wb-missing"),
            section("Reports", element("div", *boxes, class_="wb-cards")) if boxes else None,
        ]
    )
    return page(title, body)


# ---------------------------------------------------------------------------------------------------------- notebooks


def notebook_fragment(*content: object) -> str:
    """Content in a box with the style sheet for notebooks."""
    return element("div", element("style", embedded(NOTEBOOK)), *content, class_="workbench")


def run_head(info: RunInfo) -> Html:
    """Method, status, id and circumstances of a run in two lines."""
    took = duration_text(info.seconds) if info.seconds is not None else ""
    parts = [info.when, info.who, info.device, took, f"seed {info.seed}"]
    parts += ["from the store: nothing was computed"] if info.served else []
    return join(
        [
            element(
                "div",
                element("b", info.method_title, class_="wb-title"),
                " ",  # for readers that drop the style sheet
                sections.pill(info.status),
                " ",
                element("code", info.id, class_="wb-dim"),
                class_="wb-head",
            ),
            element("div", " · ".join(part for part in (info.method, *parts) if part), class_="wb-dim"),
        ]
    )


def run_html(info: RunInfo) -> str:
    """A run in a notebook: method, status, key metrics, arrays, and whether it came from the store."""
    summary = element("p", info.report.summary, class_="wb-lead") if info.report is not None else None
    metrics = sections.metrics_table(info.report.metrics[:6]) if info.report and info.report.metrics else None
    failure = None
    if info.failure:
        failure = element("pre", f"{info.failure.get('type', 'Error')}: {info.failure.get('message', '')}")
    progress = None
    if info.status == "running" and info.progress:
        done, total = info.progress.get("done"), info.progress.get("total")
        share = (
            f"{done / total:.0%}"
            if isinstance(done, (int, float)) and isinstance(total, (int, float)) and total
            else ""
        )
        progress = element("div", " ".join(p for p in (share, str(info.progress.get("message") or "")) if p))
    stored = None
    if info.arrays:
        what = " and ".join(part for part in ("arrays", "models" if info.models else "") if part)
        tables = [sections.arrays_table(info), sections.models_table(info) if info.models else None]
        stored = element("details", element("summary", f"Stored {what}"), *tables)
    return notebook_fragment(run_head(info), summary, failure, progress, metrics, stored)


def methods_html(titles: Mapping[str, str]) -> str:
    """Methods by id as a table."""
    rows = [(element("code", method_id), title) for method_id, title in titles.items()]
    return notebook_fragment(sections.table_html(("method", "what it tells"), rows))


def runs_html(infos: Sequence[RunInfo], *, most: int = 200) -> str:
    """Runs as a table."""
    rows = [
        (
            element("code", info.id),
            info.method,
            sections.pill(info.status),
            sections.metrics_line(info.report.metrics, 3) if info.report is not None else "",
            info.when,
            info.user,
            duration_text(info.seconds),
        )
        for info in infos[:most]
    ]
    table = sections.table_html(
        ("run", "method", "status", "found", "started", "by", "took"), rows, (False,) * 6 + (True,)
    )
    count = f"{len(infos):,} run" + ("" if len(infos) == 1 else "s")
    rest = f", the first {most:,} shown" if len(infos) > most else ""
    return notebook_fragment(element("div", count + rest, class_="wb-dim"), table if infos else None)
