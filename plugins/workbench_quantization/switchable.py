"""A network whose layers change their width at any moment: one weight, one scale; norms and input scales per width."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from workbench.toolkit import evaluating, predict

from workbench_quantization.folding import Norm
from workbench_quantization.layers import Block
from workbench_quantization.nested_rounding import (
    InputStart,
    Rounding,
    Rule,
    ScaleGradient,
    ScaleStart,
    gradient_factor,
    initial_scale,
    input_range,
    learned_step_start,
    least_error_step,
    nested_weight,
    with_gradient,
)
from workbench_quantization.quantizer import FULL_PRECISION, learned_scale_quantise

SHOWN_VALUES = 16_384
"""Values of a layer's input that its first scales are chosen on."""
SMALLEST_FACTOR = 1e-3
"""Share of its first value below which no scale falls: Adam could push a small one through zero."""


class Scale(nn.Module):
    """A learned scale: its first value times a factor. With `relative` the optimiser moves the factor, which starts at 1."""

    reference: Tensor

    def __init__(self, first: float, *, relative: bool) -> None:
        super().__init__()
        self.register_buffer("reference", torch.tensor(first if relative else 1.0))
        self.factor = nn.Parameter(torch.tensor(1.0 if relative else first))
        self.least = SMALLEST_FACTOR * float(self.factor.detach())

    def forward(self) -> Tensor:
        """The scale, one number."""
        return self.reference * self.factor

    @property
    def gradient(self) -> Tensor:
        """Of the loss with respect to the scale itself; 0 where there is none yet."""
        if self.factor.grad is None:
            return torch.zeros_like(self.factor)
        return self.factor.grad / self.reference


class SwitchableLayer(nn.Module):
    """A convolution or linear layer that computes with `bits`-bit weights and inputs; with None as it came.

    Args:
        layer: whose weight is trained; it is kept, not copied.
        widths: highest first.
        rule: `direct` has a weight scale of its own for every width, the others one for all.
        rounding: of weights.
        start: first weight scale.
        relative: how scales are learned (see `Scale`).
        gradient: which derivative moves the weight scale (see `gradient_factor`).
        shown: (value,) of the input, for its first scales; None leaves inputs in full precision.
        input_start: how those are chosen: least squared error, or LSQ's formula.
        signed: whether inputs were negative.
    """

    def __init__(
        self,
        layer: nn.Module,
        widths: Sequence[int],
        *,
        rule: Rule,
        rounding: Rounding,
        start: ScaleStart,
        relative: bool,
        gradient: ScaleGradient,
        shown: Tensor | None,
        input_start: InputStart,
        signed: bool,
    ) -> None:
        super().__init__()
        self.gradient = gradient
        self.layer, self.widths, self.rule, self.rounding, self.signed = layer, tuple(widths), rule, rounding, signed
        self.bits: int | None = None
        highest, lowest = widths[0], widths[-1]
        weight = layer.get_parameter("weight")
        firsts = [initial_scale(weight, highest, lowest, start)]
        if rule == "direct":
            firsts = [initial_scale(weight, bits, bits, start) for bits in widths]
        self.weight_scales = nn.ModuleList([Scale(first, relative=relative) for first in firsts])
        self.input_scales = nn.ModuleList()
        if shown is not None:
            for bits in widths:
                low, high = input_range(bits, signed)
                least = input_start == "least error"
                first = least_error_step(shown, low, high) if least else learned_step_start(shown, high)
                self.input_scales.append(Scale(first, relative=relative))
        self.to(weight.device)

    @property
    def weight(self) -> Tensor:
        """The trained weight, for code that looks at the layer."""
        return self.layer.get_parameter("weight")

    def weight_scale(self, bits: int) -> Scale:
        """The scale that weights of this width are made with."""
        found = self.weight_scales[self.widths.index(bits) if self.rule == "direct" else 0]
        assert isinstance(found, Scale)
        return found

    def input_scale(self, bits: int) -> Scale:
        """The scale of the input at this width."""
        found = self.input_scales[self.widths.index(bits)]
        assert isinstance(found, Scale)
        return found

    def weight_at(self, bits: int) -> Tensor:
        """The weight that is computed with, differentiable."""
        # A scale of the width itself is its own step already.
        highest = bits if self.rule == "direct" else self.widths[0]
        factor = gradient_factor(self.gradient, highest, bits, self.weight.numel())
        scale = with_gradient(self.weight_scale(bits)().to(self.weight.dtype), factor)
        return nested_weight(self.weight, scale, self.widths[0], bits, self.rule, self.rounding)

    def forward(self, image: Tensor, *others: object) -> Tensor:
        """What the layer returns at its present width."""
        if self.bits is None:
            return self.layer(image, *others)  # type: ignore[no-any-return]
        if len(self.input_scales):
            scale = self.input_scale(self.bits)().to(image.dtype)
            image = learned_scale_quantise(image, scale, *input_range(self.bits, self.signed))
        result: Tensor = functional_call(self.layer, {"weight": self.weight_at(self.bits)}, (image, *others))
        return result


class SwitchableNorm(nn.Module):
    """A batch norm with a set of statistics and weights for every width, or for every pair of neighbouring widths."""

    def __init__(self, norm: nn.Module, widths: Sequence[int], place: int) -> None:
        super().__init__()
        self.place = place
        """The quantisable layer called last before the norm; -1 for none."""
        self.sets = nn.ModuleDict({str(bits): copy.deepcopy(norm) for bits in widths})
        self.active = str(widths[0])

    @property
    def norm(self) -> nn.Module:
        """The set in use."""
        return self.sets[self.active]

    def forward(self, values: Tensor) -> Tensor:
        """Normalised by the set in use."""
        return self.norm(values)  # type: ignore[no-any-return]

    def to_transitional(self) -> None:
        """One set for each pair (width of the layer before, own width), starting as that of the own width."""
        self.sets = nn.ModuleDict(
            {f"{before}-{own}": copy.deepcopy(norm) for before in self.sets for own, norm in self.sets.items()}
        )


class Switchable(nn.Module):
    """A model whose quantisable layers and norms were replaced by switchable ones; `switch` changes their widths.

    Args:
        model: any model; it is changed in place and computes as before until `switch`.
        blocks: its quantisable layers in order of execution, one each.
        fixed: (layer,) those that stay in full precision.
        image: (sample, channel, y, x), images that show the layers' inputs.
        widths: highest first.
        rule, rounding, start, relative, gradient: see `SwitchableLayer`.
        inputs: how the first scales of the layers' inputs are chosen; None leaves inputs in full precision.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        fixed: Sequence[bool],
        image: Tensor,
        widths: Sequence[int],
        *,
        rule: Rule,
        rounding: Rounding,
        start: ScaleStart,
        relative: bool,
        gradient: ScaleGradient,
        inputs: InputStart | None,
    ) -> None:
        super().__init__()
        self.widths, self.transitional = tuple(widths), False
        shown, signed = _watch_inputs(model, blocks, image)
        places = _norm_places(model, blocks, image[:2])
        self.layers: dict[int, SwitchableLayer] = {}
        for place, block in enumerate(blocks):
            if fixed[place]:
                continue
            self.layers[place] = SwitchableLayer(
                block.layers[0],
                widths,
                rule=rule,
                rounding=rounding,
                start=start,
                relative=relative,
                gradient=gradient,
                shown=shown[place] if inputs else None,
                input_start=inputs or "lsq",
                signed=signed[place],
            )
        self.norms = {
            name: SwitchableNorm(module, widths, places.get(name, -1))
            for name, module in model.named_modules()
            if isinstance(module, Norm)
        }
        for place, layer in self.layers.items():
            _replace(model, blocks[place].layers[0], layer)
        for name, norm in self.norms.items():
            _replace(model, model.get_submodule(name), norm)
        self.model = model
        self.count = len(blocks)
        self.to(image.device)

    def forward(self, image: Tensor) -> Tensor:
        """The model's output at the present widths."""
        result: Tensor = self.model(image)
        return result

    @property
    def scales(self) -> list[list[Scale]]:
        """All scales of every quantised layer."""
        return [[m for m in layer.modules() if isinstance(m, Scale)] for layer in self.layers.values()]

    def switch(self, bits: int | Mapping[int, int]) -> None:
        """One width for all layers, or widths by place. A norm follows the layer before it.

        Where norms are transitional they also follow the quantised layer before that one. Norms of layers in full
        precision follow the nearest quantised layer: the next for the first layers, else the one before.
        """
        chosen = dict.fromkeys(self.layers, bits) if isinstance(bits, int) else dict(bits)
        for place, layer in self.layers.items():
            layer.bits = chosen[place]
        quantised = sorted(self.layers)
        for norm in self.norms.values():
            before = [place for place in quantised if place <= norm.place] or quantised[:1]
            own, earlier = chosen[before[-1]], chosen[before[-2] if len(before) > 1 else before[-1]]
            norm.active = f"{earlier}-{own}" if self.transitional else str(own)

    def to_transitional(self) -> None:
        """From one norm per width to one per pair of neighbouring widths."""
        for norm in self.norms.values():
            norm.to_transitional()
        self.transitional = True
        self.to(next(self.model.parameters()).device)

    @torch.no_grad()
    def keep_scales_positive(self) -> None:
        """After a step of the optimiser."""
        for scales in self.scales:
            for scale in scales:
                scale.factor.clamp_(min=scale.least)

    @torch.no_grad()
    def write_into(self, plain: nn.Module) -> None:
        """Give a copy of the original model the weights and norms of the present widths (dequantised)."""
        for name, module in plain.named_modules():
            mine: nn.Module = self.model.get_submodule(name)
            layer = mine if isinstance(mine, SwitchableLayer) else None
            if isinstance(mine, SwitchableNorm):
                mine = mine.norm
            source = mine if layer is None else layer.layer
            for key, value in [*module._parameters.items(), *module._buffers.items()]:
                if value is not None:
                    value.copy_(getattr(source, key))
            if layer is not None and layer.bits is not None:
                module.get_parameter("weight").copy_(layer.weight_at(layer.bits))


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is a child."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)


def _watch_inputs(model: nn.Module, blocks: Sequence[Block], image: Tensor) -> tuple[list[Tensor], list[bool]]:
    """Values of every layer's input, evenly spread over the images, on the CPU; and whether it was ever negative."""
    kept: list[list[Tensor]] = [[] for _ in blocks]
    lows = torch.zeros(len(blocks))
    handles = []
    for place, block in enumerate(blocks):

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], place: int = place) -> None:
            values = inputs[0].detach()
            flat = values.flatten()
            count = max(1, SHOWN_VALUES * len(values) // len(image))
            # A stride that shares no factor with the sizes of pictures sees all channels and places.
            kept[place].append(flat[:: max(1, flat.numel() // count) | 1].float().cpu())
            lows[place] = min(float(lows[place]), float(values.amin()))

        handles.append(block.layers[0].register_forward_pre_hook(hook))
    try:
        for _ in predict(model, image, device=image.device):
            pass
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(parts) if parts else torch.zeros(1) for parts in kept], (lows < 0).tolist()


def _norm_places(model: nn.Module, blocks: Sequence[Block], image: Tensor) -> dict[str, int]:
    """For every batch norm by name the place of the quantisable layer that was called last before it."""
    last, places, handles = -1, dict[str, int](), []

    def passing(place: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            nonlocal last
            last = place

        return hook

    def placing(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            places.setdefault(name, last)

        return hook

    for place, block in enumerate(blocks):
        handles.append(block.layers[0].register_forward_hook(passing(place)))
    for name, module in model.named_modules():
        if isinstance(module, Norm):
            handles.append(module.register_forward_hook(placing(name)))
    try:
        with evaluating(model):
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return places


def table_of(net: Switchable, bits: int | Mapping[int, int]) -> list[int]:
    """(layer,) the widths of all layers; those that stay in full precision have 32."""
    chosen = dict.fromkeys(net.layers, bits) if isinstance(bits, int) else dict(bits)
    return [int(chosen.get(place, FULL_PRECISION)) for place in range(net.count)]


def widths_of(net: Switchable, table: Iterable[int]) -> dict[int, int]:
    """The inverse: widths by place of the quantised layers."""
    row = [int(width) for width in table]
    return {place: row[place] for place in net.layers}
