"""Reports are data: they survive JSON exactly, and what makes no sense is refused when the report is made."""

from __future__ import annotations

import json
import math

import numpy as np
import pydantic
import pytest
from workbench.report import Bar, FreeForm, Histogram, ImageGrid, Line, Metric, Report, Scatter, Table

from unit.render_cases import every_view, report_of


def through_json(report: Report) -> Report:
    """As a store does it: strict JSON text and back."""
    return Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False)))


def test_every_kind_of_view_survives_json():
    report = report_of(every_view())
    back = through_json(report)
    assert back.views == report.views
    assert [type(view) for view in back.views] == [type(view) for view in report.views]
    assert back.tables == report.tables
    assert back.notes == report.notes
    assert back.summary == report.summary


def test_numbers_that_json_lacks_survive():
    report = Report(
        summary="s",
        metrics=(Metric(name="a", value=math.nan), Metric(name="b", value=-math.inf, interval=(-math.inf, math.inf))),
        tables=(Table(title="t", columns=("x", "y"), rows=((math.nan, "nan"), (math.inf, None))),),
    )
    back = through_json(report)
    assert math.isnan(back.metrics[0].value)
    assert back.metrics[1].value == -math.inf
    assert back.metrics[1].interval == (-math.inf, math.inf)
    assert math.isnan(back.tables[0].rows[0][0])
    assert back.tables[0].rows[0][1] == "nan"
    assert back.tables[0].rows[1] == (math.inf, None)
    view = ImageGrid(title="t", images=("a",), column="sample", value_range=(0.0, math.inf))
    assert through_json(Report(summary="s", views=(view,))).views == (view,)


def test_cells_keep_their_kind():
    row = (True, 1, 1.0, "1", None)
    (back,) = through_json(Report(summary="s", tables=(Table(title="t", columns=tuple("abcde"), rows=(row,)),))).tables[0].rows
    assert [type(cell) for cell in back] == [bool, int, float, str, type(None)]


def test_a_selection_survives_json():
    view = Line(title="t", y=("a",), x="step", select={"bit": 4, "layer": "conv", "method": ["a", "b"], "shift": 0.5})
    assert through_json(Report(summary="s", views=(view,))).views[0].select == view.select


def test_numpy_numbers_in_a_selection_survive_json():
    view = Bar(title="t", y=("a",), x="layer", select={"bit": np.int64(4)})
    assert through_json(Report(summary="s", views=(view,))).views[0].select == {"bit": 4}


def test_a_metric_is_named_once():
    with pytest.raises(ValueError, match="metrics named twice in one report: accuracy"):
        Report(summary="s", metrics=(Metric(name="accuracy", value=1), Metric(name="accuracy", value=2)))


def test_a_table_is_rectangular():
    with pytest.raises(pydantic.ValidationError, match="a row has 1 cells for 2 columns"):
        Table(title="t", columns=("a", "b"), rows=((1,),))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Histogram(title="t", values=("a",), bins=0),
        lambda: ImageGrid(title="t", images=("a",), column="sample", limit=0),
        lambda: Scatter(title="t", x="a", y="b", colour="c"),
        lambda: Metric(name="m", value=1, direction="up"),
        lambda: Line(title="t", y=(), x=3),
    ],
)
def test_mistakes_are_refused(make):
    with pytest.raises(pydantic.ValidationError):
        make()


def test_a_report_cannot_be_changed():
    view = every_view()[0]
    with pytest.raises(pydantic.ValidationError):
        view.title = "other"


def test_a_free_form_view_keeps_the_picture_of_a_figure():
    import base64

    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    view = FreeForm.from_figure(figure, title="t")
    assert base64.b64decode(view.png).startswith(b"\x89PNG\r\n\x1a\n")
    assert through_json(Report(summary="s", views=(view,))).views == (view,)
