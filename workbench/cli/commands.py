"""The commands of the command line, each a thin layer over `workbench.open` and `workbench.description`."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.cluster_commands import cluster_command, sweep_command
from workbench.cli.lab_commands import lab_command, serve_command
from workbench.cli.plugin_commands import check_command, new_plugin_command
from workbench.cli.store_commands import annotate_command, store_group, studies_command
from workbench.cli.study_commands import study_group
from workbench.errors import InputError, StoreError
from workbench.record import check_study

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from workbench.bench import Workbench

__all__ = ["COMMANDS", "parse_assignments"]


def _bench(ctx: click.Context) -> Workbench:
    import workbench

    return workbench.open(ctx.find_root().obj)


# ------------------------------------------------------------------------------------------------- completion of words


def _complete_methods(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from workbench.host import Host

    methods = Host().methods
    return [CompletionItem(name, help=item.title) for name, item in methods.items() if name.startswith(incomplete)]


def _complete_runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    runs = _bench(ctx).runs(limit=200)
    return [CompletionItem(run.id, help=run.status) for run in runs if run.id.startswith(incomplete)]


# -------------------------------------------------------------------------------------------------------------- methods


@click.command("list")
@click.option("--family", help="Only this family, e.g. quantization.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(family: str | None, as_json: bool) -> None:
    """List the methods that can be run."""
    from workbench.cli.printing import print_methods
    from workbench.host import Host

    host = Host()
    methods = {name: item for name, item in host.methods.items() if family in (None, name.partition(".")[0])}
    if family is not None and not methods:
        families = sorted({name.partition(".")[0] for name in host.methods})
        raise InputError("--family", expected=f"one of {', '.join(families)}", got=repr(family))
    if as_json:
        click.echo(json.dumps([{"id": name, "title": item.title} for name, item in methods.items()], indent=1))
        return
    print_methods(methods, [status for status in host.plugins if status.state == "failed"])


@click.command("plugins")
def plugins_command() -> None:
    """List plugins: what they offer, and why one is not available."""
    from workbench.cli.printing import print_plugins
    from workbench.host import Host

    print_plugins(Host().plugins)


@click.command("describe")
@click.argument("method", shell_complete=_complete_methods)
@click.option("--html", "as_html", is_flag=True, help="Write a page, with the figures of the newest run of the method.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File of the page.  [default: METHOD.html]"
)
@click.pass_context
def describe_command(ctx: click.Context, method: str, as_html: bool, output: Path | None) -> None:
    """Explain METHOD: what it tells, its paper, inputs, parameters and outputs."""
    from workbench.cli.printing import print_description
    from workbench.description import describe_method
    from workbench.host import Host

    if not as_html and output is None:
        print_description(describe_method(Host().method(method)))
        return
    click.echo(_bench(ctx).describe(method).save(output or Path(f"{method}.html")))


# ----------------------------------------------------------------------------------------------------------------- runs


@click.command("run")
@click.argument("method", shell_complete=_complete_methods)
@click.argument("assignments", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("-m", "--model", help="Model: a name, NAME@WEIGHTS or run:ID.")
@click.option("-d", "--data", help="Data: a name, a path, run:ID or run:ID[variable].")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the run.")
@click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: the best at hand]")
@click.option("--precision", default="float32", show_default=True, help="float32, float16, bfloat16 or float64.")
@click.option("--force", is_flag=True, help="Compute even if the store has this run.")
@click.option("--study", help="What the run is for, a path such as ship/resnet20.")
@click.option("--quiet", is_flag=True, help="Print the run's id only.")
@click.pass_context
def run_command(
    ctx: click.Context,
    method: str,
    assignments: Sequence[str],
    model: str | None,
    data: str | None,
    seed: int,
    device: str | None,
    precision: str,
    force: bool,
    study: str | None,
    quiet: bool,
) -> None:
    """Run METHOD and store the result, or take it from the store if the same was run before.

    Parameters and further inputs are given as NAME=VALUE: `probes=50 bits=2,4,8 test=digits[:200]`.
    """
    given = parse_assignments(assignments)
    for name, value in (("model", model), ("data", data)):
        if value is not None:
            if name in given:
                raise InputError(name, expected="one value", got=f"--{name} and {name}=")
            given[name] = value
    bench = _bench(ctx)
    run = bench.run(
        method,
        seed=seed,
        device=device,
        precision=precision,
        force=force,
        study=study,
        progress=not quiet,
        **_without_reserved(given),
    )
    if quiet:
        click.echo(run.id)
        return
    from workbench.cli.printing import print_result

    print_result(run)


RESERVED = ("seed", "device", "precision", "force", "wait", "study", "progress", "cancel")


def _without_reserved(given: dict[str, Any]) -> dict[str, Any]:
    for name in RESERVED:
        if name in given:
            raise InputError(name, expected=f"the option --{name}", got=f"{name}={given[name]}")
    return given


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` words as keyword arguments.

    A value is a JSON or Python literal where it can be read as one, a list where it has commas (`2,4,8`), else text.

    Raises:
        InputError: a word without `=`, or a name given twice.
    """
    given: dict[str, Any] = {}
    for word in assignments:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise InputError("argument", expected="NAME=VALUE", got=repr(word))
        if name in given:
            raise InputError(name, expected="one value", got="two")
        given[name] = _value(text)
    return given


def _value(text: str) -> Any:
    lowered = text.strip().lower()
    if lowered in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(lowered)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if "," in text and not set("()[]{}@/:") & set(text):
            return [_value(part) for part in text.split(",") if part.strip()]
        return text
    return list(value) if isinstance(value, tuple) else value


@click.command("runs")
@click.option("--where", default="", help="Query, e.g. 'family = quantization and accuracy > 0.9 and user = me'.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--study", help="Only runs of this study and of those below it.")
@click.option("--sort", default="", help="Column, metric or params.NAME; with - from large to small: '-accuracy'.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def runs_command(ctx: click.Context, where: str, limit: int, study: str | None, sort: str, as_json: bool) -> None:
    """List runs, newest first or as sorted."""
    from workbench.cli.printing import print_runs

    if study is not None:
        of_study = f'study = "{check_study(study)}"'
        where = f"{of_study} and ({where})" if where.strip() else of_study

    bench = _bench(ctx)
    runs = bench.runs(where, order=sort, limit=limit)
    if as_json:
        rows = [{"id": r.id, "method": r.method, "status": r.status, "metrics": r.metrics} for r in runs]
        click.echo(json.dumps(rows, indent=1))
        return
    print_runs(runs, total=bench.store.count(where), store=bench.store.url, filtered=bool(where.strip()))


@click.command("show")
@click.argument("run", shell_complete=_complete_runs)
@click.option("--json", "as_json", is_flag=True, help="Print the whole run record as JSON.")
@click.pass_context
def show_command(ctx: click.Context, run: str, as_json: bool) -> None:
    """Show RUN (an id, any unambiguous part of one, or `latest`): status, metrics, inputs, arrays, traceback."""
    from workbench.cli.printing import print_run

    found = _bench(ctx)[run]
    if as_json:
        click.echo(json.dumps(found.record.to_json(), indent=1))
        return
    print_run(found)


@click.command("report")
@click.argument("run", shell_complete=_complete_runs)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="HTML file to write.")
@click.pass_context
def report_command(ctx: click.Context, run: str, output: Path) -> None:
    """Write the report of RUN as one self-contained HTML page."""
    report = _bench(ctx)[run].report()
    try:
        report.save(output)
    except OSError as error:
        raise StoreError(f"{output} cannot be written: {error.strerror or error}") from error
    click.echo(str(output))


# ----------------------------------------------------------------------------------------------------------------- other


@click.command("demo")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("reports"),
    show_default=True,
    help="Folder for the HTML pages.",
)
@click.option("--force", is_flag=True, help="Compute everything again.")
@click.pass_context
def demo_command(ctx: click.Context, output: Path, force: bool) -> None:
    """Train a small network, run one method of every family on it, and write one page that shows what was found."""
    from workbench.demo import run_demo

    run_demo(_bench(ctx), output, force=force)


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL: `eval "$(workbench completion bash)"`."""
    from click.shell_completion import get_completion_class

    cls = get_completion_class(shell)
    assert cls is not None
    click.echo(cls(ctx.find_root().command, {}, "workbench", "_WORKBENCH_COMPLETE").source())


COMMANDS = (
    demo_command,
    list_command,
    describe_command,
    run_command,
    runs_command,
    show_command,
    report_command,
    studies_command,
    sweep_command,
    study_group,
    cluster_command,
    lab_command,
    serve_command,
    annotate_command,
    store_group,
    plugins_command,
    new_plugin_command,
    check_command,
    completion_command,
)
