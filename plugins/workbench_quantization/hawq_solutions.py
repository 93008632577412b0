"""From sensitivities to widths: what each layer costs, what the budget leaves, HAWQ's solution and those it must beat."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from workbench import InputError

from workbench_quantization.allocator import (
    allocate_program,
    allocate_walk,
    budget_range,
    fits,
    fraction_to_budget,
    total_cost,
)
from workbench_quantization.quantizer import FULL_PRECISION

BudgetKind = Literal["avg_bits", "size_mb", "bops", "latency_ms"]
MEGABYTE = 1e6


@dataclass(frozen=True)
class Costs:
    """What every block costs at every width. Arrays are over all blocks, the fixed ones (first, last) included.

    sizes, macs: (block,); widths: the candidates, ascending; fixed: width of each fixed block, 0 where the program
    decides; activation_bits: width of the layers' inputs, None for "that of the weights"; latency: (block, width) or None.
    """

    sizes: np.ndarray
    macs: np.ndarray
    widths: np.ndarray
    fixed: np.ndarray
    activation_bits: int | None
    latency: np.ndarray | None = None

    @property
    def free(self) -> np.ndarray:
        """Positions of the blocks whose width is to be decided."""
        return np.flatnonzero(self.fixed == 0)

    def complete(self, choice: np.ndarray) -> np.ndarray:
        """Widths of all blocks, (block,) int64, from the chosen columns of the free ones."""
        bits = self.fixed.astype(np.int64).copy()
        bits[self.free] = self.widths[choice]
        return bits

    def input_bits(self, bits: np.ndarray) -> np.ndarray:
        """Width of every block's input. Fixed blocks keep their own width, unless inputs are not quantised at all."""
        if self.activation_bits is None:
            return bits.copy()
        if self.activation_bits >= FULL_PRECISION:
            return np.full_like(bits, FULL_PRECISION)
        return np.where(self.fixed > 0, np.maximum(self.fixed, self.activation_bits), self.activation_bits)

    def size_mb(self, bits: np.ndarray) -> float:
        """Size of the quantised weights in MB of 10^6 bytes."""
        return float((self.sizes * bits).sum() / 8 / MEGABYTE)

    def bops(self, bits: np.ndarray) -> float:
        """Bit operations of one sample: sum of MACs * b_w * b_a."""
        return float((self.macs.astype(float) * bits * self.input_bits(bits)).sum())

    def average_bits(self, bits: np.ndarray) -> float:
        """Mean width of all quantised weights, fixed blocks included."""
        return float((self.sizes * bits).sum() / self.sizes.sum())

    def table(self, kind: BudgetKind) -> np.ndarray:
        """Cost of the free blocks, (free, width), in the unit of the budget."""
        sizes, widths = self.sizes[self.free, None].astype(float), self.widths[None].astype(float)
        if kind == "avg_bits":
            return sizes * widths / self.sizes.sum()
        if kind == "size_mb":
            return sizes * widths / 8 / MEGABYTE
        if kind == "bops":
            activation = widths if self.activation_bits is None else float(self.activation_bits)
            return self.macs[self.free, None] * widths * activation
        if self.latency is None:
            raise InputError("latency", expected="a table for budget 'latency_ms'", got="none")
        return self.latency[self.free]

    def fixed_cost(self, kind: BudgetKind) -> float:
        """What the fixed blocks take of a budget before anything is decided; a latency table leaves them out."""
        bits = np.where(self.fixed > 0, self.fixed, 0)
        if kind == "avg_bits":
            return self.average_bits(bits)
        if kind == "size_mb":
            return self.size_mb(bits)
        return self.bops(bits) if kind == "bops" else 0.0

    def total(self, kind: BudgetKind, bits: np.ndarray) -> float:
        """Cost of all blocks in the unit of the budget, comparable with the budget as the user states it."""
        column = np.searchsorted(self.widths, bits[self.free])
        return total_cost(self.table(kind), column) + self.fixed_cost(kind)


def latency_table(
    latency: Mapping[str, Sequence[float]], names: Sequence[str], free: Sequence[int], widths: Sequence[int]
) -> np.ndarray:
    """(block, width) from a mapping of names, zero for fixed blocks. Times of a row are in the order of `widths`.

    Raises:
        InputError: a free block is missing, a row has the wrong length or no times in it, or a wider width is faster.
    """
    table = np.zeros((len(names), len(widths)))
    ascending = np.argsort(widths).tolist()
    for position in free:
        row = latency.get(names[position])
        if row is None or len(row) != len(widths):
            raise InputError(
                "latency",
                expected=f"{len(widths)} numbers for {names[position]!r}, one per width in {tuple(widths)}",
                got="none" if row is None else str(len(row)),
            )
        if min(row) < 0:
            raise InputError("latency", expected="times of 0 or more", got=f"{tuple(row)} for {names[position]!r}")
        if any(row[wider] < row[narrower] for narrower, wider in itertools.pairwise(ascending)):
            raise InputError(
                "latency",
                expected="times that do not fall with the width",
                got=f"{tuple(row)} for {names[position]!r}",
                hint="Where a wider format is faster, the narrower one is of no use: give it the wider one's time.",
            )
        table[position] = row
    return table


def free_budget(costs: Costs, kind: BudgetKind, value: float | None, fraction: float | None) -> float:
    """What the free blocks may cost together.

    With neither value nor fraction it is 3 bits on average (HAWQ-V1's regime), or a quarter of the way from lowest to
    highest width where the fixed blocks are so large that 3 bits are out of reach.

    Raises:
        InputError: even the lowest width everywhere costs more.
    """
    table, fixed = costs.table(kind), costs.fixed_cost(kind)
    low, high = budget_range(table)
    if fraction is not None:
        return fraction_to_budget(table, fraction)
    if value is None:
        return 3.0 - fixed if low <= 3.0 - fixed else fraction_to_budget(table, 0.25)
    if not fits(table, np.zeros(len(table), dtype=np.int64), value - fixed):
        raise InputError(
            "budget_value",
            expected=f"{low + fixed:.6g} to {high + fixed:.6g} {kind} "
            f"(all at {costs.widths[0]} bits, all at {costs.widths[-1]} bits)",
            got=f"{value:.6g}",
        )
    return value - fixed


@dataclass(frozen=True)
class Solution:
    """Widths of all blocks, how they were found (`name`) and in what part of the comparison (`kind`) they stand."""

    name: str
    kind: str
    bits: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """What the solutions are made from, over the free blocks only.

    sensitivity: (free,) of the criterion; objective: (free, width) of the criterion's program; eigenvalue_order and
    trace_objective: those of V1 and of V3; weight_error: (free, width); loss_increase: (free, width); sizes: (free,).
    """

    sensitivity: np.ndarray
    objective: np.ndarray
    eigenvalue_sensitivity: np.ndarray
    trace_objective: np.ndarray
    weight_error: np.ndarray
    loss_increase: np.ndarray
    sizes: np.ndarray


def make_solutions(
    evidence: Evidence,
    costs: Costs,
    kind: BudgetKind,
    budget: float,
    ties: Sequence[Sequence[int]],
    *,
    criterion: str,
    allocator: Literal["walk", "program"],
    random_orders: int,
    sweep: int,
    rng: np.random.Generator,
) -> list[Solution]:
    """HAWQ's solution first, then the other generation's, the baselines and the ablations, all under the same budget.

    - chosen: the criterion with its allocator; other: V3's program on traces, or V1's walk by eigenvalues;
    - reversed: the walk along the criterion's order from its sharp end (the paper's ablation); random: along random orders;
    - magnitude: the program with every trace set to 1; measured: the program on measured single-layer loss increases;
    - uniform: one width for all free blocks (not bound to the budget); sweep: the chosen objective's program at budgets
      between all-low and all-high.
    """
    table = costs.table(kind)

    def walk(order: np.ndarray) -> np.ndarray:
        return costs.complete(allocate_walk(order, table, budget, ties))

    def program(objective: np.ndarray, limit: float = budget) -> np.ndarray:
        return costs.complete(allocate_program(objective, table, limit, ties))

    ascending = np.argsort(evidence.sensitivity, kind="stable")
    chosen = walk(ascending) if allocator == "walk" else program(evidence.objective)
    solutions = [Solution(f"{criterion} {allocator}", "chosen", chosen)]
    if (criterion, allocator) != ("trace", "program"):
        solutions.append(Solution("trace program", "other", program(evidence.trace_objective)))
    if (criterion, allocator) != ("eig", "walk"):
        by_eigenvalue = np.argsort(evidence.eigenvalue_sensitivity, kind="stable")
        solutions.append(Solution("eig walk", "other", walk(by_eigenvalue)))
    solutions.append(Solution(f"{criterion} walk, reversed", "reversed", walk(ascending[::-1])))
    solutions.append(
        Solution("magnitude program", "magnitude", program(evidence.weight_error / evidence.sizes[:, None]))
    )
    solutions.append(Solution("measured loss program", "measured", program(evidence.loss_increase)))
    for column, width in enumerate(costs.widths):
        same = costs.complete(np.full(len(costs.free), column))
        solutions.append(Solution(f"uniform {width} bit", "uniform", same))
    for draw in range(random_orders):
        order = rng.permutation(len(costs.free))
        solutions.append(Solution(f"random order {draw + 1}", "random", walk(order)))
    low, high = budget_range(table)
    for step in range(1, sweep + 1):
        share = step / (sweep + 1)
        objective = evidence.objective if allocator == "program" else evidence.trace_objective
        solutions.append(Solution(f"program at {share:.0%}", "sweep", program(objective, low + share * (high - low))))
    return solutions


def nearest_uniform(solutions: Sequence[Solution], costs: Costs, kind: BudgetKind, limit: float) -> int:
    """Position of the uniform solution whose cost is nearest to the budget (the narrower one in a tie).

    One width for all hardly ever meets a budget exactly; the comparison is fair only next to both costs.
    """
    uniform = [position for position, solution in enumerate(solutions) if solution.kind == "uniform"]
    return min(uniform, key=lambda position: abs(costs.total(kind, solutions[position].bits) - limit))
