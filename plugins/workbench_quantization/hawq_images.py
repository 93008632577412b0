"""The images of a HAWQ run: what is calibrated and fine-tuned on, and what is reported on, kept apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from workbench import InputError, Inputs, Out
from workbench.toolkit import predict_all, split_indices, to_tensor

from workbench_quantization.hawq_curvature import Batch

if TYPE_CHECKING:
    from workbench_quantization.hawq import Params


@dataclass(frozen=True)
class Images:
    """Images and labels in memory, and their positions in the data set they came from."""

    image: Tensor
    label: Tensor
    index: np.ndarray


def split_roles(inputs: Inputs, params: Params, seed: int) -> tuple[Images, Images]:
    """Images to calibrate on and images to report on: role `test`, or a share of `data` that is not calibrated on."""
    data, test = inputs["data"], inputs.get("test")
    if test is not None:
        if dict(test["image"].sizes) | {"sample": 0} != dict(data["image"].sizes) | {"sample": 0}:
            raise InputError(
                "test['image']",
                expected=f"images like those of data {data['image'].shape[1:]}",
                got=f"{test['image'].shape[1:]}",
            )
        return _images(data, np.arange(data.sizes["sample"])), _images(test, np.arange(test.sizes["sample"]))
    share = params.report_fraction
    parts = split_indices(data["label"], {"calibration": 1 - share, "report": share}, seed)
    return _images(data, parts["calibration"]), _images(data, parts["report"])


def _images(data: xr.Dataset, index: np.ndarray) -> Images:
    part = data.isel(sample=index)
    image, label = part["image"], to_tensor(part["label"])
    # uint8 stays uint8 in memory; it becomes 0..1 batch by batch.
    pixels = to_tensor(image, dtype=torch.uint8) if image.dtype == np.uint8 else to_tensor(image).float()
    return Images(pixels, label.long(), index)


def check_labels(model: nn.Module, calibration: Images, held_out: Images, device: torch.device) -> None:
    """Raise InputError unless the model gives logits (sample, class) that the labels index."""
    logit = predict_all(model, calibration.image[:2], device=device)[0]
    if logit.ndim != 2:
        raise InputError(
            "model", expected="a classifier with logits (sample, class)", got=f"shape {tuple(logit.shape)}"
        )
    for role, part in (("data", calibration), ("test", held_out)):
        low, high = int(part.label.min()), int(part.label.max())
        if low < 0 or high >= logit.shape[1]:
            raise InputError(
                f"{role}['label']", expected=f"0 to {logit.shape[1] - 1}, the model's classes", got=f"{low} to {high}"
            )


def draw_batches(calibration: Images, params: Params, out: Out) -> list[Batch]:
    """The fixed calibration set, drawn without replacement from the calibration part, on the run's device."""
    count = min(params.hess_samples, len(calibration.label))
    index = torch.from_numpy(np.sort(out.rng("calibration").permutation(len(calibration.label))[:count]))
    return [
        (to_tensor(calibration.image[part], device=out.device).float(), calibration.label[part].to(out.device))
        for part in index.split(params.hess_batch)
    ]
