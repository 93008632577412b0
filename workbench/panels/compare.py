"""Runs side by side: metrics with differences, what differs in parameters, curves on top of each other, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.comparison import differing
from workbench.errors import WorkbenchError
from workbench.panels import style
from workbench.panels.panel import Panel
from workbench.panels.parts import curves_view, fragment, series_curves, sheet, tabs
from workbench.render.html import notebook_fragment
from workbench.render.markup import Html, element, visible
from workbench.render.sections import pill, table_html
from workbench.render.texts import number_text, plain_name

if TYPE_CHECKING:
    import ipywidgets
    import xarray as xr

    from workbench.runs import Run

__all__ = ["ComparePanel", "Difference", "Found", "Measured", "by_run", "by_seed", "difference", "labels"]

MOST_CURVES = 24
"""Runs whose curves and pictures are drawn; metrics are shown for all."""


@dataclass(frozen=True)
class Found:
    """A metric of one run, or its mean over seeds."""

    value: float
    low: float = math.nan
    high: float = math.nan
    count: int = 1


@dataclass(frozen=True)
class Measured:
    """One metric: what it is, and what each column found (None where it was not measured)."""

    name: str
    unit: str
    direction: str
    found: tuple[Found | None, ...]


@dataclass(frozen=True)
class Difference:
    """How far a column is from the baseline. `verdict`: better, worse, other (no direction), same, unclear (intervals meet)."""

    value: float
    verdict: str


def difference(metric: Measured, column: int, baseline: int) -> Difference | None:
    """Column against baseline; None where one of them has no value, and for the baseline itself."""
    one, base = metric.found[column], metric.found[baseline]
    if column == baseline or one is None or base is None or math.isnan(one.value) or math.isnan(base.value):
        return None
    gap = one.value - base.value
    if gap == 0 or math.isnan(gap):
        return Difference(gap, "same")
    if metric.direction not in ("higher", "lower"):
        return Difference(gap, "other")
    if one.low <= base.high and base.low <= one.high:  # False where one of them has no interval
        return Difference(gap, "unclear")
    return Difference(gap, "better" if (gap > 0) == (metric.direction == "higher") else "worse")


# ------------------------------------------------------------------------------------------------------------- contents


def labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: what it does not share with the others; ids where that is nothing."""
    records = [run.record for run in runs]
    columns: dict[str, list[Any]] = {}
    if len({record.method for record in records}) > 1:
        columns["method"] = [record.method for record in records]
    columns |= {name.removeprefix("params."): values for name, values in differing(records).items()}
    if len({record.seed for record in records}) > 1:
        columns["seed"] = [record.seed for record in records]
    names = []
    for index, record in enumerate(records):
        parts = [
            str(values[index]) if name == "method" else f"{name} {visible(values[index], 40)}"
            for name, values in columns.items()
            if values[index] != ""
        ]
        names.append(visible(", ".join(parts[:4]), 90) or record.id)
    # Equal names are told apart by the end of the id, which is random.
    return [f"{n} ({runs[i].id[-8:]})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def by_run(compared: xr.Dataset) -> list[Measured]:
    """Metrics of `bench.compare(runs)`, one column per run."""
    return _measured(compared, "run", lambda name, index: 1)


def by_seed(aggregated: xr.Dataset) -> list[Measured]:
    """Metrics of `bench.aggregate(runs)`, one column per group."""
    return _measured(aggregated, "group", lambda name, index: int(aggregated[f"{name}_n"].values[index]))


def _measured(dataset: xr.Dataset, dim: str, count: Callable[[str, int], int]) -> list[Measured]:
    helpers = ("_lower", "_upper", "_std", "_n")
    names = [
        str(name)
        for name, array in dataset.data_vars.items()
        if array.dims == (dim,)
        and not any(str(name).endswith(end) and str(name)[: -len(end)] in dataset for end in helpers)
    ]
    found = []
    for name in names:
        array = dataset[name]
        low, high = (
            dataset[f"{name}{end}"].values if f"{name}{end}" in dataset else None for end in ("_lower", "_upper")
        )
        entries: list[Found | None] = []
        for index, value in enumerate(array.values):
            if math.isnan(value):
                entries.append(None)
                continue
            bounds = (
                (float(low[index]), float(high[index]))
                if low is not None and high is not None
                else (math.nan, math.nan)
            )
            entries.append(Found(float(value), *bounds, count(name, index)))
        attributes = array.attrs
        found.append(
            Measured(name, str(attributes.get("unit", "")), str(attributes.get("direction", "neutral")), tuple(entries))
        )
    return found


_MARKS = {
    "better": ("▲", "better", "wb-good"),
    "worse": ("▼", "worse", "wb-bad"),
    "unclear": ("≈", "within the intervals", "wb-muted"),
    "other": ("", "", "wb-muted"),
    "same": ("=", "the same", "wb-muted"),
}


def metrics_table(metrics: Sequence[Measured], columns: Sequence[str], baseline: int) -> Html:
    """One row per metric; below each value its interval and how far it is from the baseline."""
    rows = []
    for metric in metrics:
        arrow = {"higher": " ↑", "lower": " ↓"}.get(metric.direction, "")
        better = {"higher": "higher is better", "lower": "lower is better"}.get(metric.direction)
        cells: list[object] = [element("span", plain_name(metric.name) + arrow, title=better)]
        cells += [_cell(metric, index, baseline) for index in range(len(columns))]
        rows.append(cells)
    heads = [f"{name} (baseline)" if index == baseline else name for index, name in enumerate(columns)]
    return table_html(["metric", *heads], rows, [False] + [True] * len(columns))


def _cell(metric: Measured, column: int, baseline: int) -> object:
    found = metric.found[column]
    if found is None:
        return element("span", "–", class_="wb-muted")
    parts: list[object] = [
        element("div", " ".join(p for p in (number_text(found.value), metric.unit) if p), class_="wbm-value")
    ]
    if not math.isnan(found.low) and not math.isnan(found.high):
        text = f"{number_text(found.low)} to {number_text(found.high)}"
        parts.append(
            element("div", text + (f", {found.count} seeds" if found.count > 1 else ""), class_="wbm-interval")
        )
    gap = difference(metric, column, baseline)
    if gap is not None:
        mark, word, kind = _MARKS[gap.verdict]
        sign = "+" if gap.value > 0 else ""
        text = word if gap.verdict == "same" else f"{mark} {sign}{number_text(gap.value)} {word}".strip()
        parts.append(element("div", text, class_=f"wbm-gap {kind}"))
    return element("div", *parts)


def parameters_table(runs: Sequence[Run], names: Sequence[str]) -> Html | None:
    """Parameters, methods and seeds in which the runs differ."""
    records = [run.record for run in runs]
    columns: dict[str, list[Any]] = {}
    for name in ("method", "method_version", "precision", "device", "user"):
        values = [getattr(record, name) for record in records]
        if len(set(values)) > 1:
            columns[plain_name(name)] = values
    columns |= {name.removeprefix("params."): values for name, values in differing(records).items()}
    if len({record.seed for record in records}) > 1:
        columns["seed"] = [record.seed for record in records]
    roles = dict.fromkeys(role for record in records for role in record.inputs)
    for role in roles:
        given = [str(record.inputs.get(role, {}).get("label", "")) for record in records]
        if len(set(given)) > 1:
            columns[f"input {role}"] = given
    if not columns:
        return None
    rows = [
        [name, *[element("code", str(value)) if value != "" else "–" for value in values]]
        for name, values in columns.items()
    ]
    return table_html(["differs", *names], rows)


# ---------------------------------------------------------------------------------------------------------------- panel


@dataclass
class ComparePanel(Panel):
    """`bench.compare(runs).panel()`.

    Args:
        runs: at least one.
    """

    runs: Sequence[Run]
    _names: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._names = labels(self.runs)

    def __repr__(self) -> str:
        return f"<comparison of {len(self.runs)} runs: {', '.join(run.id for run in self.runs)}>"

    def _by_run(self) -> list[Measured]:
        from workbench.comparison import compare_runs

        return by_run(compare_runs(self.runs))

    def _by_seed(self) -> tuple[list[str], list[Measured]] | None:
        """Labels and means over seeds; None where no run repeats another."""
        try:
            grouped = self.runs[0]._bench.aggregate(self.runs)
        except WorkbenchError:
            return None
        if grouped.sizes["group"] == len(self.runs):
            return None
        names = [visible(label, 120) for label in grouped["group"].values]
        method = str(grouped["method"].values[0])
        if all(name.startswith(f"{method} ") for name in names):  # the same for all: it tells nothing
            names = [name.removeprefix(f"{method} ") for name in names]
        return names, by_seed(grouped)

    def _static(self) -> str:
        parameters = parameters_table(self.runs, self._names)
        return notebook_fragment(
            element("div", f"{len(self.runs)} runs compared", class_="wb-title"),
            metrics_table(self._by_run(), self._names, 0),
            *([element("h3", "What differs"), parameters] if parameters else []),
        )

    def _widget(self) -> ipywidgets.DOMWidget:
        pages: dict[str, Callable[[], list[ipywidgets.Widget]]] = {
            "Metrics": self._metrics,
            "Curves": self._curves,
            "Pictures and arrays": self._pictures,
            "What differs": self._differences,
        }
        return style.frame(sheet("compare.css"), style.markup(self._heading()), tabs(pages))

    def _heading(self) -> Html:
        chips = [
            element(
                "li",
                element("b", name, class_="wb-text"),
                " ",
                pill(run.status),
                " ",
                element("code", run.id, class_="wb-muted"),
            )
            for name, run in zip(self._names, self.runs, strict=True)
        ]
        count = f"{len(self.runs)} run" + ("" if len(self.runs) == 1 else "s") + " compared"
        many = len(chips) > 6
        listed = element("ul", *chips, class_="wbm-runs")
        if many:
            listed = element("details", element("summary", "which runs"), listed)
        return element("div", element("div", count, class_="wb-title"), listed)

    def _metrics(self) -> list[ipywidgets.Widget]:
        import ipywidgets

        single, grouped = self._by_run(), self._by_seed()
        if not single:
            advice = "Only complete runs have a report; choose some that are."
            return [style.markup(style.empty("None of these runs reported a metric", advice))]
        shown = ipywidgets.VBox()
        kinds = ipywidgets.ToggleButtons(
            options=["each run", "mean over seeds"], value="mean over seeds" if grouped else "each run"
        )
        base = ipywidgets.Dropdown(description="baseline")
        base.style.description_width = "initial"
        base.layout.width = "auto"

        def columns() -> tuple[list[str], list[Measured]]:
            return grouped if grouped is not None and kinds.value == "mean over seeds" else (self._names, single)

        def offer(change: Any = None) -> None:
            base.options = [(name, index) for index, name in enumerate(columns()[0])]
            base.value = 0
            draw()

        def draw(change: Any = None) -> None:
            names, metrics = columns()
            table = metrics_table(metrics, names, base.value or 0)
            shown.children = (fragment(element("div", table, class_="wbm")),)

        kinds.observe(offer, names="value")
        base.observe(draw, names="value")
        offer()
        controls = [kinds, base] if grouped is not None else [base]
        return [ipywidgets.HBox(controls), shown]

    def _curves(self) -> list[ipywidgets.Widget]:
        chosen = list(zip(self._names, self.runs, strict=True))[:MOST_CURVES]
        charts = series_curves({name: run.series for name, run in chosen})
        if not charts:
            return [
                style.markup(
                    style.empty("None of these runs logged a series", "Methods log with out.log(step, loss=...).")
                )
            ]
        return [*self._cut(), curves_view(charts)]

    def _pictures(self) -> list[ipywidgets.Widget]:
        from workbench.panels.explore import Explorer

        chosen = self.runs[:MOST_CURVES]
        return [*self._cut(), Explorer([run.stored for run in chosen], names=self._names[: len(chosen)]).widget]

    def _cut(self) -> list[ipywidgets.Widget]:
        if len(self.runs) <= MOST_CURVES:
            return []
        return [
            style.markup(
                element("div", f"The first {MOST_CURVES} of {len(self.runs)} runs are drawn.", class_="wb-hint")
            )
        ]

    def _differences(self) -> list[ipywidgets.Widget]:
        table = parameters_table(self.runs, self._names)
        if table is None:
            return [
                style.markup(
                    style.empty(
                        "These runs have the same parameters, inputs and seed", "They may differ in code or machine."
                    )
                )
            ]
        return [fragment(table)]
