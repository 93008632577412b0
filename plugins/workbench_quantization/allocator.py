"""Giving bits to layers under a budget: the integer program, the walk along an order, and what lies on the Pareto front.

All functions work on tables `objective[layer, width]` and `cost[layer, width]`, whose columns are the candidate widths
in ascending order (cost must not fall with the width), and return the chosen column of each layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from workbench.errors import InputError

from workbench_quantization.solver_output import solver_kept_quiet

Ties = Sequence[Sequence[int]]
"""Groups of layers (rows) that must get the same width; layers in no group stand alone."""

_SLACK = 1e-9  # relative; budgets are sums of products and must not fail on rounding


def total_cost(cost: np.ndarray, choice: np.ndarray) -> float:
    """Sum of cost[layer, choice[layer]]."""
    return float(cost[np.arange(len(choice)), choice].sum())


def fits(cost: np.ndarray, choice: np.ndarray, budget: float) -> bool:
    """Whether a choice holds the budget, up to rounding."""
    return total_cost(cost, choice) <= budget + _SLACK * max(1.0, abs(budget))


def budget_range(cost: np.ndarray) -> tuple[float, float]:
    """Cost of all layers at the lowest width, and at the highest."""
    return float(cost[:, 0].sum()), float(cost[:, -1].sum())


def fraction_to_budget(cost: np.ndarray, fraction: float) -> float:
    """cost_low + f * (cost_high - cost_low), the way HAWQ-V3 states budgets."""
    low, high = budget_range(cost)
    return low + fraction * (high - low)


def require_feasible(cost: np.ndarray, budget: float) -> None:
    """Raise InputError when even the lowest width everywhere costs more than `budget`."""
    low, high = budget_range(cost)
    if low > budget + _SLACK * max(1.0, abs(budget)):
        raise InputError(
            "budget", expected=f"at least {low:.6g} (all at the lowest width; highest {high:.6g})", got=f"{budget:.6g}"
        )


def allocate_program(objective: np.ndarray, cost: np.ndarray, budget: float, ties: Ties = ()) -> np.ndarray:
    """HAWQ-V3's integer program: min sum x_ib objective_ib, sum_b x_ib = 1, sum x_ib cost_ib <= budget (HiGHS).

    Tied layers share their variables, which is the constraint x_ib = x_jb.

    Args:
        objective: (layer, width), finite.
        cost: (layer, width).
        budget: upper bound of the total cost.
        ties: groups of rows that share a width.

    Returns:
        (layer,) int64, the chosen column.
    """
    require_feasible(cost, budget)
    groups = _groups(len(cost), ties)
    merged = np.array([objective[group].sum(0) for group in groups])
    price = np.array([cost[group].sum(0) for group in groups])
    rows = len(merged)
    # HiGHS works with absolute tolerances of 1e-6: subtract what cannot be chosen away and scale far above them.
    merged = merged - merged.min(axis=1, keepdims=True)
    merged = merged * (1e6 / merged.max()) if merged.max() > 0 else merged
    unit = 1e5 / max(abs(budget), float(price.max()))
    allowed = budget
    for _ in range(8):
        row, column = np.nonzero(_may_be_best(merged, price, allowed))
        with solver_kept_quiet():
            solution = milp(
                merged[row, column],
                integrality=np.ones(len(row)),
                bounds=Bounds(0, 1),
                constraints=[
                    LinearConstraint((row == np.arange(rows)[:, None]).astype(float), 1, 1),
                    LinearConstraint(price[row, column][None] * unit, -np.inf, allowed * unit),
                ],
                options={"mip_rel_gap": 0.0},
            )
        if solution.x is None:
            raise RuntimeError(f"the integer program was not solved: {solution.message}")
        picked = np.zeros(rows, dtype=np.int64)
        taken = solution.x > 0.5
        picked[row[taken]] = column[taken]
        choice = _spread(groups, picked, len(cost))
        if fits(cost, choice, budget):
            return choice
        # The solver's feasibility tolerance let a little too much through.
        allowed -= 2 * (total_cost(cost, choice) - budget)
    raise RuntimeError("the integer program kept exceeding the budget by rounding")


def _may_be_best(objective: np.ndarray, price: np.ndarray, budget: float) -> np.ndarray:
    """Which widths an optimal choice can hold: (layer, width) bool. The program is solved over these alone.

    For a price m of the budget, L(m) = sum_i min_b (objective_ib + m price_ib) - m budget bounds every allowed choice from
    below, and a choice that takes width b in layer i by L(m) + (objective_ib + m price_ib - the least of layer i). Where that
    is above a choice already known, b is not in a better one (reduced-cost fixing; Nemhauser and Wolsey 1988, II.5).
    """
    rows = np.arange(len(objective))
    low, high = 0.0, 1.0
    while price[rows, (objective + high * price).argmin(1)].sum() > budget and high < 1e30:
        low, high = high, 4 * high
    for _ in range(80):
        middle = (low + high) / 2
        over = price[rows, (objective + middle * price).argmin(1)].sum() > budget
        low, high = (middle, high) if over else (low, middle)
    reduced = objective + high * price
    least = reduced.min(1, keepdims=True)
    choice = reduced.argmin(1)
    if price[rows, choice].sum() > budget:  # no such price: equal costs, or a budget met only up to rounding
        return np.ones(objective.shape, dtype=bool)
    bound = float(least.sum()) - high * budget
    left = budget - price[rows, choice].sum()
    for _ in range(len(rows)):  # spend what is left, where it helps most
        gain = objective[rows, choice][:, None] - objective
        gain[price - price[rows, choice][:, None] > left] = -np.inf
        row, column = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[row, column] <= 0:
            break
        left -= price[row, column] - price[row, choice[row]]
        choice[row] = column
    known = float(objective[rows, choice].sum())
    possible: np.ndarray = bound + (reduced - least) <= known + 1e-9 * max(1.0, abs(known), abs(bound), high * budget)
    possible[rows, choice] = True
    return possible


def allocate_walk(order: Sequence[int], cost: np.ndarray, budget: float, ties: Ties = ()) -> np.ndarray:
    """The deterministic form of HAWQ-V1: all layers at the highest width; pass along `order`, lowering each by one step.

    The walk stops as soon as the budget holds. Because a pass lowers every layer once, a layer never has fewer bits than
    one that comes before it. Tied layers move together, at the place of the last of them in `order`.

    Args:
        order: layers from least to most sensitive.
        cost: (layer, width).
        budget: upper bound of the total cost.
        ties: groups of rows that share a width.

    Returns:
        (layer,) int64, the chosen column.
    """
    require_feasible(cost, budget)
    place = np.empty(len(cost), dtype=np.int64)
    place[np.asarray(order)] = np.arange(len(cost))
    groups = sorted(_groups(len(cost), ties), key=lambda group: max(place[group]))
    choice = np.full(len(cost), cost.shape[1] - 1)
    while not fits(cost, choice, budget):
        for group in groups:
            choice[group] -= 1
            if fits(cost, choice, budget):
                break
    return choice


def allocate_greedy(objective: np.ndarray, cost: np.ndarray, budget: float) -> np.ndarray:
    """All layers at the highest width; again and again the step down that adds least objective per cost saved.

    What the integer program is compared with: it never takes a step back, so it can be worse and is never better.

    Args:
        objective: (layer, width), finite.
        cost: (layer, width).
        budget: upper bound of the total cost.

    Returns:
        (layer,) int64, the chosen column.
    """
    require_feasible(cost, budget)
    choice = np.full(len(cost), cost.shape[1] - 1)
    rows = np.arange(len(cost))
    while not fits(cost, choice, budget):
        lower = np.maximum(choice - 1, 0)
        saved = cost[rows, choice] - cost[rows, lower]
        added = objective[rows, lower] - objective[rows, choice]
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(saved > 0, added / saved, np.where(choice > 0, 0.0, np.inf))
        rate[choice == 0] = np.inf
        choice[int(np.argmin(rate))] -= 1
    return choice


def pareto_front(cost: np.ndarray, objective: np.ndarray) -> np.ndarray:
    """Which of n solutions no other beats: (n,) bool. Beaten means no dearer and no worse, and better in one of both."""
    cost, objective = np.asarray(cost, dtype=float), np.asarray(objective, dtype=float)
    no_worse = (cost[:, None] <= cost) & (objective[:, None] <= objective)
    better = (cost[:, None] < cost) | (objective[:, None] < objective)
    return ~(no_worse & better).any(axis=0)


def _groups(layers: int, ties: Ties) -> list[list[int]]:
    """Ties that overlap are joined; every other layer is a group of its own."""
    parent = list(range(layers))

    def root(layer: int) -> int:
        while parent[layer] != layer:
            layer = parent[layer]
        return layer

    for tie in ties:
        for layer in tie[1:]:
            parent[root(layer)] = root(tie[0])
    members: dict[int, list[int]] = {}
    for layer in range(layers):
        members.setdefault(root(layer), []).append(layer)
    return list(members.values())


def _spread(groups: Sequence[Sequence[int]], picked: np.ndarray, layers: int) -> np.ndarray:
    choice = np.empty(layers, dtype=np.int64)
    for group, column in zip(groups, picked, strict=True):
        choice[list(group)] = column
    return choice
