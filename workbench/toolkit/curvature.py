"""Curvature of a loss: Hessian-vector products, top eigenpairs and spectra, without ever forming the Hessian.

A `Hessian` is the second derivative of a mean loss with respect to some parameter tensors, all others held fixed.
`top_eigenpairs` is power iteration with deflation, `spectral_density` is stochastic Lanczos quadrature; traces are in
`traces`. Sources: Dong et al. 2019 (HAWQ), Yao et al. 2020 (PyHessian), Ghorbani et al. 2019 (quadrature), Golub and
Meurant 2010 (Lanczos).

Models must be in eval mode: batch statistics of train-mode BatchNorm couple the samples and change the Hessian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from workbench.errors import InputError

__all__ = [
    "Eigenpairs",
    "Hessian",
    "SpectralDensity",
    "lanczos",
    "spectral_density",
    "top_eigenpairs",
]

Loss = Callable[[Any], Tensor]
"""Mean loss over a batch, as a differentiable scalar: `lambda batch: cross_entropy(model(batch[0]), batch[1])`."""


class Hessian:
    """The Hessian of a mean loss with respect to `parameters`, as a linear operator on lists of tensors of their shapes.

    Args:
        loss: mean loss over one batch.
        parameters: tensors that require a gradient; everything else counts as fixed.
        batches: what `loss` accepts, one after the other. The Hessian is that of the mean over all samples.
        sizes: samples per batch; by default the length of the batch, or of its first tensor.
        reuse_graph: keep the graph of the first derivative of every batch in memory. A product then costs one
            backward pass through it instead of a forward and two backward passes. The graph lives as long as this
            object; parameters must not change meanwhile.

    `products` counts the Hessian-vector products made so far.

    Raises:
        InputError: no parameters, no batches, or a parameter that does not require a gradient.
    """

    def __init__(
        self,
        loss: Loss,
        parameters: Sequence[Tensor],
        batches: Sequence[Any],
        *,
        sizes: Sequence[int] | None = None,
        reuse_graph: bool = False,
    ) -> None:
        if not parameters:
            raise InputError("parameters", expected="at least one tensor", got="none")
        for position, parameter in enumerate(parameters):
            if not parameter.requires_grad:
                raise InputError(
                    f"parameters[{position}]",
                    expected="a tensor that requires a gradient",
                    got=f"shape {tuple(parameter.shape)} with requires_grad=False",
                )
        if not batches:
            raise InputError("batches", expected="at least one batch", got="none")
        counts = [batch_size(batch) for batch in batches] if sizes is None else list(sizes)
        if len(counts) != len(batches):
            raise InputError("sizes", expected=f"one size for each of {len(batches)} batches", got=f"{len(counts)}")
        self.loss = loss
        self.parameters = list(parameters)
        self.batches = list(batches)
        self.weights = [count / sum(counts) for count in counts]
        self.products = 0
        self._reuse_graph = reuse_graph
        self._graphs: list[tuple[Tensor, ...]] = []

    @property
    def size(self) -> int:
        """Number of scalar parameters: the Hessian is size x size."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parameters[0].device

    def product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """H v. `vectors` has the parameters' shapes, and so has the answer; averaged over batches by batch size."""
        self.products += 1
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        for gradients, weight in zip(self._first_derivatives(), self.weights, strict=True):
            # A gradient that does not depend on the parameters (a loss linear in them) has no second derivative.
            curved = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g.requires_grad]
            if not curved:
                continue
            parts = torch.autograd.grad(
                [gradient for gradient, _ in curved],
                self.parameters,
                grad_outputs=[vector for _, vector in curved],
                retain_graph=self._reuse_graph,
                materialize_grads=True,
            )
            for sum_, part in zip(total, parts, strict=True):
                sum_.add_(part, alpha=weight)
        return total

    def gradient(self) -> list[Tensor]:
        """Gradient of the mean loss over all batches, in the parameters' shapes."""
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        for gradients, weight in zip(self._first_derivatives(), self.weights, strict=True):
            for sum_, part in zip(total, gradients, strict=True):
                sum_.add_(part.detach(), alpha=weight)
        return total

    def _first_derivatives(self) -> Iterable[tuple[Tensor, ...]]:
        if not self._reuse_graph:
            return map(self._first_derivative, self.batches)
        if not self._graphs:
            self._graphs = [self._first_derivative(batch) for batch in self.batches]
        return self._graphs

    def _first_derivative(self, batch: Any) -> tuple[Tensor, ...]:
        # Fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            return torch.autograd.grad(self.loss(batch), self.parameters, create_graph=True, materialize_grads=True)


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs of largest magnitude, found one after the other.

    values: (k,) float64, signed Rayleigh quotients; negative where the sharpest direction curves downwards.
    vectors: k unit vectors, each a list of tensors in the parameters' shapes.
    residuals: (k,) ||H v - lambda v|| / |lambda|.
    history: (k, iterations) Rayleigh quotient at each iteration, NaN after convergence.
    converged: (k,) whether the relative change fell below the tolerance.
    """

    values: Tensor
    vectors: list[list[Tensor]]
    residuals: Tensor
    history: Tensor
    converged: Tensor


def top_eigenpairs(
    hessian: Hessian, k: int = 1, *, iterations: int = 100, tolerance: float = 1e-3, generator: torch.Generator
) -> Eigenpairs:
    """Power iteration with deflation, as in HAWQ and PyHessian.

    v starts as a normalised Gaussian; every iteration projects out the vectors already found, normalises,
    takes H v and its Rayleigh quotient lambda = v'Hv, and goes on with H v. It stops when
    |lambda_new - lambda_old| / (|lambda_old| + 1e-6) < tolerance or after `iterations` products.

    Args:
        hessian: the operator.
        k: number of eigenpairs, at most `hessian.size`.
        iterations: Hessian-vector products per eigenpair, at most.
        tolerance: relative change that counts as converged.
        generator: CPU generator of the start vectors.

    Raises:
        InputError: `k` larger than the number of parameters.
    """
    if not 1 <= k <= hessian.size:
        raise InputError("k", expected=f"1 to {hessian.size} (the number of parameters)", got=str(k))
    values, residuals, converged = (torch.zeros(k, dtype=dtype) for dtype in (torch.float64, torch.float64, torch.bool))
    history = torch.full((k, iterations), math.nan, dtype=torch.float64)
    vectors: list[list[Tensor]] = []
    for index in range(k):
        direction = _gaussian(hessian, generator)
        previous: float | None = None
        for iteration in range(iterations):
            vector = _normalised(_orthogonal(direction, vectors))
            direction = hessian.product(vector)
            value = dot(vector, direction)
            history[index, iteration] = value
            if previous is not None and abs(value - previous) / (abs(previous) + 1e-6) < tolerance:
                converged[index] = True
                break
            if _norm(direction) == 0.0:  # no curvature at all in this direction: an unused or dead block
                converged[index] = True
                break
            previous = value
        rest = _norm([p - value * v for p, v in zip(direction, vector, strict=True)])
        values[index] = value
        residuals[index] = rest / abs(value) if value != 0.0 else (0.0 if rest == 0.0 else math.inf)
        vectors.append(vector)
    return Eigenpairs(values, vectors, residuals, history, converged)


def lanczos(hessian: Hessian, steps: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lanczos tridiagonalisation from a random unit vector, fully re-orthogonalised (twice, against rounding).

    Returns:
        diagonal (m,) and off-diagonal (m - 1,) in float64; m <= steps, fewer when the Krylov space is exhausted.
    """
    vectors = [_normalised(_start(hessian, generator))]
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for step in range(min(steps, hessian.size)):
        product = hessian.product(vectors[-1])
        diagonal.append(dot(vectors[-1], product))
        rest = _orthogonal(_orthogonal(product, vectors), vectors)
        length = _norm(rest)
        scale = max(abs(value) for value in (*diagonal, *off_diagonal))
        # Below the rounding error of the products the next direction would be noise.
        if step + 1 == min(steps, hessian.size) or length <= 1e-6 * scale or length == 0.0:
            break
        off_diagonal.append(length)
        vectors.append([part / length for part in rest])
    return np.array(diagonal), np.array(off_diagonal)


@dataclass(frozen=True)
class SpectralDensity:
    """Eigenvalue density on a grid (both (grid,) float64; integrates to 1), and the quadrature behind it.

    nodes and weights: (start, step), zero weight where a run of Lanczos ended early.
    """

    grid: np.ndarray
    density: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray


def spectral_density(
    hessian: Hessian,
    *,
    steps: int = 100,
    starts: int = 1,
    grid_points: int = 10_000,
    generator: torch.Generator,
    variance: float = 1e-5,
) -> SpectralDensity:
    """Stochastic Lanczos quadrature, smoothed by a Gaussian of variance `variance * max(1, range)` as in PyHessian.

    Args:
        hessian: the operator.
        steps: Lanczos steps (products) per start vector.
        starts: random start vectors to average over.
        grid_points: equally spaced eigenvalues at which the density is given.
        generator: CPU generator of the start vectors.
        variance: width of the smoothing, see above.
    """
    nodes = np.zeros((starts, min(steps, hessian.size)))
    weights = np.zeros_like(nodes)
    for start in range(starts):
        diagonal, off_diagonal = lanczos(hessian, steps, generator)
        matrix = np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
        values, eigenvectors = np.linalg.eigh(matrix)
        nodes[start, : len(values)] = values
        weights[start, : len(values)] = eigenvectors[0] ** 2
    low, high = nodes[weights > 0].min(), nodes[weights > 0].max()
    smoothing = variance * max(1.0, high - low)
    margin = max(0.01, 4 * math.sqrt(smoothing))
    grid = np.linspace(low - margin, high + margin, grid_points)
    density = np.zeros(grid_points)
    for node, weight in zip(nodes.ravel(), weights.ravel() / starts, strict=True):
        density += weight * np.exp(-((grid - node) ** 2) / (2 * smoothing)) / math.sqrt(2 * math.pi * smoothing)
    return SpectralDensity(grid, density, nodes, weights)


def batch_size(batch: Any) -> int:
    """Samples in a batch: its length, or that of its first tensor."""
    return len(batch) if isinstance(batch, Tensor) else len(batch[0])


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Inner product, summed in float64: float32 sums over 1e5 entries lose digits that residuals need."""
    return float(sum(torch.sum(a.double() * b.double()) for a, b in zip(left, right, strict=True)))


def _norm(vectors: Sequence[Tensor]) -> float:
    return math.sqrt(dot(vectors, vectors))


def _normalised(vectors: Sequence[Tensor]) -> list[Tensor]:
    length = _norm(vectors)
    return [vector / length for vector in vectors]


def _orthogonal(vectors: Sequence[Tensor], basis: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """`vectors` less its projections on the unit vectors of `basis`, one after the other (modified Gram-Schmidt)."""
    rest = list(vectors)
    for unit in basis:
        overlap = dot(rest, unit)
        rest = [part - overlap * direction for part, direction in zip(rest, unit, strict=True)]
    return rest


def _gaussian(hessian: Hessian, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in hessian.parameters]


def rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent entries +-1 in the shape, dtype and place of `like`, drawn on the CPU."""
    return (torch.randint(0, 2, like.shape, generator=generator, dtype=like.dtype) * 2 - 1).to(like.device)


def _start(hessian: Hessian, generator: torch.Generator) -> list[Tensor]:
    return [rademacher(parameter, generator) for parameter in hessian.parameters]
