"""Both drawers take every kind of plot, show the same numbers, and take no text for markup."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import xarray as xr
from workbench.render import interactive, palette, static
from workbench.render.interactive_theme import PAPER, dark_figures
from workbench.render.pixels import from_png, pixels, to_png
from workbench.render.resolve import resolve
from workbench.report import Bar, HeatMap, Histogram, ImageGrid, Line, ReliabilityDiagram, Scatter

from unit.render_cases import HOSTILE, StoredResult, every_view, result_of_every_view

KINDS = [f"{index}-{view.kind}" for index, view in enumerate(every_view())]


def picture_size(png: bytes) -> tuple[int, int]:
    from PIL import Image

    return Image.open(io.BytesIO(png)).size


@pytest.mark.parametrize("text", ["", HOSTILE], ids=["plain", "hostile"])
@pytest.mark.parametrize("index", range(len(KINDS)), ids=KINDS)
def test_both_drawers_draw_every_kind(index, text):
    plot = resolve(every_view(text)[index], result_of_every_view(text))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn, figure = static.svg(plot), interactive.figure(plot)
    root = ET.fromstring(drawn)  # well-formed
    names = {item.tag.rpartition("}")[2] for item in root.iter()}
    assert names <= {"svg", "g", "defs", "style", "path", "use", "text", "tspan", "clipPath", "rect", "image"}
    assert not [name for item in root.iter() for name in item.attrib if name.lower().startswith("on")]
    links = [value for item in root.iter() for name, value in item.attrib.items() if name.endswith("href")]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert figure.data
    document = json.dumps(json.loads(figure.to_json()))
    for markup in ("<script", "<img", "<svg onload", "$\\\\frac"):
        assert markup not in document
    assert "bdata" not in document  # older front ends do not know packed arrays


@pytest.mark.parametrize("index", [0, 3, 8, 9], ids=lambda index: KINDS[index])
def test_a_png_shows_something_and_is_the_same_each_time(index):
    plot = resolve(every_view()[index], result_of_every_view())
    first = static.png(plot)
    values = from_png(first)
    assert (values[..., :3] != 255).any(axis=-1).mean() > 0.02
    assert static.png(plot) == first


def test_an_svg_is_the_same_each_time_and_its_ids_differ_between_figures():
    plot = resolve(every_view()[0], result_of_every_view())
    assert static.svg(plot, salt="a") == static.svg(plot, salt="a")
    ids = [
        {item.attrib["id"] for item in ET.fromstring(static.svg(plot, salt=salt)).iter() if "id" in item.attrib}
        for salt in ("a", "b")
    ]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_texts_and_groups_in_an_svg_take_the_colours_of_the_page():
    drawn = static.svg(resolve(every_view()[0], result_of_every_view()))
    assert f"var(--wb-ink, {palette.INK})" in drawn
    assert f"var(--wb-color-0, {palette.COLORS[0]})" in drawn
    assert f"fill: {palette.INK}" not in drawn


def test_what_the_notebook_set_for_matplotlib_and_plotly_does_not_reach_a_report():
    import matplotlib as mpl
    import plotly.io

    plot = resolve(every_view()[1], result_of_every_view())
    before, dark = static.svg(plot), plotly.io.templates.default
    with mpl.rc_context({"axes.facecolor": "red", "text.usetex": True, "font.size": 30}):
        plotly.io.templates.default = "plotly_dark"
        try:
            assert static.svg(plot) == before
            assert mpl.rcParams["font.size"] == 30
            assert interactive.figure(plot).layout.paper_bgcolor == PAPER
        finally:
            plotly.io.templates.default = dark


def test_on_dark_pages_every_colour_of_ours_has_another_and_figures_of_others_keep_theirs():
    style = dark_figures()
    for light, dark in zip(palette.COLORS, palette.COLORS_ON_DARK, strict=True):
        written = ", ".join(str(int(light[at : at + 2], 16)) for at in (1, 3, 5))
        assert f'[style*="stroke: rgb({written})"]:not(.hoverlayer *) {{ stroke: {dark} !important; }}' in style
    white = ", ".join(str(int(PAPER[at : at + 2], 16)) for at in (1, 3, 5))
    assert f'[style*="rgb({white})"]' in style.splitlines()[0], "all the rules stand inside of this one"
    assert PAPER not in ("#ffffff", palette.CARD), "a plain white is everybody's"


def test_pyplot_is_not_imported_and_importing_the_package_imports_no_drawing_library():
    code = (
        "import sys, workbench.render;"
        "loaded = {'plotly', 'matplotlib', 'torch', 'IPython', 'xarray'} & set(sys.modules); assert not loaded, loaded;"
        "import workbench.render.html, workbench.render.display, workbench.render.static, workbench.render.interactive;"
        "loaded = {'plotly', 'matplotlib', 'torch', 'IPython'} & set(sys.modules); assert not loaded, loaded;"
        "import numpy as np;"
        "from workbench.render.plots import Axis, Curve, LinePlot;"
        "line = LinePlot('t', '', Axis('x'), Axis('y'), (Curve('c', np.arange(3.0), np.arange(3.0)),));"
        "workbench.render.static.png(line);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------- the same numbers


def test_a_line_keeps_its_gaps_and_its_values():
    stored = StoredResult(xr.Dataset({"a": ("step", [1.0, np.nan, 3.0]), "b": ("step", [0.5, np.nan, 2.0])}))
    plot = resolve(Line(title="t", y=("a",), x="step", lower="b", upper="a"), stored)
    *bands, curve = interactive.figure(plot).data
    assert list(curve.y) == [1.0, None, 3.0]
    assert [list(band.y) for band in bands] == [[0.5, 1.0][::1], [2.0, 3.0]]
    axes = static.draw(plot).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.0, np.nan, 3.0])


def test_bars_errors_and_categories_agree():
    stored = result_of_every_view()
    plot = resolve(every_view()[2], stored)
    (bars,) = interactive.figure(plot).data
    np.testing.assert_allclose(bars.y, stored["cost"])
    np.testing.assert_allclose(bars.error_y.array, stored["error"])
    axes = static.draw(plot).axes[0]
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], stored["cost"])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(stored["layer"].values)


def test_a_heat_map_is_centred_and_reads_from_the_top():
    plot = resolve(every_view()[3], stored := result_of_every_view())
    (cells,) = interactive.figure(plot).data
    assert cells.zmin == -cells.zmax
    np.testing.assert_allclose(np.array(cells.z, dtype=float), stored["table"])
    figure = static.draw(plot)
    image = figure.axes[0].images[0]
    assert image.norm.vmin == -image.norm.vmax
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top


def test_cells_without_a_value_are_empty_in_both():
    stored = StoredResult(xr.Dataset({"a": (("y", "x"), [[1.0, np.nan], [2.0, 3.0]])}))
    plot = resolve(HeatMap(title="t", z="a", x="x", y="y"), stored)
    assert interactive.figure(plot).data[0].z[0][1] is None
    assert static.draw(plot).axes[0].images[0].get_array().mask.tolist() == [[False, True], [False, False]]


def test_framed_cells_are_framed_in_both():
    marks = np.array([[True, False, False], [False, False, True]])
    stored = StoredResult(xr.Dataset({"a": (("y", "x"), np.zeros((2, 3))), "b": (("y", "x"), marks)}))
    plot = resolve(HeatMap(title="t", z="a", x="x", y="y", frame="b"), stored)
    for shape in interactive.figure(plot).layout.shapes:
        frames = [part.strip() for part in shape.path.split("Z") if part.strip()]
        assert [frame[1:].split(" L")[0] for frame in frames] == ["-0.46,-0.46", "1.54,0.54"]
        assert all(len(frame[1:].split(" L")) == 4 for frame in frames)
    axes = static.draw(plot).axes[0]
    assert len(axes.collections) == len(interactive.figure(plot).layout.shapes) == 2
    for drawn in axes.collections:
        boxes = [path.get_extents().bounds for path in drawn.get_paths()]
        np.testing.assert_allclose(boxes, [(-0.46, -0.46, 0.92, 0.92), (1.54, 0.54, 0.92, 0.92)])
    assert axes.get_xlim() == (-0.5, 2.5)
    without = resolve(HeatMap(title="t", z="a", x="x", y="y"), stored)
    assert not interactive.figure(without).layout.shapes
    assert not static.draw(without).axes[0].collections


def test_a_histogram_steps_through_the_counts():
    plot = resolve(Histogram(title="t", values=("value",), bins=5), result_of_every_view())
    (steps,) = interactive.figure(plot).data
    assert list(steps.y)[:-1] == plot.distributions[0].counts.tolist()
    assert steps.line.shape == "hv"
    values, edges, _ = static.draw(plot).axes[0].patches[0].get_data()
    np.testing.assert_array_equal(values, plot.distributions[0].counts)
    np.testing.assert_array_equal(edges, plot.edges)


def test_whiskers_may_be_longer_on_one_side():
    stored = StoredResult(
        xr.Dataset({"a": ("layer", [1.0, 2.0]), "lo": ("layer", [0.5, 1.0]), "hi": ("layer", [1.1, 4.0])})
    )
    plot = resolve(Bar(title="t", y=("a",), x="layer", lower="lo", upper="hi"), stored)
    (bars,) = interactive.figure(plot).data
    np.testing.assert_allclose(bars.error_y.arrayminus, [0.5, 1.0])
    np.testing.assert_allclose(bars.error_y.array, [0.1, 2.0])
    assert bars.error_y.symmetric is False
    assert static.svg(plot)


def test_the_band_of_a_reliability_diagram_is_drawn_where_it_is_given():
    stored = StoredResult(
        xr.Dataset(
            {
                "c": ("bin", [0.2, np.nan, 0.9]),
                "a": ("bin", [0.3, np.nan, 0.6]),
                "n": ("bin", [10, 0, 30]),
                "lo": ("bin", [0.1, np.nan, 0.8]),
                "hi": ("bin", [0.4, np.nan, 1.0]),
            }
        )
    )
    names = {"confidence": "c", "accuracy": "a", "count": "n"}
    plot = resolve(ReliabilityDiagram(title="t", **names, band_lower="lo", band_upper="hi"), stored)
    np.testing.assert_array_equal(plot.panels[0].band[1], [0.4, np.nan, 1.0])
    band = next(trace for trace in interactive.figure(plot).data if trace.name == "95 % if calibrated")
    assert list(band.base)[::2] == [0.1, 0.8]
    assert [round(value, 9) for value in list(band.y)[::2]] == [0.3, 0.2]
    assert "if calibrated" in static.svg(plot)
    without = resolve(ReliabilityDiagram(title="t", **names), stored)
    assert without.panels[0].band is None
    assert all(trace.name != "95 % if calibrated" for trace in interactive.figure(without).data)


def test_a_reliability_diagram_shows_accuracy_gap_and_counts():
    plot = resolve(every_view()[9], stored := result_of_every_view())
    figure = interactive.figure(plot)
    accuracy, gap, _, counts = figure.data[:4]
    np.testing.assert_allclose(np.array(accuracy.y[1:], dtype=float), stored["accuracy"][0, 1:])
    np.testing.assert_allclose(np.array(gap.y[1:], dtype=float), 0.05)
    assert list(counts.y) == stored["count"].values[0].tolist()
    assert accuracy.y[0] is None
    assert len(static.draw(plot).axes) == 4


def test_pictures_keep_their_pixels():
    plot = resolve(every_view()[8], stored := result_of_every_view())
    shown = pixels(plot.cells[0][0], plot.color_map)
    np.testing.assert_array_equal(shown[..., :3], np.round(stored["image"].values[0].transpose(1, 2, 0) * 255))
    np.testing.assert_array_equal(from_png(to_png(shown)), shown)
    grey = np.linspace(0, 1, 256).reshape(16, 16)
    np.testing.assert_array_equal(pixels(grey, "gray")[..., 0].ravel(), np.arange(256))
    assert pixels(np.array([[np.nan, 1.0]]), "no such map")[0].tolist() == [[0, 0, 0, 0], [255, 255, 255, 255]]


# ---------------------------------------------------------------------------------------------------- next to nothing


EMPTY = {
    "none": np.zeros(0),
    "nan": np.full(4, np.nan),
    "one": np.array([0.5]),
    "equal": np.full(4, 2.0),
    "huge": np.array([3e38, -3e38, 1e-38]),
    "infinite": np.array([np.inf, -np.inf, 1.0]),
}


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
@pytest.mark.parametrize("values", EMPTY.values(), ids=EMPTY.keys())
def test_odd_values_are_drawn_without_complaint(values, log):
    zeros = np.zeros(len(values))
    data = xr.Dataset(
        {
            "a": ("sample", values),
            "m": (("y", "x"), values[None]),
            "i": (("sample", "row", "column"), np.tile(values[:, None, None], (1, 2, 2))),
            "c": ("bin", zeros),
            "p": ("bin", zeros),
        }
    )
    views = [
        Line(title="t", y=("a",), x="sample", log_x=log, log_y=log, lower="a", upper="a"),
        Bar(title="t", y=("a",), x="sample", error="a", log_y=log),
        HeatMap(title="t", z="m", x="x", y="y", log=log, annotate=True),
        HeatMap(title="t", z="m", x="x", y="y", log=log, diverging=True),
        Scatter(title="t", x="a", y="a", color="a", log_x=log, log_y=log, identity=True),
        Scatter(title="t", x="a", y="a", lower="a", upper="a", log_x=log, log_y=log),
    ]
    if not log:
        views += [
            ImageGrid(title="t", images=("i",), column="sample", value_range=None),
            ReliabilityDiagram(title="t", confidence="p", accuracy="p", count="c"),
        ]
    views += [Histogram(title="t", values=("a",), log_x=log, log_y=log)]
    for view in views:
        with np.errstate(all="ignore"):
            plot = resolve(view, StoredResult(data))
            assert ET.fromstring(static.svg(plot)) is not None
            assert interactive.figure(plot).to_json()


def test_a_thumbnail_is_small_and_has_no_legend():
    plot = resolve(every_view()[0], result_of_every_view())
    small, large = (ET.fromstring(static.svg(plot, small=value)) for value in (True, False))
    assert len(list(small.iter())) < len(list(large.iter()))
    assert float(small.attrib["viewBox"].split()[2]) < float(large.attrib["viewBox"].split()[2])


def test_the_line_of_equality_leaves_the_axes_to_the_points():
    from matplotlib.figure import Figure
    from workbench.render import static_plots

    values = xr.DataArray(np.array([20.0, 25.0, 30.0]), dims=("sample",))
    view = Scatter(title="t", x="before", y="after", identity=True)
    plot = resolve(view, StoredResult(xr.Dataset({"before": values, "after": values + 3})))
    figure = Figure()
    static_plots._scatter(plot, figure)
    low, high = figure.axes[0].get_ylim()
    assert low < 23
    assert 33 < high < 40


def test_more_groups_of_points_than_colours_differ_in_shape():
    from matplotlib.figure import Figure
    from workbench.render import static_plots

    names = [f"group {number}" for number in range(len(palette.COLORS) + 1)]
    place = ("point", np.arange(len(names)))
    data = StoredResult(xr.Dataset({"x": place, "y": place, "name": ("point", np.array(names))}))
    plot = resolve(Scatter(title="t", x="x", y="y", color="name"), data)
    drawn = [(trace.marker.color, trace.marker.symbol) for trace in interactive.figure(plot).data]
    assert drawn[0][0] == drawn[-1][0]
    assert len(set(drawn)) == len(names)
    figure = Figure()
    static_plots._scatter(plot, figure)
    points = figure.axes[0].collections
    shapes = [(tuple(group.get_facecolor()[0]), group.get_paths()[0].vertices.tobytes()) for group in points]
    assert shapes[0][0] == shapes[-1][0]
    assert len(set(shapes)) == len(names)
