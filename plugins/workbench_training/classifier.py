"""Trains a classifier, so that a trained model is a run too: found again by its key, judged, and ready for the next method.

Any architecture: a registered name (`small-cnn`) or a module of your own. By default every layer is initialised afresh
from the run's seed, so that runs of different seeds are independent trainings; with `initialization="given"` the
weights that came are fine-tuned. A part of `data` is held out (or `validation` is given) and is the only thing the report
speaks of: it has no influence on the training, not even on when to stop.

Standard parts, each as in its source: SGD with Nesterov momentum or AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101)
with cosine decay (arXiv 1608.03983); label smoothing (Szegedy et al. 2016, arXiv 1512.00567); random crops and flips (He et
al. 2016, arXiv 1512.03385, section 4.2); Mixup (Zhang et al. 2018, arXiv 1710.09412); CutMix (Yun et al. 2019, arXiv
1905.04899). Learning rates change by epoch, and weight decay acts on every parameter. The pictures of both parts are kept in
memory (uint8 stays uint8). A killed run goes on from its last checkpoint and ends with the same bits on the same machine.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from workbench import DataRole, InputError, Inputs, Line, Method, Metric, ModelRole, Out, Output, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import (
    Recipe,
    Transform,
    cutmix_batch,
    fit,
    mixup_batch,
    numpy_generator,
    random_crop,
    random_flip,
    soft_labels,
    to_tensor,
)

from workbench_training.assessment import OUTPUTS, assess, assessment_report, class_count, class_names
from workbench_training.preparation import (
    as_model,
    channel_statistics,
    hold_out,
    read_samples,
    reset_layers,
    with_normalization,
)

RESIDENT_BYTES = 2 * 2**30
"""Training pictures up to this size are kept on the device."""
Augmentation = Literal["none", "flip", "crop", "flip_crop"]
Mixing = Literal["none", "mixup", "cutmix"]


def make_transform(
    augmentation: Augmentation, padding: int, mixing: Mixing, alpha: float, classes: int
) -> Transform | None:
    """The augmentation of a batch, in this order: random crop, random flip, mixing with a random partner.

    Args:
        augmentation: which of crop and flip.
        padding: of the crop, in pixels.
        mixing: whether pictures are mixed in pairs; labels become soft then.
        alpha: of the Beta(alpha, alpha) distribution of the mixing share, one draw a batch.
        classes: number of classes.
    """
    if augmentation == "none" and mixing == "none":
        return None

    def transform(image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if "crop" in augmentation:
            image = random_crop(image, padding, generator)
        if "flip" in augmentation:
            image = random_flip(image, generator)
        if mixing == "none":
            return image, label
        mixed = (mixup_batch if mixing == "mixup" else cutmix_batch)(image, alpha, numpy_generator(generator))
        return mixed.image, soft_labels(label, label[mixed.partner], mixed.label_share, classes)

    return transform


class ClassifierTraining(Method):
    """A trained classifier, its training curves, and what it says about samples it was not trained on."""

    id = "training.classifier"
    title = "Trains or fine-tunes a classifier, judges it on held-out samples and stores it for the next method"
    paper = None
    inputs = {
        "model": ModelRole("the architecture, or with initialization='given' the weights to go on from"),
        "data": DataRole(
            "labelled pictures to train on", variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)}
        ),
        "validation": DataRole(
            "labelled pictures to report on; without them a part of `data` is held out",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
            optional=True,
        ),
    }
    outputs = (
        *OUTPUTS,
        Output("sample_index", ("sample",), "int64", "position of each held-out sample in `data` (or `validation`)"),
        Output("training_count", (), "int64", "samples trained on"),
        Output("parameter_count", (), "int64", "trained parameters"),
        Output("channel_mean", ("channel",), "float64", "subtracted by the stored model", optional=True),
        Output("channel_std", ("channel",), "float64", "divided by in the stored model", optional=True),
        Output("kept_layer", ("layer",), "str", "layers that were not initialised afresh", optional=True),
    )

    class Params(BaseParams):
        """Parameters."""

        epochs: int = Field(30, ge=1, le=10_000, description="Passes over the training part")
        batch_size: int = Field(64, ge=1, le=65_536, description="Samples per optimiser step")
        optimizer: Literal["sgd", "adamw", "adam"] = Field("adamw", description="sgd has Nesterov momentum")
        learning_rate: float = Field(3e-3, gt=0, le=10, description="Peak, after the warm-up (sgd: try 0.1)")
        momentum: float = Field(0.9, ge=0, lt=1, description="sgd: momentum; adam, adamw: beta 1")
        weight_decay: float = Field(0.01, ge=0, le=10, description="adamw: decoupled; else L2 (sgd: try 5e-4)")
        schedule: Literal["cosine", "step", "constant"] = Field("cosine", description="Of the learning rate, by epoch")
        milestones: tuple[int, ...] = Field((), description="step: epochs after which the rate falls to a tenth")
        warmup: int = Field(1, ge=0, le=1000, description="Epochs of linear increase; at most epochs - 1")
        label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the uniform distribution in the target")
        gradient_clip: float | None = Field(None, gt=0, description="Largest 2-norm of the gradient")
        augmentation: Augmentation = Field("none", description="flip is wrong for digits and letters")
        crop_padding: int | None = Field(None, ge=0, le=256, description="crop: pixels (an eighth of the shorter side)")
        mixing: Mixing = Field("none", description="Mix pictures and labels in pairs")
        mixing_alpha: float = Field(1.0, gt=0, le=100, description="Of the Beta distribution of the mixing share")
        initialization: Literal["fresh", "given"] = Field("fresh", description="fresh: drawn anew from the run's seed")
        normalization: Literal["auto", "data", "given"] = Field(
            "auto", description="data: mean and std of the training part go into the model; auto: data if fresh"
        )
        validation_fraction: float = Field(0.2, gt=0, lt=1, description="Held out of data if no validation is given")
        split_seed: int = Field(0, ge=0, description="Of the held-out part, which is the same for all seeds of runs")
        amp: Literal["auto", "on", "off"] = Field("auto", description="bfloat16 autocast; auto: on CUDA devices")

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Prepare, train, store, and judge on what was held out."""
        if out.dtype == torch.float16:
            out.skip("training in float16 loses small gradients; ask for float32, bfloat16 or float64")
        data, validation = inputs["data"], inputs.get("validation")
        shape = tuple(int(size) for size in data["image"].shape[1:])
        recipe = _recipe(params)
        model = as_model(inputs["model"], shape)
        names = class_names(model, data, class_count(model, data["image"]))
        if not model.classes and "class" in data.coords:
            model.classes = tuple(names)  # so that whoever loads the model knows them too
        label = to_tensor(data["label"], dtype=torch.int64)
        _check_labels("data", label, len(names))
        if validation is None:
            train_index, held_index = hold_out(label.numpy(), params.validation_fraction, params.split_seed)
            held = data
        else:
            _check_validation(validation, shape, len(names))
            train_index, held = np.arange(len(label)), validation
            held_index = np.arange(validation.sizes["sample"])
        image, held_image = read_samples(data["image"], train_index), read_samples(held["image"], held_index)
        held_label = to_tensor(held["label"], dtype=torch.int64)[held_index]

        kept = reset_layers(model.network, out.generator("initialization")) if params.initialization == "fresh" else ()
        measured = params.normalization == "data" or (
            params.normalization == "auto" and params.initialization == "fresh"
        )
        if measured:
            model = with_normalization(model, *channel_statistics(image), shape)
        padding = params.crop_padding if params.crop_padding is not None else max(1, min(shape[1:]) // 8)
        fit(
            model,
            _resident(image, out.device),
            label[torch.from_numpy(train_index)].to(out.device),
            recipe,
            generator=out.generator("training"),
            transform=make_transform(params.augmentation, padding, params.mixing, params.mixing_alpha, len(names)),
            validation=(_resident(held_image, out.device), held_label.to(out.device)),
            out=out,
            amp=_uses_autocast(params.amp, out),
        )
        out.model(model)
        out.write("sample_index", held_index)
        out.write("training_count", len(train_index))
        out.write("parameter_count", sum(p.numel() for p in model.parameters() if p.requires_grad))
        if model.mean:
            out.write("channel_mean", np.broadcast_to(np.asarray(model.mean), shape[:1]))
            out.write("channel_std", np.broadcast_to(np.asarray(model.std), shape[:1]))
        if kept:
            out.write("kept_layer", list(kept))
        assess(model, held_image, held_label, out, batch_size=max(params.batch_size, 256), names=names)

    def report(self, result: Result) -> Report:
        """The assessment of the held-out samples, and how the training went."""
        params, series = result.params, result.series
        what = "validation samples" if "validation" in result.inputs else "held-out samples"
        judged = assessment_report(result, what=what)
        fitted = float(series["accuracy"][-1])
        soft = params.mixing != "none"
        metrics = (
            *judged.metrics,
            Metric(name="training_accuracy", value=fitted, direction="neutral",
                   description="mean over the last epoch, on augmented samples and while the weights still changed"),
            Metric(name="parameter_count", value=float(result["parameter_count"]), direction="neutral"),
        )
        notes = [
            f"Trained on {int(result['training_count'])} samples for {params.epochs} epochs; the {len(result['label'])} "
            f"{what} had no influence on the training, not even on when to stop.",
            *judged.notes,
        ]
        if params.initialization == "given":
            notes.append("Fine-tuned from given weights: what these were trained on before is not known here. If it "
                         "included the held-out samples, the accuracy is too good.")
        if "kept_layer" in result:
            layers = [str(name) for name in result["kept_layer"].values]
            shown = ", ".join(layers[:10]) + (f" and {len(layers) - 10} more" if len(layers) > 10 else "")
            notes.append(f"Not initialised afresh, for want of reset_parameters: {shown}. They started as they came.")
        if soft or params.label_smoothing:
            notes.append("The training loss is against softened labels and cannot be compared with the NLL."
                         + (" Training accuracy counts the target's mass on the predicted class." if soft else ""))
        return Report(
            summary=judged.summary, metrics=metrics, tables=judged.tables, views=(*_curves(), *judged.views), notes=notes
        )


def _curves() -> tuple[Line, ...]:
    return (
        Line(title="Loss", y=("series/loss", "series/validation_loss"), x="step", x_label="epoch", y_label="loss (nats)",
             log_y=True),
        Line(title="Accuracy", y=("series/accuracy", "series/validation_accuracy"), x="step", x_label="epoch",
             y_label="accuracy"),
        Line(title="Learning rate", y=("series/learning_rate",), x="step", x_label="epoch", y_label="learning rate"),
    )


def _recipe(params: ClassifierTraining.Params) -> Recipe:
    """The parameters as the toolkit's recipe; what contradicts is refused there."""
    return Recipe(
        epochs=params.epochs,
        batch_size=params.batch_size,
        optimizer=params.optimizer,
        learning_rate=params.learning_rate,
        momentum=params.momentum,
        nesterov=params.optimizer == "sgd" and params.momentum > 0,
        weight_decay=params.weight_decay,
        schedule=params.schedule,
        warmup_epochs=min(params.warmup, params.epochs - 1),
        milestones=params.milestones,
        label_smoothing=params.label_smoothing,
        gradient_clip=params.gradient_clip,
    )


def _uses_autocast(amp: Literal["auto", "on", "off"], out: Out) -> bool:
    if amp == "auto":
        return out.dtype == torch.bfloat16 or (out.device.type == "cuda" and out.dtype == torch.float32)
    return amp == "on"


def _resident(image: Tensor, device: torch.device) -> Tensor:
    """The pictures on the device if they are small enough to stay there, else where they are."""
    return image.to(device) if image.numel() * image.element_size() <= RESIDENT_BYTES else image


def _check_validation(validation: Any, shape: tuple[int, ...], classes: int) -> None:
    came = tuple(int(size) for size in validation["image"].shape[1:])
    if came != shape:
        raise InputError("validation", expected=f"pictures of shape {shape} as in data", got=str(came))
    _check_labels("validation", to_tensor(validation["label"], dtype=torch.int64), classes)


def _check_labels(role: str, label: Tensor, classes: int) -> None:
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"{role}['label']", expected=f"0..{classes - 1}, the model has {classes} logits", got=f"{low}..{high}"
        )
