"""What comes before a training: fresh weights, measured normalisation, and the split into training and held-out part."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from workbench import InputError, Model
from workbench.toolkit import image_batches, split_indices

BLOCK = 4096
"""Samples that are read or measured at a time."""


def as_model(module: nn.Module, shape: tuple[int, ...]) -> Model:
    """The module itself if it is a `workbench.Model`, else one around it, without normalisation.

    Args:
        module: maps pictures in 0..1 to logits.
        shape: (channel, y, x) of the pictures.
    """
    return module if isinstance(module, Model) else Model(module, input_shape=shape)


def with_normalization(model: Model, mean: np.ndarray, std: np.ndarray, shape: tuple[int, ...]) -> Model:
    """The same network (shared, not copied) behind another normalisation of its input."""
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    return Model(
        model.network,
        mean=mean.tolist(),
        std=std.tolist(),
        input_shape=shape,
        classes=model.classes,
        factory=model.factory,
        factory_arguments=model.factory_arguments,
        label=model.label,
    ).to(device)


def reset_layers(network: nn.Module, generator: torch.Generator) -> tuple[str, ...]:
    """Draw every layer's initial weights anew through its own `reset_parameters`; returns the layers left as they were.

    The draws are made on the CPU from `generator` alone, so that a seed means the same weights on every device. Inner
    layers come first, so that a module that initialises its parts (`nn.MultiheadAttention`) has the last word.

    Args:
        network: changed in place; stays on its device.
        generator: a CPU generator, e.g. `out.generator("initialization")`.

    Returns:
        Names of the modules that own parameters but have no `reset_parameters` ("(network)" for the outermost).
    """
    devices = {tensor.device for tensor in network.parameters()}
    kept = []
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        network.cpu()
        for name, module in reversed(list(network.named_modules())):
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                kept.append(name or "(network)")
        if len(devices) == 1:
            network.to(devices.pop())
    return tuple(reversed(kept))


def channel_statistics(image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over all pixels of each channel, in 0..1, computed in float64 in two passes.

    Args:
        image: (sample, channel, y, x), float in 0..1 or uint8.

    Returns:
        Two float64 arrays (channel,). A channel without variation gets the standard deviation 1: it is only shifted.
    """
    scale = 255.0 if image.dtype == torch.uint8 else 1.0
    pixels = image.numel() / image.shape[1]
    blocks = [slice(start, start + BLOCK) for start in range(0, len(image), BLOCK)]
    mean = sum(_float64(image[block]).sum(dim=(0, 2, 3)) for block in blocks) / pixels
    square = sum(((_float64(image[block]) - mean[:, None, None]) ** 2).sum(dim=(0, 2, 3)) for block in blocks)
    std = (square / pixels).sqrt()
    std = torch.where(std > 1e-6 * scale, std, torch.full_like(std, scale))
    return (mean / scale).numpy(), (std / scale).numpy()


def _float64(image: Tensor) -> Tensor:
    return image.cpu().double()


def hold_out(label: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (to train on, held out), stratified by class; the same for every seed of the run.

    Raises:
        InputError: there are too few samples for both parts.
    """
    try:
        parts = split_indices(label, {"train": 1 - fraction, "held_out": fraction}, seed=seed)
    except InputError as error:
        raise InputError(
            "validation_fraction",
            expected=f"a share of the {len(label)} samples that leaves both parts non-empty",
            got=str(fraction),
        ) from error
    return parts["train"], parts["held_out"]


def read_samples(image: Any, index: np.ndarray) -> Tensor:
    """The pictures at sorted positions as one tensor on the CPU, read in order and in blocks; uint8 stays uint8.

    Args:
        image: (sample, channel, y, x) array, read lazily.
        index: sorted positions.
    """
    whole = np.issubdtype(image.dtype, np.unsignedinteger)
    room = torch.empty((len(index), *image.shape[1:]), dtype=torch.uint8 if whole else torch.float32)
    for region, batch in image_batches(image, BLOCK, dtype=room.dtype):
        first, last = np.searchsorted(index, [region.start, region.stop])
        room[first:last] = batch[torch.from_numpy(index[first:last] - region.start)]
    return room
