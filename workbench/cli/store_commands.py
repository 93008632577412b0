"""`workbench store ...`: take stock of a store, check it, clean it, copy it, publish it; and `workbench annotate`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from workbench.errors import InputError, StoreError

if TYPE_CHECKING:
    from workbench.store import Store

__all__ = ["annotate_command", "store_group", "studies_command"]

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def _store(ctx: click.Context) -> Store:
    import workbench

    return workbench.open(ctx.find_root().obj).store


def _plain(text: str) -> str:
    """Text from a store as a terminal may show it: control characters spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _seconds(ctx: click.Context, param: click.Parameter, value: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value.strip())
    if match is None:
        raise InputError("--older-than", expected="a time such as 12h, 7d or 4w", got=repr(value))
    return float(match[1]) * UNITS[match[2]]


@click.group("store")
def store_group() -> None:
    """Take stock of the store, check it, clean it up, copy it, publish it."""


@store_group.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def info_command(ctx: click.Context, as_json: bool) -> None:
    """Say what lies in the store: runs by status, user and method, and their size."""
    from workbench.store.maintenance import summarize

    found = summarize(_store(ctx))
    if as_json:
        click.echo(json.dumps(vars(found), indent=1))
        return
    click.echo(f"{found.url}: {found.runs} runs, {_size(found.bytes)} of arrays before compression")
    for title, table in (("status", found.by_status), ("user", found.by_user), ("method", found.by_method)):
        parts = [f"{_plain(name)} {count}" for name, count in sorted(table.items(), key=lambda item: -item[1])]
        if parts:
            click.echo(f"  by {title}: {', '.join(parts)}")
    for folder in found.unreadable:
        click.echo(f"  no readable run: {_plain(folder)} (see `workbench store verify`)")


@store_group.command("verify")
@click.option("--where", default="", help="Only runs that meet this query.")
@click.pass_context
def verify_command(ctx: click.Context, where: str) -> None:
    """Check every checksum of every run. Exit code 5 if anything is damaged, missing or foreign."""
    store = _store(ctx)
    count = 0
    for problem in store.verify(where):
        count += 1
        click.echo(_plain(str(problem)))
    if count:
        raise StoreError(f"{count} {'problem' if count == 1 else 'problems'} in {store.url}")
    click.echo(f"{store.url}: {store.count(where)} runs, nothing damaged, missing or foreign")


@store_group.command("gc")
@click.option("--older-than", default="7d", show_default=True, callback=_seconds, help="Age, e.g. 12h, 7d, 4w.")
@click.option("--delete", is_flag=True, help="Remove what is listed; without it nothing is touched.")
@click.pass_context
def gc_command(ctx: click.Context, older_than: float, delete: bool) -> None:
    """List (or with --delete remove) archived, failed, cancelled and interrupted runs, and leftovers.

    Runs that are alive, pinned, or an input of a run that stays are kept.
    """
    from workbench.store.maintenance import find_garbage, remove_garbage

    store = _store(ctx)
    found, kept = list(find_garbage(store, older_than)), []
    for item in found:
        try:
            if delete:
                remove_garbage(store, item)
        except StoreError as error:
            kept.append(item)
            click.echo(_plain(str(error)), err=True)
            continue
        word = "removed" if delete else "would remove"
        click.echo(f"{word} {_plain(item.what)} ({item.reason}, {_size(item.bytes)})")
    total = _size(sum(item.bytes for item in found if item not in kept))
    tail = "" if delete or not found else "; remove them with --delete"
    click.echo(f"{len(found) - len(kept)} items, {total}{tail}")
    if kept:
        raise StoreError(f"{len(kept)} of {len(found)} items could not be removed")


@store_group.command("copy")
@click.argument("target")
@click.option("--where", default="", help="Only runs that meet this query.")
@click.option("--with-inputs", is_flag=True, help="Also the runs they were made from.")
@click.pass_context
def copy_command(ctx: click.Context, target: str, where: str, with_inputs: bool) -> None:
    """Copy runs to the store TARGET (a folder or URL). Run it again to go on after an interruption."""
    from workbench.store import Store
    from workbench.store.copying import Copied, copy_runs

    def tell(item: Copied) -> None:
        click.echo(f"{item.run}: {item.what}" + (f" ({_size(item.bytes)})" if item.bytes else ""))

    done = copy_runs(_store(ctx), Store(target), where, with_inputs=with_inputs, progress=tell)
    copied = sum(item.what == "copied" for item in done)
    click.echo(f"{copied} of {len(done)} runs copied and verified, {_size(sum(item.bytes for item in done))}")


@store_group.command("index")
@click.option("--publish", is_flag=True, help="Write the snapshot with which any web server can hand out the store.")
@click.option("--keys", is_flag=True, help="Let runs of a store of before be found by their keys without the index.")
@click.pass_context
def index_command(ctx: click.Context, publish: bool, keys: bool) -> None:
    """Bring this user's index up to date and say where it lies; with --publish write a snapshot into the store."""
    store = _store(ctx)
    if keys:
        from workbench.store.keys import mark_all

        click.echo(f"{mark_all(store)} runs of {store.url} are found by their keys from now on")
    if publish:
        from workbench.store.publishing import publish as write_snapshot

        count = write_snapshot(store)
        click.echo(f"published {count} runs of {store.url}; open it elsewhere with --store https://...")
        return
    click.echo(f"{store.count()} runs of {store.url} in {store.index.path}")


@click.command("studies")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def studies_command(ctx: click.Context, as_json: bool) -> None:
    """List studies: runs by status, last activity. A study above others counts their runs too."""
    import workbench

    found = workbench.open(ctx.find_root().obj).studies()
    if as_json:
        click.echo(json.dumps([vars(study) for study in found], indent=1))
    else:
        click.echo(_plain(repr(found)))


@click.command("annotate")
@click.argument("run")
@click.option("--tag", multiple=True, help="Add a tag (may be repeated).")
@click.option("--untag", multiple=True, help="Remove a tag (may be repeated).")
@click.option("--note", multiple=True, help="Add a note.")
@click.option("--pin/--unpin", default=None, help="Keep it from being cleaned up.")
@click.option("--archive/--unarchive", default=None, help="Mark it as no longer needed.")
@click.option("--join", multiple=True, help="Make it part of a study, e.g. ship/resnet20 (may be repeated).")
@click.option("--leave", multiple=True, help="Take it out of a study it joined (may be repeated).")
@click.pass_context
def annotate_command(
    ctx: click.Context,
    run: str,
    tag: Sequence[str],
    untag: Sequence[str],
    note: Sequence[str],
    pin: bool | None,
    archive: bool | None,
    join: Sequence[str],
    leave: Sequence[str],
) -> None:
    """Tag RUN, add notes, pin or archive it, add it to studies; without options show what was said about it."""
    store = _store(ctx)
    found = store.run(run)
    said = store.annotations.of(found.id)
    said.join(*join)
    said.leave(*leave)
    said.tag(*tag)
    said.untag(*untag)
    for text in note:
        said.note(text)
    if pin is not None:
        (said.pin if pin else said.unpin)()
    if archive is not None:
        (said.archive if archive else said.unarchive)()
    click.echo(f"tags: {', '.join(map(_plain, said.tags)) or 'none'}")
    studies = dict.fromkeys(filter(None, (found.record.study, *said.studies)))
    click.echo(f"studies: {', '.join(map(_plain, studies)) or 'none'}")
    marks = [name for name, holds in (("pinned", said.pinned), ("archived", said.archived)) if holds]
    click.echo(f"marks: {', '.join(marks) or 'none'}")
    for item in said.notes:
        click.echo(f"{item.time[:16].replace('T', ' ')} {_plain(item.user)}: {_plain(item.text)}")
