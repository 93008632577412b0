"""What `bench.study` promises: branches fan out and join, only what is missing is computed, failures stay where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import workbench
from pydantic import Field
from workbench import DataRole, Method, Metric, Output, Params, Report
from workbench.errors import InputError
from workbench.study import find_study, read_study, shipped_studies
from workbench.study.plan import make_plan

LOGITS = {"logit": ("sample", "class"), "label": ("sample",)}
OUTPUTS = (
    Output("logit", ("sample", "class"), "float32", "scores"),
    Output("label", ("sample",), "int64", "true class"),
)


def judge(result: Any) -> Report:
    hits = result["logit"].values.argmax(axis=1) == result["label"].values
    metric = Metric(name="accuracy", value=float(hits.mean()), direction="higher", interval=(0.0, 1.0))
    return Report(summary="Judged.", metrics=[metric, Metric(name="cost", value=result.params.cost, direction="lower")])


class Maker(Method):
    """Logits around the label."""

    id = "sample.maker"
    title = "Makes logits"
    inputs: ClassVar = {}
    outputs = OUTPUTS

    class Params(Params):
        """Parameters."""

        noise: float = Field(1.0, ge=0, le=10, description="standard deviation")
        cost: float = Field(1.0, ge=0, le=100, description="price")

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Draw."""
        rng = np.random.default_rng(5)
        label = rng.integers(0, 3, 200)
        logit = 2 * np.eye(3)[label] + params.noise * rng.standard_normal((200, 3)) + out.seed * 0.1
        out.write("label", label)
        out.write("logit", logit.astype(np.float32))

    def report(self, result: Any) -> Report:
        """Accuracy."""
        return judge(result)


class Blur(Method):
    """Noise on stored logits; noise 9 fails."""

    id = "sample.blur"
    title = "Blurs logits"
    inputs: ClassVar = {"data": DataRole("logits", LOGITS), "other": DataRole("more", LOGITS, optional=True)}
    outputs = OUTPUTS

    class Params(Params):
        """Parameters."""

        noise: float = Field(1.0, ge=0, le=10, description="standard deviation")
        cost: float = Field(1.0, ge=0, le=100, description="price")

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Add noise."""
        if params.noise == 9:
            raise ValueError("nine is not for me")
        logit = inputs["data"]["logit"].values
        drawn = np.random.default_rng((7, out.seed)).standard_normal(logit.shape)
        out.write("logit", (logit + params.noise * drawn).astype(np.float32))
        out.write("label", inputs["data"]["label"].values)

    def report(self, result: Any) -> Report:
        """Accuracy."""
        return judge(result)


class Sharpen(Blur):
    """Another method that takes logits."""

    id = "sample.sharpen"
    title = "Sharpens logits"


def description(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": "tiny",
        "steps": {
            "made": {"method": "sample.maker"},
            "blurred": {
                "method": "sample.blur",
                "inputs": {"data": "${made}"},
                "parameters": {"noise": {"each": [0.5, 4.0]}},
            },
            "again": {"method": "sample.blur", "inputs": {"data": "${shipped}"}, "parameters": {"noise": 0.1}},
        },
        "choices": {"shipped": {"plain": "${made}", "blurred": "${blurred}"}},
        "questions": {
            "across": "shipped",
            "baseline": "plain",
            "metrics": [{"step": "again", "metric": "accuracy", "label": "accuracy"}],
        },
    }
    made["steps"] |= changes.pop("steps", {})
    return made | changes


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> workbench.Workbench:
    # In a checkout that is edited while this runs, nothing would be served from the store.
    monkeypatch.setattr("workbench.execution.code._folder_digest", lambda folder: "as it is")
    made = workbench.open(tmp_path / "store")
    for cls in (Maker, Blur, Sharpen):
        made.register(cls)
    return made


def study(bench: workbench.Workbench, **changes: Any) -> Any:
    return bench.study(description(**changes), progress=False)


# --------------------------------------------------------------------------------------------------------- expansion


def test_variants_upstream_fan_out(bench: workbench.Workbench):
    plan = make_plan(read_study(description()), bench.host)
    assert {name: len(branches) for name, branches in plan.steps.items()} == {"made": 1, "blurred": 2, "again": 3}
    assert [branch.label for branch in plan.steps["again"]] == [
        "again (plain)",
        "again (blurred, noise 0.5)",
        "again (blurred, noise 4.0)",
    ]


def test_inputs_join_only_where_they_stem_from_the_same_variants(bench: workbench.Workbench):
    joined = {"method": "sample.blur", "inputs": {"data": "${again}", "other": "${shipped}"}}
    plan = make_plan(read_study(description(steps={"joined": joined})), bench.host)
    assert len(plan.steps["joined"]) == 3  # not the 9 of the product
    for branch in plan.steps["joined"]:
        again, shipped = branch.parents
        assert again.parents == [shipped]


def test_seeds_methods_and_alternatives_multiply(bench: workbench.Workbench):
    wide = {
        "method": "sample.[bs]*",
        "inputs": {"data": {"first": "${made}", "second": "${made.logit}"}},
        "seeds": [0, 1, 2],
    }
    plan = make_plan(read_study(description(steps={"wide": wide})), bench.host)
    assert len(plan.steps["wide"]) == 2 * 2 * 3
    assert {branch.trail["wide.method"] for branch in plan.steps["wide"]} == {"sample.blur", "sample.sharpen"}
    assert {branch.seed for branch in plan.steps["wide"]} == {0, 1, 2}


@pytest.mark.parametrize(
    ("steps", "argument", "said"),
    [
        ({"x": {"method": "sample.blur", "inputs": {"data": "${maed}"}}}, "steps.x.inputs.data", "Did you mean 'made'"),
        ({"x": {"method": "sample.blur", "inputs": {"data": "run ${made}"}}}, "steps.x.inputs.data", "whole reference"),
        ({"x": {"method": "sample.blur", "inputs": {"dta": "${made}"}}}, "steps.x.inputs.dta", "data"),
        ({"x": {"method": "sample.blur"}}, "steps.x.inputs.data", "got nothing"),
        ({"x": {"method": "sample.none"}}, "steps.x.method", "sample.none"),
        ({"x": {"method": "none.*"}}, "steps.x.method", "none.*"),
        ({"x": {"method": "sample.maker", "parameters": {"noise": 99}}}, "steps.x.parameters.noise", "99"),
        ({"x": {"method": "sample.maker", "parameters": {"nois": 1}}}, "steps.x.parameters.nois", "noise"),
        ({"x": {"method": "sample.maker", "parameters": {"noise": {"each": []}}}}, "steps.x.parameters.noise", "each"),
        ({"x": {"method": "sample.blur", "inputs": {"data": "${x}"}}}, "steps", "x"),
    ],
)
def test_errors_name_the_step_before_anything_begins(
    bench: workbench.Workbench, steps: dict[str, Any], argument: str, said: str
):
    with pytest.raises(InputError, match=r".") as caught:
        study(bench, steps=steps)
    assert caught.value.argument == argument
    assert said in str(caught.value)
    assert not bench.runs()


def test_questions_are_checked_too(bench: workbench.Workbench):
    questions = description()["questions"]
    with pytest.raises(InputError, match=r"questions.across.*Did you mean 'shipped'"):
        study(bench, questions=questions | {"across": "shiped"})
    with pytest.raises(InputError, match=r"questions.cost"):
        study(bench, questions=questions | {"cost": "money"})
    with pytest.raises(InputError, match=r"questions.baseline.*plain"):
        study(bench, questions=questions | {"baseline": "best"})
    with pytest.raises(InputError, match="questions: expected"):
        read_study({name: value for name, value in description().items() if name != "questions"})


def test_a_subject_without_value_must_be_given(bench: workbench.Workbench):
    with pytest.raises(InputError, match=r"subjects.images.*--subject images="):
        study(bench, subjects={"images": None})
    with pytest.raises(InputError, match=r"subjects.other"):
        bench.study(description(), subjects={"other": "digits"})


def test_shipped_studies_can_be_planned(bench: workbench.Workbench):
    assert "ship-small" in shipped_studies()
    for name in shipped_studies():
        described = read_study(name)
        filled = {subject: "digits" for subject, value in described.subjects.items() if value is None}
        assert len(list(make_plan(described.given(filled), bench.host).branches)) > 10


# ----------------------------------------------------------------------------------------------------------- running


def test_runs_feed_each_other_and_nothing_is_computed_twice(bench: workbench.Workbench):
    first = study(bench)
    assert first.counts == {"complete": 6}
    for branch in first.plan.steps["again"]:
        (parent,) = branch.parents
        assert [run.id for run in first.run(branch).inputs["data"]] == [first.run(parent).id]
    assert len(bench.runs("study = tiny")) == 6
    again = study(bench)
    assert again.counts == {"stored": 6}
    assert again.table()["run"].tolist() == first.table()["run"].tolist()


def test_adding_a_method_computes_only_its_branch(bench: workbench.Workbench):
    study(bench)
    sharp = {"method": "sample.sharpen", "inputs": {"data": "${made}"}}
    choices = {"shipped": {**description()["choices"]["shipped"], "sharp": "${sharp}"}}
    result = study(bench, steps={"sharp": sharp}, choices=choices)
    computed = {branch.label for branch in result.plan.branches if result.outcomes[branch.id].status == "complete"}
    assert computed == {"sharp", "again (sharp)"}
    assert result.counts == {"stored": 6, "complete": 2}


def test_a_failing_branch_stops_only_what_takes_its_run(bench: workbench.Workbench):
    steps = {"blurred": {**description()["steps"]["blurred"], "parameters": {"noise": {"each": [0.5, 9.0]}}}}
    result = study(bench, steps=steps)
    assert result.counts == {"complete": 4, "failed": 1, "blocked": 1}
    assert set(result.failures) == {"blurred (noise 9.0)", "again (blurred, noise 9.0)"}
    assert "nine is not for me" in result.failures["blurred (noise 9.0)"]
    assert "blurred (noise 9.0) is failed" in result.failures["again (blurred, noise 9.0)"]
    page = result.report().html()
    assert "nine is not for me" in page
    assert np.isnan(result.dataset()["value"].sel(variant="blurred, noise 9.0")).all()


def test_what_is_in_the_store_is_found_without_computing(bench: workbench.Workbench):
    missing = find_study(bench, description())
    assert missing.counts == {"missing": 6}
    with pytest.raises(InputError, match="study status"):
        missing.report().html()
    first = study(bench)
    found = find_study(bench, description())
    assert found.table()["run"].tolist() == first.table()["run"].tolist()
    more = description(steps={"more": {"method": "sample.sharpen", "inputs": {"data": "${made}"}}})
    assert find_study(bench, more).counts == {"stored": 6, "missing": 1}


# ------------------------------------------------------------------------------------------------------------ report


def test_the_matrix_compares_variants_on_the_same_samples(bench: workbench.Workbench):
    result = study(bench)
    matrix = result.dataset()
    assert matrix["variant"].values.tolist() == ["plain", "blurred, noise 0.5", "blurred, noise 4.0"]
    for branch, value in zip(result.plan.steps["again"], matrix["value"].sel(metric="accuracy").values, strict=True):
        assert value == result.run(branch).metrics["accuracy"]
    assert matrix["basis"].values[1:, 0].tolist() == ["paired bootstrap"] * 2
    assert matrix["differs"].values[:, 0].tolist()[-1]
    assert "worse than plain" in result.report().conclusions


def test_repetitions_are_one_row_with_an_interval(bench: workbench.Workbench):
    base = description()["steps"]
    result = study(bench, steps={"again": base["again"] | {"seeds": [0, 1, 2], "parameters": {"noise": 1.0}}})
    matrix = result.matrix
    assert len(matrix.rows) == 3
    assert [len(matrix.cells[row, 0].values) for row in range(3)] == [3, 3, 3]
    assert matrix.cells[2, 0].basis == "paired bootstrap and repetitions"


def test_the_report_escapes_what_the_description_says(bench: workbench.Workbench, tmp_path: Path):
    choices = {"shipped": {"plain": "${made}", "50 % & <b>": "${blurred}"}}
    result = study(bench, title="<script>alert(1)</script>", choices=choices)
    report = result.report()
    page = report.save(tmp_path / "page.html", runs=True).read_text()
    assert "<script>" not in page
    assert "&lt;b&gt;" in page
    linked = [run for runs in result.runs.values() for run in runs]
    assert all(f'href="page-runs/{run.id}.html"' in page for run in linked)
    assert all((tmp_path / "page-runs" / f"{run.id}.html").exists() for run in linked)
    assert r"50 \% \& <b>" in report.latex()
    assert len(report.csv().splitlines()) == 1 + 3
    assert "How the runs feed each other" in report._repr_html_()
