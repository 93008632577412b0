"""What the tests of BiPer share: noise, digits to train on and others to judge by, a network that they fit."""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor
from workbench import Model
from workbench.subjects import load_model
from workbench.subjects.builtin import FACTORIES, digits

from workbench_quantization import workbench_models

ALL_FACTORIES = {**FACTORIES, **workbench_models()}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def split_digits(count: int = 1200) -> tuple[xr.Dataset, xr.Dataset]:
    """Images to train on, and 597 others to judge by."""
    whole = digits()
    return whole.isel(sample=slice(0, count)), whole.isel(sample=slice(1200, None))


def few_digits() -> tuple[xr.Dataset, xr.Dataset]:
    """200 images to train on, and 300 others."""
    data, test = split_digits(200)
    return data, test.isel(sample=slice(0, 300))


def digit_model() -> Model:
    return load_model("binary-digits", factories=ALL_FACTORIES, example=digits())
