"""How subjects are written as text: `name(key=value, ...)`, followed by `@weights` for models or `[start:stop]` for data.

Values are Python literals, `true` and `false`; other bare words are strings:
    `photos(size=64)[:16]`, `resnet20(n_classes=100)@weights.safetensors`.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from workbench.errors import InputError

__all__ = ["check_call", "split_arguments", "split_slice"]

_ARGUMENTS = re.compile(r"^(?P<name>.*?)\((?P<body>\s*(?:[A-Za-z_]\w*\s*=.*)?)\)$", re.DOTALL)
_SLICE = re.compile(r"^(?P<name>.*)\[(?P<body>\s*-?\d*\s*(?::\s*-?\d*\s*){1,2})\]$", re.DOTALL)


def split_arguments(spec: str, argument: str) -> tuple[str, dict[str, Any]]:
    """Split `name(key=value, ...)` into name and arguments; without parentheses the arguments are empty.

    Raises:
        InputError: the parentheses do not hold `key=value` pairs of literals or words.
    """
    match = _ARGUMENTS.match(spec)
    if match is None:
        return spec, {}
    try:
        call = ast.parse(f"f({match['body']})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("positional argument")
        return match["name"], {str(k.arg): _literal(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise InputError(
            argument, expected="arguments such as (size=64, layout=NHWC) after the name", got=repr(spec)
        ) from error


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return {"true": True, "false": False}.get(node.id, node.id)
    return ast.literal_eval(node)


def split_slice(spec: str) -> tuple[str, slice | None]:
    """Split `name[start:stop]` or `name[start:stop:step]` into name and slice."""
    match = _SLICE.match(spec)
    if match is None:
        return spec, None
    parts = [int(part) if part.strip() else None for part in match["body"].split(":")]
    return match["name"], slice(*parts)


def check_call(function: Callable[..., Any], name: str, arguments: Mapping[str, Any], argument: str) -> None:
    """See that a registered function takes these arguments.

    Raises:
        InputError: shows what it takes.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
        takes = signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        reason = str(error).removeprefix("got ")
        hint = f"{reason[:1].upper()}{reason[1:]}."
        raise InputError(argument, expected=f"{name}{takes}", got=f"{name}({given})", hint=hint) from error
