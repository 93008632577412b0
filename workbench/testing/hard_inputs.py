"""Rules on inputs that nobody thought of: empty, one sample, odd sizes, NaN, huge. They end in a result or a clear refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from workbench.method import DataRole
from workbench.testing.trial import Attempt, Trial

__all__ = ["RULES_OF_HARD_INPUTS"]


def _hard(trial: Trial, change: Callable[[Any, DataRole], Any]) -> Iterator[tuple[str, Attempt]]:
    """A run per data role, with the data of that role changed; None from `change`: nothing to change."""
    for name in trial.data_roles():
        role = trial.method.inputs[name]
        assert isinstance(role, DataRole)
        changed = change(trial.inputs[name], role)
        if changed is not None:
            yield name, trial.attempt(inputs={**trial.inputs, name: changed})


def _empty(trial: Trial) -> Iterator[str]:
    def none(data: Any, role: DataRole) -> Any:
        return data.isel(sample=slice(0, 0)) if "sample" in data.dims else None

    for name, attempt in _hard(trial, none):
        if attempt.run is not None:
            yield f"it completes on {name!r} without any sample"
        elif problem := attempt.undignified:
            yield f"{name!r} without any sample: {problem}"


def _one_sample(trial: Trial) -> Iterator[str]:
    def one(data: Any, role: DataRole) -> Any:
        return data.isel(sample=slice(0, 1)) if "sample" in data.dims else None

    for name, attempt in _hard(trial, one):
        if problem := attempt.undignified:
            yield f"one sample in {name!r}: {problem}"


def _odd_size(trial: Trial) -> Iterator[str]:
    changed = {}
    for name in trial.data_roles():
        data = trial.inputs[name]
        if {"y", "x"} <= set(data.dims) and min(data.sizes["y"], data.sizes["x"]) > 8:
            odd = {dim: slice(0, data.sizes[dim] - cut) for dim, cut in (("y", 3), ("x", 1))}
            changed[name] = data.isel({dim: s if s.stop % 2 else slice(0, s.stop - 1) for dim, s in odd.items()})
    if changed and (problem := trial.attempt(inputs={**trial.inputs, **changed}).undignified):
        sizes = {name: (data.sizes["y"], data.sizes["x"]) for name, data in changed.items()}
        yield f"pictures of {sizes}: {problem}"


def _floats(data: Any, make: Callable[[Any], Any]) -> Any:
    changed = {name: make(array.copy(deep=True)) for name, array in data.data_vars.items() if array.dtype.kind == "f"}
    return data.assign(changed) if changed else None


def _not_a_number(trial: Trial) -> Iterator[str]:
    def spoil(array: Any) -> Any:
        array.values.flat[array.size // 2] = np.nan
        return array

    for name, attempt in _hard(trial, lambda data, role: _floats(data, spoil)):
        role = trial.method.inputs[name]
        allowed = isinstance(role, DataRole) and role.allow_nan
        if attempt.run is not None and not allowed:
            yield f"it completes on NaN in {name!r}"
        elif problem := attempt.undignified:
            yield f"NaN in {name!r}: {problem}"


def _huge(trial: Trial) -> Iterator[str]:
    def enlarge(array: Any) -> Any:
        return (array * np.asarray(1e30, dtype=array.dtype)).astype(array.dtype)

    for name, attempt in _hard(trial, lambda data, role: _floats(data, enlarge)):
        if problem := attempt.undignified:
            yield f"values of 1e30 in {name!r}: {problem}"


RULES_OF_HARD_INPUTS: Mapping[str, Callable[[Trial], Iterator[str]]] = {
    "empty": _empty,
    "one_sample": _one_sample,
    "odd_size": _odd_size,
    "not_a_number": _not_a_number,
    "huge": _huge,
}
"""Rule -> what a trial shows against it."""
