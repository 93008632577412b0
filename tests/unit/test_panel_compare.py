"""Runs side by side: differences and their direction, means over seeds, names that tell runs apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
import workbench
import xarray as xr
from workbench.panels.compare import Difference, Found, Measured, by_run, by_seed, difference, labels, metrics_table

from unit.panel_cases import HOSTILE, bench_over, pictures, put_run
from unit.test_panel_run import everything, markup, tab_of, text


@pytest.fixture
def bench(tmp_path: Path) -> workbench.Workbench:
    return bench_over(tmp_path)


def three(bench: workbench.Workbench, **changes: Any) -> list[workbench.Run]:
    return [
        put_run(
            bench,
            {
                "restored": (("sample", "channel", "y", "x"), pictures(seed=index)),
                "series/step": (("step",), np.arange(10)),
                "series/loss": (("step",), np.linspace(1, index, 10)),
            },
            metrics={"psnr": 20.0 + index, "error": 0.3 - 0.1 * index},
            directions={"error": "lower"},
            params={"strength": float(index), "mode": "same"},
            **changes,
        )
        for index in range(3)
    ]


@pytest.mark.parametrize(
    ("direction", "other", "expected"),
    [
        ("higher", Found(2.0), Difference(1.0, "better")),
        ("lower", Found(2.0), Difference(1.0, "worse")),
        ("lower", Found(0.5), Difference(-0.5, "better")),
        ("neutral", Found(2.0), Difference(1.0, "other")),
        ("higher", Found(1.0), Difference(0.0, "same")),
        ("higher", Found(2.0, 1.4, 2.6), Difference(1.0, "unclear")),  # meets 0.5 to 1.5
        ("higher", Found(2.0, 1.6, 2.4), Difference(1.0, "better")),
        ("higher", None, None),
        ("higher", Found(float("nan")), None),
    ],
)
def test_a_difference_has_a_size_and_a_verdict(direction, other, expected):
    metric = Measured("m", "", direction, (Found(1.0, 0.5, 1.5), other))
    assert difference(metric, 1, 0) == expected
    assert difference(metric, 0, 0) is None


def test_verdicts_do_not_hang_on_colour():
    table = metrics_table([Measured("psnr", "dB", "higher", (Found(1.0), Found(2.0), Found(0.5)))], ["a", "b", "c"], 0)
    words = re.sub(r"<[^>]+>", " ", table)
    assert "▲ +1.000 better" in words
    assert "▼ −0.5000 worse" in words
    assert "a (baseline)" in words


def test_runs_are_named_by_what_they_do_not_share(bench):
    runs = three(bench)
    assert labels(runs) == ["strength 0.0", "strength 1.0", "strength 2.0"]
    assert labels([runs[0], put_run(bench, {}, params={"strength": 0.0, "mode": "same"}, seed=4)]) == [
        "seed 0",
        "seed 4",
    ]
    twice = [put_run(bench, {}), put_run(bench, {})]
    assert labels(twice) == [run.id for run in twice], "nothing tells them apart"
    assert len(set(labels([runs[0], runs[1], runs[1]]))) == 3 - 1


def test_metrics_of_runs_and_means_over_seeds(bench):
    values = {0: [20.0, 21.0, 22.5], 1: [25.0, 25.5, 26.0]}
    runs = [
        put_run(bench, {}, metrics={"psnr": value}, params={"strength": strength}, seed=seed)
        for strength, found in values.items()
        for seed, value in enumerate(found)
    ]
    (single,) = by_run(bench.compare(runs))
    assert [found.value for found in single.found] == [*values[0], *values[1]]
    (grouped,) = by_seed(bench.aggregate(runs))
    assert [found.value for found in grouped.found] == pytest.approx([np.mean(found) for found in values.values()])
    assert [found.count for found in grouped.found] == [3, 3]
    panel = bench.compare(runs).panel()
    toggle = next(item for item in everything(panel.widget) if isinstance(item, ipywidgets.ToggleButtons))
    assert toggle.value == "mean over seeds"
    assert "3 seeds" in text([panel.widget])
    toggle.value = "each run"
    assert "3 seeds" not in text([panel.widget])


def test_the_baseline_can_be_chosen(bench):
    panel = bench.compare(three(bench)).panel()
    base = next(item for item in everything(panel.widget) if isinstance(item, ipywidgets.Dropdown))
    assert "▲ +2.000 better" in text([panel.widget])
    base.value = 2
    assert "strength 2.0 (baseline)" in text([panel.widget])
    assert "▼ −2.000 worse" in text([panel.widget])


def test_curves_lie_on_top_of_each_other_and_pictures_side_by_side(bench):
    panel = bench.compare(three(bench)).panel()
    tab = tab_of(panel.widget)
    tab.selected_index = 1
    (curves,) = tab.children[1].children
    assert [curve["name"] for curve in curves.charts[0]["curves"]] == ["strength 0.0", "strength 1.0", "strength 2.0"]
    tab.selected_index = 2
    explorer = next(item for item in everything(tab.children[2]) if type(item).__name__ == "ExplorerWidget")
    assert explorer.spec["view"]["facet"] == "run"
    tab.selected_index = 3
    shown = text(list(tab.children[3].children))
    assert "strength" in shown
    assert "mode" not in shown


def test_a_comparison_is_a_dataset(bench):
    runs = three(bench)
    compared = bench.compare(runs, variables=["restored"])
    assert isinstance(compared, xr.Dataset)
    assert compared["psnr"].values.tolist() == [20, 21, 22]
    assert compared["restored"].sizes["run"] == 3
    assert compared.panel().runs == tuple(runs)
    with pytest.raises(workbench.InputError, match=r"bench\.compare\(runs\)\.panel\(\)"):
        compared.isel(run=[0, 1]).panel()


def test_runs_with_nothing_in_common_have_empty_states(bench):
    one = put_run(bench, {"a": (("x",), np.arange(3))})
    other = put_run(bench, {"b": (("x",), np.arange(3))})
    panel = bench.compare([one, other]).panel()
    tab = tab_of(panel.widget)
    words = []
    for index in range(4):
        tab.selected_index = index
        words.append(text(list(tab.children[index].children)))
    assert "reported a metric" in words[0]
    assert "logged a series" in words[1]
    assert "share no array" in words[2]
    assert "same parameters" in words[3]


def test_text_from_a_store_is_never_markup(bench):
    runs = [
        put_run(bench, {}, metrics={HOSTILE: float(index)}, params={HOSTILE: f"{index}{HOSTILE}"}, user="<b>")
        for index in range(2)
    ]
    panel = bench.compare(runs).panel()
    tab = tab_of(panel.widget)
    for index in range(4):
        tab.selected_index = index
    shown = markup([panel.widget]) + panel._static()
    assert "<script" not in shown
    assert "<img" not in shown
    assert "\u202e" not in shown
