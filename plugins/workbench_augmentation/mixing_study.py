"""Train one architecture with every mode and seed, alike in all else, and measure what each mode did to it.

For one seed all modes start from the same weights and see the same batches; what is reported is measured on images that
no training saw. Besides accuracy, NLL and ECE: the clean training NLL (how much was memorised, step 8 b of the paper's
analysis in cheap form), accuracy under uniform noise (step 8 c), and Grad-CAM maps (Selvaraju et al. 2017,
arXiv 1610.02391) of the same images.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import InputError, Out
from workbench.toolkit import (
    Recipe,
    Stages,
    expected_calibration_error,
    find_layer,
    fit,
    layer_names,
    predict_all,
    reinitialise,
    soft_cross_entropy,
)

from workbench_augmentation.mixing_modes import MixSettings, MixTransform, Mode, crop_and_flip

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class StudySettings:
    """How to train and what to measure."""

    modes: tuple[Mode, ...]
    seeds: int
    recipe: Recipe
    mix: MixSettings
    crop_padding: int = 0
    flip: bool = False
    curve_points: int = 8
    noise_strengths: tuple[float, ...] = (0.1, 0.2, 0.4)

    @property
    def epochs_measured(self) -> tuple[int, ...]:
        """Numbers of finished epochs at which the curves have a point; the last is the end of the training."""
        points = min(self.curve_points, self.recipe.epochs)
        return tuple(sorted({round(self.recipe.epochs * (k + 1) / points) for k in range(points)}))


@dataclass(frozen=True)
class Samples:
    """Images (sample, channel, *space) on the device and labels: int64 (sample,), or multi-hot float (sample, class)."""

    image: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.image)


def binary_cross_entropy(logit: Tensor, target: Tensor) -> Tensor:
    """Multi-label loss: mean binary cross entropy over samples and classes. Linear in the target, so blends are exact."""
    return F.binary_cross_entropy_with_logits(logit, target.to(logit.dtype))


def scores(logit: Tensor, label: Tensor) -> tuple[float, float, float]:
    """Accuracy, NLL (nats) and ECE (15 bins of equal width) in float64.

    Multi-label: share of right decisions at 1/2, mean binary cross entropy, ECE of these decisions.
    """
    logit, label = logit.double().cpu(), label.cpu()
    if label.ndim == 2:
        loss = float(F.binary_cross_entropy_with_logits(logit, label.double()))
        positive = logit.sigmoid().flatten()
        probability, label = torch.stack([1 - positive, positive], dim=1), (label > 0.5).long().flatten()
    else:
        loss = float(F.cross_entropy(logit, label))
        probability = logit.softmax(1)
    accuracy = float((probability.argmax(1) == label).double().mean())
    return accuracy, loss, float(expected_calibration_error(probability.numpy(), label.numpy()))


def add_noise(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Uniform noise in [-strength, strength], clipped to 0..1."""
    noise = torch.rand(image.shape, generator=generator).mul_(2).sub_(1).to(image)
    return (image + strength * noise).clamp_(0, 1)


def grad_cam(model: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    """Grad-CAM at the last convolution: ReLU of its channels, weighted by the mean gradient of the class score.

    Args:
        model: in eval mode.
        image: (sample, channel, y, x).
        label: (sample,), the class to explain.

    Returns:
        (sample, y, x) on the CPU, each map divided by its maximum (0 where nothing speaks for the class).
    """
    kept: list[Tensor] = []
    hook = find_layer(model, layer_names(model, "convolution")[-1]).register_forward_hook(
        lambda module, given, result: kept.append(result)
    )
    try:
        with torch.enable_grad():
            score = model(image).gather(1, label[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, kept[0])
    finally:
        hook.remove()
    weight = gradient.mean(dim=(2, 3), keepdim=True)
    heat = (weight * kept[0].detach()).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, size=image.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return (heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)).cpu()


@dataclass(frozen=True)
class Study:
    """Everything that the trainings of a study share."""

    model: nn.Module
    train: Samples
    test: Samples
    settings: StudySettings
    n_classes: int
    out: Out
    stages: Stages

    def logits(self, model: nn.Module, image: Tensor) -> Tensor:
        """(sample, class) float32 on the CPU."""
        batch = max(self.settings.recipe.batch_size, 256)
        return predict_all(model, image, batch_size=batch, keep_on="cpu")[0].float()


class TrainingOut:
    """The part of `Out` that `fit` uses, for one training of a study.

    A checkpoint holds, beside what `Stages` keeps, the curve so far and the count of batches, so that a killed study goes
    on in the middle of a training.

    `curve` maps a number of epochs to (test accuracy, train accuracy, train NLL), measured without augmentation.
    """

    def __init__(self, study: Study, name: str, model: nn.Module, transform: MixTransform) -> None:
        self._study, self._stage = study, study.stages.begin(name, series=("loss",))
        self._model, self._transform = model, transform
        self._restored = 0
        self.curve: dict[int, list[float]] = {}

    def progress(self, done: float, total: float, message: str = "") -> None:
        """Progress of the study, a training counting as 1."""
        self._stage.progress(done, total, message)

    def log(self, step: int, **values: float) -> None:
        """Keep the training loss as `<mode>_<seed>_loss`, and measure: `fit` logs an epoch before its checkpoint."""
        self._stage.log(step, **values)
        if step <= self._restored or step not in self._study.settings.epochs_measured:
            return
        study = self._study
        test_accuracy = scores(study.logits(self._model, study.test.image), study.test.label)[0]
        accuracy, loss, _ = scores(study.logits(self._model, study.train.image), study.train.label)
        self.curve[step] = [test_accuracy, accuracy, loss]

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Keep the study."""
        curve = {str(epoch): point for epoch, point in self.curve.items()}
        self._stage.checkpoint({"training": dict(state), "curve": curve, "batches": self._transform.count})

    def restore(self) -> dict[str, Any] | None:
        """The present training's own checkpoint, if the study was stopped in it."""
        state = self._stage.restore()
        if state is None:
            return None
        self.curve = {int(epoch): [float(value) for value in point] for epoch, point in state["curve"].items()}
        self._transform.count, self._restored = int(state["batches"]), int(state["training"]["epoch"])
        training: dict[str, Any] = state["training"]
        return training


def train_once(study: Study, mode: Mode, seed: int) -> dict[str, Any]:
    """Train a copy of the model with one mode from the initial weights of this seed, and measure it.

    Returns:
        `accuracy`, `train_accuracy` (epoch), `logit` (sample, class), `train_nll`, `noise_accuracy` (severity) and, of
        the first seed, `state`.
    """
    settings, out, name = study.settings, study.out, f"{mode}_{seed}"
    model = copy.deepcopy(study.model)
    reinitialise(model, int(torch.randint(2**31, (), generator=out.generator(f"initial weights {seed}"))))
    before = crop_and_flip(settings.crop_padding, settings.flip)
    transform = MixTransform(mode, settings.mix, study.n_classes, before)
    own = TrainingOut(study, name, model, transform)
    fit(
        model,
        study.train.image,
        study.train.label,
        settings.recipe,
        generator=out.generator(f"training {seed}"),
        transform=transform,
        loss=binary_cross_entropy if study.train.label.ndim == 2 else soft_cross_entropy,
        out=own,  # type: ignore[arg-type]  # the four methods that `fit` calls
        amp=out.dtype == torch.bfloat16,
        name=name,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )
    noisy = []
    for strength in settings.noise_strengths:
        image = add_noise(study.test.image, strength, out.generator(f"noise {seed} {strength}"))
        noisy.append(scores(study.logits(model, image), study.test.label)[0])
    curve = np.array([own.curve[epoch] for epoch in settings.epochs_measured])
    return {
        "accuracy": curve[:, 0],
        "train_accuracy": curve[:, 1],
        "train_nll": float(curve[-1, 2]),
        "logit": study.logits(model, study.test.image).numpy(),
        "noise_accuracy": np.array(noisy),
        "state": {key: value.detach().cpu() for key, value in model.state_dict().items()} if seed == 0 else {},
    }


def run_study(model: nn.Module, train: Samples, test: Samples, settings: StudySettings, out: Out) -> None:
    """Train with every mode and seed, and write everything as each training ends.

    The models of the first seed are stored under the names of their modes.
    """
    modes, seeds, epochs = settings.modes, range(settings.seeds), settings.epochs_measured
    stages = Stages(out, len(modes) * len(seeds), checkpoint_seconds=CHECKPOINT_SECONDS)
    study = Study(model, train, test, settings, check_model(model, train), out, stages)
    out.coordinate("seed", list(seeds))
    out.coordinate("epoch", list(epochs))
    out.coordinate("severity", list(settings.noise_strengths))
    shape = (len(modes), len(seeds))
    arrays = {name: out.array(name, (*shape, len(epochs))) for name in ("accuracy", "train_accuracy")}
    arrays |= {name: out.array(name, shape) for name in ("nll", "ece", "train_nll")}
    arrays["noise_accuracy"] = out.array("noise_accuracy", (*shape, len(settings.noise_strengths)))
    arrays["logit"] = out.array("logit", (*shape, len(test), study.n_classes))
    out.write("label", test.label.long(), dims=("sample", "class")[: test.label.ndim])
    explained = _explained(model, test)
    cam = out.array("grad_cam", (len(modes), len(explained), *explained.image.shape[2:])) if explained else None
    if explained:
        out.write("explained_image", explained.image)
    for seed, row in ((seed, row) for seed in seeds for row in range(len(modes))):
        name = f"{modes[row]}_{seed}"
        if stages.result(name) is None:
            stages.finish(name, train_once(study, modes[row], seed))
        result = stages.results[name]
        _, nll, ece = scores(torch.as_tensor(np.asarray(result["logit"])), test.label)
        for key, value in (result | {"nll": nll, "ece": ece}).items():
            if key in arrays:
                arrays[key][row, seed] = np.asarray(value)
        if seed == 0:
            trained = copy.deepcopy(model).eval()
            trained.load_state_dict({key: torch.as_tensor(value) for key, value in result["state"].items()})
            out.model(trained, name=modes[row])
            if cam is not None and explained is not None:
                cam[row] = grad_cam(trained, explained.image, explained.label)


def check_model(model: nn.Module, train: Samples) -> int:
    """Number of outputs; also that the weights can be drawn anew, so that it does not fail after hours."""
    reinitialise(copy.deepcopy(model), 0)
    logit, _ = predict_all(model, train.image[:2])
    needed = train.label.shape[1] if train.label.ndim == 2 else int(train.label.max()) + 1
    fits = logit.shape[-1] == needed if train.label.ndim == 2 else logit.shape[-1] >= needed
    if logit.ndim != 2 or not fits:
        raise InputError("model", expected=f"one logit for each of {needed} classes", got=f"shape {tuple(logit.shape)}")
    return int(logit.shape[1])


def _explained(model: nn.Module, test: Samples, most: int = 6) -> Samples | None:
    """The first test image of each of the first classes; None for networks or data without Grad-CAM."""
    if test.image.ndim != 4 or test.label.ndim != 1 or not layer_names(model, "convolution"):
        return None
    first = [int(torch.nonzero(test.label == label)[0]) for label in test.label.unique()[:most]]
    return Samples(test.image[first], test.label[first])
