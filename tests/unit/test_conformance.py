"""The kit finds what it promises to find: one method that keeps every rule, and for each rule one that breaks it alone."""

from __future__ import annotations

import inspect
import os
import random
import threading
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import pytest
import torch
import xarray as xr
from pydantic import Field
from workbench import (
    DataRole,
    InputError,
    Line,
    Method,
    MethodReference,
    Metric,
    ModelRole,
    Output,
    Paper,
    Report,
)
from workbench import Params as BaseParams
from workbench.method import Method as AnyMethod
from workbench.schema import VARIABLES
from workbench.subjects import check_dataset
from workbench.testing import RULES, MethodContract, check_declarations, check_method, sample_dataset, sample_inputs
from workbench.testing.behaviour import BEHAVIOUR, check_behaviour
from workbench.testing.trial import Trial
from workbench.testing.watch import watching

HERE = os.getpid()
PICTURE = VARIABLES["image"].dims


class Brightness(Method):
    """How bright every picture is, and how that is spread: a method that keeps every rule of the contract."""

    id = "sample.brightness"
    title = "How bright the pictures are"
    paper = Paper(title="On means", authors="A. Author", year=1999)
    inputs = {"data": DataRole("pictures", {"image": PICTURE}, {"label": ("sample",)})}
    outputs = (
        Output("brightness", ("sample",), "float64", "mean of every picture"),
        Output("resampled", ("draw",), "float64", "mean brightness of resampled data"),
    )

    class Params(BaseParams):
        """Parameters."""

        draws: int = Field(5, ge=2, le=100, description="bootstrap draws")

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Average, then resample."""
        image = inputs["data"]["image"].values.astype(np.float64)
        value = image.mean(axis=(1, 2, 3))
        out.write("brightness", value)
        means = [
            value[out.rng(f"{i}").integers(0, len(value), len(value))].mean() for i in out.track(range(params.draws))
        ]
        out.write("resampled", np.array(means))

    def report(self, result: Any) -> Report:
        """The mean."""
        value = float(result["brightness"].mean())
        return Report(
            summary=f"The pictures have a mean brightness of {value:.2f}.",
            metrics=[Metric(name="brightness", value=value)],
            views=[Line(title="Resampled", y=("resampled",), x="draw")],
        )


def broken(**body: Any) -> type[Method]:
    """`Brightness` with a part replaced."""
    return type("Broken", (Brightness,), {"__doc__": Brightness.__doc__, "__module__": __name__, **body})


def then(act: Any) -> Any:
    """A `run` that does its work and then `act(inputs, params, out)`."""

    def run(self: Any, inputs: Any, params: Any, out: Any) -> None:
        Brightness.run(self, inputs, params, out)
        act(inputs, params, out)

    return run


def first(act: Any) -> Any:
    """A `run` that calls `act(inputs, params, out)` before its work."""

    def run(self: Any, inputs: Any, params: Any, out: Any) -> None:
        act(inputs, params, out)
        Brightness.run(self, inputs, params, out)

    return run


def also_report(act: Any) -> Any:
    def report(self: Any, result: Any) -> Report:
        act(self, result)
        return Brightness.report(self, result)

    return report


def problems(method: type[AnyMethod], rule: str, tmp_path: Path, **inputs: Any) -> str:
    trial = Trial(method, folder=tmp_path / "store", inputs=inputs)
    return "\n".join(finding.problem for finding in check_behaviour(trial, rule))


def test_a_method_that_keeps_the_rules_has_no_findings():
    reference = MethodReference("sample.brightness", "unit.test_conformance:Brightness", "How bright the pictures are")
    assert check_method(Brightness, reference=reference) == []


class TestBrightness(MethodContract):
    """What a plugin's author writes."""

    method = Brightness


# -------------------------------------------------------------------------------------------------------- declarations


class Undescribed(BaseParams):
    """No description, no range, no default."""

    draws: int = Field(5, ge=2, le=100)
    size: int = Field(5, description="a size")
    name: str = Field(description="a name")


class Unkeyed(BaseParams):
    """A parameter that is left out of the key, one that is rounded in it, and one of which an end is dropped."""

    draws: int = Field(5, ge=2, le=100, description="draws", exclude=True)
    rate: float = Field(0.5, ge=0, le=1, description="a rate")
    sizes: tuple[int, ...] = Field((1, 2), description="sizes")
    mode: Literal["mean", "median"] = Field("mean", description="kept whole")

    @pydantic.field_serializer("rate")
    def rounded(self, value: float) -> float:
        return round(value, 3)

    @pydantic.field_serializer("sizes")
    def first_of(self, value: tuple[int, ...]) -> list[int]:
        return list(value[:1])


class Unplain(BaseParams):
    """A default that is no JSON."""

    draws: int = Field(5, ge=2, le=100, description="draws")
    seed: int = Field(5, ge=2, description="a seed")


@pytest.mark.parametrize(
    ("rule", "body", "words"),
    [
        ("identity", {"id": "brightness"}, ["family.name"]),
        ("identity", {"id": "sample.Bright-ness"}, ["family.name"]),
        ("identity", {"title": "Two\nlines"}, ["one line"]),
        ("identity", {"version": 2}, ["version must be a text"]),
        ("paper", {"paper": Paper(title="", authors="A", year=3000)}, ["no title", "3000"]),
        ("shell", {"__init__": lambda self, size: None}, ["without arguments"]),
        ("parameters", {"Params": Undescribed}, ["'draws' has no desc", "'size' is a number without", "'name' has no default"]),
        ("parameters", {"Params": Unplain}, ["'seed' has the name of an option"]),
        ("parameters", {"Params": dict}, ["must derive from workbench.Params"]),
        ("key", {"Params": Unkeyed}, ["'draws' is not part", "'rate' is not part", "'sizes' is not part"]),
        ("roles", {"inputs": {"draws": DataRole("", {"image": PICTURE})}}, ["name of a parameter", "no description"]),
        ("roles", {"inputs": {"device": DataRole("a", {})}}, ["by this name", "asks for no variable"]),
        ("roles", {"inputs": {"m": ModelRole("a model", data="fit")}}, ["'fit', which does not exist"]),
        ("outputs", {"outputs": ()}, ["declares no output"]),
        ("outputs", {"outputs": (Output("a b", ("x", "x"), "float31", ""),) * 2},
         ["twice", "not a plain name", "repeats a dim", "no description", "unknown dtype"]),
        ("outputs", {"outputs": (Output("area", ("drop",), "float32", "an area"),)}, ["a dim 'drop'", "sel(drop=...)"]),
        ("glossary", {"outputs": (Output("label", ("class",), "float32", "a"),)}, ["has dims", "has dtype"]),
        ("glossary", {"inputs": {"data": DataRole("a", {"image": ("sample", "x", "y", "channel")})}}, ["asks for 'image'"]),
    ],
)  # fmt: skip
def test_declarations_that_break_a_rule(rule, body, words):
    findings = [finding for finding in check_declarations(broken(**body)) if finding.rule == rule]
    text = "\n".join(finding.problem for finding in findings)
    for word in words:
        assert word in text
    assert "mode" not in text
    assert all(RULES[rule].mend in str(finding) for finding in findings)


def test_a_class_that_does_not_mention_its_paper_or_document_itself():
    body = {"id": "a.b", "title": "t", "run": Brightness.run, "report": Brightness.report, "__module__": "nowhere"}
    rules = {finding.rule for finding in check_declarations(type("Bare", (Method,), body))}
    assert {"paper", "documentation", "outputs"} <= rules
    stated = type("Bare", (Method,), {**body, "paper": None})
    assert "paper" not in {finding.rule for finding in check_declarations(stated)}


def test_an_abstract_class_and_one_without_id_are_findings_not_crashes():
    assert {"shell", "identity"} <= {finding.rule for finding in check_method(type("Nothing", (Method,), {}))}


def test_a_reference_that_disagrees_with_its_class():
    (finding,) = check_declarations(Brightness, MethodReference("sample.brightness", "x:y", "Another title"))
    assert (finding.rule, "Another title" in finding.problem) == ("identity", True)


@pytest.mark.parametrize("bound", [{"ge": 1}, {"lt": 5}, {"gt": 0, "le": 9}])
def test_one_bound_is_a_range_also_in_an_optional_number(bound):
    for kind in (int, int | None):
        fields = {"__annotations__": {"n": kind}, "n": Field(3, description="a number", **bound)}
        params = type("P", (BaseParams,), {"__module__": __name__, **fields})
        assert "parameters" not in {finding.rule for finding in check_declarations(broken(Params=params))}


# ----------------------------------------------------------------------------------------------------------- behaviour


def counting(inputs: Any, params: Any, out: Any, state: dict[str, int] = {"n": 0}) -> None:  # noqa: B006
    state["n"] += 1
    out.log(0, calls=state["n"])


def spoil(inputs: Any, params: Any, out: Any) -> None:
    inputs["data"]["image"].values[0] = 0.25


def fail_when(condition: Any) -> Any:
    def act(inputs: Any, params: Any, out: Any) -> None:
        if condition(inputs, out):
            raise ValueError("not prepared for that")

    return act


def listen(inputs: Any, params: Any, out: Any) -> None:
    import socket

    with socket.socket() as client:
        client.settimeout(0.01)
        client.connect_ex(("127.0.0.1", 9))


def leave_thread(inputs: Any, params: Any, out: Any) -> None:
    threading.Thread(target=time.sleep, args=(0.2,), name="left behind").start()


def silent(self: Any, inputs: Any, params: Any, out: Any) -> None:
    out.write("brightness", inputs["data"]["image"].values.astype(np.float64).mean(axis=(1, 2, 3)))
    out.write("resampled", np.zeros(params.draws))


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
    found = problems(broken(**body), rule, tmp_path)
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


# ------------------------------------------------------------------------------------------------ samples, watching, pytest


def test_sample_inputs_pass_the_checks_of_the_host_and_are_the_same_each_time():
    variables = {name: known.dims for name, known in VARIABLES.items() if "layer" not in known.dims}
    role = DataRole("everything", variables)
    one, other = sample_dataset(variables), sample_dataset(variables)
    check_dataset("data", role, one)
    assert one.identical(other)
    assert not one["image"].equals(sample_dataset(variables, seed=1)["image"])


def test_a_sample_model_has_learned_the_sample_pictures():
    class Judge(Brightness):
        inputs = {
            "data": DataRole("pictures", {"image": PICTURE, "label": ("sample",)}),
            "model": ModelRole("a classifier"),
        }

    made = sample_inputs(Judge)
    image, label = torch.from_numpy(made["data"]["image"].values), made["data"]["label"].values
    with torch.no_grad():
        right = (made["model"](image).argmax(1).numpy() == label).mean()
    assert right > 0.6  # a quarter by chance
    state = sample_inputs(Judge)["model"].state_dict()
    assert all(torch.equal(values, state[name]) for name, values in made["model"].state_dict().items())


def test_sample_inputs_leave_out_what_is_optional():
    class Choosy(Brightness):
        inputs = {**Brightness.inputs, "test": DataRole("more", {"image": PICTURE}, optional=True)}

    assert set(sample_inputs(Choosy)) == {"data", "test"}
    assert set(sample_inputs(Choosy, optional=False)) == {"data"}
    assert set(sample_inputs(Choosy, optional=False)["data"].data_vars) == {"image"}


def test_files_of_the_installation_and_of_the_store_are_no_findings(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "other.txt").write_text("x")
    with watching(own=(tmp_path / "own",)) as seen:
        (tmp_path / "own" / "a.txt").write_text("x")
        Path(os.__file__).read_text()
        (tmp_path / "other.txt").read_text()
    assert seen.files == [f"read {tmp_path / 'other.txt'}"]
    (tmp_path / "unwatched.txt").write_text("x")
    assert len(seen.files) == 1


def test_the_contract_fails_in_pytest_with_rule_and_mend(tmp_path):
    import subprocess
    import sys

    (tmp_path / "test_broken.py").write_text(
        "import sys\nsys.path.insert(0, " + repr(str(Path(__file__).parents[1])) + ")\n"
        "from unit.test_conformance import Brightness, then\nfrom workbench.testing import MethodContract\n\n\n"
        "class Loud(Brightness):\n    '''A method that prints although no method may do so.'''\n"
        "    run = then(lambda i, p, o: print('hello'))\n\n\n"
        "class TestLoud(MethodContract):\n    method = Loud\n    deviations = {'views': 'just to see'}\n"
    )
    only = "printing or views or identity"
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-k", only, "test_broken.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "1 failed" in done.stdout, done.stdout + done.stderr
    assert "sample.brightness [printing] it prints: hello" in done.stdout
    assert RULES["printing"].mend in done.stdout
    assert "deviates: just to see" in done.stdout


ELSEWHERE = {"documentation", "device", "dependency", "empty", "huge", "not_a_number"}
"""Rules that are broken in tests of their own."""


def test_every_rule_is_broken_by_a_method_here():
    tables = (test_declarations_that_break_a_rule, test_behaviour_that_breaks_a_rule)
    broken_here = {case[0] for table in tables for mark in table.pytestmark for case in mark.args[1] if case[-1]}
    assert set(RULES) - broken_here == ELSEWHERE


def test_every_rule_is_stated_checked_and_can_be_mended():
    from workbench.testing.declarations import DECLARATIONS

    assert set(RULES) == set(DECLARATIONS) | set(BEHAVIOUR)
    assert all(rule.says and rule.mend for rule in RULES.values())


def test_the_glossary_has_no_dim_that_xarray_takes_for_an_argument():
    from workbench.schema import DIMS
    from workbench.testing.declarations import TAKEN

    named = {name for f in (xr.DataArray.sel, xr.DataArray.isel) for name in inspect.signature(f).parameters}
    assert named - {"self", "indexers_kwargs"} == TAKEN
    assert not TAKEN & set(DIMS)
