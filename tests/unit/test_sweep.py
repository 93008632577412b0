"""What `bench.sweep` promises: every point one run, stored ones skipped, failures isolated, the same inline as on workers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import workbench
from pydantic import Field
from workbench import DataRole, Output, Params, Report, each
from workbench.cli import main
from workbench.errors import CancelledError, InputError, UnknownMethodError
from workbench.execution.points import Points
from workbench.execution.sweep import pace

from unit.sample_methods import Failing, MeanImage, RandomNumbers

PATIENCE = 300.0


class Picky(workbench.Method):
    """Fails on odd seeds, declines seed 4."""

    id = "sample.picky"
    title = "Fails at times"
    inputs: ClassVar = {"data": DataRole("images", {"image": ("sample", "channel", "y", "x")}, optional=True)}
    outputs = (Output("value", ("sample",), "float64", "numbers"),)

    class Params(Params):
        """Parameters."""

        factor: float = Field(1.0, ge=0, le=10, description="a number")

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Fail, decline or write."""
        if out.seed % 2:
            raise ValueError("odd")
        if out.seed == 4:
            out.skip("four is not for me")
        out.write("value", np.full(2, params.factor * out.seed))

    def report(self, result: Any) -> Report:
        """Sum."""
        total = float(result["value"].sum())
        return Report(summary="Done.", metrics=[workbench.Metric(name="total", value=total, direction="neutral")])


# -------------------------------------------------------------------------------------------------------------- points


def described(points: Points) -> list[tuple[str, int, dict[str, Any]]]:
    return [(point.method.id, point.seed, dict(point.arguments)) for point in points]


def test_points_are_the_product_of_what_is_swept_and_the_seed_changes_fastest():
    points = Points([Picky], {"factor": each(1.0, 2.0)}, range(2))
    assert len(points) == 4
    assert described(points) == [
        ("sample.picky", 0, {"factor": 1.0}),
        ("sample.picky", 1, {"factor": 1.0}),
        ("sample.picky", 0, {"factor": 2.0}),
        ("sample.picky", 1, {"factor": 2.0}),
    ]
    assert [point.label for point in points] == [
        "factor 1.0, seed 0", "factor 1.0, seed 1", "factor 2.0, seed 0", "factor 2.0, seed 1",
    ]  # fmt: skip
    assert points[-1].number == 3
    assert [point.seed for point in points[1:3]] == [1, 0]


def test_lists_are_swept_for_subjects_and_are_values_of_parameters():
    a, b = np.zeros((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
    assert len(Points([MeanImage], {"data": [a, b], "sizes": [1, 2, 3]}, 0)) == 2
    assert Points([MeanImage], {"data": (a, b)}, 0)[0].arguments["data"] == (a, b)  # a tuple is one subject
    assert len(Points([MeanImage], {"data": a, "sizes": each([1], [1, 2])}, [3, 4, 5])) == 6


def test_with_several_methods_each_gets_and_sweeps_what_it_knows():
    points = Points([Picky, RandomNumbers], {"factor": each(1.0, 2.0)}, range(3))
    assert [point.method.id for point in points] == ["sample.picky"] * 6 + ["sample.random_numbers"] * 3
    assert points[8].arguments == {}
    assert points[8].label == "method sample.random_numbers, seed 2"


def test_an_explicit_list_of_points():
    points = Points(
        [Picky], {"factor": 3.0}, 7, [{"seed": 1}, {"factor": 2.0}, {"factor": each(4.0, 5.0), "seed": [8, 9]}]
    )
    assert [(seed, given["factor"]) for _, seed, given in described(points)] == [
        (1, 3.0), (7, 2.0), (8, 4.0), (9, 4.0), (8, 5.0), (9, 5.0),
    ]  # fmt: skip
    two = Points([Picky, RandomNumbers], {}, 0, [{"method": "sample.picky", "factor": 2.0}, {"seed": 3}])
    assert [(name, seed) for name, seed, _ in described(two)] == [
        ("sample.picky", 0), ("sample.picky", 3), ("sample.random_numbers", 3),
    ]  # fmt: skip


def test_a_million_points_take_no_room():
    points = Points([Picky], {"factor": each(*np.linspace(0, 10, 1000).tolist())}, range(1000))
    assert len(points) == 1_000_000
    assert points[999_999].seed == 999
    assert points[123_456].seed == 456


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factr": 1.0}, "Did you mean 'factor'"),
        ({"points": []}, "at least one point"),
        ({"seed": []}, "at least one value"),
        ({"data": []}, "at least one value"),
        ({"in_flight": 0}, "whole number from 1"),
        ({"study": "../x"}, "study"),
        ({"points": [{"method": "sample.failing"}]}, "a method of this sweep"),
    ],
)
def test_what_is_wrong_with_the_sweep_itself_raises_before_anything_begins(bench, arguments, message):
    bench.register(Picky)
    with pytest.raises(InputError, match=message):
        bench.sweep("sample.picky", **arguments)
    assert not bench.runs()


def test_methods_are_found_by_pattern(bench):
    with pytest.raises(InputError, match="a pattern that some method meets"):
        bench.sweep("nothing.*")
    with pytest.raises(UnknownMethodError, match="mean_image"):
        bench.sweep("sample.mean_imag")
    with pytest.raises(InputError, match="at least one value"):
        each()


def test_enough_points_are_on_the_way_for_every_worker():
    assert pace(None, 1) >= 2
    assert pace(None, 100) > 100
    assert pace(3, 100) == 3


# ---------------------------------------------------------------------------------------------------------------- runs


def test_every_point_becomes_a_run_and_failures_stay_alone(bench):
    bench.register(Picky)
    sweep = bench.sweep("sample.picky", seed=range(6), factor=each(1.0, 2.0), study="ship/picky", progress=False)
    assert sweep.done()
    assert dict(sweep.progress.counts) == {"complete": 4, "failed": 6, "skipped": 2, "waiting": 0}
    assert [run.metrics["total"] for run in sweep.runs] == [0.0, 4.0, 0.0, 8.0]
    assert {run.record.study for run in sweep.runs} == {"ship/picky"}
    assert [(failure.status, failure.point.seed) for failure in sweep.failures][:3] == [
        ("failed", 1), ("failed", 3), ("skipped", 4),
    ]  # fmt: skip
    assert "factor 1.0, seed 1: sample.picky failed: ValueError: odd" in repr(sweep)
    assert bench[sweep.failures[0].run_id].status == "failed"
    rows = sweep.table()
    assert [row["status"] for row in rows[:3]] == ["complete", "failed", "complete"]
    assert rows[2] == {"factor": "1.0", "seed": "2", "status": "complete", "run": sweep.run_ids[1], "total": 4.0}
    assert [row["status"] for row in sweep.table(3)] == ["failed"] * 2 + ["skipped"]


def test_inline_and_sweep_give_the_same_runs_and_what_is_stored_is_not_computed_again(bench):
    bench.register(Picky)
    single = bench.run("sample.picky", seed=2, factor=2.0, progress=False)
    sweep = bench.sweep("sample.picky", seed=[0, 2], factor=each(1.0, 2.0), progress=False)
    assert dict(sweep.progress.counts) == {"complete": 3, "stored": 1, "waiting": 0}
    assert single.id in sweep.run_ids
    again = bench.sweep("sample.picky", seed=[0, 2], factor=each(1.0, 2.0), progress=False, study="later")
    assert dict(again.progress.counts) == {"stored": 4, "waiting": 0}
    assert again.run_ids == sweep.run_ids
    assert {run.id for run in bench.runs("study = later")} == set(sweep.run_ids)


def test_subjects_of_a_sweep_are_loaded_once(bench, images, monkeypatch):
    from workbench.execution import inputs

    loaded = []
    original = inputs._data
    monkeypatch.setattr(inputs, "_data", lambda *given: loaded.append(1) or original(*given))
    sweep = bench.sweep("sample.mean_image", data=[images, images * 0.5], seed=range(4), progress=False)
    assert len(sweep.runs) == 2 * 4
    assert len(loaded) == 2


def test_a_point_with_bad_subjects_is_a_failure_of_its_own(bench, images):
    bad = images.copy()
    bad[0, 0, 0, 0] = np.nan
    sweep = bench.sweep("sample.mean_image", data=[bad, images], progress=False)
    assert [failure.point.number for failure in sweep.failures] == [0]
    assert isinstance(sweep.failures[0].error, InputError)
    assert len(sweep.runs) == 1


def test_a_subject_that_breaks_its_reader_is_a_failure_of_its_point(bench, images, monkeypatch):
    def broken(spec: str, *, role: str) -> Any:
        raise PermissionError(13, "not for you", spec)

    monkeypatch.setattr(bench, "dataset", broken)
    sweep = bench.sweep("sample.mean_image", data=["./secret.npz", images], progress=False)
    assert sweep.stopped == ""
    assert [(failure.point.number, type(failure.error)) for failure in sweep.failures] == [(0, PermissionError)]
    assert len(sweep.runs) == 1


class Gate(Picky):
    """Waits at its gate."""

    id = "sample.gate"
    begun: ClassVar[threading.Semaphore]
    opened: ClassVar[threading.Event]

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Wait."""
        type(self).begun.release()
        while not type(self).opened.wait(0.005):
            out.progress(0, 1)
        out.write("value", np.zeros(2))


def test_a_cancelled_sweep_begins_nothing_more_and_goes_on_when_asked_again(bench):
    Gate.begun, Gate.opened = threading.Semaphore(0), threading.Event()
    bench.register(Gate)
    sweep = bench.sweep("sample.gate", seed=range(100), in_flight=3, block=False)
    assert Gate.begun.acquire(timeout=PATIENCE)
    assert not sweep.done()
    assert sweep.progress.counts["waiting"] >= 97
    sweep.cancel()
    assert sweep.wait(PATIENCE)
    assert sweep.stopped == "cancelled"
    assert sweep.progress.counts["waiting"] >= 97
    assert all(isinstance(failure.error, CancelledError) for failure in sweep.failures)
    Gate.opened.set()
    again = bench.sweep("sample.gate", seed=range(4), progress=False)
    assert len(again.runs) == 4


def test_at_most_so_many_points_are_on_the_way(bench):
    Gate.begun, Gate.opened = threading.Semaphore(0), threading.Event()
    bench.register(Gate)
    sweep = bench.sweep("sample.gate", seed=range(20), in_flight=5, block=False)
    assert Gate.begun.acquire(timeout=PATIENCE)
    assert len(sweep._handles) <= 5
    Gate.opened.set()
    assert sweep.wait(PATIENCE)
    assert len(sweep.runs) == 20


def test_a_sweep_shows_itself_and_escapes_what_it_shows(bench):
    bench.register(Picky)
    sweep = bench.sweep("sample.picky", seed=range(2), progress=False)
    sweep.study = "<script>alert(1)</script>"
    page = sweep._repr_html_()
    assert "<script>" not in page
    assert "ValueError: odd" in page
    assert sweep.run_ids[0] in page


# ---------------------------------------------------------------------------------------------------------- command line


def write(folder: Path, text: str) -> str:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return str(path)


GOOD = """
study: digits/temperature
methods: [training.evaluation]
seed: [0, 1]
inputs:
  model: small-cnn
  data: ["digits[:32]", "digits[32:64]"]
parameters:
  batch_size: {each: [16, 32]}
"""


def test_a_sweep_from_a_file(tmp_path, capsys):
    path, store = write(tmp_path, GOOD), str(tmp_path / "store")
    assert main(["--store", store, "sweep", path]) == 0
    shown = capsys.readouterr().out
    assert "8 of 8: 8 complete" in shown
    bench = workbench.open(store)
    assert len(bench.runs("study = digits/temperature")) == 8
    assert main(["--store", store, "sweep", path]) == 0
    assert "8 of 8: 8 stored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": "metods"}, "metods"),
        ({"seed: [0, 1]": "seed: [0, -1]"}, "seed"),
        ({"each": "every"}, "parameters.batch_size"),
        ({"study: digits/temperature": "study: ../x"}, "study"),
        ({"batch_size": "batch_sze"}, "Did you mean 'batch_size'"),
        ({"[training.evaluation]": "[training.nothing]"}, "training.nothing"),
        ({"seed: [0, 1]": "seed: ["}, "YAML"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(tmp_path, capsys, change: Mapping[str, str], message: str):
    text = GOOD
    for old, new in change.items():
        text = text.replace(old, new)
    assert main(["--store", str(tmp_path / "store"), "sweep", write(tmp_path, text)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_file_whose_runs_fail_ends_with_another_code(tmp_path, capsys):
    text = "methods: [training.evaluation]\nseed: [0, 1]\ninputs: {model: small-cnn, data: ['digits[:8]', 'nothing']}\n"
    assert main(["--store", str(tmp_path / "store"), "sweep", write(tmp_path, text)]) == 1
    shown = capsys.readouterr()
    assert "4 of 4: 2 complete, 2 failed" in shown.out
    (reason,) = [line for line in shown.out.splitlines() if line.startswith("failed: ")]
    assert reason.startswith("failed: data nothing, seed 0: data: ")
    assert reason.endswith(" (and 1 more for the same reason)")
    assert Failing.id not in shown.out
