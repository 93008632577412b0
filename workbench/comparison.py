"""Runs side by side as one labelled Dataset: metrics, differing parameters, arrays that line up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from workbench.errors import InputError
from workbench.record import report_number

if TYPE_CHECKING:
    import xarray as xr

    from workbench.record import RunRecord

__all__ = ["compare_runs", "differing"]


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
