"""Commands for studies: `study run`, `study report`, `study status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.study import StudyResult

__all__ = ["study_group"]

_subjects = click.option(
    "--subject", "subjects", metavar="NAME=VALUE", multiple=True, help="A subject of the study (may be repeated)."
)


@click.group("study")
def study_group() -> None:
    """Studies: many methods on shared subjects, one report.

    FILE is YAML (see the README), or the name of a study that comes with the workbench: `ship-small`.
    """


@study_group.command("run")
@click.argument("file")
@_subjects
@click.option("--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers compute, e.g. tcp://host:8786.")
@click.option("--workers", type=click.IntRange(min=1), help="Start so many worker processes on this machine.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the report there.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.pass_context
def run_command(
    ctx: click.Context,
    file: str,
    subjects: Sequence[str],
    scheduler: str | None,
    workers: int | None,
    output: Path | None,
    quiet: bool,
) -> None:
    """Compute what of the study in FILE is not in the store, and say what was found."""
    import workbench
    from workbench.cli.cluster_commands import _client
    from workbench.study import run_study

    if scheduler is not None and workers is not None:
        raise InputError("--workers", expected="either --scheduler or --workers", got="both")
    bench = workbench.open(ctx.find_root().obj)
    with _client(scheduler, workers) as client:
        at = bench if client is None else bench.on(client)
        result = run_study(at, file, subjects=_given(subjects), progress=not quiet)
    _print_status(result)
    if result.runs and any(result.runs.values()):
        _print_found(result)
        if output is not None:
            click.echo(f"report: {result.report().save(output)}")
        else:
            click.echo(f"Report: workbench study report {file} -o report.html", err=True)
    if result.failures:
        ctx.exit(1)


@study_group.command("status")
@click.argument("file")
@_subjects
@click.pass_context
def status_command(ctx: click.Context, file: str, subjects: Sequence[str]) -> None:
    """What of the study in FILE is in the store, and what is missing; computes nothing."""
    _print_status(_found(ctx, file, subjects), every=True)


@study_group.command("report")
@click.argument("file")
@_subjects
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A page (.html), .csv or .tex.")
@click.option("--runs", is_flag=True, help="With a page: also write the reports of all runs beside it, and link them.")
@click.pass_context
def report_command(ctx: click.Context, file: str, subjects: Sequence[str], output: Path | None, runs: bool) -> None:
    """The answer of the study in FILE, from the runs that are in the store; computes nothing."""
    result = _found(ctx, file, subjects)
    if output is None:
        _print_found(result)
        return
    kind = output.suffix.lower()
    if kind not in (".html", ".csv", ".tex"):
        raise InputError("--output", expected="a name that ends in .html, .csv or .tex", got=repr(str(output)))
    report = result.report()
    output.parent.mkdir(parents=True, exist_ok=True)
    if kind == ".html":
        report.save(output, runs=runs)
    elif kind == ".csv":
        report.csv(output)
    else:
        report.latex(output)
    click.echo(f"report: {output}")


def _found(ctx: click.Context, file: str, subjects: Sequence[str]) -> StudyResult:
    import workbench
    from workbench.study import find_study

    return find_study(workbench.open(ctx.find_root().obj), file, subjects=_given(subjects))


def _given(subjects: Sequence[str]) -> Mapping[str, Any]:
    pairs = [text.partition("=") for text in subjects]
    for name, sign, value in pairs:
        if not (name and sign and value):
            raise InputError("--subject", expected="NAME=VALUE", got=repr(name + sign + value))
    return {name: value for name, _, value in pairs}


def _print_status(result: StudyResult, *, every: bool = False) -> None:
    from workbench.cli.printing import harmless

    counts = ", ".join(f"{count} {status}" for status, count in result.counts.items())
    click.echo(harmless(f"study {result.name}: {counts}"))
    if every:
        for branch in result.plan.branches:
            outcome = result.outcomes[branch.id]
            click.echo(harmless(f"  {outcome.status:<11} {branch.label}  {outcome.run_id}".rstrip()))
    for branch_label, reason in result.failures.items() if not every else ():
        click.echo(harmless(f"  {branch_label}: {reason}"))


def _print_found(result: StudyResult) -> None:
    from rich import box
    from rich.table import Table

    from workbench.cli.printing import ARROWS, console, number, printable

    matrix = result.matrix
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant", overflow="fold")
    for column in matrix.columns:
        table.add_column(printable(f"{column.label} {ARROWS.get(column.direction, '')}".strip()), justify="right")
    for at, row in enumerate(matrix.rows):
        cells = []
        for place in range(len(matrix.columns)):
            value = matrix.cells[at, place].value
            mark = {True: " +", False: " -", None: "  "}[matrix.better(at, place)]
            cells.append(printable("" if value != value else number(value) + mark))
        table.add_row(printable(row.label), *cells)
    out = console()
    out.print(table)
    out.print(printable(f"+ better, - worse than {matrix.baseline}; the report says by which test."))
    out.print(printable(result.report().conclusions))
