"""Damage models, orders and searches of inter-layer sensitivity against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from workbench import InputError

from workbench_quantization.interlayer_scores import (
    best_subset,
    bisect,
    fit_scale,
    pair_interaction,
    predicted_damage,
    roofline_cost,
    sequential_order,
    shapley_scores,
)


def problem(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    interaction = rng.normal(size=(count, count))
    interaction = np.triu(interaction, 1) + np.triu(interaction, 1).T
    return rng.normal(0.5, 1, count), interaction


def damage(subset: tuple[int, ...], diagonal: np.ndarray, interaction: np.ndarray) -> float:
    pairs = itertools.combinations(subset, 2)
    return sum(diagonal[i] for i in subset) + sum(interaction[i, j] for i, j in pairs)


def test_interactions_of_a_quadratic_loss_are_its_mixed_second_derivatives() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    hessian, gradient, step = root @ root.T, rng.normal(size=5), rng.normal(size=5)

    def loss(*layers: int) -> float:
        moved = np.zeros(5)
        moved[list(layers)] = step[list(layers)]
        return float(gradient @ moved + 0.5 * moved @ hessian @ moved)

    both = np.array([[loss(*{i, j}) for j in range(5)] for i in range(5)])
    found = pair_interaction(both, np.array([loss(i) for i in range(5)]), loss())
    expected = hessian * np.outer(step, step)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_shapley_values_by_all_permutations(seed: int) -> None:
    diagonal, interaction = problem(5, seed)
    total = np.zeros(5)
    for permutation in itertools.permutations(range(5)):
        for place, layer in enumerate(permutation):
            before = permutation[:place]
            total[layer] += damage((*before, layer), diagonal, interaction) - damage(before, diagonal, interaction)
    np.testing.assert_allclose(shapley_scores(diagonal, interaction, 1.0), total / math.factorial(5), atol=1e-12)
    assert shapley_scores(diagonal, interaction, 1.0).sum() == pytest.approx(
        damage(tuple(range(5)), diagonal, interaction)
    )
    np.testing.assert_allclose(shapley_scores(diagonal, interaction, 0.0), diagonal)
    assert (shapley_scores(diagonal, interaction, 1.0, absolute=True) >= diagonal).all()


@pytest.mark.parametrize("seed", range(3))
def test_sequential_order_adds_least_at_each_step(seed: int) -> None:
    diagonal, interaction = problem(6, seed)
    order = sequential_order(diagonal, interaction, 1.0).tolist()
    assert sorted(order) == list(range(6))
    for place, layer in enumerate(order):
        rest = [other for other in range(6) if other not in order[:place]]
        assert layer == min(rest, key=lambda other: damage((*order[:place], other), diagonal, interaction))


def test_predicted_damage_is_the_sum_written_out() -> None:
    diagonal, interaction = problem(6, 1)
    subsets = np.random.default_rng(2).random((20, 6)) < 0.5
    members = [tuple(np.flatnonzero(row)) for row in subsets]
    with_pairs = [damage(member, diagonal, interaction) for member in members]
    np.testing.assert_allclose(predicted_damage(subsets, diagonal, interaction), with_pairs)
    np.testing.assert_allclose(predicted_damage(subsets, diagonal), [diagonal[list(m)].sum() for m in members])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_best_subset_is_the_best_of_all(seed: int, share: float) -> None:
    diagonal, interaction = problem(7, seed)
    saving = np.random.default_rng(seed + 10).random(7)
    required = share * saving.sum()
    found, proven = best_subset(diagonal, interaction, saving, required)
    assert proven
    allowed = [
        member
        for size in range(8)
        for member in itertools.combinations(range(7), size)
        if saving[list(member)].sum() >= required - 1e-9
    ]
    best = min(damage(member, diagonal, interaction) for member in allowed)
    chosen = tuple(np.flatnonzero(found))
    assert saving[list(chosen)].sum() >= required - 1e-9
    assert damage(chosen, diagonal, interaction) == pytest.approx(best, abs=1e-6)


def test_a_subset_found_in_too_little_time_is_not_called_the_best() -> None:
    diagonal, interaction = problem(40, 0)
    try:
        found, proven = best_subset(diagonal, interaction, np.ones(40), 20.0, seconds=0.5)
    except RuntimeError:
        return  # nothing was found at all
    assert found.sum() >= 20
    assert not proven


def test_a_saving_out_of_reach_is_refused() -> None:
    with pytest.raises(InputError, match="saving of at most 2"):
        best_subset(np.zeros(2), np.zeros((2, 2)), np.ones(2), 3.0)


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_bisection_finds_the_last_that_passes(count: int) -> None:
    for last in range(count + 1):
        found, steps = bisect(lambda tried, last=last: 1.0 if tried <= last else 0.0, count, 0.5)
        assert found == last
        assert len(steps) <= math.ceil(math.log2(count + 1)) + 1
        assert all(step.low < step.tried < step.high for step in steps)


def test_bisection_of_a_bumpy_metric_answers_with_something_that_passed() -> None:
    metric = np.random.default_rng(0).random(16)
    found, steps = bisect(lambda tried: float(metric[tried - 1]), 16, 0.4)
    assert found == max((step.tried for step in steps if step.passed), default=0)


def test_scale_against_least_squares() -> None:
    rng = np.random.default_rng(0)
    sensitivity, measured = rng.random(9), rng.random(9)
    expected = np.linalg.lstsq(sensitivity[:, None], measured, rcond=None)[0][0]
    assert fit_scale(sensitivity, measured) == pytest.approx(expected)
    assert fit_scale(sensitivity, -measured) == 0.0
    assert fit_scale(np.zeros(9), measured) == 0.0


def test_roofline_by_hand() -> None:
    cost = roofline_cost(np.array([1600.0, 10.0]), np.array([8.0, 100.0]), (4, 8, 16), intensity=10.0)
    np.testing.assert_allclose(cost[0], [40, 80, 160])  # bound by arithmetic: 1600 / 10 at 16 bit
    np.testing.assert_allclose(cost[1], [50, 100, 200])  # bound by transfer: 100 weights of 2 bytes
