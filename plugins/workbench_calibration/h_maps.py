"""Maps of log-probabilities that keep the order of the classes of every sample: the hypotheses of h-calibration.

Three families of Huang et al. (2025), in four sizes each. All take `log_softmax(logit)` (so numbers <= 0), float64, shape
(sample, class), and return calibrated log-probabilities of the same shape. Sizes: `linear-16..128` (temperatures mixed),
`pwlinear-1..500` (segments), `nonlinear-2..50` (hidden units).

`pwlinear` differs from the official code on purpose. There the distance within a segment is measured from the knot's
value instead of its position, so that after training the map is neither continuous nor monotone; here it is what the paper
says, an increasing piecewise-linear function.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from workbench import InputError

SIZES = {"linear": (16, 32, 64, 128), "pwlinear": (1, 10, 100, 500), "nonlinear": (2, 10, 20, 50)}
"""The paper's candidates."""
CANDIDATES = tuple(f"{family}-{size}" for family, sizes in SIZES.items() for size in sizes)
LOWEST = -100.0
"""Left end of the interval on which the piecewise-linear map has its segments."""
QUADRATURE_STEPS = 50


class TemperatureMixture(nn.Module):
    """`linear`: p = sum_j w_j softmax(|s_j| z) with w = |v| / sum |v|."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        super().__init__()
        # Kaiming-uniform with a = sqrt 5 of a tensor of shape (1, 1, n) is uniform within 1 / sqrt n.
        self.scale = nn.Parameter(_uniform((size,), size, generator))
        self.weight = nn.Parameter(_uniform((size,), size, generator))

    def forward(self, log_probability: Tensor) -> Tensor:
        """Log of the mixture, (sample, class)."""
        scaled = log_probability[..., None] * self.scale.abs()
        share = torch.log(self.weight.abs() / self.weight.abs().sum())
        return torch.logsumexp(torch.log_softmax(scaled, dim=1) + share, dim=2)


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


class MonotoneNetwork(nn.Module):
    """`nonlinear`: softmax of f(x) = integral_0^x (ELU(net(t)) + 1) dt, net a ReLU network 1-h-h-1 (UMNN).

    x is the log-probability standardised by the mean and deviation of all entries of the fit samples. The integral is
    Clenshaw-Curtis quadrature with 51 nodes: monotone but for its error, so callers check that no prediction changed.
    """

    def __init__(self, size: int, generator: torch.Generator, log_probability: Tensor) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(1, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1)
        ).double()
        with torch.no_grad():
            for layer in (module for module in self.net if isinstance(module, nn.Linear)):
                for parameter in (layer.weight, layer.bias):
                    parameter.copy_(_uniform(tuple(parameter.shape), layer.in_features, generator))
        self.register_buffer("mean", log_probability.mean())
        self.register_buffer("deviation", log_probability.std())
        weight, node = clenshaw_curtis(QUADRATURE_STEPS)
        self.register_buffer("quadrature", torch.as_tensor(weight / 2))
        self.register_buffer("node", torch.as_tensor((node + 1) / 2))

    def integrand(self, position: Tensor) -> Tensor:
        """ELU(net(t)) + 1 > 0, elementwise."""
        return nn.functional.elu(self.net(position[..., None])[..., 0]) + 1

    def curve(self, value: Tensor) -> Tensor:
        """The integral at standardised values, any shape."""
        x = (value - self.mean) / self.deviation
        return (self.integrand(x[..., None] * self.node) * self.quadrature).sum(-1) * x

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


def clenshaw_curtis(steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights and nodes cos(j pi / steps), j = 0..steps, of Clenshaw-Curtis quadrature on [-1, 1]; `steps` even."""
    angle = np.arange(steps + 1) * math.pi / steps
    frequency = np.arange(0, steps + 1, 2)
    moment = 2.0 / (1.0 - frequency**2)
    moment[[0, -1]] /= 2
    weight = 2.0 / steps * np.cos(np.outer(angle, frequency)) @ moment
    weight[[0, -1]] /= 2
    return weight, np.cos(angle)


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """Uniform within 1 / sqrt(fan_in), torch's default for linear layers."""
    unit = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return (2 * unit - 1) / math.sqrt(fan_in)
