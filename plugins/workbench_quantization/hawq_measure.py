"""Measure and write what HAWQ knows of each block: eigenvalues, traces, landscapes, spectra, rounding errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from workbench import Out
from workbench.toolkit import (
    Hessian,
    activation_trace_probes,
    block_trace_probes,
    empirical_fisher_samples,
    spectral_density,
    top_eigenpairs,
    trace_estimate,
)

from workbench_quantization.gauss_newton import gauss_newton_probes
from workbench_quantization.hawq_curvature import (
    Batch,
    BatchLoss,
    calibration_loss,
    landscape,
    loss_increases,
    mean_loss,
    trace_until,
    weight_errors,
)
from workbench_quantization.hawq_solutions import Costs, Evidence
from workbench_quantization.layers import Block

if TYPE_CHECKING:
    from workbench_quantization.hawq import Params

KEEP_GRAPH_BELOW = 1_000_000
"""Numbers in the calibration images up to which the graphs of all batches are kept: 256 images of 3x32x32 are 0.8 M."""


@dataclass(frozen=True)
class Curvature:
    """Per block: top eigenvalues (block, rank), traces, and the criterion's curvature with its standard error (block,)."""

    eigenvalue: np.ndarray
    trace: np.ndarray
    trace_error: np.ndarray
    criterion: np.ndarray
    objective: np.ndarray
    """Trace or Fisher trace: what Omega is made of."""
    objective_error: np.ndarray


def measure_curvature(
    model: nn.Module, blocks: Sequence[Block], batches: Sequence[Batch], params: Params, out: Out
) -> Curvature:
    """Eigenvalues, traces, landscapes and spectra of every block."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in blocks:
        for weight in block.weights:
            weight.requires_grad_(True)
    loss = calibration_loss(model)
    keep = params.keep_graph
    if keep is None:
        keep = sum(image.numel() for image, _ in batches) <= KEEP_GRAPH_BELOW
    eigenvalue, vectors, products = write_eigenvalues(loss, blocks, batches, params, keep, out)

    if params.probe_mode == "gauss_newton":
        probes = gauss_newton_probes(
            model,
            blocks,
            batches,
            params.probes,
            out.generator("trace"),
            on_images=lambda done, total: out.progress(done, total, "squaring gradients"),
        )
    else:
        probes = block_trace_probes(
            loss,
            [block.weights for block in blocks],
            batches,
            params.probes,
            out.generator("trace"),
            mode=params.probe_mode,
            reuse_graph=keep,
        )
    traces = trace_until(out.track(probes, "probing traces", params.probes), params.trace_tolerance)
    products += traces.probes.shape[1] * (1 if params.probe_mode == "joint" else len(blocks))
    sizes = np.array([block.size for block in blocks])
    out.write("trace", traces.mean)
    out.write("trace_standard_error", traces.standard_error)
    out.write("trace_probe", traces.probes)
    out.write("average_trace", traces.mean.numpy() / sizes)
    out.write("average_trace_error", traces.standard_error.numpy() / sizes)

    source = traces
    if params.criterion == "empirical_fisher":
        samples = empirical_fisher_samples(loss, [block.weights for block in blocks], batches)
        count = sum(len(label) for _, label in batches)
        source = trace_estimate(out.track(samples, "squaring gradients", count))
        out.write("fisher_trace", source.mean)
        out.write("fisher_standard_error", source.standard_error)
    if params.activation_trace:
        write_activation_traces(loss, blocks, batches, params, out)
    if params.landscape_points:
        write_landscapes(loss, blocks, batches, vectors, eigenvalue[:, 0] / sizes, params, out)
    if params.spectrum:
        products += write_spectra(loss, blocks, batches, params, keep, out)
    out.write("hessian_products", np.int64(products))
    criterion = np.abs(eigenvalue[:, 0]) if params.criterion == "eig" else source.mean.numpy()
    return Curvature(
        eigenvalue,
        traces.mean.numpy(),
        traces.standard_error.numpy(),
        criterion,
        source.mean.numpy(),
        source.standard_error.numpy(),
    )


def write_eigenvalues(
    loss: BatchLoss, blocks: Sequence[Block], batches: Sequence[Batch], params: Params, keep: bool, out: Out
) -> tuple[np.ndarray, list[list[Tensor]], int]:
    """Power iteration on every diagonal block: eigenvalues (block, rank), first eigenvectors, products made."""
    shape = (len(blocks), params.eigenvalues)
    value, residual = np.full(shape, np.nan), np.full(shape, np.nan)
    converged = np.zeros(shape, dtype=bool)
    history = np.full((len(blocks), params.power_iterations), np.nan)
    vectors, products = [], 0
    for row, block in enumerate(out.track(blocks, "power iteration")):
        hessian = Hessian(loss, block.weights, batches, reuse_graph=keep)
        found = min(params.eigenvalues, hessian.size)
        pairs = top_eigenpairs(
            hessian,
            found,
            iterations=params.power_iterations,
            tolerance=params.power_tolerance,
            generator=out.generator(f"power iteration/{block.name}"),
        )
        value[row, :found], residual[row, :found] = pairs.values, pairs.residuals
        converged[row, :found], history[row] = pairs.converged, pairs.history[0]
        vectors.append(pairs.vectors[0])
        products += hessian.products
    out.write("eigenvalue", value)
    out.write("eigenvalue_residual", residual)
    out.write("eigenvalue_converged", converged)
    out.write("eigenvalue_history", history)
    return value, vectors, products


def write_activation_traces(
    loss: BatchLoss, blocks: Sequence[Block], batches: Sequence[Batch], params: Params, out: Out
) -> None:
    """Traces of the Hessian for the layers' outputs, summed over the layers of a block."""
    owner = np.array([row for row, block in enumerate(blocks) for _ in block.layers])
    layers = [layer for block in blocks for layer in block.layers]
    probes = activation_trace_probes(loss, layers, batches, params.probes, out.generator("activation trace"))
    by_block = (
        torch.zeros(len(blocks), dtype=torch.float64).index_add(0, torch.from_numpy(owner), probe)
        for probe in out.track(probes, "probing activations", params.probes)
    )
    estimate = trace_until(by_block, params.trace_tolerance)
    out.write("activation_trace", estimate.mean)
    out.write("activation_trace_standard_error", estimate.standard_error)


def write_landscapes(
    loss: BatchLoss,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    vectors: Sequence[list[Tensor]],
    sharpness: np.ndarray,
    params: Params,
    out: Out,
) -> None:
    """Loss along every block's top eigenvector, and over the plane of the sharpest block's first two."""
    steps = params.displacements()
    out.coordinate("epsilon", steps)
    curves = [
        landscape(loss, batches, block, [vector], steps)
        for block, vector in zip(out.track(blocks, "walking along eigenvectors"), vectors, strict=True)
    ]
    out.write("landscape", np.stack(curves))
    sharpest = blocks[int(np.argmax(np.abs(sharpness)))]
    if sharpest.size < 2:
        return
    pairs = top_eigenpairs(
        Hessian(loss, sharpest.weights, batches),
        2,
        iterations=params.power_iterations,
        tolerance=params.power_tolerance,
        generator=out.generator(f"power iteration/{sharpest.name}"),
    )
    out.coordinate("epsilon_2", steps)
    out.write("landscape_plane", landscape(loss, batches, sharpest, pairs.vectors, steps))


def write_spectra(
    loss: BatchLoss, blocks: Sequence[Block], batches: Sequence[Batch], params: Params, keep: bool, out: Out
) -> int:
    """Eigenvalue density of every block by stochastic Lanczos quadrature; returns the products made."""
    density, grid = (out.array(name, (len(blocks), params.grid_points)) for name in ("density", "density_grid"))
    products = 0
    for row, block in enumerate(out.track(blocks, "Lanczos")):
        hessian = Hessian(loss, block.weights, batches, reuse_graph=keep)
        spectrum = spectral_density(
            hessian,
            steps=params.lanczos_steps,
            starts=params.lanczos_starts,
            grid_points=params.grid_points,
            generator=out.generator(f"Lanczos/{block.name}"),
        )
        density[row], grid[row] = spectrum.density, spectrum.grid
        products += hessian.products
    return products


def measure_rounding(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    curvature: Curvature,
    costs: Costs,
    params: Params,
    out: Out,
) -> Evidence:
    """Rounding errors, Omega and single-layer loss increases, written for all blocks and returned for the free ones."""
    loss, free = calibration_loss(model), costs.free
    error = weight_errors(blocks, params.bits, params.granularity)
    base = mean_loss(loss, batches)
    increase = np.stack(
        [
            loss_increases(loss, batches, block, params.bits, params.granularity, base)
            for block in out.track(blocks, "quantising single layers")
        ]
    )
    sizes = costs.sizes[:, None]
    margin = 1.0 if params.mean_plus_error else 0.0
    out.write("sensitivity", curvature.criterion / costs.sizes)
    out.write("weight_error", error)
    out.write("omega", curvature.objective[:, None] / sizes * error)
    out.write("loss_increase", increase)

    def guarded(value: np.ndarray, deviation: np.ndarray) -> np.ndarray:
        return (np.maximum(value + margin * deviation, 0.0)[:, None] / sizes * error)[free]

    return Evidence(
        sensitivity=(curvature.criterion / costs.sizes)[free],
        objective=guarded(curvature.objective, curvature.objective_error),
        eigenvalue_sensitivity=(np.abs(curvature.eigenvalue[:, 0]) / costs.sizes)[free],
        trace_objective=guarded(curvature.trace, curvature.trace_error),
        weight_error=error[free],
        loss_increase=increase[free],
        sizes=costs.sizes[free],
    )
