"""Batched, streaming inference: a data set larger than memory passes through a model slice by slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.errors import InputError
from workbench.toolkit.features import Pool, capture, find_layer
from workbench.toolkit.tensors import ArrayLike, image_batches

if TYPE_CHECKING:
    from workbench.method import Out

__all__ = ["evaluating", "model_device", "predict", "predict_all"]


def model_device(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without gradients inside the block; each sub-module's mode is put back."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in before:
            module.training = training


def predict(
    model: nn.Module,
    image: ArrayLike,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    out: Out | None = None,
    dtype: torch.dtype | None = None,
    layers: Sequence[str] = (),
    pool: Pool = None,
    inputs: bool = False,
) -> Iterator[tuple[slice, Tensor, dict[str, Tensor]]]:
    """Yield `(slice, logit, {layer: activation})` per batch; nothing is kept, so the whole data set never is in memory.

        for region, logit, _ in predict(model, data["image"], out=out):
            stored[region] = logit

    The model is called in eval mode without gradients and is left in the mode it was in.

    Args:
        model: maps (sample, channel, y, x) to any tensor with samples along its first dim.
        image: (sample, channel, y, x), float or uint8; read lazily slice by slice.
        batch_size: samples per forward pass; the last may be smaller.
        device: where to compute; the model's own device unless given (the model is not moved: it must lie there).
        out: the run's `Out`, for progress and cancellation between batches.
        dtype: float16 or bfloat16 computes under autocast; logits and activations come back as float32.
        layers: names of layers whose activations are wanted.
        pool: `"mean"` averages activations over all dims after the second.
        inputs: give what the layers receive instead of what they return.

    Raises:
        InputError: an unknown layer, a batch size below 1, a dtype that autocast does not know.
    """
    if dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
        raise InputError("dtype", expected="None, float32, float16 or bfloat16", got=str(dtype))
    for name in layers:
        find_layer(model, name)
    target = model_device(model) if device is None else torch.device(device)
    batches = image_batches(image, batch_size, target)
    return _predict(model, batches, len(image), target, out, dtype, tuple(layers), pool, inputs)


def _model_dtype(model: nn.Module) -> torch.dtype | None:
    return next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)


def _predict(
    model: nn.Module,
    batches: Iterator[tuple[slice, Tensor]],
    count: int,
    device: torch.device,
    out: Out | None,
    dtype: torch.dtype | None,
    layers: tuple[str, ...],
    pool: Pool,
    inputs: bool,
) -> Iterator[tuple[slice, Tensor, dict[str, Tensor]]]:
    half = dtype in (torch.float16, torch.bfloat16)
    own = _model_dtype(model)
    for region, batch in batches:
        autocast: Any = torch.autocast(device.type, dtype) if half else nullcontext()
        # Hooks, eval mode and no_grad last for one batch only: the caller's code between two batches is not affected.
        with evaluating(model), capture(model, layers, pool=pool, inputs=inputs) as activation, autocast:
            logit = model(batch.to(own) if own is not None and batch.is_floating_point() else batch)
        yield region, _full(logit), {name: _full(value) for name, value in activation.items()}
        if out is not None:
            out.progress(region.stop, count, "predicting")


def predict_all(
    model: nn.Module,
    image: ArrayLike,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    out: Out | None = None,
    dtype: torch.dtype | None = None,
    layers: Sequence[str] = (),
    pool: Pool = None,
    inputs: bool = False,
    keep_on: torch.device | str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """All of `predict` at once: `(logit, {layer: activation})` over all samples, for sets that fit into memory.

    The arguments are those of `predict`; `keep_on` says where the collected tensors shall lie (the computing device
    unless given).

    Raises:
        InputError: as `predict`, or there are no samples.
    """
    count = len(image)
    if not count:
        raise InputError("image", expected="at least one sample", got="none")
    logit: Tensor | None = None
    activation: dict[str, Tensor] = {}
    stream = predict(
        model,
        image,
        batch_size=batch_size,
        device=device,
        out=out,
        dtype=dtype,
        layers=layers,
        pool=pool,
        inputs=inputs,
    )
    for region, part, parts in stream:
        if logit is None:
            logit = _room(part, count, keep_on)
            activation = {name: _room(value, count, keep_on) for name, value in parts.items()}
        logit[region] = part.to(logit.device)
        for name, value in parts.items():
            activation[name][region] = value.to(logit.device)
    assert logit is not None
    return logit, activation


def _room(part: Tensor, count: int, device: torch.device | str | None) -> Tensor:
    return torch.empty((count, *part.shape[1:]), dtype=part.dtype, device=part.device if device is None else device)


def _full(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
