"""`workbench lab` and `workbench serve`: notebooks, or just the table of runs, in a browser on this machine only."""

from __future__ import annotations

import os
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import click

from workbench.errors import MissingDependencyError

__all__ = ["lab_command", "serve_command"]

LOOPBACK = "127.0.0.1"


@click.command("lab")
@click.option(
    "--notebooks",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of notebooks.  [default: ./notebooks, else here]",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8888, show_default=True, help="0: any that is free.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENTS]")
@click.pass_context
def lab_command(
    ctx: click.Context, folder: Path | None, port: int, no_browser: bool, arguments: tuple[str, ...]
) -> None:
    """Start JupyterLab on a folder of notebooks with the store chosen.

    It listens on this machine only and asks for its token, as JupyterLab does by itself. `workbench.open()` in a notebook
    opens the store that --store or $WORKBENCH_STORE names, else the folder `store` here. ARGUMENTS go to JupyterLab.
    """
    if find_spec("jupyterlab") is None:
        raise MissingDependencyError("`workbench lab` needs JupyterLab: pip install jupyterlab")
    place = folder or (Path("notebooks") if Path("notebooks").is_dir() else Path())
    options = ["--no-browser"] if no_browser else []
    options += [f"--ServerApp.root_dir={place.resolve()}", f"--ServerApp.ip={LOOPBACK}", f"--ServerApp.port={port}"]
    os.environ["WORKBENCH_STORE"] = _store(ctx)
    sys.stdout.flush()
    # The server takes this process's place: it gets the terminal and its Ctrl-C.
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *options, *arguments])


@click.command("serve")
@click.option("--where", "query", metavar="QUERY", default="", help="What stands in the search box at first.")
@click.option("--view", metavar="NAME", default="", help="A saved view to begin with.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8866, show_default=True, help="Port on this machine."
)
@click.option("--dark", is_flag=True, help="A dark page.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENTS]")
@click.pass_context
def serve_command(
    ctx: click.Context, query: str, view: str, port: int, dark: bool, no_browser: bool, arguments: tuple[str, ...]
) -> None:
    """Show the table of runs as a page, read-only.

    It listens on this machine only, and its address holds a token. The page writes nothing to the store and runs no code but its
    own. ARGUMENTS go to voila (pip install 'vision-workbench[serve]').
    """
    if find_spec("voila") is None:
        raise MissingDependencyError("`workbench serve` needs voila: pip install 'vision-workbench[serve]'")
    from workbench.panels.serving import QUERY, VIEW

    static = resources.files("workbench.panels").joinpath("static")
    # Its voila.json keeps the page from loading anything from elsewhere; voila's own page would ask for icons.
    configured = [str(static.joinpath("voila")), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    os.environ |= {"WORKBENCH_STORE": _store(ctx), QUERY: query, VIEW: view}
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, configured))
    options = ["--no-browser"] if no_browser else []
    options += [f"--Voila.ip={LOOPBACK}", f"--Voila.port={port}", "--Voila.auto_token=True"]
    options += ["--VoilaConfiguration.theme=dark"] if dark else []
    sys.stdout.flush()
    page = str(static.joinpath("serve.ipynb"))
    os.execv(sys.executable, [sys.executable, "-m", "voila", *options, *arguments, page])


def _store(ctx: click.Context) -> str:
    """Where the store is, in a way that holds in another working folder too."""
    given = str(ctx.find_root().obj or os.environ.get("WORKBENCH_STORE") or "store")
    return given if "://" in given else str(Path(given).resolve())
