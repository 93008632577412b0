"""The maths of Double Rounding: integers of a high width from which those of every lower width follow by a shift.

Equation numbers are those of Huang et al. (2025), arXiv:2502.01199. Weights are symmetric (zero-point 0) with one scale s
for a layer; h is the width that is stored, l the one computed with, D = h - l.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from workbench_quantization.quantizer import rescaled_levels

Rule = Literal["double", "floor", "direct"]
"""How an l-bit weight comes about: from the stored integers by a second rounding, by cutting bits off, or from W itself."""
Rounding = Literal["half_up", "half_even"]
RateRule = Literal["off", "paper", "multiplicative"]
ScaleStart = Literal["max", "lsq", "lsq_lowest"]
InputStart = Literal["least error", "lsq"]
ScaleGradient = Literal["own step", "lsq", "stored step"]
"""Whose derivative moves the shared scale: see `gradient_factor`."""


def level_range(bits: int) -> tuple[int, int]:
    """Lowest and highest signed level, -2^(b-1) and 2^(b-1) - 1."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def input_range(bits: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest level of a layer's input: 0 and 2^b - 1 behind a ReLU, else those of a weight."""
    return level_range(bits) if signed else (0, 2**bits - 1)


def to_integers(values: Tensor, rounding: Rounding) -> Tensor:
    """Nearest integers in the dtype of `values`; halves go up, as a hardware shift does it, or to even, as torch does."""
    return torch.floor(values + 0.5) if rounding == "half_up" else torch.round(values)


def stored_levels(weight: Tensor, scale: Tensor, highest: int, rounding: Rounding = "half_up") -> Tensor:
    """Wh = clip(round(W / s), -2^(h-1), 2^(h-1) - 1), in the dtype of the weight (eq. 2)."""
    return to_integers(weight.detach() / scale.detach(), rounding).clamp(*level_range(highest))


def switched_levels(
    stored: Tensor, highest: int, bits: int, rule: Literal["double", "floor"] = "double", rounding: Rounding = "half_up"
) -> Tensor:
    """Wl = clip(round(Wh / 2^D), -2^(l-1), 2^(l-1) - 1) (eq. 3), or with floor instead of round.

    Without the clip 8-bit 127 would become a fifth 2-bit level: round(127 / 64) = 2.

    Args:
        stored: Wh, integers in a floating-point dtype.
        highest: h.
        bits: l, at most h.
        rule: of the second rounding.
        rounding: where halves go; one stored level in 2^D is a half.
    """
    if bits == highest:
        return stored
    steps = stored / 2 ** (highest - bits)
    whole = torch.floor(steps) if rule == "floor" else to_integers(steps, rounding)
    return whole.clamp(*level_range(bits))


def shifted_levels(stored: Tensor, highest: int, bits: int) -> Tensor:
    """The same in integer arithmetic, as hardware does it: clip((Wh + 2^(D-1)) >> D). Equal to `half_up`, bit for bit.

    Args:
        stored: Wh, any signed integer dtype.
        highest: h.
        bits: l, at most h.

    Returns:
        int16 of the same shape.
    """
    if bits == highest:
        return stored.to(torch.int16)
    distance = highest - bits
    return ((stored.to(torch.int16) + (1 << (distance - 1))) >> distance).clamp(*level_range(bits))


def nested_weight(
    weight: Tensor, scale: Tensor, highest: int, bits: int, rule: Rule = "double", rounding: Rounding = "half_up"
) -> Tensor:
    """W^ = Wl * s * 2^D, differentiable in W and s (eqs. 4 to 6); with rule `direct`, W^ = clip(round(W / s)) * s.

    The straight-through gradients are those of the definition with every rounding replaced by the identity: d W^/dW is 1
    where Wh / 2^D lies in the range of l bits and 0 elsewhere; d W^/ds is Wl 2^D - W / s there and Wl 2^D elsewhere.

    Args:
        weight: W, any shape.
        scale: s, one number: of the highest width, with rule `direct` of this width.
        highest: h.
        bits: l.
        rule: how Wl comes about.
        rounding: where halves go.
    """
    steps = weight.detach() / scale.detach()
    if rule == "direct":
        low, high = level_range(bits)
        inside = (steps >= low) & (steps <= high)
        return rescaled_levels(weight, scale, to_integers(steps, rounding).clamp_(low, high), 1.0, inside)
    lowest, top = level_range(highest)
    inside = (steps >= lowest) & (steps <= top)
    whole = to_integers(steps, rounding).clamp_(lowest, top)
    distance = highest - bits
    if distance and rule == "double":
        # Floor leaves nothing outside: its highest level reaches up to the next one.
        inside &= whole <= level_range(bits)[1] * 2**distance
    levels = switched_levels(whole, highest, bits, rule, rounding)
    return rescaled_levels(weight, scale, levels, float(2**distance), inside)


def initial_scale(weight: Tensor, highest: int, lowest: int, start: ScaleStart) -> float:
    """Where the scale of the highest width starts.

    `max`: max|W| / (2^(h-1) - 1), nothing is clipped. `lsq`: 2 mean|W| / sqrt(2^(h-1) - 1), as in LSQ. `lsq_lowest`: the
    same formula for the lowest width, divided by 2^D, so that the coarsest levels are where LSQ would put them.
    """
    values = weight.detach().abs()
    if start == "max":
        scale = float(values.max()) / level_range(highest)[1]
    else:
        width = highest if start == "lsq" else lowest
        scale = learned_step_start(values, level_range(width)[1]) / 2 ** (highest - width)
    return scale if scale > 0 else 1.0


def learned_step_start(magnitude: Tensor, top: int) -> float:
    """LSQ's first scale 2 mean|v| / sqrt(Qp) for a range that ends at level Qp; 1 where all is zero."""
    mean = float(magnitude.abs().mean())
    return 2 * mean / math.sqrt(top) if mean > 0 else 1.0


SPANS = 40
"""Steps that are tried, evenly spread by ratio from a thirtieth of the largest value as the range to all of it."""


def least_error_step(values: Tensor, lowest: int, highest: int) -> float:
    """The step with the least squared error of clip(round(v / s), lowest, highest) * s, of `SPANS` candidates.

    Args:
        values: (value,).
        lowest: lowest level.
        highest: highest level.

    Returns:
        1 where all values are 0.
    """
    largest = float(values.abs().max())
    if largest == 0:
        return 1.0
    steps = largest / highest * torch.logspace(-1.5, 0, SPANS)
    errors = [
        float((torch.round(values / step).clamp_(lowest, highest) * step - values).square().mean()) for step in steps
    ]
    return float(steps[errors.index(min(errors))])


def width_factor(highest: int, bits: int) -> float:
    """eta_b = 10^(-D/2) for even D, 5 * 10^(-(D+1)/2) for odd D: 1, 0.1, 0.01, 0.001 for 8, 6, 4, 2 bits (eq. 7)."""
    distance = highest - bits
    return 10.0 ** (-distance // 2) if distance % 2 == 0 else 5 * 10.0 ** (-(distance + 1) // 2)


def scale_rate(rule: RateRule, rate: float, gradients: Tensor, factor: float, clip: float = 1.0) -> float:
    """lambda_b, the learning rate of the scales at one width (ALRS).

    `paper` is eq. 6, eta (lambda - mean_i min(|clip(ds_i)|, 1)), cut off at 0: gradients are far above learning rates, and
    a negative rate would push the scales uphill. `multiplicative`, eta lambda (1 - mean_i min(|clip(ds_i)|, 1)), keeps what
    the rule is for: the larger the gradients, the smaller the step. `off` is lambda for every width.

    Args:
        rule: which of the three.
        rate: lambda, the rate of the weights.
        gradients: (layer,), of the loss with respect to every layer's weight scale.
        factor: eta of the width.
        clip: bound of a gradient.
    """
    if rule == "off":
        return rate
    mean = float(gradients.abs().clamp(max=clip).clamp(max=1.0).mean())
    return factor * max(0.0, rate - mean) if rule == "paper" else factor * rate * (1 - mean)


def gradient_factor(kind: ScaleGradient, highest: int, bits: int, count: int) -> float:
    """What the derivative by the stored scale s is multiplied with before ALRS and the optimiser see it.

    `own step`: 2^-D, which makes it the derivative by the step 2^D s of the width that is computed with (eq. 13 as printed,
    whose residuals are below half a level at every width). `lsq`: that times 1 / sqrt(N Qp), the factor of LSQ (Esser et al.
    2020, section 2.2). `stored step`: 1, the chain rule; gradients then grow with 2^D from width to width.

    Args:
        kind: which of the three.
        highest: h.
        bits: l, of the pass.
        count: N, weights of the layer.
    """
    if kind == "stored step":
        return 1.0
    own = 2.0 ** (bits - highest)
    return own / math.sqrt(count * level_range(bits)[1]) if kind == "lsq" else own


def with_gradient(scale: Tensor, factor: float) -> Tensor:
    """The same number; its gradient is multiplied with `factor` on the way back."""
    if factor == 1.0 or not scale.requires_grad:
        return scale
    same = scale.view_as(scale)
    same.register_hook(lambda gradient: gradient * factor)
    return same


def switch_errors(
    weight: Tensor, scale: float, highest: int, bits: int, rule: Literal["double", "floor"], rounding: Rounding
) -> tuple[float, float, float]:
    """What switching costs against rounding W at width l directly with the scale 2^D s.

    Returns:
        ||switched - direct||^2 / ||direct||^2; ||switched - W||^2 / ||direct - W||^2; mean of (switched - direct) in steps of
        width l. The first is NaN where all direct weights are 0, the second where they equal W.
    """
    values = weight.detach().double()
    step = scale * 2 ** (highest - bits)
    stored = stored_levels(values, torch.tensor(scale, dtype=torch.float64), highest, rounding)
    switched = switched_levels(stored, highest, bits, rule, rounding) * step
    direct = to_integers(values / step, rounding).clamp(*level_range(bits)) * step

    def ratio(above: Tensor, below: Tensor) -> float:
        bottom = float(below.square().sum())
        return float(above.square().sum()) / bottom if bottom > 0 else float("nan")

    return (
        ratio(switched - direct, direct),
        ratio(switched - values, direct - values),
        float((switched - direct).mean()) / step,
    )


CURVES = ("LSQ", "floor", "AdaBits", "double rounding")


def transfer_curves(values: Tensor, highest: int, widths: Sequence[int]) -> Tensor:
    """What comes out for W from -1 to 1 under four schemes: (curve, width, value), curves as in `CURVES`.

    LSQ rounds W with the width's own scale; floor and double rounding switch stored integers; AdaBits cuts bits off W in
    0..1 and puts every level into the middle of its cell (Jin et al. 2020, arXiv:1912.09666).
    """
    scale = torch.tensor(1.0 / level_range(highest)[1], dtype=values.dtype)
    stored = stored_levels(values, scale, highest)
    rows = []
    for curve in CURVES:
        for bits in widths:
            step = float(scale) * 2 ** (highest - bits)
            if curve == "LSQ":
                rows.append(to_integers(values / step, "half_up").clamp(*level_range(bits)) * step)
            elif curve == "AdaBits":
                cell = torch.floor((values + 1) / 2 * 2**bits).clamp(0, 2**bits - 1)
                rows.append((2 * cell + 1) / 2**bits - 1)
            else:
                rule: Literal["double", "floor"] = "floor" if curve == "floor" else "double"
                rows.append(switched_levels(stored, highest, bits, rule) * step)
    return torch.stack(rows).reshape(len(CURVES), len(widths), -1)
