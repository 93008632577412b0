"""One seeded training loop for everything that trains: same generator, same weights; a killed run goes on exactly.

The order of samples, the augmentation and the network's own randomness (dropout) all descend from one
`torch.Generator`. A checkpoint holds weights, optimiser state, the generator and the history.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.errors import InputError
from workbench.toolkit.inference import evaluating, model_device
from workbench.toolkit.recipe import Recipe, learning_rate, make_optimizer

if TYPE_CHECKING:
    from workbench.method import Out

__all__ = ["FitResult", "Loss", "Step", "Transform", "fit", "numpy_generator", "soft_cross_entropy"]

Transform = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""(image_batch, label_batch, generator) -> (image_batch, target): int64 (sample,) or soft labels (sample, class).

Draw from this generator alone, or a resumed training will differ; `numpy_generator` makes a numpy one of it.
"""
Loss = Callable[[Tensor, Tensor], Tensor]
"""(model output, target) -> a scalar, the mean over the batch."""
Step = Callable[[nn.Module, Tensor, Tensor, torch.optim.Optimizer], Tensor]
"""(model in train mode, image_batch, target, optimiser) -> (2,): loss summed over the batch, and hits; steps the optimiser.

Draw from torch's global generator: `fit` seeds it. What must outlive a kill belongs into buffers of the model.
"""


@dataclass(frozen=True)
class FitResult:
    """What came of a training: `history` has one entry per epoch for each of its names."""

    epochs: int
    history: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """`learning_rate`, `loss` and `accuracy` (means over the epoch), `validation_loss`, `validation_accuracy`."""
    resumed_at: int = 0
    """Epochs that a checkpoint had already done; 0 for a run from the start."""


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """A numpy generator seeded by one draw from `generator`, for transforms that need numpy's distributions."""
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))


def soft_cross_entropy(
    logit: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Cross entropy -sum_c target_c log softmax(logit)_c, in nats, for hard and for soft labels alike.

    Args:
        logit: (sample, class).
        target: int64 classes (sample,) or class probabilities (sample, class), as mixing augmentations make them.
        label_smoothing: e mixes the target with the uniform distribution: (1 - e) target + e / class.
        weight: (class,) weight per class. With hard labels "mean" divides by the sum of weights, with soft ones by the
            number of samples (torch's convention).
        reduction: mean or sum over the samples, or none: (sample,).

    Raises:
        InputError: the shapes or the type of `target` do not fit.
    """
    hard = target.ndim == 1 and not target.is_floating_point()
    if logit.ndim != 2 or not ((hard and len(target) == len(logit)) or target.shape == logit.shape):
        raise InputError(
            "target",
            expected=f"int64 (sample,) or float (sample, class) for logits of shape {tuple(logit.shape)}",
            got=f"{target.dtype} of shape {tuple(target.shape)}",
        )
    target = target if hard else target.to(logit.dtype)
    return F.cross_entropy(logit, target, weight=weight, label_smoothing=label_smoothing, reduction=reduction)


def fit(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    transform: Transform | None = None,
    loss: Loss | None = None,
    step: Step | None = None,
    optimizer_of: Callable[[nn.Module, Recipe], torch.optim.Optimizer] = make_optimizer,
    validation: tuple[Tensor, Tensor] | None = None,
    out: Out | None = None,
    amp: bool = False,
    resume: Mapping[str, Any] | None = None,
    on_epoch: Callable[[int, nn.Module, Mapping[str, float]], None] | None = None,
    name: str = "",
    checkpoint_seconds: float = 10.0,
) -> FitResult:
    """Train `model` in place and leave it in eval mode.

    Equal weights, data, recipe and generator state give equal weights on the same device and library versions, whatever
    torch's global generator is at (it is put back after every epoch). With `out`, progress is reported and a stop is
    honoured before every batch, and a checkpoint is kept after an epoch; a later call with the same recipe, number of
    samples and name goes on from there, bit for bit.

    Args:
        model: on the device to train on; parameters that need no gradient stay as they are.
        image: (sample, ...) float, or uint8 pictures (divided by 255 batch by batch), on any device.
        label: int64 (sample,); soft labels (sample, class); or any float target if `loss` can deal with it.
        recipe: how to train.
        generator: a CPU generator, e.g. `out.generator("training")`.
        transform: augmentation of a batch on the model's device; may return soft labels.
        loss: of (model output, target); `soft_cross_entropy` with the recipe's label smoothing unless given.
        step: what to do with a batch, where that is more than one step down the gradient of `loss`.
        optimizer_of: makes the optimiser; the recipe's unless given. Every epoch sets the rate of all its groups.
        validation: (image, label) to watch, never trained on: loss and accuracy are logged every epoch.
        out: the run's `Out`.
        amp: forward pass under bfloat16 autocast (weights stay as they are).
        resume: a checkpoint to go on from, instead of `out.restore()`.
        on_epoch: called with (finished epochs, model, this epoch's history) after each epoch; not for restored epochs.
        name: tells several trainings of one run apart: prefix `name_` of the logged series, and part of the checkpoint.
        checkpoint_seconds: least time between two checkpoints; 0 keeps one after every epoch. Slow stores are spared:
            at most a tenth of the time goes into checkpoints (unless this is 0).

    Raises:
        InputError: sizes or types do not fit, nothing is trainable, or the training diverged.
        CancelledError: the user asked to stop.
    """
    _check(model, image, label, loss, generator, validation)
    objective = loss or partial(soft_cross_entropy, label_smoothing=recipe.label_smoothing)
    optimizer = optimizer_of(model, recipe)
    identity = json.dumps({"name": name, "samples": len(image), "recipe": asdict(recipe)}, sort_keys=True)
    history: dict[str, list[float]] = {}
    state = resume if resume is not None else (out.restore() if out is not None else None)
    done = _restore(state, identity, model, optimizer, generator, history, strict=resume is not None)
    for epoch in range(done):
        _log(out, name, epoch + 1, {key: values[epoch] for key, values in history.items()})
    device, counts_hits = model_device(model), _has_accuracy(label)
    keeper = _Keeper(out, checkpoint_seconds)
    for epoch in range(done, recipe.epochs):
        row = {"learning_rate": learning_rate(recipe, epoch)}
        for group in optimizer.param_groups:
            group["lr"] = row["learning_rate"]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # Dropout and the like draw from torch's global generator. Seeding it from ours makes it part of the seed
            # and spares the checkpoint its state.
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            sums: list[Tensor] = []
            for index in _batches(torch.randperm(len(image), generator=generator), recipe, epoch, out, name):
                picture, target = _take(image, index, model), label[index.to(label.device)].to(device)
                if transform is not None:
                    picture, target = transform(picture, target, generator)
                if step is not None:
                    model.train()
                    sums.append(step(model, picture, target, optimizer))
                else:
                    sums.append(_step(model, picture, target, objective, optimizer, recipe.gradient_clip, amp))
            # In float64 on the CPU: not every device has it.
            loss_mean, accuracy = (torch.stack(sums).cpu().double().sum(0) / len(image)).tolist()
            row |= {"loss": loss_mean, "accuracy": accuracy} if counts_hits else {"loss": loss_mean}
            _check_finite(row, epoch, recipe)
            if validation is not None:
                row |= _validate(model, *validation, objective, recipe.batch_size, amp)
        for key, value in row.items():
            history.setdefault(key, []).append(value)
        _log(out, name, epoch + 1, row)
        if keeper.due(last=epoch + 1 == recipe.epochs):
            keeper.keep(_checkpoint(identity, epoch + 1, model, optimizer, generator, history))
        if on_epoch is not None:
            on_epoch(epoch + 1, model, row)
    if out is not None:
        out.progress(1, 1, _message(name, "trained"))
    model.eval()
    return FitResult(recipe.epochs, {key: tuple(values) for key, values in history.items()}, done)


def _step(
    model: nn.Module,
    picture: Tensor,
    target: Tensor,
    objective: Loss,
    optimizer: torch.optim.Optimizer,
    gradient_clip: float | None,
    amp: bool,
) -> Tensor:
    """One optimiser step; returns (sum of the loss over the batch, hits), left on the device so that nothing waits."""
    model.train()
    with _autocast(picture.device, amp):
        output = model(picture)
    output = output.float() if amp else output
    value = objective(output, target)
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    if gradient_clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
    optimizer.step()
    with torch.no_grad():
        return torch.stack([value.detach() * len(picture), _hits(output, target).to(value.dtype)])


def _validate(
    model: nn.Module, image: Tensor, label: Tensor, objective: Loss, batch_size: int, amp: bool
) -> dict[str, float]:
    device = model_device(model)
    loss_sum = correct = 0.0
    with evaluating(model):
        for index in torch.arange(len(image)).chunk(math.ceil(len(image) / batch_size)):
            target = label[index.to(label.device)].to(device)
            with _autocast(device, amp):
                output = model(_take(image, index, model))
            output = output.float() if amp else output
            loss_sum += float(objective(output, target)) * len(index)
            correct += float(_hits(output, target))
    accuracy = {"validation_accuracy": correct / len(image)} if _has_accuracy(label) else {}
    return {"validation_loss": loss_sum / len(image)} | accuracy


def _autocast(device: torch.device, amp: bool) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if amp else nullcontext()


def _take(image: Tensor, index: Tensor, model: nn.Module) -> Tensor:
    """The pictures at `index` as the model wants them: on its device, in its precision, in 0..1."""
    picture = image[index.to(image.device)].to(model_device(model))
    picture = picture.float().div_(255) if picture.dtype == torch.uint8 else picture
    return picture.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), picture.dtype))


def _batches(order: Tensor, recipe: Recipe, epoch: int, out: Out | None, name: str) -> Iterator[Tensor]:
    """Yield the index batches of an epoch, with progress; a lone last sample joins the batch before (batch norm)."""
    size = recipe.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    for number, batch in enumerate(batches):
        if out is not None:
            message = _message(name, f"epoch {epoch + 1} of {recipe.epochs}")
            out.progress(epoch * len(batches) + number, recipe.epochs * len(batches), message)
        yield batch


def _message(name: str, text: str) -> str:
    return f"{name}: {text}" if name else text


def _check_finite(row: Mapping[str, float], epoch: int, recipe: Recipe) -> None:
    if not math.isfinite(row["loss"]):
        raise InputError(
            "recipe.learning_rate",
            expected="a training that stays finite",
            got=f"a loss of {row['loss']} in epoch {epoch + 1} of {recipe.epochs} at {row['learning_rate']:.3g}",
            hint="Try a smaller learning rate, a warm-up or gradient_clip.",
        )


def _looks_like_classes(label: Tensor) -> bool:
    return label.ndim == (2 if label.is_floating_point() else 1)


def _has_accuracy(label: Tensor) -> bool:
    """Whether these are classes or class probabilities, not the targets of a regression."""
    if not label.is_floating_point():
        return label.ndim == 1
    return label.ndim == 2 and bool((label >= 0).all()) and bool(((label.sum(1) - 1).abs() < 1e-3).all())


def _hits(output: Tensor, target: Tensor) -> Tensor:
    """Target mass on the predicted classes: the number of hits for hard labels, the usual count for mixed ones."""
    if not _looks_like_classes(target) or output.ndim != 2:
        return output.new_zeros(())
    predicted = output.argmax(dim=1)
    if target.ndim == 1:
        return (predicted == target).sum()
    return target.gather(1, predicted[:, None]).sum()


class _Keeper:
    """When to keep a checkpoint: not more often than asked for, and for at most a tenth of the time."""

    def __init__(self, out: Out | None, seconds: float) -> None:
        self._out, self._seconds = out, seconds
        self._begun = self._saved = time.monotonic()
        self._cost = 0.0

    def due(self, *, last: bool) -> bool:
        """Whether to keep one now; after the last epoch of a long training always, as the caller's work goes on."""
        if self._out is None:
            return False
        if self._seconds <= 0:
            return True
        now = time.monotonic()
        if last:
            return now - self._begun >= self._seconds
        return now - self._saved >= max(self._seconds, 10 * self._cost)

    def keep(self, state: Mapping[str, Any]) -> None:
        """Save it and remember how long that took."""
        assert self._out is not None
        start = time.monotonic()
        self._out.checkpoint(state)
        self._saved = time.monotonic()
        self._cost = self._saved - start


def _checkpoint(
    identity: str,
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    history: Mapping[str, list[float]],
) -> dict[str, Any]:
    """All that the next epoch depends on; the learning rate is a function of the epoch and needs no entry."""
    state = optimizer.state_dict()["state"]
    return {
        "identity": identity,
        "epoch": epoch,
        "model": {key: value.detach().cpu().clone() for key, value in model.state_dict().items()},
        "optimizer": {
            str(index): {key: value.detach().cpu().clone() for key, value in entry.items() if value is not None}
            for index, entry in state.items()
        },
        "generator": generator.get_state(),
        "history": {key: list(values) for key, values in history.items()},
    }


def _restore(
    state: Mapping[str, Any] | None,
    identity: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    history: dict[str, list[float]],
    *,
    strict: bool,
) -> int:
    """Put everything back to where the checkpoint was and return its epoch; 0 if it belongs to another training."""
    if state is None:
        return 0
    if state.get("identity") != identity:
        if strict:
            raise InputError("resume", expected=f"a checkpoint of {identity}", got=str(state.get("identity")))
        return 0
    model.load_state_dict({key: torch.as_tensor(value) for key, value in state["model"].items()})
    optimizer.load_state_dict(
        {
            "param_groups": optimizer.state_dict()["param_groups"],
            "state": {
                int(index): {key: torch.as_tensor(value).clone() for key, value in entry.items()}
                for index, entry in state["optimizer"].items()
            },
        }
    )
    generator.set_state(torch.as_tensor(state["generator"], dtype=torch.uint8).cpu())
    history.update({key: [float(value) for value in values] for key, values in state["history"].items()})
    return int(state["epoch"])


def _log(out: Out | None, name: str, epoch: int, row: Mapping[str, float]) -> None:
    if out is not None:
        out.log(step=epoch, **{f"{name}_{key}" if name else key: value for key, value in row.items()})


def _check(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    loss: Loss | None,
    generator: torch.Generator,
    validation: tuple[Tensor, Tensor] | None,
) -> None:
    for role, pictures, labels in (("", image, label), *((("validation ", *validation),) if validation else ())):
        if not len(pictures) or len(pictures) != len(labels):
            raise InputError(
                f"{role}label",
                expected="one label per image, at least one",
                got=f"{len(labels)} labels, {len(pictures)} images",
            )
        if not (pictures.is_floating_point() or pictures.dtype == torch.uint8):
            raise InputError(f"{role}image", expected="float or uint8", got=str(pictures.dtype))
        if loss is None and not _looks_like_classes(labels):
            raise InputError(
                f"{role}label",
                expected="int64 (sample,) or float (sample, class)",
                got=f"{labels.dtype} of shape {tuple(labels.shape)}",
                hint="Other targets need a loss of their own.",
            )
    if generator.device.type != "cpu":
        raise InputError("generator", expected="a CPU generator", got=f"one on {generator.device}")
