"""Traces of a loss's Hessian by random probes, with their standard errors: per block of weights, per layer's activations.

Hutchinson's estimator: for independent entries +-1 in z, z'Hz has the expectation Tr(H). Sources: Dong et al. 2020
(HAWQ-V2, arXiv:1911.03852), Yao et al. 2020 (PyHessian, arXiv:1912.07145).

Models must be in eval mode: batch statistics of train-mode BatchNorm couple the samples and change the Hessian.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from workbench.errors import InputError
from workbench.toolkit.curvature import Hessian, Loss, batch_size, dot, rademacher

__all__ = [
    "TraceEstimate",
    "activation_trace_probes",
    "block_trace_probes",
    "empirical_fisher_samples",
    "trace_estimate",
    "trace_probes",
]


def trace_probes(
    hessian: Hessian, probes: int, generator: torch.Generator, *, groups: Sequence[Sequence[int]] | None = None
) -> Iterator[Tensor]:
    """Hutchinson probes z'Hz with z = +-1 (Rademacher), one product per probe.

    Each probe yields a float64 vector (group,): the parts z_g'(Hz)_g of each group of parameters (positions in
    `hessian.parameters`; by default every tensor is a group). The expectation of a part is the trace of the group's
    diagonal block; products between groups add variance but no bias.
    """
    groups = [[position] for position in range(len(hessian.parameters))] if groups is None else groups
    for _ in range(probes):
        vectors = [rademacher(parameter, generator) for parameter in hessian.parameters]
        products = hessian.product(vectors)
        yield torch.tensor(
            [dot([vectors[i] for i in group], [products[i] for i in group]) for group in groups], dtype=torch.float64
        )


def block_trace_probes(
    loss: Loss,
    blocks: Sequence[Sequence[Tensor]],
    batches: Sequence[Any],
    probes: int,
    generator: torch.Generator,
    *,
    mode: Literal["joint", "per_layer"] = "joint",
    sizes: Sequence[int] | None = None,
    reuse_graph: bool = False,
) -> Iterator[Tensor]:
    """Hutchinson probes of the diagonal blocks of the Hessian, one float64 vector (block,) per probe.

    `joint` draws one probe over all blocks and needs one product per probe; the off-diagonal blocks add variance.
    `per_layer` draws a probe for each block alone and needs one product per probe and block, without that variance.
    """
    flat = [parameter for block in blocks for parameter in block]
    if mode == "joint":
        ends = np.cumsum([0, *(len(block) for block in blocks)])
        groups = [list(range(start, stop)) for start, stop in itertools.pairwise(ends)]
        joint = Hessian(loss, flat, batches, sizes=sizes, reuse_graph=reuse_graph)
        yield from trace_probes(joint, probes, generator, groups=groups)
        return
    # No graph is kept here: every block would hold its own at the same time.
    singles = [Hessian(loss, block, batches, sizes=sizes) for block in blocks]
    streams = [trace_probes(single, probes, generator, groups=[range(len(single.parameters))]) for single in singles]
    for parts in zip(*streams, strict=True):
        yield torch.cat(parts)


@dataclass(frozen=True)
class TraceEstimate:
    """Mean of raw probes and its standard error, both (block,) float64; `probes` is (block, probe)."""

    mean: Tensor
    standard_error: Tensor
    probes: Tensor


def trace_estimate(probes: Iterable[Tensor]) -> TraceEstimate:
    """Collect probes, each (block,), into mean and standard error (sample standard deviation / sqrt of the number)."""
    values = torch.stack(list(probes), dim=1)
    count = values.shape[1]
    if count < 2:
        raise InputError("probes", expected="at least 2 probes for a standard error", got=str(count))
    return TraceEstimate(values.mean(1), values.std(1, correction=1) / math.sqrt(count), values)


def empirical_fisher_samples(
    loss: Loss, blocks: Sequence[Sequence[Tensor]], batches: Sequence[Sequence[Tensor]]
) -> Iterator[Tensor]:
    """Squared gradient norm of each block for every single sample: float64 (block,) per sample.

    Their mean is the trace of the empirical Fisher matrix (gradients of the true labels' loss). It is zero where the
    loss of every sample is, and equals the Hessian's trace only in expectation for a calibrated model.
    """
    flat = [parameter for block in blocks for parameter in block]
    ends = np.cumsum([0, *(len(block) for block in blocks)])
    for batch in batches:
        for position in range(batch_size(batch)):
            sample = tuple(tensor[position : position + 1] for tensor in batch)
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(sample), flat, materialize_grads=True)
            yield torch.tensor(
                [
                    dot(gradients[start:stop], gradients[start:stop])
                    for start, stop in itertools.pairwise(ends)
                ],
                dtype=torch.float64,
            )


def activation_trace_probes(
    loss: Loss,
    layers: Sequence[torch.nn.Module],
    batches: Sequence[Any],
    probes: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Hutchinson probes of the Hessian with respect to each layer's output activations (HAWQ-V2), (layer,) per probe.

    In eval mode samples do not interact, so the Hessian is block-diagonal over the batch: one probe drawn for the
    whole batch is a probe for every sample. The value is the trace of one sample's Hessian, averaged over samples.

    Args:
        loss: mean loss over one batch. At least one parameter of each layer, or its input, must require a gradient.
        layers: modules with a tensor as output, called once per forward pass.
        batches: what `loss` accepts, one after the other.
        probes: number of probes.
        generator: CPU generator of the probes.
    """
    captured: dict[int, Tensor] = {}

    def capture(key: int) -> Callable[..., Tensor]:
        def hook(_module: torch.nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            captured[key] = output
            return output.clone()  # an in-place activation that follows must not overwrite what was captured

        return hook

    handles = [layer.register_forward_hook(capture(key)) for key, layer in enumerate(layers)]
    try:
        sizes = [batch_size(batch) for batch in batches]
        for _ in range(probes):
            total = torch.zeros(len(layers), dtype=torch.float64)
            for batch, size in zip(batches, sizes, strict=True):
                captured.clear()
                with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
                    value = loss(batch)
                    outputs = [captured[key] for key in range(len(layers))]
                    # Each activation is differentiated by itself: later activations are functions of earlier ones.
                    gradients = torch.autograd.grad(value, outputs, create_graph=True)
                for key, (output, gradient) in enumerate(zip(outputs, gradients, strict=True)):
                    if not gradient.requires_grad:
                        continue
                    probe = rademacher(output, generator)
                    (product,) = torch.autograd.grad(
                        gradient, output, grad_outputs=probe, retain_graph=True, materialize_grads=True
                    )
                    # The batch mean divides each sample's Hessian by the batch size; the sum over samples is the mean.
                    total[key] += dot([probe], [product]) * size / sum(sizes)
            yield total
    finally:
        for handle in handles:
            handle.remove()
