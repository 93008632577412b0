"""A method's page says what its class says, and nothing on it is markup that the class did not mean."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest
import workbench
from workbench import Method, Output, Paper
from workbench.cli import main
from workbench.description import describe_method
from workbench.host import Host
from workbench.render.method_page import MethodPage, prose

from unit.sample_methods import Declining, MeanImage

IMAGES = np.random.default_rng(0).random((6, 1, 4, 4), dtype=np.float32)


@pytest.fixture
def bench(tmp_path):
    return workbench.open(tmp_path / "store", host=Host(found=[]))


def told(page: str) -> str:
    """What a reader sees of a page, as one line."""
    return " ".join(html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)).split())


def test_the_page_names_everything_that_the_class_declares(bench):
    page = told(bench.describe(MeanImage).html())
    for role in MeanImage.inputs.values():
        assert role.description in page
    for name, field in MeanImage.Params.model_fields.items():
        assert name in page
        assert field.description in page
    for output in MeanImage.outputs:
        assert output.name in page
        assert output.description in page
    for words in (
        "sample.mean_image",
        "version 1",
        "Mean image of a data set",
        ">= 0.0, <= 10.0",
        "mean, median",
        "label (sample)",
    ):
        assert words in page
    assert "bench.run('sample.mean_image', data=...)" in page
    assert "workbench run sample.mean_image --data DATA" in page


def test_every_method_that_comes_with_the_workbench_has_a_page():
    host = Host()
    for method_id in ("quantization.hawq", "detection.logit_scores", "training.evaluation"):
        described = describe_method(host.method(method_id))
        page = told(MethodPage(described).html())
        assert all(part.name in page for part in (*described.roles, *described.parameters))
        assert all(name in page for name, *_ in described.outputs)


def test_figures_are_those_of_the_newest_complete_run(bench):
    assert "Figures" not in bench.describe(MeanImage).html()
    with pytest.raises(workbench.SkippedError):
        bench.run(Declining, progress=False)

    class Drawn(MeanImage):
        def report(self, result):
            view = workbench.Line(title="Brightness of every image", y=("brightness",), x="sample")
            return workbench.Report(summary="Some are bright.", views=[view])

    run = bench.run(Drawn, data=IMAGES, progress=False)
    page = bench.describe("sample.mean_image").html()
    assert "<svg" in page
    assert f"From the run {run.id} : Some are bright." in told(page)


def test_the_paper_and_the_code_are_linked_and_texts_are_escaped():
    class Odd(MeanImage):
        """Says <b>much</b> of `x < y` and of an odd ` sign.

        - one
          goes on
        - two

            code = "<i>"
        """

        paper = Paper(
            title="On <i>means</i>",
            authors="A. Author",
            year=1999,
            arxiv="1905.03696",
            code="one/means (MIT), two/means",
        )
        outputs = (*MeanImage.outputs, Output("time", (), "float64", "how long", unit="s", optional=True))
        requires = {"kornia": "restoration"}

    described = describe_method(Odd)
    page = MethodPage(described).html()
    assert '<a href="https://arxiv.org/abs/1905.03696"' in page
    assert 'href="https://github.com/one/means"' in page
    assert 'href="https://github.com/two/means"' in page
    assert "<i>" not in page
    assert "On &lt;i&gt;means" in page
    assert "how long [s] (not in every run)" in told(page)
    assert "pip install 'vision-workbench[restoration]'" in told(page)
    hostile = Paper(title="t", authors="a", year=1999, arxiv='"><script>', code="javascript:alert(1)")
    assert "<script>" not in MethodPage(describe_method(type("Hostile", (Odd,), {"paper": hostile}))).html()
    assert 'href="javascript' not in MethodPage(describe_method(type("Hostile", (Odd,), {"paper": hostile}))).html()


def test_a_docstring_becomes_paragraphs_lists_and_code():
    text = "One `two`\nthree:\n- a\n  b\n- c\n\n    x = 1\n      y\n\nodd ` and <b>"
    assert [str(block) for block in prose(text)] == [
        "<p>One <code>two</code> three:</p>",
        "<ul><li>a b</li><li>c</li></ul>",
        "<pre><code>x = 1\n  y</code></pre>",
        "<p>odd ` and &lt;b&gt;</p>",
    ]


def test_in_a_notebook_and_on_the_command_line(bench, tmp_path, monkeypatch, capsys):
    shown = bench.describe(MeanImage)
    assert repr(shown) == "<method sample.mean_image version 1: Mean image of a data set>"
    assert "factor of the mean" in shown._repr_html_()
    monkeypatch.chdir(tmp_path)
    assert main(["describe", "detection.logit_scores", "--html"]) == 0
    assert capsys.readouterr().out.strip() == "detection.logit_scores.html"
    page = (tmp_path / "detection.logit_scores.html").read_text()
    assert "energy" in page
    assert not (tmp_path / "store").exists(), "describing a method makes no store"
    assert main(["describe", "detection.logit_scores", "-o", "pages/one.html"]) == 0
    assert (tmp_path / "pages" / "one.html").read_text() == page


def test_the_class_documents_a_method_whose_module_does_not():
    namespace = {"__module__": "nowhere", "__doc__": "Told by the class."}
    assert describe_method(type("Bare", (MeanImage,), namespace)).text == "Told by the class."
    assert issubclass(MeanImage, Method)
