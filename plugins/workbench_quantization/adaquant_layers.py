"""AdaQuant of one layer: its quantised form, ranges from data, and the optimisation that makes its output match again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from workbench.toolkit import evaluating

from workbench_quantization.folding import Unit, by_channel
from workbench_quantization.quantizer import affine_quantise

Part = Literal["weights", "bias", "weight_range", "input_range"]
PARTS: tuple[Part, ...] = ("weights", "bias", "weight_range", "input_range")


@dataclass(frozen=True)
class Quantised:
    """A layer's values before rounding, and its ranges: (1 or channel, ...) for weights, () for inputs."""

    weight: Tensor
    bias: Tensor | None
    weight_low: Tensor
    weight_span: Tensor
    input_low: Tensor
    input_span: Tensor
    weight_bits: int
    input_bits: int

    @property
    def rounded(self) -> Tensor:
        """The weight that is computed with."""
        return affine_quantise(self.weight, self.weight_low, self.weight_span, self.weight_bits)


@dataclass(frozen=True)
class Rates:
    """Adam's learning rates, one for each kind of parameter; defaults of the official code are in `Params`."""

    weights: float
    bias: float
    weight_range: float
    input_range: float


def initial(unit: Unit, inputs: Tensor, weight_bits: int, input_bits: int) -> Quantised:
    """Naive quantisation: weights by minimum and maximum per channel, inputs by the mean of the samples' extremes."""
    weight = unit.layer.get_parameter("weight").detach().clone()
    others = [dim for dim in range(weight.ndim) if dim != unit.axis]
    low, high = weight.amin(others, keepdim=True).clamp_max(0), weight.amax(others, keepdim=True).clamp_min(0)
    flat = inputs.flatten(1)
    input_low, input_high = flat.amin(1).mean().clamp_max(0), flat.amax(1).mean().clamp_min(0)
    bias = None if unit.bias is None else unit.bias.detach().clone()
    return Quantised(weight, bias, low, high - low, input_low, input_high - input_low, weight_bits, input_bits)


@torch.no_grad()
def integers(state: Quantised) -> tuple[Tensor, Tensor, Tensor]:
    """(integers, steps, zeros): uint8 of the weight's shape, one step and one zero (uint8) per output channel.

    The weight that is computed with is (integer - zero) * step.
    """
    levels = 2**state.weight_bits - 1
    step = state.weight_span.clamp_min(1e-6) / levels
    zero = (-state.weight_low / step).round().clamp(0, levels)
    whole = (state.weight / step + zero).round().clamp(0, levels)
    return whole.to(torch.uint8), step.float().flatten(), zero.to(torch.uint8).flatten()


def output(unit: Unit, state: Quantised, inputs: Tensor) -> Tensor:
    """What the unit returns for `inputs` when it is quantised; differentiable in everything the state holds."""
    taken = affine_quantise(inputs, state.input_low, state.input_span, state.input_bits)
    replaced: dict[str, Tensor] = {"weight": state.rounded}
    if unit.norm is None:
        if state.bias is not None:
            replaced["bias"] = state.bias
        return functional_call(unit.layer, replaced, (taken,))
    result = functional_call(unit.layer, replaced, (taken,))
    assert state.bias is not None
    return result + state.bias.view(-1, *(1,) * (result.ndim - 2))


def error(unit: Unit, state: Quantised, inputs: Tensor, target: Tensor, *, rectify: bool) -> Tensor:
    """Mean squared difference to the full-precision output, behind the ReLU if there is one (and `rectify`)."""
    found = output(unit, state, inputs)
    if rectify and unit.rectified:
        found, target = F.relu(found), F.relu(target)
    return F.mse_loss(found, target)


def optimise(
    unit: Unit,
    start: Quantised,
    inputs: Tensor,
    target: Tensor,
    *,
    rates: Rates,
    parts: Sequence[Part],
    iterations: int,
    batch: int,
    rectify: bool,
    generator: torch.Generator,
    on_step: Callable[[int, float], Any] = lambda step, loss: None,
) -> Quantised:
    """Minimise over weights, bias and ranges of the expected ||y - layer_q(x)||^2, by Adam on random batches.

    Args:
        unit: the layer.
        start: where to start; kept as it is.
        inputs: (sample, ...), what the layer receives.
        target: (sample, ...), what it returned in full precision.
        rates: learning rates of the four kinds of parameters.
        parts: which of them are optimised.
        iterations: steps.
        batch: samples per step, drawn with replacement.
        rectify: compare behind the ReLU.
        generator: draws the batches.
        on_step: called with step and loss.
    """
    trained = {
        "weight": "weights", "bias": "bias", "weight_low": "weight_range", "weight_span": "weight_range",
        "input_low": "input_range", "input_span": "input_range",
    }  # fmt: skip
    values = {
        name: getattr(start, name).detach().clone().requires_grad_(True)
        for name, part in trained.items()
        if part in parts and getattr(start, name) is not None
    }
    if not values:
        return start
    optimiser = torch.optim.Adam([{"params": [v], "lr": getattr(rates, trained[name])} for name, v in values.items()])
    state = replace(start, **values)
    for step in range(iterations):
        drawn = torch.randint(len(inputs), (batch,), generator=generator).to(inputs.device)
        loss = error(unit, state, inputs[drawn], target[drawn], rectify=rectify)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        on_step(step, float(loss.detach()))
    return replace(start, **{name: value.detach() for name, value in values.items()})


@dataclass(frozen=True)
class NormShifts:
    """How far quantisation had moved the channels of every unit before its norm was tuned; None for units without a norm.

    mean: (channel,) shift of the mean in standard deviations; deviation: relative change of the standard deviation. Both against
    what the folded norm gave, beta and |gamma|; NaN where |gamma| is next to 0.
    """

    mean: list[Tensor | None]
    deviation: list[Tensor | None]

    @property
    def root_mean_squares(self) -> tuple[list[float], list[float]]:
        """Over the channels of each unit, NaN where there are none."""

        def of(parts: list[Tensor | None]) -> list[float]:
            known = [None if part is None else part[torch.isfinite(part)] for part in parts]
            return [
                float(part.square().mean().sqrt()) if part is not None and len(part) else float("nan") for part in known
            ]

        return of(self.mean), of(self.deviation)

    def table(self, parts: list[Tensor | None]) -> np.ndarray:
        """(unit, channel) float32 of `mean` or `deviation`, NaN beyond a unit's channels."""
        widest = max([len(part) for part in parts if part is not None], default=1)
        rows = np.full((len(parts), widest), np.nan, dtype=np.float32)
        for row, part in zip(rows, parts, strict=True):
            if part is not None:
                row[: len(part)] = part.float().cpu().numpy()
        return rows


class Student:
    """A folded model whose units can be quantised and set back. Inputs are quantised by hooks until `close`."""

    def __init__(self, model: nn.Module, units: Sequence[Unit]) -> None:
        self.model, self.units = model, list(units)
        self.states: list[Quantised | None] = [None] * len(self.units)
        self._full = [
            (
                unit.layer.get_parameter("weight").detach().clone(),
                None if unit.bias is None else unit.bias.detach().clone(),
            )
            for unit in self.units
        ]
        self._handles = [unit.layer.register_forward_pre_hook(self._quantise(i)) for i, unit in enumerate(self.units)]

    def _quantise(self, place: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            state = self.states[place]
            if state is None:
                return inputs
            return (affine_quantise(inputs[0], state.input_low, state.input_span, state.input_bits), *inputs[1:])

        return hook

    @torch.no_grad()
    def install(self, place: int, state: Quantised | None) -> None:
        """Quantise one unit, or (None) give it its full-precision values back."""
        unit, (weight, bias) = self.units[place], self._full[place]
        unit.layer.get_parameter("weight").copy_(weight if state is None else state.rounded)
        if unit.bias is not None:
            new = bias if state is None else state.bias
            assert new is not None
            unit.bias.copy_(new)
        self.states[place] = state

    def install_all(self, states: Sequence[Quantised | None]) -> None:
        """Quantise all units."""
        for place, state in enumerate(states):
            self.install(place, state)

    def close(self) -> None:
        """Stop quantising inputs."""
        for handle in self._handles:
            handle.remove()

    @contextlib.contextmanager
    def _watching(self, hooks: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
        handles = [module.register_forward_hook(hook) for module, hook in hooks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def collect(self, place: int, batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What one unit receives (before its input is quantised) and returns, over all batches.

        Copies: residual networks add the shortcut to the output in place, which would change a tensor only kept.
        """
        unit, received, returned = self.units[place], [], []
        # In front of the quantising hook, so that the input is seen as it came.
        handle = unit.layer.register_forward_pre_hook(lambda _m, i: received.append(i[0].clone()), prepend=True)
        try:
            with evaluating(self.model), self._watching([(unit.output, lambda _m, _i, o: returned.append(o.clone()))]):
                for batch in batches:
                    self.model(batch)
        finally:
            handle.remove()
        return torch.cat(received), torch.cat(returned)

    @torch.no_grad()
    def tune_norms(self, batches: Sequence[Tensor], *, passes: int, momentum: float) -> NormShifts:
        """Give every channel back the mean and the standard deviation of its norm, from the quantised model's own data.

        After each unit a batch norm of weight sqrt(gamma^2 + eps), bias beta, running mean beta and variance gamma^2
        (which changes nothing) sees the images in train mode and is folded again. Integers stay what they are: factors
        go into the scales.

        Returns:
            How far the channels had moved.
        """
        tuned: dict[int, tuple[Tensor, Tensor]] = {}
        hooks = []
        for place, unit in enumerate(self.units):
            if unit.norm is None:
                continue
            assert unit.mean is not None
            assert unit.std is not None
            tuned[place] = unit.mean.clone(), unit.std.square()
            hooks.append((unit.norm, self._renormalise(unit, *tuned[place], momentum)))
        with evaluating(self.model), self._watching(hooks):
            for _ in range(passes):
                for batch in batches:
                    self.model(batch)
        moved: list[Tensor | None] = [None] * len(self.units)
        scaled: list[Tensor | None] = [None] * len(self.units)
        for place, (mean, variance) in tuned.items():
            unit, state = self.units[place], self.states[place]
            assert unit.norm is not None
            assert unit.mean is not None
            assert unit.std is not None
            epsilon = unit.norm.eps
            factor = torch.sqrt((unit.std.square() + epsilon) / (variance + epsilon))
            bias = (unit.norm.bias - mean) * factor + unit.mean
            known = torch.where(unit.std > 1e-3, unit.std, torch.nan)
            moved[place], scaled[place] = (mean - unit.mean) / known, variance.sqrt() / known - 1
            if state is None:
                weight = unit.layer.get_parameter("weight")
                weight.copy_(weight * by_channel(unit, factor))
                unit.norm.bias.copy_(bias)
                continue
            spread = by_channel(unit, factor)
            new = replace(
                state,
                weight=state.weight * spread,
                bias=bias,
                weight_low=state.weight_low * spread,
                weight_span=state.weight_span * spread,
            )
            self.install(place, new)
        return NormShifts(moved, scaled)

    @staticmethod
    def _renormalise(unit: Unit, mean: Tensor, variance: Tensor, momentum: float) -> Callable[..., Tensor]:
        assert unit.norm is not None
        assert unit.mean is not None
        assert unit.std is not None
        epsilon, weight, bias = unit.norm.eps, torch.sqrt(unit.std.square() + unit.norm.eps), unit.mean

        def hook(_module: nn.Module, _inputs: Any, values: Tensor) -> Tensor:
            return F.batch_norm(values, mean, variance, weight, bias, True, momentum, epsilon)

        return hook

    def tune_biases(
        self,
        teacher: Tensor,
        images: Tensor,
        *,
        steps: int,
        batch: int,
        rate: float,
        generator: torch.Generator,
        on_step: Callable[[int, float], Any] = lambda step, loss: None,
    ) -> None:
        """SGD on KL(teacher || student) over all biases but those of linear layers; weights and ranges stay.

        The divergence is the mean over samples. The official code also divides it by the number of classes
        (`nn.KLDivLoss(reduction="mean")`), so that its gradients are smaller by that factor.
        """
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        biases = [u.bias for u in self.units if u.bias is not None and not isinstance(u.layer, nn.Linear)]
        if not biases or not steps:
            return
        for bias in biases:
            bias.requires_grad_(True)
        optimiser = torch.optim.SGD(biases, lr=rate)
        for step in range(steps):
            drawn = torch.randint(len(images), (batch,), generator=generator).to(images.device)
            loss = F.kl_div(
                self.model(images[drawn]).log_softmax(1),
                teacher[drawn].log_softmax(1),
                reduction="batchmean",
                log_target=True,
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            on_step(step, float(loss.detach()))
        for place, unit in enumerate(self.units):
            state = self.states[place]
            if unit.bias is not None and state is not None:
                self.states[place] = replace(state, bias=unit.bias.detach().clone())
