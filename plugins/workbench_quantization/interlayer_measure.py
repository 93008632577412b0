"""What is measured of every layer and of every pair of layers: curvature, rounding errors, damages, interactions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from workbench.toolkit import Hessian, TraceEstimate, block_trace_probes, trace_estimate

from workbench_quantization.hawq_curvature import weight_errors
from workbench_quantization.interlayer_scores import fit_scale, interaction_error, pair_interaction
from workbench_quantization.interlayer_study import Study

FEW_LAYERS = 30
"""Number of layers up to which all pairs are measured when the estimator is left open."""


@dataclass(frozen=True)
class Sensitivity:
    """Of every layer at every lower width: damages, on the scale of the loss, and interactions.

    hessian, curvature, weight_error, single: (layer, width); interaction: (layer, layer, width). `curvature` is h before it is
    scaled: a scale of 0, where single-layer damages are noise, must not undo its order.
    """

    hessian: np.ndarray
    curvature: np.ndarray
    weight_error: np.ndarray
    single: np.ndarray
    interaction: np.ndarray


def measure(study: Study, base: np.ndarray) -> Sensitivity:
    """Curvature, rounding errors, single-layer losses and interactions, all written.

    Args:
        study: what is measured.
        base: (image,) losses with every layer at the highest width.
    """
    params, out, blocks = study.params, study.out, study.subject.blocks
    trace = _traces(study)
    sizes = study.subject.costs.sizes[:, None]
    error = weight_errors(blocks, study.lower, params.granularity)
    alone = np.array([
        [study.losses_at(study.only([layer], width)) for width in study.lower]
        for layer in out.track(list(range(study.count)), "quantising single layers")
    ])  # fmt: skip
    single = alone.mean(2) - base.mean()
    # A second-order damage is half the quadratic form; the mean eigenvalue stands in for the direction's curvature.
    hessian = 0.5 * trace.mean.numpy()[:, None] / sizes * error
    if params.act_bits == "weight":
        gradient, lost = input_sensitivity(study)
        hessian = hessian + 0.5 * gradient[:, None] * lost
        out.write("input_gradient", gradient)
        out.write("input_error", lost)
    scale = np.array([fit_scale(hessian[:, column], single[:, column]) for column in range(len(study.lower))])
    products, curved = _interactions_by_products(study)
    interaction = products
    estimator = params.estimator
    if estimator == "auto":
        estimator = "differences" if study.count <= FEW_LAYERS else "products"
    if estimator == "differences":
        interaction, unsure = _interactions_by_differences(study, alone, base)
        out.write("interaction_error", unsure)
        first, second = np.array(lowered_pairs(study)).T
        names = [block.name for block in blocks]
        out.coordinate("pair", [f"{names[i]}, {names[j]}" for i, j in zip(first, second, strict=True)])
        out.write("pair_products", products[first, second])
        out.write("pair_differences", interaction[first, second])
    scaled = hessian * scale if params.fit_scale else hessian
    out.write("trace", trace.mean)
    out.write("trace_standard_error", trace.standard_error)
    out.write("weight_error", error)
    out.write("hessian_sensitivity", hessian)
    out.write("hessian_scale", scale)
    out.write("layer_curvature", scaled)
    out.write("loss_single", single)
    out.write("curved_single", curved)
    out.write("interaction_products", products)
    out.write("interaction", interaction)
    out.write("base_loss", np.float64(base.mean()))
    return Sensitivity(scaled, hessian, error, single, interaction)


def lowered_pairs(study: Study) -> list[tuple[int, int]]:
    """Positions of every two layers that may be lowered."""
    return list(itertools.combinations(np.flatnonzero(study.free).tolist(), 2))


def _traces(study: Study) -> TraceEstimate:
    for parameter in study.subject.model.parameters():
        parameter.requires_grad_(False)
    for block in study.subject.blocks:
        for weight in block.weights:
            weight.requires_grad_(True)
    probes = block_trace_probes(
        study.loss,
        [block.weights for block in study.subject.blocks],
        study.batches,
        study.params.probes,
        study.out.generator("trace"),
    )
    return trace_estimate(study.out.track(probes, "probing traces", study.params.probes))


def input_sensitivity(study: Study) -> tuple[np.ndarray, np.ndarray]:
    """What rounding a layer's input costs: curvature by squared gradients, and how far the input moves.

    The Hessian of an image's loss by an input of m entries is taken as that of the empirical Fisher matrix with entries that
    do not depend on one another, so that rounding errors of mean square e cost 1/2 * m * mean(g^2) * e.

    Returns:
        ||g||^2 = m mean(g^2), mean over images: (layer,); e, mean over entries and images: (layer, width).
    """
    layers, quantisers = [block.layers[0] for block in study.subject.blocks], study.subject.inputs.quantisers
    seen: dict[int, list[Tensor]] = {}

    def watch(place: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            # A copy that only this layer takes: what others add to the tensor in place is none of its business.
            taken = inputs[0].clone() if inputs[0].requires_grad else inputs[0].clone().requires_grad_(True)
            seen.setdefault(place, []).append(taken)
            return (taken, *inputs[1:])

        return hook

    gradient, lost = np.zeros(study.count), np.zeros((study.count, len(study.lower)))
    entries, images = np.zeros(study.count), 0
    handles = [layer.register_forward_pre_hook(watch(place)) for place, layer in enumerate(layers)]
    try:
        for batch in study.out.track(list(study.batches), "squaring gradients of inputs"):
            seen.clear()
            with torch.enable_grad():
                total = study.loss(batch) * len(batch[1])
            flat = [(place, taken) for place, calls in seen.items() for taken in calls]
            found = torch.autograd.grad(total, [taken for _, taken in flat], materialize_grads=True)
            images += len(batch[1])
            with torch.no_grad():
                for (place, taken), slope in zip(flat, found, strict=True):
                    gradient[place] += float(slope.double().square().sum())
                    entries[place] += taken.numel()
                    for column, width in enumerate(study.lower):
                        lost[place, column] += _squared_error(quantisers[place], taken, width)
    finally:
        for handle in handles:
            handle.remove()
    return gradient / images, lost / entries[:, None]


def _squared_error(quantiser: Any, values: Tensor, bits: int) -> float:
    before, quantiser.bits = quantiser.bits, bits
    try:
        return float((quantiser(values) - values).double().square().sum())
    finally:
        quantiser.bits = before


def _interactions_by_products(study: Study) -> tuple[np.ndarray, np.ndarray]:
    """J_ij = dW_j . (H dW_i) for every width, one Hessian-vector product a layer, and 1/2 dW_i . (H dW_i)."""
    weights = [block.weights[0] for block in study.subject.blocks]
    hessian = Hessian(study.loss, weights, study.batches)
    shape = (study.count, study.count, len(study.lower))
    interaction, curved = np.zeros(shape), np.zeros((study.count, len(study.lower)))
    for column, width in enumerate(study.lower):
        rounded = study.weights(study.all_at(width))
        change = [
            rounded[block.layers[0]] - weight.detach()
            for block, weight in zip(study.subject.blocks, weights, strict=True)
        ]
        for layer in study.out.track(list(range(study.count)), f"interactions at {width} bit"):
            moved = [step if place == layer else torch.zeros_like(step) for place, step in enumerate(change)]
            product = hessian.product(moved)
            row = [float((step.double() * part.double()).sum()) for step, part in zip(change, product, strict=True)]
            interaction[layer, :, column] = row
            curved[layer, column] = 0.5 * row[layer]
        symmetric = 0.5 * (interaction[..., column] + interaction[..., column].T)
        np.fill_diagonal(symmetric, 0.0)
        symmetric[~study.free] = symmetric[:, ~study.free] = 0.0  # what is never lowered interacts with nothing
        interaction[..., column] = symmetric
    return interaction, curved


def _interactions_by_differences(study: Study, alone: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """J_ij = L({i,j}) - L({i}) - L({j}) + L({}) for every width, from the same images in all four terms.

    Args:
        study: what is measured.
        alone: (layer, width, image) losses with one layer lowered.
        base: (image,) with none.

    Returns:
        J and its standard error over images, (layer, layer, width) both.
    """
    pairs = lowered_pairs(study)
    shape = (study.count, study.count, len(study.lower))
    interaction, unsure = np.zeros(shape), np.zeros(shape)
    for column, width in enumerate(study.lower):
        single = alone[:, column].mean(1)
        both = single[:, None] + single[None, :] - base.mean()  # no interaction where none is measured
        for i, j in study.out.track(pairs, f"pairs of layers at {width} bit"):
            losses = study.losses_at(study.only([i, j], width))
            both[i, j] = both[j, i] = losses.mean()
            unsure[i, j, column] = unsure[j, i, column] = interaction_error(
                losses, alone[i, column], alone[j, column], base
            )
        found = pair_interaction(both, single, float(base.mean()))
        found[~study.free] = found[:, ~study.free] = 0.0
        interaction[..., column] = found
    return interaction, unsure
