"""From what a person passes to what a method receives: roles and parameters sorted out, subjects loaded, identified, checked.

`sort_arguments` and `validate_params` cost nothing and come first; `resolve` loads and identifies; `check` reads values.
A run that is already in the store needs no `check`: the same content was checked when it was computed.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pydantic

from workbench.errors import InputError, MissingDependencyError
from workbench.fingerprint import canonical_json, combine, digest_json
from workbench.method import DataRole, Method, ModelRole, Role
from workbench.store.reading import Origin, StoredRun, origin_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "RUN_PREFIX",
    "Resolved",
    "Sources",
    "check",
    "check_requirements",
    "resolve",
    "run_reference",
    "sort_arguments",
    "validate_params",
]

RUN_PREFIX = "run:"
"""How an earlier run is named in text: `run:ID`, `run:ID[variable]`."""


class Sources(Protocol):
    """Where subjects named in text come from; the workbench itself is one."""

    def dataset(self, spec: str, *, role: str) -> tuple[xr.Dataset, str | None]:
        """A data set by name or path, and its digest where it is already known."""

    def network(self, spec: str, *, example: xr.Dataset | None, role: str) -> Any:
        """A model by name or path, as an `nn.Module`."""

    def stored_run(self, run_id: str) -> StoredRun:
        """A run of the store."""

    def stored_model(self, run: StoredRun, name: str) -> Any:
        """A model stored in a run, as an `nn.Module`."""


@dataclass(frozen=True)
class Resolved:
    """One input: its value, its identity and how a person calls it."""

    kind: Literal["data", "model"]
    value: Any
    digest: str | None
    """None where the content cannot be identified; such a run is computed every time."""
    label: str
    runs: tuple[str, ...] = ()
    """Ids of the runs it comes from."""
    sizes: Mapping[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What the run record keeps of it."""
        entry: dict[str, Any] = {"kind": self.kind, "label": self.label, "digest": self.digest}
        if self.runs:
            entry["runs"] = list(self.runs)
        if self.sizes:
            entry["sizes"] = dict(self.sizes)
        return entry


# -------------------------------------------------------------------------------------------- arguments and parameters


def check_requirements(method: type[Method]) -> None:
    """Raise MissingDependencyError if an optional package of the method is not installed."""
    for module, extra in method.requires.items():
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f"{method.id} needs the package {module!r}, which is not installed. "
                f"Install it with: pip install 'vision-workbench[{extra}]'"
            )


def sort_arguments(method: type[Method], given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keyword arguments into roles and parameters; a role given as None counts as left out.

    Raises:
        InputError: a name is neither (the nearest one is suggested), or a required role is missing.
    """
    fields = method.Params.model_fields
    roles = {name: value for name, value in given.items() if name in method.inputs and value is not None}
    params = {name: value for name, value in given.items() if name in fields and name not in method.inputs}
    for name in given:
        if name not in method.inputs and name not in fields:
            known = [*method.inputs, *fields]
            close = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                name,
                expected=f"a role ({', '.join(method.inputs) or 'none'}) or a parameter ({', '.join(fields) or 'none'}) "
                f"of {method.id}",
                got="an unknown name",
                hint=f"Did you mean {close[0]!r}?" if close else "",
            )
    for name, role in method.inputs.items():
        if not role.optional and name not in roles:
            raise InputError(
                name, expected=_describe(role), got="nothing", hint=f"{method.id} needs it: {role.description}"
            )
    return roles, params


def _describe(role: Role) -> str:
    if isinstance(role, ModelRole):
        return f"a model ({role.task})"
    return "data with " + ", ".join(f"{name} ({', '.join(dims)})" for name, dims in role.variables.items())


def validate_params(method: type[Method], params: Mapping[str, Any]) -> Any:
    """The method's `Params` from keyword arguments.

    Raises:
        InputError: for the first parameter that is out of range or of the wrong type.
    """
    try:
        validated = method.Params(**params)
        canonical_json(validated.model_dump(mode="json"))  # a parameter that JSON lacks can identify nothing
        return validated
    except (ValueError, TypeError) as error:
        if not isinstance(error, pydantic.ValidationError):
            raise InputError("parameters", expected="finite numbers and plain values", got=str(error)) from None
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"] if not _is_union_tag(part)) or "parameters"
        got = repr(first.get("input"))
        raise InputError(
            name,
            expected=_expected(method, name, first["msg"]),
            got=got if len(got) <= 200 else got[:200] + "...",
            hint=_hint(name, first),
        ) from None


def _hint(name: str, error: Mapping[str, Any]) -> str:
    """What to write instead of a single value where a list is wanted."""
    if error["type"] not in ("tuple_type", "list_type") or not isinstance(error["input"], bool | int | float | str):
        return ""
    return f"a list of one value is {name}=({error['input']!r},), on the command line {name}={error['input']},"


def _is_union_tag(part: Any) -> bool:
    return isinstance(part, str) and ("[" in part or part in ("int", "float", "str", "bool", "list", "none"))


def _expected(method: type[Method], name: str, message: str) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Input should be ")
    info = method.Params.model_fields.get(name.partition(".")[0])
    return f"{text} ({info.description})" if info is not None and info.description else text


# ---------------------------------------------------------------------------------------------------------- resolution


def resolve(
    method: type[Method],
    roles: Mapping[str, Any],
    sources: Sources,
    *,
    known: Mapping[str, Resolved] | None = None,
    identify: bool = True,
) -> dict[str, Resolved]:
    """Load and identify every input, data before models (a model's number of classes may follow the data).

    Args:
        method: whose roles they fill.
        roles: what was given, by role.
        sources: where subjects named in text come from.
        known: inputs that were identified before, by role.
        identify: False only loads, for somebody who computes a part of a run that was identified.

    Raises:
        InputError: something that is no data, no model or no run; an unknown name; a missing file.
    """
    found: dict[str, Resolved] = dict(known or {})
    for name, role in method.inputs.items():
        if isinstance(role, DataRole) and name in roles:
            found[name] = _data(name, role, roles[name], sources, identify)
    for name, role in method.inputs.items():
        if isinstance(role, ModelRole) and name in roles:
            example = found[role.data].value if role.data in found else None
            found[name] = _model(name, roles[name], sources, example, identify)
    return {name: found[name] for name in method.inputs if name in found}


def _data(name: str, role: DataRole, value: Any, sources: Sources, identify: bool) -> Resolved:
    from workbench.subjects import as_dataset

    label, runs = "", tuple[str, ...]()
    digest: str | None = None
    if isinstance(value, str) and value.startswith(RUN_PREFIX):
        value = _named_run(value, sources)
    if isinstance(value, str):
        dataset, digest = sources.dataset(value, role=name)
        label = value
    elif (stored := _stored(value)) is not None:
        dataset, identity, runs = _from_run(name, role, stored)
        return Resolved("data", dataset, identity, f"run {stored.id}", runs, _sizes(dataset))
    elif (origin := _origin(value)) is not None:
        dataset = as_dataset(_renamed(value, role), variables=role.variables, role=name)
        identity = combine(
            {"variable": _output_identity(origin), "as": digest_json(sorted(map(str, dataset.data_vars)))}
        )
        return Resolved(
            "data", dataset, identity, f"{origin.run.id}[{origin.variable}]", (origin.run.id,), _sizes(dataset)
        )
    else:
        dataset = as_dataset(_renamed(value, role), variables=role.variables, role=name)
        label = _data_label(value, dataset)
        if isinstance(value, Mapping):
            runs = tuple(o.run.id for o in map(_origin, value.values()) if o is not None)
    wanted = _wanted(dataset, role)
    # A registered data set comes with the digest of all of it, which is good only if the role wants all of it.
    if identify and (digest is None or set(wanted.variables) != set(dataset.variables)):
        digest = _content(wanted, value if isinstance(value, Mapping) else {})
    return Resolved("data", wanted, digest, label, runs, _sizes(wanted))


def _wanted(dataset: xr.Dataset, role: DataRole) -> xr.Dataset:
    """Only what the role asks for: other variables can change nothing, so they are no part of the identity."""
    # `variables`, not `data_vars`: xarray takes a variable called like one of its dims (`feature`) for a coordinate.
    keep = [name for name in dataset.variables if name in role.variables or name in role.optional_variables]
    if not keep:
        return dataset
    # Class names say what labels mean, though no variable of the role may run over classes.
    names = {"class": dataset.coords["class"]} if "class" in dataset.coords else {}
    return dataset[keep].assign_coords(names)


def _content(dataset: xr.Dataset, handles: Mapping[str, Any]) -> str:
    """Digest by content, but run outputs passed in a mapping by their identity."""
    from workbench.subjects import dataset_digest

    origins = {name: origin for name in handles if (origin := _origin(handles[name])) is not None and name in dataset}
    if not origins:
        return dataset_digest(dataset)
    parts = {f"variable {name}": _output_identity(origin) for name, origin in origins.items()}
    return combine(parts | {"rest": dataset_digest(dataset.drop_vars(list(origins)))})


def _from_run(name: str, role: DataRole, run: StoredRun) -> tuple[xr.Dataset, str | None, tuple[str, ...]]:
    missing = [variable for variable in role.variables if variable not in run]
    if missing:
        raise InputError(
            name,
            expected=f"a run that stored {', '.join(role.variables)}",
            got=f"run {run.id} ({run.method_id}), which stored {', '.join(run.outputs) or 'no arrays'}",
            hint=f"Pass one of its arrays, e.g. run[{run.outputs[0]!r}]." if run.outputs else "",
        )
    variables = [v for v in (*role.variables, *role.optional_variables) if v in run]
    identity = combine({variable: _output_identity(Origin(run, variable)) for variable in variables})
    return run.dataset(tuple(variables)), identity, (run.id,)


def _output_identity(origin: Origin) -> str:
    """Identity of a stored output: the run's key (so that it agrees between stores), or its id where it has none."""
    run = origin.run.record
    return digest_json({"run": run.key or run.id, "variable": origin.variable})


def _stored(value: Any) -> StoredRun | None:
    """The stored run behind a `StoredRun` or a handle that has one (`workbench.Run`)."""
    run = value if isinstance(value, StoredRun) else getattr(value, "stored", None)
    if not isinstance(run, StoredRun):
        return None
    if run.status != "complete":
        raise InputError("run", expected="a complete run", got=f"run {run.id}, which is {run.status}")
    return run


def run_reference(value: Any) -> tuple[StoredRun, str] | None:
    """The run that a subject is or comes from, and the subject in text (`run:ID`, `run:ID[variable]`); None for others."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str):
        run = _stored(value[0])
        return None if run is None else (run, f"{RUN_PREFIX}{run.id}[{value[1]}]")
    if (run := _stored(value)) is not None:
        return run, f"{RUN_PREFIX}{run.id}"
    origin = _origin(value)
    return None if origin is None else (origin.run, f"{RUN_PREFIX}{origin.run.id}[{origin.variable}]")


def _origin(value: Any) -> Origin | None:
    import sys

    xarray = sys.modules.get("xarray")
    origin = origin_of(value) if xarray is not None and isinstance(value, xarray.DataArray) else None
    if origin is not None:
        _stored(origin.run)  # what a failed run left has the key of the complete one, not its numbers
    return origin


def _named_run(text: str, sources: Sources) -> Any:
    body = text.removeprefix(RUN_PREFIX)
    run_id, bracket, variable = body.partition("[")
    run = sources.stored_run(run_id)
    return run[variable.removesuffix("]")] if bracket else run


def _renamed(value: Any, role: DataRole) -> Any:
    """An array of another name, where the role wants a single variable of just these dims: `restored` as `image`."""
    import xarray as xr

    if not isinstance(value, xr.DataArray) or value.name in role.variables or value.name in role.optional_variables:
        return value
    fitting = [name for name, dims in role.variables.items() if dims == value.dims]
    return value.rename(fitting[0]) if len(role.variables) == 1 and fitting else value


def _data_label(value: Any, dataset: xr.Dataset) -> str:
    title = getattr(value, "attrs", {}).get("title") if hasattr(value, "attrs") else None
    if isinstance(title, str) and title:
        return title
    sizes = ", ".join(f"{name} {size}" for name, size in dataset.sizes.items())
    return f"{type(value).__name__} ({sizes})"


def _sizes(dataset: xr.Dataset) -> dict[str, int]:
    return {str(name): int(size) for name, size in dataset.sizes.items()}


def _model(name: str, value: Any, sources: Sources, example: xr.Dataset | None, identify: bool) -> Resolved:
    from torch import nn

    from workbench.subjects.model_digest import model_digest

    if isinstance(value, str) and value.startswith(RUN_PREFIX):
        value = _model_run(value, name, sources)
    stored = None if isinstance(value, nn.Module | str) else _stored(value)
    model_name = "model"
    if isinstance(value, tuple) and len(value) == 2:  # (run, name of the stored model)
        stored, model_name = _stored(value[0]), str(value[1])
    if stored is not None:
        if model_name not in stored.record.models:
            raise InputError(
                name,
                expected="a run that stored a model" + ("" if model_name == "model" else f" called {model_name!r}"),
                got=f"run {stored.id} ({stored.record.method}), which stored {', '.join(stored.record.models) or 'none'}",
            )
        module = sources.stored_model(stored, model_name)
        identity = digest_json({"run": stored.record.key or stored.id, "model": model_name})
        suffix = "" if model_name == "model" else f"[{model_name}]"
        return Resolved("model", module, identity, f"run {stored.id}{suffix}", (stored.id,))
    if isinstance(value, str):
        module = sources.network(value, example=example, role=name)
        return Resolved("model", module, model_digest(module) if identify else None, value)
    if isinstance(value, nn.Module):
        label = getattr(value, "label", None)
        return Resolved(
            "model",
            value,
            model_digest(value) if identify else None,
            label if isinstance(label, str) and label else type(value).__name__,
        )
    raise InputError(
        name,
        expected="an nn.Module, a registered name, a name with weights (NAME@FILE) or a run that stored a model",
        got=type(value).__name__,
    )


def _model_run(text: str, name: str, sources: Sources) -> Any:
    run_id, bracket, model = text.removeprefix(RUN_PREFIX).partition("[")
    run = sources.stored_run(run_id)
    return (run, model.removesuffix("]")) if bracket else run


# -------------------------------------------------------------------------------------------------------------- checks


def check(method: type[Method], inputs: Mapping[str, Resolved]) -> None:
    """Refuse inputs that do not fit, before any work starts.

    Raises:
        InputError: see `workbench.subjects.check_dataset` and `check_model_fits`.
    """
    from workbench.subjects import check_dataset, check_model_fits

    for name, role in method.inputs.items():
        if isinstance(role, DataRole) and name in inputs:
            check_dataset(name, role, inputs[name].value)
    for name, role in method.inputs.items():
        if isinstance(role, ModelRole) and name in inputs and role.data is not None and role.data in inputs:
            data = inputs[role.data].value
            if "image" in data:
                check_model_fits(name, inputs[name].value, data["image"], labels=data.get("label"), task=role.task)
