"""The form of a method: fields, checking while one types, the same as code; and the panel of plugins."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import workbench
from pydantic import Field as ParamField
from pydantic import model_validator
from workbench import DataRole, Metric, Output, Params, Report
from workbench.host import Host, PluginStatus
from workbench.panels.launch import LaunchPanel
from workbench.panels.launch_form import as_code, check, fields, read, spell
from workbench.panels.plugins import PluginsPanel, facts

from unit.panel_cases import HOSTILE
from unit.sample_methods import MeanImage
from unit.test_panel_run import text


class Choosy(workbench.Method):
    """Parameters of every kind."""

    id = "sample.choosy"
    title = "Parameters of every kind"
    inputs: ClassVar = {}
    outputs = (Output("value", ("step",), "float32", "numbers"),)

    class Params(Params):
        """Parameters."""

        bits: tuple[int, ...] = ParamField((2, 4, 8), min_length=1, description="candidate widths")
        rate: float = ParamField(0.1, gt=0, lt=1, description="a rate")
        budget: float | None = ParamField(None, ge=0, description="a budget")
        mode: Literal["fast", "exact"] = ParamField("fast", description="how")
        width: int | Literal["weight"] = ParamField(32, description="bits, or as the weights")
        deep: bool = ParamField(False, description="all layers")
        name: str = ParamField("plain", description="a text")
        table: dict[str, tuple[float, ...]] | None = ParamField(None, description="numbers by layer")

        @model_validator(mode="after")
        def _both(self) -> Any:
            if self.mode == "exact" and self.budget is None:
                raise ValueError("exact needs a budget")
            return self

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Count."""
        out.write("value", np.arange(3, dtype=np.float32))

    def report(self, result: Any) -> Report:
        """Nothing."""
        return Report(summary="Counted.")


class Slow(workbench.Method):
    """Goes on until it is told to stop."""

    id = "sample.slow"
    title = "Goes on"
    inputs: ClassVar = {}
    outputs = (Output("value", ("step",), "float32", "numbers"),)
    go_on: ClassVar[threading.Event] = threading.Event()

    class Params(Params):
        """Parameters."""

        steps: int = ParamField(1000, ge=1, description="how many")

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Wait."""
        for step in range(params.steps):
            out.log(step, loss=1.0 / (step + 1))
            out.progress(step, params.steps, f"step {step}")
            if self.go_on.wait(0.01):
                break
        out.write("value", np.zeros(3, np.float32))

    def report(self, result: Any) -> Report:
        """Nothing."""
        return Report(summary="Waited.", metrics=[Metric(name="m", value=1.0)])


def texts(method: Any, **changes: str) -> dict[str, str]:
    return {field.name: field.value for field in fields(method, {}, {})} | changes


# --------------------------------------------------------------------------------------------------------------- fields


def test_fields_say_what_a_parameter_may_be():
    found = {field.name: field for field in fields(Choosy, {}, {})}
    assert (found["rate"].kind, found["rate"].range, found["rate"].default) == ("number", "> 0, < 1", "0.1")
    assert (found["mode"].kind, found["mode"].choices, found["mode"].value) == ("choice", ("fast", "exact"), "fast")
    assert (found["bits"].kind, found["bits"].value) == ("list", "2, 4, 8")
    assert (found["budget"].kind, found["budget"].value, found["budget"].range) == ("text", "none", "≥ 0")
    assert (found["deep"].kind, found["deep"].value) == ("flag", "false")
    assert found["width"].type == "integer or choice"
    assert found["rate"].help == "a rate"
    assert [found[name].group for name in ("seed", "device", "precision", "study", "force")] == ["run"] * 5


def test_roles_are_fields_with_what_could_fill_them():
    found = {field.name: field for field in fields(MeanImage, {"data": np.zeros(3)}, {"data": ["digits", "run:abc"]})}
    assert found["data"].choices == ("digits", "run:abc")
    assert found["data"].given == "ndarray of the notebook"
    assert found["data"].required
    assert "image (sample, channel, y, x)" in found["data"].help


def test_every_method_has_a_form_whose_defaults_are_right():
    """What stands in a fresh form is what `Params` would have taken."""
    host = Host()
    for method_id in host.methods:
        method = host.method(method_id)
        checked = check(method, {field.name: field.value for field in fields(method, {}, {})}, {})
        wrong = {name: text for name, text in checked.errors.items() if name not in method.inputs}
        required = {name for name, info in method.Params.model_fields.items() if info.is_required()}
        assert set(wrong) <= required, (method_id, wrong)
        assert not checked.arguments, (method_id, checked.arguments)


@pytest.mark.parametrize(
    "value",
    [
        3,
        0.25,
        None,
        True,
        "word",
        (2, 4),
        [0.5],
        (),
        [["a", "b"], ["c"]],
        {"a": [1.0]},
        ("a,b", "c"),
        ("conv1", "conv2"),
    ],
)
def test_what_is_spelled_is_read_back(value):
    expected = list(value) if isinstance(value, tuple) else value
    got = read(spell(value))
    assert got == expected or [got] == expected  # a list of one stands without a comma


# ------------------------------------------------------------------------------------------------------------ checking


@pytest.mark.parametrize(
    ("name", "typed", "part"),
    [
        ("rate", "2", "less than 1"),
        ("rate", "fast", "valid number"),
        ("bits", "2, x", "valid integer"),
        ("bits", "[]", "at least 1 item"),
        ("mode", "slow", "'fast' or 'exact'"),
        ("budget", "-1", "greater than or equal to 0"),
        ("seed", "-1", "whole number"),
        ("precision", "float8", "one of"),
    ],
)
def test_what_is_wrong_stands_beside_its_field(name, typed, part):
    checked = check(Choosy, texts(Choosy, **{name: typed}), {})
    assert list(checked.errors) == [name]
    assert part in checked.errors[name]


def test_several_wrong_fields_are_told_at_once_and_rules_over_fields_too():
    assert set(check(Choosy, texts(Choosy, rate="2", bits="x"), {}).errors) == {"rate", "bits"}
    assert check(Choosy, texts(Choosy, mode="exact"), {}).errors == {"": "exact needs a budget"}
    assert check(MeanImage, texts(MeanImage, data=" "), {}).errors == {"data": "needed: data by name, path or run:ID"}


def test_only_what_differs_from_the_defaults_is_passed_on():
    typed = {
        "bits": "2,4",
        "budget": "1.5",
        "deep": "true",
        "name": "12",
        "width": "weight",
        "seed": "3",
        "study": "ship",
    }
    arguments = check(Choosy, texts(Choosy, table="{'a': [1, 2]}", rate=" 0.1 ", **typed), {}).arguments
    expected = {
        "bits": [2, 4],
        "budget": 1.5,
        "deep": True,
        "name": "12",
        "width": "weight",
        "seed": 3,
        "study": "ship",
    }
    assert arguments == expected | {"table": {"a": [1, 2]}}


def test_the_code_is_what_is_submitted(bench: workbench.Workbench):
    bench.register(Choosy)
    asked: dict[str, Any] = {}

    class Recorder:
        def run(self, method: str, **arguments: Any) -> None:
            asked.update(method=method, **arguments)

    panel = bench.launch("sample.choosy", bits=(2,), rate=0.5)
    panel.texts["seed"] = "7"
    checked = panel.checked()
    exec(panel.code(checked), {"bench": Recorder()})
    assert asked == {"method": "sample.choosy", **checked.arguments}
    assert checked.arguments == {"bits": [2], "rate": 0.5, "seed": 7}
    assert "data=...,  # ndarray of the notebook" in as_code("m", {"data": 1}, {"data": "ndarray of the notebook"})


def test_an_argument_that_the_method_lacks_is_refused(bench: workbench.Workbench):
    with pytest.raises(workbench.InputError, match=r"role or parameter of sample\.mean_image"):
        bench.launch("sample.mean_image", scal=2)
    with pytest.raises(workbench.WorkbenchError, match="mean_image"):
        bench.launch("sample.mean_imag")


# ------------------------------------------------------------------------------------------------------------- running


def ended(panel: LaunchPanel, seconds: float = 300.0) -> dict[str, Any]:
    """The panel's state once its run is over."""
    assert panel._starting.acquire(timeout=seconds)
    panel._starting.release()
    return dict(panel._form.state)


def test_a_run_from_the_form_is_the_run_from_code(bench: workbench.Workbench, images: np.ndarray):
    panel = bench.launch("sample.mean_image", data=images, scale=2.0)
    assert panel.widget
    panel._form._handle_custom_msg({"type": "run", "texts": {"mode": "median", "nonsense": "x"}}, [])
    assert ended(panel)["status"] == "complete"
    assert panel.run is not None
    same = bench.run("sample.mean_image", data=images, scale=2.0, mode="median")
    assert same.id == panel.run.id
    assert "An average." in text(list(panel._ended.children))
    assert panel._curves.charts[0]["curves"][0]["y"] == [0.5, 0.25]


def test_checking_while_typing(bench: workbench.Workbench, images: np.ndarray):
    panel = bench.launch("sample.mean_image", data=images)
    assert panel.widget
    panel._form._handle_custom_msg({"type": "changed", "texts": {"scale": "99"}, "seq": 5}, [])
    assert panel._form.state["seq"] == 5
    assert "less than or equal to 10" in panel._form.state["errors"]["scale"]
    panel._form._handle_custom_msg({"type": "changed", "texts": {"scale": "9"}, "seq": 6}, [])
    assert panel._form.state["errors"] == {}
    assert "scale=9," in panel._form.state["code"]


def test_a_subject_that_does_not_fit_is_told_beside_its_field(bench: workbench.Workbench):
    panel = bench.launch("sample.mean_image", data="no-such-data")
    assert panel.widget
    panel._form._handle_custom_msg({"type": "run", "texts": {}}, [])
    state = ended(panel)
    assert state["status"] == "idle"
    assert "no-such-data" in state["errors"]["data"]


def test_the_kernel_is_free_and_cancel_stops_the_run(bench: workbench.Workbench):
    bench.register(Slow)
    Slow.go_on.clear()
    panel = bench.launch("sample.slow", steps=100_000)
    assert panel.widget
    panel._form._handle_custom_msg({"type": "run", "texts": {}}, [])  # returns at once
    deadline = time.monotonic() + 300
    while panel.handle is None or panel.handle.progress.step is None:
        assert time.monotonic() < deadline, "no progress arrived"
        time.sleep(0.01)
    panel._form._handle_custom_msg({"type": "cancel"}, [])
    state = ended(panel)
    assert (state["status"], state["trouble"]) == ("cancelled", "")
    assert panel.handle.status == "cancelled"
    assert "cancelled" in text([panel._progress]) or "step" in text([panel._progress])


def test_how_a_run_ended_is_shown_though_somebody_cancels_or_types_at_that_moment(bench: workbench.Workbench):
    """The page is told by the thread that follows the run and by whoever answers it: the end has the last word."""
    bench.register(Slow)
    Slow.go_on.set()
    panel = bench.launch("sample.slow", steps=1)
    assert panel.widget
    panel._form._handle_custom_msg({"type": "run", "texts": {}}, [])
    assert ended(panel)["status"] == "complete"
    panel._form._handle_custom_msg({"type": "cancel"}, [])  # sent before the page knew
    assert panel._form.state["status"] == "complete"

    Slow.go_on.clear()
    panel = bench.launch("sample.slow", steps=100_000, seed=1)
    assert panel.widget
    panel._form._handle_custom_msg({"type": "run", "texts": {}}, [])
    deadline = time.monotonic() + 300
    while panel.handle is None or not panel._followed:
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.01)
    cancel = panel.handle.cancel

    def cancelled_at_once() -> None:
        cancel()
        ended(panel)

    panel.handle.cancel = cancelled_at_once  # type: ignore[method-assign]
    panel._form._handle_custom_msg({"type": "cancel"}, [])
    assert panel._form.state["status"] == "cancelled"


def test_a_run_on_workers_is_followed_and_cancelled_from_the_panel(
    bench: workbench.Workbench, client: Any, tmp_path: Path
):
    from unit.cluster_cases import Patient

    panel = bench.on(client).launch(Patient, folder=str(tmp_path))
    assert panel.widget
    assert client.dashboard_link in text([panel.widget])
    panel._form._handle_custom_msg({"type": "run", "texts": {}}, [])
    deadline = time.monotonic() + 300
    while panel.handle is None or panel.handle.progress.step is None or panel._form.state["status"] != "running":
        assert time.monotonic() < deadline, "no progress arrived"
        time.sleep(0.01)
    panel._form._handle_custom_msg({"type": "cancel"}, [])
    assert ended(panel)["status"] == "cancelled"
    assert [run.status for run in bench.runs()] == ["cancelled"]


def test_a_failure_is_told_in_the_panel(bench: workbench.Workbench):
    panel = bench.launch("sample.failing")
    assert panel.widget
    panel._form._handle_custom_msg({"type": "run", "texts": {}}, [])
    state = ended(panel)
    assert state["status"] == "failed"
    assert state["trouble"]


# ------------------------------------------------------------------------------------------------------------- plugins


def test_the_plugins_panel_says_what_there_is_and_why_something_is_not(bench: workbench.Workbench):
    host = bench.host
    host._statuses["broken"] = PluginStatus(
        "broken", "broken", "broken-dist", "1.0", "failed", f"import failed: {HOSTILE}", HOSTILE
    )

    class Needy(Choosy):
        id = "sample.needy"
        requires: ClassVar = {"a_package_that_nobody_has": "extra"}

    host.register(Needy)
    panel = bench.plugins()
    assert isinstance(panel, PluginsPanel)
    assert panel.widget
    panel.wait(300)
    shown = text([panel.widget])
    assert "import failed" in shown
    assert "not available" in shown
    assert "vision-workbench[extra]" in shown
    for method_id in host.methods:
        assert method_id in shown
    html = " ".join(str(box.children[0].value) for box in panel.widget.children[3:]) + panel._static()
    assert "<script" not in html
    assert [status.name for status in bench.plugins] == [status.name for status in host.plugins]
    assert "broken" in bench.plugins._repr_html_()


def test_facts_need_no_import_until_they_are_asked_for():
    host = Host()
    listed = facts(host, "quantization.hawq", load=False)
    assert (listed.read, listed.version, listed.paper) == (False, "", "")
    read_now = facts(host, "quantization.hawq", load=True)
    assert "1905.03696" in read_now.paper
    assert read_now.title == listed.title


def test_a_role_that_takes_data_is_offered_runs_that_have_it(bench: workbench.Workbench, images: np.ndarray):
    class Makes(workbench.Method):
        id = "sample.makes"
        title = "Makes images"
        inputs: ClassVar = {"data": DataRole("images", {"image": ("sample", "channel", "y", "x")})}
        outputs = (Output("image", ("sample", "channel", "y", "x"), "float32", "images"),)

        def run(self, inputs: Any, params: Any, out: Any) -> None:
            out.write("image", inputs["data"]["image"].values)

        def report(self, result: Any) -> Report:
            return Report(summary="Copied.")

    bench.register(Makes)
    run = bench.run("sample.makes", data=images)
    offered = next(field for field in bench.launch("sample.mean_image").fields if field.name == "data").choices
    assert offered[0] == f"run:{run.id}"
    assert "digits" in offered
