"""A stored run in memory with every kind of view, for the tests of the renderer."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import xarray as xr
from workbench.report import (
    Bar,
    FreeForm,
    HeatMap,
    Histogram,
    ImageGrid,
    Line,
    Metric,
    ReliabilityDiagram,
    Report,
    Scatter,
    Table,
    View,
)
from xarray.backends import BackendArray
from xarray.core import indexing

__all__ = ["HOSTILE", "StoredResult", "every_view", "lazily", "report_of", "result_of_every_view"]

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)> javascript:alert(4) "
    "$\\frac{$ ${{7*7}} &lt;b&gt; \u202egnirts\u202c \x00\x1b[31m %{x} </style></title></text>]]> --> " + "A" * 300
)
"""A text that would be markup, mathematics, terminal control or another direction, if anything took it for that."""


class StoredResult:
    """The `Result` protocol over a Dataset."""

    method_id, seed, device, seconds = "test.views", 0, "cpu", 1.0

    def __init__(self, data: xr.Dataset, series: xr.Dataset | None = None) -> None:
        self.data = data
        self.series = xr.Dataset() if series is None else series
        self.inputs: dict[str, Any] = {}
        self.params: Any = {}

    def __getitem__(self, name: str) -> xr.DataArray:
        return self.data[name]

    def __contains__(self, name: object) -> bool:
        return name in self.data.data_vars


class CountingArray(BackendArray):
    """An array that is read only by region, and counts the entries read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.read = 0

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._get)

    def _get(self, key: tuple[Any, ...]) -> np.ndarray:
        part = self.values
        for axis, where in enumerate(key):  # outer indexing, axis by axis; integers last so that axes stay put
            part = part[(slice(None),) * axis + ([where] if isinstance(where, (int, np.integer)) else where,)]
        part = part[tuple(0 if isinstance(where, (int, np.integer)) else slice(None) for where in key)]
        self.read += part.size
        return part


def lazily(dims: tuple[str, ...], values: np.ndarray) -> tuple[xr.Variable, CountingArray]:
    """A variable that is read lazily, and its counter."""
    counter = CountingArray(values)
    return xr.Variable(dims, indexing.LazilyIndexedArray(counter)), counter


def small_png() -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (200, 30, 30)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def result_of_every_view(text: str = "") -> StoredResult:
    """Arrays for `every_view`; `text` is put into every label that a store can hold."""
    rng = np.random.default_rng(0)
    sample, bins = 60, 10
    count = np.array([[0, 2, 5, 8, 9, 10, 12, 20, 30, 60]] * 2)
    confidence = np.where(count > 0, (np.arange(bins) + 0.5) / bins, 0.0)
    data = xr.Dataset(
        {
            "curve": (("method", "step"), rng.random((2, 30)) + 0.1, {"units": text or "nat"}),
            "low": (("method", "step"), np.full((2, 30), 0.05)),
            "high": (("method", "step"), np.full((2, 30), 1.2)),
            "cost": ("layer", rng.random(5)),
            "error": ("layer", rng.random(5) / 10),
            "table": (("layer", "bit"), rng.random((5, 3)) - 0.5),
            "chosen": (("layer", "bit"), np.arange(3) == np.arange(5)[:, None] % 3),
            "value": ("sample", rng.normal(size=sample)),
            "other": ("sample", rng.random(sample) + 0.01),
            "anomalous": ("sample", np.arange(sample) % 3 == 0),
            "name": ("sample", np.array([f"{text}{index % 3}" for index in range(sample)], dtype=object)),
            "group_value": ("layer", rng.random(5) + 0.2),
            "count": (("method", "bin"), count),
            "accuracy": (("method", "bin"), np.clip(confidence - 0.05, 0, 1)),
            "confidence": (("method", "bin"), confidence),
            "image": (("sample", "channel", "y", "x"), rng.random((sample, 3, 6, 8)).astype("float32")),
        },
        coords={
            "method": ["plain" + text, "other" + text],
            "layer": [f"net.stage{index}{text}.weight" for index in range(5)],
            "bit": [2, 4, 8],
            "step": np.arange(30) + 1,
        },
    )
    series = xr.Dataset({"loss": ("step", np.linspace(2, 0.1, 20))}, coords={"step": np.arange(20)})
    return StoredResult(data, series)


def every_view(text: str = "") -> tuple[View, ...]:
    """At least one view of every kind, with `text` in every free text."""
    named: dict[str, Any] = {"title": f"A title {text}".strip(), "caption": text}
    axes = {"x_label": text, "y_label": text}
    return (
        Line(y=("curve",), x="step", by="method", lower="low", upper="high", log_x=True, **named, **axes),
        Line(y=("series/loss",), x="step", log_y=True, markers=True, **named),
        Bar(y=("cost",), x="layer", error="error", **named, **axes),
        HeatMap(z="table", x="bit", y="layer", diverging=True, annotate=True, frame="chosen", z_label=text, **named),
        Histogram(values=("value",), by="name", x_label=text, **named),
        Histogram(values=("other",), log_x=True, log_y=True, **named),
        Scatter(x="value", y="other", color="name", label="name", highlight="anomalous", **named, **axes),
        Scatter(x="cost", y="group_value", color="error", label="layer", log_x=True, log_y=True, identity=True, **named),
        ImageGrid(images=("image",), column="sample", labels="name", limit=3, **named),
        ReliabilityDiagram(confidence="confidence", accuracy="accuracy", count="count", by="method", **named),
        FreeForm(png=small_png(), **named),
    )


def report_of(views: tuple[View, ...], text: str = "") -> Report:
    """A report with metrics, a table, notes and these views."""
    return Report(
        summary=f"Found much. {text}".strip(),
        metrics=(
            Metric(name="accuracy" + text, value=0.875, direction="higher", interval=(0.8, 0.95), description=text),
            Metric(name="error", value=float("nan"), unit=text, direction="lower"),
        ),
        tables=(Table(title="Rows" + text, columns=("name" + text, "n"), rows=((text or "a", 3), (None, None)), caption=text),),
        views=views,
        notes=("Mind the gap. " + text,),
    )
