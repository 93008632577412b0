"""An unconstrained monotone network of one variable, integrated exactly: the `nonlinear` maps of h-calibration.

Wehenkel and Louppe (2019), Unconstrained Monotonic Neural Networks, NeurIPS, arXiv 1908.05164: a function whose derivative is a
network made positive. The official code of h-calibration integrates it by Clenshaw-Curtis quadrature with 51 nodes for every
single entry. A ReLU network of one variable is a chain of straight pieces, though, and ELU + 1 of a straight piece has an
antiderivative in closed form. So the integral here is exact, hence monotone, and costs one look-up an entry.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SMALL_RISE = 1e-2
"""Pieces that rise by less are integrated by a series, the quotient of differences being inaccurate there."""


class MonotoneNetwork(nn.Module):
    """`nonlinear`: softmax of f(x) = integral_0^x (ELU(net(t)) + 1) dt, net a ReLU network 1-h-h-1.

    x is the log-probability standardised by the mean and deviation of all entries of the fit samples.
    """

    def __init__(self, size: int, generator: torch.Generator, log_probability: Tensor) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(1, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1)
        ).double()
        with torch.no_grad():
            for layer in (module for module in self.net if isinstance(module, nn.Linear)):
                for parameter in (layer.weight, layer.bias):
                    parameter.copy_(uniform(tuple(parameter.shape), layer.in_features, generator))
        self.register_buffer("mean", log_probability.mean())
        self.register_buffer("deviation", log_probability.std())

    def integrand(self, position: Tensor) -> Tensor:
        """ELU(net(t)) + 1 > 0, elementwise."""
        return nn.functional.elu(self.net(position[..., None])[..., 0]) + 1

    def curve(self, value: Tensor) -> Tensor:
        """The integral at standardised values, any shape. Differentiable in the parameters."""
        x = ((value - self.mean) / self.deviation).detach()
        knot = self.knots(x)
        left, width = knot[:-1], knot.diff()
        # Two points inside a piece give its line with the right derivative in the parameters; at a knot that is not defined.
        quarter = self.net((left[:, None] + width[:, None] * width.new_tensor([0.25, 0.75]))[..., None])[..., 0]
        rise = 2 * (quarter[:, 1] - quarter[:, 0])
        start = quarter[:, 0] - rise / 4
        until = torch.nn.functional.pad(torch.cumsum(piece_integral(start, rise, width, torch.ones_like(width)), 0), (1, 0))
        until = until - until[torch.searchsorted(knot, knot.new_zeros(()))]
        piece = (torch.searchsorted(knot, x.reshape(-1), right=True) - 1).clamp(0, len(left) - 1)
        before, start, rise = torch.stack([until[:-1], start, rise], dim=1).index_select(0, piece).unbind(1)
        width = width[piece]
        return (before + piece_integral(start, rise, width, (x.reshape(-1) - left[piece]) / width)).view_as(x)

    @torch.no_grad()
    def knots(self, x: Tensor) -> Tensor:
        """Ascending ends of the pieces over the range of x and 0: where a unit or the network itself crosses 0."""
        knot = torch.unique(torch.stack([x.min().clamp_max(-1e-9), x.new_zeros(()), x.max().clamp_min(1e-9)]))
        for layers in (1, 3, 5):  # up to the output of each linear layer, which is straight between the knots so far
            output = self.net[:layers](knot[:, None])
            first, second = output[:-1], output[1:]
            share = first / (first - second)
            crossing = (knot[:-1, None] + knot.diff()[:, None] * share)[first * second < 0]
            knot = torch.unique(torch.cat([knot, crossing]))
        return knot

    def forward(self, log_probability: Tensor) -> Tensor:
        """Log-softmax of the curve, (sample, class)."""
        return torch.log_softmax(self.curve(log_probability), dim=1)


def piece_integral(start: Tensor, rise: Tensor, width: Tensor, share: Tensor) -> Tensor:
    """Integral of ELU(line) + 1 over the first `share` of a piece on which the line does not cross 0, elementwise.

    Args:
        start: the line at the left end.
        rise: what it gains until the right end.
        width: of the piece.
        share: of the piece that is integrated, 0..1.
    """
    straight = (1 + start) * share + rise * share**2 / 2
    # below 0 the integrand is exp(line); where it is not, numbers are held down so that nothing overflows
    gain = rise * share
    low, high = start.clamp_max(1.0), (start + gain).clamp_max(1.0)
    small = gain.abs() < SMALL_RISE
    half = gain.clamp(-SMALL_RISE, SMALL_RISE) / 2
    series = torch.exp(start.clamp_max(1.0) + half) * (1 + half**2 / 6 + half**4 / 120)
    quotient = (torch.exp(high) - torch.exp(low)) / torch.where(small, torch.ones_like(gain), gain)
    bent = share * torch.where(small, series, quotient)
    return width * torch.where(start + rise / 2 > 0, straight, bent)


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """Uniform within 1 / sqrt(fan_in), torch's default for linear layers."""
    unit = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return (2 * unit - 1) / math.sqrt(fan_in)
