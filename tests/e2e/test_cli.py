"""The command line: every command does what its help says, prints results to stdout and everything else to stderr."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import workbench
from workbench._version import __version__

from e2e.sample_plugin import HOSTILE

COMMANDS = ("demo", "list", "describe", "run", "runs", "show", "report", "plugins", "completion")
DIGITS = "digits[:12]"
ESCAPES = re.compile(r"\x1b(?!\[[0-9;]*m)")
"""Escape sequences other than those that colour text."""


# ----------------------------------------------------------------------------------------------------------------- help


def test_version(workbench_command):
    assert workbench_command("--version").out == f"workbench, version {__version__}\n"


def test_help_lists_every_command(workbench_command):
    shown = workbench_command("--help")
    assert shown.code == 0
    assert [name for name in COMMANDS if not re.search(rf"^  {name}\s", shown.out, re.MULTILINE)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_its_options(workbench_command, command):
    shown = workbench_command(command, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"Usage: workbench {command}")
    from workbench.cli import cli

    options = [parameter for parameter in cli.commands[command].params if parameter.param_type_name == "option"]
    assert [option.name for option in options if not option.help] == []


# -------------------------------------------------------------------------------------------------------------- methods


def test_list_names_every_method_without_importing_torch(workbench_process, tmp_path):
    script = (
        "import sys; from workbench.cli import main; code = main(['list', '--json']);"
        "heavy = {'torch', 'scipy', 'sklearn', 'skimage', 'matplotlib', 'plotly', 'dask.distributed'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    methods = {entry["id"]: entry["title"] for entry in json.loads(done.stdout)}
    assert set(methods) == set(workbench.open(tmp_path / "store").methods)
    assert all(methods.values())


def test_list_can_be_narrowed_to_a_family(workbench_command):
    shown = workbench_command("list", "--family", "detection")
    assert "detection.logit_scores" in shown.out
    assert "quantization.hawq" not in shown.out
    wrong = workbench_command("list", "--family", "detecton")
    assert wrong.code == 2
    assert "detection" in wrong.err
    assert wrong.out == ""


def test_every_method_can_be_described(workbench_command):
    """Completely: every input, parameter and array with a description."""
    from workbench.host import Host

    host = Host()
    for method_id in host.methods:
        method = host.method(method_id)
        shown = workbench_command("describe", method_id)
        assert (shown.code, shown.err) == (0, ""), method_id
        words = set(re.findall(r"[\w.]+", shown.out))
        expected = {*method.inputs, *method.Params.model_fields, *(output.name for output in method.outputs)}
        assert expected - words == set(), method_id
        assert f"workbench run {method_id}" in shown.out
        if method.paper is not None:
            assert str(method.paper.year) in shown.out


# ----------------------------------------------------------------------------------------------------------------- runs


def test_a_run_is_stored_and_the_same_run_is_served(workbench_command, samples):
    first = workbench_command("run", "sample.mean_image", "--data", DIGITS, "scale=2")
    assert first.code == 0
    assert "An average." in first.out
    assert "brightness" in first.out
    assert " s on cpu" in first.out
    again = workbench_command("run", "sample.mean_image", f"data={DIGITS}", "scale=2.0")
    assert "taken from the store" in again.out
    assert len(json.loads(workbench_command("runs", "--json").out)) == 1
    forced = workbench_command("run", "sample.mean_image", f"data={DIGITS}", "scale=2.0", "--force", "--quiet")
    assert forced.out.strip() not in first.out
    assert re.fullmatch(r"\d{8}-\d{6}-mean-image-[0-9a-f]{8}\n", forced.out), "--quiet prints the id and nothing else"
    assert len(json.loads(workbench_command("runs", "--json").out)) == 2


@pytest.mark.parametrize(
    ("words", "params"),
    [
        (["widths=2,4,8"], {"widths": [2, 4, 8]}),
        (["widths=(3, 5)"], {"widths": [3, 5]}),
        (["widths=[7]"], {"widths": [7]}),
        (["rates=0.5,1e-3"], {"rates": [0.5, 0.001]}),
        (["names=fourier,grey"], {"names": ["fourier", "grey"]}),
        (["names=['a, b', 'c']"], {"names": ["a, b", "c"]}),
        (["flag=true"], {"flag": True}),
        (["flag=False"], {"flag": False}),
        (["limit=none"], {"limit": None}),
        (["limit=2.5"], {"limit": 2.5}),
        (["text=two words"], {"text": "two words"}),
        (["text='4'"], {"text": "4"}),
        (["text=a=b"], {"text": "a=b"}),
        (["text=digits(split=train)[:5]"], {"text": "digits(split=train)[:5]"}),
    ],
)
def test_values_of_parameters(workbench_command, samples, words, params):
    done = workbench_command("run", "sample.echo", *words, "--quiet")
    assert (done.code, done.err) == (0, "")
    record = json.loads(workbench_command("show", "latest", "--json").out)
    assert {name: record["params"][name] for name in params} == params


def test_methods_of_different_families_run_one_after_another(workbench_command):
    """Real methods, as the README shows them: each takes what the one before stored."""
    scored = workbench_command(
        "run", "training.evaluation", "--model", "small-cnn(n_classes=10, width=4)", "--data", "digits[:300]", "--quiet"
    ).out.strip()
    photos = "photos(size=8, count=40, gray=true)"
    foreign = workbench_command("run", "training.evaluation", "-m", f"run:{scored}", "-d", photos, "--quiet")
    assert foreign.code == 2, "an evaluation stores no model"
    assert "a run that stored a model" in foreign.err
    foreign = workbench_command(
        "run", "training.evaluation", "-m", "small-cnn(n_classes=10, width=4)", "-d", photos, "--quiet"
    ).out.strip()
    detected = workbench_command("run", "detection.logit_scores", f"data=run:{scored}", f"ood=run:{foreign}")
    assert detected.code == 0
    assert "AUROC" in detected.out
    calibrated = workbench_command(
        "run", "calibration.temperature", f"data=run:{scored}", "resamples=100", "chance_draws=20"
    )
    assert calibrated.code == 0, calibrated.err
    record = json.loads(workbench_command("show", "temperature", "--json").out)
    assert record["inputs"]["data"]["runs"] == [scored]


def test_seed_precision_and_device_are_recorded(workbench_command, samples):
    done = workbench_command(
        "run", "sample.random_numbers", "--seed", "7", "--precision", "float64", "--device", "cpu", "--quiet"
    )
    assert done.code == 0
    record = json.loads(workbench_command("show", done.out.strip(), "--json").out)
    assert (record["seed"], record["precision"], record["device"]) == (7, "float64", "cpu")


def test_runs_are_found_by_query_and_limit(workbench_command, samples):
    assert "No runs yet" in workbench_command("runs").out
    ids = [
        workbench_command("run", "sample.mean_image", "-d", DIGITS, f"scale={scale}", "--quiet").out.strip()
        for scale in (1, 2, 3)
    ]
    workbench_command("run", "sample.random_numbers", "--quiet")
    listed = json.loads(workbench_command("runs", "--json").out)
    assert [row["id"] for row in listed[1:]] == ids[::-1], "newest first"
    assert {row["status"] for row in listed} == {"complete"}
    brightness = {row["id"]: row["metrics"]["brightness"] for row in listed[1:]}
    assert brightness[ids[2]] == pytest.approx(3 * brightness[ids[0]], rel=1e-5)
    query = (
        f"method = sample.mean_image and params.scale >= 2 and brightness > {brightness[ids[1]] * 0.99} and user = me"
    )
    found = json.loads(workbench_command("runs", "--where", query, "--json").out)
    assert [row["id"] for row in found] == [ids[2], ids[1]]
    limited = workbench_command("runs", "--limit", "2")
    assert "2 of 4 runs" in limited.out
    none = workbench_command("runs", "--where", "status = failed")
    assert none.code == 0
    assert "No runs meet the query" in none.out


def test_show_tells_everything_about_a_run(workbench_command, samples):
    run_id = workbench_command("run", "sample.mean_image", "-d", DIGITS, "scale=2", "--quiet").out.strip()
    shown = workbench_command("show", run_id).out
    for expected in (run_id, "complete", "sample.mean_image", DIGITS, "scale", "brightness", "mean", "float32", "seed"):
        assert expected in shown
    assert workbench_command("show", "latest").out == shown
    assert workbench_command("show", run_id[-8:]).out == shown, "any unambiguous part of an id will do"
    other = workbench_command("run", "sample.mean_image", "-d", DIGITS, "scale=3", "--quiet").out.strip()
    ambiguous = workbench_command("show", "mean-image")
    assert ambiguous.code == 2
    assert run_id in ambiguous.err
    assert other in ambiguous.err


def test_a_failed_run_exits_with_1_and_keeps_its_traceback(workbench_command, samples):
    failed = workbench_command("run", "sample.failing")
    assert failed.code == 1
    assert failed.out == ""
    assert failed.err.startswith("error: sample.failing failed: ValueError: the matrix is singular")
    assert "Traceback" not in failed.err
    shown = workbench_command("show", "latest")
    assert "failed" in shown.out
    assert "Traceback (most recent call last)" in shown.out
    assert 'raise ValueError("the matrix is singular")' in shown.out
    report = workbench_command("report", "latest", "-o", "report.html")
    assert report.code == 2
    assert "is failed and has no report" in report.err
    assert not Path("report.html").exists()


def test_numbers_without_end_are_shown_and_compared(workbench_command, samples):
    ran = workbench_command("run", "sample.unbounded")
    assert (ran.code, ran.err) == (0, "")
    for shown in (ran.out, workbench_command("show", "latest").out):
        assert "2 to inf" in shown
        assert re.search(r"undefined\s+nan", shown)
    compared = workbench.open("store").compare(["latest"])
    assert compared["ratio"].values.tolist() == [float("inf")]
    assert (float(compared["ratio_lower"][0]), float(compared["ratio_upper"][0])) == (2.0, float("inf"))
    assert workbench_command("report", "latest", "-o", "report.html").code == 0


# -------------------------------------------------------------------------------------------------------------- reports


class Page(HTMLParser):
    """Elements of a page, and the addresses it would load something from."""

    VOID = {"meta", "img", "br", "hr", "link", "input", "source", "col", "wbr"}
    LOADING = {
        ("img", "src"),
        ("script", "src"),
        ("link", "href"),
        ("iframe", "src"),
        ("image", "href"),
        ("use", "href"),
    }

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.loaded, self.texts, self.styles = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if (tag, name.removeprefix("xlink:")) in self.LOADING:
                self.loaded.append(value)
            if name == "style":
                self.styles.append(value)
            assert not name.startswith("on"), f"{tag} has a handler {name}"

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] == "style" else self.texts).append(data)


def test_report_is_one_self_contained_page(workbench_command):
    workbench_command(
        "run", "training.evaluation", "-m", "small-cnn(n_classes=10, width=4)", "-d", "digits[:200]", "--quiet"
    )
    written = workbench_command("report", "latest", "-o", "pages/report.html")
    assert (written.code, written.err) == (0, "")
    assert Path(written.out.strip()) == Path("pages/report.html")
    page = Page(Path("pages/report.html").read_text(encoding="utf-8"))
    assert page.tags[0] == "html"
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "svg" in page.tags, "figures are drawn"
    assert [address for address in page.loaded if not re.match(r"data:image/(png|svg)|#", address)] == []
    assert re.findall(r"url\((?!['\"]?(?:#|data:))|@import", " ".join(page.styles)) == []
    text = " ".join(page.texts)
    assert "accuracy" in text
    assert "digits[:200]" in text
    assert "workbench.open(" in text


# ---------------------------------------------------------------------------------------------------------- other things


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(workbench_command, shell):
    script = workbench_command("completion", shell)
    assert (script.code, script.err) == (0, "")
    assert "_WORKBENCH_COMPLETE" in script.out
    assert f"{shell}_complete" in script.out


def test_completion_knows_commands_methods_and_runs(workbench_command, samples, monkeypatch, capsys):
    run_id = workbench_command("run", "sample.random_numbers", "--quiet").out.strip()

    def completed(words: str) -> list[str]:
        monkeypatch.setenv("_WORKBENCH_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
        with pytest.raises(SystemExit) as stop:
            workbench_command()
        assert stop.value.code == 0
        return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines()]

    assert completed("workbench des") == ["describe"]
    assert "quantization.hawq" in completed("workbench describe quan")
    assert completed("workbench show 2") == [run_id]


def test_completion_answers_a_shell(workbench_process):
    words = {"COMP_WORDS": "workbench run calibration.temp", "COMP_CWORD": "2"}
    assert workbench_process(_WORKBENCH_COMPLETE="bash_complete", **words).out == "plain,calibration.temperature\n"


def test_the_store_is_chosen_by_option_then_variable_then_folder(workbench_command, samples, tmp_path, monkeypatch):
    def count(*options: str) -> int:
        return len(json.loads(workbench_command(*options, "runs", "--json").out))

    workbench_command("run", "sample.random_numbers", "--quiet")
    assert Path("store/workbench.json").is_file()
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "team"))
    assert count() == 0
    workbench_command("run", "sample.random_numbers", "--seed", "1", "--quiet")
    workbench_command("run", "sample.random_numbers", "--seed", "2", "--quiet")
    assert count() == 2
    assert count("--store", "store") == 1


def test_looking_creates_no_store(workbench_command, samples):
    for words in (["runs"], ["list"], ["plugins"], ["show", "latest"]):
        workbench_command(*words)
    assert list(Path().iterdir()) == []


def test_streams_are_separate_and_progress_bars_stay_out_of_files(workbench_process, samples):
    done = workbench_process("run", "sample.mean_image", "-d", DIGITS)
    assert done.code == 0
    assert done.err == ""
    assert "\x1b" not in done.out
    assert "\r" not in done.out


@pytest.mark.parametrize("pipe", ["list | head -n 1", "list | true", "list --json | true", "--help | true"])
def test_a_reader_that_has_enough_is_no_error(environment, tmp_path, pipe):
    command = f"set -o pipefail; {sys.executable} -m workbench {pipe}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_cancels_a_run_and_says_so(samples, environment, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "run", "sample.waiting"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    bench = workbench.open(folder / "store")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and not (folder / "waiting").exists():
        time.sleep(0.02)
    assert [run.status for run in bench.runs()] == ["running"]
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out == ""
    (run,) = bench.runs()
    assert run.status == "cancelled"
    assert run.id in err
    assert "Traceback" not in err


# ---------------------------------------------------------------------------------------------------------- hostile texts


@pytest.fixture
def hostile_store(workbench_command, samples, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_USER", "eve\x1b[2J[bold]")
    assert workbench_command("run", "sample.hostile", "--quiet").code == 0
    assert workbench_command("run", "sample.hostile_failure", "--quiet").code == 1


COMMANDS_THAT_PRINT = (
    ("list",),
    ("describe", "sample.hostile"),
    ("run", "sample.hostile"),
    ("run", "sample.hostile_failure"),
    ("runs",),
    ("runs", "--json"),
    ("show", "-hostile-"),
    ("show", "hostile-failure"),
    ("show", "hostile-failure", "--json"),
    ("plugins",),
)


@pytest.mark.parametrize("words", COMMANDS_THAT_PRINT, ids=" ".join)
def test_texts_from_a_store_are_printed_literally(hostile_store, workbench_command, words, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    if words == ("show", "-hostile-"):
        rows = json.loads(workbench_command("runs", "--where", "method = sample.hostile", "--json").out)
        words = ("show", rows[0]["id"])
    shown = workbench_command(*words)
    printed = shown.out + shown.err
    assert printed
    assert ESCAPES.findall(printed) == []
    assert "\x1b[2J" not in printed
    assert [mark for mark in "\x07\u202a\u202b\u202d\u202e\u2066\u2067\u2068" if mark in printed] == []
    if words[0] in ("describe", "run"):
        assert "[red]alarm[/red]" in printed, "markup is text, neither interpreted nor removed"


def test_a_report_of_hostile_texts_is_harmless(hostile_store, workbench_command):
    rows = json.loads(workbench_command("runs", "--where", "method = sample.hostile", "--json").out)
    assert workbench_command("report", rows[0]["id"], "-o", "report.html").code == 0
    page = Page(Path("report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in " ".join(page.texts)
    assert "\u202e" in HOSTILE
    assert "\u202e" not in " ".join(page.texts)
