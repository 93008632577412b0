"""Maps of log-probabilities that keep the order of the classes of every sample: the hypotheses of h-calibration.

Three families of Huang et al. (2025), in four sizes each. All take `log_softmax(logit)` (so numbers <= 0), float64, shape
(sample, class), and return calibrated log-probabilities of the same shape. Sizes: `linear-16..128` (temperatures mixed),
`pwlinear-1..500` (segments), `nonlinear-2..50` (hidden units).

`pwlinear` differs from the official code on purpose. There the distance within a segment is measured from the knot's
value instead of its position, so that after training the map is neither continuous nor monotone; here it is what the paper
says, an increasing piecewise-linear function.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from workbench import InputError

from workbench_calibration.h_monotone import MonotoneNetwork, uniform

SIZES = {"linear": (16, 32, 64, 128), "pwlinear": (1, 10, 100, 500), "nonlinear": (2, 10, 20, 50)}
"""The paper's candidates."""
CANDIDATES = tuple(f"{family}-{size}" for family, sizes in SIZES.items() for size in sizes)
LOWEST = -100.0
"""Left end of the interval on which the piecewise-linear map has its segments."""
MIXTURE_ENTRIES = 300_000
"""Entries of samples, temperatures and classes worked on at a time: what stays in a processor's cache."""
LEAST = 1e-300
"""Mixed probabilities below this count as this before the logarithm."""


class TemperatureMixture(nn.Module):
    """`linear`: p = sum_j w_j softmax(|s_j| z) with w = |v| / sum |v|."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        super().__init__()
        # Kaiming-uniform with a = sqrt 5 of a tensor of shape (1, 1, n) is uniform within 1 / sqrt n.
        self.scale = nn.Parameter(uniform((size,), size, generator))
        self.weight = nn.Parameter(uniform((size,), size, generator))

    def forward(self, log_probability: Tensor) -> Tensor:
        """Log of the mixture, (sample, class)."""
        share, scale = self.weight.abs() / self.weight.abs().sum(), self.scale.abs()[:, None]
        some = max(1, MIXTURE_ENTRIES // (log_probability.shape[1] * len(share)))
        mixed = [share @ torch.softmax(scale * rows[:, None, :], dim=2) for rows in log_probability.split(some)]
        return torch.log(torch.cat(mixed).clamp_min(LEAST))


class PiecewiseLinear(nn.Module):
    """`pwlinear`: softmax of one increasing function with f(0) = 0, equal segments on [-100, 0] and slopes |m|."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(size, dtype=torch.float64))

    def curve(self, value: Tensor) -> Tensor:
        """f(value) of any shape; beyond -100 the last slope goes on."""
        slope = self.slope.abs()
        width = -LOWEST / len(slope)
        position = -value / width
        segment = position.detach().floor().clamp(0, len(slope) - 1).long()
        knot = torch.nn.functional.pad(torch.cumsum(slope, dim=0), (1, 0))
        return -width * (knot[segment] + slope[segment] * (position - segment))

    def forward(self, log_probability: Tensor) -> Tensor:
        """Log-softmax of the curve, (sample, class)."""
        return torch.log_softmax(self.curve(log_probability), dim=1)


def make_map(name: str, generator: torch.Generator, log_probability: Tensor) -> nn.Module:
    """A fresh map, e.g. `pwlinear-100`, in float64 on the device of the fit samples.

    Args:
        name: family and size; any positive size is allowed.
        generator: CPU generator of the initial parameters.
        log_probability: of the fit samples, (sample, class).

    Raises:
        InputError: unknown family or size.
    """
    family, _, text = name.partition("-")
    if family not in SIZES or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise InputError(
            "maps", expected="linear, pwlinear or nonlinear with a size of 1 to 1000, as pwlinear-100", got=repr(name)
        )
    size, device = int(text), log_probability.device
    if family == "linear":
        return TemperatureMixture(size, generator).to(device)
    if family == "pwlinear":
        return PiecewiseLinear(size).to(device)
    return MonotoneNetwork(size, generator, log_probability.cpu()).to(device)
