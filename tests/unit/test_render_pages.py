"""Pages and notebook displays: self-contained, complete, and nothing that comes from a store becomes markup."""

from __future__ import annotations

import ast
import base64
import dataclasses
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from workbench.errors import InputError
from workbench.record import RunRecord
from workbench.render import IndexCard, RenderedReport, RunInfo, index_html, report_html, run_html, runs_html
from workbench.render.markup import Html, element, visible
from workbench.report import Histogram, Line, Report

from unit.render_cases import HOSTILE, StoredResult, every_view, report_of, result_of_every_view

ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "section", "div", "span", "p", "h1", "h2", "h3",
    "dl", "dt", "dd", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "mark", "code", "pre", "a", "b",
    "details", "summary", "figure", "figcaption", "img", "svg", "g", "defs", "path", "use", "text", "tspan",
    "clippath", "rect", "image",
}  # fmt: skip
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page as a browser would: tags, attributes, texts, and whether everything that opens also closes."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.open: list[str] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] == "style" else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def assert_harmless(markup: str) -> Page:
    """Nothing but our tags and attributes, no script, and no address that leaves the page."""
    page = Page(markup)
    assert not page.open
    assert {tag for tag, _ in page.tags} <= ALLOWED
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href"):
                known = ("#", "data:image/png;base64,", "https://arxiv.org/abs/", "reports/")
                assert value is not None
                assert value.startswith(known), (tag, value[:80])
            if name == "style":
                assert "url(" not in (value or "") or "url(#" in (value or "")
    assert not any("@import" in style or "url(" in style for style in page.styles)
    for forbidden in "\x00\x1b\u202e\u202c\u200f\ud800":
        assert forbidden not in markup
    markup.encode("utf-8")
    return page


def info_of(text: str = "", **changes) -> RunInfo:
    found = RunInfo(
        id="20261125-130501-views-4c1e09ab" + text,
        method="test.views" + text,
        method_title="What do views look like?" + text,
        status="complete",
        method_version="2" + text,
        method_code="c0de" + text,
        key="ab12" + text,
        seed=7,
        device="cpu" + text,
        user="lena" + text,
        host="bench" + text,
        started="2026-11-25T13:05:01.500Z",
        seconds=75.0,
        params={"bins": 15, "rate": 0.1, "widths": [2, 4], "mode" + text: text},
        default_params={"bins": 10, "rate": 0.1, "widths": (2, 4), "mode" + text: "x"},
        inputs={
            "model": {"kind": "model", "label": "resnet20" + text, "digest": "d1gest" + text},
            "data": {"kind": "data", "label": "20261101-000000-a-00000000[logit]", "runs": ["20261101-000000-a-00000000"]},
            "fit" + text: {"kind": "data", "label": "Dataset (sample 100, class 10)", "sizes": {"sample" + text: 100}},
        },
        paper={"title": "A paper" + text, "authors": "Doe", "year": 2020, "arxiv": "2001.01234" + text, "code": "a/b" + text},
        provenance={
            "versions": {"torch" + text: "2.13" + text},
            "project": {"commit": "deadbeef" + text, "uncommitted_changes": True},
            "device": {"name": "cpu" + text},
            "plugin": {"name": "plugin" + text, "version": "1"},
            "memory": {"resident": 2_000_000},
        },
        arrays={
            "logit" + text: {"dims": ["sample" + text, "class"], "shape": [1500, 10], "dtype": "float32", "bytes": 60_000,
                             "description": "scores" + text, "units": "nat" + text},
            "class": {"dims": ["class"], "shape": [10], "dtype": "string", "bytes": 80, "coordinate": True},
        },
        models={"model" + text: {"factory": "resnet20" + text, "input_shape": [3, 32, 32]}},
        failure={"type": "ValueError" + text, "message": "no" + text, "traceback": "trace" + text} if text else None,
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


# ---------------------------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def plain_page() -> Page:
    report = report_of((every_view()[1], every_view()[10]))
    return assert_harmless(report_html(report, result_of_every_view(), info_of(report=report)))


@pytest.mark.parametrize(
    "part",
    [
        "What do views look like?", "20261125-130501-views-4c1e09ab", "25 Nov 2026, 13:05 UTC", "lena@bench", "1 min 15 s",
        "Found much.", "0.8750", "95 % interval 0.8000 to 0.9500", "↑ higher is better", "↓ lower is better", "NaN",
        "Mind the gap.", "sample 1,500 × class 10", "float32", "60 kB", "scores [nat]", "deadbeef , with uncommitted changes",
        "Doe (2020): A paper", "arXiv:2001.01234", "torch 2.13", "ab12", "resnet20", "A title", "2 MB",
    ],
)  # fmt: skip
def test_a_page_says(plain_page, part):
    assert part in plain_page.text


def test_a_page_marks_the_parameters_that_were_changed():
    page = Page(report_html(report_of(()), result_of_every_view(), info_of()))
    changed = [attributes for tag, attributes in page.tags if tag == "tr" and attributes.get("class") == "wb-changed"]
    assert len(changed) == 2  # bins and mode; a list equals the tuple it was


def test_a_page_forbids_scripts_and_requests():
    page = Page(report_html(report_of(()), result_of_every_view(), info_of()))
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy
    assert "default-src 'none'" in policy[0]
    assert "script-src" not in policy[0]


def test_hostile_texts_stay_texts_on_every_page():
    text = " " + HOSTILE + "\ud800"
    result, report = result_of_every_view(HOSTILE), report_of(every_view(HOSTILE), HOSTILE)
    info = info_of(text, report=report)
    page = assert_harmless(report_html(report, result, info))
    assert page.text.count("<script>alert(1)</script>") > 20  # shown, not run
    card = dataclasses.replace(IndexCard.from_report("reports/a.html", report, result, info, view=2), status="odd" + text)
    assert_harmless(index_html([card], title=text, intro=text))
    assert_harmless(run_html(info))
    assert_harmless(run_html(dataclasses.replace(info, status="running", progress={"done": 1, "total": 2, "message": text})))
    assert_harmless(runs_html([info, info]))


def test_very_long_texts_are_cut():
    info = info_of(user="u" * 1_000_000)
    assert len(run_html(info)) < 60_000


def test_a_view_that_cannot_be_drawn_does_not_hide_the_others():
    views = (Line(title="Lost", y=("absent",), x="step"), Histogram(title="Found", values=("value",)))
    page = assert_harmless(report_html(report_of(views), result_of_every_view(), info_of()))
    assert "This view cannot be drawn. view 'Lost': no array 'absent' is stored in this run" in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 1


def test_a_minimal_run_has_a_page():
    info = RunInfo("r", "a.b", "T", "failed")
    page = assert_harmless(report_html(Report(summary="Nothing."), StoredResult(xr.Dataset()), info))
    assert "failed" in page.text
    assert "Figures" not in page.text


# ---------------------------------------------------------------------------------------------------------- the index


def test_the_index_links_cards_relatively():
    report = report_of((every_view()[1],))
    cards = [IndexCard.from_report(f"reports/run {i}.html", report, result_of_every_view(), info_of()) for i in range(2)]
    page = assert_harmless(index_html(cards, title="Found"))
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert links == ["reports/run%200.html", "reports/run%201.html"] * 2
    assert sum(tag == "svg" for tag, _ in page.tags) == 2
    assert "accuracy 0.8750 ↑" in page.text
    assert "There are no reports." in Page(index_html([])).text


@pytest.mark.parametrize(
    "href",
    ["", "javascript:alert(1)", " JavaScript:alert(1)", "//host/x", "/etc", "data:text/html,x", "\\\\host"],
)
def test_the_index_links_nowhere_else(href):
    with pytest.raises(InputError, match="relative address"):
        IndexCard(href, "a.b", "t", "s")


# ------------------------------------------------------------------------------------------------------------ the run


def test_run_info_comes_from_a_record():
    report = report_of(())
    record = RunRecord(
        id="r1", key="k", method="a.b", method_title="Stored title", method_version="1", method_code=None, params={"n": 3},
        inputs={}, seed=4, precision="float64", status="complete", user="u", host="h", pid=1, started="2026-01-02T03:04:05Z",
        heartbeat="", device="cpu", default_params={"n": 2}, finished="2026-01-02T03:04:06Z", seconds=1.5,
        report=json.loads(json.dumps(report.to_json())),
    )  # fmt: skip
    info = RunInfo.from_record(record, served=True)
    assert (info.method_title, info.when, info.seconds, info.served) == ("Stored title", "2 Jan 2026, 03:04 UTC", 1.5, True)
    assert info.changed("n")
    assert np.isnan(info.report.metrics[1].value)
    assert RunInfo.from_record(record, method_title="Now", default_params={"n": 3}, status="interrupted").status == "interrupted"
    assert not RunInfo.from_record(record, default_params={"n": 3}).changed("n")
    shown = Page(run_html(info)).text
    for part in ("Stored title", "from the store: nothing was computed", "accuracy", "0.8750"):
        assert part in shown


@pytest.mark.parametrize("text", ["", " " + HOSTILE + "\ud800"], ids=["plain", "hostile"])
def test_the_code_of_a_run_is_python_and_asks_for_the_same(text):
    tree = ast.parse(info_of(text).code())
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "run"]
    given = {item.arg: ast.literal_eval(item.value) for item in call.keywords if item.arg}
    assert given["bins"] == 15
    assert given["seed"] == 7
    assert given["data"] == "run:20261101-000000-a-00000000[logit]"
    assert given["model"].startswith("resnet20")
    assert "rate" not in given
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert len(calls) == 3  # open, run, report: a hostile text adds none


def test_a_table_of_runs_says_how_many_there_are():
    page = Page(runs_html([info_of()] * 5, most=3))
    assert "5 runs, the first 3 shown" in page.text
    assert sum(tag == "tr" for tag, _ in page.tags) == 4
    assert Page(runs_html([])).text == "0 runs"


# -------------------------------------------------------------------------------------------------------- the notebook


def test_a_report_displays_as_html_with_pictures():
    report = report_of((every_view()[1], Line(title="Lost", y=("absent",), x="step")))
    rendered = RenderedReport(report, result_of_every_view(), info_of())
    page = assert_harmless(rendered._repr_html_())
    assert sum(tag == "img" for tag, _ in page.tags) == 1
    assert "Found much." in page.text
    assert "The view 'Lost' cannot be drawn." in page.text
    assert "Mind the gap." in page.text


def test_a_report_publishes_figures_that_work_live_and_saved(monkeypatch):
    report = report_of((every_view()[1], every_view()[6]))
    rendered = RenderedReport(report, result_of_every_view(), info_of())
    published = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: published.append((bundle, raw)))
    rendered._ipython_display_()
    assert all(raw for _, raw in published)
    bundles = [bundle for bundle, _ in published]
    figures = [bundle for bundle in bundles if "application/vnd.plotly.v1+json" in bundle]
    assert len(figures) == 2
    for bundle in figures:
        assert base64.b64decode(bundle["image/jpeg"]).startswith(b"\xff\xd8\xff")
        assert "image/png" not in bundle, "JupyterLab would show it in place of the figure"
        assert bundle["application/vnd.plotly.v1+json"]["data"]
    json.dumps(bundles, allow_nan=False)  # what a notebook file can hold
    for bundle in bundles:
        assert bundle["text/plain"]
        if "text/html" in bundle:
            assert_harmless(bundle["text/html"])


def test_a_notebook_with_a_report_is_shown_without_a_kernel():
    nbconvert = pytest.importorskip("nbconvert")
    import nbformat

    report = report_of((every_view()[1],))
    bundles = RenderedReport(report, result_of_every_view(), info_of()).bundles()
    cell = nbformat.v4.new_code_cell("run.report()")
    cell.outputs = [nbformat.v4.new_output("display_data", data=bundle) for bundle in bundles]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbformat.validate(notebook)
    shown, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    assert bundles[1]["image/jpeg"][:200] in shown.replace("\n", "")
    assert "Found much." in shown


def test_figures_are_found_by_title_and_pages_are_saved(tmp_path):
    view = every_view()[1]
    rendered = RenderedReport(report_of((view, view)), result_of_every_view(), info_of())
    assert list(rendered.figures) == ["A title", "A title (2)"]
    saved = rendered.save(tmp_path / "new" / "report.html")
    assert saved.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "20261125-130501-views-4c1e09ab" in repr(rendered)


# ------------------------------------------------------------------------------------------------------------- markup


def test_element_escapes_everything_but_markup():
    inner = element("b", '<i> & "')
    assert inner == "<b>&lt;i&gt; &amp; &quot;</b>"
    assert element("p", inner, None, class_='"><script>', data_x=None, hidden=True) == (
        '<p class="&quot;&gt;&lt;script&gt;" hidden><b>&lt;i&gt; &amp; &quot;</b></p>'
    )
    assert isinstance(inner, Html)
    assert not isinstance(inner + "<i>", Html)  # adding text does not make it markup


@pytest.mark.parametrize(
    "character",
    ["\x00", "\x1b", "\x7f", "\u202e", "\u2066", "\u200f", "\u200b", "\ufeff", "\ud800", "\U000e0041"],
)
def test_what_cannot_be_seen_is_made_visible(character):
    assert visible(f"a{character}b") == "a\ufffdb"


def test_ordinary_text_is_left_alone():
    assert visible("tab\tline\nνους 日本語 🙂 é") == "tab\tline\nνους 日本語 🙂 é"
    assert visible("x" * 12, most=10) == "xxxxxxxxxx… (2 more characters)"
