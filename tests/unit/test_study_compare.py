"""What is compared with what: baselines of several groups, repetitions, columns that are left out, numbers beside the matrix."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import workbench
from scipy import stats
from workbench.errors import InputError
from workbench.study import comparing, read_study
from workbench.study.comparing import Cell, Comparisons
from workbench.study.conclusions import conclusions
from workbench.study.plan import make_plan
from workbench.study.samples import Judged
from workbench.study.significance import mean

from unit.test_study import bench, description, study  # noqa: F401  (`bench` is a fixture)


def two_makers(**changes: Any) -> dict[str, Any]:
    """A quiet and a noisy maker, each plain and blurred, and a sharpened version of the quiet one only."""
    steps = {
        "quiet": {"method": "sample.maker", "parameters": {"noise": 0.5, "cost": 3.0}},
        "noisy": {"method": "sample.maker", "parameters": {"noise": 2.0, "cost": 5.0}},
        "blurred": {
            "method": "sample.blur",
            "inputs": {"data": "${maker}"},
            "parameters": {"noise": {"each": [3.0, 0.001]}},
        },
        "sharp": {"method": "sample.sharpen", "inputs": {"data": "${maker[quiet]}"}, "parameters": {"noise": 0.1}},
        "again": {"method": "sample.blur", "inputs": {"data": "${shipped}"}, "parameters": {"noise": 0.1}},
    }
    choices = {
        "maker": {"quiet": "${quiet}", "noisy": "${noisy}"},
        "shipped": {"plain": "${maker}", "changed": ["${blurred}", "${sharp}"]},
    }
    metrics = [{"step": "again", "metric": "accuracy", "label": "accuracy"}]
    questions = {"across": "shipped", "baseline": "plain", "metrics": metrics}
    made: dict[str, Any] = {"name": "two", "steps": steps, "choices": choices, "questions": questions}
    made["questions"] |= changes
    return made


def test_each_variant_is_compared_with_the_baseline_it_shares_everything_else_with(bench: workbench.Workbench):  # noqa: F811
    result = bench.study(two_makers(), progress=False)
    matrix = result.matrix
    labels = [row.label for row in matrix.rows]
    base = {labels[row]: labels[matrix.baselines[row]] for row in range(len(labels))}
    assert {label: base[label].split(", ")[1] for label in base} == {label: label.split(", ")[1] for label in base}
    assert {label for label in labels if base[label] == label} == {"plain, quiet", "plain, noisy"}
    assert len([label for label in labels if label.startswith("changed, quiet")]) == 3  # blurred twice, sharpened once
    for row, label in enumerate(labels):
        if matrix.is_baseline(row):
            continue
        expected = matrix.cells[row, 0].value - matrix.cells[labels.index(base[label]), 0].value
        assert matrix.cells[row, 0].difference == pytest.approx(expected)
    assert matrix.baseline == "plain"
    report = result.report()
    assert "worse than plain" in report.conclusions
    assert report.html().count("(baseline)") == 2
    assert set(result.dataset()["baseline"].values) == {"plain, quiet", "plain, noisy"}


def test_the_cheapest_variant_is_named_for_each_baseline(bench: workbench.Workbench):  # noqa: F811
    metrics = [
        {"step": "shipped", "metric": "cost", "label": "price"},
        {"step": "again", "metric": "accuracy", "label": "accuracy"},
    ]
    said = bench.study(two_makers(metrics=metrics, cost="price"), progress=False).report().conclusions
    # Blurring by next to nothing costs 1 and loses nothing; blurring by 3 is worse.
    for maker, price in (("quiet", "3.000"), ("noisy", "5.000")):
        assert f"compared with plain, {maker} is changed, {maker}" in said
        assert f"(price 1.000 against {price})" in said


def test_repetitions_of_a_variant_pair_up_with_a_baseline_that_has_none(bench: workbench.Workbench):  # noqa: F811
    base = description()["steps"]
    seeded = base["blurred"] | {"seeds": [0, 1, 2], "parameters": {"noise": {"each": [0.5, 4.0]}}}
    matrix = study(bench, steps={"blurred": seeded}).matrix
    for row in (1, 2):
        cell = matrix.cells[row, 0]
        assert len(cell.values) == 3
        assert cell.basis == "paired bootstrap and repetitions"
        assert cell.difference == pytest.approx(np.mean(cell.values) - matrix.cells[0, 0].value)
        assert cell.difference_lower < cell.difference < cell.difference_upper
    assert matrix.better(2, 0) is False


def test_seeds_of_two_steps_are_counted_step_by_step(bench: workbench.Workbench):  # noqa: F811
    base = description()["steps"]
    steps = {
        "blurred": base["blurred"] | {"seeds": [0, 1, 2], "parameters": {"noise": {"each": [0.5, 4.0]}}},
        "again": base["again"] | {"seeds": [0, 1], "parameters": {"noise": 0.3}},
    }
    matrix = study(bench, steps=steps).matrix
    cell, base_cell = matrix.cells[2, 0], matrix.cells[0, 0]
    assert (len(cell.values), len(base_cell.values)) == (6, 2)
    values = np.array(cell.values).reshape(3, 2)
    assert [branch.seeds["blurred"] for branch in cell.branches] == [0, 0, 1, 1, 2, 2]
    rows, columns = values.mean(axis=1).var(ddof=1) / 3, values.mean(axis=0).var(ddof=1) / 2
    freedom = (rows + columns) ** 2 / (rows**2 / 2 + columns**2 / 1)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(rows + columns)
    assert (cell.lower, cell.upper) == pytest.approx((values.mean() - half, values.mean() + half))
    assert cell.basis == "paired bootstrap and repetitions"
    assert cell.difference_upper > cell.difference


def test_columns_can_be_chosen_grouped_and_given_a_value_of_each_alternative(bench: workbench.Workbench):  # noqa: F811
    metrics = [
        {"step": "again", "metric": "accuracy", "label": "accuracy", "group": "Quality"},
        {"step": "shipped", "metric": "weight", "label": "weight", "otherwise": {"quiet": 1.5, "noisy": 2.5}, "group": "Size",
         "direction": "lower"},
        {"step": "seen", "metric": "accuracy", "label": "at 0.2", "where": {"seen.noise": 0.2}},
    ]  # fmt: skip
    described = two_makers(metrics=metrics, beside=[{"step": "made", "metric": "accuracy", "label": "made alone"}])
    described["steps"]["seen"] = {
        "method": "sample.blur",
        "inputs": {"data": "${shipped}"},
        "parameters": {"noise": {"each": [0.2, 5.0]}},
    }
    described["steps"]["made"] = {"method": "sample.maker", "seeds": [0, 1]}
    result = bench.study(described, progress=False)
    matrix = result.matrix
    assert [column.label for column in matrix.columns] == ["accuracy", "weight", "at 0.2"]
    for row, label in enumerate(row.label for row in matrix.rows):
        assert matrix.cells[row, 1].value == (1.5 if "quiet" in label else 2.5)
    page = result.report().html()
    assert "<h3>Quality</h3>" in page
    assert "<h3>Size</h3>" in page
    values = [run.metrics["accuracy"] for run in result.runs["made"]]
    assert "made alone" in page.split("Beside the variants")[1]
    assert len(values) == 2
    described["questions"]["metrics"][2]["where"] = {"seen.noise": 0.3}
    with pytest.raises(InputError, match=r"questions.metrics.2.where.*seen.noise: 0.2, 5.0"):
        bench.study(described, progress=False)


def test_repairs_are_counted_against_what_was_before(bench: workbench.Workbench):  # noqa: F811
    metrics = [
        {"step": "shipped", "metric": "accuracy", "label": "before"},
        {"step": "again", "metric": "accuracy", "label": "after", "before": "before"},
    ]
    described = two_makers(metrics=metrics)
    described["steps"]["again"]["method"] = ["sample.blur", "sample.sharpen"]
    described["steps"]["again"]["parameters"] = {"noise": 6.0}
    result = bench.study(described, progress=False)
    before = result.matrix.column(0)
    better = [int((result.matrix.column(number) > before).sum()) for number in (1, 2)]
    assert f"blur in {better[0]} of 7, sharpen in {better[1]} of 7 variants" in result.report().conclusions


def test_a_repair_that_failed_where_errors_are_large_gains_nothing_by_it(bench: workbench.Workbench):  # noqa: F811
    """Medians are over the variants that all repairs were tried on."""
    metrics = [
        {"step": "shipped", "metric": "cost", "label": "before"},
        {"step": "again", "metric": "cost", "label": "after", "before": "before", "direction": "lower"},
    ]
    described = two_makers(metrics=metrics)
    described["steps"]["again"] = {
        "method": ["sample.blur", "sample.sharpen"],
        "inputs": {"data": "${shipped}"},
    }
    matrix = bench.study(described, progress=False).matrix
    # Of the five that both were tried on sharpen's median is lower (1.5 and 2), of what each was tried on it is higher (2.5).
    before, blur = np.array([1, 2, 3, 4, 5, 8, 9.0]), np.array([0, 1, 2, 3, 4, np.nan, np.nan])
    sharpen = np.array([0.5, 1, 1.5, 2.5, 3, 6, 7])
    columns = (before, blur, sharpen)
    cells = {
        (row, column): replace(matrix.cells[row, column], value=float(columns[column][row]))
        for row in range(7)
        for column in range(3)
    }
    said = conclusions(replace(matrix, cells=cells), "")
    assert "its lowest median with sharpen (1.500 against 3.000 before)" in said
    assert "blur in 5 of 5, sharpen in 7 of 7 variants" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [("${maker[none]}", "an alternative of maker"), ("${quiet[plain]}", "no choice"), ("${maker[}", "whole reference")],
)
def test_an_alternative_that_is_not_there_is_named(bench: workbench.Workbench, text: str, said: str):  # noqa: F811
    described = two_makers()
    described["steps"]["sharp"]["inputs"]["data"] = text
    with pytest.raises(InputError, match=said):
        make_plan(read_study(described), bench.host)


@pytest.mark.parametrize(("count", "compared"), [(1, False), (5, False), (6, True)])
def test_a_handful_of_samples_is_not_resampled(monkeypatch: pytest.MonkeyPatch, count: int, compared: bool):
    """All of five samples differ the same way by chance in 1 of 16 cases, and every resample shows the same difference."""

    def of(run: float, branch: Any, metric: str) -> Judged:
        return Judged(mean(np.full(count, run)), np.zeros(count, dtype=np.int64), ("data",))

    monkeypatch.setattr(comparing, "judged", of)
    made = [SimpleNamespace(id=name, seeds={}, right=right) for name, right in (("a", 1.0), ("b", 0.0))]
    result: Any = SimpleNamespace(run=lambda branch: branch.right)
    cells = [Cell(one.right, branches=(one,), values=(one.right,)) for one in made]
    asked: Any = SimpleNamespace(metric="accuracy")
    found = Comparisons(result, 1000)(asked, *cells)
    assert np.isfinite(found.p_value) == compared
    assert found.difference == 1.0
