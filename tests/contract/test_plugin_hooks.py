"""Every hook as a third party uses it, from the package to the page; and what is left of a view where its plugin is missing."""

from __future__ import annotations

import base64
import json
from importlib.metadata import EntryPoint
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import pytest
import workbench
import xarray as xr
from click.testing import CliRunner
from matplotlib.figure import Figure
from workbench import CustomView, Line, Report
from workbench import hookspecs as specification
from workbench.errors import PluginError, RunFailedError, SkippedError
from workbench.host import Host, PluginStatus
from workbench.render import RenderedReport, palette, static
from workbench.render.custom import ENTRIES
from workbench.render.resolve import resolve
from workbench.report import UnknownView
from workbench.testing import check_method

from contract import third_party
from contract.third_party import ClassAccuracy, Rose
from unit.render_cases import StoredResult, lazily
from unit.sample_methods import Declining
from unit.sample_methods import Failing as Raising

LOGIT = np.array([[3, 0, 0], [3, 0, 0], [0, 3, 0], [3, 0, 0], [0, 0, 3], [0, 0, 3]], dtype=np.float32)
LABEL = np.array([0, 0, 1, 1, 2, 2])


@pytest.fixture
def host():
    third_party.HEARD.clear()
    modules = {"third": "contract.third_party", "training": "workbench_training"}
    found = Host(found=[EntryPoint(name, module, "workbench") for name, module in modules.items()])
    assert [status.reason for status in found.plugins] == ["", ""]
    return found


@pytest.fixture
def bench(host, tmp_path):
    return workbench.open(tmp_path / "store", host=host)


@pytest.fixture
def run(bench):
    return bench.run(ClassAccuracy, data={"logit": LOGIT, "label": LABEL}, progress=False)


@pytest.fixture
def elsewhere(run, bench):
    """The same run on a machine without the plugin."""
    return workbench.open(bench.store.url, host=Host(found=[]))[run.id]


def test_the_plugin_implements_every_hook_there_is():
    hooks = {name for name in vars(specification) if name.startswith("workbench_")}
    assert {name for name in vars(third_party) if name.startswith("workbench_")} == hooks


def test_its_data_set_model_and_method_work_together_by_name(bench):
    logits = bench.run(
        "training.evaluation", model="ring-meter", data="rings(samples=30, size=14)", progress=False, device="cpu"
    )
    assert logits["logit"].sizes == {"sample": 30, "class": 3}
    assert logits.metrics["accuracy"] > 0.9
    found = bench.run("third_party.class_accuracy", data=logits, progress=False)
    assert found["right"].dims == ("class",)
    compared = bench.compare([found]).report()
    assert compared.report.summary.startswith("1 runs know")
    assert compared.data["worst"].values == found["right"].values.min()
    assert list(found["right"]["class"].values) == ["small", "middle", "large"]
    with pytest.raises(workbench.InputError, match="rings"):
        bench.data("ringz")


def test_its_notifications_tell_the_life_of_a_run(bench, run):
    assert [(hook, run_id) for hook, run_id in third_party.HEARD if hook != "progressed"] == [
        ("started", run.id),
        ("finished", run.id),
    ]
    assert ("progressed", run.id) in third_party.HEARD
    served = bench.run(ClassAccuracy, data={"logit": LOGIT, "label": LABEL}, progress=False)
    assert served.served
    assert [hook for hook, _ in third_party.HEARD].count("finished") == 1


def test_a_run_that_began_always_ends_in_one_notification(bench):
    with pytest.raises(SkippedError):
        bench.run(Declining, progress=False)
    with pytest.raises(RunFailedError):
        bench.run(Raising, progress=False)
    told = [(hook, run_id) for hook, run_id in third_party.HEARD if hook != "progressed"]
    assert [hook.partition(":")[0] for hook, _ in told] == ["started", "skipped", "started", "failed"]
    assert told[0][1] == told[1][1]
    assert told[2][1] == told[3][1]


def test_the_page_of_a_run_by_unpublished_code_says_so_at_its_top(run, bench, tmp_path, monkeypatch):
    own = type("Cell", (ClassAccuracy,), {"id": "third_party.cell", "__module__": "__main__"})
    made = bench.run(own, data={"logit": LOGIT, "label": LABEL}, progress=False)
    page = made.report().save(tmp_path / "cell.html").read_text()
    assert "<dt>code</dt><dd>unpublished</dd>" in page
    monkeypatch.setattr("workbench.execution.request.method_code", lambda method: None)  # as if installed by pip
    released = bench.run(ClassAccuracy, data={"logit": LOGIT[:5], "label": LABEL[:5]}, progress=False)
    assert "unpublished" not in released.report().save(tmp_path / "released.html").read_text()


def test_its_command_runs(host):
    (command,) = host.commands()
    assert CliRunner().invoke(command, ["7"]).output == "3 2 2\n"


def test_its_method_and_view_keep_the_contract(bench):
    assert check_method(ClassAccuracy, bench=bench) == []


# ----------------------------------------------------------------------------------------------------------- view types


def test_a_view_of_a_plugin_is_drawn_in_pages_and_notebooks(run, tmp_path):
    (view,) = run.report_data().views
    assert isinstance(view, Rose)
    report = run.report()
    (made,) = report.figures.values()
    assert isinstance(made.data[0], go.Barpolar)
    assert made.data[0].r == (1.0, 0.5, 1.0)
    page = report.save(tmp_path / "page.html").read_text()
    assert "<svg" in page
    assert "One petal a class." in page
    assert "no installed plugin" not in page
    kinds = [set(bundle) for bundle in report.bundles()]
    assert {"application/vnd.plotly.v1+json", "image/jpeg", "text/plain"} in kinds


def test_without_the_plugin_a_table_of_the_data_stands_in_its_place(elsewhere, tmp_path):
    (view,) = elsewhere.report_data().views
    assert isinstance(view, UnknownView)
    report = elsewhere.report()
    page = report.save(tmp_path / "page.html").read_text()
    notebook = report._repr_html_()
    bundles = report.bundles()
    for text in (page, notebook, *[bundle["text/html"] for bundle in bundles if "third_party.rose" in str(bundle)]):
        assert "third_party.rose" in text
        assert "no installed plugin draws it" in text
        assert "One petal a class." in text
        assert ">0.500<" in text
    assert any("third_party.rose" in str(bundle) for bundle in bundles)
    assert isinstance(report.figures["Accuracy of every class"].data[0], go.Table)
    assert "The class 1 is recognised worst." in page


def test_a_report_passes_through_a_machine_without_the_plugin_unchanged(run, elsewhere):
    saved = json.loads(json.dumps(run.record.report))
    assert elsewhere.report_data().to_json() == saved
    assert Report.from_json(elsewhere.report_data().to_json(), views=[Rose]).views == run.report_data().views


def test_a_view_of_another_version_of_the_plugin_says_so(run):
    class Newer(Rose):
        color: str

    (view,) = Report.from_json(run.record.report, views=[Newer]).views
    assert isinstance(view, UnknownView)
    assert "of another version (color: Field required)" in view.reason
    assert view.arrays == ("right",)


def test_an_array_that_is_gone_hides_no_other_view(run, tmp_path):
    report = run.report_data()
    document = report.to_json()
    document["views"][0]["arrays"] = ["gone"]
    document["views"].append(Line(title="Other", y=("right",), x="class").model_dump())
    rendered = RenderedReport(Report.from_json(document), run.stored, run.info)
    page = rendered.save(tmp_path / "page.html").read_text()
    assert "no array &#x27;gone&#x27; is stored" in page
    assert "<svg" in page


def test_what_a_store_says_in_an_unknown_view_is_text(run, tmp_path):
    document = run.report_data().to_json()
    document["views"][0] |= {"kind": "<script>alert(1)</script>", "title": "<img src=x onerror=alert(2)>"}
    rendered = RenderedReport(Report.from_json(document), run.stored, run.info)
    shown = [bundle["text/html"] for bundle in rendered.bundles()]
    for text in (rendered.save(tmp_path / "page.html").read_text(), rendered._repr_html_(), *shown):
        assert "<script>alert" not in text
        assert "<img src=x" not in text


class Failing(Rose):
    """Fails in the way that `length` names."""

    def draw(self, data: Any, figure: Any) -> None:
        if self.around == "early":
            raise RuntimeError("no ink")
        figure.subplots().set_title(r"$\frac{$")  # fails only when the figure is laid out

    def interact(self, data: Any) -> Any:
        return "no figure"


@pytest.mark.parametrize(("how", "words"), [("early", "RuntimeError: no ink"), ("late", "ValueError")])
def test_a_drawing_that_fails_is_a_sentence_and_a_finding(run, tmp_path, how, words):
    report = Report(
        summary="s",
        views=[Failing(title="F", length="right", around=how), Line(title="Other", y=("right",), x="class")],
    )
    rendered = RenderedReport(report, run.stored, run.info)
    page = rendered.save(tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2
    assert "failed" in page
    assert "interact returned a str" in rendered.figures["F"].layout.annotations[0].text.replace("<br>", " ")
    assert any("image/jpeg" in bundle and base64.b64decode(bundle["image/jpeg"]) for bundle in rendered.bundles())
    broken = type("Broken", (ClassAccuracy,), {"report": lambda self, result: report, "__module__": __name__})
    (finding,) = [finding for finding in check_method(broken) if finding.rule == "views"]
    assert words in finding.problem


class Changing(Rose):
    """Is another after a turn through JSON."""

    kind: Literal["third_party.changing"] = "third_party.changing"
    order: Any = ()


def test_the_contract_finds_a_view_that_does_not_survive_and_one_that_nobody_offers(bench):
    changing = Changing(title="C", length="right", around="class", order=(1, 2))
    report = Report(summary="s", views=[changing])
    broken = type("Broken", (ClassAccuracy,), {"report": lambda self, result: report, "__module__": __name__})
    problems = "\n".join(finding.problem for finding in check_method(broken, bench=bench))
    assert "no plugin offers it" in problems
    assert "it is another after a turn through JSON" in problems


def test_too_much_data_is_refused_before_it_is_read():
    variable, counter = lazily(("class",), np.broadcast_to(np.float64(1), ENTRIES + 1))
    view = Rose(title="R", length="right", around="class")
    with pytest.raises(workbench.InputError, match="at most 4,000,000 entries"):
        resolve(view, StoredResult(xr.Dataset({"right": variable})))
    assert counter.read == 0
    unknown = Report.from_json(Report(summary="s", views=[view]).to_json()).views[0]
    plot = resolve(unknown, StoredResult(xr.Dataset({"right": variable})))
    assert len(plot.tables[0].rows) == counter.read == 100
    assert "The first 100 of 4,000,001 entries of right." in plot.caption


def test_arrays_over_the_same_dims_share_a_table_and_keep_their_labels():
    data = xr.Dataset(
        {
            "a": (("y", "x"), np.arange(6).reshape(2, 3)),
            "b": (("y", "x"), np.arange(6.0).reshape(2, 3) / 4),
            "c": ((), 7),
        },
        coords={"x": ["p", "q", "r"]},
    )
    document = Report(summary="s", views=[Rose(title="R", length="a", around="x", select={"y": 1})]).to_json()
    document["views"][0]["arrays"] = ["a", "b", "c"]
    plot = resolve(Report.from_json(document).views[0], StoredResult(data))
    first, second = plot.tables
    assert first.columns == ("x", "a", "b")
    assert first.rows == (("p", "3", "0.750"), ("q", "4", "1.000"), ("r", "5", "1.250"))
    assert second.rows == (("7",),)


# ------------------------------------------------------------------------------------------------- offering view types


class Abstract(CustomView):
    kind: Literal["third_party.abstract"] = "third_party.abstract"


class Unnamed(Rose):
    kind: Literal["rose"] = "rose"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("cls", "words"), [(Abstract, "does not implement arrays"), (Unnamed, "package.word"), (7, "CustomView")]
)
def test_what_is_no_view_type_is_refused(cls, words, bench):
    with pytest.raises((PluginError, TypeError, ValueError), match=words):
        bench.host.register(cls)
    plugin = type("Plugin", (), {})()
    plugin.workbench_views = workbench.hookimpl(lambda: [cls])
    bench.host.register_plugin(plugin, PluginStatus("odd", "odd", "", "", "loaded"))
    assert set(bench.host.views()) == {"third_party.rose"}
    (status,) = [status for status in bench.host.plugins if status.name == "odd"]
    assert words in status.reason


def test_a_kind_is_offered_once(bench):
    plugin = type("Plugin", (), {})()
    plugin.workbench_views = workbench.hookimpl(lambda: [Rose])
    bench.host.register_plugin(plugin, PluginStatus("second", "second", "", "", "loaded"))
    assert bench.host.views() == {"third_party.rose": Rose}
    (status,) = [status for status in bench.host.plugins if status.name == "second"]
    assert status.rejected == {"third_party.rose": "view already offered by plugin 'third'"}


def test_a_view_type_of_a_notebook_is_registered_and_replaces_the_installed_one(bench, run):
    edited = type("Rose", (Rose,), {"interact": lambda self, data: go.Figure(go.Pie()), "__module__": "__main__"})
    assert bench.register(edited) is edited
    assert isinstance(run.report_data().views[0], edited)
    assert isinstance(next(iter(run.report().figures.values())).data[0], go.Pie)


def test_a_figure_is_laid_out_in_our_colours(run):
    drawn = static.draw(resolve(run.report_data().views[0], run.stored))
    assert isinstance(drawn, Figure)
    assert palette.COLORS[0] in static.svg(resolve(run.report_data().views[0], run.stored))
