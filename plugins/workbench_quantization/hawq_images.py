"""The images of a quantisation run: what is calibrated and fine-tuned on, and what is reported on, kept apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from workbench import InputError, Inputs, Out
from workbench.toolkit import predict_all, split_indices, to_tensor

from workbench_quantization.hawq_curvature import Batch

IN_MEMORY = 2 << 30
"""Bytes up to which the report images are kept in memory; more are read from the store for every solution."""


@dataclass(frozen=True)
class Images:
    """Images (a tensor, or an array that is read batch by batch), labels, and their positions in the data set."""

    image: Any
    label: Tensor
    index: np.ndarray


@dataclass(frozen=True)
class Parts:
    """What a run uses the images for; `held_out` is disjoint from the others, `calibration` is part of `training`.

    `training` is only read where something is fine-tuned.
    """

    calibration: Images
    training: Images | None
    held_out: Images


def split_roles(
    inputs: Inputs, out: Out, *, report_fraction: float, calibration_samples: int, training: bool = False
) -> Parts:
    """Take role `test` to report on, or keep a share of `data` for it; draw the calibration images from the rest.

    Args:
        inputs: with roles `data` and perhaps `test`.
        out: seeds the split and the draw.
        report_fraction: share of `data` to report on when there is no `test`.
        calibration_samples: calibration images at most.
        training: also hand over all images that are not reported on.
    """
    data, test = inputs["data"], inputs.get("test")
    if test is None:
        shares = {"calibration": 1 - report_fraction, "report": report_fraction}
        parts = split_indices(data["label"], shares, out.seed)
        rest, held_out = parts["calibration"], _images(data, parts["report"], lazy=True)
    else:
        if test["image"].shape[1:] != data["image"].shape[1:]:
            raise InputError(
                "test['image']",
                expected=f"images like those of data {data['image'].shape[1:]}",
                got=f"{test['image'].shape[1:]}",
            )
        rest, held_out = np.arange(data.sizes["sample"]), _images(test, np.arange(test.sizes["sample"]), lazy=True)
    drawn = np.sort(out.rng("calibration").permutation(rest)[:calibration_samples])
    whole = _images(data, rest) if training else None
    return Parts(_images(data, drawn), whole, held_out)


def _images(data: xr.Dataset, index: np.ndarray, *, lazy: bool = False) -> Images:
    part = data.isel(sample=index)
    image, label = part["image"], to_tensor(part["label"]).long()
    if lazy and image.nbytes > IN_MEMORY:
        return Images(image, label, index)
    # uint8 stays uint8 in memory; it becomes 0..1 batch by batch.
    pixels = to_tensor(image, dtype=torch.uint8) if image.dtype == np.uint8 else to_tensor(image).float()
    return Images(pixels, label, index)


def check_labels(model: nn.Module, parts: Parts, device: torch.device) -> None:
    """Raise InputError unless the model gives logits (sample, class) that the labels index."""
    logit = predict_all(model, parts.calibration.image[:2], device=device)[0]
    if logit.ndim != 2:
        raise InputError(
            "model", expected="a classifier with logits (sample, class)", got=f"shape {tuple(logit.shape)}"
        )
    for role, part in (("data", parts.training or parts.calibration), ("test", parts.held_out)):
        low, high = int(part.label.min()), int(part.label.max())
        if low < 0 or high >= logit.shape[1]:
            raise InputError(
                f"{role}['label']", expected=f"0 to {logit.shape[1] - 1}, the model's classes", got=f"{low} to {high}"
            )


def calibration_batches(calibration: Images, size: int, device: torch.device, dtype: torch.dtype) -> list[Batch]:
    """The calibration images in 0..1 with their labels, in batches on the run's device, of the model's dtype."""
    return [
        (to_tensor(image, device=device).to(dtype), label.to(device))
        for image, label in zip(calibration.image.split(size), calibration.label.split(size), strict=True)
    ]
