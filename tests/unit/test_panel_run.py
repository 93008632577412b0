"""The panel of a run: its tabs, its relatives, what people say about it; and progress as every panel shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
import workbench
from workbench.panels.lineage import lineage
from workbench.panels.progress import KEPT, Course, NotebookProgress, progress_html
from workbench.panels.run import RunPanel

from unit.panel_cases import HOSTILE, bench_over, pictures, put_run
from unit.store_cases import record

TABS = ["Found", "Arrays", "Parameters", "Curves and log", "Lineage", "Provenance", "Code", "Notes"]


@pytest.fixture
def bench(tmp_path: Path) -> workbench.Workbench:
    return bench_over(tmp_path)


def tab_of(widget: ipywidgets.Widget) -> ipywidgets.Tab:
    return next(item for item in everything(widget) if isinstance(item, ipywidgets.Tab))


def everything(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    return [widget, *[item for child in getattr(widget, "children", ()) for item in everything(child)]]


def opened(panel: RunPanel, title: str) -> list[ipywidgets.Widget]:
    tab = tab_of(panel.widget)
    tab.selected_index = list(tab.titles).index(title)
    return list(tab.children[tab.selected_index].children)


def markup(widgets: list[ipywidgets.Widget]) -> str:
    return " ".join(
        item.value for widget in widgets for item in everything(widget) if isinstance(item, ipywidgets.HTML)
    )


def text(widgets: list[ipywidgets.Widget]) -> str:
    without = re.sub(r"<style>.*?</style>", "", markup(widgets), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", without).split())


def rich(bench: workbench.Workbench, **changes: Any) -> workbench.Run:
    arrays = {
        "restored": (("sample", "channel", "y", "x"), pictures()),
        "series/step": (("step",), np.arange(20)),
        "series/loss": (("step",), np.linspace(1, 0, 20)),
    }
    values: dict[str, Any] = {
        "params": {"strength": 2.0, "mode": "a"},
        "default_params": {"strength": 1.0, "mode": "a"},
    }
    return put_run(bench, arrays, metrics={"psnr": 21.5}, intervals={"psnr": (20, 23)}, **values | changes)


def test_tabs_are_filled_when_they_are_opened(bench):
    panel = rich(bench).panel()
    tab = tab_of(panel.widget)
    assert list(tab.titles) == TABS
    assert [bool(box.children) for box in tab.children] == [True] + [False] * 7
    assert opened(panel, "Code")
    assert [bool(box.children) for box in tab.children] == [True] + [False] * 5 + [True, False]


def test_the_head_and_the_report_say_what_was_found(bench):
    panel = rich(bench).panel()
    head = text([panel.widget])
    for part in ("Demo", "complete", "restoration.demo", "ada@elsewhere", "cpu", "seed 0", "A demonstration."):
        assert part in head
    found = opened(panel, "Found")
    assert "95 % interval 20.00 to 23.00" in text(found)
    assert "↑ higher is better" in text(found)
    (figures,) = [item for widget in found for item in everything(widget) if isinstance(item, ipywidgets.Output)]
    (figure,) = figures.outputs
    trace = figure["data"]["application/vnd.plotly.v1+json"]["data"][0]
    np.testing.assert_allclose(trace["y"], np.linspace(1, 0, 20))


def test_parameters_that_differ_are_marked_and_come_first(bench):
    shown = markup(opened(rich(bench).panel(), "Parameters"))
    assert re.findall(r"<mark>(.*?)</mark>", shown) == ["<code>2</code>"]
    assert shown.index("strength") < shown.index(">mode<")


def test_arrays_show_chunks_and_open_the_explorer(bench):
    content = opened(rich(bench).panel(), "Arrays")
    assert "sample 6 × channel 3 × y 8 × x 8 float32 6 × 3 × 8 × 8" in text(content)
    assert any(type(item).__name__ == "ExplorerWidget" for widget in content for item in everything(widget))


def test_series_are_curves_and_failures_have_their_traceback(bench):
    (curves,) = opened(rich(bench).panel(), "Curves and log")
    assert curves.charts[0]["y_label"] == "loss"
    np.testing.assert_allclose(curves.charts[0]["curves"][0]["y"], np.linspace(1, 0, 20))
    failed = put_run(bench, {}, failure={"type": "ValueError", "message": "no", "traceback": f"line 1\n{HOSTILE}"})
    panel = failed.panel()
    assert tab_of(panel.widget).selected_index == TABS.index("Curves and log")
    assert "ValueError: no" in text(opened(panel, "Curves and log"))
    assert "line 1" in text(opened(panel, "Curves and log"))
    assert "no report" in text(opened(panel, "Found"))


def test_a_running_run_can_be_looked_at_again_until_it_ended(bench):
    writer = bench.store.begin(record(method="sample.slow"))
    panel = bench[writer.record.id].panel()
    assert "running" in text([panel.widget])
    (button,) = [item for item in everything(panel.widget) if getattr(item, "description", "") == "Look again"]
    writer.complete(seconds=1.0)
    button.click()
    assert panel.run.status == "complete"
    assert not [item for item in everything(panel.widget) if getattr(item, "description", "") == "Look again"]


def test_the_code_runs_the_same_again(bench):
    (code,) = opened(rich(bench).panel(), "Code")
    assert "bench.run(\n    'restoration.demo',\n    strength=2.0,\n    seed=0,\n)" in code.code


def test_a_damaged_tab_tells_and_the_others_go_on(bench, monkeypatch: pytest.MonkeyPatch):
    run = rich(bench)
    panel = run.panel()
    assert panel.widget

    def gone(*_: object) -> None:
        raise workbench.WorkbenchError("the index is gone")

    monkeypatch.setattr("workbench.panels.run.lineage", gone)
    assert "the index is gone" in text(opened(panel, "Lineage"))
    assert opened(panel, "Code")


# ------------------------------------------------------------------------------------------------------------- lineage


def test_the_lineage_goes_both_ways_and_left_to_right(bench):
    first = rich(bench)
    second = put_run(bench, {}, uses=(first.id,), metrics={"accuracy": 0.5})
    third = put_run(bench, {}, uses=(second.id, first.id))
    aside = put_run(bench, {}, uses=(first.id,))
    graph = lineage(bench.store, second.id)
    columns = {node.id: node.column for node in graph.nodes}
    assert columns == {first.id: 0, second.id: 1, third.id: 2}
    assert aside.id not in columns, "a sibling is neither ancestor nor descendant"
    assert {(a, b) for a, b, _ in graph.edges} == {(first.id, second.id), (second.id, third.id), (first.id, third.id)}
    here = next(node for node in graph.nodes if node.here)
    assert (here.id, here.metric) == (second.id, "accuracy 0.5000")
    everyone = lineage(bench.store, first.id)
    assert len({(node.column, node.row) for node in everyone.nodes}) == len(everyone.nodes) == 4


def test_a_deleted_ancestor_is_still_named(bench):
    first = rich(bench)
    second = put_run(bench, {}, uses=(first.id,))
    bench.delete(first, force=True)
    nodes = {node.id: node for node in lineage(bench.store, second.id).nodes}
    assert nodes[first.id].status == "deleted"


def test_a_forged_circle_does_not_hang(bench):
    first = rich(bench)
    record = first.record.replace(inputs={"data": {"label": "", "runs": [first.id], "kind": "data", "digest": None}})
    bench.store.index.put(record)
    assert [node.id for node in lineage(bench.store, first.id).nodes] == [first.id]


def test_a_click_opens_the_relative_and_back_returns(bench):
    first = rich(bench)
    second = put_run(bench, {}, uses=(first.id,))
    panel = second.panel()
    (graph,) = opened(panel, "Lineage")
    graph._handle_custom_msg({"open": "../../etc"}, [])
    assert panel.run.id == second.id
    graph._handle_custom_msg({"open": first.id}, [])
    assert panel.run.id == first.id
    assert first.id in text([panel.widget])
    button = next(
        item for item in everything(panel.widget) if isinstance(item, ipywidgets.Button) and "Back" in item.description
    )
    button.click()
    assert panel.run.id == second.id


# --------------------------------------------------------------------------------------------------------- annotations


def test_tags_notes_and_pins_reach_the_store(bench):
    run = rich(bench)
    panel = run.panel()
    content = [item for widget in opened(panel, "Notes") for item in everything(widget)]
    pin = next(item for item in content if isinstance(item, ipywidgets.ToggleButton))
    tags = next(item for item in content if isinstance(item, ipywidgets.TagsInput))
    area = next(item for item in content if isinstance(item, ipywidgets.Textarea))
    add = next(item for item in content if isinstance(item, ipywidgets.Button))
    pin.value = True
    tags.value = ["paper", "draft"]
    tags.value = ["paper"]
    area.value = f"see {HOSTILE}"
    add.click()
    again = bench[run.id].annotations
    assert again.pinned
    assert again.tags == ("paper",)
    assert [note.text for note in again.notes] == [f"see {HOSTILE}"]
    assert area.value == ""
    assert "pinned" in text([panel.widget])
    area.value = "  "
    add.click()
    assert "note: expected some text" in text(opened(panel, "Notes"))


# ------------------------------------------------------------------------------------------------------------- hostile


def test_text_from_a_store_is_never_markup(bench):
    run = put_run(
        bench,
        {"name": (("sample",), np.array([HOSTILE] * 3, object))},
        metrics={HOSTILE: 1.0},
        method_title=HOSTILE,
        params={HOSTILE: HOSTILE},
        provenance={"platform": HOSTILE},
        failure=None,
    )
    run.annotations.note(HOSTILE)
    panel = run.panel()
    shown = " ".join(markup(opened(panel, title)) for title in TABS) + markup([panel.widget]) + panel._static()
    assert "<script" not in shown
    assert "onerror=" not in re.sub(r"&lt;.*?&gt;", "", shown)
    assert "\u202e" not in shown
    assert "&lt;script&gt;" in shown


# ------------------------------------------------------------------------------------------------------------ progress


def test_progress_says_how_far_and_how_long_still():
    course = Course("quantization.hawq", done=25, total=100, message="probing <b>")
    shown = progress_html(course, seconds=10.0)
    assert 'aria-valuenow="25"' in shown
    assert "probing &lt;b&gt;" in shown
    assert "10.0 s, about 30.0 s to go" in shown
    assert "to go" not in progress_html(course, seconds=10.0, status="cancelled")


def test_a_course_keeps_a_bounded_number_of_points():
    course = Course("m")
    for step in range(5_000):
        course.log(step, {"loss": 1 / (step + 1)})
        course.log(step, {"loss": 1 / (step + 1)})
    points = course.series["loss"]
    assert len(points) <= KEPT
    assert points[0][0] == 0
    assert points[-1][0] == 4_999
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    assert "<polyline" in progress_html(course)


def test_a_course_with_values_that_are_no_numbers_is_still_drawn():
    course = Course("m")
    for step, value in enumerate([1.0, float("nan"), float("inf"), 2.0]):
        course.log(step, {"loss": value})
    assert "NaN" not in re.findall(r'points="(.*?)"', progress_html(course))[0]


def test_the_bar_below_a_cell_is_replaced_and_goes(monkeypatch: pytest.MonkeyPatch):
    shown: list[dict[str, str]] = []

    class Handle:
        def update(self, bundle: dict[str, str], raw: bool) -> None:
            shown.append(bundle)

    def display(bundle: dict[str, str], **_: Any) -> Handle:
        shown.append(bundle)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    bar = NotebookProgress("m", delay=0.0, interval=0.0)
    bar.show(1, 4, "first")
    bar.values(3, {"loss": 0.5})
    bar.show(2, 4, "second")
    bar.close()
    assert "first" in shown[0]["text/html"]
    assert "0.5000" in shown[-2]["text/html"]
    assert shown[-1]["text/html"] == ""
    quick = NotebookProgress("m")
    quick.show(1, 1, "over before anybody looked")
    quick.close()
    assert len(shown) == 4


# -------------------------------------------------------------------------------------------------------------- static


def test_a_notebook_put_on_the_web_shows_what_was_there(bench):
    """A page made by nbconvert knows no kernel and no widgets: it takes the HTML in the output."""
    nbconvert, nbformat = pytest.importorskip("nbconvert"), pytest.importorskip("nbformat")
    run = rich(bench)
    shown = [run.panel(), run.arrays(), bench.compare([run, rich(bench, seed=1)]).panel(), bench.plugins()]
    outputs = [nbformat.v4.new_output("display_data", panel._repr_mimebundle_()) for panel in shown]
    outputs.append(nbformat.v4.new_output("display_data", {"text/html": run._repr_html_(), "text/plain": repr(run)}))
    outputs += [nbformat.v4.new_output("display_data", bundle) for bundle in run.report().bundles()]
    cells = [nbformat.v4.new_code_cell("...", outputs=[output]) for output in outputs]
    page, _ = nbconvert.HTMLExporter(embed_images=True).from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    assert "application/vnd.jupyter.widget-view+json" not in page
    for part in ("Demo", "A demonstration.", "20.00 to 23.00", "sample 6 × channel 3 × y 8 × x 8", "2 runs compared"):
        assert part in page, part
    assert page.count("data:image/jpeg;base64,") >= 1, "the figure of the report"


# ---------------------------------------------------------------------------------------------------------------- lazy


def test_importing_the_workbench_imports_no_widgets():
    heavy = ("ipywidgets", "anywidget", "plotly", "torch", "xarray")
    code = f"import sys, workbench.bench; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
