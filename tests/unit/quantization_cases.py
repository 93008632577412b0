"""What tests of several quantization methods share: networks trained on digits, and one whose shortcut is added in place."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from workbench import Model
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Recipe, fit

from workbench_quantization.folding import Unit, find_units, fold
from workbench_quantization.layers import find_blocks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


@functools.cache
def trained_on_digits(*, epochs: int, calibration: int) -> tuple[xr.Dataset, xr.Dataset, Model]:
    """Digits to calibrate on, those left to report on, and a small CNN trained on 900 others, as the host hands models over.

    Made once per process and handed to every caller: copy the model before you change it.
    """
    source = load_digits()
    image, label = (source.images / 16).astype(np.float32)[:, None], source.target.astype(np.int64)
    torch.manual_seed(0)
    model = SmallCNN(10, width=8)
    recipe = Recipe(epochs=epochs, learning_rate=0.05, batch_size=64)
    fit(model, torch.from_numpy(image[:900]), torch.from_numpy(label[:900]), recipe, generator=generator())

    def dataset(part: slice) -> xr.Dataset:
        return xr.Dataset({"image": (("sample", "channel", "y", "x"), image[part]), "label": ("sample", label[part])})

    border = 900 + calibration
    return dataset(slice(900, border)), dataset(slice(border, None)), Model(model.eval(), mean=0.0, std=1.0)


class Residual(nn.Module):
    """Adds the shortcut in place and rectifies in place, as many networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.up, self.norm3 = nn.ConvTranspose2d(4, 3, 2, stride=2), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 5)

    def forward(self, image: Tensor) -> Tensor:
        first = F.relu(self.norm1(self.conv1(image)))
        second = self.norm2(self.conv2(first))
        second += first
        second = torch.relu_(second)
        return self.head(F.relu(self.norm3(self.up(second))).mean((2, 3)))


def random_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    rng = generator(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.copy_(torch.randn(module.weight.shape, generator=rng))  # some are negative
                module.bias.copy_(torch.randn(module.bias.shape, generator=rng))
                module.running_mean.copy_(torch.randn(module.bias.shape, generator=rng))
                module.running_var.copy_(torch.rand(module.bias.shape, generator=rng) + 0.1)
    return model.eval()


def folded(model: nn.Module, image: Tensor) -> list[Unit]:
    blocks, _ = find_blocks(model, image[:1])
    units = find_units(model, blocks, image[:1])
    fold(model, units, image)
    return units
