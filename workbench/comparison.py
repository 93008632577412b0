"""Runs side by side as one labelled Dataset: metrics, differing parameters, arrays that line up; and repetitions as one.

`compare_runs` has a row for every run, `aggregate_runs` one for all runs that differ only in seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from workbench.errors import InputError, RunNotFoundError
from workbench.fingerprint import digest_json
from workbench.record import report_number

if TYPE_CHECKING:
    import xarray as xr

    from workbench.record import RunRecord

__all__ = ["aggregate_runs", "compare_runs", "differing"]

DEEPEST = 50
"""Generations of inputs that are followed when runs are grouped."""


class Comparable(Protocol):
    """What a run must offer to be compared."""

    @property
    def record(self) -> RunRecord:
        """Its record."""

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> xr.DataArray: ...


def compare_runs(runs: Sequence[Comparable], variables: Sequence[str] = ()) -> xr.Dataset:
    """See `workbench.bench.Workbench.compare`."""
    import numpy as np
    import xarray as xr

    if not runs:
        raise InputError("runs", expected="at least one run", got="none")
    records = [run.record for run in runs]
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {"run": [record.id for record in records]}
    coords["method"] = ("run", [record.method for record in records])
    coords["seed"] = ("run", [record.seed for record in records])
    for name, values in {**differing(records), **_differing_inputs(records)}.items():
        coords[name] = ("run", values)
    metrics = [{m["name"]: m for m in (record.report or {}).get("metrics", ())} for record in records]
    for name in dict.fromkeys(name for entry in metrics for name in entry):
        entries = [entry.get(name) for entry in metrics]
        first = next(entry for entry in entries if entry is not None)
        column = f"metric_{name}" if name in coords else name
        attributes = {part: first[part] for part in ("unit", "direction", "description") if first.get(part)}
        data[column] = ("run", [record.metrics.get(name, np.nan) for record in records], attributes)
        if any(entry is not None and entry.get("interval") for entry in entries):
            bounds = [(entry or {}).get("interval") or (np.nan, np.nan) for entry in entries]
            data[f"{column}_lower"] = ("run", [report_number(low) for low, _ in bounds])
            data[f"{column}_upper"] = ("run", [report_number(high) for _, high in bounds])
    dataset = xr.Dataset(data, coords=coords)
    for name in variables:
        # A metric may have the name of an array; both are wanted.
        dataset[f"{name}_array" if name in dataset.variables else name] = _aligned(runs, name)
    return dataset


def _aligned(runs: Sequence[Comparable], name: str) -> xr.DataArray:
    import xarray as xr

    for run in runs:
        if name not in run:
            raise InputError(
                "variables",
                expected=f"arrays that every run stored, {name!r} among them",
                got=f"run {run.record.id} without it",
            )
    try:
        joined: xr.DataArray = xr.concat(
            [run[name] for run in runs], dim="run", join="exact", coords="minimal", compat="override"
        )
    except ValueError as error:
        raise InputError(
            "variables", expected=f"{name!r} of the same dims, sizes and labels in every run", got=str(error)
        ) from error
    return joined.assign_coords(run=[run.record.id for run in runs])


def differing(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Parameters that are not the same in all runs, as text or numbers; a missing one is an empty text."""
    names = dict.fromkeys(name for record in records for name in record.params)
    columns = {f"params.{name}": [record.params.get(name) for record in records] for name in names}
    return {name: _column(values) for name, values in columns.items() if len({_text(value) for value in values}) > 1}


def _differing_inputs(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    roles = dict.fromkeys(role for record in records for role in record.inputs)
    columns = {f"inputs.{role}": [_input(record.inputs, role) for record in records] for role in roles}
    return {name: labels for name, labels in columns.items() if len(set(labels)) > 1}


def _input(inputs: Mapping[str, Mapping[str, Any]], role: str) -> str:
    return str(inputs[role]["label"]) if role in inputs else ""


def _column(values: list[Any]) -> list[Any]:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return values
    return ["" if value is None else _text(value) for value in values]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


# --------------------------------------------------------------------------------------------------------- repetitions


@dataclass(frozen=True)
class _Identity:
    """What a run computes apart from its seeds, and the seeds: its own, then those of the runs it was made from."""

    group: str
    seeds: tuple[int, ...]
    makers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Seeds of each run it was made from, by the roles that lead there: `model`, `model/data`."""


class _Lineage:
    """Identities of runs, with their inputs followed through the store."""

    def __init__(self, find: Callable[[str], RunRecord]) -> None:
        self._find, self._known = find, dict[str, _Identity | None]()

    def record(self, run: str) -> RunRecord | None:
        """A run's record, None if the run was deleted."""
        try:
            return self._find(run)
        except RunNotFoundError:
            return None

    def identity(self, record: RunRecord, left: int = DEEPEST) -> _Identity:
        """See `_Identity`."""
        known = self._known.get(record.id)
        if known is not None:
            return known
        self._known[record.id] = None  # a forged record may name itself as its input
        seeds = [record.seed]
        makers: dict[str, tuple[int, ...]] = {}
        inputs: dict[str, list[str]] = {}
        for role, entry in record.inputs.items():
            maker = _maker(entry)
            parent = None if maker is None else self._parent(maker, left)
            if maker is not None and parent is not None:
                inputs[role] = [entry["label"].replace(maker, "", 1), parent.group]
                seeds += parent.seeds
                makers |= {role: parent.seeds, **{f"{role}/{path}": found for path, found in parent.makers.items()}}
            else:
                # What has no digest is equal to nothing, not even to itself in another run.
                inputs[role] = [entry.get("digest") or record.id]
        group = digest_json(
            {
                "method": record.method,
                "version": record.method_version,
                "code": record.method_code,
                "params": record.params,
                "precision": record.precision,
                "inputs": inputs,
            }
        )
        self._known[record.id] = found = _Identity(group, tuple(seeds), makers)
        return found

    def _parent(self, run: str, left: int) -> _Identity | None:
        if run in self._known:
            return self._known[run]
        record = self.record(run) if left else None
        return None if record is None else self.identity(record, left - 1)

    def describe(self, record: RunRecord, role: str) -> str:
        """What a person calls an input, apart from seeds: its label; for a run's output that method and what was set."""
        entry = record.inputs.get(role, {})
        label, run = str(entry.get("label", "")), _maker(entry)
        maker = None if run is None else self.record(run)
        if run is None or maker is None:
            return label
        changed = {name: value for name, value in maker.params.items() if maker.default_params.get(name) != value}
        options = ", ".join(f"{name}={_text(value)}" for name, value in changed.items())
        return label.removeprefix("run ").replace(run, maker.method + (f"({options})" if options else ""), 1)


def _maker(entry: Mapping[str, Any]) -> str | None:
    """The run whose output an input is, untouched: then its label names it (`run ID`, `run ID[model]`, `ID[variable]`)."""
    runs, label = entry.get("runs", ()), str(entry.get("label", ""))
    return runs[0] if len(runs) == 1 and re.fullmatch(rf"(run )?{re.escape(runs[0])}(\[.*\])?", label) else None


def aggregate_runs(runs: Sequence[Comparable], find: Callable[[str], RunRecord], *, level: float = 0.95) -> xr.Dataset:
    """See `workbench.bench.Workbench.aggregate`; `find` gives the record of a run by its id."""
    import numpy as np
    import xarray as xr

    if not 0 < level < 1:
        raise InputError("level", expected="a number in (0, 1)", got=repr(level))
    complete = [run.record for run in runs if run.record.status == "complete"]
    if not complete:
        raise InputError("runs", expected="at least one complete run", got=f"{len(runs)} runs, none of them complete")
    lineage = _Lineage(find)
    groups: dict[str, dict[tuple[int, ...], RunRecord]] = {}
    for record in sorted(complete, key=lambda record: (record.started, record.id)):
        identity = lineage.identity(record)
        # Computed again with all seeds the same: no repetition.
        groups.setdefault(identity.group, {})[identity.seeds] = record
    members = [[group[seeds] for seeds in sorted(group)] for group in groups.values()]
    first = [group[0] for group in members]
    columns = differing(first)
    roles = dict.fromkeys(role for record in first for role in record.inputs)
    for role in roles:
        described = [lineage.describe(record, role) for record in first]
        if len(set(described)) > 1:
            columns[f"inputs.{role}"] = described
    coords: dict[str, Any] = {
        "group": _labels(first, columns),
        "method": ("group", [record.method for record in first]),
    }
    coords |= {name: ("group", values) for name, values in columns.items()}
    coords["runs"] = ("group", [" ".join(record.id for record in group) for group in members])
    coords["seeds"] = ("group", [_spelled_seeds(list(group)) for group in groups.values()])
    independent = [_independent([lineage.identity(record) for record in group]) for group in members]
    coords["replicates"] = ("group", [path or "seed" for path, _ in independent])
    metrics = [
        {m["name"]: m for m in (record.report or {}).get("metrics", ())} for group in members for record in group
    ]
    data: dict[str, Any] = {}
    for name in dict.fromkeys(name for entry in metrics for name in entry):
        described_by = next(entry[name] for entry in metrics if name in entry)
        attributes = {
            part: described_by[part] for part in ("unit", "direction", "description") if described_by.get(part)
        }
        column = f"metric_{name}" if name in coords else name
        values = [
            _means(
                [
                    (unit, record.metrics[name])
                    for record, unit in zip(group, units, strict=True)
                    if name in record.metrics
                ]
            )
            for group, (_, units) in zip(members, independent, strict=True)
        ]
        summary = np.array([_summary(sample, level) for sample in values]).T
        data[column] = ("group", summary[0], attributes)
        for part, numbers in zip(("std", "lower", "upper"), summary[1:], strict=True):
            data[f"{column}_{part}"] = ("group", numbers)
        data[f"{column}_n"] = ("group", np.array([len(sample) for sample in values], dtype=np.int64))
    return xr.Dataset(data, coords=coords, attrs={"level": level})


def _independent(identities: Sequence[_Identity]) -> tuple[str, list[tuple[int, ...]]]:
    """What makes runs of a group independent repetitions, and for each run which of the repetitions it belongs to.

    Runs that were made from the same earlier run (five evaluations of one trained network) share its luck: they say how much
    evaluations scatter, not how much training does. So where earlier runs differ in seed, those are the repetitions, the
    earliest that differ; of several that differ independently of each other (two networks on three sampled data sets) the
    fewest, because no more are independent. Where no earlier run differs, each run is one.

    Returns:
        the roles that lead to the earlier runs that count (`model`, `model/data`), empty for the runs themselves; and the
        seeds that name the repetition, one per run.
    """
    differ = {
        path: len(found)
        for path in identities[0].makers
        if len(found := {identity.makers[path] for identity in identities}) > 1
    }
    earliest = [path for path in differ if not any(other.startswith(f"{path}/") for other in differ)]
    if not earliest:
        return "", [identity.seeds for identity in identities]
    chosen = min(earliest, key=lambda path: (differ[path], path))
    return chosen, [identity.makers[chosen] for identity in identities]


def _means(values: Sequence[tuple[tuple[int, ...], float]]) -> Any:
    """One number for each repetition: the mean over its runs."""
    import numpy as np

    found: dict[tuple[int, ...], list[float]] = {}
    for unit, value in values:
        found.setdefault(unit, []).append(value)
    with np.errstate(invalid="ignore"):  # infinite values: the mean says so
        return np.array([np.mean(numbers) for numbers in found.values()], dtype=np.float64)


def _summary(sample: Any, level: float) -> tuple[float, float, float, float]:
    """Mean, standard deviation (n - 1) and Student's t interval of a sample; NaN where the sample does not give them."""
    import numpy as np
    from scipy.special import stdtrit

    nan = float("nan")
    if sample.size == 0:
        return nan, nan, nan, nan
    with np.errstate(invalid="ignore"):  # infinite values: the mean says so
        mean = float(sample.mean())
        if sample.size == 1:
            return mean, nan, nan, nan
        deviation = float(sample.std(ddof=1))
    half = float(stdtrit(sample.size - 1, 0.5 + level / 2)) * deviation / float(np.sqrt(sample.size))
    return mean, deviation, mean - half, mean + half


def _labels(records: Sequence[RunRecord], columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """A name for every group: the method, and parameters and inputs in which groups differ; numbered where that is not enough."""
    labels: list[str] = []
    seen: dict[str, int] = {}
    for index, record in enumerate(records):
        has = {"params": record.params, "inputs": record.inputs}
        named = ((*column.split(".", 1), values[index]) for column, values in columns.items())
        parts = [f"{name}={value}" for kind, name, value in named if name in has[kind]]
        label = " ".join([record.method, *parts])
        seen[label] = seen.get(label, 0) + 1
        labels.append(label if seen[label] == 1 else f"{label} #{seen[label]}")
    return labels


def _spelled_seeds(seeds: Sequence[tuple[int, ...]]) -> str:
    """Seeds of the runs of a group; where runs share their own seed, followed by those of the runs they were made from."""
    ordered = sorted(seeds)
    if len({own for own, *_ in ordered}) == len(ordered):
        return " ".join(str(own) for own, *_ in ordered)
    return " ".join("/".join(map(str, item)) for item in ordered)
