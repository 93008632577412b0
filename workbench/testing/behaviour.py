"""What a method does when it runs, rule by rule; `check_method` tries all of them."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import CancelledError, MissingDependencyError
from workbench.method import DataRole, Method, MethodReference
from workbench.schema import VARIABLES
from workbench.testing.declarations import check_declarations
from workbench.testing.findings import RULES, Finding
from workbench.testing.trial import Attempt, Trial, package_folder
from workbench.testing.watch import watching

if TYPE_CHECKING:
    from workbench.bench import Workbench
    from workbench.report import Report
    from workbench.runs import Run

__all__ = ["BEHAVIOUR", "check_behaviour", "check_method"]

PATIENCE = 2.0
"""Seconds of computing within which a method must ask whether it was cancelled."""
_QUERIED = re.compile(r"[A-Za-z_][\w.\-]*")
"""Names that a query of the store understands."""
TIMES = frozenset({"s", "ms", "us", "min", "h"})
"""Units of outputs that measure time, which no two runs share."""


def check_method(
    method: type[Method],
    *,
    inputs: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    reference: MethodReference | None = None,
    bench: Workbench | None = None,
) -> list[Finding]:
    """Everything a method does that breaks the contract; an empty list is what you want.

    Args:
        method: the class.
        inputs: role -> Dataset, module (or, with `bench`, a name); roles left out get a generated sample, unless None.
        params: parameters that make a run last about a second; the defaults otherwise.
        reference: what the plugin lists the method as.
        bench: looks up names in `inputs`.
    """
    findings = check_declarations(method, reference)
    if getattr(method, "__abstractmethods__", None) or not isinstance(getattr(method, "id", None), str):
        return findings
    with tempfile.TemporaryDirectory(prefix="workbench-check-", ignore_cleanup_errors=True) as folder:
        trial = Trial(method, folder=Path(folder) / "store", inputs=inputs, params=params, bench=bench)
        for rule in BEHAVIOUR:
            findings += check_behaviour(trial, rule)
    return findings


def check_behaviour(trial: Trial, rule: str) -> list[Finding]:
    """What of a trial breaks one rule. Nothing but `runs` (and `dependency`) is looked at where no run completes."""
    if trial.unavailable and rule != "dependency":
        return []
    if rule not in ("runs", "dependency") and not trial.completed:
        return []
    return [Finding(trial.method.id, rule, problem) for problem in BEHAVIOUR[rule](trial)]


def _first_line(text: object) -> str:
    return str(text).strip().partition("\n")[0][:300]


# ------------------------------------------------------------------------------------------------ completing, repeating


def _runs(trial: Trial) -> Iterator[str]:
    if not trial.completed:
        yield f"it did not complete on its sample inputs: {_first_line(trial.first.problem)}"
        return
    run = _run(trial.first)
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
    if not same and (problem := _undignified(trial.attempt(inputs=fewer))):
        yield f"with required inputs only: {problem}"


def _undignified(attempt: Attempt) -> str:
    """The error of a run that ended neither complete nor with a clear refusal."""
    return "" if attempt.run is not None or attempt.declined else _first_line(attempt.problem)


def _run(attempt: Attempt) -> Run:
    assert attempt.run is not None
    return attempt.run


def _reproducible(trial: Trial) -> Iterator[str]:
    if _again_differs(trial) and trial.plain_again.run is not None:
        for difference in _differences(trial, trial.first, trial.plain_again):
            yield f"two runs with seed 0 differ: {difference}"


def _again_differs(trial: Trial) -> bool:
    return trial.again.run is None or bool(_differences(trial, trial.first, trial.again))


def _lazy_data(trial: Trial) -> Iterator[str]:
    if trial.again.run is None:
        yield f"with dask arrays, in a thread: {_first_line(trial.again.problem)}"
    elif _again_differs(trial) and trial.plain_again.run is not None and not list(_reproducible(trial)):
        for difference in _differences(trial, trial.first, trial.again):
            yield f"with dask arrays, in a thread, the result is another: {difference}"


def _differences(trial: Trial, one: Attempt, other: Attempt, tolerance: float = 0.0) -> list[str]:
    """What two complete runs do not share, time measurements aside."""
    first, second = _run(one), _run(other)
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
        yield f"seed 1 does not run: {_first_line(trial.other_seed.problem)}"
    # Both runs are looked at, because the seed that a method sets may be that of one of them.
    if not (trial.first.seed_kept and trial.other_seed.seed_kept):
        yield "it seeds torch's global generator"


def _device(trial: Trial) -> Iterator[str]:
    import torch

    if not torch.cuda.is_available():
        return
    on_gpu = trial.attempt(device="cuda")
    if on_gpu.run is None:
        yield f"on the GPU: {_first_line(on_gpu.problem)}"
        return
    for difference in _differences(trial, trial.first, on_gpu, tolerance=trial.device_tolerance):
        yield f"CPU and GPU: {difference}"


# -------------------------------------------------------------------------------------------------------------- reports


class _Untimed:
    """A stored run whose clock says nothing, as when the host made the report that was saved."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stored, name)

    def __getitem__(self, name: str) -> Any:
        return self._stored[name]

    def __contains__(self, name: object) -> bool:
        return name in self._stored


def _fresh_report(trial: Trial, *, timed: bool = False) -> Report:
    run = trial.bench[_run(trial.first).id]
    stored = run.stored.with_params(_run(trial.first).stored.params)
    return trial.method().report(stored if timed else _Untimed(stored))


def _report_pure(trial: Trial) -> Iterator[str]:
    run = _run(trial.first)
    before = {name: run[name].values.copy() for name in run.arrays}
    package = package_folder(trial.method)
    try:
        with watching(own=(trial.folder,), package=package) as seen:
            made = [_fresh_report(trial).to_json() for _ in range(2)]
    except Exception as error:
        yield f"a fresh instance cannot report on the stored run: {type(error).__name__}: {_first_line(error)}"
        return
    saved = trial.bench[run.id].record.report
    if made[0] != made[1]:
        yield f"two reports on one run differ in {_unequal(made[0], made[1])}"
    elif made[0] != saved:
        yield f"a fresh instance reports something else than the one that ran: {_unequal(made[0], saved or {})}"
    if seen.files:
        yield f"report opens files: {', '.join(seen.files[:3])}"
    if seen.network:
        yield f"report uses the network: {', '.join(seen.network[:3])}"
    if seen.printed.strip():
        yield f"report prints: {_first_line(seen.printed)}"
    if seen.changed:
        yield f"report changes {', '.join(seen.changed)}"
    if any(
        not np.array_equal(before[name], run[name].values, equal_nan=before[name].dtype.kind == "f") for name in before
    ):
        yield "report changes the arrays it reads"


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(key for key in one if one[key] != other.get(key)) or "parts"


def _report_complete(trial: Trial) -> Iterator[str]:
    from workbench.report import Report

    report = _report(trial)
    if report is None:
        return
    if not report.summary.strip():
        yield "the report has no summary"
    document = report.to_json()
    if Report.from_json(document).to_json() != document:
        yield "the report is another after a turn through JSON"
    for metric in report.metrics:
        if not _QUERIED.fullmatch(metric.name):
            yield f"metric {metric.name!r} cannot be asked for in a query; use words joined by _"
        low, high = metric.interval or (metric.value, metric.value)
        if low > high:
            yield f"metric {metric.name!r} has an interval from {low} to {high}"


def _report(trial: Trial) -> Report | None:
    """The report on the stored run; None where there is none, which `report_pure` has said already."""
    try:
        return _fresh_report(trial, timed=True)
    except Exception:
        return None


def _views(trial: Trial) -> Iterator[str]:
    from workbench.render import interactive, static
    from workbench.render.resolve import resolve

    report = _report(trial)
    stored = _run(trial.first).stored
    for view in report.views if report is not None else ():
        try:
            plot = resolve(view, stored)
            static.svg(plot)
            interactive.figure(plot)
        except Exception as error:
            yield f"view {view.title!r} ({view.kind}): {type(error).__name__}: {_first_line(error)}"


# ---------------------------------------------------------------------------------------------------------- side effects


def _global_state(trial: Trial) -> Iterator[str]:
    # The second run: in the first one, libraries that were imported on the way may have set things up.
    seen = trial.again.seen if trial.again.run is not None else trial.first.seen
    for name, (before, after) in seen.changed.items():
        if isinstance(before, dict):
            changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            yield f"it changes {name}: {', '.join(map(str, changed[:5]))}"
        elif name == "threads":
            if left := sorted(set(after) - set(before)):
                yield f"it leaves threads behind: {', '.join(left)}"
        else:
            yield f"it changes {name} from {before} to {after}"


def _files(trial: Trial) -> Iterator[str]:
    written = [text for text in trial.first.seen.files if not text.startswith("read ")]
    for text in dict.fromkeys(written + trial.again.seen.files):
        yield f"it opens a file: {text}"


def _printing(trial: Trial) -> Iterator[str]:
    for attempt in (trial.first, trial.again):
        if attempt.seen.printed.strip():
            yield f"it prints: {_first_line(attempt.seen.printed)}"
            return


def _network(trial: Trial) -> Iterator[str]:
    for text in dict.fromkeys(trial.first.seen.network + trial.again.seen.network):
        yield f"it uses the network: {text}"


def _inputs_untouched(trial: Trial) -> Iterator[str]:
    from workbench.subjects import dataset_digest

    assert trial.completed
    for name in trial.data_roles():
        if dataset_digest(trial.handed_over[name]) != dataset_digest(trial.inputs[name]):
            yield f"it changes the values of {name!r}"


def _cancel(trial: Trial) -> Iterator[str]:
    if trial.first.asks == 0:
        yield "it reports no progress, so nobody can stop it"
        return
    if trial.first.longest > PATIENCE:
        yield f"it computed for {trial.first.longest:.1f} s without asking whether it was cancelled"
    stopped = trial.attempt(cancel_at=trial.first.asks // 2)
    if not isinstance(stopped.error, CancelledError):
        ended = "it completed" if stopped.run is not None else _first_line(stopped.problem)
        yield f"cancelled half way, {ended}"


# ----------------------------------------------------------------------------------------------------------- hard inputs


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

    if module == "__main__" or importlib.util.find_spec(module) is None:
        return ""
    code = f"import sys; sys.path[:] = {sys.path!r}; sys.modules[{package!r}] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


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
        elif problem := _undignified(attempt):
            yield f"{name!r} without any sample: {problem}"


def _one_sample(trial: Trial) -> Iterator[str]:
    def one(data: Any, role: DataRole) -> Any:
        return data.isel(sample=slice(0, 1)) if "sample" in data.dims else None

    for name, attempt in _hard(trial, one):
        if problem := _undignified(attempt):
            yield f"one sample in {name!r}: {problem}"


def _odd_size(trial: Trial) -> Iterator[str]:
    changed = {}
    for name in trial.data_roles():
        data = trial.inputs[name]
        if {"y", "x"} <= set(data.dims) and min(data.sizes["y"], data.sizes["x"]) > 8:
            odd = {dim: slice(0, data.sizes[dim] - cut) for dim, cut in (("y", 3), ("x", 1))}
            changed[name] = data.isel({dim: s if s.stop % 2 else slice(0, s.stop - 1) for dim, s in odd.items()})
    if changed and (problem := _undignified(trial.attempt(inputs={**trial.inputs, **changed}))):
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
        elif problem := _undignified(attempt):
            yield f"NaN in {name!r}: {problem}"


def _huge(trial: Trial) -> Iterator[str]:
    def enlarge(array: Any) -> Any:
        return (array * np.asarray(1e30, dtype=array.dtype)).astype(array.dtype)

    for name, attempt in _hard(trial, lambda data, role: _floats(data, enlarge)):
        if problem := _undignified(attempt):
            yield f"values of 1e30 in {name!r}: {problem}"


BEHAVIOUR: Mapping[str, Callable[[Trial], Iterator[str]]] = {
    "runs": _runs,
    "optional_inputs": _optional_inputs,
    "reproducible": _reproducible,
    "seed": _seed,
    "lazy_data": _lazy_data,
    "report_pure": _report_pure,
    "report_complete": _report_complete,
    "views": _views,
    "global_state": _global_state,
    "files": _files,
    "printing": _printing,
    "network": _network,
    "inputs_untouched": _inputs_untouched,
    "cancel": _cancel,
    "dependency": _dependency,
    "empty": _empty,
    "one_sample": _one_sample,
    "odd_size": _odd_size,
    "not_a_number": _not_a_number,
    "huge": _huge,
    "device": _device,
}
"""Rule -> what a trial shows against it."""
assert BEHAVIOUR.keys() <= RULES.keys()
