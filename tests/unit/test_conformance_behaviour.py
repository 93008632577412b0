"""What a method does while it runs: for each rule of its behaviour one method that breaks it alone is found."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from workbench import (
    DataRole,
    InputError,
    Line,
    Method,
    Metric,
    Output,
    Report,
)
from workbench.testing import check_method
from workbench.testing.trial import Trial

from unit.conformance_cases import Brightness, also_report, broken, fail_when, first, problems, silent, then

HERE = os.getpid()


# ----------------------------------------------------------------------------------------------------------- behaviour


def counting(inputs: Any, params: Any, out: Any, state: dict[str, int] = {"n": 0}) -> None:  # noqa: B006
    state["n"] += 1
    out.log(0, calls=state["n"])


def spoil(inputs: Any, params: Any, out: Any) -> None:
    inputs["data"]["image"].values[0] = 0.25


def listen(inputs: Any, params: Any, out: Any) -> None:
    import socket

    with socket.socket() as client:
        client.settimeout(0.01)
        client.connect_ex(("127.0.0.1", 9))


LEFT = threading.Event()
"""Ends the threads that a method leaves behind."""


def leave_thread(inputs: Any, params: Any, out: Any) -> None:
    threading.Thread(target=LEFT.wait, args=(300,), name="left behind").start()


def stubborn(self: Any, inputs: Any, params: Any, out: Any) -> None:
    for _ in range(4):
        try:
            out.progress(0, 1)
        except Exception:
            continue
    silent(self, inputs, params, out)


def busy(self: Any, inputs: Any, params: Any, out: Any) -> None:
    out.progress(0, 1)
    end = time.thread_time() + 2.1
    while time.thread_time() < end:
        pass
    silent(self, inputs, params, out)


def forgetful(self: Any, inputs: Any, params: Any, out: Any) -> None:
    """Goes on from its checkpoint, in which it forgot what it had drawn."""
    known = out.restore() or {"at": 0}
    drawn = np.zeros(params.draws)
    for step in range(int(known["at"]), params.draws):
        out.progress(step, params.draws)
        drawn[step] = out.rng(str(step)).random()
        out.checkpoint({"at": step + 1})
    out.write("brightness", inputs["data"]["image"].values.astype(np.float64).mean(axis=(1, 2, 3)))
    out.write("resampled", drawn)


def unable(self: Any, inputs: Any, params: Any, out: Any) -> None:
    if out.restore() is not None:
        raise KeyError("a checkpoint of somebody else")
    out.checkpoint({"at": 1})
    Brightness.run(self, inputs, params, out)


def unequal_on_gpu(inputs: Any, params: Any, out: Any) -> None:
    out.log(0, level=2.0 if os.environ.get("PRETENDED") else 1.0)


PROBABILITY = Output("probability", ("sample", "class"), "float32", "class probabilities")


def other_probabilities(inputs: Any, params: Any, out: Any) -> None:
    out.write("probability", np.full((len(inputs["data"]["image"]), 3), 0.5, dtype=np.float32))


def with_report(**changes: Any) -> Any:
    def report(self: Any, result: Any) -> Report:
        parts = vars(Brightness.report(self, result)) | changes
        return Report(**parts)

    return report


@pytest.mark.parametrize(
    ("rule", "body", "words"),
    [
        ("runs", {"run": lambda s, i, p, o: o.write("brightness", np.zeros(3))}, "did not write its output 'resampled'"),
        ("runs", {"run": then(lambda i, p, o: o.write("more", 1.0))}, "which it does not declare"),
        ("runs", {"run": first(fail_when(lambda i, o: True))}, "not prepared for that"),
        ("runs", {"run": then(other_probabilities), "outputs": (*Brightness.outputs, PROBABILITY)},
         "rows of 'probability' do not sum to 1"),
        ("optional_inputs", {"run": first(fail_when(lambda i, o: "label" not in i["data"]))}, "required inputs only"),
        ("reproducible", {"run": then(counting)}, "two runs with seed 0 differ: series calls"),
        ("seed", {"run": first(fail_when(lambda i, o: o.seed == 1))}, "seed 1 does not run"),
        ("seed", {"run": then(lambda i, p, o: torch.manual_seed(7))}, "seeds torch's global generator"),
        ("seed", {"run": then(lambda i, p, o: torch.manual_seed(0))}, "seeds torch's global generator"),
        ("seed", {"run": then(lambda i, p, o: torch.manual_seed(o.seed))}, ""),
        ("seed", {"run": then(lambda i, p, o: np.random.seed(3))}, "seeds numpy's global generator"),  # noqa: NPY002
        ("seed", {"run": then(lambda i, p, o: random.seed(3))}, "seeds Python's global generator"),
        ("seed", {"run": then(lambda i, p, o: random.Random(3).random())}, ""),
        ("lazy_data", {"run": first(fail_when(lambda i, o: i["data"]["image"].chunks is not None))}, "dask"),
        ("report_pure", {"report": also_report(lambda s, r: r["brightness"].values.fill(0) or print("hi"))}, "report prints: hi"),
        ("report_pure", {"report": also_report(lambda s, r: open(os.path.abspath("notes.txt"), "w").close())}, "opens files"),
        ("report_complete", {"report": with_report(summary=" ")}, "no summary"),
        ("report_complete", {"report": with_report(metrics=[Metric(name="top 1!", value=1)])}, "'top 1!'"),
        ("report_complete", {"report": with_report(metrics=[Metric(name="a", value=1, interval=(2, 1))])}, "interval"),
        ("views", {"report": with_report(views=[Line(title="L", y=("absent",), x="draw")])}, "absent"),
        ("global_state", {"run": then(lambda i, p, o: os.environ.update(WORKBENCH_TEST="1"))}, "WORKBENCH_TEST"),
        ("global_state", {"run": then(lambda i, p, o: torch.set_default_dtype(torch.float64))}, "default dtype"),
        ("global_state", {"run": then(lambda i, p, o: np.seterr(all="ignore"))}, "numpy error settings"),
        ("global_state", {"run": then(leave_thread)}, "left behind"),
        ("files", {"run": then(lambda i, p, o: open(os.path.abspath("notes.txt"), "w").close())}, "write"),
        ("files", {"run": then(lambda i, p, o: os.mkdir(f"folder{o.rng().integers(9)}") if o.seed else None)}, ""),
        ("printing", {"run": then(lambda i, p, o: print("epoch 1"))}, "it prints: epoch 1"),
        ("network", {"run": then(listen)}, "127.0.0.1"),
        ("inputs_untouched", {"run": first(spoil)}, "changes the values of 'data'"),
        ("cancel", {"run": silent}, "reports no progress"),
        ("cancel", {"run": stubborn}, "cancelled half way, it completed"),
        ("cancel", {"run": busy}, "without asking"),
        ("resume", {"run": forgetful}, "has another result: resampled differs"),
        ("resume", {"run": unable}, "does not go on"),
        ("one_sample", {"run": first(fail_when(lambda i, o: i["data"].sizes["sample"] == 1))}, "not prepared"),
        ("odd_size", {"run": first(fail_when(lambda i, o: i["data"].sizes["x"] % 2))}, "not prepared"),
        ("dask", {"run": first(fail_when(lambda i, o, here=HERE: os.getpid() != here))}, "in a worker process"),
        ("dask", {"run": then(lambda i, p, o: None)}, ""),
    ],
)  # fmt: skip
def test_behaviour_that_breaks_a_rule(rule, body, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORKBENCH_TEST", raising=False)
    before = np.geterr(), torch.get_default_dtype()
    LEFT.clear()
    try:
        found = problems(broken(**body), rule, tmp_path)
    finally:
        LEFT.set()
    assert words in found
    assert bool(found) == bool(words)
    # What a method left behind is put right, so that it is no trouble to the next test.
    assert (np.geterr(), torch.get_default_dtype()) == before
    assert "WORKBENCH_TEST" not in os.environ


def test_a_run_that_goes_on_rightly_is_no_finding(tmp_path):
    class Params(Brightness.Params):
        draws: int = Field(60, ge=2, le=100, description="bootstrap draws")

    def run(self, inputs, params, out):
        known = out.restore()
        if known is not None:
            resumed.append(known["at"])
        drawn = np.zeros(params.draws) if known is None else np.array(known["drawn"])
        for step in range(0 if known is None else int(known["at"]), params.draws):
            out.progress(step, params.draws)
            drawn[step] = out.rng(str(step)).random()
            out.checkpoint({"at": step + 1, "drawn": drawn})
        out.write("brightness", inputs["data"]["image"].values.astype(np.float64).mean(axis=(1, 2, 3)))
        out.write("resampled", drawn)

    resumed: list[int] = []
    assert problems(broken(run=run, Params=Params), "resume", tmp_path) == ""
    assert len(resumed) == 1
    assert 0 < resumed[0] < 60


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"run": first(fail_when(lambda i, o: i["data"].sizes["sample"] == 0))}, "without any sample: RunFailedError"),
        ({"run": silent}, "it completes on 'data' without any sample"),
    ],
)
def test_no_samples_are_declined_by_the_host_and_without_it_would_be_a_finding(body, words, tmp_path, monkeypatch):
    assert problems(broken(**body), "empty", tmp_path / "hosted") == ""
    monkeypatch.setattr("workbench.execution.inputs.check", lambda method, resolved: None)
    body |= {"report": lambda self, result: Report(summary="Of nothing.")}
    assert words in problems(broken(**body), "empty", tmp_path)


def test_a_gpu_that_computes_something_else_is_a_finding(tmp_path, monkeypatch):
    attempt = Trial.attempt

    def pretend(self, *, device="cpu", **options):
        monkeypatch.setenv("PRETENDED", "yes" if device == "cuda" else "")
        return attempt(self, **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Trial, "attempt", pretend)
    assert "CPU and GPU: series level differs by up to 1" in problems(
        broken(run=then(unequal_on_gpu)), "device", tmp_path
    )
    assert problems(Brightness, "device", tmp_path / "fine") == ""


def test_a_report_that_needs_what_run_left_on_the_instance(tmp_path):
    def run(self, inputs, params, out):
        Brightness.run(self, inputs, params, out)
        self.kept = 0.5

    def report(self, result):
        return Report(summary=f"kept {getattr(self, 'kept', None)}")

    assert "something else than the one that ran: summary" in problems(
        broken(run=run, report=report), "report_pure", tmp_path
    )


def test_a_report_may_state_how_long_the_run_took(tmp_path):
    report = lambda self, result: Report(summary=f"took {result.seconds:.3f} s")  # noqa: E731
    assert problems(broken(report=report), "report_pure", tmp_path) == ""


def test_measured_times_may_differ_between_runs(tmp_path):
    method = broken(
        outputs=(*Brightness.outputs, Output("elapsed", (), "float64", "time of the work", unit="s")),
        run=then(lambda i, p, o: o.write("elapsed", time.perf_counter())),
    )
    assert problems(method, "reproducible", tmp_path) == ""


class Logits(Method):
    """Reads logits, without looking at them; nothing of what it is given makes it complain."""

    id = "sample.logits"
    title = "Logits"
    paper = None
    inputs = {"data": DataRole("logits", {"logit": ("sample", "class")}, allow_nan=True)}
    outputs = (Output("top", ("sample",), "float32", "largest logit"),)

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Take the largest."""
        logit = inputs["data"]["logit"].values
        if not np.isfinite(logit).all() or np.abs(logit).max() > 1e20:
            raise FloatingPointError("overflow")
        out.progress(0, 1)
        out.write("top", logit.max(axis=1))

    def report(self, result: Any) -> Report:
        """Nothing."""
        return Report(summary="Read.")


@pytest.mark.parametrize(("rule", "words"), [("huge", "1e30"), ("not_a_number", "NaN")])
def test_hard_values_must_end_in_a_clear_error(rule, words, tmp_path):
    found = problems(Logits, rule, tmp_path)
    assert words in found
    assert "overflow" in found

    def clear(self, inputs, params, out):
        raise InputError("data", expected="logits", got="nonsense")

    assert problems(type("Clear", (Logits,), {"run": clear, "__module__": __name__}), rule, tmp_path) == ""


def test_a_missing_optional_package_is_no_finding_but_must_be_announced(tmp_path):
    absent = broken(requires={"a_package_that_is_not_there": "extra"})
    assert check_method(absent) == []
    present = broken(requires={"json": "extra"})
    import json
    import sys

    assert "the module cannot be imported" not in problems(absent, "dependency", tmp_path)
    problems(present, "dependency", tmp_path)
    assert sys.modules["json"] is json  # put back after it was hidden


def test_a_module_that_cannot_be_imported_without_its_optional_package(tmp_path, monkeypatch):
    (tmp_path / "needy_method.py").write_text(
        "import colorsys\nfrom workbench import Method, Output, Report\n\n\nclass Needy(Method):\n"
        "    id, title, paper = 'sample.needy', 'Needs a package', None\n    requires = {'colorsys': 'extra'}\n"
        "    def run(self, inputs, params, out): ...\n    def report(self, result): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import needy_method  # type: ignore[import-not-found]

    assert "cannot be imported: ModuleNotFoundError" in problems(needy_method.Needy, "dependency", tmp_path / "s")
