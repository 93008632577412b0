"""Simulated ("fake") quantisation of weights and activations, with straight-through gradients.

Weights: symmetric and signed, one range per output channel or per layer. Activations: unsigned with zero-point 0 where
the tensor is never negative (after ReLU), symmetric and signed elsewhere. Follows quant_utils of the HAWQ-V3 code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Granularity = Literal["layer", "channel"]
RangeRule = Literal["extremes", "percentile"]

FULL_PRECISION = 32
"""A width from which on nothing is quantised."""

RANGE_MOMENTUM = 0.99
"""Share of the old activation range that a training step keeps (HAWQ-V3)."""


class _StraightThrough(torch.autograd.Function):
    """Forward: the quantised value. Backward: the gradient as it comes, as if nothing had been rounded."""

    @staticmethod
    def forward(ctx: object, value: Tensor, quantised: Tensor) -> Tensor:
        return quantised.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


def is_transposed_linear(layer: nn.Module) -> bool:
    """Whether this is `transformers.pytorch_utils.Conv1D`: a linear layer whose weight is (input, output). No import is made."""
    kind = type(layer)
    return kind.__name__ == "Conv1D" and kind.__module__.partition(".")[0] == "transformers"


def channel_axis(layer: nn.Module) -> int:
    """The weight dim that counts output channels: 1 for transposed convolutions and transposed linear layers, else 0."""
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    return 1 if transposed or is_transposed_linear(layer) else 0


def weight_scale(weight: Tensor, bits: int, granularity: Granularity = "channel", axis: int = 0) -> Tensor:
    """The step s = max|w| / (2^(b-1) - 1) per layer or per channel, shaped to broadcast against `weight`; 1 where all is zero."""
    if granularity == "layer":
        largest = weight.detach().abs().amax()
    else:
        others = [dim for dim in range(weight.ndim) if dim != axis]
        largest = weight.detach().abs().amax(dim=others, keepdim=True)
    return torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), torch.ones_like(largest))


def weight_levels(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The integers clamp(round(w / s), -2^(b-1), 2^(b-1) - 1), in the dtype of the weight."""
    return torch.clamp(torch.round(weight.detach() / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def quantise_weight(weight: Tensor, bits: int, granularity: Granularity = "channel", axis: int = 0) -> Tensor:
    """Q_b(w) = s * clamp(round(w / s), -2^(b-1), 2^(b-1) - 1), same shape and dtype; straight-through gradient.

    With 2 bits only the levels -1, 0, 1 occur: the lowest level, -2, is never reached because s is max|w| / 1.

    Args:
        weight: any shape; `axis` counts its output channels.
        bits: 2 or more; from 32 on the weight is returned as it is.
        granularity: one range for the layer or one per output channel.
        axis: output channel dim.
    """
    if bits >= FULL_PRECISION:
        return weight
    scale = weight_scale(weight, bits, granularity, axis)
    return _StraightThrough.apply(weight, weight_levels(weight, scale, bits) * scale)


def affine_quantise(values: Tensor, low: Tensor, span: Tensor, bits: int) -> Tensor:
    """(clamp(round(x / s + z), 0, n) - z) * s with n = 2^b - 1, s = span / n, z = clamp(round(-low / s), 0, n).

    Rounding passes gradients straight through; those of the values, of `low` and of `span` follow from all else.

    Args:
        values: any shape.
        low: lowest value of the range, at most 0; broadcasts against `values`.
        span: length of the range, which must contain 0; broadcasts against `values`.
        bits: from 32 on the values are returned as they are.
    """
    if bits >= FULL_PRECISION:
        return values
    levels = 2**bits - 1
    step = span.clamp_min(1e-6) / levels
    zero = _straight_round(-low / step).clamp(0, levels)
    return (_straight_round(values / step + zero).clamp(0, levels) - zero) * step


def _straight_round(values: Tensor) -> Tensor:
    return _StraightThrough.apply(values, values.detach().round())


class _LearnedScale(torch.autograd.Function):
    """Forward: levels * scale * multiple. Backward: see `rescaled_levels`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx,
        values: Tensor,
        scale: Tensor,
        levels: Tensor,
        multiple: float,
        inside: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(values, scale, levels, inside)
        ctx.multiple = multiple  # type: ignore[attr-defined]
        return levels * (scale * multiple)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        values, scale, levels, inside = ctx.saved_tensors
        passed = gradient * inside
        of_levels = torch.dot(gradient.reshape(-1), levels.reshape(-1)) * ctx.multiple
        of_scale = of_levels - torch.dot(passed.reshape(-1), values.reshape(-1)) / scale
        return passed, of_scale.reshape(scale.shape), None, None, None


def rescaled_levels(values: Tensor, scale: Tensor, levels: Tensor, multiple: float, inside: Tensor) -> Tensor:
    """Return q * s * m for integers q that were made of v / s, with the gradients of a learned scale.

    Rounding passes gradients straight through (Esser et al. 2020, arXiv:1902.08153, eq. 3): d/dv is 1 inside the range and
    0 outside; d/ds is q m - v / s inside, and q m, which is the bound of the range, outside.

    Args:
        values: what was quantised, any shape.
        scale: the learned scale, one number.
        levels: integers q of the shape of `values`, in its dtype; no gradient is taken through them.
        multiple: m, steps of the scale that one level stands for.
        inside: bool, where the value lies in the range.
    """
    result: Tensor = _LearnedScale.apply(values, scale, levels.detach(), multiple, inside)  # type: ignore[no-untyped-call]
    return result


def learned_scale_quantise(values: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
    """Return s * clamp(round(v / s), lowest, highest), differentiable in values and scale (see `rescaled_levels`)."""
    steps = values.detach() / scale.detach()
    inside = (steps >= lowest) & (steps <= highest)
    return rescaled_levels(values, scale, steps.clamp_(lowest, highest).round_(), 1.0, inside)


class FakeQuantise(nn.Module):
    """Parametrization that shows a module `quantise_weight` of its weight, while the optimiser sees the original."""

    def __init__(self, bits: int, granularity: Granularity, axis: int) -> None:
        super().__init__()
        self.bits, self.granularity, self.axis = bits, granularity, axis

    def forward(self, weight: Tensor) -> Tensor:
        """Quantised weight, straight-through."""
        return quantise_weight(weight, self.bits, self.granularity, self.axis)


def attach_weight_quantiser(layer: nn.Module, bits: int, granularity: Granularity) -> None:
    """From now on the layer computes with its quantised weight and trains the original (straight-through)."""
    parametrize.register_parametrization(layer, "weight", FakeQuantise(bits, granularity, channel_axis(layer)))


def bake_weight_quantiser(layer: nn.Module) -> None:
    """Undo `attach_weight_quantiser`, leaving the quantised values as the layer's weight."""
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


@contextlib.contextmanager
def weights_replaced(weights: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Give modules other weight values for the length of a block, then the old ones back."""
    kept = {layer: layer.weight.detach().clone() for layer in weights}
    try:
        with torch.no_grad():
            for layer, values in weights.items():
                layer.weight.copy_(values)
        yield
    finally:
        with torch.no_grad():
            for layer, values in kept.items():
                layer.weight.copy_(values)


class ActivationQuantiser(nn.Module):
    """Quantises an activation tensor with one range, learned by watching.

    While `observing`, tensors pass unchanged and the range grows to their extremes (or to the mean over batches of their
    0.1 and 99.9 percentiles). In train mode the range follows with momentum 0.99. Unsigned, 2^b - 1 levels and
    zero-point 0 when nothing negative was seen; symmetric and signed otherwise.
    """

    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(self, bits: int, rule: RangeRule = "extremes") -> None:
        super().__init__()
        self.bits, self.rule = bits, rule
        self.observing = False
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, values: Tensor) -> Tensor:
        """Quantised values, same shape, straight-through; unchanged while observing or from 32 bits on."""
        if self.bits >= FULL_PRECISION:
            return values
        if self.observing or self.training:
            self._observe(values.detach())
        if self.observing:
            return values
        if self.low >= 0:
            scale = self.high / (2**self.bits - 1)
            lowest, highest = 0, 2**self.bits - 1
        else:
            scale = torch.maximum(-self.low, self.high) / (2 ** (self.bits - 1) - 1)
            lowest, highest = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return _StraightThrough.apply(
            values, torch.clamp(torch.round(values.detach() / scale), lowest, highest) * scale
        )

    def _observe(self, values: Tensor) -> None:
        if self.rule == "extremes":
            low, high = values.amin(), values.amax()
        else:
            flat = values.flatten()
            rank = max(1, round(0.999 * flat.numel()))
            high = flat.kthvalue(rank).values
            low = flat.kthvalue(flat.numel() - rank + 1).values if flat.amin() < 0 else flat.new_zeros(())
        if self.batches == 0:
            self.low, self.high = low.clone(), high.clone()
        elif self.training:
            self.low = RANGE_MOMENTUM * self.low + (1 - RANGE_MOMENTUM) * low
            self.high = RANGE_MOMENTUM * self.high + (1 - RANGE_MOMENTUM) * high
        elif self.rule == "extremes":
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        else:
            share = 1 / (int(self.batches) + 1)
            self.low, self.high = self.low + (low - self.low) * share, self.high + (high - self.high) * share
        self.batches += 1


def attach_activation_quantiser(layer: nn.Module, quantiser: ActivationQuantiser) -> torch.utils.hooks.RemovableHandle:
    """Quantise the first positional input of `layer` from now on; `handle.remove()` ends it."""
    return layer.register_forward_pre_hook(lambda _module, inputs: (quantiser(inputs[0]), *inputs[1:]))


class InputQuantisers(nn.Module):
    """Quantisers of the inputs of several layers, one each, attached from construction until `remove`.

    They pass everything through until `set_bits` gives them a width. Being a module, they follow train and eval mode
    when a training wrapper holds them.
    """

    def __init__(self, layers: Sequence[nn.Module], rule: RangeRule = "extremes") -> None:
        super().__init__()
        self.quantisers = nn.ModuleList([ActivationQuantiser(FULL_PRECISION, rule) for _ in layers])
        device = next((parameter.device for layer in layers for parameter in layer.parameters()), None)
        self.to(device)
        self._handles = [
            attach_activation_quantiser(layer, quantiser)  # type: ignore[arg-type]
            for layer, quantiser in zip(layers, self.quantisers, strict=True)
        ]
        self.eval()

    def set_bits(self, bits: Sequence[int]) -> None:
        """One width per layer; ranges stay as they were observed."""
        for quantiser, width in zip(self.quantisers, bits, strict=True):
            quantiser.bits = int(width)

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        """Inside the block tensors pass unchanged and ranges are learned, also of layers at full precision."""
        before = [quantiser.bits for quantiser in self.quantisers]
        for quantiser in self.quantisers:
            quantiser.observing, quantiser.bits = True, FULL_PRECISION - 1
        try:
            yield
        finally:
            for quantiser, bits in zip(self.quantisers, before, strict=True):
                quantiser.observing, quantiser.bits = False, bits

    @property
    def ranges(self) -> Tensor:
        """(layer, 2): lowest and highest value of each range."""
        return torch.stack([torch.stack([quantiser.low, quantiser.high]) for quantiser in self.quantisers])

    def remove(self) -> None:
        """Detach from the layers."""
        for handle in self._handles:
            handle.remove()
