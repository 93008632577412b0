"""What the commands print: tables for people, with every text from a store taken literally (never as markup)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from workbench.record import report_number

if TYPE_CHECKING:
    from workbench.description import MethodDescription
    from workbench.host import PluginStatus
    from workbench.runs import Run

__all__ = [
    "console",
    "harmless",
    "number",
    "print_description",
    "print_methods",
    "print_plugins",
    "print_result",
    "print_run",
    "print_runs",
    "printable",
]

ARROWS = {"higher": "↑", "lower": "↓"}
STYLES = {"complete": "green", "failed": "red", "cancelled": "yellow", "interrupted": "yellow", "running": "cyan"}


def console() -> Console:
    """Standard output; wide enough for tables where it is not a terminal."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=max(plain.width, 140))


def printable(text: object) -> Text:
    """Text of unknown origin for a terminal: no markup, no control characters, no reordering marks."""
    return Text(harmless(str(text)).replace("\n", " ").replace("\t", " "))


def harmless(text: str) -> str:
    """Text without control characters (terminals obey those) and reordering marks; lines stay lines."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def number(value: float | str | None) -> str:
    """Four significant digits; NaN and the infinities also as a report spells them."""
    return "" if value is None else f"{report_number(value):.4g}"


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: object) -> None:
    table.add_row(*(cell if isinstance(cell, Text) else printable(cell) for cell in cells))


def _fields(pairs: Iterable[tuple[str, object]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in pairs:
        if value not in ("", None):
            table.add_row(Text(name, style="bold"), value if isinstance(value, Text) else printable(value))
    return table


# -------------------------------------------------------------------------------------------------------------- methods


def print_methods(methods: Mapping[str, Any], failed: Sequence[PluginStatus]) -> None:
    """Methods by id; plugins that failed are named below."""
    out = console()
    if not methods:
        out.print("No methods. Install a plugin, or see `workbench plugins` for what is wrong.")
    else:
        table = _table("method", "what it tells")
        for name, item in methods.items():
            _add(table, Text(name, style="bold"), item.title)
        out.print(table)
        out.print(Text("Details: workbench describe METHOD", style="dim"))
    for status in failed:
        out.print(Text.assemble(("plugin failed: ", "red"), printable(f"{status.name}: {status.reason}")))


def print_plugins(statuses: Sequence[PluginStatus]) -> None:
    """Plugins with state, methods and reasons."""
    out = console()
    table = _table("plugin", "package", "version", "state", "methods", "reason")
    for status in statuses:
        style = {"loaded": "green", "failed": "red"}.get(status.state, "yellow")
        rejected = [f"{name}: {why}" for name, why in status.rejected.items()]
        reason = "; ".join(part for part in (status.reason, *rejected) if part)
        _add(
            table,
            status.name,
            status.distribution,
            status.version,
            Text(status.state, style=style),
            ", ".join(status.methods),
            reason,
        )
    out.print(table)
    for status in statuses:
        if status.traceback:
            out.print(Text(f"{status.name}:", style="bold"))
            out.print(Text(harmless(status.traceback), style="dim"))


def print_description(description: MethodDescription) -> None:
    """One method, whole."""
    out = console()
    out.print(Text.assemble((description.id, "bold"), f"  version {description.version}"))
    out.print(printable(description.title))
    out.print()
    out.print(Padding(Text(harmless(description.text)), (0, 0, 1, 2)))
    out.print(_fields((("paper", description.paper), ("official code", description.code))))
    roles = _table("input", "kind", "takes", "description", title="inputs")
    for role in description.roles:
        _add(roles, role.name + (" (optional)" if role.optional else ""), role.kind, role.takes, role.description)
    parameters = _table("parameter", "type", "range", "default", "description", title="parameters")
    for item in description.parameters:
        _add(
            parameters,
            item.name,
            item.type,
            item.range,
            "required" if item.required else item.default,
            item.description,
        )
    outputs = _table("array", "dims", "dtype", "description", title="outputs")
    for name, dims, dtype, text in description.outputs:
        _add(outputs, name, dims, dtype, text)
    out.print(Group(roles, parameters, outputs))
    for package, extra in description.requires.items():
        out.print(printable(f"needs the package {package}: pip install 'vision-workbench[{extra}]'"))
    out.print(_fields((("run it", description.example + "  [NAME=VALUE ...]"),)))


# ----------------------------------------------------------------------------------------------------------------- runs


def _metrics(metrics: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("metric", "value", "95 % interval", "unit", "description")
    for metric in metrics:
        interval = metric.get("interval")
        _add(
            table,
            f"{metric['name']} {ARROWS.get(metric.get('direction', ''), '')}".strip(),
            number(metric["value"]),
            f"{number(interval[0])} to {number(interval[1])}" if interval else "",
            metric.get("unit", ""),
            metric.get("description", ""),
        )
    return table


def print_result(run: Run) -> None:
    """What `workbench run` says at the end."""
    out = console()
    where = "taken from the store" if run.served else f"{run.record.seconds:.1f} s on {run.record.device}"
    out.print(Text.assemble(("run ", "dim"), (run.id, "bold"), f"  {run.method}  {where}"))
    report = run.record.report or {}
    out.print(printable(report.get("summary", "")))
    if report.get("metrics"):
        out.print(_metrics(report["metrics"]))
    out.print(Text(f"Report: workbench report {run.id} -o report.html", style="dim"))


def print_runs(runs: Sequence[Run], *, total: int, store: str, filtered: bool) -> None:
    """A table of runs."""
    out = console()
    if not runs:
        out.print(f"No runs meet the query in {store}." if filtered else f"No runs yet in {store}. Try: workbench demo")
        return
    table = _table("run", "status", "method", "started", "by", "seconds", "metrics")
    for run in runs:
        status = run.status
        metrics = "  ".join(f"{name} {number(value)}" for name, value in list(run.metrics.items())[:3])
        seconds = f"{run.record.seconds:.1f}" if run.record.finished else ""
        started = run.record.started[:16].replace("T", " ")
        _add(table, run.id, Text(status, style=STYLES[status]), run.method, started, run.record.user, seconds, metrics)
    out.print(table)
    if total > len(runs):
        out.print(Text(f"{len(runs)} of {total} runs; --limit shows more.", style="dim"))


def print_run(run: Run) -> None:
    """One run, whole."""
    out = console()
    record, status = run.record, run.status
    out.print(Text.assemble(printable(run.id), "  ", (status, STYLES[status]), style="bold"))
    facts = [
        ("method", f"{record.method} (version {record.method_version}): {record.method_title}"),
        ("paper", (record.paper or {}).get("citation", "")),
        ("started", f"{record.started} by {record.user} on {record.host}"),
        ("duration", f"{record.seconds:.2f} s on {record.device}" if record.finished else ""),
        ("seed", f"{record.seed}, precision {record.precision}"),
        ("study", ", ".join(run.studies)),
        ("key", record.key or "none: an input could not be identified"),
        ("code", "unpublished code" if record.method_code else ""),
    ]
    out.print(_fields(facts))
    if record.inputs:
        table = _table("input", "kind", "label", "sizes")
        for role, entry in record.inputs.items():
            sizes = ", ".join(f"{name} {size}" for name, size in entry.get("sizes", {}).items())
            _add(table, role, entry.get("kind", ""), entry.get("label", ""), sizes)
        out.print(table)
    if record.params:
        table = _table("parameter", "value", "default")
        for name, value in record.params.items():
            default = record.default_params.get(name)
            _add(table, name, value, "" if value == default else default)
        out.print(table)
    report = record.report or {}
    if report:
        out.print(printable(report.get("summary", "")))
        out.print(_metrics(report.get("metrics", ())))
    if run.arrays:
        table = _table("array", "dims", "dtype", "size", "description")
        for name in run.arrays:
            entry = record.arrays[name]
            dims = ", ".join(f"{dim} {size}" for dim, size in zip(entry["dims"], entry["shape"], strict=True))
            _add(table, name, dims, entry["dtype"], _bytes(entry["bytes"]), entry.get("description", ""))
        out.print(table)
    for warning in record.provenance.get("warnings", ()):
        out.print(Text.assemble(("warning: ", "yellow"), printable(warning)))
    if run.traceback:
        out.print(Text(harmless(run.traceback), style="red"))


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
