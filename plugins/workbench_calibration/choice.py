"""Which recalibrator to use, if any: a rule that weighs likelihood, accuracy, calibration and the data a method needs.

The rule sees held-out folds of the fit samples only, never the report samples. The uncalibrated probabilities take part as
the method that fits nothing:

1. the negative log likelihood is within one standard error of the lowest (paired over samples; the one-standard-error rule of
   Breiman et al. 1984, Classification and Regression Trees);
2. accuracy is not lost by more than one standard error against the uncalibrated probabilities;
3. of those that are left, the ones whose calibration error chance can explain, if there are any;
4. of these the one with the fewest fitted numbers, since it needs the fewest samples; equal numbers: the lower likelihood.
   So the uncalibrated probabilities are kept unless something is better beyond noise.

Where every method of a likelihood near the lowest loses accuracy, the lowest likelihood of those that keep it decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from workbench.toolkit import binned_calibration_error

Float = NDArray[np.float64]
SIGNIFICANT = 0.05
CHOSEN = "use this one"
KEPT = "keep them as they are"
"""What the uncalibrated probabilities are told in place of `CHOSEN`."""


@dataclass(frozen=True)
class HeldOut:
    """What a method gave samples that it was not fitted on: arrays (sample,), and how many numbers it fits."""

    likelihood: Float
    """-log p of the label, nats."""
    confidence: Float
    hit: Float
    numbers: int


@dataclass(frozen=True)
class Verdict:
    """How a method fares by the rule; errors are standard errors of paired differences."""

    likelihood: float
    behind: float
    behind_error: float
    calibration_error: float
    p_value: float
    accuracy_change: float
    accuracy_error: float
    numbers: int
    reason: str


def paired(difference: Float) -> tuple[float, float]:
    """Mean of a difference over samples and its standard error."""
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(difference.size))


def chance_p_value(one: HeldOut, n_bins: int, rng: np.random.Generator, draws: int = 200) -> tuple[float, float]:
    """Calibration error of the top label and its p-value by consistency resampling: hits drawn as Bernoulli(confidence)."""
    value = binned_calibration_error(one.confidence, one.hit, n_bins=n_bins)
    larger = sum(
        binned_calibration_error(one.confidence, rng.random(one.hit.size) < one.confidence, n_bins=n_bins) >= value
        for _ in range(draws)
    )
    return value, (1 + larger) / (1 + draws)


def judge(
    held: Mapping[str, HeldOut], *, uncalibrated: str, n_bins: int, rng: np.random.Generator
) -> dict[str, Verdict]:
    """The rule, by method; exactly one verdict has the reason `CHOSEN` or `KEPT`.

    Args:
        held: of every method, the uncalibrated probabilities among them (these fit nothing).
        uncalibrated: their name.
        n_bins: of the calibration error.
        rng: of the draws behind its p-value.
    """
    best = min(held, key=lambda name: float(held[name].likelihood.mean()))
    facts = {}
    for name, one in held.items():
        behind = paired(one.likelihood - held[best].likelihood)
        accuracy = paired(one.hit - held[uncalibrated].hit)
        facts[name] = (*behind, *chance_p_value(one, n_bins, rng), *accuracy)
    near = {name for name, fact in facts.items() if fact[0] <= fact[1]}
    keeps = {name for name, fact in facts.items() if fact[4] >= -fact[5]}
    left = near & keeps
    honest = {name for name in left if facts[name][3] >= SIGNIFICANT}
    order = {name: (one.numbers, float(one.likelihood.mean())) for name, one in held.items()}
    pool = honest or left
    chosen = min(pool, key=lambda name: order[name]) if pool else min(keeps, key=lambda name: order[name][1])

    def reason(name: str) -> str:
        if name == chosen:
            return KEPT if name == uncalibrated else CHOSEN
        if name not in near:
            return "behind by more than its error"
        if name not in keeps:
            return "loses accuracy"
        if honest and name not in honest:
            return "calibration error beyond chance"
        return "as good, but fits more"

    return {
        name: Verdict(order[name][1], *fact, held[name].numbers, reason(name)) for name, fact in facts.items()
    }


def suggestion(reasons: Mapping[str, str]) -> str:
    """The method that a rule's reasons name."""
    return next(name for name, reason in reasons.items() if reason in (CHOSEN, KEPT))
