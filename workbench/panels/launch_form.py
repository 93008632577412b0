"""The form of a method: fields read off its `Params` and roles, what people typed as values, and the same as Python.

Pure functions of a method's class; the widget is in `launch`.
"""

from __future__ import annotations

import ast
import keyword
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pydantic

from workbench.description import describe_method
from workbench.execution.device import PRECISIONS
from workbench.method import Method, ModelRole

__all__ = ["Checked", "Field", "as_code", "check", "fields", "spell"]


@dataclass(frozen=True)
class Field:
    """One line of the form."""

    name: str
    group: Literal["input", "parameter", "run"]
    kind: Literal["text", "number", "choice", "flag", "list", "subject"]
    label: str
    help: str
    value: str
    """What stands in it at the start: the default (the paper's), or what was given."""
    default: str = ""
    range: str = ""
    type: str = ""
    required: bool = False
    choices: tuple[str, ...] = ()
    given: str = ""
    """How an object of the notebook is called; it is used as it is."""

    def to_json(self) -> dict[str, Any]:
        """For the front end."""
        return asdict(self)


@dataclass(frozen=True)
class Checked:
    """What the form comes to: arguments of `bench.run`, and what is wrong by field."""

    arguments: dict[str, Any]
    errors: dict[str, str]


def spell(value: Any) -> str:
    """A value as people type it: `2, 4, 8`, `none`, `true`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple) and value and all(map(_simple, value)):
        return ", ".join(spell(item) for item in value)
    return str(value) if isinstance(value, str | int | float) else repr(_plain(value))


def _simple(item: Any) -> bool:
    """Whether an entry of a list can stand between commas."""
    return isinstance(item, int | float) or (isinstance(item, str) and bool(item) and "," not in item)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def fields(method: type[Method], given: Mapping[str, Any], subjects: Mapping[str, Iterable[str]]) -> list[Field]:
    """The lines of a method's form.

    Args:
        method: its class.
        given: arguments of `bench.launch`: texts and numbers are put into the fields, objects are used as they are.
        subjects: names on offer for each role.
    """
    described = describe_method(method)
    found = []
    for role in described.roles:
        value = given.get(role.name)
        plain = value is None or isinstance(value, str)
        found.append(
            Field(
                role.name, "input", "subject", role.name,
                f"{role.description}. Takes {'a model' if role.kind == 'model' else 'data with'} {role.takes}".strip(),
                str(value or "") if plain else "",
                required=not role.optional,
                choices=tuple(subjects.get(role.name, ())),
                type=role.kind,
                given="" if plain else _object(value),
            )
        )  # fmt: skip
    schema = method.Params.model_json_schema()
    for parameter in described.parameters:
        default = "" if parameter.required else spell(parameter.default)
        choices = _choices(schema["properties"][parameter.name], schema.get("$defs", {}))
        found.append(
            Field(
                parameter.name, "parameter", _kind(parameter.type, choices), parameter.name, parameter.description,
                spell(given[parameter.name]) if parameter.name in given else default,
                default=default,
                range="" if choices else parameter.range.replace(">=", "≥").replace("<=", "≤"),
                type=parameter.type,
                required=parameter.required,
                choices=choices,
            )
        )  # fmt: skip
    return found + _run_fields(given)


def _object(value: Any) -> str:
    identity = getattr(value, "id", None)
    if isinstance(identity, str):
        return f"run {identity}"
    sizes = getattr(value, "sizes", None)
    about = ", ".join(f"{name} {size}" for name, size in sizes.items()) if isinstance(sizes, Mapping) else ""
    return f"{type(value).__name__}{f' ({about})' if about else ''} of the notebook"


def _kind(kind: str, choices: tuple[str, ...]) -> Literal["text", "number", "choice", "flag", "list"]:
    if choices:
        return "choice"
    if kind == "true or false":
        return "flag"
    if kind in ("integer", "number"):
        return "number"
    return "list" if kind.startswith("list") else "text"


def _choices(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[str, ...]:
    """What a parameter may be, where that is a closed list."""
    if "$ref" in entry:
        return _choices(definitions.get(entry["$ref"].rpartition("/")[2], {}), definitions)
    if "enum" in entry:
        return tuple(spell(value) for value in entry["enum"])
    if "anyOf" in entry:
        parts = [("none",) if part.get("type") == "null" else _choices(part, definitions) for part in entry["anyOf"]]
        return tuple(value for part in parts for value in part) if all(parts) else ()
    return ()


def _run_fields(given: Mapping[str, Any]) -> list[Field]:
    seed, precision = spell(given.get("seed", 0)), str(given.get("precision", "float32"))
    device, study = (str(given.get(name) or "") for name in ("device", "study"))
    again = spell(bool(given.get("force", False)))
    where = "Where to compute: cpu, cuda, cuda:1, mps. Empty: the best there is"
    return [
        Field("seed", "run", "number", "seed", "Of everything random in the run", seed, "0"),
        Field("device", "run", "text", "device", where, device),
        Field(
            "precision",
            "run",
            "choice",
            "precision",
            "Part of the run's identity",
            precision,
            choices=tuple(PRECISIONS),
        ),
        Field("study", "run", "text", "study", "What the run is for, as a path: ship/resnet20", study),
        Field("force", "run", "flag", "compute again", "Even if the store has this run", again, "false"),
    ]


# ------------------------------------------------------------------------------------------------------------- checking


def check(method: type[Method], texts: Mapping[str, str], given: Mapping[str, Any]) -> Checked:
    """Read and check everything that costs nothing: parameters against `Params`, required inputs, seed.

    Args:
        method: its class.
        texts: what stands in the fields, by name.
        given: objects of the notebook that fill roles.
    """
    arguments: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for name, role in method.inputs.items():
        text = texts.get(name, "").strip()
        if name in given and not isinstance(given[name], str | None):
            arguments[name] = given[name]
        elif text:
            arguments[name] = text
        elif not role.optional:
            errors[name] = (
                "needed: " + ("a model" if isinstance(role, ModelRole) else "data") + " by name, path or run:ID"
            )
    arguments |= _parameters(method, texts, errors)
    _run_arguments(texts, arguments, errors)
    return Checked(arguments, errors)


def _parameters(method: type[Method], texts: Mapping[str, str], errors: dict[str, str]) -> dict[str, Any]:
    """Parameters that differ from their default; what is wrong goes to `errors`."""
    schema = method.Params.model_json_schema().get("properties", {})
    left: dict[str, list[Any]] = {}
    for name, entry in schema.items():
        text = texts.get(name, "").strip()
        if text and ("default" not in entry or text != spell(entry["default"])):
            left[name] = [text] if entry.get("type") == "string" else _readings(text)
    while True:
        params = {name: options[0] for name, options in left.items()}
        try:
            validated = method.Params(**params)
        except pydantic.ValidationError as error:
            problems = error.errors(include_url=False)
            again = {str(problem["loc"][0]) for problem in problems if problem["loc"]}
            other = [name for name in again if len(left.get(name, ())) > 1]
            for name in other:  # `2` may be a list of one, `none` a word
                left[name].pop(0)
            if not other:
                for problem in problems:
                    message = (
                        str(problem["msg"]).removeprefix("Value error, ").replace("Input should be ", "should be ")
                    )
                    errors.setdefault(str(problem["loc"][0]) if problem["loc"] else "", message)
                return params
        except (TypeError, ValueError) as error:
            errors.setdefault("", str(error))
            return params
        else:
            defaults = method.Params.model_construct()
            return {
                name: value
                for name, value in params.items()
                if getattr(validated, name) != getattr(defaults, name, ...)
            }


def _readings(text: str) -> list[Any]:
    """What a text may mean, the likeliest first. The last one is what messages are about."""
    value = read(text)
    parts = [part.strip() for part in text.split(",")]
    found = [
        value,
        *([[value]] if not isinstance(value, list) else []),
        *([parts] if len(parts) > 1 else [[text]]),
        text,
    ]
    return [*found, value]


def _run_arguments(texts: Mapping[str, str], arguments: dict[str, Any], errors: dict[str, str]) -> None:
    seed = texts.get("seed", "0").strip() or "0"
    if not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
        errors["seed"] = "should be a whole number of 0 or more"
    elif int(seed):
        arguments["seed"] = int(seed)
    if (precision := texts.get("precision", "float32")) != "float32":
        if precision not in PRECISIONS:
            errors["precision"] = f"should be one of {', '.join(PRECISIONS)}"
        arguments["precision"] = precision
    for name in ("device", "study"):
        if text := texts.get(name, "").strip():
            arguments[name] = text
    if texts.get("force") == "true":
        arguments["force"] = True


def read(text: str, *, only_text: bool = False) -> Any:
    """A value as people type it: a Python literal, a list where it has commas, else text."""
    stripped = text.strip()
    if only_text:
        return stripped
    if stripped.lower() in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(stripped.lower())
    try:
        value = ast.literal_eval(stripped)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if "," in stripped and not set("()[]{}") & set(stripped):
            return [read(part) for part in stripped.split(",") if part.strip()]
        return stripped
    return list(value) if isinstance(value, tuple) else value


def as_code(method_id: str, arguments: Mapping[str, Any], objects: Mapping[str, str]) -> str:
    """Python that starts the same run; `objects` says how objects of the notebook are called."""
    lines = [f"    {method_id!r},"]
    for name, value in arguments.items():
        if name in objects:
            lines.append(f"    {name}=...,  # {objects[name]}")
        elif name.isidentifier() and not keyword.iskeyword(name):
            lines.append(f"    {name}={value!r},")
        else:
            lines.append(f"    **{{{name!r}: {value!r}}},")
    return "\n".join(["run = bench.run(", *lines, ")"])
