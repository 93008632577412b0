"""The kit finds what it promises to find: one method that keeps every rule, and for each rule one that breaks it alone."""

from __future__ import annotations

import inspect
import os
import threading
from pathlib import Path
from typing import Literal

import pydantic
import pytest
import torch
import xarray as xr
from pydantic import Field
from workbench import (
    DataRole,
    Method,
    MethodReference,
    ModelRole,
    Output,
    Paper,
)
from workbench import Params as BaseParams
from workbench.schema import VARIABLES
from workbench.subjects import check_dataset
from workbench.testing import RULES, MethodContract, check_declarations, check_method, sample_dataset, sample_inputs
from workbench.testing.behaviour import BEHAVIOUR
from workbench.testing.watch import watching

from unit import test_conformance_behaviour as behaviour
from unit.conformance_cases import PICTURE, Brightness, broken


def test_a_method_that_keeps_the_rules_has_no_findings():
    reference = MethodReference("sample.brightness", "unit.conformance_cases:Brightness", "How bright the pictures are")
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


def test_what_other_threads_do_is_no_finding_and_what_new_ones_do_is(tmp_path):
    begin, done = threading.Event(), threading.Event()

    def write(name: str) -> None:
        (tmp_path / name).write_text("x")

    def wait_and_write() -> None:
        begin.wait(300)
        write("others.txt")
        done.set()

    before = threading.Thread(target=wait_and_write)
    before.start()
    with watching() as seen:
        begin.set()
        assert done.wait(300)
        before.join()  # so that its `ident` is free for the next one
        own = threading.Thread(target=write, args=("own.txt",))
        own.start()
        own.join()
    assert seen.files == [f"write {tmp_path / 'own.txt'}"]


def test_the_contract_fails_in_pytest_with_rule_and_mend(tmp_path):
    import subprocess
    import sys

    (tmp_path / "test_broken.py").write_text(
        "import sys\nsys.path.insert(0, " + repr(str(Path(__file__).parents[1])) + ")\n"
        "from unit.conformance_cases import Brightness, then\nfrom workbench.testing import MethodContract\n\n\n"
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
    tables = (test_declarations_that_break_a_rule, behaviour.test_behaviour_that_breaks_a_rule)
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
