"""Views become numbers: what is read, what is drawn, what is said about what was left out, and which mistakes are named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from workbench.errors import InputError, OutputError
from workbench.render import interactive
from workbench.render.histogram import resolve_histogram
from workbench.render.reading import Reader, blocks
from workbench.render.reliability import bin_edges, wilson_interval
from workbench.render.resolve import resolve
from workbench.render.texts import cell_texts, number_text, power_text, shorten_all
from workbench.report import Bar, FreeForm, HeatMap, Histogram, ImageGrid, Line, ReliabilityDiagram, Scatter

from unit.render_cases import StoredResult, every_view, lazily, result_of_every_view


def result(series: xr.Dataset | None = None, coords: dict | None = None, **arrays: object) -> StoredResult:
    return StoredResult(xr.Dataset(arrays, coords=coords), series)


@pytest.mark.parametrize("view", every_view(), ids=lambda view: f"{view.kind}")
def test_every_kind_of_view_resolves(view):
    plot = resolve(view, result_of_every_view())
    assert plot.title == view.title


# ------------------------------------------------------------------------------------------------------------- lines


def test_a_line_has_one_curve_per_label_and_its_band():
    plot = resolve(every_view()[0], stored := result_of_every_view())
    assert [curve.name for curve in plot.curves] == ["plain", "other"]
    np.testing.assert_array_equal(plot.curves[1].y, stored["curve"].values[1])
    np.testing.assert_array_equal(plot.curves[0].lower, np.full(30, 0.05))
    assert plot.y.label == "curve [nat]"
    assert plot.x.log


def test_select_works_by_label_and_by_position():
    stored = result(curve=(("bit", "probe", "step"), np.arange(24.0).reshape(3, 2, 4)), coords={"bit": [2, 4, 8]})
    plot = resolve(Line(title="t", y=("curve",), x="step", select={"bit": 4, "probe": 1}), stored)
    np.testing.assert_array_equal(plot.curves[0].y, [12, 13, 14, 15])
    several = resolve(Line(title="t", y=("curve",), x="step", by="bit", select={"bit": [8, 2], "probe": -1}), stored)
    assert [curve.name for curve in several.curves] == ["8", "2"]
    np.testing.assert_array_equal(several.curves[0].y, [20, 21, 22, 23])


def test_a_label_stored_as_float32_is_found_by_its_decimal_text():
    stored = result(curve=(("shift", "step"), np.eye(2)), coords={"shift": np.array([0.1, 0.3], dtype="float32")})
    plot = resolve(Line(title="t", y=("curve",), x="step", select={"shift": 0.3}), stored)
    np.testing.assert_array_equal(plot.curves[0].y, [0, 1])


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ({"bit": 3}, r"select\['bit'\]: expected one label of 'bit': 2, 4, 8, got 3"),
        ({"bit": 2, "probe": 2}, r"position in 0\.\.1"),
        ({"bit": 2}, "Fix 'probe' with select"),
        ({"bit": 2, "probe": 0, "bits": 4}, "select: expected dims of the arrays in the view, got 'bits'"),
    ],
)
def test_a_selection_that_does_not_fit_is_named(select, message):
    stored = result(curve=(("bit", "probe", "step"), np.zeros((3, 2, 4))), coords={"bit": [2, 4, 8]})
    with pytest.raises(InputError, match=message):
        resolve(Line(title="t", y=("curve",), x="step", select=select), stored)


@pytest.mark.parametrize(
    "view",
    [
        Line(title="t", y=("a",), x="nowhere"),
        Line(title="t", y=("a",), x="sample", by="nowhere"),
        Bar(title="t", y=("a",), x="nowhere"),
        HeatMap(title="t", z="a", x="sample", y="nowhere"),
        Histogram(title="t", values=("a",), by="b"),
        Scatter(title="t", x="a", y="b"),
        ImageGrid(title="t", images=("a",), column="nowhere"),
        ReliabilityDiagram(title="t", confidence="a", accuracy="a", count="a"),
    ],
    ids=lambda view: view.kind,
)
def test_a_wrong_dim_is_an_error_that_names_the_view(view):
    stored = result(a=("sample", np.zeros(3)), b=("layer", np.zeros(2)))
    with pytest.raises(InputError, match="view 't'"):
        resolve(view, stored)


def test_what_is_not_stored_is_named():
    with pytest.raises(OutputError, match="no array 'absent' is stored"):
        resolve(Line(title="t", y=("absent",), x="step"), result())
    with pytest.raises(OutputError, match="no time series 'loss' was logged"):
        resolve(Line(title="t", y=("series/loss",), x="step"), result())
    with pytest.raises(OutputError, match="'bounds'"):
        resolve(
            ReliabilityDiagram(title="t", confidence="a", accuracy="a", count="a", accuracy_lower="bounds"),
            result(a=("bin", np.ones(3))),
        )


def test_texts_cannot_be_drawn_as_numbers():
    with pytest.raises(InputError, match="an array of numbers"):
        resolve(Line(title="t", y=("a",), x="sample"), result(a=("sample", np.array(["x", "y"]))))


def test_a_long_curve_is_thinned_with_a_note_and_only_that_is_read():
    variable, counter = lazily(("step", "probe"), np.arange(400_000.0).reshape(100_000, 4))
    view = Line(title="t", y=("a",), x="step", select={"probe": 2})
    plot = resolve(view, result(a=variable))
    assert len(plot.curves[0].x) == 2_000
    assert counter.read == 2_000
    assert plot.caption == "Every 50th of 100,000 entries of step is drawn."
    np.testing.assert_array_equal(plot.curves[0].y, np.arange(0, 100_000, 50) * 4.0 + 2)


def test_nan_stays_a_gap_in_arrays_and_is_skipped_in_series():
    series = xr.Dataset({"loss": ("step", [1.0, np.nan, 3.0])}, coords={"step": [0, 5, 10]})
    stored = result(series, a=("step", [1.0, np.nan, 3.0]))
    assert len(resolve(Line(title="t", y=("a",), x="step"), stored).curves[0].y) == 3
    curve = resolve(Line(title="t", y=("series/loss",), x="step"), stored).curves[0]
    np.testing.assert_array_equal(curve.x, [0, 10])


def test_a_logarithmic_axis_says_what_it_cannot_show():
    plot = resolve(
        Line(title="t", caption="Own.", y=("a",), x="step", log_y=True), result(a=("step", [-1.0, 0.0, 2.0]))
    )
    np.testing.assert_array_equal(plot.curves[0].y, [np.nan, np.nan, 2.0])
    assert plot.caption == "Own. Values of 0 and below are not drawn on the logarithmic axis."


# -------------------------------------------------------------------------------------------------------------- bars


def test_bars_keep_labels_errors_and_a_limit():
    stored = result(
        a=("layer", np.arange(200.0)), e=("layer", np.ones(200)), coords={"layer": [f"l{i}" for i in range(200)]}
    )
    plot = resolve(Bar(title="t", y=("a",), x="layer", error="e"), stored)
    assert plot.x.categories[:2] == ("l0", "l1")
    assert len(plot.groups[0].values) == len(plot.groups[0].errors) == len(plot.x.categories) == 120
    assert plot.caption == "The first 120 of 200 entries of layer are drawn."


def test_the_ends_of_an_interval_become_lengths_below_and_above():
    stored = result(a=("layer", [1.0, 2.0, 3.0]), lo=("layer", [0.5, np.nan, 3.5]), hi=("layer", [3.0, 2.5, 4.0]))
    plot = resolve(Bar(title="t", y=("a",), x="layer", lower="lo", upper="hi"), stored)
    # an end on the wrong side of its value has no whisker; one that is not known neither
    np.testing.assert_array_equal(plot.groups[0].errors, [[0.5, np.nan, 0.0], [2.0, 0.5, 1.0]])
    with pytest.raises(InputError, match="lower, upper"):
        resolve(Bar(title="t", y=("a",), x="layer", lower="lo"), stored)


def test_errors_belong_to_one_array():
    with pytest.raises(InputError, match="one array where error is given"):
        resolve(Bar(title="t", y=("a", "a"), x="layer", error="a"), result(a=("layer", np.ones(2))))


# --------------------------------------------------------------------------------------------------------- heat maps


def test_a_diverging_map_is_centred_on_zero():
    plot = resolve(
        HeatMap(title="t", z="a", x="bit", y="layer", diverging=True), result(a=(("layer", "bit"), [[-1.0, 4.0]]))
    )
    assert plot.limits == (-4.0, 4.0)


def test_a_diverging_map_of_factors_is_centred_on_one():
    view = HeatMap(title="t", z="a", x="bit", y="layer", diverging=True, log=True)
    assert resolve(view, result(a=(("layer", "bit"), [[0.5, 8.0]]))).limits == (1 / 8, 8.0)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("diverging", [False, True])
@pytest.mark.parametrize("values", [[[np.nan, np.nan]], [[2.0, 2.0]], np.zeros((0, 3)), [[0.0, -1.0]], [[np.inf, 1.0]]])
def test_the_colour_scale_has_ends_whatever_the_values(values, log, diverging):
    view = HeatMap(title="t", z="a", x="bit", y="layer", diverging=diverging, log=log)
    low, high = resolve(view, result(a=(("layer", "bit"), np.asarray(values)))).limits
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low < high
    assert low > 0 or not log


def test_cells_of_unevenly_spaced_labels_become_categories():
    stored = result(a=(("layer", "bit"), np.zeros((2, 3))), coords={"bit": [2, 4, 8]})
    plot = resolve(HeatMap(title="t", z="a", x="bit", y="layer"), stored)
    assert plot.x.categories == ("2", "4", "8")
    np.testing.assert_array_equal(plot.x_values, [0, 1, 2])


def test_frames_lie_around_the_cells_that_an_array_names():
    marks = (("bit", "layer"), [[False, True], [True, False], [False, False]])  # in any order of dims
    cells = (("layer", "bit"), np.zeros((2, 3)))
    stored = result(a=cells, b=marks, c=(("layer", "bit"), np.ones((2, 3))), coords={"bit": [2, 4, 6]})
    plot = resolve(HeatMap(title="t", z="a", x="bit", y="layer", frame="b"), stored)
    assert plot.framed.tolist() == [[False, True, False], [True, False, False]]
    centers = [tuple(np.mean(frame, axis=0)) for frame in plot.frames()]
    assert centers == [(4.0, 0.0), (2.0, 1.0)]
    (left, _), (right, _) = plot.frames()[0][0], plot.frames()[0][2]
    assert 3 < left < 3.2 < 4.8 < right < 5  # inside a cell from 3 to 5
    assert resolve(HeatMap(title="t", z="a", x="bit", y="layer"), stored).frames() == []
    with pytest.raises(InputError, match="booleans, 2 by 3"):
        resolve(HeatMap(title="t", z="a", x="bit", y="layer", frame="c"), stored)
    with pytest.raises(OutputError, match="'d'"):
        resolve(HeatMap(title="t", z="a", x="bit", y="layer", frame="d"), stored)


def test_frames_are_thinned_with_their_cells():
    marks = np.zeros((1_000, 3), dtype=bool)
    marks[[3, 4], 1] = True
    stored = result(a=(("y", "x"), np.zeros((1_000, 3))), b=(("y", "x"), marks))
    plot = resolve(HeatMap(title="t", z="a", x="x", y="y", frame="b"), stored)
    assert plot.framed.shape == plot.values.shape
    assert np.argwhere(plot.framed).tolist() == [[1, 1]]  # every third row is drawn: 0, 3, 6, ...


def test_a_large_map_is_thinned_before_it_is_read():
    variable, counter = lazily(("y", "x"), np.zeros((3_000, 2_000), dtype="float32"))
    plot = resolve(HeatMap(title="t", z="a", x="x", y="y"), result(a=variable))
    assert plot.values.shape == (375, 400)
    assert counter.read == plot.values.size
    assert plot.caption == "Every 8th of 3,000 entries of y is drawn. Every 5th of 2,000 entries of x is drawn."


# -------------------------------------------------------------------------------------------------------- histograms


def test_counts_equal_numpys_and_leave_out_what_is_not_finite():
    values = np.r_[np.random.default_rng(1).normal(size=1_000), np.nan, np.inf]
    plot = resolve(Histogram(title="t", values=("a",), bins=17), result(a=("sample", values)))
    counts, edges = np.histogram(values[:1_000], 17)
    np.testing.assert_array_equal(plot.distributions[0].counts, counts)
    np.testing.assert_allclose(plot.edges, edges)
    assert plot.caption == "2 values are not finite and left out."


def test_groups_by_another_array_that_lacks_a_dim():
    values = np.arange(12.0).reshape(3, 4)
    stored = result(a=(("sample", "class"), values), g=("sample", [True, False, True]))
    plot = resolve(Histogram(title="t", values=("a",), by="g", bins=4), stored)
    assert {d.name: d.total for d in plot.distributions} == {"not g": 4, "g": 8}
    assert plot.shares
    np.testing.assert_allclose(plot.heights(plot.distributions[1]).sum(), 1.0)


def test_counting_in_blocks_gives_what_counting_at_once_gives(monkeypatch):
    values = np.random.default_rng(2).lognormal(size=(50, 7, 3))
    stored = result(a=(("sample", "y", "x"), values), g=("sample", np.arange(50) % 4))
    view = Histogram(title="t", values=("a",), by="g", log_x=True)
    whole = resolve(view, stored)
    monkeypatch.setattr("workbench.render.histogram.BLOCK", 10)
    monkeypatch.setattr("workbench.render.histogram.blocks", lambda array: blocks(array, 10))
    parts = resolve_histogram(view, Reader("t", stored, {}))
    for one, other in zip(whole.distributions, parts.distributions, strict=True):
        np.testing.assert_array_equal(one.counts, other.counts)
    assert sum(d.total for d in parts.distributions) == values.size


def test_blocks_cover_an_array_exactly_once():
    array = xr.DataArray(np.zeros((7, 5, 11)), dims=("a", "b", "c"))
    for most in (1, 3, 11, 60, 10_000):
        seen = np.zeros(array.shape, dtype=int)
        for region in blocks(array, most):
            part = seen[tuple(region[dim] for dim in array.dims)]
            assert part.size <= most
            part += 1
        assert (seen == 1).all()


@pytest.mark.parametrize("values", [np.array([]), np.array([np.nan]), np.array([3.0]), np.array([5], dtype="uint8")])
def test_a_histogram_of_next_to_nothing_has_edges(values):
    plot = resolve(Histogram(title="t", values=("a",)), result(a=("sample", values)))
    assert (np.diff(plot.edges) > 0).all()
    assert plot.distributions[0].total == np.isfinite(values).sum()


def test_whole_numbers_get_a_bin_each():
    plot = resolve(Histogram(title="t", values=("a",)), result(a=("sample", [2, 4, 4, 8])))
    np.testing.assert_array_equal(plot.edges, np.arange(1.5, 9))
    np.testing.assert_array_equal(plot.distributions[0].counts, [1, 0, 2, 0, 0, 0, 1])


# ------------------------------------------------------------------------------------------------------------ points


def test_many_points_are_sampled_and_highlighted_ones_are_kept():
    size = 10_000
    marked = np.zeros(size, dtype=bool)
    marked[[3, 9_999]] = True
    x_variable, counter = lazily(("sample",), np.arange(float(size)))
    stored = result(x=x_variable, y=("sample", np.ones(size)), m=("sample", marked))
    plot = resolve(Scatter(title="t", x="x", y="y", highlight="m"), stored)
    (group,) = plot.groups
    assert len(group.x) == counter.read == 4_000
    np.testing.assert_array_equal(group.x[group.highlighted], [3, 9_999])
    assert plot.caption == "A random sample of 4,000 of 10,000 points is drawn."


def test_whiskers_of_points_reach_to_the_ends_of_their_intervals_and_follow_the_colours():
    stored = result(
        x=("sample", [1.0, 2, 3]), y=("sample", [1.0, 2, 3]), c=("sample", np.array(["p", "q", "p"])),
        low=("sample", [0.5, np.nan, 2.9]), high=("sample", [1.25, np.nan, 3.5]),
    )  # fmt: skip
    one, other = resolve(Scatter(title="t", x="x", y="y", color="c", lower="low", upper="high"), stored).groups
    np.testing.assert_allclose(one.whiskers, [[0.5, 0.1], [0.25, 0.5]])
    np.testing.assert_array_equal(other.whiskers, [[0], [0]])
    (half,) = resolve(Scatter(title="t", x="x", y="y", upper="high"), stored).groups
    np.testing.assert_allclose(half.whiskers, [[0, 0, 0], [0.25, 0, 0.5]])


def test_texts_are_printed_instead_of_labels_which_those_who_hover_still_read():
    names = np.array([f"a long name of variant {place}" for place in range(40)])
    numbers = np.array(["1", *[""] * 38, "2"])
    stored = result(x=("sample", np.arange(40.0)), y=("sample", np.arange(40.0)), n=("sample", names), t=("sample", numbers))
    (many,) = resolve(Scatter(title="t", x="x", y="y", label="n"), stored).groups
    assert (many.labels[0], many.texts) == (names[0], ())
    (printed,) = resolve(Scatter(title="t", x="x", y="y", label="n", text="t"), stored).groups
    assert printed.texts == tuple(numbers)
    trace = interactive.figure(resolve(Scatter(title="t", x="x", y="y", label="n", text="t"), stored)).data[0]
    assert (trace.mode, list(trace.text), trace.hovertext[39]) == ("markers+text", numbers.tolist(), names[39])
    few = result(**{name: ("sample", stored[name].values[:3]) for name in ("x", "y", "n")})
    (shortened,) = resolve(Scatter(title="t", x="x", y="y", label="n"), few).groups
    assert len(shortened.texts) == 3
    assert all(len(text) <= 22 for text in shortened.texts)


def test_points_without_a_colour_value_are_a_group_of_their_own():
    stored = result(x=("sample", [1.0, 2, 3]), y=("sample", [1.0, 2, 3]), c=("sample", [0.5, np.nan, 0.7]))
    plot = resolve(Scatter(title="t", x="x", y="y", color="c"), stored)
    assert [(group.name, len(group.x)) for group in plot.groups] == [("", 2), ("no c", 1)]
    assert plot.color_limits == (0.5, 0.7)


def test_more_groups_than_colours_are_drawn_as_others():
    names = np.array([f"g{i}" for i in range(20)])
    stored = result(x=("sample", np.arange(20.0)), y=("sample", np.arange(20.0)), c=("sample", names))
    plot = resolve(Scatter(title="t", x="x", y="y", color="c"), stored)
    assert [group.name for group in plot.groups][-1] == "4 others"
    assert sum(len(group.x) for group in plot.groups) == 20


def test_points_without_a_place_are_counted():
    stored = result(x=("sample", [1.0, np.nan, -3.0]), y=("sample", [1.0, 2, 3]))
    plot = resolve(Scatter(title="t", x="x", y="y", log_x=True), stored)
    assert sum(len(group.x) for group in plot.groups) == 1
    assert "2 points without a finite value on both axes are not drawn." in plot.caption


# ---------------------------------------------------------------------------------------------------------- pictures


def test_pictures_of_bytes_are_scaled_by_255_and_masks_are_not():
    pixels = np.array([[[0, 255], [51, 102]]], dtype="uint8")
    stored = result(image=(("sample", "y", "x"), pixels), mask=(("sample", "y", "x"), (pixels > 60).astype("int64")))
    image = resolve(ImageGrid(title="t", images=("image",), column="sample"), stored).cells[0][0]
    np.testing.assert_allclose(image, [[0, 1], [0.2, 0.4]])
    mask = resolve(ImageGrid(title="t", images=("mask",), column="sample"), stored).cells[0][0]
    np.testing.assert_array_equal(mask, [[0, 1], [0, 1]])


def test_a_grid_reads_only_the_pictures_it_shows():
    variable, counter = lazily(("sample", "channel", "y", "x"), np.zeros((500, 3, 8, 8), dtype="float32"))
    plot = resolve(ImageGrid(title="t", images=("image",), column="sample", limit=4), result(image=variable))
    assert counter.read == 4 * 3 * 8 * 8
    assert plot.cells[0][0].shape == (8, 8, 3)
    assert plot.columns == ("sample 0", "sample 1", "sample 2", "sample 3")
    assert plot.caption == "The first 4 of 500 entries of sample are drawn."


def test_a_grid_may_spread_a_dim_over_rows():
    values = np.random.default_rng(0).random((2, 3, 4, 4))
    stored = result(a=(("method", "sample", "y", "x"), values), coords={"method": ["p", "q"]})
    plot = resolve(ImageGrid(title="t", images=("a",), column="sample", row="method"), stored)
    assert plot.rows == ("p", "q")
    np.testing.assert_allclose(plot.cells[1][2], stored["a"].values[1, 2])


def test_numbers_above_pictures_have_three_digits_and_texts_are_as_given():
    pixels = (("sample", "y", "x"), np.zeros((3, 2, 2)))
    stored = result(a=pixels, measured=("sample", np.array([0.98765432, 12.0, -0.00123456])), name=("sample", ["p", "q", "r"]))
    grids = [resolve(ImageGrid(title="t", images=("a",), column="sample", labels=one), stored) for one in ("measured", "name")]
    assert grids[0].columns == ("0.988", "12", "−0.00123")
    assert grids[1].columns == ("p", "q", "r")


def test_pictures_can_be_scaled_each_by_itself_and_a_flat_one_is_no_problem():
    stored = result(a=(("sample", "y", "x"), np.array([[[5.0, 7.0]], [[3.0, 3.0]]])))
    flat = resolve(ImageGrid(title="t", images=("a",), column="sample", value_range=None), stored).cells[0]
    np.testing.assert_array_equal(flat[0], [[0, 1]])
    np.testing.assert_array_equal(flat[1], [[0, 0]])


# ------------------------------------------------------------------------------------------------------- reliability


def test_reliability_leaves_empty_bins_empty_and_computes_the_gap():
    count, accuracy, confidence = np.array([0, 4, 6]), np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.6, 0.9])
    stored = result(n=("bin", count), a=("bin", accuracy), c=("bin", confidence))
    (panel,) = resolve(ReliabilityDiagram(title="t", confidence="c", accuracy="a", count="n"), stored).panels
    assert np.isnan(panel.accuracy[0])
    assert np.isnan(panel.lower[0])
    assert panel.gap == pytest.approx((4 * 0.1 + 6 * 0.1) / 10)


def test_intervals_are_wilsons():
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81 / 263 and 15 / 148 and 0 / 20 and 1 / 29.
    low, high = wilson_interval(np.array([81 / 263, 15 / 148, 0.0, 1 / 29]), np.array([263.0, 148, 20, 29]))
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0.0, 0.0061], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=5e-5)
    low, high = wilson_interval(np.array([1.0 + 2e-16, np.nan]), np.array([5.0, 0.0]))
    assert np.isfinite([low[0], high[0]]).all()
    assert np.isnan(low[1])


def test_edges_are_equal_where_that_fits_and_between_the_means_otherwise():
    np.testing.assert_allclose(bin_edges(np.array([0.1, np.nan, 0.9])), [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(bin_edges(np.array([0.7, 0.8, 0.95])), [0, 0.75, 0.875, 1])
    np.testing.assert_allclose(bin_edges(np.full(4, np.nan)), np.linspace(0, 1, 5))


# ---------------------------------------------------------------------------------------------------------- the rest


def test_a_free_form_view_must_hold_a_png():
    for png in ("PHN2Zz48L3N2Zz4=", "not base64!"):  # the first one is <svg></svg>
        with pytest.raises(InputError, match="PNG"):
            resolve(FreeForm(title="t", png=png), result())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12344, "0.1234"), (1234.6, "1,235"), (2e-7, "2e−7"), (-3, "−3"), (True, "yes"), (None, "–"), (math.nan, "NaN")],
)
def test_numbers_read_well(value, text):
    assert number_text(value) == text


def test_a_column_shares_its_decimals():
    assert cell_texts([0.5, 12.25, None]) == ["0.50", "12.25", "–"]
    assert cell_texts([3.0, 4.0]) == ["3", "4"]


def test_powers_and_labels():
    assert [power_text(value) for value in (0.01, 20, 1e5, 3e-7)] == ["0.01", "20", "10⁵", "3×10⁻⁷"]
    layers = [f"features.stage{i}.block{i}.convolution.weight" for i in range(3)]
    assert shorten_all(layers) == ["stage0.block0", "stage1.block1", "stage2.block2"]
    alike = shorten_all(["a" * 40 + f"{i}" + "b" * 40 for i in range(3)])
    assert len(set(alike)) == 3
    assert max(map(len, alike)) <= 60
