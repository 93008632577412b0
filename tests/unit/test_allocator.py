"""The allocator against brute force over every assignment of widths."""

from __future__ import annotations

import itertools
import os
import threading

import numpy as np
import pytest
from scipy.optimize import linprog
from workbench import InputError

from workbench_quantization.allocator import (
    allocate_program,
    allocate_walk,
    budget_range,
    fits,
    fraction_to_budget,
    pareto_front,
    total_cost,
)
from workbench_quantization.solver_output import NOISE, solver_kept_quiet

WIDTHS = np.array([2, 3, 4, 8])


def problem(seed: int, layers: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Objective falling with the width, cost = size * width."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(10, 5000, layers)
    objective = rng.lognormal(0, 3, layers)[:, None] * 4.0 ** -WIDTHS[None] * rng.uniform(0.5, 2, (layers, len(WIDTHS)))
    return objective, sizes[:, None] * WIDTHS[None].astype(float)


def brute_force(objective: np.ndarray, cost: np.ndarray, budget: float, ties: list[list[int]]) -> float:
    best = np.inf
    for choice in itertools.product(range(cost.shape[1]), repeat=len(cost)):
        if any(len({choice[i] for i in tie}) > 1 for tie in ties):
            continue
        if sum(cost[i, c] for i, c in enumerate(choice)) <= budget * (1 + 1e-12):
            best = min(best, sum(objective[i, c] for i, c in enumerate(choice)))
    return best


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", [[], [[0, 3]], [[0, 1], [1, 4]]])
def test_program_finds_the_optimum_of_all_assignments(seed: int, ties: list[list[int]]) -> None:
    objective, cost = problem(seed)
    budget = fraction_to_budget(cost, 0.1 + 0.1 * seed)
    choice = allocate_program(objective, cost, budget, ties)
    assert fits(cost, choice, budget)
    assert all(choice[tie].tolist() == [choice[tie[0]]] * len(tie) for tie in ties)
    got = objective[np.arange(len(choice)), choice].sum()
    assert got == pytest.approx(brute_force(objective, cost, budget, ties), rel=1e-6)


def test_program_takes_negative_objectives_and_objectives_that_do_not_fall() -> None:
    """Measured loss increases can be negative, and larger at a larger width."""
    rng = np.random.default_rng(3)
    _, cost = problem(3)
    objective = rng.normal(0, 1e-3, cost.shape)
    budget = fraction_to_budget(cost, 0.4)
    choice = allocate_program(objective, cost, budget)
    got = objective[np.arange(len(choice)), choice].sum()
    assert got == pytest.approx(brute_force(objective, cost, budget, []), rel=1e-6)


def test_what_the_solver_prints_stays_out_of_standard_output_and_what_others_print_does_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with solver_kept_quiet():
        os.write(1, NOISE + b"transformNewIntegerFeasibleSolution tmpSolver.run();\nby another thread\n" + NOISE)
        os.write(1, b" more\nits next line")
    print("afterwards")
    assert capfd.readouterr().out == "by another thread\nits next lineafterwards\n"

    def failing() -> None:
        with solver_kept_quiet():
            os.write(1, b"before the error\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert capfd.readouterr().out == "before the error\n"


def test_standard_output_comes_back_after_two_threads_that_solve_at_the_same_time(
    capfd: pytest.CaptureFixture[str],
) -> None:
    inside, waiting = threading.Event(), threading.Event()

    def first() -> None:
        with solver_kept_quiet():
            inside.set()
            waiting.wait(10)

    def second() -> None:
        inside.wait(10)
        manager = solver_kept_quiet()
        threading.Timer(0.1, waiting.set).start()  # while the second is at the first one's lock
        with manager:
            pass

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(1, b"afterwards\n")
    assert capfd.readouterr().out == "afterwards\n"


def test_two_hundred_layers_of_six_widths_are_solved_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    """An instance on which HiGHS prints lines of its own; the optimum is bounded from below by the linear relaxation."""
    rng = np.random.default_rng(0)
    widths = np.array([2, 3, 4, 5, 6, 8])
    size = np.exp(rng.uniform(np.log(1e3), np.log(2e6), 200))
    objective = np.exp(rng.normal(0, 3, 200))[:, None] * 4.0 ** -widths[None] * rng.uniform(0.8, 1.2, (200, 6))
    objective = np.sort(objective, axis=1)[:, ::-1]
    cost, budget = size[:, None] * widths[None], 4.0 * size.sum()
    choice = allocate_program(objective, cost, budget)
    assert fits(cost, choice, budget)
    scale = 1e-6  # of the costs, for the solver's tolerances
    relaxed = linprog(
        objective.ravel(),
        A_ub=cost.ravel()[None] * scale,
        b_ub=[budget * scale],
        A_eq=np.kron(np.eye(200), np.ones(6)),
        b_eq=np.ones(200),
    )
    found = total_cost(objective, choice)
    assert relaxed.fun - 1e-9 <= found <= 1.001 * relaxed.fun
    assert capfd.readouterr().out == ""


def test_program_at_the_ends_of_the_budget() -> None:
    objective, cost = problem(0)
    low, high = budget_range(cost)
    assert allocate_program(objective, cost, low).tolist() == [0] * 6
    falling = -np.cumsum(np.ones_like(objective), axis=1)
    assert allocate_program(falling, cost, high).tolist() == [3] * 6


@pytest.mark.parametrize("scale", [1e-9, 1e12])
def test_program_does_not_depend_on_the_units(scale: float) -> None:
    objective, cost = problem(5)
    budget = fraction_to_budget(cost, 0.35)
    assert (
        allocate_program(objective * scale, cost * scale, budget * scale).tolist()
        == allocate_program(objective, cost, budget).tolist()
    )


@pytest.mark.parametrize("fraction", [0.0, 0.13, 0.5, 0.77, 1.0])
def test_walk_is_monotone_along_the_order_and_stops_as_soon_as_the_budget_holds(fraction: float) -> None:
    _, cost = problem(1)
    order = np.random.default_rng(1).permutation(6)
    budget = fraction_to_budget(cost, fraction)
    choice = allocate_walk(order, cost, budget)
    along = choice[order]
    assert fits(cost, choice, budget)
    assert (np.diff(along) >= 0).all()
    assert along[-1] - along[0] <= 1
    # Raising the layer lowered last by one step must break the budget.
    if choice.min() < cost.shape[1] - 1:
        lowered = np.flatnonzero(along == along[0])[-1]
        undone = choice.copy()
        undone[order[lowered]] += 1
        assert not fits(cost, undone, budget)


def test_walk_by_hand() -> None:
    cost = np.array([[2.0, 4.0, 8.0]] * 3)
    # All 8: 24. One pass brings 20, 16, 12; then the first layer of the second pass brings 10.
    assert allocate_walk([2, 0, 1], cost, 16.0).tolist() == [1, 2, 1]
    assert allocate_walk([2, 0, 1], cost, 10.5).tolist() == [1, 1, 0]


def test_tied_layers_walk_together_at_the_place_of_the_most_sensitive() -> None:
    cost = np.array([[2.0, 4.0, 8.0]] * 3)
    choice = allocate_walk([0, 1, 2], cost, 20.0, ties=[[0, 2]])
    assert choice.tolist() == [2, 1, 2]


@pytest.mark.parametrize("allocate", ["program", "walk"])
def test_a_budget_below_the_lowest_width_says_what_would_be_possible(allocate: str) -> None:
    objective, cost = problem(2)
    low, _ = budget_range(cost)
    call = {
        "program": lambda: allocate_program(objective, cost, 0.99 * low),
        "walk": lambda: allocate_walk(range(6), cost, 0.99 * low),
    }[allocate]
    with pytest.raises(InputError, match="budget") as error:
        call()
    assert f"{low:.6g}" in str(error.value)


def test_fraction_is_between_all_low_and_all_high() -> None:
    _, cost = problem(4)
    assert fraction_to_budget(cost, 0.0) == cost[:, 0].sum()
    assert fraction_to_budget(cost, 1.0) == cost[:, -1].sum()
    assert fraction_to_budget(cost, 0.5) == pytest.approx((cost[:, 0].sum() + cost[:, -1].sum()) / 2)


def test_pareto_front_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    points = rng.integers(0, 6, (40, 2)).astype(float)
    expected = [not any((q <= p).all() and (q < p).any() for q in points) for p in points]
    assert pareto_front(points[:, 0], points[:, 1]).tolist() == expected


def test_total_cost() -> None:
    assert total_cost(np.array([[1.0, 2.0], [10.0, 20.0]]), np.array([1, 0])) == 12.0
