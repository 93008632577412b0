"""What a method is, read off its class: roles, parameters, outputs, paper. The command line, pages and forms show this."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.method import DataRole, Method, ModelRole, Output

__all__ = ["MethodDescription", "ParameterDescription", "RoleDescription", "describe_method"]


@dataclass(frozen=True)
class ParameterDescription:
    """One parameter: its type and range in words, its default as JSON (None with `required`)."""

    name: str
    type: str
    range: str
    default: Any
    required: bool
    description: str


@dataclass(frozen=True)
class RoleDescription:
    """One input role: what it takes, in words."""

    name: str
    kind: str
    takes: str
    optional: bool
    description: str


@dataclass(frozen=True)
class MethodDescription:
    """Everything a reader asks about a method before running it."""

    id: str
    title: str
    version: str
    text: str
    """The module's documentation, else the class's."""
    paper: str
    arxiv: str
    code: str
    roles: tuple[RoleDescription, ...]
    parameters: tuple[ParameterDescription, ...]
    outputs: tuple[tuple[str, str, str, str], ...]
    """Name, dims, dtype, description."""
    requires: Mapping[str, str]
    example: str
    """A command line that runs it."""
    python: str
    """The same in Python."""


def describe_method(method: type[Method]) -> MethodDescription:
    """Read a method's class."""
    module = inspect.getmodule(method)
    text = inspect.cleandoc((module.__doc__ if module is not None else None) or method.__doc__ or "")
    roles = tuple(_role(name, role) for name, role in method.inputs.items())
    return MethodDescription(
        id=method.id,
        title=method.title,
        version=method.version,
        text=text,
        paper=method.paper.citation if method.paper else "",
        arxiv=method.paper.arxiv if method.paper else "",
        code=method.paper.code if method.paper else "",
        roles=roles,
        parameters=_parameters(method),
        outputs=tuple((o.name, ", ".join(o.dims), o.dtype, _about(o)) for o in method.outputs),
        requires=dict(method.requires),
        example=_example(method, roles),
        python=_python(method, roles),
    )


def _about(output: Output) -> str:
    """Description with unit, and whether every run writes it."""
    parts = (
        output.description,
        f"[{output.unit}]" if output.unit else "",
        "(not in every run)" if output.optional else "",
    )
    return " ".join(part for part in parts if part)


def _role(name: str, role: DataRole | ModelRole) -> RoleDescription:
    if isinstance(role, ModelRole):
        return RoleDescription(name, "model", role.task, role.optional, role.description)
    takes = [f"{variable} ({', '.join(dims)})" for variable, dims in role.variables.items()]
    takes += [f"[{variable} ({', '.join(dims)})]" for variable, dims in role.optional_variables.items()]
    return RoleDescription(name, "data", "; ".join(takes), role.optional, role.description)


def _parameters(method: type[Method]) -> tuple[ParameterDescription, ...]:
    schema = method.Params.model_json_schema()
    definitions, required = schema.get("$defs", {}), set(schema.get("required", ()))
    found = []
    for name, entry in schema.get("properties", {}).items():
        kind, limits = _type(entry, definitions)
        found.append(
            ParameterDescription(
                name, kind, limits, entry.get("default"), name in required, entry.get("description", "")
            )
        )
    return tuple(found)


def _type(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[str, str]:
    """(type, range) of a JSON schema entry, in words."""
    if "$ref" in entry:
        return _type(definitions.get(entry["$ref"].rpartition("/")[2], {}), definitions)
    if "anyOf" in entry:
        options = [_type(option, definitions) for option in entry["anyOf"]]
        names = " or ".join(dict.fromkeys(name for name, _ in options))
        return names, "; ".join(dict.fromkeys(limits for _, limits in options if limits))
    if "const" in entry:
        return "choice", str(entry["const"])
    if "enum" in entry:
        return "choice", ", ".join(str(value) for value in entry["enum"])
    kind = {"null": "none", "array": "list", "string": "text", "boolean": "true or false", "object": "mapping"}.get(
        str(entry.get("type")), str(entry.get("type", "any"))
    )
    if kind == "list":
        item = entry.get("items")
        inner = _type(item, definitions) if isinstance(item, Mapping) else ("any", "")
        return f"list of {inner[0]}", inner[1]
    lower = [f">= {entry['minimum']}"] if "minimum" in entry else []
    lower += [f"> {entry['exclusiveMinimum']}"] if "exclusiveMinimum" in entry else []
    upper = [f"<= {entry['maximum']}"] if "maximum" in entry else []
    upper += [f"< {entry['exclusiveMaximum']}"] if "exclusiveMaximum" in entry else []
    return kind, ", ".join(lower + upper)


def _example(method: type[Method], roles: tuple[RoleDescription, ...]) -> str:
    parts = [f"workbench run {method.id}"]
    for role in roles:
        if role.optional:
            continue
        value = "MODEL" if role.kind == "model" else "DATA"
        parts.append(f"--{role.name} {value}" if role.name in ("model", "data") else f"{role.name}={value}")
    return " ".join(parts)


def _python(method: type[Method], roles: tuple[RoleDescription, ...]) -> str:
    arguments = [repr(method.id), *(f"{role.name}=..." for role in roles if not role.optional)]
    return f"import workbench\n\nbench = workbench.open()\nrun = bench.run({', '.join(arguments)})\nrun.report()"
