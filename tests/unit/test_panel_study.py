"""The panel of a study: what it shows, and what its controls change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import workbench
from workbench.panels.study import StudyPanel, coordinates_figure
from workbench.study import find_study
from workbench.study.content import front

from unit.test_study import bench, description, study  # noqa: F401  (`bench` is a fixture)

ipywidgets = pytest.importorskip("ipywidgets")

QUESTIONS = description()["questions"] | {
    "metrics": [
        {"step": "again", "metric": "accuracy", "label": "accuracy"},
        {"step": "shipped", "metric": "cost", "label": "price", "group": "Price"},
    ],
    "fronts": [("price", "accuracy")],
}


def all_of(widget: Any, kind: type) -> list[Any]:
    found = [widget] if isinstance(widget, kind) else []
    return found + [one for child in getattr(widget, "children", ()) for one in all_of(child, kind)]


def page(panel: StudyPanel, title: str) -> Any:
    """The content of a tab, opened."""
    (tab,) = all_of(panel.widget, ipywidgets.Tab)
    tab.selected_index = tab.titles.index(title)
    return tab.children[tab.selected_index]


def figure_in(widget: Any) -> dict[str, Any]:
    bundles = [output["data"] for made in all_of(widget, ipywidgets.Output) for output in made.outputs]
    (found,) = [b["application/vnd.plotly.v1+json"] for b in bundles if "application/vnd.plotly.v1+json" in b]
    return found


@pytest.fixture
def panel(bench: workbench.Workbench) -> StudyPanel:  # noqa: F811
    costs = {"noise": {"each": [0.5, 4.0]}, "cost": 2.0}
    return study(
        bench, questions=QUESTIONS, steps={"blurred": description()["steps"]["blurred"] | {"parameters": costs}}
    ).panel()


def test_it_needs_something_to_show(bench: workbench.Workbench):  # noqa: F811
    with pytest.raises(workbench.InputError, match="study status"):
        find_study(bench, description()).panel()


def test_without_a_kernel_it_is_the_report(panel: StudyPanel):
    static = panel._repr_mimebundle_()["text/html"]
    assert "worse than plain" in static
    assert "How the runs feed each other" in static
    assert "<script" not in static


def test_any_two_metrics_can_be_drawn_against_each_other(panel: StudyPanel):
    content = page(panel, "Two metrics")
    x, y = all_of(content, ipywidgets.Dropdown)
    assert (x.label, y.label) == ("price", "accuracy")
    before = figure_in(content)["layout"]["xaxis"]["title"]["text"]
    x.value = 0
    after = figure_in(content)["layout"]["xaxis"]["title"]["text"]
    assert before.startswith("price")
    assert after.startswith("accuracy")


def test_points_of_a_front_have_their_intervals(panel: StudyPanel):
    figure = figure_in(page(panel, "Two metrics"))  # price across, accuracy up
    matrix = panel.result.matrix
    below, above = figure["data"][0]["error_y"]["arrayminus"], figure["data"][0]["error_y"]["array"]
    for row, label in enumerate(row.label for row in matrix.rows):
        cell = matrix.cells[row, 0]
        assert below[row] == pytest.approx(cell.value - cell.lower), label
        assert above[row] == pytest.approx(cell.upper - cell.value), label


def test_points_of_a_crowded_front_are_numbered(panel: StudyPanel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workbench.study.content.NAMED", 2)
    matrix = panel.result.matrix
    view, arrays = front(matrix, 1, 0)
    shown, on_front = arrays["front_name_0"][1], arrays["front_0"][1]
    assert [text != "" for text in shown] == on_front.tolist()
    for text, price, row in zip(shown, matrix.column(1), matrix.rows, strict=True):
        if text:
            assert f"{text} {row.label}" in view.caption
            assert int(text) == 1 + sum(on_front & (matrix.column(1) < price))


def test_every_run_can_be_opened(panel: StudyPanel):
    content = page(panel, "Runs")
    step, run = all_of(content, ipywidgets.Dropdown)[:2]
    step.value = "again"
    branches = {branch.id for branch in panel.result.plan.steps["again"]}
    assert {value for _, value in run.options} == branches
    for branch in panel.result.plan.steps["again"]:
        run.value = branch.id
        shown = all_of(content, ipywidgets.HTML)
        assert any(panel.result.run(branch).id in html.value for html in shown)


def test_parallel_coordinates_have_the_better_end_on_top(panel: StudyPanel):
    matrix = panel.result.matrix
    trace = coordinates_figure(matrix, [0, 1])["data"][0]
    names, accuracy, price = trace["dimensions"]
    assert list(names["ticktext"]) == [row.label for row in matrix.rows]
    assert accuracy["range"][1] == max(matrix.column(0))
    assert price["range"][1] == min(matrix.column(1))
    page(panel, "All metrics")  # can be drawn


def test_what_is_not_known_lies_off_the_axis(panel: StudyPanel):
    from dataclasses import replace

    matrix = panel.result.matrix
    unknown = replace(matrix, cells=matrix.cells | {(1, 0): replace(matrix.cells[1, 0], value=np.nan)})
    axis = coordinates_figure(unknown, [0])["data"][0]["dimensions"][1]
    known = [value for value in unknown.column(0) if np.isfinite(value)]
    assert min(axis["values"]) < min(known)
    assert len(axis["values"]) == 3
