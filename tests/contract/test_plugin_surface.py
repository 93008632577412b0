"""Nothing public without a word about it: names, hooks, commands, options, dims and variables, rules of the contract."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import workbench
import workbench.testing
import workbench.toolkit
from workbench import hookspecs
from workbench.cli import cli
from workbench.method import DataRole, Method, ModelRole, Out, Result
from workbench.schema import DIMS, VARIABLES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").is_file() else ""
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("workbench_"))


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")


COMMANDS = dict(commands(cli))


def documented(thing: Any) -> bool:
    # A dataclass without docstring gets its signature as one.
    text = inspect.getdoc(thing) or ""
    return len(text) > 10 and not text.startswith(f"{getattr(thing, '__name__', '')}(")


@pytest.mark.parametrize(
    "module", [workbench, workbench.toolkit, workbench.testing], ids=lambda module: module.__name__
)
def test_every_public_name_has_a_docstring(module):
    # Aliases (a Literal, a Callable) have no docstring of their own; the functions that take them explain them.
    things = {name: getattr(module, name) for name in module.__all__}
    things = {name: thing for name, thing in things.items() if inspect.isclass(thing) or inspect.isfunction(thing)}
    assert len(things) >= 10
    silent = [name for name, thing in things.items() if not documented(thing)]
    assert silent == []
    assert documented(module)
    assert sorted(module.__all__) == sorted(set(module.__all__))


@pytest.mark.parametrize("cls", [Method, Out, Result, DataRole, ModelRole, workbench.Workbench, workbench.Run])
def test_every_member_an_author_or_user_meets_has_a_docstring(cls):
    members = {name: member for name, member in vars(cls).items() if not name.startswith("_")}
    called = {name: m for name, m in members.items() if callable(m) or isinstance(m, property)}
    silent = [name for name, member in called.items() if not documented(member) and name not in ("Params",)]
    assert silent == []


def test_there_are_hooks():
    assert len(HOOKS) >= 8


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_docstring_and_annotated_arguments(hook):
    function = getattr(hookspecs, hook)
    assert documented(function)
    signature = inspect.signature(function)
    assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name):
    command = COMMANDS[name]
    assert (command.help or "").strip()
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert (parameter.help or "").strip(), f"{name} {parameter.opts[0]}"
        else:
            # Arguments have no help of their own, so the command's text must speak of them.
            assert (
                parameter.human_readable_name.strip("[].- ").split("=")[0].upper().rstrip("S") in command.help.upper()
            )


def test_the_glossary_says_what_every_dim_and_variable_means():
    assert all(meaning.strip() for meaning in DIMS.values())
    for name, known in VARIABLES.items():
        assert known.meaning.strip(), name
        assert known.dtypes, name
        assert set(known.dims) <= set(DIMS), f"{name} runs over a dim that DIMS does not explain"


# The README is written for people who have never seen the project; what it leaves out, they will not find.
readme = pytest.mark.skipif(len(README) < 1000, reason="the README is not written yet")


@readme
@pytest.mark.parametrize("hook", HOOKS)
def test_the_readme_names_every_hook(hook):
    assert hook in README


@readme
@pytest.mark.parametrize("name", cli.commands)
def test_the_readme_names_every_command(name):
    assert f"workbench {name}" in README


@readme
def test_the_readme_names_no_command_that_does_not_exist():
    shown = set(re.findall(r"(?m)^\s*(?:\$ )?workbench ([a-z][a-z-]+)", README))
    assert shown <= {name.split()[0] for name in COMMANDS}
