"""A sweep described in a YAML file, checked before anything begins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pydantic

from workbench.errors import InputError
from workbench.execution.points import each
from workbench.record import valid_study

__all__ = ["SweepFile", "read_sweep"]

Seed = Annotated[int, pydantic.Field(ge=0, lt=2**63, strict=True)]
NAMES = ("methods", "inputs", "parameters", "points", "seed", "device", "precision", "study")


class _Swept(pydantic.BaseModel):
    """`{each: [...]}`."""

    model_config = pydantic.ConfigDict(extra="forbid")
    each: list[Any] = pydantic.Field(min_length=1)


class SweepFile(pydantic.BaseModel):
    """What the file may say."""

    model_config = pydantic.ConfigDict(extra="forbid")
    methods: list[str] | str
    inputs: dict[str, str | list[str]] = {}
    parameters: dict[str, Any] = {}
    points: list[dict[str, Any]] | None = pydantic.Field(None, min_length=1)
    seed: Seed | Annotated[list[Seed], pydantic.Field(min_length=1)] = 0
    device: str | None = None
    precision: str = "float32"
    study: str | None = None

    @pydantic.field_validator("study")
    @classmethod
    def _is_study(cls, name: str | None) -> str | None:
        if name is not None and not valid_study(name):
            raise ValueError("a name such as 'ship' or 'ship/resnet20'")
        return name


def read_sweep(path: Path) -> dict[str, Any]:
    """Keyword arguments of `bench.sweep` (and `methods`) from a file.

    Raises:
        InputError: it is no YAML, or says something that no sweep has; names the place.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(str(path), expected="YAML", got=f"something else: {error}") from None
    if not isinstance(content, dict):
        raise InputError(str(path), expected=f"a mapping with {', '.join(NAMES)}", got=type(content).__name__)
    try:
        described = SweepFile(**{str(name): value for name, value in content.items()})
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(place, expected=f"one of {', '.join(NAMES)}", got="an unknown name") from None
        raise InputError(place, expected=first["msg"], got=repr(first.get("input"))[:200]) from None
    parameters = {name: _value(name, value) for name, value in described.parameters.items()}
    if both := sorted(set(parameters) & set(described.inputs)):
        raise InputError(both[0], expected="one of inputs and parameters", got="both")
    return {
        "methods": described.methods,
        "points": described.points,
        "seed": described.seed,
        "device": described.device,
        "precision": described.precision,
        "study": described.study,
        **described.inputs,
        **parameters,
    }


def _value(name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    try:
        return each(*_Swept(**value).each)
    except pydantic.ValidationError:
        raise InputError(f"parameters.{name}", expected="a value, or {each: [...]}", got=repr(value)[:200]) from None
