"""A study gives the same keys and the same numbers in another store and on other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import workbench
from workbench.study import find_study

from benchmarks.study_again import compare, compute, part

SMALL: dict[str, Any] = {
    "name": "elsewhere",
    "steps": {
        "training": {
            "method": "training.classifier",
            "inputs": {"model": "small-cnn(width=4)", "data": "digits(split=train)[:200]"},
            "parameters": {"epochs": 2},
            "seeds": [0, 1],
        },
        "rounded": {
            "method": "quantization.uniform",
            "inputs": {"model": "${training}", "data": "digits(split=train)[:200]", "test": "digits(split=test)[:100]"},
            "parameters": {"widths": [2, 8], "sharings": ["channel"], "store_width": {"each": [8, 2]}},
        },
        "clean": {
            "method": "training.evaluation",
            "inputs": {"model": "${shipped}", "data": "digits(split=test)[:100]"},
        },
    },
    "choices": {"shipped": {"full precision": "${training}", "rounded": "${rounded}"}},
    "questions": {
        "across": "shipped",
        "baseline": "full precision",
        "metrics": [{"step": "clean", "metric": "accuracy", "label": "accuracy"}],
    },
}


@pytest.fixture
def as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # In a checkout that is edited while this runs, keys of before and after would differ.
    monkeypatch.setattr("workbench.execution.code._folder_digest", lambda folder: "as it is")


def keys(result: Any) -> dict[str, str]:
    return {branch.label: result.run(branch).key for branch in result.plan.branches}


def test_another_store_has_the_same_keys_and_numbers(tmp_path: Path, as_it_is: None):
    first = workbench.open(tmp_path / "mine").study(SMALL, progress=False)
    second = workbench.open(tmp_path / "theirs").study(SMALL, progress=False)
    assert first.counts == second.counts == {"complete": 12}
    assert keys(first) == keys(second)
    assert len(set(keys(first).values())) == 12
    pd.testing.assert_frame_equal(first.report().frame(), second.report().frame())
    assert first.report().conclusions == second.report().conclusions


def test_workers_compute_the_same_study(tmp_path: Path, client: Any):
    """The very description, with a client: the same keys, the same numbers, and nothing is left to do inline."""
    bench = workbench.open(tmp_path / "store")
    far = bench.on(client).study(SMALL, progress=False)
    assert far.counts == {"complete": 12}
    near = workbench.open(tmp_path / "inline").study(SMALL, progress=False)
    assert keys(far) == keys(near)
    pd.testing.assert_frame_equal(far.report().frame(), near.report().frame(), rtol=1e-5)
    assert find_study(bench, SMALL).counts == {"stored": 12}


@pytest.mark.slow
def test_two_people_get_the_same_of_real_networks(tmp_path: Path, shared_data: Path):
    """ResNet-20 and its 4-bit version on CIFAR-10, two stores, a process for each: the same keys, metrics and arrays."""
    described = part(("uniform", "clean", "compressed", "calibrated", "carried"))
    for step in ("calibrated", "carried"):
        described["steps"][step]["method"] = ["calibration.temperature", "calibration.spline"]
    described["steps"]["calibrated"]["seeds"] = [0, 1]
    stores = [tmp_path / "mine", tmp_path / "theirs"]
    for store in stores:
        compute(described, store, shared_data)
    found = compare(*(workbench.open(store) for store in stores))
    assert found.runs == 1 + 2 * (2 + 2 * 2 + 2)
    assert found.exact > 10 * found.runs
    assert (found.unknown, found.differing) == ([], {})
