"""`workbench new-plugin` writes a project that works: it is read, checked, tested, installed and used here."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import workbench
from workbench.cli import main
from workbench.errors import InputError
from workbench.host import Host
from workbench.template import FILES, new_plugin
from workbench.testing import check_method

try:
    import tomllib
except ImportError:  # pragma: no cover
    tomllib = None  # type: ignore[assignment]

METHOD = "detection.selective_trust"


def logits(samples: int, classes: int) -> dict[str, np.ndarray]:
    """Logits of a classifier that is right most of the time, and the true classes."""
    random = np.random.default_rng(0)
    label = random.integers(0, classes, samples)
    noise = random.standard_normal((samples, classes))
    return {"logit": (2.0 * np.eye(classes)[label] + noise).astype(np.float32), "label": label}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return new_plugin("selective-trust", "detection", tmp_path)


@pytest.fixture
def installed(project: Path, monkeypatch: pytest.MonkeyPatch):
    """The plugin's package importable, and a host that has found its entry point."""
    monkeypatch.syspath_prepend(project / "src")
    yield Host(found=[EntryPoint("selective_trust", "selective_trust", "workbench")])
    for name in [name for name in sys.modules if name.partition(".")[0] == "selective_trust"]:
        del sys.modules[name]


def test_every_file_is_there_and_no_placeholder_is_left(project):
    written = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert written == {path.replace("$package", "selective_trust") for path in FILES}
    for path in written:
        text = (project / path).read_text()
        assert not re.findall(r"\$[a-z_]+", text), path
        assert not re.findall(r"[ \t]+$", text, flags=re.M), path
    workflow = (project / ".github/workflows/test.yml").read_text()
    assert "${{ matrix.python }}" in workflow
    assert "workbench check selective-trust" in workflow


def test_the_project_file_names_package_entry_point_and_range(project):
    content = tomllib.loads((project / "pyproject.toml").read_text())
    assert content["project"]["name"] == "selective-trust"
    assert content["project"]["entry-points"]["workbench"] == {"selective_trust": "selective_trust"}
    (requirement,) = [text for text in content["project"]["dependencies"] if text.startswith("vision-workbench")]
    from packaging.requirements import Requirement

    assert Requirement(requirement).specifier.contains(workbench.__version__)
    assert not Requirement(requirement).specifier.contains("99.0")


def test_its_code_is_as_tidy_as_ours(project):
    if shutil.which("ruff") is None and importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", str(project)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_its_method_keeps_the_contract_and_answers_on_real_data(installed, tmp_path):
    (status,) = installed.plugins
    assert status.methods == (METHOD,), status
    assert check_method(installed.method(METHOD), reference=installed.methods[METHOD]) == []
    bench = workbench.open(tmp_path / "store", host=installed)
    data = logits(3000, 5)
    run = bench.run(METHOD, data=data, target_risk=0.1, progress=False)
    assert run.metrics["error_rate_of_kept"] < 0.1 < run.metrics["error_rate_of_all"]
    assert 0.2 < run.metrics["coverage"] < 1
    assert bench.run(METHOD, data=data, target_risk=0.1, progress=False).served
    assert "may be trusted" in run.report_data().summary


@pytest.mark.parametrize(
    ("name", "family", "words"),
    [
        ("two words", "detection", "NAME"),
        ("-dash", "detection", "NAME"),
        ("a--b", "detection", "NAME"),
        ("../elsewhere", "detection", "NAME"),
        ("", "detection", "NAME"),
        ("workbench-mine", "detection", "begin with workbench"),
        ("numpy", "detection", "no installed package"),
        ("json", "detection", "no installed package"),
        ("class", "detection", "no installed package"),
        ("fine", "Detection", "--family"),
        ("fine", "two.parts", "--family"),
        ("fine", "class", "--family"),
    ],
)
def test_names_that_would_not_work_are_refused_before_anything_is_written(name, family, words, tmp_path):
    with pytest.raises(InputError, match=words):
        new_plugin(name, family, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(project):
    (project / "README.md").write_text("mine")
    with pytest.raises(InputError, match="does not exist yet"):
        new_plugin("selective-trust", "detection", project.parent)
    assert (project / "README.md").read_text() == "mine"


def test_the_command_says_what_to_do_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", "selective-trust", "--family", "detection"]) == 0
    shown = capsys.readouterr().out
    assert "pip install -e selective-trust" in shown
    assert f"workbench describe {METHOD}" in shown
    assert main(["new-plugin", "selective-trust", "--family", "detection"]) == 2
    assert main(["new-plugin", "x y", "--family", "detection"]) == 2


def test_check_on_the_command_line(capsys):
    assert main(["check", "training", "--static"]) == 0
    assert "training.classifier: keeps the contract" in capsys.readouterr().out
    assert main(["check", "detection.logit_scores", "bootstrap=100"]) == 0
    assert "detection.logit_scores: keeps the contract" in capsys.readouterr().out
    assert main(["check", "nobody-knows-it"]) == 2
    assert "quantization" in capsys.readouterr().err
    assert main(["check", "detection.logit_scores", "bootstraps=100"]) == 2


def test_installed_into_a_fresh_environment_it_is_listed_tested_and_used(project, tmp_path):
    """What its author does after `new-plugin`, word for word, but that nothing is downloaded."""
    if importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("editables") is None:
        pytest.skip("hatchling and editables are not installed, and this test downloads nothing")
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    # The environment of these tests stands in for the index: torch and the rest are seen, not downloaded again.
    seen = [path for path in sys.path if Path(path).is_dir() and path != str(project / "src")]
    (Path(place.stdout.strip()) / "parent.pth").write_text("\n".join(seen) + "\n")
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "WORKBENCH_STORE": str(tmp_path / "store")}

    def call(*arguments: object) -> str:
        done = subprocess.run(
            [str(part) for part in arguments], capture_output=True, text=True, cwd=tmp_path, env=variables, check=False
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    call(*pip, "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-e", f"{project}[test]")
    listed = call(python, "-m", "workbench", "list", "--family", "detection")
    assert METHOD in listed
    assert "selective-trust" in call(python, "-m", "workbench", "plugins")

    # Editable: what the author changes is what the next command sees.
    hooks = project / "src/selective_trust/__init__.py"
    title = "How many of a classifier's predictions may be trusted"
    assert title in listed
    hooks.write_text(hooks.read_text().replace(title, "How far to trust a classifier, and"))
    assert "How far to trust a classifier, and" in call(python, "-m", "workbench", "list", "--family", "detection")
    hooks.write_text(hooks.read_text().replace("How far to trust a classifier, and", title))

    tested = call(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", project / "pyproject.toml", project)
    assert re.search(r"\d\d passed", tested)
    assert "failed" not in tested
    np.savez(tmp_path / "logits.npz", **logits(3000, 5))
    shown = call(python, "-m", "workbench", "run", METHOD, "--data", tmp_path / "logits.npz", "target_risk=0.1")
    assert "coverage" in shown
    call(python, "-m", "workbench", "report", "latest", "-o", tmp_path / "report.html")
    assert "may be trusted" in (tmp_path / "report.html").read_text()
