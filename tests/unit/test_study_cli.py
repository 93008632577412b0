"""`workbench study run | status | report` from the command line, at a tiny size, with real methods."""

from __future__ import annotations

from pathlib import Path

import pytest
from workbench.cli import main

STUDY = """
name: tiny/reader
subjects: {train: "digits(split=train)[:200]", test: null}
steps:
  training: {method: training.classifier, inputs: {model: "small-cnn(width=4)", data: "${train}"}, parameters: {epochs: 2}}
  rounded:
    method: quantization.uniform
    inputs: {model: "${training}", data: "${train}", test: "${test}"}
    parameters: {widths: [2, 8], sharings: [channel], store_width: {each: [8, 2]}}
  clean: {method: training.evaluation, inputs: {model: "${shipped}", data: "${test}"}}
  shifted: {method: training.evaluation, inputs: {model: "${shipped}", data: "shifted-digits(severity=5)[:100]"}}
  detected:
    method: detection.logit_scores
    inputs: {data: "${clean}", ood: "${shifted}"}
    parameters: {bootstrap: 100}
choices: {shipped: {full precision: "${training}", rounded: "${rounded}"}}
questions:
  across: shipped
  baseline: full precision
  cost: bits
  disagreement: clean
  metrics:
    - {step: shipped, metric: average_bits, label: bits, otherwise: 32}
    - {step: clean, metric: accuracy, label: accuracy}
    - {step: detected, metric: auroc_energy, label: AUROC}
  fronts: [[bits, accuracy]]
"""


def test_a_study_from_file_to_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    # In a checkout that is edited while this runs, nothing would be served from the store.
    monkeypatch.setattr("workbench.execution.code._folder_digest", lambda folder: "as it is")
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "store"))
    Path("tiny.yaml").write_text(STUDY)
    assert main(["study", "status", "tiny.yaml"]) == 2
    assert "--subject test=" in capsys.readouterr().err
    given = ["tiny.yaml", "--subject", "test=digits(split=test)[:100]"]
    assert main(["study", "run", *given, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "12 complete" in said
    assert "rounded, store_width 2" in said
    assert main(["study", "run", *given, "--quiet"]) == 0
    assert "12 stored" in capsys.readouterr().out
    assert main(["study", "status", *given]) == 0
    assert "12 stored" in capsys.readouterr().out
    for name in ("out/page.html", "out/table.csv", "out/table.tex"):
        assert main(["study", "report", *given, "-o", name]) == 0
    page = Path("out/page.html").read_text()
    assert "Samples on which the variants disagree most" in page
    assert "paired bootstrap" in page
    assert "<script" not in page
    assert 'src="http' not in page
    assert len(Path("out/table.csv").read_text().splitlines()) == 1 + 3 * 3
    assert r"\toprule" in Path("out/table.tex").read_text()
    assert main(["study", "report", *given, "-o", "page.pdf"]) == 2
    assert main(["study", "run", "no-such-study"]) == 2
    assert "ship-small" in capsys.readouterr().err


def test_shifted_digits_are_those_of_the_test_split():
    import numpy as np
    from workbench.errors import InputError
    from workbench.subjects.builtin import digits

    from workbench_detection.digit_shifts import shifted_digits

    clean, control = digits(split="test"), shifted_digits("contrast", 1)
    np.testing.assert_array_equal(clean["label"], control["label"])
    mean = clean["image"].mean(("channel", "y", "x"))
    expected = np.clip(mean + 0.9 * (clean["image"] - mean), 0, 1)
    np.testing.assert_allclose(control["image"], expected, atol=1.01 / 255)  # rounded to 8 bits before and after
    with pytest.raises(InputError, match="severity"):
        shifted_digits(severity=6)
    with pytest.raises(InputError, match="shift"):
        shifted_digits("rain")
