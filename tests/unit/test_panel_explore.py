"""The explorer: what is shown of an array, what is read for it, and the code that says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import workbench
from workbench import InputError
from workbench.panels import explore_overview
from workbench.panels.explore import Explorer
from workbench.panels.explore_frame import make_frame
from workbench.panels.explore_sources import MeteredBackend, RunArrays
from workbench.panels.explore_view import PAGE_BYTES, View, default_view, settled, slicing_code

from unit.panel_cases import HOSTILE, bench_over, pictures, put_run

DIMS = ("sample", "channel", "y", "x")


@pytest.fixture
def bench(tmp_path: Path) -> workbench.Workbench:
    return bench_over(tmp_path)


def arrays_of(run: workbench.Run) -> RunArrays:
    return RunArrays([run.stored])


def asked(explorer: Explorer, **changes: Any) -> tuple[dict[str, Any], list[bytes]]:
    """The answer to a message as the front end sends it: through JSON."""
    view = explorer.view.model_dump(mode="json") | changes
    return explorer.answer(json.loads(json.dumps({"seq": 7, "view": view})))


def picture(answer: dict[str, Any], buffer: bytes) -> np.ndarray:
    shape = (answer["count"], answer["height"], answer["width"]) + ((3,) if answer["channels"] == 3 else ())
    return np.frombuffer(buffer, answer["type"]).reshape(shape)


# --------------------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize(
    ("dims", "shape", "dtype", "expected"),
    [
        (DIMS, (6, 3, 8, 9), "float32", {"x": "x", "y": "y", "color": "channel", "facet": "sample", "scale": "full"}),
        (DIMS, (6, 1, 8, 9), "float32", {"color": None, "facet": "sample", "index": {"channel": 0}, "scale": "shared"}),
        (("layer", "sample", "y", "x"), (2, 6, 8, 9), "uint8", {"facet": "sample", "index": {"layer": 0}, "scale": "full"}),
        (("class", "class_predicted"), (5, 5), "int64", {"kind": "image", "x": "class_predicted", "y": "class", "facet": None}),
        (("layer", "step"), (3, 100), "float64", {"kind": "line", "x": "step", "color": "layer"}),
        (("sample",), (500,), "float32", {"kind": "histogram", "x": "sample"}),
        (("class",), (10,), "float32", {"kind": "line", "x": "class"}),
        ((), (), "float32", {"kind": "table", "x": None, "y": None}),
        (("sample",), (4,), "object", {"kind": "table", "y": "sample"}),
    ],
)  # fmt: skip
def test_an_array_is_shown_in_the_form_that_suits_it(bench, dims, shape, dtype, expected):
    values = np.full(shape, "text", dtype=object) if dtype == "object" else np.zeros(shape, dtype)
    run = put_run(bench, {"array": (dims, values)})
    view = default_view(arrays_of(run).source("array")).model_dump()
    assert {name: view[name] for name in expected} == expected


def test_a_view_puts_every_dim_in_one_place(bench):
    source = arrays_of(put_run(bench, {"array": (DIMS, pictures())})).source("array")
    view = settled(View(x="x", y="x", color="x", facet="x", index={"channel": 99, "nonsense": 3}, start=500), source)
    placed = [view.x, view.y, view.color, view.facet, *view.index]
    assert sorted(filter(None, placed)) == sorted(DIMS)
    assert view.index.get("channel", 0) in range(3)


def test_a_view_of_dims_that_are_not_there_is_refused(bench):
    source = arrays_of(put_run(bench, {"array": (DIMS, pictures())})).source("array")
    with pytest.raises(InputError, match="a dim of 'array': sample, channel, y, x"):
        settled(View(x="depth"), source)


def test_every_kind_can_follow_every_other(bench):
    """Whatever the front end sends after a change of kind, something is shown."""
    arrays = {"a": (DIMS, pictures()), "b": (("layer", "step"), np.ones((3, 5))), "c": (("sample",), np.arange(6.0))}
    run = put_run(bench, arrays)
    for name in arrays:
        explorer = Explorer([run.stored], name)
        for kind in ("line", "image", "table", "histogram", "image", "line", "histogram", "table"):
            answer, _ = asked(explorer, kind=kind)
            assert "error" not in answer, (name, kind, answer)
            assert answer["kind"] in ("image", "line", "histogram", "table")


# -------------------------------------------------------------------------------------------------------------- frames


def test_pictures_are_the_stored_numbers(bench):
    values = pictures(6)
    explorer = Explorer([put_run(bench, {"restored": (DIMS, values)}).stored], "restored")
    answer, buffers = asked(explorer, start=2, count=3)
    assert answer["seq"] == 7
    np.testing.assert_array_equal(picture(answer, buffers[0]), values[2:5].transpose(0, 2, 3, 1))
    assert answer["titles"] == ["sample 2", "sample 3", "sample 4"]
    assert answer["limits"] == [[0.0, 1.0]] * 3


def test_scales_are_shared_or_each_and_can_cut_outliers(bench):
    values = np.zeros((2, 10, 10), np.float32)
    values[0, 0, 0], values[1] = 5, np.arange(100).reshape(10, 10)
    values[1, 9, 9] = np.nan
    explorer = Explorer([put_run(bench, {"map": (("sample", "y", "x"), values)}).stored])
    assert asked(explorer, scale="shared")[0]["limits"] == [[0, 98], [0, 98]]
    assert asked(explorer, scale="each")[0]["limits"] == [[0, 5], [0, 98]]
    cut = asked(explorer, scale="each", clip=5)[0]["limits"]
    assert cut[0] == [0, 0]
    assert cut[1] == pytest.approx(np.percentile(np.arange(99), [5, 95]))


def test_bytes_stay_bytes_and_whole_numbers_keep_their_value(bench):
    values = np.random.default_rng(0).integers(0, 255, (2, 4, 4), dtype=np.uint8)
    run = put_run(bench, {"photo": (("sample", "y", "x"), values), "count": (("y", "x"), np.arange(16).reshape(4, 4))})
    answer, buffers = asked(Explorer([run.stored], "photo"))
    assert answer["type"] == "uint8"
    assert buffers[0] == values.tobytes()
    answer, buffers = asked(Explorer([run.stored], "count"))
    np.testing.assert_array_equal(picture(answer, buffers[0])[0], np.arange(16).reshape(4, 4))


def test_large_pictures_are_thinned_until_one_zooms_in(bench):
    values = np.random.default_rng(0).random((1, 2500, 1200), dtype=np.float32)
    explorer = Explorer([put_run(bench, {"map": (("sample", "y", "x"), values)}).stored])
    answer, buffers = asked(explorer)
    assert answer["step"] == 3
    np.testing.assert_array_equal(picture(answer, buffers[0])[0], values[0, ::3, ::3])
    answer, buffers = asked(explorer, window=[100, 300, 50, 350])
    assert (answer["step"], answer["extent"]) == (1, [100, 300, 50, 350])
    np.testing.assert_array_equal(picture(answer, buffers[0])[0], values[0, 100:300, 50:350])


@pytest.mark.parametrize("seed", range(4))
def test_an_overview_of_a_large_picture_is_read_a_few_chunks_at_a_time(bench, monkeypatch, seed):
    """Until all is read every pixel has a value of the picture; in the end each chunk was read once, and all are right."""
    rng = np.random.default_rng(seed)
    shape = (2, *rng.integers(1500, 3000, 2).tolist())
    values = rng.integers(0, 2**16, shape, dtype=np.uint16).astype(np.int32)
    run = put_run(bench, {"map": (("sample", "y", "x"), values)})
    packed = sum(path.stat().st_size for path in Path(bench.store.url, "runs").glob("*/*/map/c/**/*") if path.is_file())
    explorer = Explorer([run.stored])
    budget = 600_000
    monkeypatch.setattr(explore_overview, "BUDGET", budget)
    chunk = np.prod(run.record.arrays["map"]["chunk"]) * 4
    window = [7, shape[1] - 11, 3, shape[2]] if seed % 2 else None
    last, answers = 0.0, 0
    while last < 1:
        answer, buffers = asked(explorer, index={"sample": 1}, facet=None, window=window)
        assert last < answer["known"] <= 1
        last, answers = answer["known"], answers + 1
        assert answer["read"] <= budget + chunk + 16 * 4096, "an index of places comes with the first chunk of a file"
        assert answer["step"] > 1
    top, bottom, left, right = answer["extent"]
    step = answer["step"]
    np.testing.assert_array_equal(picture(answer, buffers[0])[0], values[1, top:bottom:step, left:right:step])
    assert answers > 5
    assert answer["shown"] == len(buffers[0])
    assert explorer.bytes_read < 1.1 * packed / 2 + 2**16 < values[1].nbytes, "every chunk of this picture, once"
    assert asked(explorer, index={"sample": 1}, facet=None, window=window)[0]["read"] == 0, "it stays at hand"


class Tiled:
    """An array in memory that notes which of its chunks are touched."""

    name, dims, units, description = "map", ("sample", "y", "x"), "", ""

    def __init__(self, values: np.ndarray, side: int) -> None:
        self.values, self.side, self.touched = values, side, []
        self.shape, self.dtype = values.shape, values.dtype

    def read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        rows, columns = (sorted({place // self.side for place in range(*part.indices(10**6))}) for part in key[1:])
        self.touched += [(row, column) for row in rows for column in columns]
        return self.values[key]


@pytest.mark.parametrize("sizes", [(1024, 1024), (700, 1990), (1990, 100)])
@pytest.mark.parametrize("start", [0, 37])
def test_what_is_not_known_of_an_overview_yet_is_shown_by_what_lies_nearest(sizes, start):
    y, x = np.mgrid[0 : sizes[0], 0 : sizes[1]]
    values = np.stack([y * 10_000.0 + x, -y - x]).astype(np.float64)
    source = Tiled(values, side=64)
    parts = {"sample": slice(0, 2), "y": slice(start, sizes[0], 3), "x": slice(0, sizes[1], 3)}
    overview = explore_overview.Overview(source, {"sample": 1, "y": 64, "x": 64}, parts, "y", "x")
    true = values[:, start::3, ::3]
    wrong = []
    while overview.known < 1:
        before = overview.known
        overview.go_on(1)
        assert overview.known > before
        assert np.isin(overview.values[0], true[0]).all(), "only values of the picture are shown"
        wrong.append(np.abs(overview.values[0] // 10_000 - true[0] // 10_000).mean())
    np.testing.assert_array_equal(overview.values, true)
    assert len(source.touched) == len(set(source.touched)), "every chunk is read once"
    assert len(set(source.touched)) == len(
        {(r // 64, c // 64) for r in range(start, sizes[0], 3) for c in range(0, sizes[1], 3)}
    )
    quarter = wrong[len(wrong) // 4]
    assert quarter < 0.5 * wrong[0], "it becomes finer everywhere, not from the top down"


def test_a_page_holds_fewer_pictures_where_they_are_large(bench):
    values = np.zeros((40, 400, 400), np.float32)
    explorer = Explorer([put_run(bench, {"map": (("sample", "y", "x"), values)}).stored])
    answer, buffers = asked(explorer, count=24)
    assert answer["count"] == answer["page"] == PAGE_BYTES // values[0].nbytes == 6
    assert len(buffers[0]) <= PAGE_BYTES


def test_masks_and_heat_maps_lie_over_pictures(bench):
    mask = np.random.default_rng(0).integers(0, 3, (6, 8, 8))
    heat = np.random.default_rng(1).normal(size=(6, 8, 8)).astype(np.float32)
    shared = np.ones((8, 8), bool)
    run = put_run(
        bench,
        {
            "image": (DIMS, pictures()),
            "mask": (DIMS[:1] + DIMS[2:], mask),
            "heat": (DIMS[:1] + DIMS[2:], heat),
            "shared": (("y", "x"), shared),
            "logit": (("sample", "class"), np.ones((6, 4))),
        },
    )
    explorer = Explorer([run.stored], "image")
    answer, _ = asked(explorer)
    assert answer["overlays"] == ["mask", "heat", "shared"]
    answer, buffers = asked(explorer, overlay="mask", start=1, count=2)
    assert answer["overlay"]["mask"]
    np.testing.assert_array_equal(np.frombuffer(buffers[1], np.uint8).reshape(2, 8, 8), mask[1:3])
    answer, buffers = asked(explorer, overlay="heat", start=0, count=2)
    assert not answer["overlay"]["mask"]
    assert answer["overlay"]["limits"] == [heat[:2].min(), heat[:2].max()]
    answer, buffers = asked(explorer, overlay="shared", count=2)
    assert np.frombuffer(buffers[1], np.uint8).tolist() == [1] * 128  # the same over both pictures


def test_captions_come_from_arrays_over_the_same_dim(bench):
    run = put_run(
        bench,
        {
            "image": (DIMS, pictures()),
            "sample": (("sample",), np.array([f"photo {i}" for i in range(6)], object)),
            "label": (("sample",), np.arange(6)),
            "confidence": (("sample",), np.linspace(0, 1, 6)),
        },
    )
    answer, _ = asked(Explorer([run.stored], "image"), captions="label", start=4, count=2)
    assert answer["titles"] == ["photo 4", "photo 5"]
    assert answer["captions"] == ["4", "5"]
    assert answer["caption_choices"] == ["label", "confidence"]


def test_curves_are_thinned_and_say_so(bench):
    values = np.arange(24_000.0).reshape(2, 12_000)
    values[0, 0] = np.nan
    answer, _ = asked(Explorer([put_run(bench, {"loss": (("layer", "step"), values)}).stored]))
    assert [curve["name"] for curve in answer["curves"]] == ["layer 0", "layer 1"]
    assert answer["curves"][0]["y"][:2] == [None, 3.0]
    assert answer["x"][:3] == [0, 3, 6]
    assert answer["notes"] == ["One in 3 of the 12,000 entries along step is drawn."]


def test_histograms_count_every_finite_value(bench):
    values = np.random.default_rng(0).normal(size=(2, 5_000))
    values[0, :7] = np.inf
    explorer = Explorer([put_run(bench, {"score": (("layer", "sample"), values)}).stored])
    answer, _ = asked(explorer, kind="histogram", x="sample", y=None, color="layer")
    assert [sum(curve["y"]) for curve in answer["curves"]] == [4_993, 5_000]
    assert "7 entries are no finite numbers." in answer["notes"]
    expected = np.histogram(values[1], answer["edges"])[0]
    assert answer["curves"][1]["y"] == expected.tolist()
    assert answer["mean"] == pytest.approx(values[np.isfinite(values)].mean())


def test_whole_numbers_get_a_bar_each(bench):
    answer, _ = asked(Explorer([put_run(bench, {"label": (("sample",), np.arange(300) % 3)}).stored]), kind="histogram")
    assert answer["edges"] == [-0.5, 0.5, 1.5, 2.5]
    assert answer["curves"][0]["y"] == [100, 100, 100]


def test_tables_of_numbers_and_of_texts(bench):
    names = np.array(["a", HOSTILE, "c"], object)
    run = put_run(bench, {"logit": (("sample", "class"), np.eye(3)), "name": (("sample",), names), "one": ((), 3.5)})
    answer, _ = asked(Explorer([run.stored], "logit"), kind="table")
    assert [len(answer["rows"]), len(answer["rows"][0])] == [3, 3]
    answer, _ = asked(Explorer([run.stored], "name"))
    assert answer["rows"][1][0].startswith(HOSTILE[:50])  # a text; the front end only ever sets text
    assert "\u202e" not in answer["rows"][1][0]
    assert len(answer["rows"][1][0]) < 350
    answer, _ = asked(Explorer([run.stored], "one"))
    assert answer["rows"] == [["3.500"]]


def test_an_array_without_entries_says_so(bench):
    answer, _ = asked(Explorer([put_run(bench, {"none": (("sample", "class"), np.zeros((0, 3)))}).stored]))
    assert answer["kind"] == "empty"


# ------------------------------------------------------------------------------------------------------------- reading


def test_only_the_chunks_on_view_are_read(bench):
    """Incompressible pictures of a megabyte each: one is shown, no more than twice its bytes are read."""
    values = np.random.default_rng(0).integers(0, 2**32, (24, 512, 512), dtype=np.uint32).view(np.float32)
    values = np.nan_to_num(values, nan=1.0, posinf=1.0, neginf=1.0)
    run = put_run(bench, {"spectrum": (("layer", "y", "x"), values)})
    explorer = Explorer([run.stored])
    before = explorer.bytes_read
    answer, buffers = asked(explorer, facet=None, index={"layer": 11})
    assert answer["read"] == explorer.bytes_read - before
    assert answer["shown"] == values[11].nbytes == len(buffers[0])
    assert 0.9 * answer["shown"] < answer["read"] < 2 * answer["shown"] < values.nbytes / 10
    np.testing.assert_array_equal(picture(answer, buffers[0])[0], values[11])
    assert asked(explorer, facet=None, index={"layer": 11}, clip=1)[0]["read"] == 0, "what was just read is kept"


def test_the_meter_keeps_the_newest_bytes_only(bench):
    run = put_run(bench, {name: (("x",), np.arange(100)) for name in "ab"})
    keys = {name: f"runs/{run.record.month}/{run.id}/{name}/c/0" for name in "ab"}
    size = bench.store.backend.size(keys["a"])
    meter = MeteredBackend(bench.store.backend, keep=size * 3 // 2)
    read = []
    for name in "aabba":
        assert meter.read(keys[name]) == bench.store.backend.read(keys[name])
        read.append(meter.bytes_read // size)
    assert read == [1, 1, 2, 2, 3]


def test_damage_is_told_in_the_panel(bench):
    run = put_run(bench, {"restored": (DIMS, pictures())})
    chunk = Path(run.path, "restored", "c", "0", "0", "0", "0")
    data = bytearray(chunk.read_bytes())
    data[40] ^= 1
    chunk.write_bytes(data)
    answer, buffers = asked(Explorer([run.stored], "restored"))
    assert "checksum does not match" in answer["error"]
    assert run.id in answer["error"]
    assert buffers == []


@pytest.mark.parametrize(
    "message",
    [
        {"view": {"kind": "hologram"}},
        {"view": {"window": "all"}},
        {"view": {"x": "<b>"}},
        {"array": "<script>"},
        {"view": 3},
        {},
    ],
)
def test_messages_that_make_no_sense_are_answered_with_an_error_or_the_view(bench, message):
    explorer = Explorer([put_run(bench, {"restored": (DIMS, pictures())}).stored])
    answer, _ = explorer.answer({"seq": 1, **message})
    assert "error" in answer or answer["kind"] == "image"
    assert "error" not in asked(explorer)[0], "the panel goes on"


# ---------------------------------------------------------------------------------------------------------------- code


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"facet": None, "index": {"sample": 3}},
        {"start": 2, "count": 2},
        {"kind": "line", "x": "x", "color": "channel", "index": {"sample": 1, "y": 5}},
        {"window": [1, 5, 2, 8], "facet": None},
        {"kind": "histogram", "x": "x", "y": "y", "color": None, "index": {"sample": 2, "channel": 1}},
    ],
)
def test_the_code_gives_what_is_on_view(bench, changes):
    values = pictures(6)
    labels = np.array([f"photo {i}" for i in range(6)], object)
    run = put_run(bench, {"restored": (DIMS, values), "sample": (("sample",), labels)})
    arrays = arrays_of(run)
    source = arrays.source("restored")
    view = settled(View(**(default_view(source).model_dump() | changes)), source)
    space = {"bench": bench}
    *lines, last = slicing_code(view, source).splitlines()
    exec("\n".join(lines), space)
    got = eval(last, space)
    frame = make_frame(view, source, arrays)
    assert frame.info["code"].endswith(last)
    if view.kind == "image":
        sent = picture(frame.info, frame.buffers[0])
        order = [dim for dim in (view.facet, "y", "x", "channel") if dim]
        np.testing.assert_array_equal(got.transpose(*order).values, sent if view.facet else sent[0])
    elif view.kind == "line":
        assert got.transpose("channel", "x").values.tolist() == [curve["y"] for curve in frame.info["curves"]]
    else:
        assert got.size == frame.info["total"]
    if view.index.get("sample"):
        assert f"sample='photo {view.index['sample']}'" in last


def test_labels_that_are_not_unique_are_not_used_in_code(bench):
    run = put_run(bench, {"map": (("bin", "y", "x"), np.zeros((3, 4, 4))), "bin": (("bin",), np.array([1, 1, 2]))})
    source = arrays_of(run).source("map")
    view = settled(View(x="x", y="y", index={"bin": 1}), source)
    assert slicing_code(view, source).endswith("run['map'].isel(bin=1)")
    assert slicing_code(view.model_copy(update={"index": {"bin": 2}}), source).endswith("run['map'].sel(bin=2)")


# -------------------------------------------------------------------------------------------------------- several runs


def test_arrays_of_several_runs_stand_side_by_side(bench):
    values = [pictures(seed=seed) for seed in range(2)]
    extra = {"other": (("bin",), np.arange(3.0))}
    runs = [put_run(bench, {"restored": (DIMS, values[0]), **extra}), put_run(bench, {"restored": (DIMS, values[1])})]
    explorer = Explorer([run.stored for run in runs], names=["weak", "strong"])
    assert explorer.arrays.names == ["restored"]
    answer, buffers = asked(explorer, index={"sample": 4})
    assert answer["titles"] == ["weak", "strong"]
    np.testing.assert_array_equal(picture(answer, buffers[0]), np.stack([v[4].transpose(1, 2, 0) for v in values]))
    lines = answer["code"].splitlines()
    space = {"bench": bench}
    exec(lines[0], space)
    assert eval(lines[1], space).shape == (2, 3, 8, 8)


# --------------------------------------------------------------------------------------------------------------- panel


def test_arrays_are_names_a_table_and_a_panel(bench):
    run = put_run(bench, {"restored": (DIMS, pictures()), "label": (("sample",), np.arange(6))})
    assert run.arrays == ("restored", "label")
    assert "6 × 3 × 8 × 8" in run.arrays._repr_html_()
    assert isinstance(run.arrays(), Explorer)
    assert run.explore("label").array == "label"
    with pytest.raises(workbench.WorkbenchError, match="Did you mean 'restored'"):
        run.explore("restore")


def test_a_panel_has_a_page_for_readers_without_a_kernel(bench):
    run = put_run(bench, {"restored": (DIMS, pictures()), "name": (("sample",), np.array([HOSTILE] * 6, object))})
    bundle = run.explore("restored")._repr_mimebundle_()
    assert {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"} <= set(bundle)
    assert "sample 6 × channel 3 × y 8 × x 8" in bundle["text/html"]
    assert "<script" not in bundle["text/html"]


def test_a_run_without_arrays_says_what_to_do(bench):
    panel = put_run(bench, {}).arrays()
    assert "no arrays" in panel.widget.children[-1].value
    assert "There are none" in panel._static()


def test_the_widget_answers_messages(bench):
    panel = put_run(bench, {"restored": (DIMS, pictures())}).arrays()
    widget = panel.widget.children[-1]
    sent: list[Any] = []
    widget.send = lambda content, buffers=None: sent.append((content, buffers))
    widget._handle_custom_msg({"seq": 1, "view": widget.spec["view"]}, [])
    assert sent[0][0]["kind"] == "image"
    assert len(sent[0][1]) == 1
    widget._handle_custom_msg("nonsense", [])
    assert sent[1][0]["seq"] == 0
