"""The `workbench` command: everything a shell or a job script needs of the workbench.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a run failed, 2 bad usage or input, 3 a plugin
or package is missing, 4 a method declined these inputs, 5 the store, 130 cancelled.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from workbench._version import __version__
from workbench.cli.commands import COMMANDS
from workbench.errors import WorkbenchError

__all__ = ["main"]


class _Group(click.Group):
    """Our commands, then those that plugins add (asked only when one is looked up or help is printed)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *sorted(set(_plugin_commands()) - set(self.commands))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self.commands.get(cmd_name) or _plugin_commands().get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if close:
                raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None
            raise


def _plugin_commands() -> dict[str, click.Command]:
    from workbench.host import Host

    return {str(command.name): command for command in Host().commands()}


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="workbench")
@click.option(
    "--store",
    metavar="URL",
    envvar="WORKBENCH_STORE",
    help="Store to use.  [default: $WORKBENCH_STORE or ./store]",
)
@click.pass_context
def cli(ctx: click.Context, store: str | None) -> None:
    """Methods from papers, one interface, one store of results.

    Start with `workbench demo`, or `workbench list` and `workbench describe METHOD`.
    """
    ctx.obj = store


for _command in COMMANDS:
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (the console script exits with it)."""
    stdout = sys.stdout
    try:
        result = cli.main(
            args=None if arguments is None else list(arguments), prog_name="workbench", standalone_mode=False
        )
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("cancelled", err=True)
        return 130
    except WorkbenchError as error:
        if os.environ.get("WORKBENCH_DEBUG"):
            raise
        from workbench.cli.printing import harmless

        click.echo(f"error: {harmless(str(error))}", err=True)
        return error.exit_code
    except SystemExit as stop:
        # `workbench runs | head`: whoever read us has what they wanted. Of the two that turn a broken pipe into an exit,
        # click swaps the stream for a silent one, and rich keeps the error as the context.
        if sys.stdout is stdout and not isinstance(stop.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return 0
    return result if isinstance(result, int) else 0
