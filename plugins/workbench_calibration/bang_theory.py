"""Why averaging helps, in a model that can be counted out: features that vote for classes.

Section 3 of Lin et al. (2023). Each feature of a model casts one vote: an invariant one for the label, a spurious one for the
label with probability 1 - p and otherwise for a class drawn from all K. A model predicts the class with most votes. Averaging two
models' outputs counts a feature that both have twice. Averaging their weights and their choices of features (whose product
decides) counts it four times against the others, which does good for shared invariant features and harm for shared spurious ones.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["single", "ose", "wse"]
KINDS: tuple[Kind, ...] = ("single", "ose", "wse")
SHARED_WEIGHT = {"single": 1, "ose": 2, "wse": 4}


def margin_moments(
    kind: Kind, p: float, classes: int, invariant: int, spurious: int, shared_invariant: int, shared_spurious: int
) -> tuple[float, float]:
    """Mean and variance of (votes for the label less votes for one given other class).

    Two models with equally many features; a spurious feature adds 1, -1 or 0 with mean 1 - p and variance
    1 - p + 2 p / K - (1 - p)^2, times its weight (its weight squared).
    """
    own, shared = (spurious, 0) if kind == "single" else (2 * (spurious - shared_spurious), shared_spurious)
    weight, squared = own + SHARED_WEIGHT[kind] * shared, own + SHARED_WEIGHT[kind] ** 2 * shared
    one = 1 - p + 2 * p / classes - (1 - p) ** 2
    return (1 - p) * weight + certain_votes(kind, invariant, shared_invariant), one * squared


def certain_votes(kind: Kind, invariant: int, shared_invariant: int) -> int:
    """Weight of the invariant features, all of which vote for the label."""
    if kind == "single":
        return invariant
    return 2 * (invariant - shared_invariant) + SHARED_WEIGHT[kind] * shared_invariant


def spurious_votes(
    kind: Kind, p: float, classes: int, spurious: int, shared_spurious: int, draws: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Votes of the spurious features, (draw, class), weighted; class 0 is the label."""
    chance = np.full(classes, p / classes)
    chance[0] += 1 - p
    if kind == "single":
        return rng.multinomial(spurious, chance, size=draws)
    own = rng.multinomial(2 * (spurious - shared_spurious), chance, size=draws)
    votes: NDArray[np.int64] = own + SHARED_WEIGHT[kind] * rng.multinomial(shared_spurious, chance, size=draws)
    return votes


def simulate(
    kind: Kind,
    p: float,
    classes: int,
    invariant: int,
    spurious: int,
    shared_invariant: int,
    shared_spurious: int,
    draws: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """All votes, (draw, class); class 0 is the label."""
    votes = spurious_votes(kind, p, classes, spurious, shared_spurious, draws, rng)
    votes[:, 0] += certain_votes(kind, invariant, shared_invariant)
    return votes


def voting_accuracy(votes: NDArray[np.int64]) -> float:
    """How often class 0 wins; a tie of k classes counts 1 / k."""
    most = votes.max(1, keepdims=True)
    return float(((votes[:, 0] == most[:, 0]) / (votes == most).sum(1)).mean())
