"""GPTQ of one weight matrix: columns are rounded one after the other, and what is left makes good for the error.

Frantar, Ashkboos, Hoefler and Alistarh (2023), GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers, arXiv:2210.17323, algorithm 1. It minimises ||W X - Q X||^2 greedily; with H = 2 X X' the best correction of the
columns that are not yet rounded, once column j is, has a closed form, and the rows of the Cholesky factor of H^-1 hold all of
them (step 3 of section 3.3). Convolutions are matrices over the patches they see, one per group of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import InputError
from workbench.toolkit import evaluating

from workbench_quantization.affine_weights import AffineWeight, affine_grid, affine_levels, restore_affine
from workbench_quantization.integer_weights import Sharing
from workbench_quantization.quantizer import FULL_PRECISION, is_transposed_linear

COLUMNS_AT_ONCE = 128
"""B of algorithm 1: corrections of columns beyond are made once for so many columns. Changes speed only."""


@dataclass(frozen=True)
class Settings:
    """How a matrix is solved.

    Attributes:
        sharing: one scale and zero-point per output channel, or per group of columns.
        group_size: columns of a group.
        damping: share of the mean diagonal of H that is added to it.
        by_activation: take the columns with the largest inputs first.
    """

    sharing: Sharing = "channel"
    group_size: int = 128
    damping: float = 0.01
    by_activation: bool = False


def solvable(layer: nn.Module) -> bool:
    """Whether the layer is a matrix over its inputs: linear or a convolution, not a transposed one."""
    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or is_transposed_linear(layer)


def as_matrices(layer: nn.Module, weight: Tensor) -> Tensor:
    """(group, row, column): a weight as one matrix per group of channels; a row is an output channel."""
    if is_transposed_linear(layer):
        return weight.t()[None]
    groups = getattr(layer, "groups", 1)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def from_matrices(layer: nn.Module, matrices: Tensor) -> Tensor:
    """The inverse of `as_matrices`: a tensor of the weight's shape."""
    shape = layer.get_parameter("weight").shape
    return matrices[0].t().contiguous() if is_transposed_linear(layer) else matrices.reshape(shape)


def columns_of(layer: nn.Module, inputs: Tensor) -> Tensor:
    """(group, column, position): what the matrices of the layer are multiplied with, for all samples and places."""
    if isinstance(layer, nn.Linear) or is_transposed_linear(layer):
        return inputs.reshape(-1, inputs.shape[-1]).t()[None]
    conv: Any = layer
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    patches = F.pad(inputs, conv._reversed_padding_repeated_twice, mode=mode)
    for dim, (size, stride, dilation) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        patches = patches.unfold(dim + 2, (size - 1) * dilation + 1, stride)[..., ::dilation]
    places = len(conv.kernel_size)
    # (sample, channel, places..., kernel...) -> (group, channel of the group and kernel, sample and place)
    n, channels = patches.shape[:2]
    ordered = patches.reshape(n, conv.groups, channels // conv.groups, *patches.shape[2:])
    axes = [1, 2, *range(3 + places, 3 + 2 * places), 0, *range(3, 3 + places)]
    return ordered.permute(axes).reshape(
        conv.groups, channels // conv.groups * torch.Size(conv.kernel_size).numel(), -1
    )


class Curvature:
    """H = 2 X X' / positions of a layer, gathered batch by batch: (group, column, column) float64."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.total: Tensor | None = None
        self.positions = 0

    def add(self, inputs: Tensor) -> None:
        """Take one batch of what the layer receives."""
        columns = columns_of(self.layer, inputs.detach().float())
        products = torch.bmm(columns, columns.transpose(1, 2)).double()
        self.total = products if self.total is None else self.total + products
        self.positions += columns.shape[2]

    @property
    def matrix(self) -> Tensor:
        """H, (group, column, column)."""
        assert self.total is not None, "no batch was added"
        return 2 * self.total / self.positions


def output_error(weight: Tensor, other: Tensor, curvature: Tensor) -> tuple[float, float]:
    """||W X - Q X||^2 and ||W X||^2 per position, from matrices (group, row, column) and H."""
    gap, whole = (weight - other).double(), weight.double()
    return float((gap @ curvature * gap).sum() / 2), float((whole @ curvature * whole).sum() / 2)


class Solution(NamedTuple):
    """Matrices in integers.

    Attributes:
        levels: (group, row, column).
        scale: (group, row, range).
        zero: (group, row, range), zero-points.
        damping: share of the mean diagonal of H that was added to it in the end.
    """

    levels: Tensor
    scale: Tensor
    zero: Tensor
    damping: float


@torch.no_grad()
def solve(matrices: Tensor, curvature: Tensor, bits: int, settings: Settings) -> Solution:
    """Algorithm 1, for all groups of channels at once.

    Grids are taken from a row, or from a group of columns when the first of them is reached (its weights then carry
    the corrections so far); in order of activations from the weights as they came, since a group is then not reached at once.
    Columns whose input is always 0 go to 0.

    Args:
        matrices: (group, row, column), W.
        curvature: (group, column, column), H.
        bits: width, 2 to 8.
        settings: see there.
    """
    weight, hessian = matrices.double().clone(), curvature.double().clone()
    groups, rows, columns = weight.shape
    size = columns if settings.sharing == "channel" else min(settings.group_size, columns)
    ranges = -(-columns // size)
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    weight.masked_fill_((diagonal == 0)[:, None], 0.0)
    diagonal.masked_fill_(diagonal == 0, 1.0)

    def grid(values: Tensor) -> tuple[Tensor, Tensor]:
        # Stored scales are float32: what the columns are rounded with must be the same numbers.
        scale, zero = affine_grid(values.flatten(0, 1).float(), bits)
        return scale.double().reshape(groups, rows), zero.double().reshape(groups, rows)

    scale, zero = weight.new_ones(groups, rows, ranges), weight.new_zeros(groups, rows, ranges)
    ahead = settings.by_activation or settings.sharing == "channel"
    if ahead:
        for place in range(ranges):
            scale[..., place], zero[..., place] = grid(weight[..., place * size : (place + 1) * size])
    order = torch.arange(columns, device=weight.device).expand(groups, columns)
    if settings.by_activation:
        order = torch.argsort(diagonal, dim=1, descending=True, stable=True)
        weight = weight.gather(2, order[:, None].expand_as(weight))
        hessian = hessian.gather(1, order[:, :, None].expand_as(hessian)).gather(2, order[:, None].expand_as(hessian))
    factor, damping = inverse_factor(hessian, settings.damping)

    levels = torch.empty_like(weight)
    everyone = torch.arange(groups, device=weight.device)
    for start in range(0, columns, COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, columns)
        errors = weight.new_zeros(groups, rows, stop - start)
        for column in range(start, stop):
            if not ahead and column % size == 0:
                if column + size > stop:  # the rest of the group has yet to learn of this block's errors
                    weight[..., stop:] -= errors @ factor[:, start:stop, stop:]
                    errors.zero_()
                place = column // size
                scale[..., place], zero[..., place] = grid(weight[..., column : column + size])
            mine = order[:, column] // size
            step, origin = scale[everyone, :, mine], zero[everyone, :, mine]
            level = affine_levels(weight[..., column], step, origin, bits)
            levels[..., column] = level
            error = (weight[..., column] - (level - origin) * step) / factor[:, column, column, None]
            weight[..., column:stop] -= error[..., None] * factor[:, None, column, column:stop]
            errors[..., column - start] = error
        weight[..., stop:] -= errors @ factor[:, start:stop, stop:]
    if settings.by_activation:
        levels = torch.empty_like(levels).scatter_(2, order[:, None].expand_as(levels), levels)
    return Solution(levels, scale, zero, damping)


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor of the inverse of H + damping * mean of H's diagonal, (group, column, column), and that damping.

    Where H is so nearly singular that rounding makes it indefinite, the damping is raised tenfold until it is not, as
    implementations of GPTQ do: columns that the shown inputs hardly tell apart then share less of each other's error.

    Raises:
        InputError: not even a damping of 1 helps, since the layer's inputs are not finite.
    """
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    unit = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    share = damping
    while share < 10:
        lower, failed = torch.linalg.cholesky_ex(hessian + share * mean * unit)
        if not failed.any():
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed.any() and bool(factor.isfinite().all()):
                return factor, share
        share *= 10
    raise InputError(
        "data",
        expected="images for which the inputs of every layer are finite",
        got="a layer whose inputs give no positive definite H, whatever the damping",
    )


def solve_layer(layer: nn.Module, curvature: Tensor, bits: int, settings: Settings) -> tuple[AffineWeight, float]:
    """The layer's weight by `solve`, in the form that is stored (ranges of a channel lie together), and its damping."""
    found = solve(as_matrices(layer, layer.get_parameter("weight").detach()), curvature, bits, settings)
    weight = AffineWeight(
        from_matrices(layer, found.levels).to(torch.uint8),
        found.scale.flatten().float(),
        found.zero.flatten().to(torch.uint8),
    )
    return weight, found.damping


class _ReachedError(Exception):
    """Ends a forward pass when all layers of interest have been called."""


def gather(
    model: nn.Module, layers: Sequence[nn.Module], batches: Sequence[Any], call: Callable[[nn.Module, Any], Any]
) -> list[Curvature]:
    """H of several layers, in one pass over the batches that ends once each of them has been called.

    Args:
        model: that has the layers.
        layers: without repetition.
        batches: of inputs.
        call: runs the model on one batch.
    """
    found = [Curvature(layer) for layer in layers]
    waiting: set[int] = set()

    def hook(place: int) -> Callable[..., None]:
        def note(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            found[place].add(inputs[0])
            waiting.discard(place)

        return note

    def last(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        if not waiting:
            raise _ReachedError

    handles = [layer.register_forward_pre_hook(hook(place)) for place, layer in enumerate(layers)]
    handles += [layer.register_forward_hook(last) for layer in layers]
    try:
        with evaluating(model):
            for batch in batches:
                waiting.update(range(len(layers)))
                try:
                    call(model, batch)
                except _ReachedError:
                    continue
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def solve_in_turn(
    model: nn.Module,
    stages: Sequence[Sequence[nn.Module]],
    widths: Sequence[Sequence[int]],
    batches: Sequence[Any],
    call: Callable[[nn.Module, Any], Any],
    settings: Settings,
    on_solved: Callable[[nn.Module, Tensor, AffineWeight, float], Any],
) -> dict[nn.Module, AffineWeight]:
    """GPTQ of a whole model: the layers of a stage see the outputs of the stages before, already quantised.

    The model's weights are replaced as it goes.

    Args:
        model: whose layers are quantised.
        stages: layers that are gathered and solved together, in order of execution.
        widths: of each layer of each stage; from 32 on a layer stays as it is.
        batches: what the model is shown.
        call: runs it on one batch.
        settings: see there.
        on_solved: called with a layer, its H, its integers and the damping it took, before the weight is replaced.

    Returns:
        Integers, scales and zero-points of every layer that is quantised.
    """
    solved: dict[nn.Module, AffineWeight] = {}
    for layers, bits in zip(stages, widths, strict=True):
        wanted = {layer: width for layer, width in zip(layers, bits, strict=True) if width < FULL_PRECISION}
        if not wanted:
            continue
        for found in gather(model, list(wanted), batches, call):
            layer = found.layer
            solved[layer], damping = solve_layer(layer, found.matrix, wanted[layer], settings)
            on_solved(layer, found.matrix, solved[layer], damping)
        for layer in wanted:
            restored = restore_affine(solved[layer], layer, settings.sharing, settings.group_size)
            layer.get_parameter("weight").copy_(restored)
    return solved
