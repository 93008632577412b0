"""One scale and one shift per class: vector scaling of stored logits, for classifiers whose classes are off differently.

Guo, Pleiss, Sun, Weinberger (2017), On Calibration of Modern Neural Networks, ICML, arXiv 1706.04599:
p = softmax(a * z + b) with a, b of one entry per class, by maximum likelihood on samples not used for training. Faithful;
the convex likelihood is minimised to the optimum by L-BFGS. Predictions may change, and accuracy with them.
"""

from __future__ import annotations

from workbench import Bar, Inputs, Method, Out, Output, Paper, Report, Result

from workbench_calibration.affine import AffineMap, fit_diagonal
from workbench_calibration.evaluation import OUTPUTS, EvaluationParams
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.recalibration import recalibrate
from workbench_calibration.samples import INPUTS

NAME = "vector_scaling"


class VectorScaling(Method):
    """Scales and shifts of the logits, one per class."""

    id = "calibration.vector_scaling"
    title = "Calibrates classes that are off by different amounts: one scale and shift per class"
    version = "3"
    paper = Paper(
        title="On Calibration of Modern Neural Networks",
        authors="Guo, Pleiss, Sun, Weinberger",
        year=2017,
        arxiv="1706.04599",
        venue="ICML 2017",
        code="gpleiss/temperature_scaling (MIT)",
    )
    inputs = INPUTS
    outputs = (
        *OUTPUTS,
        Output("scale", ("class",), "float64", "factor of each class's logit"),
        Output("shift", ("class",), "float64", "added to each class's scaled logit; mean 0, as only differences count"),
        Output("gradient", (), "float64", "largest slope of the fit likelihood at the solution; 0 when converged"),
    )

    class Params(EvaluationParams):
        """Parameters."""

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit on the fit rows and judge on the others."""
        _, fitted = recalibrate(inputs, params, out, name=NAME, fit=fit_diagonal)
        assert isinstance(fitted, AffineMap)
        out.write("scale", fitted.weight)
        out.write("shift", fitted.bias - fitted.bias.mean())
        out.write("gradient", fitted.gradient)

    def report(self, result: Result) -> Report:
        """Scales, shifts, and what they change."""
        scale = result["scale"].values
        return evaluation_report(
            result,
            main=NAME,
            summary=f"Vector scaling multiplies the logits by {scale.min():.2f} to {scale.max():.2f}, by class.",
            views=(
                Bar(title="Scale of each class", y=("scale",), x="class", caption="Below 1: overconfident class."),
                Bar(title="Shift of each class", y=("shift",), x="class", caption="Above 0: predicted too rarely."),
            ),
        )
