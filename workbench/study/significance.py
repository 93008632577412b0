"""Is a difference more than chance? Paired bootstrap over samples, Holm's correction, Pareto fronts. Pure functions of arrays.

A metric is resampled as a function of how often every sample was drawn, so that all resamples are one matrix product and two
runs are compared on the very same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Difference",
    "auroc",
    "calibration_error",
    "disagreement",
    "draws",
    "holm",
    "judge_difference",
    "mean",
    "paired_bootstrap",
    "pareto_front",
    "repetitions_interval",
]

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Counts (resample, sample) of how often each sample was drawn -> the metric of each resample."""

RESAMPLES = 4000
FEW = 10
"""Resamples on the other side of zero below which their number says little about p."""
BLOCK = 4_000_000
"""Counts in memory at a time (32 MB)."""


@dataclass(frozen=True)
class Difference:
    """A metric of a variant less that of the baseline, its interval, and the chance of so large a one if there were none."""

    value: float
    lower: float
    upper: float
    p_value: float


def mean(values: Floats) -> Statistic:
    """The mean of values (sample,): accuracy from hits, likelihood from losses."""
    return lambda counts: counts @ values / counts.sum(axis=1)


def calibration_error(confidence: Floats, correct: Floats, *, n_bins: int) -> Statistic:
    """Expected calibration error over bins of equal width: `sum_b |sum_(i in b) (correct_i - confidence_i)| / n`."""
    place = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gap = np.zeros((len(confidence), n_bins))
    gap[np.arange(len(confidence)), place] = correct - confidence
    return lambda counts: np.abs(counts @ gap).sum(axis=1) / counts.sum(axis=1)


def auroc(score: Floats, positive: NDArray[np.bool_]) -> Statistic:
    """Area under the ROC curve: chance that a positive sample scores above a negative one, ties counted half."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    marked = positive[order].astype(float)

    def statistic(counts: Floats) -> Floats:
        ordered = counts[:, order]
        above = np.add.reduceat(ordered * marked, starts, axis=1)
        below = np.add.reduceat(ordered * (1 - marked), starts, axis=1)
        pairs = above.sum(axis=1) * below.sum(axis=1)
        wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(wins / pairs)

    return statistic


def paired_bootstrap(
    variant: Statistic,
    baseline: Statistic,
    samples: int | NDArray[np.int64],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Difference:
    """Difference of a metric between two runs on the same samples: percentile interval and two-sided p-value.

    Differences of calibration errors are resampled as they are; the upward bias that both errors have on small samples
    cancels in part only.

    Args:
        variant: metric of the run to judge.
        baseline: the same metric of the run to compare with.
        samples: their number, or a stratum (a number) for each: resamples keep the size of every stratum.
        seed: of the draws.
        resamples: how many.
        level: confidence of the interval.
    """
    strata = np.zeros(samples, dtype=np.int64) if isinstance(samples, int) else samples
    once = np.ones((1, len(strata)))
    value = float(variant(once)[0] - baseline(once)[0])
    drawn = np.concatenate([variant(counts) - baseline(counts) for counts in draws(strata, resamples, seed)])
    return judge_difference(value, drawn, level=level)


def judge_difference(
    value: float,
    drawn: Floats,
    between: Sequence[float] = (),
    seeds: Sequence[Mapping[str, int]] = (),
    *,
    level: float = 0.95,
) -> Difference:
    """Interval and p-value of a difference from its resampled values and, with repetitions, from how those differ.

    Without repetitions: percentile interval, and p = 2 (min(#(d* <= 0), #(d* >= 0)) + 1) / (resamples + 1), at most 1: the
    interval turned into a test, after Davison and Hinkley (1997, chapters 4 and 5). Fewer than `FEW` resamples on one side
    cannot tell how small p is; then it is that of a normal variable with the standard error of the resamples, if smaller.

    With repetitions two things are left to chance, the samples and the seeds. Their variances add up: that of the resampled
    mean over the repetitions, and that of the mean over other seeds, s^2 / k of the k differences (of several repeated steps
    see `_parts`). Interval and p-value are Student's with the degrees of freedom of Satterthwaite (1946), where the resampled
    part counts as known. Repetitions that were judged on different samples make the second part too large, not too small.

    Args:
        value: the difference, a mean over repetitions where there are some.
        drawn: the same for each resample, (resample,).
        between: the differences of the single repetitions; fewer than two: none.
        seeds: of each repetition the seed of every repeated step; empty: all are independent.
        level: confidence of the interval.
    """
    from scipy import stats

    tail = (1 - level) / 2
    of_samples = float(drawn.var(ddof=1))
    if len(between) < 2:
        lower, upper = np.quantile(drawn, [tail, 1 - tail])
        extreme = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p = min(1.0, 2 * (extreme + 1) / (len(drawn) + 1))
        if extreme < FEW and of_samples > 0:
            p = min(p, 2 * float(stats.norm.sf(abs(value) / np.sqrt(of_samples))))
        return Difference(value, float(lower), float(upper), p)
    error, freedom = _error([(of_samples, np.inf), *_parts(between, seeds)])
    if error == 0:
        return Difference(value, value, value, float(value == 0))
    half = float(stats.t.isf(tail, freedom)) * error
    return Difference(value, value - half, value + half, 2 * float(stats.t.sf(abs(value) / error, freedom)))


def repetitions_interval(
    values: Sequence[float], seeds: Sequence[Mapping[str, int]] = (), *, level: float = 0.95
) -> tuple[float, float]:
    """Student's t interval of a mean over repetitions; of several repeated steps see `_parts`.

    Args:
        values: at least two.
        seeds: of each repetition the seed of every repeated step; empty: all are independent.
        level: confidence.
    """
    from scipy import stats

    error, freedom = _error(_parts(values, seeds))
    half = float(stats.t.isf((1 - level) / 2, freedom)) * error if error else 0.0
    middle = float(np.mean(values))
    return middle - half, middle + half


def _parts(values: Sequence[float], seeds: Sequence[Mapping[str, int]]) -> list[tuple[float, float]]:
    """What the choice of seeds adds to the variance of a mean over repetitions: (variance, degrees of freedom) of each step.

    One repeated step: s^2 / k with k - 1 degrees. Where each seed of one step goes with each of another, those k runs are not
    independent: three quantised models with three splits each tell of three models, not of nine. Then every step counts by
    its own means, one per seed: their s^2 over their number. What depends on both seeds counts twice: too large, not too small.
    """
    grouped: dict[tuple[int, ...], list[float]] = {}
    for step in dict.fromkeys(name for given in seeds for name in given):
        levels = [given.get(step) for given in seeds]
        known = list(dict.fromkeys(levels))
        place = tuple(known.index(level) for level in levels)
        if len(known) > 1:  # steps whose seeds go hand in hand have the same places and are one source of chance
            grouped[place] = [
                float(np.mean([value for value, at in zip(values, place, strict=True) if at == number]))
                for number in range(len(known))
            ]
    found = list(grouped.values())
    # Without repeated steps, or where all means happen to be equal (that is no certainty), the runs themselves count.
    if all(np.ptp(means) == 0 for means in found):
        found = [list(values)]
    return [(float(np.var(means, ddof=1)) / len(means), len(means) - 1.0) for means in found]


def _error(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error and degrees of freedom (Satterthwaite 1946) of a sum of independent variances; known ones have inf."""
    total = sum(variance for variance, _ in parts)
    unsure = sum(variance**2 / freedom for variance, freedom in parts)
    return float(np.sqrt(total)), total**2 / unsure if unsure else np.inf


def draws(strata: NDArray[np.int64], resamples: int, seed: int = 0) -> Iterator[Floats]:
    """Blocks of counts (resample, sample): how often each sample was drawn, with replacement within its stratum."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    size = max(1, BLOCK // len(strata))
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        counts = np.zeros((count, len(strata)))
        for group in groups:
            picked = rng.integers(0, len(group), size=(count, len(group)))
            flat = (picked + np.arange(count)[:, None] * len(group)).ravel()
            counts[:, group] = np.bincount(flat, minlength=count * len(group)).reshape(count, len(group))
        yield counts


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm (1979): they bound the chance of even one false finding, whatever depends on what."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[int(index)] = largest
    return adjusted


def pareto_front(first: Floats, second: Floats, *, higher: tuple[bool, bool]) -> NDArray[np.bool_]:
    """Which points no other is at least as good as in both and better in one; points with NaN are on no front.

    Args:
        first: values (point,).
        second: values (point,).
        higher: for each, whether more is better.
    """
    points = np.stack([first if higher[0] else -first, second if higher[1] else -second], axis=1)
    known = np.asarray(np.isfinite(points).all(axis=1))
    no_worse = (points[None] >= points[:, None]).all(axis=2)
    better = (points[None] > points[:, None]).any(axis=2)
    beaten = np.asarray(no_worse & better & known[None]).any(axis=1)
    return np.asarray(known & ~beaten)


def disagreement(logits: Sequence[Floats]) -> Floats:
    """How much models differ on each sample, in nats: generalised Jensen-Shannon divergence of their predictions.

    `H(mean_m p_m) - mean_m H(p_m)`: 0 where all agree, log M where M models are sure of M different classes.

    Args:
        logits: per model (sample, class).
    """
    from scipy.special import entr, softmax

    probability = np.stack([softmax(np.asarray(item, dtype=np.float64), axis=1) for item in logits])
    together = entr(probability.mean(axis=0)).sum(axis=1)
    return np.asarray(np.maximum(together - entr(probability).sum(axis=2).mean(axis=0), 0.0))
