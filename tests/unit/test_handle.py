"""What `bench.submit` promises: the same runs as `bench.run`, told of while they go, without disturbing the notebook."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from workbench import Method, Output, Report
from workbench.errors import CancelledError, InputError, RunFailedError, SkippedError, UnknownMethodError
from workbench.execution import turn
from workbench.execution.handle import Handle
from workbench.execution.progress import CancelToken, ProgressBar
from workbench.execution.turn import Turn

PATIENCE = 300.0
"""Seconds after which a test that waits for an event fails; on an idle machine nothing here takes a hundredth of it."""


class Stepwise(Method):
    """Two halves, each with draws from the global generators; between them it waits for the test, reporting progress."""

    id = "sample.stepwise"
    title = "Waits in the middle"
    outputs = (Output("value", ("sample",), "float64", "numbers"),)
    middle: ClassVar[threading.Event] = threading.Event()
    go_on: ClassVar[threading.Event] = threading.Event()

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Draw, wait, draw."""
        first = draw()
        out.log(1, loss=0.5)
        type(self).middle.set()
        while not type(self).go_on.wait(0.005):
            out.progress(1, 2, "half way")
        warnings.warn("a library complains", UserWarning, stacklevel=1)
        out.write("value", np.concatenate([first, draw()]))

    def report(self, result: Any) -> Report:
        """Say something."""
        return Report(summary="Done.")


def draw() -> np.ndarray:
    """A number from every global generator."""
    return np.array([random.random(), np.random.rand(), float(torch.rand((), dtype=torch.float64))])  # noqa: NPY002


@pytest.fixture
def stepwise(bench):
    Stepwise.middle, Stepwise.go_on = threading.Event(), threading.Event()
    bench.register(Stepwise)
    yield bench
    Stepwise.go_on.set()


def inline_numbers(seed: int) -> np.ndarray:
    """What the generators give, seeded; from generators of its own, because runs may be computing meanwhile."""
    python, old, own = random.Random(seed), np.random.RandomState(seed), torch.Generator().manual_seed(seed)
    halves = [
        [python.random(), old.rand(), float(torch.rand((), dtype=torch.float64, generator=own))] for _ in range(2)
    ]
    return np.array(halves).ravel()


# ------------------------------------------------------------------------------------------------------------ the handle


def test_a_handle_tells_how_far_the_run_is_and_gives_it_back(stepwise):
    handle = stepwise.submit("sample.stepwise", seed=3)
    assert Stepwise.middle.wait(PATIENCE)
    assert handle.status == "running"
    assert handle.run_id in [run.id for run in stepwise.runs("status = running")]
    assert not handle.done()
    assert not handle.wait(0.01)
    with pytest.raises(TimeoutError, match=r"sample.stepwise is running after 0.01 seconds"):
        handle.result(timeout=0.01)
    assert (handle.progress.step, dict(handle.progress.values)) == (1, {"loss": 0.5})
    seen: list[str] = []
    called = threading.Event()
    handle.add_done_callback(lambda ended: (seen.append(ended.status), called.set()))
    Stepwise.go_on.set()
    run = handle.result(PATIENCE)
    assert (handle.status, handle.run_id, run.status) == ("complete", run.id, "complete")
    assert called.wait(PATIENCE)  # by the thread that ended it, maybe after the result was handed out
    handle.add_done_callback(lambda ended: seen.append("late"))
    assert seen == ["complete", "late"]
    assert stepwise.run("sample.stepwise", seed=3, progress=False).id == run.id


def test_what_the_store_has_is_there_at_once(bench, images):
    first = bench.run("sample.mean_image", data=images, progress=False)
    handle = bench.submit("sample.mean_image", data=images, study="ship")
    assert handle.status == "complete"
    assert handle.result().served
    assert handle.run_id == first.id
    assert [run.id for run in bench.runs("study = ship")] == [first.id]


def test_bad_input_raises_at_the_call(bench, images):
    with pytest.raises(UnknownMethodError):
        bench.submit("sample.mean_imagee", data=images)
    with pytest.raises(InputError, match="scale"):
        bench.submit("sample.mean_image", data=images, scale=-1)
    with pytest.raises(InputError, match="data"):
        bench.submit("sample.mean_image", data=np.full((2, 1, 4, 4), np.nan, dtype=np.float32))


@pytest.mark.parametrize(
    ("method", "error", "status"),
    [("sample.failing", RunFailedError, "failed"), ("sample.declining", SkippedError, "skipped")],
)
def test_results_raise_what_run_raises(bench, method, error, status):
    handle = bench.submit(method)
    with pytest.raises(error) as told:
        handle.result(PATIENCE)
    assert handle.status == status
    assert handle.error is told.value
    assert handle.run_id == getattr(told.value, "run_id", None)


def test_cancelling_stops_a_running_run_and_never_begins_a_pending_one(stepwise):
    running, pending = stepwise.submit("sample.stepwise"), stepwise.submit("sample.stepwise", seed=1)
    assert Stepwise.middle.wait(PATIENCE)
    assert pending.status == "pending"
    pending.cancel()
    assert pending.status == "cancelled"
    running.cancel()
    running.cancel()
    with pytest.raises(CancelledError):
        running.result(PATIENCE)
    assert stepwise[running.run_id].status == "cancelled"
    with pytest.raises(CancelledError, match="before it began"):
        pending.result()
    assert len(stepwise.runs()) == 1


def test_a_callback_that_raises_ends_nothing(bench, caplog):
    handle = bench.submit("sample.random_numbers")
    handle.add_done_callback(lambda _: 1 / 0)
    assert handle.result(PATIENCE).status == "complete"
    assert bench.submit("sample.random_numbers", seed=1).result(PATIENCE).status == "complete"


def test_it_shows_itself_as_text_and_escaped(bench):
    handle = bench.submit("sample.failing")
    handle.wait(PATIENCE)
    handle.title = "<script>"
    assert "sample.failing failed: ValueError" in repr(handle)
    assert "<script>" not in handle._repr_html_()


# ---------------------------------------------------------------------------------------- what a process has only once


def test_a_foreground_run_goes_first_and_both_give_the_numbers_they_give_alone(stepwise):
    alone = stepwise.run("sample.random_numbers", seed=5, progress=False)
    random.seed(11)
    np.random.seed(11)  # noqa: NPY002
    torch.manual_seed(11)
    expected = [draw(), draw()]
    random.seed(11)
    np.random.seed(11)  # noqa: NPY002
    torch.manual_seed(11)
    handle = stepwise.submit("sample.stepwise", seed=3)
    assert Stepwise.middle.wait(PATIENCE)
    between = stepwise.run("sample.random_numbers", seed=5, force=True, progress=False)  # while the other waits
    assert handle.status == "running"
    np.testing.assert_array_equal(between["value"].values, alone["value"].values)
    Stepwise.go_on.set()
    np.testing.assert_array_equal(handle.result(PATIENCE)["value"].values, inline_numbers(3))
    random.seed(11)
    np.random.seed(11)  # noqa: NPY002
    torch.manual_seed(11)
    np.testing.assert_array_equal([draw(), draw()], expected)


def test_generators_of_the_notebook_are_what_they_were(bench):
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002
    random.seed(11)
    expected = [draw(), draw()]
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002
    random.seed(11)
    found = [draw()]
    bench.submit("sample.random_numbers", seed=2).result(PATIENCE)
    found.append(draw())
    np.testing.assert_array_equal(found, expected)


def test_a_model_is_built_with_its_own_weights_while_something_runs(stepwise):
    wanted = stepwise.model("small-cnn(n_classes=3)").state_dict()
    handle = stepwise.submit("sample.stepwise", seed=3)
    assert Stepwise.middle.wait(PATIENCE)
    built = stepwise.model("small-cnn(n_classes=3)").state_dict()
    assert all(torch.equal(built[name], wanted[name]) for name in wanted)
    Stepwise.go_on.set()
    np.testing.assert_array_equal(handle.result(PATIENCE)["value"].values, inline_numbers(3))


def test_submitting_a_named_model_waits_for_nobody(stepwise, images):
    """Its factory draws from the global generators, which a run that does not pause has for itself."""

    class Obstinate(Stepwise):
        """Reports no progress while it waits."""

        id = "sample.obstinate"

        def run(self, inputs: Any, params: Any, out: Any) -> None:
            """Wait."""
            Stepwise.middle.set()
            Stepwise.go_on.wait(PATIENCE)
            out.write("value", draw())

    first = stepwise.submit(Obstinate)
    assert Stepwise.middle.wait(PATIENCE)
    labels = np.zeros(12, dtype=np.int64)
    handles: list[Any] = []

    def submit() -> None:
        names = ["small-cnn(n_classes=3, width=4)", "small-cnn(n_classes=3, width=4)", "no-such-network"]
        handles.extend(stepwise.submit("sample.scores", model=name, data=(images, labels)) for name in names)

    submitting = threading.Thread(target=submit, daemon=True)
    submitting.start()
    submitting.join(PATIENCE / 2)
    assert len(handles) == 3, "submit waits for the run"
    assert [handle.status for handle in (first, *handles)] == ["running", *["pending"] * 3]
    handles[1].cancel()
    before, images[:] = images.copy(), 0.0  # the caller's to change, as ever
    Stepwise.go_on.set()
    computed = handles[0].result(PATIENCE)
    with pytest.raises(InputError, match="no-such-network"):
        handles[2].result(PATIENCE)
    assert [handle.status for handle in handles] == ["complete", "cancelled", "failed"]
    named = {"model": "small-cnn(n_classes=3, width=4)", "data": (before, labels)}
    again = stepwise.run("sample.scores", **named, progress=False)
    assert again.id == computed.id


def test_what_a_cell_changes_after_submitting_is_not_computed_on(stepwise):
    first = stepwise.submit("sample.stepwise", seed=3)
    assert Stepwise.middle.wait(PATIENCE)
    image = np.full((2, 1, 4, 4), 0.25, np.float32)
    before = image.copy()
    waiting = stepwise.submit("sample.mean_image", data=image)
    image += 0.5
    Stepwise.go_on.set()
    first.result(PATIENCE)
    computed = waiting.result(PATIENCE)
    again = stepwise.run("sample.mean_image", data=before, progress=False)
    assert again.id == computed.id
    fresh = stepwise.run("sample.mean_image", data=before, force=True, progress=False)
    name = fresh.arrays[0]
    np.testing.assert_array_equal(again[name].values, fresh[name].values)


def test_a_model_that_goes_on_training_after_submitting_is_submitted_as_it_was():
    from workbench.execution.inputs import Resolved
    from workbench.execution.request import _owned

    module = torch.nn.Linear(2, 1)
    wanted = {name: value.clone() for name, value in module.state_dict().items()}
    kept = _owned(Resolved("model", module, "digest", "Linear"), module).value
    with torch.no_grad():
        module.weight.add_(1.0)
    assert all(torch.equal(kept.state_dict()[name], wanted[name]) for name in wanted)


def test_progress_while_the_turn_is_lent_does_not_give_it_away_again():
    """A run whose blocks others compute reports progress while somebody in the foreground waits for a third run."""
    lender, holds, let_go = Turn(background=True), threading.Event(), threading.Event()

    def hold() -> None:
        with Turn(background=True):
            holds.set()
            let_go.wait(PATIENCE)

    def in_front() -> None:
        with Turn():
            pass

    with lender, lender.random_numbers(0):
        with lender.lent():
            holder, front = threading.Thread(target=hold), threading.Thread(target=in_front)
            holder.start()
            assert holds.wait(PATIENCE)
            front.start()
            while not turn._foreground_waiting:
                front.join(0.001)
            lender.step_aside()
            let_go.set()
            holder.join()
            front.join()
        assert turn._holders == [lender]
    assert not turn._holders


def test_several_submitted_runs_do_not_mix(stepwise):
    Stepwise.go_on.set()
    handles = [stepwise.submit("sample.stepwise", seed=seed) for seed in range(4)]
    for seed, handle in enumerate(handles):
        np.testing.assert_array_equal(handle.result(PATIENCE)["value"].values, inline_numbers(seed))


def test_submitting_from_many_threads_gives_every_run_its_own_numbers(stepwise):
    Stepwise.go_on.set()
    found: dict[int, np.ndarray] = {}

    def one(seed: int) -> None:
        # Half of them in the foreground of their thread, half in the background.
        if seed % 2:
            found[seed] = stepwise.run("sample.stepwise", seed=seed, progress=False)["value"].values
        else:
            found[seed] = stepwise.submit("sample.stepwise", seed=seed).result(PATIENCE)["value"].values

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(found) == list(range(8))
    for seed, values in found.items():
        np.testing.assert_array_equal(values, inline_numbers(seed))


def test_warnings_go_to_the_record_and_filters_stay_those_of_the_notebook(stepwise):
    shown, filters = warnings.showwarning, list(warnings.filters)
    handle = stepwise.submit("sample.stepwise")
    assert Stepwise.middle.wait(PATIENCE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)  # not of sockets that other tests left to the garbage collector
        warnings.warn("mine", UserWarning, stacklevel=1)
    assert [str(item.message) for item in caught] == ["mine"]
    Stepwise.go_on.set()
    assert handle.result(PATIENCE).record.provenance["warnings"] == ["UserWarning: a library complains"]
    assert warnings.filters == filters
    assert warnings.showwarning is shown


def test_a_foreground_run_that_waits_for_one_that_never_pauses_can_be_stopped(stepwise):
    class Silent(Stepwise):
        """Reports nothing while it waits."""

        id = "sample.silent"

        def run(self, inputs: Any, params: Any, out: Any) -> None:
            """Wait."""
            Stepwise.middle.set()
            Stepwise.go_on.wait()
            out.write("value", draw())

    handle = stepwise.submit(Silent, seed=4)
    assert Stepwise.middle.wait(PATIENCE)
    token = CancelToken()
    threading.Timer(0.05, token.cancel).start()
    with pytest.raises(CancelledError):
        stepwise.run("sample.random_numbers", cancel=token, progress=False)
    assert handle.status == "running"
    Stepwise.go_on.set()
    np.testing.assert_array_equal(handle.result(PATIENCE)["value"].values, inline_numbers(4)[:3])
    assert [run.method for run in stepwise.runs()] == ["sample.silent"]


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import workbench
from workbench.execution import background
from workbench.host import Host
from unit.test_handle import Stepwise
background.LAST_MOMENT = 300.0  # of seconds to write down how it ended: a busy machine may need more than a user waits
bench = workbench.open({store!r}, host=Host(found=[]))
bench.register(Stepwise)
handle, other = bench.submit("sample.stepwise"), bench.submit("sample.stepwise", seed=1)
assert Stepwise.middle.wait(300)
print(handle.run_id)
"""


def test_what_is_unfinished_when_the_process_ends_is_cancelled(bench, tmp_path: Path):
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), store=bench.store.url)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=True)
    (run,) = bench.runs()
    assert run.id == done.stdout.strip()
    assert run.status == "cancelled"


def test_a_bar_that_said_what_a_run_waits_for_says_so_no_longer_once_it_began(monkeypatch):
    """Also of a method that tells how far it is and nothing else."""
    postfixes: list[str] = []

    class Bar:
        """As much of tqdm as is used."""

        text = ""

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            self.text = text

        def refresh(self) -> None:
            postfixes.append(self.text)

        def close(self) -> None:
            """Nothing."""

    monkeypatch.setattr("workbench.execution.progress._make_bar", lambda title: Bar())
    monkeypatch.setattr("workbench.execution.handle.ATTENTION", 0.0)
    handle: Handle[str] = Handle("sample.method")
    handle.held_up(lambda: "waiting for a worker")
    wait, steps = handle.wait, iter([lambda: None, lambda: handle.began("r"), lambda: handle.progressed(1, 2, "")])

    def next_step(timeout: float | None = None) -> bool:
        next(steps, lambda: handle.ended("done"))()
        return wait(timeout)

    monkeypatch.setattr(handle, "wait", next_step)
    bar = ProgressBar("sample.method", delay=0.0)
    assert handle.attend(bar, None) == "done"
    assert postfixes == ["waiting for a worker", "", ""]
