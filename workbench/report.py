"""A report is data: metrics, tables and views that name stored arrays. Drawing is the renderer's business.

Everything here turns into JSON and back (`Report.to_json`, `Report.from_json`), because a report is saved with its run
and must be readable on a machine that lacks the plugin.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pydantic

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = [
    "Bar",
    "CustomView",
    "FreeForm",
    "HeatMap",
    "Histogram",
    "ImageGrid",
    "Line",
    "Metric",
    "ReliabilityDiagram",
    "Report",
    "Scatter",
    "Table",
    "UnknownView",
    "View",
]

Direction = Literal["higher", "lower", "neutral"]


class _Data(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Metric(_Data):
    """One number of a report. `interval` is a confidence interval at `level`; `direction` says which way is better."""

    name: str
    value: float
    unit: str = ""
    direction: Direction = "neutral"
    interval: tuple[float, float] | None = None
    level: float = 0.95
    description: str = ""


class Table(_Data):
    """A small table: cells are strings, numbers, booleans or None."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | bool | None, ...], ...]
    caption: str = ""

    @pydantic.model_validator(mode="after")
    def _rectangular(self) -> Table:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: a row has {len(row)} cells for {len(self.columns)} columns")
        return self


class _View(_Data):
    title: str
    caption: str = ""
    select: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Coordinate labels (or positions, where a dim has no labels) that fix dims before drawing; a list keeps several."""


class Line(_View):
    """Curves of `y` (one or several arrays or series) over dim `x`; one curve per label of dim `by`.

    `lower` and `upper` name arrays that bound a shaded band around a single `y`. Names starting with `series/` are
    logged time series: `Line(title="Loss", y=("series/loss",), x="step")`.
    """

    kind: Literal["line"] = "line"
    y: tuple[str, ...]
    x: str
    by: str | None = None
    lower: str | None = None
    upper: str | None = None
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    markers: bool = False


class Bar(_View):
    """One bar per label of dim `x`, grouped by the arrays in `y` or by dim `by`.

    Whiskers around a single `y`: `error` names an array of half-lengths, or `lower` and `upper` those of the two ends.
    """

    kind: Literal["bar"] = "bar"
    y: tuple[str, ...]
    x: str
    by: str | None = None
    error: str | None = None
    lower: str | None = None
    upper: str | None = None
    x_label: str = ""
    y_label: str = ""
    log_y: bool = False


class HeatMap(_View):
    """Colours of a 2-d array `z` over dims `x` and `y` (after `select`)."""

    kind: Literal["heat_map"] = "heat_map"
    z: str
    x: str
    y: str
    log: bool = False
    diverging: bool = False
    annotate: bool = False
    frame: str | None = None
    """A boolean array over the same dims: cells to draw a frame around."""
    z_label: str = ""


class Histogram(_View):
    """Distribution of all entries of each array in `values`; one histogram per label of `by`.

    `by` is a dim of the array, or the name of another stored array over the same dim that holds group labels.
    """

    kind: Literal["histogram"] = "histogram"
    values: tuple[str, ...]
    by: str | None = None
    bins: int = pydantic.Field(40, ge=1, le=2_000)
    x_label: str = ""
    log_x: bool = False
    log_y: bool = False


class Scatter(_View):
    """Points of array `y` against array `x` over a shared dim; `color` and `label` name arrays or dims over it.

    Labels are printed where points are few and shown when hovering where they are many. `text` names an array of short texts to
    print instead, empty where a point has none.

    `lower` and `upper` name arrays over the same dim that bound whiskers along y; where they are NaN a point has none.
    """

    kind: Literal["scatter"] = "scatter"
    x: str
    y: str
    color: str | None = None
    label: str | None = None
    text: str | None = None
    highlight: str | None = None
    """A boolean array: points to draw large."""
    lower: str | None = None
    upper: str | None = None
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    identity: bool = False
    """Draw the line y = x."""


class ImageGrid(_View):
    """Pictures from arrays with dims (..., [channel,] y, x). One row per array in `images`, one column per label of `column`.

    With a single array, `row` may name a dim to spread over rows. At most `limit` columns are drawn. `value_range`
    None scales each picture by itself.
    """

    kind: Literal["image_grid"] = "image_grid"
    images: tuple[str, ...]
    column: str
    row: str | None = None
    limit: int = pydantic.Field(12, ge=1, le=100)
    value_range: tuple[float, float] | None = (0.0, 1.0)
    color_map: str = "gray"
    labels: str | None = None
    """Array over dim `column` printed above each picture."""


class ReliabilityDiagram(_View):
    """Accuracy against confidence per bin, with counts. Arrays over dim `bin`; `by` draws one panel per label of a dim.

    Bins of count 0 are left empty. `accuracy_lower` and `accuracy_upper` are interval bounds; `band_lower` and `band_upper`
    bound where the accuracy would lie if the confidence were right.
    """

    kind: Literal["reliability"] = "reliability"
    confidence: str
    accuracy: str
    count: str
    accuracy_lower: str | None = None
    accuracy_upper: str | None = None
    band_lower: str | None = None
    band_upper: str | None = None
    by: str | None = None


class FreeForm(_View):
    """The escape hatch: a matplotlib figure, drawn when the report is made and kept as a PNG (base64)."""

    kind: Literal["free_form"] = "free_form"
    png: str

    @classmethod
    def from_figure(cls, figure: Any, *, title: str, caption: str = "", dpi: int = 110) -> FreeForm:
        """Keep a `matplotlib.figure.Figure`. Build it with `Figure()`, not pyplot, so that no global state is touched."""
        import base64
        import io

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
        return cls(title=title, caption=caption, png=base64.b64encode(buffer.getvalue()).decode())


class CustomView(_View, abc.ABC):
    """Base of a view type that a plugin brings: fields as the views above have them, and its two drawings.

    A plugin lists its classes in the hook `workbench_views`; a class made in a notebook is registered with
    `bench.register`. `kind` is `package.word`, so that it tells where the drawing comes from:

        class Rose(CustomView):
            kind: Literal["my_package.rose"] = "my_package.rose"
            length: str
            around: str

            @property
            def arrays(self):
                return (self.length,)

            def draw(self, data, figure): ...
            def interact(self, data): ...
    """

    kind: str

    @property
    @abc.abstractmethod
    def arrays(self) -> tuple[str, ...]:
        """Names of the stored arrays (or `series/NAME`) that are drawn.

        They are saved with the view: where the plugin is missing, they are shown as a table.
        """

    @abc.abstractmethod
    def draw(self, data: Mapping[str, xr.DataArray], figure: Figure) -> None:
        """Draw on an empty matplotlib figure, for pages and files.

        Args:
            data: `arrays` by name, in memory, with `select` applied.
            figure: of 5.6 by 3.3 inches; may be resized. The title is printed by others.
        """

    @abc.abstractmethod
    def interact(self, data: Mapping[str, xr.DataArray]) -> go.Figure:
        """The same as a plotly figure, for notebooks and panels."""


class UnknownView(_View):
    """A saved view that nothing installed here can draw. What it shows is shown as a table instead."""

    kind: str
    arrays: tuple[str, ...] = ()
    """Names of the stored arrays it would draw."""
    document: dict[str, Any]
    """The view as it was saved."""
    reason: str


View = Line | Bar | HeatMap | Histogram | Scatter | ImageGrid | ReliabilityDiagram | FreeForm | CustomView | UnknownView
_OWN: Mapping[str, type[_View]] = {
    "line": Line,
    "bar": Bar,
    "heat_map": HeatMap,
    "histogram": Histogram,
    "scatter": Scatter,
    "image_grid": ImageGrid,
    "reliability": ReliabilityDiagram,
    "free_form": FreeForm,
}


@dataclass(frozen=True)
class Report:
    """What a run found. `summary` is one or two sentences a colleague would read first; `notes` are caveats."""

    summary: str
    metrics: Sequence[Metric] = ()
    tables: Sequence[Table] = ()
    views: Sequence[View] = ()
    notes: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise ValueError(f"metrics named twice in one report: {', '.join(sorted(doubled))}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; NaN and infinities become strings, because JSON has none."""
        document: dict[str, Any] = _finite(
            {
                "summary": self.summary,
                "metrics": [metric.model_dump(mode="json") for metric in self.metrics],
                "tables": [table.model_dump(mode="python") for table in self.tables],
                "views": [_view_document(view) for view in self.views],
                "notes": list(self.notes),
            }
        )
        return document

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, views: Iterable[type[CustomView]] = ()) -> Report:
        """The inverse of `to_json`.

        Args:
            value: what `to_json` made.
            views: view types of plugins. A view of any other kind becomes an `UnknownView`, which keeps what was saved.

        Raises:
            ValueError: the document is no report.
        """
        custom = {str(view.model_fields["kind"].default): view for view in views}
        return cls(
            summary=value["summary"],
            metrics=tuple(Metric(**_number_back(metric)) for metric in value["metrics"]),
            tables=tuple(Table(**_number_back(table)) for table in value["tables"]),
            views=tuple(_view(_number_back(view), custom) for view in value["views"]),
            notes=tuple(value["notes"]),
        )


def _view_document(view: View) -> dict[str, Any]:
    if isinstance(view, UnknownView):
        return view.document
    document = view.model_dump(mode="python")
    return document | {"arrays": list(view.arrays)} if isinstance(view, CustomView) else document


def _view(document: dict[str, Any], custom: Mapping[str, type[CustomView]]) -> Any:
    kind = document["kind"]
    if kind in _OWN:
        return _OWN[kind](**document)
    reason = "no installed plugin draws it"
    if kind in custom:
        try:
            return custom[kind](**{name: value for name, value in document.items() if name != "arrays"})
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            reason = f"the plugin that draws it is of another version ({where}: {first['msg']})"
    known = {name: document[name] for name in ("title", "caption", "select", "arrays") if name in document}
    return UnknownView(kind=kind, document=document, reason=reason, **known)


_SPECIAL = {"__nan__": math.nan, "__inf__": math.inf, "__-inf__": -math.inf}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "__nan__" if math.isnan(value) else ("__inf__" if value > 0 else "__-inf__")
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # numpy scalars in table cells
        return _finite(value.item())
    return value


def _number_back(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _number_back(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_number_back(item) for item in value]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value
