"""Commands for authors of plugins: begin one, and hold methods to the contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.errors import InputError, PluginError

if TYPE_CHECKING:
    from workbench.host import Host
    from workbench.testing import Finding

__all__ = ["check_command", "new_plugin_command"]


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--family", required=True, help="Family of the method: an existing one (see `workbench list`) or a new word."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder to make the project in.  [default: here]",
)
def new_plugin_command(name: str, family: str, output: Path) -> None:
    """Begin a plugin: write a pip project called NAME with one method that works, its tests and a CI file."""
    from workbench.template import new_plugin

    folder = new_plugin(name, family, output)
    method_id = f"{family}.{name.lower().replace('-', '_')}"
    click.echo(f"{folder} is ready. What now:\n")
    click.echo(f"  pip install -e {folder}")
    click.echo(f"  workbench describe {method_id}")
    click.echo(f"  workbench check {name}")
    click.echo(f"\nThen put your own method in place of the example; {folder / 'README.md'} says how.")


@click.command("check")
@click.argument("package")
@click.argument("assignments", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--static", is_flag=True, help="Only look at what the classes declare; run nothing.")
@click.pass_context
def check_command(ctx: click.Context, package: str, assignments: Sequence[str], static: bool) -> None:
    """Hold the methods of PACKAGE (a distribution, a plugin or a method id) to the contract.

    Inputs are made from the roles of a method and parameters are its defaults; NAME=VALUE gives others, as in
    `workbench run`: `workbench check family.mine epochs=2 data=digits[:50]`.
    """
    import workbench
    from workbench.cli.commands import parse_assignments
    from workbench.execution.inputs import check_requirements
    from workbench.testing import check_declarations, check_method

    bench = workbench.open(ctx.find_root().obj)
    given = parse_assignments(assignments)
    method_ids, broken = _methods_of(bench.host, package)
    findings = 0
    for reason in broken:
        findings += 1
        click.echo(f"{package}: {reason}")
    for method_id in method_ids:
        method, item = bench.host.method(method_id), bench.host.methods[method_id]
        reference = item if not isinstance(item, type) else None
        if static:
            found = check_declarations(method, reference)
        else:
            inputs = {name: value for name, value in given.items() if name in method.inputs}
            params = {name: value for name, value in given.items() if name not in method.inputs}
            _refuse_unknown(method, params)
            found = check_method(method, inputs=inputs, params=params, reference=reference, bench=bench)
        click.echo(f"{method_id}: {_outcome(found)}{_note(method, check_requirements)}")
        for finding in found:
            click.echo(f"  [{finding.rule}] {finding.problem}\n      {finding.mend}")
        findings += len(found)
    if findings:
        ctx.exit(1)


def _methods_of(host: Host, package: str) -> tuple[list[str], list[str]]:
    """Ids of the methods that are meant, and what is wrong with the plugin itself."""
    if package in host.methods:
        return [package], []
    word = package.lower().replace("_", "-")
    plugins = [
        status
        for status in host.plugins
        if word in {text.lower().replace("_", "-") for text in (status.name, status.distribution, status.module)}
    ]
    if not plugins:
        known = sorted({status.distribution or status.name for status in host.plugins} | {s.name for s in host.plugins})
        raise InputError("PACKAGE", expected=f"a method id or one of {', '.join(known)}", got=repr(package))
    if all(status.state == "blocked" for status in plugins):
        raise PluginError(f"{package}: {plugins[0].reason}")
    broken = [status.reason for status in plugins if status.reason and status.state != "blocked"]
    broken += [f"{name}: {why}" for status in plugins for name, why in status.rejected.items()]
    return [method_id for status in plugins for method_id in status.methods], broken


def _refuse_unknown(method: Any, params: dict[str, Any]) -> None:
    from workbench.execution.inputs import validate_params

    unknown = sorted(set(params) - set(method.Params.model_fields))
    if unknown:
        known = ", ".join([*method.inputs, *method.Params.model_fields])
        raise InputError(unknown[0], expected=f"a role or parameter of {method.id} ({known})", got="an unknown name")
    validate_params(method, params)


def _outcome(findings: Sequence[Finding]) -> str:
    return "keeps the contract" if not findings else f"{len(findings)} finding{'s' * (len(findings) > 1)}"


def _note(method: Any, check_requirements: Any) -> str:
    from workbench.errors import MissingDependencyError

    try:
        check_requirements(method)
    except MissingDependencyError as error:
        return f" (not run: {error})"
    return ""
