"""Rules on doing it again: the same seed, another seed, lazily read data in a thread, another device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from workbench.testing.trial import Attempt, Trial, first_line

__all__ = ["RULES_OF_REPETITION", "differences"]

TIMES = frozenset({"s", "ms", "us", "min", "h"})
"""Units of outputs that measure time, which no two runs share."""


def _reproducible(trial: Trial) -> Iterator[str]:
    if _again_differs(trial) and trial.plain_again.run is not None:
        for difference in differences(trial, trial.first, trial.plain_again):
            yield f"two runs with seed 0 differ: {difference}"


def _again_differs(trial: Trial) -> bool:
    return trial.again.run is None or bool(differences(trial, trial.first, trial.again))


def _lazy_data(trial: Trial) -> Iterator[str]:
    if trial.again.run is None:
        yield f"with dask arrays, in a thread: {first_line(trial.again.problem)}"
    elif _again_differs(trial) and trial.plain_again.run is not None and not list(_reproducible(trial)):
        for difference in differences(trial, trial.first, trial.again):
            yield f"with dask arrays, in a thread, the result is another: {difference}"


def differences(trial: Trial, one: Attempt, other: Attempt, tolerance: float = 0.0) -> list[str]:
    """What two complete runs do not share, time measurements aside."""
    first, second = one.completed, other.completed
    if set(first.arrays) != set(second.arrays):
        return [f"the arrays {sorted(set(first.arrays) ^ set(second.arrays))} are in one only"]
    times = {output.name for output in trial.method.outputs if output.unit in TIMES}
    pairs = {name: (first[name], second[name]) for name in first.arrays if name not in times}
    a, b = first.series, second.series
    if set(a.data_vars) != set(b.data_vars):
        return [f"the series {sorted(map(str, set(a.data_vars) ^ set(b.data_vars)))} are in one only"]
    pairs |= {f"series {name}": (a[name], b[name]) for name in a.data_vars if "second" not in str(name)}
    found = [f"{name} {how}" for name, (x, y) in pairs.items() if (how := _unlike(x, y, tolerance))]
    for name in first.record.models:
        states = first.stored.model_state(name), second.stored.model_state(name)
        unlike = [key for key, values in states[0].items() if _unlike(values, states[1].get(key), tolerance)]
        if unlike:
            found.append(f"model {name}: {', '.join(unlike[:3])}")
    return found


def _unlike(one: Any, other: Any, tolerance: float) -> str:
    if other is None or one.shape != other.shape:
        return "has another shape"
    a, b = np.asarray(one), np.asarray(other)
    if a.dtype.kind not in "fc":
        if a.dtype.kind in "biu" and tolerance:
            share = float((a != b).mean()) if a.size else 0.0
            return f"differs in {share:.0%} of the entries" if share > tolerance else ""
        return "" if np.array_equal(a, b) else "differs"
    if np.array_equal(a, b, equal_nan=True):
        return ""
    with np.errstate(all="ignore"):
        scale = float(np.nanmax(np.abs(a))) if a.size and not np.isnan(a).all() else 1.0
        gap = float(np.nanmax(np.abs(a - b))) if not np.isnan(a - b).all() else float("nan")
    if tolerance and gap <= tolerance * max(scale, 1e-12):
        return ""
    return f"differs by up to {gap:.3g} (values up to {scale:.3g})"


def _seed(trial: Trial) -> Iterator[str]:
    if trial.other_seed.run is None:
        yield f"seed 1 does not run: {first_line(trial.other_seed.problem)}"
    # Both runs are looked at, because the seed that a method sets may be that of one of them.
    if not (trial.first.seed_kept and trial.other_seed.seed_kept):
        yield "it seeds torch's global generator"
    for name in sorted({*trial.first.seeded, *trial.other_seed.seeded}):
        yield f"it seeds {name}'s global generator"


def _device(trial: Trial) -> Iterator[str]:
    import torch

    if not torch.cuda.is_available():
        return
    on_gpu = trial.attempt(device="cuda")
    if on_gpu.run is None:
        yield f"on the GPU: {first_line(on_gpu.problem)}"
        return
    for difference in differences(trial, trial.first, on_gpu, tolerance=trial.device_tolerance):
        yield f"CPU and GPU: {difference}"


RULES_OF_REPETITION: Mapping[str, Callable[[Trial], Iterator[str]]] = {
    "reproducible": _reproducible,
    "seed": _seed,
    "lazy_data": _lazy_data,
    "device": _device,
}
"""Rule -> what a trial shows against it."""
