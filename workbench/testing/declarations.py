"""What can be checked by reading a method's class, without running it."""

from __future__ import annotations

import datetime
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import annotated_types
import numpy as np
import pydantic

from workbench.method import DataRole, Method, MethodReference, ModelRole, Paper, Params
from workbench.schema import VARIABLES
from workbench.testing.findings import Finding

__all__ = ["DECLARATIONS", "check_declarations"]

RESERVED = frozenset({"method", "seed", "device", "precision", "force", "wait", "study", "progress", "cancel"})
"""Options of `bench.run`, which no role or parameter may be called."""
_OWN = frozenset({"run", "report"})


def check_declarations(method: type[Method], reference: MethodReference | None = None) -> list[Finding]:
    """Check what the class says about itself.

    Args:
        method: the class.
        reference: what its plugin lists it as, to compare id and title.
    """
    name = getattr(method, "id", None) or method.__name__
    findings = [Finding(str(name), rule, problem) for rule, check in DECLARATIONS.items() for problem in check(method)]
    if reference is not None:
        for attribute in ("id", "title"):
            here, there = getattr(method, attribute, None), getattr(reference, attribute)
            if here != there:
                text = f"the class has the {attribute} {here!r}, its MethodReference {there!r}"
                findings.append(Finding(str(name), "identity", text))
    return findings


def _identity(method: type[Method]) -> Iterator[str]:
    method_id, title = getattr(method, "id", None), getattr(method, "title", None)
    if not isinstance(method_id, str):
        yield "the class has no id"
    else:
        family, dot, name = method_id.partition(".")
        plain = all(part.isidentifier() and part == part.lower() for part in (family, name))
        if not dot or not plain:
            yield f"id {method_id!r} is not of the form family.name in lower case"
    if not isinstance(title, str) or not title.strip():
        yield "the class has no title"
    elif "\n" in title or len(title) > 120:
        yield f"the title has {len(title)} characters; it must be one line of at most 120"
    if not isinstance(method.version, str) or not method.version:
        yield f"version must be a text, got {method.version!r}"


def _documentation(method: type[Method]) -> Iterator[str]:
    module = sys.modules.get(method.__module__)
    texts = [method.__doc__, module.__doc__ if module is not None and module.__name__ != "__main__" else None]
    if max((len(inspect.cleandoc(text)) for text in texts if text), default=0) < 30:
        yield "neither the class nor its module has a docstring that says what the method does"


def _paper(method: type[Method]) -> Iterator[str]:
    stated = any("paper" in vars(base) for base in method.__mro__ if base is not Method)
    if not stated:
        yield "the class does not state its paper"
    if method.paper is None:
        return
    if not isinstance(method.paper, Paper):
        yield f"paper must be a workbench.Paper, got {type(method.paper).__name__}"
        return
    for name in ("title", "authors"):
        if not str(getattr(method.paper, name)).strip():
            yield f"the paper has no {name}"
    if not 1800 <= method.paper.year <= datetime.date.today().year + 1:
        yield f"the paper's year is {method.paper.year}"


def _shell(method: type[Method]) -> Iterator[str]:
    if abstract := sorted(getattr(method, "__abstractmethods__", ())):
        yield f"the class does not implement {' and '.join(abstract)}"
        return
    try:
        method()
    except Exception as error:
        yield f"the class cannot be made without arguments: {type(error).__name__}: {error}"
    inherited = {name for name in vars(Method) if not name.startswith("_")} - _OWN
    for name in sorted(inherited):
        if callable(vars(Method).get(name)) and not isinstance(vars(Method)[name], type):
            mine = getattr(method, name)
            if mine is not getattr(Method, name):
                yield f"the class overrides {name}"


def _parameters(method: type[Method]) -> Iterator[str]:
    cls = method.Params
    if not (isinstance(cls, type) and issubclass(cls, Params)):
        yield f"Params must derive from workbench.Params, got {cls!r}"
        return
    if not cls.model_config.get("frozen") or cls.model_config.get("extra") != "forbid":
        yield "Params must stay frozen and forbid unknown names"
    for name, info in cls.model_fields.items():
        if name in RESERVED:
            yield f"parameter {name!r} has the name of an option of a run"
        if not (info.description or "").strip():
            yield f"parameter {name!r} has no description"
        if info.is_required():
            yield f"parameter {name!r} has no default"
        if _is_number(info.annotation) and not _is_ranged(info) and not _refuses_extremes(cls, name):
            yield f"parameter {name!r} is a number without a range (ge, gt, le, lt)"
    if any(info.is_required() for info in cls.model_fields.values()):
        return
    try:
        defaults = cls()
    except pydantic.ValidationError as error:
        yield f"the defaults are not valid: {error.errors(include_url=False)[0]['msg']}"
        return
    try:
        survived = cls(**defaults.model_dump(mode="json")) == defaults
    except Exception as error:
        yield f"the defaults do not survive JSON: {type(error).__name__}: {error}"
        return
    if not survived:
        yield "the defaults are others after a turn through JSON"


def _is_number(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_is_number(part) for part in typing.get_args(annotation))
    if origin is typing.Annotated:
        return _is_number(typing.get_args(annotation)[0])
    return annotation in (int, float)


def _is_ranged(info: Any) -> bool:
    bounds = (annotated_types.Ge, annotated_types.Gt, annotated_types.Le, annotated_types.Lt, annotated_types.Interval)

    def bounded(metadata: Any, annotation: Any) -> bool:
        if any(isinstance(item, bounds) or callable(getattr(item, "func", None)) for item in metadata):
            return True
        for part in typing.get_args(annotation):
            extra = [
                item for field in getattr(part, "__metadata__", ()) for item in getattr(field, "metadata", [field])
            ]
            if bounded(extra, part):
                return True
        return False

    return bounded(info.metadata, info.annotation)


def _refuses_extremes(cls: type[Params], name: str) -> bool:
    """Whether a validator keeps the range that the field does not state."""
    for value in (-(10**12), 10**12):
        try:
            cls(**{name: value})
        except pydantic.ValidationError as error:
            # A validator of the whole model has no place in the error; a field that is missing has another one.
            if any(entry["loc"][:1] in ((), (name,)) for entry in error.errors(include_url=False)):
                return True
    return False


def _key(method: type[Method]) -> Iterator[str]:
    cls = method.Params
    if not (isinstance(cls, type) and issubclass(cls, Params)):
        return
    try:
        written = cls().model_dump(mode="json")
    except Exception:  # the rule "parameters" says so
        return
    entries = cls.model_json_schema().get("properties", {})
    for name in cls.model_fields:
        other = _another(cls, name, entries.get(name, {}))
        if other is not None and other.model_dump(mode="json") == written:
            yield f"parameter {name!r} is not part of the key: {getattr(other, name)!r} is written as its default is"


def _another(cls: type[Params], name: str, entry: Mapping[str, Any]) -> Params | None:
    """Valid parameters that differ from the defaults in one of them; None where none is found."""
    defaults = cls()
    value = getattr(defaults, name)
    for candidate in _candidates(value, entry):
        try:
            other = cls(**{name: candidate})
        except pydantic.ValidationError:
            continue
        if getattr(other, name) != value:
            return other
    return None


def _candidates(value: Any, entry: Mapping[str, Any]) -> Iterator[Any]:
    options = [entry, *entry.get("anyOf", ()), *([entry["items"]] if isinstance(entry.get("items"), Mapping) else [])]
    yield from [item for option in options for item in option.get("enum", ())]
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, value * 2, value // 2)
    elif isinstance(value, float):
        near = value * (1 + 1e-9) + 1e-12  # a serializer that rounds is found by it
        yield from (near, value * (1 - 1e-9) - 1e-12, value * 1.5, value / 2)
    elif isinstance(value, str):
        yield from (f"{value} ", f"{value}a")
    elif isinstance(value, tuple | list):
        yield from (value[:-1], (*value, *value[-1:]))
    for option in options:
        yield from [option[edge] for edge in ("minimum", "maximum") if edge in option]
    yield from (None, 1, 0.5, True, "a", (1,), (0.5,), ("a",))


def _roles(method: type[Method]) -> Iterator[str]:
    fields = set(getattr(method.Params, "model_fields", ()))
    for name, role in method.inputs.items():
        if not isinstance(role, DataRole | ModelRole):
            yield f"role {name!r} must be a DataRole or a ModelRole, got {type(role).__name__}"
            continue
        if not name.isidentifier() or name in RESERVED:
            yield f"role {name!r} cannot be passed to a run by this name"
        if name in fields:
            yield f"role {name!r} has the name of a parameter"
        if not role.description.strip():
            yield f"role {name!r} has no description"
        if isinstance(role, DataRole) and not (role.variables or role.optional_variables):
            yield f"role {name!r} asks for no variable"
        if isinstance(role, ModelRole) and role.data not in (None, "data") and role.data not in method.inputs:
            yield f"role {name!r} names the data role {role.data!r}, which does not exist"


TAKEN = frozenset({"drop", "indexers", "method", "missing_dims", "tolerance"})
"""Arguments of xarray's `sel` and `isel`: a dim of such a name cannot be selected by keyword."""


def _outputs(method: type[Method]) -> Iterator[str]:
    names = [output.name for output in method.outputs]
    if not names:
        yield "the method declares no output"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"output {name!r} is declared twice"
    for output in method.outputs:
        if not output.name.isidentifier() or output.name == "series":
            yield f"output {output.name!r} is not a plain name"
        if len(set(output.dims)) != len(output.dims):
            yield f"output {output.name!r} repeats a dim: {output.dims}"
        if not all(dim == "..." or dim.isidentifier() for dim in output.dims):
            yield f"output {output.name!r} has a dim that is not a plain name: {output.dims}"
        for dim in sorted(TAKEN & set(output.dims)):
            yield f"output {output.name!r} has a dim {dim!r}, which `array.sel({dim}=...)` takes for something else"
        if not output.description.strip():
            yield f"output {output.name!r} has no description"
        if not _known_dtype(output.dtype):
            yield f"output {output.name!r} has an unknown dtype {output.dtype!r}"


def _known_dtype(dtype: str) -> bool:
    if dtype in ("str", "string", "bfloat16"):
        return True
    try:
        return np.dtype(dtype).kind in "biufc"
    except TypeError:
        return False


def _glossary(method: type[Method]) -> Iterator[str]:
    for output in method.outputs:
        if output.dims == (output.name,):
            yield f"output {output.name!r} has the name of its dim; that is a coordinate (`out.coordinate`)"
        known = VARIABLES.get(output.name)
        if known is None:
            continue
        if not _same_dims(output.dims, known.dims):
            yield f"output {output.name!r} has dims {output.dims}; the glossary says {known.dims}"
        if output.dtype not in known.dtypes:
            yield f"output {output.name!r} has dtype {output.dtype}; the glossary says {' or '.join(known.dtypes)}"
    for role_name, role in method.inputs.items():
        if isinstance(role, DataRole):
            for name, dims in {**role.variables, **role.optional_variables}.items():
                known = VARIABLES.get(name)
                if known is not None and not _same_dims(dims, known.dims):
                    yield f"role {role_name!r} asks for {name!r} with dims {dims}; the glossary says {known.dims}"


def _same_dims(dims: tuple[str, ...], known: tuple[str, ...]) -> bool:
    # A variable repeated over further dims (modes, seeds, ...) keeps its meaning as long as its own dims come last.
    if "..." in dims:
        return dims[: dims.index("...")] == known[: dims.index("...")]
    return dims[len(dims) - len(known) :] == known


DECLARATIONS: Mapping[str, Callable[[type[Method]], Iterator[str]]] = {
    "identity": _identity,
    "documentation": _documentation,
    "paper": _paper,
    "shell": _shell,
    "parameters": _parameters,
    "key": _key,
    "roles": _roles,
    "outputs": _outputs,
    "glossary": _glossary,
}
"""Rule -> what of the class breaks it."""
