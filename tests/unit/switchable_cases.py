"""A small network of every kind of layer, made switchable, and digits: for the tests of Double Rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from sklearn.datasets import load_digits
from torch import Tensor, nn

from workbench_quantization.layers import find_blocks
from workbench_quantization.switchable import Switchable

WIDTHS = (8, 6, 4, 2)


class Residual(nn.Module):
    """Norms behind, before and without a layer, a shortcut, a transposed convolution, and a weight that cannot be quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.before = nn.BatchNorm2d(6)
        self.first, self.after = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.odd = nn.Parameter(torch.randn(4, 4) * 0.1 + torch.eye(4))
        self.deep, self.head = nn.Linear(4, 8), nn.Linear(8, 10)

    def forward(self, image: Tensor) -> Tensor:
        hidden = F.relu(self.before(self.stem(image)))
        hidden = hidden + F.relu(self.after(self.first(hidden)))
        pooled = torch.tanh(self.up(hidden)).mean((2, 3)) @ self.odd
        return self.head(F.relu(self.deep(pooled)))


def residual(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Residual()
    model.train()
    model(torch.rand(32, 1, 8, 8))
    return model.eval()


def switchable(model: nn.Module, widths: tuple[int, ...] = WIDTHS, rule: Any = "double", **options: Any) -> Switchable:
    image = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    blocks, _ = find_blocks(model, image[:1])
    fixed = [place in (0, len(blocks) - 1) for place in range(len(blocks))]
    defaults = {
        "rounding": "half_up",
        "start": "max",
        "relative": True,
        "gradient": "own step",
        "inputs": "least error",
    }
    return Switchable(model, blocks, fixed, image, widths, rule=rule, **(defaults | options)).eval()


def digits(start: int, stop: int) -> xr.Dataset:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[start:stop]
    image = (data.images[order] / 16).astype(np.float32)[:, None]
    return xr.Dataset(
        {"image": (("sample", "channel", "y", "x"), image), "label": ("sample", data.target[order].astype(np.int64))}
    )
