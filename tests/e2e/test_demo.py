"""The demo as a newcomer meets it: real methods on real pictures, one page of findings, and nothing computed twice."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import workbench
from workbench.demo import STEPS

FAMILIES = {"augmentation", "calibration", "detection", "quantization", "restoration", "training"}


class Links(HTMLParser):
    """Addresses a page links, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.linked: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if tag == "a" and name == "href":
                self.linked.append(value)
            elif name == "src" or (tag == "link" and name == "href"):
                self.loaded.append(value)


def pages(folder: Path) -> dict[str, Links]:
    return {path.name: Links(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.html"))}


def check_pages(folder: Path) -> None:
    found = pages(folder)
    local = {link for link in found["index.html"].linked if not link.startswith("http")}
    assert local == set(found) - {"index.html"}, "the index links every report, and every report is linked"
    for name, page in found.items():
        assert [address for address in page.loaded if not address.startswith("data:image/")] == [], name


# ------------------------------------------------------------------------------------------------------------ structure


def test_every_family_takes_part_with_a_question_of_its_own():
    host = workbench.open("unused").host
    assert {step.method.partition(".")[0] for step in STEPS} == FAMILIES
    assert {step.method for step in STEPS} <= set(host.methods)
    assert len({step.name for step in STEPS}) == len({step.question for step in STEPS}) == len(STEPS)
    assert all(step.question.endswith("?") for step in STEPS)


def test_every_step_asks_for_roles_and_parameters_that_its_method_has():
    """Each step needs only the runs before it, and what it passes is accepted (and not the default: nothing idle)."""
    from workbench.execution.inputs import sort_arguments, validate_params

    host = workbench.open("unused").host
    seen: dict[str, str] = {}
    for step in STEPS:
        arguments = step.arguments(dict(seen))
        method = host.method(step.method)
        roles, params = sort_arguments(method, arguments)
        required = {name for name, role in method.inputs.items() if not role.optional}
        assert required <= set(roles), step.name
        validated = validate_params(method, params)
        for name in params:
            assert getattr(validated, name) != method.Params.model_fields[name].default, (
                f"{step.name}: {name} is the default"
            )
        seen[step.name] = step.name


# ------------------------------------------------------------------------------------------------------- a short version


TINY = """
name: tiny
steps:
  training:
    method: training.classifier
    inputs: {model: small-cnn, data: "digits(split=train)", validation: "digits(split=test)"}
    parameters: {epochs: 2}
  clean: {method: training.evaluation, inputs: {model: "${training}", data: "digits(split=test)[:50]"}}
questions: {across: training, metrics: [{step: clean, metric: accuracy}]}
"""


@pytest.fixture
def first_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The demo cut down to two steps with two epochs and a study of two runs: everything around the methods is the same."""
    from dataclasses import replace

    import workbench.demo as demo

    classifier, photos = (next(step for step in STEPS if step.name == name) for name in ("classifier", "photos"))
    short = replace(classifier, arguments=lambda runs: {**classifier.arguments(runs), "epochs": 2})
    monkeypatch.setattr(demo, "STEPS", (short, photos))
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.setattr(demo, "STUDY", str(tmp_path / "tiny.yaml"))


def test_first_steps_then_the_same_from_the_store(first_steps, workbench_command):
    done = workbench_command("demo", "-o", "pages")
    assert done.code == 0, done.err
    assert "1/2 training.classifier" in done.out
    assert "2 runs in" in done.out
    assert "0 of them served" in done.out
    check_pages(Path("pages"))
    page = Path("pages/index.html").read_text(encoding="utf-8")
    bench = workbench.open("store")
    runs = bench.runs()
    assert [run.status for run in runs] == ["complete"] * 3
    assert "tiny in that time: 1 stored, 1 complete" in done.out
    for run in runs[1:]:  # the newest is the study's own
        assert run.record.report["summary"].split(";")[0].split(" (")[0] in page

    shutil.rmtree("pages")
    again = workbench_command("demo", "-o", "pages")
    assert "2 of them served from the store" in again.out
    assert again.out.count("(from the store)") == 2
    check_pages(Path("pages"))
    assert [run.id for run in bench.runs()] == [run.id for run in runs], "nothing was computed or stored again"

    forced = workbench_command("demo", "-o", "pages", "--force")
    assert "0 of them served" in forced.out
    assert len(bench.runs()) == 5
    assert "tiny in that time: 2 stored" in forced.out


# -------------------------------------------------------------------------------------------------------- the whole demo


@pytest.mark.slow
def test_the_whole_demo_in_processes_of_its_own(environment, tmp_path):
    import subprocess
    import sys

    def demo() -> str:
        command = [sys.executable, "-m", "workbench", "demo"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    first = demo()
    assert f"0 of them served from the store {tmp_path / 'store'}" in first
    check_pages(tmp_path / "reports")
    bench = workbench.open(tmp_path / "store")
    count, of_study = len(bench.runs()), {run.id for run in bench.runs("study = ship-small")}
    both = [run for run in bench.runs() if run.method in ("training.classifier", "quantization.hawq")]
    assert len(both) == 2, "the study took what the demo had trained and measured"
    runs = {run.method: run for run in [*both, *(run for run in bench.runs() if run.id not in of_study)]}
    assert len(runs) >= len(STEPS) - 1  # the evaluation of photographs is the study's, too
    assert {run.status for run in runs.values()} == {"complete"}
    assert all(run.report_data().metrics and run.report_data().views for run in runs.values())

    # What the page tells a newcomer must be worth telling: the network reads digits, and the methods see what is there.
    assert runs["training.classifier"].metrics["accuracy"] > 0.97
    assert runs["quantization.hawq"].metrics["accuracy"] > runs["quantization.hawq"].metrics["accuracy_reversed"]
    assert runs["detection.logit_scores"].metrics["auroc_msp"] > 0.8
    assert runs["training.classifier"].id in runs["quantization.hawq"].record.inputs["model"]["runs"]

    second = demo()
    assert f"{len(STEPS)} of them served from the store" in second
    assert len(bench.runs()) == count
