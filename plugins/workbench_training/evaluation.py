"""What a classifier says about a data set: the bridge from models to every method that works on logits or features.

Stores the logits (and, if asked, the penultimate features) of all samples, batch by batch, so that data larger than memory
pass through; calibration and detection methods take the run as their data. With labels it also says how good the model
is: accuracy with an interval, NLL, ECE, confusions, the hardest classes and the most confident mistakes.

    logits = bench.run("training.evaluation", model=quantized, data="cifar10")
    foreign = bench.run("training.evaluation", model=quantized, data="photos")
    bench.run("detection.logit_scores", data=logits, ood=foreign)
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from workbench import DataRole, InputError, Inputs, Method, ModelRole, Out, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import find_layer, last_linear

from workbench_training.assessment import OUTPUTS, assess, assessment_report, class_count, class_names


class ClassifierEvaluation(Method):
    """Logits, predictions and optional features of every sample, and how good they are where labels are known."""

    id = "training.evaluation"
    title = "What a classifier says about a data set: logits, features, mistakes, accuracy and calibration"
    paper = None
    inputs = {
        "model": ModelRole("the classifier"),
        "data": DataRole(
            "pictures; labels are needed only for the assessment",
            variables={"image": ("sample", "channel", "y", "x")},
            optional_variables={"label": ("sample",)},
        ),
    }
    outputs = OUTPUTS

    class Params(BaseParams):
        """Parameters."""

        batch_size: int = Field(256, ge=1, le=65_536, description="Samples per forward pass")
        features: Literal["none", "penultimate"] = Field(
            "none", description="penultimate: store what the last linear layer (or feature_layer) receives"
        )
        feature_layer: str = Field("", description="Name of the layer whose input is the feature; needs features")

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Stream the samples through the model."""
        model, data = inputs["model"], inputs["data"]
        layer = None
        if params.features == "penultimate":
            layer = params.feature_layer or last_linear(model)
            find_layer(model, layer, argument="feature_layer")
        elif params.feature_layer:
            raise InputError(
                "feature_layer", expected="nothing without features='penultimate'", got=repr(params.feature_layer)
            )
        names = class_names(model, data, class_count(model, data["image"]))
        label = data.get("label")
        assess(model, data["image"], label, out, batch_size=params.batch_size, names=names, feature_layer=layer)

    def report(self, result: Result) -> Report:
        """Accuracy, NLL, ECE, confusions and mistakes; without labels, confidence and predictions."""
        return assessment_report(result)
