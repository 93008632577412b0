"""What a blockwise method promises: whoever computes the blocks, and in whatever order, the same bytes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import Field
from workbench import BlockwiseMethod, DataRole, Metric, Output, Params, Report
from workbench.errors import OutputError, RunFailedError
from workbench.store.array_writer import NumpySource
from workbench.store.blocks import BlockWriter
from workbench.store.layout import LARGEST_SHARD, layout_of, plan_blocks

from unit.recording_out import record
from unit.store_cases import record as new_record

PATIENCE = 300.0


class Sums(BlockwiseMethod):
    """Per sample a sum and a random number, in all the total; may wait for a file and write what it must not."""

    id = "sample.sums"
    title = "Sums"
    inputs: ClassVar = {"data": DataRole("images", {"image": ("sample", "channel", "y", "x")})}
    outputs = (
        Output("total", ("sample",), "float64", "sum of the image"),
        Output("copy", ("sample", "channel", "y", "x"), "float32", "the image times a factor"),
        Output("drawn", ("sample", "stream"), "float64", "random numbers of every kind"),
        Output("all", (), "float64", "sum of everything"),
    )

    class Params(Params):
        """Parameters."""

        rows: int = Field(5, ge=1, description="samples of a block")
        folder: str = Field("", description="wait here in the second block")
        wrong: str = Field("", description="which rule a block breaks")

    def block_size(self, inputs: Any, params: Any) -> int:
        """As asked for."""
        return params.rows

    def begin(self, inputs: Any, params: Any, out: Any) -> None:
        """Declare."""
        image = inputs["data"]["image"]
        out.array("total", (len(image),))
        out.array("copy", image.shape)
        out.array("drawn", (len(image), 3))

    def block(self, inputs: Any, params: Any, region: slice, out: Any) -> Mapping[str, Any]:
        """Sum and draw."""
        import os
        import time
        from pathlib import Path

        image = inputs["data"]["image"][region].values
        if params.folder and region.start == params.rows:
            folder = Path(params.folder)
            (folder / f"begun-{os.getpid()}").touch()
            while not (folder / "go").exists():
                out.progress(0, 1)
                time.sleep(0.01)
        total = image.reshape(len(image), -1).sum(1, dtype=np.float64)
        out.part("total")[region] = total
        if params.wrong == "gap":
            out.part("copy")[region.start : region.stop - 1] = image[:-1]
        else:
            out.part("copy")[region] = torch.from_numpy(image) * 2
        if params.wrong == "other block":
            out.part("total")[region.start - 1 : region.stop - 1] = total
        if params.wrong == "raise" and region.start:
            raise ValueError("the second block is singular")
        if params.wrong != "missing":
            for row in range(region.start, region.stop):
                numbers = [np.random.rand(), float(torch.rand(())), out.rng("a").random()]  # noqa: NPY002
                out.part("drawn")[row] = np.array(numbers)
        return {"sum": float(total.sum())}

    def end(self, inputs: Any, params: Any, parts: Sequence[Mapping[str, Any]], out: Any) -> None:
        """Add up, in order."""
        out.write("all", float(sum(part["sum"] for part in parts)))

    def report(self, result: Any) -> Report:
        """The total."""
        return Report(summary="Sums.", metrics=[Metric(name="all", value=float(result["all"]), direction="neutral")])


def pictures(count: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).random((count, 1, side, side), dtype=np.float32)


def files(run: Any) -> dict[str, bytes]:
    """Content of every file of a run but its record."""
    root = Path(run.path)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path != root / "zarr.json"
    }


# -------------------------------------------------------------------------------------------------------------- layouts


def test_no_file_holds_rows_of_two_blocks():
    generator = np.random.default_rng(0)
    for _ in range(500):
        rows, count = int(generator.integers(1, 5000)), int(generator.integers(1, 20_000))
        rest = generator.integers(1, 300, generator.integers(0, 4)).tolist()
        dtype = np.dtype(generator.choice(["uint8", "float32", "float64"]))
        layout = plan_blocks((count, *rest), dtype, rows)
        if count > rows:
            assert rows % layout.file_shape[0] == 0
            assert layout.file_shape[0] % layout.chunk[0] == 0
        if layout.shard is not None:
            assert all(whole % part == 0 for whole, part in zip(layout.shard, layout.chunk, strict=True))
            assert np.prod(layout.shard) * dtype.itemsize <= LARGEST_SHARD


@pytest.mark.parametrize("shape", [(300_000, 10), (300_000, 3, 300, 300)])
def test_blocks_of_a_large_prime_number_of_rows_have_a_layout_that_readers_accept(shape):
    layout = plan_blocks(shape, np.dtype("float32"), 100_003)
    assert layout_of(shape, "float32", layout.chunk, layout.shard) == layout


def test_items_larger_than_a_file_are_not_written_in_blocks():
    with pytest.raises(OutputError, match="at most 256"):
        plan_blocks((10, 70_000_000), np.dtype("float32"), 2)


def test_strings_are_not_written_in_blocks():
    with pytest.raises(OutputError, match="strings"):
        plan_blocks((100,), np.dtype(object), 10)


@pytest.mark.parametrize("shape", [(23,), (23, 7), (9, 3, 700, 700)])
def test_blocks_written_in_any_order_read_back(bench, shape):
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    store = bench.store
    writer = store.begin(new_record())
    dims = ("sample", "a", "b", "c")[: len(shape)]
    layout = writer.declare_blocks("value", shape, np.dtype("float32"), dims, {}, 4)
    for start in reversed(range(0, shape[0], 4)):
        stop = min(start + 4, shape[0])
        block = BlockWriter(store.backend, writer.folder, "value", layout, start, stop)
        block.write((slice(start, stop), *(slice(0, size) for size in shape[1:])), NumpySource(values[start:stop]))
        block.flush()
    stored = writer.complete()
    np.testing.assert_array_equal(store.run(stored.id)["value"].values, values)
    assert list(store.verify()) == []


# ------------------------------------------------------------------------------------------------------------- one result


@pytest.mark.parametrize("count", [1, 4, 5, 6, 23])
def test_blocks_inline_give_what_was_asked_for(bench, count):
    image = pictures(count)
    run = bench.run(Sums, data=image, progress=False)
    np.testing.assert_allclose(run["total"].values, image.sum((1, 2, 3), dtype=np.float64), rtol=1e-12)
    np.testing.assert_array_equal(run["copy"].values, image * 2)
    assert run.metrics["all"] == pytest.approx(image.sum(dtype=np.float64))
    drawn = run["drawn"].values
    assert len(np.unique(drawn[:, 0])) == count  # every sample has numbers of its own, in every block
    assert len(np.unique(drawn[:, 2])) == -(-count // 5)  # a stream begins anew with its name, per block
    assert list(bench.store.verify()) == []


def test_the_fallback_for_any_other_out_is_the_same_method():
    image = pictures(12)
    data = xr.Dataset({"image": (("sample", "channel", "y", "x"), image)})
    out, _ = record(Sums, {"data": data}, rows=5)
    np.testing.assert_array_equal(out.arrays["copy"], image * 2)


@pytest.mark.parametrize("rows", [4, 5, 100])
def test_workers_write_the_same_bytes_as_one_process(bench, client, rows):
    data = pictures(23)
    here = bench.run(Sums, data=data, rows=rows, seed=3, progress=False)
    there = bench.on(client).run(Sums, data=data, rows=rows, seed=3, force=True, progress=False)
    assert there.key == here.key
    assert files(there) == files(here)
    assert there.metrics == here.metrics
    assert list(bench.store.verify()) == []


def test_workers_read_lazy_data_themselves_and_not_through_the_scheduler(bench, client, tmp_path):
    data = str(tmp_path / "pictures.zarr")
    xr.Dataset({"image": (("sample", "channel", "y", "x"), pictures(40))}).to_zarr(
        data, zarr_format=3, consolidated=False
    )
    before = client.run_on_scheduler(_task_names)
    # Two blocks meet on a worker of one thread: one waited for dask to read the pictures, in a place that the other held.
    there = bench.on(client).submit(Sums, data=data).result(PATIENCE)
    assert {name for name in client.run_on_scheduler(_task_names) - before if not name.startswith("sample.")} == set()
    here = bench.run(Sums, data=data, force=True, progress=False)
    assert files(there) == files(here)


def _task_names(dask_scheduler: Any) -> set[str]:
    return set(dask_scheduler.task_prefixes)


def test_evaluation_is_the_same_in_blocks_on_workers(tmp_path, client, monkeypatch):
    import workbench

    here = workbench.open(tmp_path / "store")
    arguments = {
        "model": "small-cnn",
        "data": "digits",
        "features": "penultimate",
        "batch_size": 250,
        "progress": False,
    }
    inline = here.run("training.evaluation", **arguments)
    client.run(_blocks_of, 500)
    try:
        there = here.on(client).run("training.evaluation", force=True, **arguments)
    finally:
        client.run(_blocks_of, 4096)
    # Another size of block is another layout; the numbers are those of the same batches.
    for name in inline.arrays:
        np.testing.assert_array_equal(there[name].values, inline[name].values, err_msg=name)
    assert there.metrics == inline.metrics
    assert there.record.arrays["logit"]["files"] == 4
    monkeypatch.setattr("workbench_training.evaluation.BLOCK", 500)
    assert files(here.run("training.evaluation", force=True, **arguments)) == files(there)


def _blocks_of(samples: int) -> None:
    from workbench_training import evaluation

    evaluation.BLOCK = samples


# ---------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("gap", r"left unwritten at \[(4|9|11), 0, 0, 0\]"),  # whichever block is first to fail
        ("other block", "belong to another block"),
        ("missing", "did not write 'drawn'"),
        ("raise", "the second block is singular"),
    ],
)
def test_a_block_that_breaks_the_rules_fails_the_run(bench, client, wrong, message):
    for where in (bench, bench.on(client)):
        with pytest.raises(RunFailedError, match=message):
            where.run(Sums, data=pictures(12), wrong=wrong, progress=False)
    assert {run.status for run in bench.runs()} == {"failed"}


def begun(folder: Path, count: int = 1) -> list[int]:
    """Numbers of the processes that began the second block."""
    end = time.monotonic() + PATIENCE
    while len(found := sorted(folder.glob("begun-*"), key=lambda note: note.stat().st_mtime)) < count:
        assert time.monotonic() < end, "nothing began"
        time.sleep(0.02)
    return [int(note.name.partition("-")[2]) for note in found]


def test_a_worker_killed_within_its_block_changes_nothing(bench, client, tmp_path):
    handle = bench.on(client).submit(Sums, data=pictures(23), folder=str(tmp_path))
    (process,) = begun(tmp_path)
    os.kill(process, signal.SIGKILL)
    begun(tmp_path, 2)
    (tmp_path / "go").touch()
    there = handle.result(PATIENCE)
    assert sorted({run.status for run in bench.runs()} - {"interrupted"}) == ["complete"]
    here = bench.run(Sums, data=pictures(23), folder=str(tmp_path), force=True, progress=False)
    assert files(there) == files(here)


def test_cancelling_stops_the_blocks(bench, client, tmp_path):
    from workbench.errors import CancelledError

    handle = bench.on(client).submit(Sums, data=pictures(23), folder=str(tmp_path))
    begun(tmp_path)
    handle.cancel()
    with pytest.raises(CancelledError):
        handle.result(PATIENCE)
    assert [run.status for run in bench.runs()] == ["cancelled"]
    end = time.monotonic() + PATIENCE
    while any(client.processing().values()):
        assert time.monotonic() < end, "blocks go on"
        time.sleep(0.02)
