"""Quantization: traces of the Hessian against PyHessian layer by layer, and the bit allocator.

    python tests/benchmarks/quantization.py [--part traces|allocator] [--images 32] [--probes 40] [--pilot 6] [--full]

`traces`: the Hessian trace of every convolution and linear layer of ResNet-20 (random weights unless `--weights FILE`; random
images), once as this project's joint probes, all layers at a time, and once by calling PyHessian for one layer after the other,
as its users do. Both work in double precision of sums only, keep the graph of the first derivative, and are checked against
each other: means may differ by 4 standard errors. What counts is time at an equal standard error of every layer: joint probes
are made `--probes` times, which gives each layer a standard error; PyHessian then needs, per layer, its own variance over that
error squared, in probes. Its variance and the time of a probe come from a pilot of `--pilot` probes per layer; `--full` runs all
of them instead of multiplying. Where PyHessian is not installed, a loop with the same semantics stands in and is named so.

`allocator`: 200 layers and 6 widths, the integer program and the greedy walk, against scipy's `milp` called with the same
problem as it stands (without scaling), whose objective the product must reach.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn
from workbench.subjects.networks import resnet20
from workbench.toolkit import block_trace_probes, trace_estimate

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measure import print_table, take_turns
from workbench_quantization.allocator import allocate_greedy, allocate_program, fits, total_cost
from workbench_quantization.layers import find_blocks

Probing = Callable[[int], list[float]]
"""Number of probes -> z'Hz of each."""


def pyhessian_layer(model: nn.Module, image: Tensor, label: Tensor, weight: Tensor) -> Probing:
    """PyHessian on one layer's weight: all other parameters are frozen, which is its way to choose."""
    from pyhessian import hessian

    for parameter in model.parameters():
        parameter.requires_grad_(parameter is weight)
        parameter.grad = None
    computed = hessian(model, F.cross_entropy, data=(image, label), cuda=False)
    # Its tolerance would stop early by chance; a comparison with -inf is never true.
    return lambda probes: [float(value) for value in computed.trace(maxIter=probes, tol=-math.inf)]


def hutchinson_layer(model: nn.Module, image: Tensor, label: Tensor, weight: Tensor) -> Probing:
    """The same by hand: one graph of the first derivative, one backward pass through it per probe."""
    loss = F.cross_entropy(model(image), label)
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)

    def probe(probes: int) -> list[float]:
        values = []
        for _ in range(probes):
            vector = torch.randint_like(weight, 2) * 2 - 1
            (product,) = torch.autograd.grad(gradient, weight, grad_outputs=vector, retain_graph=True)
            values.append(float((vector * product).sum()))
        return values

    return probe


def peer() -> tuple[str, Callable[[nn.Module, Tensor, Tensor, Tensor], Probing]]:
    try:
        import pyhessian  # noqa: F401
    except ImportError:
        return "per-layer Hutchinson loop (stands in for PyHessian)", hutchinson_layer
    return "PyHessian, layer by layer", pyhessian_layer


def traces(images: int, probes: int, pilot: int, full: bool, weights: str | None) -> None:
    torch.manual_seed(0)
    model = resnet20().eval()
    if weights is not None:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(weights))
    image, label = torch.randn(images, 3, 32, 32), torch.randint(10, (images,))
    blocks, _ = find_blocks(model, image[:1])

    start = time.perf_counter()
    generator = torch.Generator().manual_seed(1)
    stream = block_trace_probes(
        lambda batch: F.cross_entropy(model(batch[0]), batch[1]),
        [block.weights for block in blocks],
        [(image, label)],
        probes,
        generator,
        reuse_graph=True,
    )
    joint = trace_estimate(stream)
    ours = time.perf_counter() - start

    name, probing = peer()
    theirs, needed, gaps = 0.0, [], []
    for place, block in enumerate(blocks):
        start = time.perf_counter()
        probe = probing(model, image, label, block.weights[0])
        opened = time.perf_counter()
        values = probe(pilot)
        each = (time.perf_counter() - opened) / pilot
        error = float(joint.standard_error[place])
        count = max(2, math.ceil(np.var(values, ddof=1) / error**2))
        if full and count > pilot:
            values += probe(count - pilot)
        needed.append(count)
        theirs += time.perf_counter() - start if full and count >= pilot else (opened - start) + count * each
        own = np.std(values, ddof=1) / math.sqrt(len(values))
        gaps.append(abs(np.mean(values) - float(joint.mean[place])) / math.hypot(own, error))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    relative = (joint.standard_error / joint.mean.abs()).numpy()
    print(
        f"\nHessian traces of {len(blocks)} layers of ResNet-20, {images} images, {torch.get_num_threads()} thread(s)"
    )
    errors = f"relative standard errors {relative.min():.3f} to {relative.max():.3f}, median {np.median(relative):.3f}"
    print(f"joint probes: {probes} products, {ours:.1f} s; {errors}")
    print(f"{name}: {sum(needed)} products ({min(needed)} to {max(needed)} a layer) for the same errors, {theirs:.1f} s"
          + ("" if full else f", counted from {pilot} probes a layer"))  # fmt: skip
    print(f"largest disagreement of the means: {max(gaps):.1f} standard errors of the difference")
    print(f"ratio: {theirs / ours:.1f} x faster")
    assert max(gaps) < 6, "the two do not estimate the same traces"


def plain_milp(objective: np.ndarray, cost: np.ndarray, budget: float) -> float:
    rows, widths = objective.shape
    solution = milp(
        objective.ravel(),
        integrality=np.ones(objective.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(np.kron(np.eye(rows), np.ones(widths)), 1, 1),
            LinearConstraint(cost.ravel()[None], -np.inf, budget),
        ],
    )
    return float(solution.fun)


def allocator(rounds: int = 5) -> None:
    """Sensitivities over five orders of magnitude, sizes over three, errors that fall by 4 per bit."""
    rng = np.random.default_rng(0)
    layers, widths = 200, np.array([2, 3, 4, 5, 6, 8])
    size = np.exp(rng.uniform(np.log(1e3), np.log(2e6), layers))
    objective = np.exp(rng.normal(0, 3, layers))[:, None] * 4.0 ** -widths[None] * rng.uniform(0.8, 1.2, (layers, 6))
    objective = np.sort(objective, axis=1)[:, ::-1]
    cost = size[:, None] * widths[None]
    budget = 4.0 * size.sum()
    best = plain_milp(objective, cost, budget)
    for name, allocate in (("program", allocate_program), ("greedy", allocate_greedy)):
        choice = allocate(objective, cost, budget)
        assert fits(cost, choice, budget)
        print(f"{name}: objective {total_cost(objective, choice) / best:.6f} of the plain program's")
    seconds = take_turns(
        {
            "allocate_program": lambda: allocate_program(objective, cost, budget),
            "allocate_greedy": lambda: allocate_greedy(objective, cost, budget),
            "scipy milp, unscaled": lambda: plain_milp(objective, cost, budget),
        },
        rounds=rounds,
        warmup=1,
    )
    print_table(f"Allocating {layers} layers, {len(widths)} widths", seconds, reference="scipy milp, unscaled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("traces", "allocator"))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--probes", type=int, default=40)
    parser.add_argument("--pilot", type=int, default=6)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part in (None, "allocator"):
        allocator()
    if options.part in (None, "traces"):
        traces(options.images, options.probes, options.pilot, options.full, options.weights)


if __name__ == "__main__":
    main()
