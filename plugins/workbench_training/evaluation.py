"""What a classifier says about a data set: the bridge from models to every method that works on logits or features.

Stores the logits (and, if asked, the penultimate features) of all samples, batch by batch, so that data larger than memory
pass through, on a cluster by many workers at once; calibration and detection methods take the run as their data. With
labels it also says how good the model is: accuracy with an interval, NLL, ECE, confusions, the hardest classes and the most
confident mistakes.

    logits = bench.run("training.evaluation", model=quantized, data="cifar10")
    foreign = bench.run("training.evaluation", model=quantized, data="photos")
    bench.run("detection.logit_scores", data=logits, ood=foreign)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import nn
from workbench import BlockOut, BlockwiseMethod, DataRole, InputError, Inputs, ModelRole, Out, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import find_layer, last_linear

from workbench_training.assessment import (
    OUTPUTS,
    assess_block,
    assessment_report,
    class_count,
    class_names,
    declare,
    finish,
)

BLOCK = 4096
"""Most samples of a block, to the next whole batch: what one worker does at a time."""
BLOCKS = 64
"""Blocks wanted of data that would have fewer such ones: of a few long blocks the last is waited for by all other workers."""
LEAST = 1024
"""Samples of a block that are not divided for that."""


class ClassifierEvaluation(BlockwiseMethod):
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

    def block_size(self, inputs: Inputs, params: Params) -> int:
        """Samples for `BLOCKS` blocks, within bounds, in whole batches."""
        size = min(BLOCK, max(LEAST, math.ceil(len(inputs["data"]["image"]) / BLOCKS)))
        return params.batch_size * max(1, round(size / params.batch_size))

    def begin(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Find the layer and the classes, and declare logits and features."""
        model, data = inputs["model"], inputs["data"]
        if params.feature_layer and params.features == "none":
            raise InputError(
                "feature_layer", expected="nothing without features='penultimate'", got=repr(params.feature_layer)
            )
        names = class_names(model, data, class_count(model, data["image"]))
        declare(model, data["image"], data.get("label"), out, names=names, feature_layer=_layer(model, params))

    def block(self, inputs: Inputs, params: Params, region: slice, out: BlockOut) -> dict[str, Any]:
        """Stream the samples of one block through the model."""
        model, data, layer = inputs["model"], inputs["data"], _layer(inputs["model"], params)
        arrays = {name: out.part(name) for name in ("logit", *(("feature",) if layer else ()))}
        return assess_block(
            model,
            data["image"],
            data.get("label"),
            region,
            arrays,
            classes=class_count(model, data["image"]),
            batch_size=params.batch_size,
            dtype=out.dtype,
            progress=out.progress,
            feature_layer=layer,
        )

    def end(self, inputs: Inputs, params: Params, parts: Sequence[Mapping[str, Any]], out: Out) -> None:
        """Judge all samples together."""
        data = inputs["data"]
        names = class_names(inputs["model"], data, class_count(inputs["model"], data["image"]))
        finish(parts, data["image"], data.get("label"), out, names=names)

    def report(self, result: Result) -> Report:
        """Accuracy, NLL, ECE, confusions and mistakes; without labels, confidence and predictions."""
        return assessment_report(result)


def _layer(model: nn.Module, params: ClassifierEvaluation.Params) -> str | None:
    """Name of the layer whose input is stored; None if features are not wanted."""
    if params.features == "none":
        return None
    layer = params.feature_layer or last_linear(model)
    find_layer(model, layer, argument="feature_layer")
    return layer
