"""Quantization: traces of the Hessian against PyHessian layer by layer, the bit allocator, AdaQuant's layers at the same time.

    python tests/benchmarks/quantization.py [--part traces|allocator|adaquant] [--images 32] [--pilot 6]
        [--weights FILE] [--steps 20]

`traces`: the Hessian trace of every convolution and linear layer of ResNet-20 (random weights unless `--weights`; random images),
once as HAWQ has them (`gauss_newton_probes` until the standard errors are small, three probes at least), and once by calling
PyHessian for one layer after the other, as its users do. What counts is the time to one standard error relative to the trace, in
every layer: ours is what it is after three probes, and for PyHessian the number of probes follows from the variance of
`--pilot` probes of the layer, its time from theirs. The means must agree within the errors of the pilot. Where PyHessian is not
installed, a loop with the same semantics stands in and is named so.

`allocator`: 200 layers and 6 widths, the integer program and the greedy walk, against scipy's `milp` called with the same
problem as it stands (without scaling), whose objective the product must reach.

`adaquant`: the layers of ResNet-20 at 4 bits, 50 images, `--steps` steps a layer, one after the other with all of torch's
threads, and as many at a time as there are threads. Both include what a layer starts with (its inputs and outputs), which is
collected before its first step and does not grow with their number.
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
from scipy.stats import t as student_t
from torch import Tensor, nn
from workbench.subjects.networks import resnet20
from workbench.toolkit import trace_estimate

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measure import print_table, take_turns
from workbench_quantization.adaquant import Params
from workbench_quantization.adaquant_layers import Student, initial
from workbench_quantization.adaquant_optimisation import Calibration, Problem, concurrent_layers, solve_several
from workbench_quantization.adaquant_run import copied
from workbench_quantization.allocator import allocate_greedy, allocate_program, fits, total_cost
from workbench_quantization.folding import find_units, fold
from workbench_quantization.gauss_newton import gauss_newton_probes
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


ERRORS = (0.15, 0.05, 0.01)
"""Standard errors relative to the trace; HAWQ asks for the first."""


def traces(images: int, pilot: int, weights: str | None) -> None:
    torch.manual_seed(0)
    model = resnet20().eval()
    if weights is not None:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(weights))
    image, label = torch.randn(images, 3, 32, 32), torch.randint(10, (images,))
    blocks, _ = find_blocks(model, image[:1])

    start = time.perf_counter()
    ours = trace_estimate(gauss_newton_probes(model, blocks, [(image, label)], 3, torch.Generator().manual_seed(1)))
    our_time = time.perf_counter() - start
    reached = float((ours.standard_error / ours.mean.abs()).max())
    print(
        f"\nHessian traces of {len(blocks)} layers of ResNet-20, {images} images, {torch.get_num_threads()} thread(s)"
    )
    print(f"Gauss-Newton and 3 probes: {our_time:.1f} s, largest relative standard error {reached:.1e}")

    name, probing = peer()
    opening, each, spread, gaps = 0.0, [], [], []
    for place, block in enumerate(blocks):
        start = time.perf_counter()
        probe = probing(model, image, label, block.weights[0])
        opened = time.perf_counter()
        values = probe(pilot)
        each.append((time.perf_counter() - opened) / pilot)
        opening += opened - start
        spread.append(float(np.std(values, ddof=1)))
        own = float(ours.standard_error[place])
        gaps.append(abs(np.mean(values) - float(ours.mean[place])) / math.hypot(spread[-1] / math.sqrt(pilot), own))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    mean = ours.mean.abs().numpy()
    for error in ERRORS:
        count = np.maximum(2, np.ceil((np.array(spread) / (error * mean)) ** 2))
        theirs = opening + float((count * np.array(each)).sum())
        if reached > error:
            print(f"at {error:.0%}: not reached by three probes")
            continue
        print(f"at {error:.0%}: {name} {int(count.sum())} products, {theirs:.1f} s, {theirs / our_time:.1f} x as long")
    print(f"largest disagreement of the means: {max(gaps):.1f} standard errors of the difference")
    # Student's t for so few probes; 1 in 1,000 over all layers.
    limit = float(student_t.ppf(1 - 0.0005 / len(blocks), pilot - 1))
    assert max(gaps) < limit, f"the two do not estimate the same traces (limit {limit:.1f})"


def adaquant(steps: int, rounds: int = 3) -> None:
    torch.manual_seed(0)
    model = resnet20().eval()
    image = torch.rand(50, 3, 32, 32)
    blocks, _ = find_blocks(model, image[:1])
    units = find_units(model, blocks, image[:1])
    fold(model, units, image)
    # Inputs are collected from a copy: the layers of the student are computed with meanwhile.
    teacher, student = Student(*copied(model, units)), Student(model, units)
    params = Params(iterations=steps)
    calibration = Calibration([image], [image[:10]], image, torch.zeros(50, dtype=torch.int64), [image])
    at_once = concurrent_layers(teacher, calibration)
    if at_once == 1:
        print("\nAdaQuant: one thread, so there is nothing to do at the same time (OMP_NUM_THREADS=2 or more)")
        return

    def pose(place: int) -> Problem:
        inputs, target = teacher.collect(place, [image])
        start = initial(student.units[place], inputs, 4, 4)
        drawing = torch.Generator().manual_seed(place)
        return Problem(student.units[place], start, inputs, target, inputs[:10], target[:10], drawing)

    def solve(number: int) -> None:
        solve_several(pose, range(len(blocks)), number, params, lambda step, count: None)

    seconds = take_turns(
        {"one after the other": lambda: solve(1), f"{at_once} at a time": lambda: solve(at_once)},
        rounds=rounds,
        warmup=1,
    )
    print_table(
        f"AdaQuant of {len(blocks)} layers, {steps} steps each, {torch.get_num_threads()} threads",
        seconds,
        reference="one after the other",
    )


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
    parser.add_argument("--part", choices=("traces", "allocator", "adaquant"))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--pilot", type=int, default=6)
    parser.add_argument("--weights")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    if options.part in (None, "adaquant"):
        adaquant(options.steps)
    torch.set_num_threads(1)
    if options.part in (None, "allocator"):
        allocator()
    if options.part in (None, "traces"):
        traces(options.images, options.pilot, options.weights)


if __name__ == "__main__":
    main()
