"""A plugin as somebody else would write it, with every hook: data set, model, method, view type, command, notifications."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import click
import numpy as np
from workbench import CustomView, DataRole, Method, Metric, Model, Output, Report, hookimpl

HEARD: list[tuple[str, str]] = []
"""(hook, run id) of every notification."""


def rings(samples: int = 60, size: int = 12, seed: int = 0) -> Any:
    """Pictures of rings; the class tells how wide a ring is."""
    import xarray as xr

    random = np.random.default_rng(seed)
    label = np.arange(samples) % 3
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    distance = np.hypot(y, x)
    image = np.exp(-((distance[None] - 1.5 * (label[:, None, None] + 1)) ** 2))
    image = np.clip(image + 0.05 * random.standard_normal(image.shape), 0, 1).astype(np.float32)
    return xr.Dataset(
        {"image": (("sample", "channel", "y", "x"), image[:, None]), "label": ("sample", label.astype(np.int64))},
        coords={"class": ["small", "middle", "large"]},
    )


def ring_meter(n_classes: int = 3, channels: int = 1) -> Any:
    """Knows a ring by the mean distance of its light from the middle; nothing is learned."""
    import torch
    from torch import nn

    class RingMeter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("radius", 1.5 * torch.arange(1, n_classes + 1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            size = image.shape[-1]
            place = torch.arange(size, device=image.device) - (size - 1) / 2
            distance = torch.hypot(place[:, None], place[None, :])
            bright = image.mean(1) ** 4  # noise is dim
            mean = (bright * distance).sum((1, 2)) / bright.sum((1, 2))
            return -((mean[:, None] - self.radius) ** 2)

    return Model(RingMeter(), classes=("small", "middle", "large"))


class Rose(CustomView):
    """Lengths around a circle: a petal per label of a dim."""

    kind: Literal["third_party.rose"] = "third_party.rose"
    length: str
    around: str

    @property
    def arrays(self) -> tuple[str, ...]:
        return (self.length,)

    def draw(self, data: Mapping[str, Any], figure: Any) -> None:
        petals = data[self.length]
        angle = np.linspace(0, 2 * np.pi, petals.size, endpoint=False)
        axes = figure.subplots(subplot_kw={"projection": "polar"})
        axes.bar(angle, petals.values, width=5 / petals.size)
        axes.set_xticks(angle, [str(label) for label in petals[self.around].values])

    def interact(self, data: Mapping[str, Any]) -> Any:
        import plotly.graph_objects as go

        petals = data[self.length]
        return go.Figure(go.Barpolar(r=petals.values.tolist(), theta=[str(t) for t in petals[self.around].values]))


class ClassAccuracy(Method):
    """Which classes a classifier gets right: the share of right predictions, class by class."""

    id = "third_party.class_accuracy"
    title = "Which classes a classifier gets right"
    paper = None
    inputs = {"data": DataRole("logits and classes", {"logit": ("sample", "class"), "label": ("sample",)})}
    outputs = (Output("right", ("class",), "float64", "share of right predictions; NaN where a class has no sample"),)

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        data = inputs["data"]
        logit, label = data["logit"].values, data["label"].values
        out.progress(0, 1)
        right = logit.argmax(1) == label
        count = np.bincount(label, minlength=logit.shape[1])
        hits = np.bincount(label, weights=right, minlength=logit.shape[1])
        out.coordinate("class", [str(name) for name in data.coords.get("class", np.arange(logit.shape[1])).values])
        out.write("right", np.divide(hits, count, out=np.full(len(hits), np.nan), where=count > 0))

    def report(self, result: Any) -> Report:
        right = result["right"]
        known = right.values[np.isfinite(right.values)]
        if not known.size:
            return Report(summary="No class has a sample.")
        worst = str(right["class"].values[int(np.nanargmin(right.values))])
        return Report(
            summary=f"The class {worst} is recognised worst.",
            metrics=[Metric(name="worst_class_accuracy", value=float(known.min()), direction="higher")],
            views=[Rose(title="Accuracy of every class", caption="One petal a class.", length="right", around="class")],
        )


@click.command("count-rings")
@click.argument("samples", type=int)
def count_rings(samples: int) -> None:
    """Say how many rings there are of each width among SAMPLES."""
    click.echo(" ".join(map(str, np.bincount(rings(samples)["label"].values))))


@hookimpl
def workbench_methods() -> list[Any]:
    return [ClassAccuracy]


@hookimpl
def workbench_datasets() -> dict[str, Any]:
    return {"rings": rings}


@hookimpl
def workbench_models() -> dict[str, Any]:
    return {"ring-meter": ring_meter}


@hookimpl
def workbench_views() -> list[Any]:
    return [Rose]


def widest_rings(runs: Any) -> tuple[Report, Any]:
    """How well each run knew its worst class."""
    import xarray as xr

    worst = [float(run["right"].min()) for run in runs]
    data = xr.Dataset({"worst": ("run", worst)}, coords={"run": [run.id for run in runs]})
    return Report(summary=f"{len(worst)} runs know their worst class in {min(worst):.0%} and more of its rings."), data


@hookimpl
def workbench_comparisons() -> dict[str, Any]:
    return {"third_party": widest_rings}


@hookimpl
def workbench_commands() -> list[click.Command]:
    return [count_rings]


@hookimpl
def workbench_run_started(run_id: str) -> None:
    HEARD.append(("started", run_id))


@hookimpl
def workbench_run_progressed(run_id: str, done: float, total: float) -> None:
    assert 0 <= done <= total
    HEARD.append(("progressed", run_id))


@hookimpl
def workbench_run_finished(run_id: str, record: Mapping[str, Any]) -> None:
    assert record["status"] == "complete"
    HEARD.append(("finished", run_id))


@hookimpl
def workbench_run_failed(run_id: str, record: Mapping[str, Any]) -> None:
    HEARD.append((record["status"], run_id))


@hookimpl
def workbench_run_skipped(run_id: str, reason: str) -> None:
    HEARD.append((f"skipped: {reason}", run_id))
