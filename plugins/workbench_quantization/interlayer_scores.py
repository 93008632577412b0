"""Pure functions of inter-layer sensitivity: damage models, orders, the bisection, and the exact choice of a subset.

Damage of quantising the layers in S together, to second order in the weights (N layers, one width):

    D(S) = sum_{i in S} h_i + sum_{i<j in S} J_ij,        J symmetric with zero diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from workbench import InputError

from workbench_quantization.solver_output import solver_kept_quiet

PairMode = Literal["signed", "abs", "sequential"]


def pair_interaction(both: np.ndarray, single: np.ndarray, base: float) -> np.ndarray:
    """J_ij = L({i,j}) - L({i}) - L({j}) + L({}) from losses: (N, N), (N,), scalar. The diagonal of `both` is ignored."""
    interaction = both - single[:, None] - single[None, :] + base
    np.fill_diagonal(interaction, 0.0)
    return interaction


def interaction_error(both: np.ndarray, first: np.ndarray, second: np.ndarray, base: np.ndarray) -> float:
    """Standard error of J_ij over images, from the four losses of every image, (image,) each: differences are taken in pairs."""
    found = both - first - second + base
    return float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else float("nan")


def fit_scale(sensitivity: np.ndarray, damage: np.ndarray) -> float:
    """The c that minimises sum (c h_i - d_i)^2: curvature terms on the scale of measured single-layer damages; >= 0."""
    norm = float(sensitivity @ sensitivity)
    return max(0.0, float(sensitivity @ damage) / norm) if norm > 0 else 0.0


def shapley_scores(
    diagonal: np.ndarray, interaction: np.ndarray, weight: float, *, absolute: bool = False
) -> np.ndarray:
    """s_i = h_i + (weight / 2) sum_j J_ij: the Shapley value of layer i in D; with |J_ij| where `absolute`. (N,)."""
    pairs = np.abs(interaction) if absolute else interaction
    return np.asarray(diagonal + 0.5 * weight * pairs.sum(axis=1))


def sequential_order(diagonal: np.ndarray, interaction: np.ndarray, weight: float) -> np.ndarray:
    """Layers in the order in which each adds least to D of those before it: (N,) positions."""
    added = diagonal.astype(float).copy()
    order: list[int] = []
    for _ in range(len(diagonal)):
        masked = added.copy()
        masked[order] = np.inf
        chosen = int(np.argmin(masked))
        order.append(chosen)
        added = added + weight * interaction[:, chosen]
    return np.array(order)


def predicted_damage(subset: np.ndarray, diagonal: np.ndarray, interaction: np.ndarray | None = None) -> np.ndarray:
    """D of each subset: (subset, N) bool -> (subset,); without J where `interaction` is None."""
    member = subset.astype(float)
    damage = member @ diagonal
    return damage if interaction is None else damage + 0.5 * np.einsum("si,ij,sj->s", member, interaction, member)


@dataclass(frozen=True)
class Step:
    """One evaluation of a bisection: bounds before it, the number of layers tried, what was measured."""

    low: int
    high: int
    tried: int
    metric: float
    passed: bool


def bisect(measure: Callable[[int], float], count: int, threshold: float) -> tuple[int, list[Step]]:
    """The largest tested k in 0..count with measure(k) >= threshold, halving the range at each step.

    k = 0 counts as passing untested. All `count` is tried as well when everything below passes. Exact where the metric
    falls with k; where it does not, the answer is still one that was tested and passed.
    """
    low, high, steps = 0, count + 1, []
    while high - low > 1:
        tried = (low + high) // 2
        metric = measure(tried)
        passed = metric >= threshold
        steps.append(Step(low, high, tried, metric, passed))
        low, high = (tried, high) if passed else (low, tried)
    return low, steps


def step_down(measure: Callable[[int], float], count: int, threshold: float) -> tuple[int, list[Step]]:
    """The same one by one: k = 1, 2, ... until measure(k) falls below the threshold (greedy search).

    Takes up to `count` evaluations where halving takes their logarithm. Where the metric does not fall with k, it stops at the
    first dip, which halving may step over.
    """
    steps: list[Step] = []
    for tried in range(1, count + 1):
        metric = measure(tried)
        steps.append(Step(tried - 1, count + 1, tried, metric, metric >= threshold))
        if not steps[-1].passed:
            return tried - 1, steps
    return count, steps


def roofline_cost(macs: np.ndarray, sizes: np.ndarray, widths: Sequence[int], intensity: float) -> np.ndarray:
    """(layer, width): max(MACs_i / peak(b), bytes_i(b) / bandwidth), in units of one byte's transfer.

    Peak throughput doubles with each halving of the width; at 16 bits `intensity` multiply-accumulates take as long as
    one byte.
    """
    bits = np.asarray(widths, dtype=float)
    compute = macs[:, None] * (bits / 16) / intensity
    transfer = sizes[:, None] * bits / 8
    return np.maximum(compute, transfer)


def best_subset(
    diagonal: np.ndarray, interaction: np.ndarray, saving: np.ndarray, required: float, seconds: float = 60.0
) -> tuple[np.ndarray, bool]:
    """The subset of least D among those that save at least `required`, by integer programming.

    Products x_i x_j are linearised: z <= x_i, z <= x_j, z >= x_i + x_j - 1 (CLADO, arXiv:2307.05657).

    Args:
        diagonal: (N,) h.
        interaction: (N, N) J.
        saving: (N,) cost saved by each layer, >= 0.
        required: what the subset must save.
        seconds: when to give up on the proof.

    Returns:
        (N,) bool, and whether it is proven to be the best. An unproven one depends on the speed of the machine.

    Raises:
        InputError: all layers together save less.
        RuntimeError: no subset was found in time.
    """
    count = len(diagonal)
    slack = 1e-9 * max(1.0, abs(required))
    if saving.sum() < required - slack:
        raise InputError("required", expected=f"a saving of at most {saving.sum():.6g}", got=f"{required:.6g}")
    first, second = np.triu_indices(count, 1)
    pairs = len(first)
    scale = max(np.abs(diagonal).max(), np.abs(interaction).max(), 1e-300)
    unit = max(float(saving.max()), 1e-300)
    objective = np.concatenate([diagonal, interaction[first, second]]) * (1e3 / scale)
    row = np.repeat(np.arange(3 * pairs), [2] * (2 * pairs) + [3] * pairs)
    z = count + np.arange(pairs)
    column = np.concatenate(
        [np.stack([z, first], 1).ravel(), np.stack([z, second], 1).ravel(), np.stack([z, first, second], 1).ravel()]
    )
    value = np.concatenate([np.tile([1.0, -1.0], 2 * pairs), np.tile([-1.0, 1.0, 1.0], pairs)])
    products = csr_array((value, (row, column)), shape=(3 * pairs, count + pairs))
    upper = np.concatenate([np.zeros(2 * pairs), np.ones(pairs)])
    enough = np.concatenate([saving / unit, np.zeros(pairs)])[None]
    with solver_kept_quiet():
        solution = milp(
            objective,
            integrality=np.concatenate([np.ones(count), np.zeros(pairs)]),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(products, -np.inf, upper),
                LinearConstraint(enough, (required - slack) / unit, np.inf),
            ],
            options={"mip_rel_gap": 0.0, "time_limit": seconds},
        )
    if solution.x is None:
        raise RuntimeError(f"the integer program was not solved: {solution.message}")
    return np.asarray(solution.x[:count] > 0.5), solution.status == 0
