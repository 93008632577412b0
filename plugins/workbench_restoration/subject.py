"""The images of a reconstruction study, cut into parts that train, choose and judge.

`params` are those of `restoration.ms_ssim`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from workbench import InputError, Inputs, Out
from workbench.toolkit import split_indices, to_tensor

from workbench_restoration import metrics
from workbench_restoration.networks import SRCNN
from workbench_restoration.reconstruction import enlarged_pair, random_patches

__all__ = ["Subject", "check_sizes", "enlarge_subject", "split_subject", "training_scales"]

GREY = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green and blue, full range."""


@dataclass(frozen=True)
class Subject:
    """Images in three disjoint parts. For super-resolution each is (enlarged, clean) in two channels, train as patches."""

    train: Tensor
    validation: Tensor
    test: Tensor
    test_index: np.ndarray
    """(sample,) where the images to judge on lie in their data set."""
    train_label: np.ndarray | None
    test_label: np.ndarray | None


def split_subject(inputs: Inputs, params: Any, out: Out) -> Subject:
    """Cut the data into parts that train, choose and judge; role `test`, if given, judges instead of a part of `data`.

    Raises:
        InputError: images out of 0..1, too small, or of other channels or sizes than `data`.
    """
    data, given = inputs["data"], inputs.get("test")
    shares = {"validation": params.validation_fraction} | ({} if given is not None else {"test": params.test_fraction})
    shares["train"] = 1 - sum(shares.values())
    if shares["train"] <= 0:
        raise InputError("test_fraction", expected="something left to train on", got=f"{1 - shares['train']:g} taken")
    parts = split_indices(data.sizes["sample"], shares, seed=out.seed)
    train_index = _some(parts["train"], params.train_images, out.rng("train images"))
    held = parts["test"] if given is None else np.arange(given.sizes["sample"])
    test_index = _some(held, params.test_images, out.rng("test images"))
    source = data if given is None else given
    if source["image"].shape[1:] != data["image"].shape[1:]:
        raise InputError(
            "test['image']", expected=f"images like those of data, {data['image'].shape[1:]}",
            got=str(source["image"].shape[1:]),
        )  # fmt: skip
    labelled = "label" in data and "label" in source
    return Subject(
        _images(data, train_index, params, out),
        _images(data, parts["validation"], params, out),
        _images(source, test_index, params, out),
        test_index,
        data["label"].to_numpy()[train_index] if labelled else None,
        source["label"].to_numpy()[test_index] if labelled else None,
    )


def enlarge_subject(subject: Subject, params: Any, out: Out) -> Subject:
    """The parts for super-resolution: pairs (sample, 2, y, x), the training and validation ones as random patches."""
    height, width = subject.test.shape[-2:]
    room = min(height, width) // params.factor * params.factor
    if room < params.patch:
        raise InputError("patch", expected=f"at most {room}, the images' smaller side", got=str(params.patch))
    pairs = {name: torch.cat(enlarged_pair(getattr(subject, name), params.factor), 1)
             for name in ("train", "validation", "test")}  # fmt: skip
    for name in ("train", "validation"):
        stream = out.generator(f"{name} patches")
        pairs[name] = random_patches(pairs[name], params.patch, params.patches_per_image, stream)
    return Subject(**pairs, test_index=subject.test_index, train_label=None, test_label=None)


def check_sizes(params: Any, height: int, width: int) -> None:
    """Raise InputError unless windows and scales fit what is compared in training and in judging."""
    cut = {"training patches": params.patch - 2 * SRCNN.reach, "images": min(height, width) - 3 * params.factor}
    sides = cut if params.task == "superres" else {"images": min(height, width)}
    for what, side in sides.items():
        room = metrics.scales_that_fit(side, side, window=params.window)
        if room < 1:
            raise InputError("window", expected=f"at most {side}, the side of the {what}", got=str(params.window))
        if params.scales is not None and params.scales > room:
            raise InputError(
                "scales", expected=f"at most {room} for {what} of {side} pixels", got=str(params.scales)
            )  # fmt: skip


def training_scales(params: Any) -> int | None:
    """Scales of MS-SSIM, for training and judging alike; None: as many as fit the images, which both compare whole.

    Super-resolution trains on patches and judges whole images, which have room for more scales: a network would be
    judged by a metric that it was not trained by.
    """
    if params.scales is not None or params.task != "superres":
        return params.scales
    side = params.patch - 2 * SRCNN.reach
    return metrics.scales_that_fit(side, side, window=params.window)


def _some(index: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    return index if len(index) <= most else np.sort(rng.choice(index, most, replace=False))


def _images(data: xr.Dataset, index: np.ndarray, params: Any, out: Out) -> Tensor:
    image = to_tensor(data["image"].isel(sample=index), dtype=out.dtype)
    if not -0.001 <= float(image.min()) <= float(image.max()) <= 1.001:
        raise InputError(
            "data['image']",
            expected="values in 0..1 (or uint8)",
            got=f"{float(image.min()):.3g} to {float(image.max()):.3g}",
            hint="Rescale first: SSIM's constants and its luminance term assume this range.",
        )
    if params.grey and image.shape[1] == 3:
        image = torch.einsum("ncyx,c->nyx", image, image.new_tensor(GREY)).unsqueeze(1)
    return image.clamp(0, 1)
