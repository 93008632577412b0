"""Rules on how a run ends: complete, with everything that was declared; refused where an optional package is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import MissingDependencyError
from workbench.method import DataRole
from workbench.schema import VARIABLES
from workbench.testing.trial import Trial, first_line

if TYPE_CHECKING:
    from workbench.runs import Run

__all__ = ["RULES_OF_OUTCOME"]


def _runs(trial: Trial) -> Iterator[str]:
    if not trial.completed:
        yield f"it did not complete on its sample inputs: {first_line(trial.first.problem)}"
        return
    run = trial.first.completed
    for output in trial.method.outputs:
        if output.name not in run:
            if not output.optional:
                yield f"output {output.name!r} was not written"
            continue
        array = run[output.name]
        if "..." not in output.dims and tuple(map(str, array.dims)) != output.dims:
            yield f"output {output.name!r} was written with dims {array.dims}, declared are {output.dims}"
        if output.dtype not in ("str", "string", "bfloat16") and array.dtype != np.dtype(output.dtype):
            yield f"output {output.name!r} was written as {array.dtype}, declared is {output.dtype}"
    for name in set(run.arrays) - {output.name for output in trial.method.outputs}:
        yield f"{name!r} was written but is not declared"
    yield from _meanings(run)


def _meanings(run: Run) -> Iterator[str]:
    for name in run.arrays:
        if name not in VARIABLES:
            continue
        values = run[name].values
        if name == "probability" and values.size and not np.allclose(values.sum(axis=-1), 1, atol=1e-3):
            yield "rows of 'probability' do not sum to 1"
        if name in ("label", "prediction") and values.size and values.min() < 0:
            yield f"{name!r} has negative classes"
        if name in ("image", "clean", "degraded", "restored") and values.dtype.kind == "f" and values.size:
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            if low < -1e-3 or high > 1 + 1e-3:
                yield f"{name!r} has values from {low:.3g} to {high:.3g}; the glossary says 0..1"


def _optional_inputs(trial: Trial) -> Iterator[str]:
    given = trial.inputs
    fewer: dict[str, Any] = {}
    for name, role in trial.method.inputs.items():
        if name not in given or role.optional:
            continue
        fewer[name] = given[name]
        if isinstance(role, DataRole) and name in trial.data_roles():
            fewer[name] = given[name].drop_vars([v for v in role.optional_variables if v in given[name]])
    same = fewer.keys() == given.keys() and all(
        set(fewer[name].data_vars) == set(given[name].data_vars) for name in trial.data_roles()
    )
    if not same and (problem := trial.attempt(inputs=fewer).undignified):
        yield f"with required inputs only: {problem}"


def _dependency(trial: Trial) -> Iterator[str]:
    from workbench.execution.inputs import check_requirements

    for package in trial.method.requires:
        known = sys.modules.get(package)
        sys.modules[package] = None  # type: ignore[assignment]  # this is how Python spells "cannot be imported"
        try:
            check_requirements(trial.method)
            yield f"without {package!r} a run does not say that it is missing"
        except MissingDependencyError:
            pass
        finally:
            del sys.modules[package]
            if known is not None:
                sys.modules[package] = known
        if trouble := _import_without(trial.method.__module__, package):
            yield f"without {package!r} the module cannot be imported: {trouble}"


def _import_without(module: str, package: str) -> str:
    """Import a module in a process of its own in which a package is missing; the error, or nothing."""
    import importlib.util

    if module == "__main__" or importlib.util.find_spec(module) is None or _is_absent(package):
        return ""
    code = f"import sys; sys.path[:] = {sys.path!r}; sys.modules[{package!r}] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


def _is_absent(package: str) -> bool:
    """Whether this very process has imported the module without the package."""
    import importlib.util

    return package not in sys.modules and importlib.util.find_spec(package) is None


RULES_OF_OUTCOME: Mapping[str, Callable[[Trial], Iterator[str]]] = {
    "runs": _runs,
    "optional_inputs": _optional_inputs,
    "dependency": _dependency,
}
"""Rule -> what a trial shows against it."""
