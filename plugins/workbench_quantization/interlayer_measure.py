"""What is measured of every layer and of every pair of layers: curvature, rounding errors, damages, interactions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from workbench.toolkit import Hessian, TraceEstimate, block_trace_probes, trace_estimate

from workbench_quantization.hawq_curvature import weight_errors
from workbench_quantization.interlayer_scores import (
    fit_scale,
    pair_interaction,
)
from workbench_quantization.interlayer_study import Study

if TYPE_CHECKING:
    pass

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


def measure(study: Study, base: float) -> Sensitivity:
    """Curvature, rounding errors, single-layer losses and interactions, all written."""
    params, out, blocks = study.params, study.out, study.subject.blocks
    trace = _traces(study)
    sizes = study.subject.costs.sizes[:, None]
    error = weight_errors(blocks, study.lower, params.granularity)
    single = np.array([
        [study.loss_at(study.only([layer], width)) - base for width in study.lower]
        for layer in out.track(list(range(study.count)), "quantising single layers")
    ])  # fmt: skip
    # A second-order damage is half the quadratic form; the mean eigenvalue stands in for the direction's curvature.
    hessian = 0.5 * trace.mean.numpy()[:, None] / sizes * error
    scale = np.array([fit_scale(hessian[:, column], single[:, column]) for column in range(len(study.lower))])
    products, curved = _interactions_by_products(study)
    interaction = products
    estimator = params.estimator
    if estimator == "auto":
        estimator = "differences" if study.count <= FEW_LAYERS else "products"
    if estimator == "differences":
        interaction = _interactions_by_differences(study, single, base)
    out.write("trace", trace.mean)
    out.write("trace_standard_error", trace.standard_error)
    out.write("weight_error", error)
    out.write("hessian_sensitivity", hessian)
    out.write("hessian_scale", scale)
    out.write("loss_single", single)
    out.write("curved_single", curved)
    out.write("interaction_products", products)
    out.write("interaction", interaction)
    out.write("base_loss", np.float64(base))
    return Sensitivity(hessian * scale if params.fit_scale else hessian, hessian, error, single, interaction)


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
        interaction[..., column] = symmetric
    return interaction, curved


def _interactions_by_differences(study: Study, single: np.ndarray, base: float) -> np.ndarray:
    """J_ij = L({i,j}) - L({i}) - L({j}) + L({}) for every width, from the same images in all four terms."""
    first, second = np.triu_indices(study.count, 1)
    interaction = np.zeros((study.count, study.count, len(study.lower)))
    for column, width in enumerate(study.lower):
        both = np.zeros((study.count, study.count))
        for i, j in study.out.track(list(zip(first, second, strict=True)), f"pairs of layers at {width} bit"):
            both[i, j] = both[j, i] = study.loss_at(study.only([i, j], width))
        interaction[..., column] = pair_interaction(both, single[:, column] + base, base)
    return interaction
