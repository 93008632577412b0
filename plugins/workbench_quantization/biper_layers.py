"""Binary layers: the sign with its surrogate gradients, periodic weights, and a convolution or linear layer made of both.

`BinaryLayer` trains, `PackedLayer` is what is kept of it: eight weights to a byte and one scale per output channel.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Surrogate = Literal["identity", "clipped", "polynomial"]
WeightMode = Literal["sine", "square", "sign_clipped", "sign_polynomial"]
InputMode = Literal["polynomial", "clipped", "real"]

VARIANCE_FLOOR = 1e-5
"""Added to the variance of a layer's input before it is divided by its root (official code)."""

CONVOLUTIONS = {"Conv1d": F.conv1d, "Conv2d": F.conv2d, "Conv3d": F.conv3d}
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""What can be binary."""


class _Sign(torch.autograd.Function):
    """Forward: +1 or -1. Backward: the incoming gradient times the surrogate derivative."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.surrogate = surrogate
        if surrogate != "identity":
            ctx.save_for_backward(values)
        return torch.where(values >= 0, 1.0, -1.0).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        if ctx.surrogate == "identity":
            return gradient, None
        (values,) = ctx.saved_tensors
        if ctx.surrogate == "clipped":
            return gradient * (values.abs() <= 1), None
        return gradient * (2 - 2 * values.abs()).clamp_min(0), None


def sign(values: Tensor, surrogate: Surrogate) -> Tensor:
    """The sign of x, -1 or +1, any shape; 0 counts as positive, so that no third level appears.

    Args:
        values: x.
        surrogate: derivative to train with: 1, 1 where |x| <= 1 (Courbariaux et al. 2016), or max(2 - 2|x|, 0), the
            derivative of a piecewise-quadratic sign (Liu et al. 2018).
    """
    return _Sign.apply(values, surrogate)


def periodic_weight(weight: Tensor, omega: float) -> Tensor:
    """sin(omega w), the real weight of stage 1, any shape."""
    return torch.sin(omega * weight)


def binary_periodic_weight(weight: Tensor, omega: float) -> Tensor:
    """sign(sin(omega w)), a square wave of period 2 pi / omega; its gradient is that of the sine, omega cos(omega w)."""
    return sign(periodic_weight(weight, omega), "identity")


def effective_weight(weight: Tensor, mode: WeightMode, omega: float) -> Tensor:
    """What a layer multiplies with, of the weight's shape.

    Args:
        weight: latent weight.
        mode: sine (stage 1, not binary), square (stage 2), or the plain sign with one of two surrogates.
        omega: frequency.
    """
    if mode == "sine":
        return periodic_weight(weight, omega)
    if mode == "square":
        return binary_periodic_weight(weight, omega)
    return sign(weight, "clipped" if mode == "sign_clipped" else "polynomial")


def binary_input(values: Tensor, surrogate: Surrogate, *, training: bool) -> Tensor:
    """sign(a / sqrt(var(a) + 1e-5)), the variance over all dims but `sample`; without the division when not training.

    The sign does not change by the division, but the place does where its surrogate is taken.
    """
    dims = tuple(range(1, values.ndim))
    if training and values[:1].numel() > 1:
        values = values / (values.var(dim=dims, keepdim=True) + VARIANCE_FLOOR).sqrt()
    return sign(values, surrogate)


def sine_penalty(weight: Tensor, omega: float) -> Tensor:
    """mean(1/2 - 1/2 cos(2 omega w)) = mean(sin^2(omega w)), a scalar."""
    return (0.5 - 0.5 * torch.cos(2 * omega * weight)).mean()


def pack_signs(bit: Tensor) -> Tensor:
    """Weights +1 and -1 of any shape as bits, lowest first: uint8 (ceil(n / 8),)."""
    packed = np.packbits(bit.detach().cpu().numpy().reshape(-1) > 0, bitorder="little")
    return torch.from_numpy(packed).to(bit.device)


def unpack_signs(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack_signs`: float32 of this shape, of +1 and -1. Written in operations that ONNX has."""
    powers = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0], device=packed.device)
    shifted = torch.floor(packed.to(torch.float32)[:, None] / powers)  # exact: powers of two
    bits = torch.remainder(shifted, 2.0).flatten()[: int(np.prod(shape))]
    return bits.reshape(tuple(shape)) * 2 - 1


# ---------------------------------------------------------------------------------------------------------------- layers


class Operation(nn.Module):
    """What a convolution or linear layer does with values and a weight that is handed in; without bias."""

    def __init__(self, layer: nn.Module, pad_value: float = 0.0) -> None:
        super().__init__()
        self.kind = type(layer).__name__
        self.pad_value = float(pad_value)
        if self.kind == "Linear":
            return
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        self.padding = tuple(int(size) for size in layer._reversed_padding_repeated_twice)

    def extra_repr(self) -> str:
        """Kind and geometry."""
        if self.kind == "Linear":
            return self.kind
        return f"{self.kind}, stride={self.stride}, padding={self.padding}, pad_value={self.pad_value:g}"

    def forward(self, values: Tensor, weight: Tensor) -> Tensor:
        """The product, (sample, channel, ...) or (sample, ..., feature)."""
        if self.kind == "Linear":
            return F.linear(values, weight)
        convolve = CONVOLUTIONS[self.kind]
        symmetric = self.padding[::2] == self.padding[1::2]
        if self.padding_mode == "constant" and self.pad_value == 0 and symmetric:
            return convolve(values, weight, None, self.stride, self.padding[::-2], self.dilation, self.groups)
        if any(self.padding):
            value = self.pad_value if self.padding_mode == "constant" else None
            values = F.pad(values, self.padding, mode=self.padding_mode, value=value)
        return convolve(values, weight, None, self.stride, 0, self.dilation, self.groups)

    def per_channel(self, values: Tensor, dims: int) -> Tensor:
        """(channel,) shaped to broadcast against an output of so many dims."""
        return values if self.kind == "Linear" else values.reshape(-1, *[1] * (dims - 2))


class BinaryLayer(nn.Module):
    """conv(sign(a), w_b) * alpha + bias, trained through surrogates; takes over the weight and bias of a plain layer.

    The official code has layers without bias; where a layer has one it is added after the scale.

    Args:
        layer: one of `LAYERS`.
        omega: frequency.
        weights: how the latent weight becomes the effective one; may be changed at any time.
        inputs: surrogate of the inputs' sign, or "real": inputs as they are.
        pad_value: what is padded with; 0 is a third level beside -1 and +1.
    """

    def __init__(
        self,
        layer: nn.Module,
        *,
        omega: float,
        weights: WeightMode = "square",
        inputs: InputMode = "polynomial",
        pad_value: float = 0.0,
    ) -> None:
        super().__init__()
        self.operation = Operation(layer, pad_value)
        self.omega, self.weights, self.inputs = float(omega), weights, inputs
        self.place = 0  # in the order of execution
        self.weight = nn.Parameter(layer.get_parameter("weight").detach().clone())
        bias = getattr(layer, "bias", None)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.alpha = nn.Parameter(torch.ones(len(self.weight), dtype=self.weight.dtype, device=self.weight.device))

    def extra_repr(self) -> str:
        """What the weights and inputs are."""
        return f"omega={self.omega:g}, weights={self.weights}, inputs={self.inputs}"

    @property
    def effective(self) -> Tensor:
        """The weight it multiplies with."""
        return effective_weight(self.weight, self.weights, self.omega)

    def forward(self, values: Tensor) -> Tensor:
        """The layer's output for inputs of any real values."""
        if self.inputs != "real":
            values = binary_input(values, self.inputs, training=self.training)
        product = self.operation(values, self.effective)
        scaled = product * self.operation.per_channel(self.alpha, product.ndim)
        return scaled if self.bias is None else scaled + self.operation.per_channel(self.bias, product.ndim)


class PackedLayer(nn.Module):
    """A binary layer as it is stored: `packed` (uint8, eight weights to a byte), `alpha` and perhaps `bias` per channel.

    Computes what the trained layer computes in eval mode. Nothing in it can be trained.
    """

    packed: Tensor
    alpha: Tensor
    bias: Tensor | None

    def __init__(self, operation: Operation, shape: Sequence[int], *, inputs: InputMode, bias: bool) -> None:
        super().__init__()
        self.operation, self.shape, self.inputs = operation, tuple(int(size) for size in shape), inputs
        self.register_buffer("packed", torch.zeros(-(-int(np.prod(self.shape)) // 8), dtype=torch.uint8))
        self.register_buffer("alpha", torch.ones(self.shape[0]))
        self.register_buffer("bias", torch.zeros(self.shape[0]) if bias else None)

    def extra_repr(self) -> str:
        """Shape of the weight and kind of inputs."""
        return f"shape={self.shape}, inputs={self.inputs}"

    @property
    def weight(self) -> Tensor:
        """+1 and -1, float32."""
        return unpack_signs(self.packed, self.shape)

    def forward(self, values: Tensor) -> Tensor:
        """The layer's output."""
        if self.inputs != "real":
            # Where nobody asks for a gradient (attribution does), plain operations can be exported.
            asked = torch.is_grad_enabled() and values.requires_grad
            values = sign(values, self.inputs) if asked else torch.where(values >= 0, 1.0, -1.0).to(values.dtype)
        product = self.operation(values, self.weight.to(values.dtype))
        scaled = product * self.operation.per_channel(self.alpha, product.ndim)
        return scaled if self.bias is None else scaled + self.operation.per_channel(self.bias, product.ndim)


# -------------------------------------------------------------------------------------------------------------- networks


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one called `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def with_hardtanh(network: nn.Module) -> int:
    """Replace every nn.ReLU and nn.ReLU6 by nn.Hardtanh, in place; returns how many.

    Behind a ReLU nothing is negative, so a sign would be 1 everywhere.
    """
    count = 0
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, nn.ReLU | nn.ReLU6):
                parent._modules[name] = nn.Hardtanh()
                count += 1
    return count


def binarise(network: nn.Module, names: Sequence[str], **options: Any) -> nn.Module:
    """Replace the layers called `names`, in order of execution, by `BinaryLayer`s with these options, in place.

    Returns:
        The network.
    """
    for place, name in enumerate(names):
        layer = BinaryLayer(network.get_submodule(name), **options)
        layer.place = place
        replace_module(network, name, layer)
    return network


def binary_layers(network: nn.Module) -> dict[str, BinaryLayer]:
    """Its trainable binary layers by name, in order of execution."""
    found = {name: module for name, module in network.named_modules() if isinstance(module, BinaryLayer)}
    return dict(sorted(found.items(), key=lambda item: item[1].place))


def packed_layers(network: nn.Module) -> dict[str, PackedLayer]:
    """Its packed binary layers by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, PackedLayer)}


def set_weights(network: nn.Module, mode: WeightMode) -> nn.Module:
    """Change how all binary layers make their weights."""
    for layer in binary_layers(network).values():
        layer.weights = mode
    return network


def packed_network(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose binary layers are packed; refuses layers that still compute with sines (stage 1)."""
    copied = copy.deepcopy(network).eval()
    for name, layer in binary_layers(copied).items():
        if layer.weights == "sine":
            raise ValueError(f"{name} has real weights: binarise it first")
        packed = PackedLayer(layer.operation, layer.weight.shape, inputs=layer.inputs, bias=layer.bias is not None)
        packed.to(layer.weight.device)
        with torch.no_grad():
            packed.packed.copy_(pack_signs(layer.effective))
            packed.alpha.copy_(layer.alpha.float())
            if packed.bias is not None and layer.bias is not None:
                packed.bias.copy_(layer.bias.float())
        replace_module(copied, name, packed.eval())
    return copied


def empty_packed_network(network: nn.Module, names: Sequence[str], *, inputs: InputMode, pad_value: float) -> nn.Module:
    """The network, changed in place, with room for stored weights in the layers called `names`."""
    for name in names:
        layer = network.get_submodule(name)
        shape, bias = layer.get_parameter("weight").shape, getattr(layer, "bias", None) is not None
        replace_module(network, name, PackedLayer(Operation(layer, pad_value), shape, inputs=inputs, bias=bias))
    return network


def weight_bits(layers: Mapping[str, BinaryLayer]) -> Iterator[Tensor]:
    """Per layer where the weight is +1: bool of the weight's shape."""
    for layer in layers.values():
        wave = periodic_weight(layer.weight, layer.omega) if layer.weights in ("sine", "square") else layer.weight
        yield wave.detach() >= 0
