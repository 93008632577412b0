"""What `bench.run` promises: one computation per key, clear refusals, an honest record, nothing half-written."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import workbench
import xarray as xr
from torch import nn
from workbench.errors import RunFailedError, UnknownMethodError

from unit.sample_methods import MeanImage, Scores


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


# ---------------------------------------------------------------------------------------------------------- the record


def test_run_is_stored_with_labelled_arrays_and_a_record(bench, images):
    run = bench.run("sample.mean_image", data=images, scale=2.0, progress=False)
    assert run.status == "complete"
    assert run["mean"].dims == ("channel", "y", "x")
    np.testing.assert_allclose(run["mean"].values, 2 * images.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(run["brightness"].values, images.mean(axis=(1, 2, 3)), rtol=1e-5)
    assert run.metrics["brightness"] == pytest.approx(2 * images.mean(), rel=1e-5)
    assert run.params.scale == 2.0
    assert run.series["loss"].values.tolist() == [0.5, 0.25]
    record = run.record
    assert record.user
    assert record.host
    assert record.finished
    assert record.seconds > 0
    assert record.provenance["versions"]["torch"] == torch.__version__
    assert record.provenance["memory"]["resident"] > 0
    assert record.inputs["data"]["sizes"] == {"sample": 12, "channel": 1, "y": 8, "x": 8}


def test_xarray_alone_reads_a_run(bench, images):
    run = bench.run("sample.mean_image", data=images, progress=False)
    tree = xr.open_datatree(run.path, engine="zarr")
    np.testing.assert_array_equal(tree["mean"].values, run["mean"].values)
    assert tree["mean"].dims == ("channel", "y", "x")
    assert tree["series"]["loss"].dims == ("step",)


# -------------------------------------------------------------------------------------------------------------- the key


def test_same_run_is_served_from_the_store(bench, images):
    first = bench.run("sample.mean_image", data=images, progress=False)
    again = bench.run("sample.mean_image", data=images.copy(), scale=1.0, progress=False)
    assert again.served
    assert not first.served
    assert again.id == first.id
    forced = bench.run("sample.mean_image", data=images, force=True, progress=False)
    assert forced.id != first.id
    assert forced.key == first.key


@pytest.mark.parametrize("change", ["seed", "params", "data", "precision", "version", "dtype"])
def test_whatever_changes_numbers_changes_the_key(bench, images, change, monkeypatch):
    first = bench.run("sample.mean_image", data=images, progress=False)
    arguments: dict = {"data": images}
    if change == "seed":
        arguments["seed"] = 1
    elif change == "params":
        arguments["scale"] = 1.5
    elif change == "data":
        other = images.copy()
        other[3, 0, 2, 2] = np.nextafter(other[3, 0, 2, 2], np.float32(1))
        arguments["data"] = other
    elif change == "dtype":
        arguments["data"] = (images * 255).astype(np.uint8)
    elif change == "precision":
        arguments["precision"] = "float64"
    else:
        monkeypatch.setattr(MeanImage, "version", "2")
    assert bench.run("sample.mean_image", progress=False, **arguments).key != first.key


def test_variables_that_a_role_does_not_ask_for_do_not_matter(bench, images):
    first = bench.run("sample.mean_image", data=images, progress=False)
    dataset = xr.Dataset({"image": (("sample", "channel", "y", "x"), images), "weight": ("sample", np.arange(12.0))})
    assert bench.run("sample.mean_image", data=dataset, progress=False).id == first.id


def test_output_of_a_run_is_an_input_of_the_next_and_identified_by_the_run(bench, images):
    first = bench.run("sample.mean_image", data=images, progress=False)
    frame = first["mean"].expand_dims("sample")
    second = bench.run("sample.mean_image", data=frame, progress=False)
    assert second.record.inputs["data"].get("runs") is None  # derived in the notebook: by content
    labels = np.zeros(12, dtype=np.int64)
    scored = bench.run("sample.scores", model="small-cnn(n_classes=3, width=4)", data=(images, labels), progress=False)
    chained = bench.run("sample.scores", model=(scored, "model"), data=(images, labels), progress=False)
    assert [run.id for run in chained.inputs["model"]] == [scored.id]
    np.testing.assert_array_equal(chained["logit"].values, scored["logit"].values)
    assert chained.key != scored.key
    named = bench.run("sample.scores", model=f"run:{scored.id}", data=(images, labels), progress=False)
    assert named.served
    assert named.id == chained.id


def test_a_sliced_handle_is_not_taken_for_the_whole(bench, images):
    dataset = bench.run("sample.mean_image", data=images, progress=False)
    whole, part = dataset["mean"], dataset["mean"].isel(y=slice(0, 4))
    keys = {bench.run("sample.mean_image", data=a.expand_dims("sample"), progress=False).key for a in (whole, part)}
    assert len(keys) == 2


def test_two_models_with_equal_weights_and_other_code_have_other_keys(bench, images):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = classifier()

        def forward(self, x):
            return self.net(x)

    class Doubled(Plain):
        def forward(self, x):
            return 2 * self.net(x)

    labels = np.zeros(12, dtype=np.int64)
    runs = [bench.run("sample.scores", model=m(), data=(images, labels), progress=False) for m in (Plain, Doubled)]
    assert runs[0].key != runs[1].key
    np.testing.assert_allclose(runs[1]["logit"].values, 2 * runs[0]["logit"].values, rtol=1e-5)


def test_a_hooked_model_has_no_key_and_is_never_served(bench, images):
    model = classifier()
    model.register_forward_hook(lambda module, args, output: output + 1)
    labels = np.zeros(12, dtype=np.int64)
    runs = [bench.run("sample.scores", model=model, data=(images, labels), progress=False) for _ in range(2)]
    assert runs[0].key is None
    assert runs[0].id != runs[1].id


def test_code_edited_in_a_notebook_changes_the_key(bench, images):
    def define(factor: float):
        namespace = {"MeanImage": MeanImage, "__name__": "notebook_cell_for_tests"}
        exec(
            "class Mine(MeanImage):\n"
            "    id = 'sample.mine'\n"
            "    def run(self, inputs, params, out):\n"
            "        super(Mine, self).run(inputs, params, out)\n"
            f"        out.log(3, loss={factor})\n",
            namespace,
        )
        return namespace["Mine"]

    keys = [bench.run(define(factor), data=images, progress=False).key for factor in (1.0, 1.0, 2.0)]
    assert keys[0] == keys[1] != keys[2]
    assert bench.run(define(1.0), data=images, progress=False).record.method_code


def test_a_file_edited_after_its_import_is_never_served(bench, tmp_path, monkeypatch):
    text = """
import numpy as np
from workbench import Method, Output, Report
class Mine(Method):
    id, title, outputs = "sample.from_file", "From a file", (Output("value", ("sample",), "float32", "numbers"),)
    def run(self, inputs, params, out):
        out.write("value", np.full(2, FACTOR, np.float32))
    def report(self, result):
        return Report(summary="Done.")
"""
    file = tmp_path / "edited_after_import.py"
    file.write_text(text.replace("FACTOR", "2"))
    monkeypatch.syspath_prepend(tmp_path)
    import edited_after_import

    first = bench.run(edited_after_import.Mine, progress=False)
    assert bench.run(edited_after_import.Mine, progress=False).id == first.id
    file.write_text(text.replace("FACTOR", "200"))
    stale = bench.run(edited_after_import.Mine, progress=False)
    assert stale["value"].values.tolist() == [2.0, 2.0]
    assert stale.key != first.key
    assert bench.run(edited_after_import.Mine, progress=False).key not in (first.key, stale.key)


def test_random_numbers_belong_to_the_run(bench):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    first = bench.run("sample.random_numbers", seed=3, progress=False)["value"].values
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected  # noqa: NPY002 -- the user's streams go on
    again = bench.run("sample.random_numbers", seed=3, force=True, progress=False)["value"].values
    other = bench.run("sample.random_numbers", seed=4, progress=False)["value"].values
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any()


# ----------------------------------------------------------------------------------------------------------- bad input


def test_unknown_method_suggests_the_nearest(bench):
    with pytest.raises(UnknownMethodError, match=r"Did you mean sample\.mean_image"):
        bench.run("sample.mean_imag")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scal": 2.0}, "Did you mean 'scale'"),
        ({"scale": 11.0}, "scale: expected less than or equal to 10"),
        ({"scale": float("nan")}, "scale: expected a finite number"),
        ({"mode": "mode"}, "mode: expected 'mean' or 'median'"),
        ({"data": None}, "data: expected data with image"),
        ({"data": np.full((2, 1, 4, 4), np.nan, np.float32)}, "finite numbers, got nan at sample=0"),
        ({"data": np.zeros((4, 8, 8), np.float32)}, r"4 axes \(sample, channel, y, x\)"),
        ({"data": np.zeros((4, 8, 8, 3), np.float32)}, "channel-last"),
        ({"data": np.full((4, 1, 8, 8), 255.0, np.float32)}, "look like 0..255"),
        ({"data": np.zeros((0, 1, 8, 8), np.float32)}, "at least one item"),
        ({"data": "no-such-data"}, "no-such-data"),
        ({"seed": -1}, "seed: expected an integer"),
        ({"precision": "float8"}, "precision: expected one of"),
        ({"device": "cuda:9"}, "device: expected one of cpu"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(bench, images, arguments, message):
    with pytest.raises(workbench.InputError, match=message):
        bench.run("sample.mean_image", progress=False, **{"data": images} | arguments)
    assert bench.runs() == []


def test_labels_out_of_range_and_a_model_that_does_not_fit(bench, images):
    with pytest.raises(workbench.InputError, match=r"class indices|logits for every class"):
        bench.run("sample.scores", model=classifier(), data=(images, np.full(12, 3)), progress=False)
    with pytest.raises(workbench.InputError, match=r"model: expected a model that accepts pictures"):
        bench.run("sample.scores", model=nn.Linear(5, 3), data=(images, np.zeros(12, int)), progress=False)
    with pytest.raises(workbench.InputError, match="logits of shape"):
        bench.run("sample.scores", model=nn.Identity(), data=(images, np.zeros(12, int)), progress=False)
    with pytest.raises(workbench.InputError, match=r"model: expected an nn\.Module"):
        bench.run("sample.scores", model=3, data=(images, np.zeros(12, int)), progress=False)
    assert bench.runs() == []


def test_missing_extra_says_how_to_get_it(bench, images, monkeypatch):
    monkeypatch.setattr(Scores, "requires", {"no_such_package_here": "restoration"})
    with pytest.raises(workbench.MissingDependencyError, match=r"pip install 'vision-workbench\[restoration\]'"):
        bench.run("sample.scores", model=classifier(), data=(images, np.zeros(12, int)))


# --------------------------------------------------------------------------------------------------- finding, comparing


def test_runs_are_found_by_query_and_compared(bench, images):
    runs = [
        bench.run("sample.mean_image", data=images, scale=s, seed=i, progress=False) for i, s in enumerate((1.0, 2.0))
    ]
    assert [run.id for run in bench.runs("params.scale > 1.5")] == [runs[1].id]
    assert bench["latest"].id == runs[1].id
    table = bench.compare(runs, variables=["mean"])
    assert table["brightness"].dims == ("run",)
    assert table["params.scale"].values.tolist() == [1.0, 2.0]
    np.testing.assert_allclose(table["mean"].isel(run=1), 2 * table["mean"].isel(run=0), rtol=1e-5)
    with pytest.raises(workbench.InputError, match="where: expected a query"):
        bench.runs("scale >")
    bench.delete(runs[0])
    assert len(bench.runs()) == 1


def test_life_cycle_hooks_are_told_and_a_broken_one_does_not_disturb(bench, images):
    from workbench.host import PluginStatus

    told = []

    class Mirror:
        @workbench.hookimpl
        def workbench_run_started(self, run_id, record):
            told.append(("started", run_id, record["status"]))

        @workbench.hookimpl
        def workbench_run_finished(self, run_id, record):
            told.append(("finished", run_id, record["status"]))
            raise OSError("tracker is down")

        @workbench.hookimpl
        def workbench_run_failed(self, run_id, record):
            told.append(("failed", run_id, record["failure"]["message"]))

    bench.host.register_plugin(Mirror(), PluginStatus("mirror", "tests", "", "", "loaded"))
    run = bench.run("sample.mean_image", data=images, progress=False)
    with pytest.raises(RunFailedError):
        bench.run("sample.failing", progress=False)
    assert told[:2] == [("started", run.id, "running"), ("finished", run.id, "complete")]
    assert told[-1][0] == "failed"
    assert told[-1][2] == "the matrix is singular"
    assert "tracker is down" in next(s.reason for s in bench.plugins if s.name == "mirror")
