"""Bad input on the command line: one clear line on stderr, the promised exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

DIGITS = "digits[:12]"


def refused(outcome, code: int, *parts: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert [part for part in parts if part not in outcome.err] == [], outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 or outcome.err.startswith("Usage:")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        pytest.param(["run", "quantization.hawk"], ["unknown method 'quantization.hawk'", "quantization.hawq"], id="method"),
        pytest.param(["describe", "temperature"], ["calibration.temperature"], id="method without its family"),
        pytest.param(["describe", "xyzzy"], ["unknown method 'xyzzy'. See `workbench list`."], id="nothing like it"),
        pytest.param(["run", "sample.mean_image", "-d", DIGITS, "scael=2"], ["scael", "scale"], id="parameter"),
        pytest.param(["run", "sample.mean_image", "-d", DIGITS, "scale=11"], ["scale", "10", "11"], id="range"),
        pytest.param(["run", "sample.mean_image", "-d", DIGITS, "scale=two"], ["scale", "number", "two"], id="type"),
        pytest.param(["run", "sample.mean_image", "-d", DIGITS, "mode=mode"], ["mode", "mean", "median"], id="choice"),
        pytest.param(["run", "sample.echo", "widths=4"], ["widths", "got 4", "command line widths=4,"], id="list of one"),
        pytest.param(["run", "sample.mean_image"], ["data", "image"], id="role missing"),
        pytest.param(["run", "sample.scores", "-d", DIGITS], ["model"], id="model missing"),
        pytest.param(["run", "sample.mean_image", "-d", "digts"], ["digts", "Did you mean 'digits'"], id="data"),
        pytest.param(["run", "sample.mean_image", "-d", "no/such/folder"], ["no/such/folder"], id="path"),
        pytest.param(["run", "sample.mean_image", "-d", "digits[:"], ["data"], id="slice"),
        pytest.param(["run", "sample.scores", "-d", DIGITS, "-m", "smal-cnn"], ["Did you mean 'small-cnn'"], id="model"),
        pytest.param(["run", "sample.scores", "-d", DIGITS, "-m", "run:1999"], ["1999"], id="run as model"),
        pytest.param(["run", "sample.mean_image", "-d", DIGITS, f"data={DIGITS}"], ["--data and data="], id="role twice"),
        pytest.param(["run", "sample.mean_image", "scale=1", "scale=2"], ["scale", "one value"], id="parameter twice"),
        pytest.param(["run", "sample.mean_image", "seed=1"], ["the option --seed"], id="option as parameter"),
        pytest.param(["run", "sample.mean_image", "2,4"], ["NAME=VALUE", "2,4"], id="no name"),
        pytest.param(["run", "sample.random_numbers", "--precision", "float8"], ["precision", "bfloat16"], id="precision"),
        pytest.param(["run", "sample.random_numbers", "--device", "abacus"], ["device", "abacus"], id="device"),
        pytest.param(["run", "sample.random_numbers", "--seed", "-1"], ["--seed"], id="seed"),
        pytest.param(["runs", "--where", "accuracy >"], ["where", "accuracy >", "column"], id="query"),
        pytest.param(["runs", "--where", "rm -rf"], ["where"], id="no query at all"),
        pytest.param(["runs", "--limit", "0"], ["--limit"], id="limit"),
        pytest.param(["show", "latest"], ["no runs yet"], id="empty store"),
        pytest.param(["show", "2026"], ["2026", "no run matches"], id="run"),
        pytest.param(["shw"], ["Did you mean 'show'?"], id="command"),
        pytest.param(["report", "latest"], ["-o"], id="option missing"),
        pytest.param(["completion", "tcsh"], ["bash", "zsh", "fish"], id="shell"),
    ],
)  # fmt: skip
def test_bad_words_exit_with_2_and_name_what_would_be_right(workbench_command, samples, words, parts):
    refused(workbench_command(*words), 2, *parts)
    assert not Path("store").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda image, label: {"image": np.where(image > 0.9, np.nan, image), "label": label}, ["data", "finite", "nan"]),
        (lambda image, label: {"image": image, "label": label[:-1]}, ["data"]),
        (lambda image, label: {"picture": image}, ["data", "image"]),
        (lambda image, label: {"image": image[0, 0]}, ["data", "image"]),
        (lambda image, label: {"image": image * 255, "label": label}, ["data", "0..1"]),
    ],
    ids=["NaN", "lengths differ", "no images", "one image", "not in 0..1"],
)
def test_bad_files_exit_with_2(workbench_command, samples, make, parts):
    generator = np.random.default_rng(0)
    image, label = generator.random((12, 1, 8, 8), dtype=np.float32), np.zeros(12, dtype=np.int64)
    np.savez("mine.npz", **make(image, label))
    refused(workbench_command("run", "sample.mean_image", "-d", "mine.npz"), 2, *parts)


def test_pickled_data_are_refused(workbench_command, samples):
    np.savez("mine.npz", image=np.array([{"a": 1}], dtype=object))
    refused(workbench_command("run", "sample.mean_image", "-d", "mine.npz"), 2, "mine.npz")


def test_a_missing_package_or_module_exits_with_3(workbench_command, samples):
    refused(workbench_command("run", "sample.dependent"), 3, "surely_not_installed_anywhere", "exotic")
    refused(workbench_command("describe", "sample.missing"), 3, "sample.missing", "no_such_module")


def test_a_method_that_declines_exits_with_4_and_stores_nothing(workbench_command, samples):
    refused(workbench_command("run", "sample.declining"), 4, "the model has no convolution")
    assert json.loads(workbench_command("runs", "--json").out) == []


def test_a_place_that_is_no_store_exits_with_5(workbench_command, samples):
    Path("notes.txt").write_text("mine")
    refused(workbench_command("--store", "notes.txt/store", "run", "sample.random_numbers"), 5, "notes.txt")
    refused(workbench_command("--store", "notes.txt", "run", "sample.random_numbers"), 5, "notes.txt")
    assert Path("notes.txt").read_text() == "mine"
    Path("damaged").mkdir()
    Path("damaged/workbench.json").write_text("{")
    refused(workbench_command("--store", "damaged", "runs"), 5, "damaged", "workbench.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_without_permission_exits_with_5(workbench_command, samples):
    Path("closed").mkdir(mode=0o500)
    refused(workbench_command("--store", "closed/store", "run", "sample.random_numbers"), 5, "closed", "ermission")


def test_a_store_of_a_newer_format_exits_with_5_and_says_what_to_do(workbench_command, samples):
    Path("store").mkdir()
    marker = json.dumps({"format_version": 2, "created_by": "9.0"})
    Path("store/workbench.json").write_text(marker)
    for words in (["runs"], ["run", "sample.random_numbers"], ["show", "latest"]):
        refused(workbench_command(*words), 5, "format version 2", "9.0", "pip install --upgrade")
    assert [path.name for path in Path("store").iterdir()] == ["workbench.json"]
    assert Path("store/workbench.json").read_text() == marker


def test_a_report_that_cannot_be_written_exits_with_5(workbench_command, samples):
    workbench_command("run", "sample.random_numbers", "--quiet")
    Path("taken").write_text("mine")
    refused(workbench_command("report", "latest", "-o", "taken/report.html"), 5, "taken/report.html")
    refused(workbench_command("demo", "-o", "taken/pages"), 5, "taken")


def test_earlier_runs_survive_whatever_goes_wrong_later(workbench_command, samples):
    kept = workbench_command("run", "sample.mean_image", "-d", DIGITS, "--quiet").out.strip()
    before = workbench_command("show", kept, "--json").out
    for words in (["sample.failing"], ["sample.declining"], ["sample.interrupted"], ["sample.mean_image", "scale=99"]):
        assert workbench_command("run", *words).code in (1, 2, 4, 130)
    assert workbench_command("show", kept, "--json").out == before
    complete = json.loads(workbench_command("runs", "--where", "status = complete", "--json").out)
    assert [row["id"] for row in complete] == [kept]


def test_errors_can_be_seen_whole_when_asked(workbench_command, samples, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DEBUG", "1")
    with pytest.raises(ValueError, match="scale"):
        workbench_command("run", "sample.mean_image", "-d", DIGITS, "scale=99")
