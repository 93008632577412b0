"""Parts that pages and notebook fragments share: metrics, tables, notes, and what is known about a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.render.info import RunInfo
from workbench.render.markup import Html, element, join
from workbench.render.plots import TablesPlot
from workbench.render.texts import bytes_text, cell_texts, number_text, plain_name
from workbench.report import Metric, Table

__all__ = [
    "arrays_table",
    "inputs_table",
    "metric_cards",
    "metric_text",
    "metrics_line",
    "metrics_table",
    "models_table",
    "notes_list",
    "parameters_table",
    "pill",
    "provenance_list",
    "report_table",
    "table_html",
    "tables_of",
]

_ARROWS = {"higher": "↑", "lower": "↓", "neutral": ""}
_STATUSES = {"running", "complete", "failed", "cancelled", "interrupted"}


def pill(status: str) -> Html:
    """The status of a run, in its colour."""
    return element("span", status, class_=f"wb-pill wb-{status}" if status in _STATUSES else "wb-pill")


def metric_text(metric: Metric) -> str:
    """Value and unit."""
    return " ".join(part for part in (number_text(metric.value), metric.unit) if part)


def _better(metric: Metric) -> str:
    return f"{_ARROWS[metric.direction]} {metric.direction} is better" if _ARROWS[metric.direction] else ""


def _interval(metric: Metric) -> str:
    if metric.interval is None:
        return ""
    low, high = (number_text(bound) for bound in metric.interval)
    return f"{100 * metric.level:.3g} % interval {low} to {high}"


def metric_cards(metrics: Sequence[Metric]) -> Html | None:
    """One card per metric: name, value, interval, which way is better, what it means."""
    if not metrics:
        return None
    return element("div", *[_metric_card(metric) for metric in metrics], class_="wb-metrics")


def _metric_card(metric: Metric) -> Html:
    more = [text for text in (_interval(metric), _better(metric), metric.description) if text]
    return element(
        "div",
        element("div", plain_name(metric.name), class_="wb-name"),
        element(
            "div",
            number_text(metric.value),
            element("span", metric.unit, class_="wb-unit") if metric.unit else None,
            class_="wb-value",
        ),
        *[element("div", text, class_="wb-more") for text in more],
        class_="wb-metric wb-card",
    )


def metrics_table(metrics: Sequence[Metric]) -> Html:
    """Every metric in a row; no columns without content."""
    rows = [
        (plain_name(m.name), number_text(m.value), m.unit, _interval(m), _better(m), m.description) for m in metrics
    ]
    columns = ("metric", "value", "unit", "interval", "direction", "what it is")
    kept = [at for at in range(len(columns)) if at < 2 or any(row[at] for row in rows)]
    return table_html(
        [columns[at] for at in kept], [[row[at] for at in kept] for row in rows], [at == 1 for at in kept]
    )


def metrics_line(metrics: Sequence[Metric], most: int = 4) -> Html:
    """The first metrics in one line: `accuracy 0.934 ↑ · size 2,600 kB`."""
    parts: list[object] = []
    for metric in metrics[:most]:
        arrow = f" {_ARROWS[metric.direction]}" if _ARROWS[metric.direction] else ""
        parts += [" · " if parts else "", plain_name(metric.name), " ", element("b", metric_text(metric)), arrow]
    if len(metrics) > most:
        parts.append(f" · {len(metrics) - most} more")
    return join(parts)


def table_html(columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[bool] = ()) -> Html:
    """A table of texts (escaped) and markup; `numeric` columns are aligned to the right."""
    numeric = list(numeric) or [False] * len(columns)
    # Written out for notebooks that are not trusted, and web sites: they drop style sheets and align to the right.
    looks = [("wb-number" if right else None, f"text-align: {'right' if right else 'left'}") for right in numeric]
    head = [
        element("th", name, class_=kind, style=side, scope="col")
        for name, (kind, side) in zip(columns, looks, strict=True)
    ]
    body = [
        row
        if isinstance(row, Html)
        else element(
            "tr",
            *[element("td", cell, class_=kind, style=side) for cell, (kind, side) in zip(row, looks, strict=True)],
        )
        for row in rows
    ]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    return element("div", table, class_="wb-scroll")


def report_table(table: Table, most: int = 1_000) -> Html:
    """A report's table with title and caption; points align, at most `most` rows."""
    shown = table.rows[:most]
    columns = [cell_texts([row[index] for row in shown]) for index in range(len(table.columns))]
    numeric = [_numeric([row[index] for row in shown]) for index in range(len(table.columns))]
    rows = list(zip(*columns, strict=True)) if columns else []
    dropped = len(table.rows) - len(shown)
    caption = " ".join(
        part for part in (table.caption, f"The first {most:,} of {len(table.rows):,} rows." if dropped else "") if part
    )
    return join(
        [
            element("h3", table.title),
            table_html([plain_name(name) for name in table.columns], rows, numeric),
            element("div", caption, class_="wb-caption wb-missing") if caption else None,
        ]
    )


def tables_of(plot: TablesPlot) -> Html:
    """What stands in for a view that cannot be drawn here: why, and its data."""
    tables = [element("div", table_html(table.columns, table.rows), class_="wb-data") for table in plot.tables]
    return join([element("p", plot.message, class_="wb-missing wb-caption"), *tables])


def _numeric(values: Sequence[Any]) -> bool:
    given = [value for value in values if value is not None]
    return bool(given) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given)


def notes_list(notes: Sequence[str]) -> Html:
    """Caveats as a list."""
    return element("ul", *[element("li", note) for note in notes], class_="wb-notes")


def parameters_table(info: RunInfo, names: Sequence[str] | None = None) -> Html:
    """Parameters (all by default); those that differ from their default are marked."""
    rows: list[Any] = []
    for name in info.params if names is None else names:
        value = info.params[name]
        text = element("code", _value_text(value))
        changed = info.changed(name)
        default = _value_text(info.default_params[name]) if changed else ""
        cells = [
            element("td", name),
            element("td", element("mark", text) if changed else text),
            element("td", element("code", default) if default else "", class_="wb-missing"),
        ]
        rows.append(element("tr", *cells, class_="wb-changed" if changed else None))
    return table_html(("parameter", "value", "default"), rows)


def _value_text(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.12g}"
    return value if isinstance(value, str) else repr(value)


def inputs_table(info: RunInfo) -> Html:
    """Role, how a person calls it, sizes and digest of every input."""
    rows = []
    for role, entry in info.inputs.items():
        sizes = entry.get("sizes") or {}
        text = ", ".join(f"{name} {_count(size)}" for name, size in sizes.items()) if isinstance(sizes, Mapping) else ""
        digest = element("code", str(entry["digest"])[:16]) if entry.get("digest") else "none"
        rows.append((role, entry.get("label") or "", text, digest))
    return table_html(("input", "what", "sizes", "digest"), rows)


def _count(size: Any) -> str:
    return f"{size:,}" if isinstance(size, int) else str(size)


def arrays_table(info: RunInfo) -> Html:
    """What the run stored; coordinates and the states of models are summed up, not listed."""
    rows = []
    for name, entry in info.arrays.items():
        if entry.get("coordinate") or name.partition("/")[0] in info.models:
            continue
        dims, shape = entry.get("dims") or (), entry.get("shape") or ()
        text = (
            " × ".join(f"{dim} {_count(size)}" for dim, size in zip(dims, shape, strict=True))
            if len(dims) == len(shape)
            else " × ".join(_count(size) for size in shape)
        )
        size = entry.get("bytes")
        about = " ".join(str(part) for part in (entry.get("description"), _unit(entry)) if part)
        shown = bytes_text(size) if isinstance(size, int) else "–"
        rows.append((element("code", name), text or "one number", entry.get("dtype") or "", shown, about))
    return table_html(("array", "dims", "dtype", "size", "what"), rows, (False, False, False, True, False))


def _unit(entry: Mapping[str, Any]) -> str:
    unit = entry.get("units") or entry.get("unit") or ""
    return f"[{unit}]" if unit else ""


def models_table(info: RunInfo) -> Html:
    """Models that can be loaded back: name, factory, input shape."""
    rows = [
        (
            element("code", name),
            entry.get("factory") or "state only",
            repr(entry.get("input_shape") or ""),
            _state(info, name),
        )
        for name, entry in info.models.items()
    ]
    return table_html(("model", "factory", "input shape", "size"), rows, (False, False, False, True))


def _state(info: RunInfo, name: str) -> str:
    sizes = [
        entry.get("bytes") for path, entry in info.arrays.items() if path.startswith((f"models/{name}/", f"{name}/"))
    ]
    whole = [size for size in sizes if isinstance(size, int)]
    return bytes_text(sum(whole)) if whole else "–"


def provenance_list(info: RunInfo) -> Html:
    """Paper, method version, key, machine, versions."""
    found = info.provenance
    pairs: list[tuple[str, object]] = []
    if info.paper:
        pairs.append(("paper", _citation(info.paper)))
        if info.paper.get("code"):
            pairs.append(("official code", str(info.paper["code"])))
    pairs.append(("method", f"{info.method} version {info.method_version}".removesuffix(" version ")))
    if info.method_code:
        pairs.append(("unpublished code", join(["of no release; digest ", element("code", info.method_code)])))
    pairs.append(("key", element("code", info.key) if info.key else "none: an input cannot be identified by content"))
    plugin = found.get("plugin")
    if isinstance(plugin, Mapping):
        pairs.append(("plugin", " ".join(str(plugin.get(part) or "") for part in ("name", "version"))))
    project = next((found[name] for name in ("project", "git", "commit") if found.get(name)), None)
    if isinstance(project, Mapping):
        changes = ", with uncommitted changes" if project.get("uncommitted_changes") else ""
        pairs.append(("commit", join([element("code", project.get("commit") or "unknown"), changes])))
    elif project:
        pairs.append(("commit", element("code", project)))
    pairs += [
        (plain_name(name), _device_text(found[name]))
        for name in ("platform", "device", "cuda", "processors", "threads", "program")
        if found.get(name)
    ]
    memory = found.get("memory")
    if isinstance(memory, Mapping):
        pairs += [(f"peak memory, {name}", bytes_text(v)) for name, v in memory.items() if isinstance(v, int)]
    versions = found.get("versions")
    if isinstance(versions, Mapping):
        pairs.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return element(
        "dl", *[join([element("dt", name), element("dd", value)]) for name, value in pairs], class_="wb-pairs"
    )


def _device_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{plain_name(str(name))} {item}" for name, item in value.items() if item not in (None, ""))
    return str(value)


def _citation(paper: Mapping[str, Any]) -> Html:
    arxiv = str(paper.get("arxiv") or "")
    parts: list[object] = [f"{paper.get('authors', '')} ({paper.get('year', '')}): {paper.get('title', '')}"]
    parts += [", ", paper["venue"]] if paper.get("venue") else []
    if arxiv:
        plain = re.fullmatch(r"(?:[a-z.-]+/)?[0-9.]+(?:v\d+)?", arxiv)
        address = f"https://arxiv.org/abs/{arxiv}"
        parts += [", ", element("a", f"arXiv:{arxiv}", href=address, rel="noreferrer") if plain else f"arXiv:{arxiv}"]
    return join(parts)
