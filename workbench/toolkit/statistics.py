"""How sure a number is: confidence intervals of means, proportions and arbitrary statistics, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from workbench.errors import InputError

__all__ = ["Interval", "bootstrap_interval", "mean_interval", "wilson_interval"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided confidence interval at `level`."""

    value: float
    lower: float
    upper: float
    level: float = 0.95

    @property
    def bounds(self) -> tuple[float, float]:
        """(lower, upper), as `Metric(interval=...)` takes them."""
        return self.lower, self.upper


def mean_interval(value: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of independent values with Student's t interval: mean +- t(n - 1) * s / sqrt(n).

    Exact for normal values, good for any others from a few dozen on. Over repetitions with several seeds the values are
    the seeds' results.

    Args:
        value: shape (n,); a single value has an interval of NaN.
        level: confidence in (0, 1).

    Raises:
        InputError: not 1-d, empty, not finite, or a level outside (0, 1).
    """
    x = _sample("value", value)
    _check_level(level)
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, float("nan"), float("nan"), level)
    half = float(stats.t.ppf(0.5 + level / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, level)


def wilson_interval(success: ArrayLike, count: ArrayLike, *, level: float = 0.95) -> tuple[Float, Float]:
    """Wilson's score interval of a binomial proportion, without continuity correction; NaN where the count is 0.

    Args:
        success: number of successes, any shape.
        count: number of trials, same shape.
        level: confidence in (0, 1).

    Raises:
        InputError: more successes than trials, a negative number, or a level outside (0, 1).
    """
    _check_level(level)
    k, n = np.asarray(success, dtype=np.float64), np.asarray(count, dtype=np.float64)
    if not ((k >= 0) & (k <= n)).all():
        raise InputError("success", expected="0 to count", got=f"{success!r} of {count!r}")
    z = special.ndtri(0.5 + level / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (k + z**2 / 2) / (n + z**2)
        half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
        low = np.where(n > 0, np.clip(centre - half, 0.0, 1.0), np.nan)
        high = np.where(n > 0, np.clip(centre + half, 0.0, 1.0), np.nan)
    return low, high


def bootstrap_interval(
    sample: ArrayLike | Sequence[ArrayLike],
    statistic: Callable[..., float],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
    method: Literal["bca", "percentile", "basic"] = "percentile",
) -> Interval:
    """Bootstrap interval of any statistic of one sample or of paired samples (Efron and Tibshirani 1993).

    Args:
        sample: (n,), or a tuple of arrays (n,) whose entries belong together (confidence and hit, prediction and label)
            and are drawn together.
        statistic: function of the array, or of the arrays of the tuple, that returns a number.
        rng: source of the resamples, e.g. `out.rng("bootstrap")`.
        resamples: number of bootstrap samples.
        level: confidence in (0, 1).
        method: "percentile": quantiles of the resampled statistic; "basic": those reflected at the estimate, which
            takes the first-order bias off; "bca": bias-corrected and accelerated, at n more evaluations.

    Raises:
        InputError: lengths differ, there are fewer than 2 entries or resamples, or a level outside (0, 1).
    """
    _check_level(level)
    if resamples < 2:
        raise InputError("resamples", expected="at least 2", got=str(resamples))
    parts = [np.asarray(part) for part in sample] if isinstance(sample, tuple) else [np.asarray(sample)]
    if any(part.ndim != 1 or part.shape != parts[0].shape for part in parts) or parts[0].size < 2:
        raise InputError(
            "sample", expected="1-d arrays of one length of at least 2", got=f"shapes {[part.shape for part in parts]}"
        )
    value = float(statistic(*parts))
    drawn: Any = stats.bootstrap(
        tuple(parts),
        statistic,
        n_resamples=resamples,
        vectorized=False,
        paired=len(parts) > 1,
        confidence_level=level,
        method={"bca": "BCa"}.get(method, method),
        rng=rng,
    )
    low, high = drawn.confidence_interval
    return Interval(value, float(low), float(high), level)


def _sample(argument: str, value: ArrayLike) -> Float:
    x = np.asarray(value, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise InputError(argument, expected="finite numbers of shape (n,), not empty", got=f"shape {x.shape}")
    return x


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError("level", expected="a number in (0, 1)", got=str(level))
