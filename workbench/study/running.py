"""Have the branches of a study computed, or find what of them is in the store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workbench.execution.inputs import RUN_PREFIX, validate_params
from workbench.study.description import Study, read_study
from workbench.study.plan import Branch, Option, make_plan
from workbench.study.result import Outcome, StudyResult

if TYPE_CHECKING:
    from workbench.bench import Workbench
    from workbench.execution.progress import Progress
    from workbench.record import RunRecord
    from workbench.runs import Run

__all__ = ["find_study", "run_study"]


def run_study(
    bench: Workbench,
    study: Study | Mapping[str, Any] | str | os.PathLike[str],
    *,
    subjects: Mapping[str, Any] | None = None,
    device: str | None = None,
    precision: str = "float32",
    progress: bool | Progress = True,
) -> StudyResult:
    """See `workbench.bench.Workbench.study`."""
    described = read_study(study).given(subjects or {})
    plan = make_plan(described, bench.host)
    outcomes: dict[str, Outcome] = {}
    for branches in plan.steps.values():
        ready = []
        for branch in branches:
            failed = [parent for parent in branch.parents if not outcomes[parent.id].run_id]
            if failed:
                outcomes[branch.id] = Outcome("blocked", reason=f"{failed[0].label} is {outcomes[failed[0].id].status}")
            else:
                ready.append(branch)
        if not ready:
            continue
        # One sweep a step: its points share what they load, and a client's workers share them out.
        sweep = bench.sweep(
            list(dict.fromkeys(branch.method for branch in ready)),
            points=[_point(branch, outcomes) for branch in ready],
            device=device,
            precision=precision,
            study=described.name,
            progress=progress,
        )
        reasons = {failure.point.number: str(failure.error) for failure in sweep.failures}
        for number, (branch, row) in enumerate(zip(ready, sweep.table(), strict=True)):
            status = "cancelled" if row["status"] in ("waiting", "running") else row["status"]
            done = status in ("complete", "stored")
            outcomes[branch.id] = Outcome(status, row["run"] if done else "", reasons.get(number, sweep.stopped))
    return StudyResult(plan, outcomes, bench)


def _point(branch: Branch, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    inputs = {role: _value(option, outcomes) for role, option in branch.inputs.items()}
    return {"method": branch.method.id, "seed": branch.seed, **branch.parameters, **inputs}


def _value(option: Option, outcomes: Mapping[str, Outcome]) -> Any:
    """An input as `bench.run` takes it."""
    if not isinstance(option.value, Branch):
        return option.value
    variable = f"[{option.variable}]" if option.variable else ""
    return f"{RUN_PREFIX}{outcomes[option.value.id].run_id}{variable}"


def find_study(
    bench: Workbench,
    study: Study | Mapping[str, Any] | str | os.PathLike[str],
    *,
    subjects: Mapping[str, Any] | None = None,
) -> StudyResult:
    """What of a study is in the store; computes nothing and loads no subjects.

    Runs that the study has or that joined it are told apart by what their records say: method and version, parameters,
    seed, the names of subjects and the runs they took. (`run_study` goes by content.)
    """
    described = read_study(study).given(subjects or {})
    plan = make_plan(described, bench.host)
    known: dict[tuple[str, str, int], list[Run]] = {}
    for run in bench.runs(f'study = "{described.name}"'):
        known.setdefault((run.method, run.record.method_version, run.seed), []).append(run)
    keys = {run.id: run.key or run.id for runs in known.values() for run in runs}
    outcomes: dict[str, Outcome] = {}
    for branch in plan.branches:
        wanted = validate_params(branch.method, branch.parameters).model_dump(mode="json")
        found = [
            run
            for run in known.get((branch.method.id, branch.method.version, branch.seed), ())
            if run.record.params == wanted and _same_inputs(branch, run.record, outcomes, keys)
        ]
        complete = [run for run in found if run.status == "complete"]
        if complete:
            outcomes[branch.id] = Outcome("stored", complete[0].id)
        elif found:
            failure = found[0].record.failure or {}
            outcomes[branch.id] = Outcome(found[0].status, reason=str(failure.get("message", "")))
        else:
            outcomes[branch.id] = Outcome("missing")
    return StudyResult(plan, outcomes, bench)


def _same_inputs(branch: Branch, record: RunRecord, outcomes: Mapping[str, Outcome], keys: Mapping[str, str]) -> bool:
    if set(branch.inputs) != set(record.inputs):
        return False
    for role, option in branch.inputs.items():
        entry = record.inputs[role]
        if isinstance(option.value, Branch):
            parent = outcomes[option.value.id].run_id
            # A run that was computed again has another id and the same key.
            if not parent or [keys.get(run, run) for run in entry.get("runs", ())] != [keys.get(parent, parent)]:
                return False
            if option.variable and f"[{option.variable}]" not in str(entry.get("label", "")):
                return False
        elif isinstance(option.value, str) and entry.get("label") != option.value:
            return False
    return True
