"""What is said of an attribution: its maps, whether they beat the controls, whether they add up."""

from __future__ import annotations

from typing import Any

import numpy as np
from workbench import Histogram, ImageGrid, Line, Metric, Report, Result, Table
from workbench.toolkit import Interval, mean_interval

from workbench_adapters.library import finite

KINDS = ("deletion", "insertion")


def attribution_report(result: Result, title: str) -> Report:
    """The report of one attribution; the first entry of dim `method` is the attribution, the others are controls."""
    names = [str(name) for name in result["deletion_auc"]["attributor"].values]
    area = {kind: result[f"{kind}_auc"].values for kind in KINDS}
    gain = {kind: [mean_interval(area[kind][0] - row) for row in area[kind][1:]] for kind in KINDS}
    error = result["completeness_error"].values if "completeness_error" in result else None
    change = np.abs(result["target_logit"].values.astype(float) - result["baseline_logit"].values.astype(float))
    metrics = [_metric(f"{kind}_auc", mean_interval(area[kind][0]), kind) for kind in KINDS]
    for kind in KINDS:
        for name, value in zip(names[1:], gain[kind], strict=True):
            text = "mean over pictures of the attribution's area less the control's"
            metrics.append(_metric(f"{kind}_gain_over_{name}", value, kind, text))
    if error is not None:
        metrics.append(
            Metric(
                name="completeness_error",
                value=float(error.mean()),
                direction="lower",
                unit="logit",
                interval=finite(mean_interval(error).bounds),
                description="mean |sum of attributions - (f(x) - f(baseline))|",
            )
        )
    return Report(
        summary=_summary(names[0], area, gain, error, change),
        metrics=metrics,
        tables=(_table(names, area, gain),),
        views=_views(names[0], error is not None),
        notes=_notes(result, title),
    )


def _metric(name: str, value: Interval, kind: str, text: str = "") -> Metric:
    direction: Any = "lower" if kind == "deletion" else "higher"
    return Metric(name=name, value=value.value, direction=direction, interval=finite(value.bounds), description=text)


def _summary(
    name: str,
    area: dict[str, np.ndarray],
    gain: dict[str, list[Interval]],
    error: np.ndarray | None,
    change: np.ndarray,
) -> str:
    """Whether the map beats both controls, and whether it adds up."""
    beats = {
        "deletion": [value.upper < 0 for value in gain["deletion"]],
        "insertion": [value.lower > 0 for value in gain["insertion"]],
    }
    if all(all(row) for row in beats.values()):
        verdict = "finds pixels that matter to the classifier better than chance and better than edges do"
    elif all(row[0] for row in beats.values()):
        verdict = "beats chance, but is not better than the picture's edges on both measures"
    else:
        verdict = "is not shown to beat chance on both measures"
    text = (
        f"On {area['deletion'].shape[1]} pictures {name} {verdict}: area under the deletion curve "
        f"{area['deletion'][0].mean():.3f} (chance {area['deletion'][1].mean():.3f}, lower is better), insertion "
        f"{area['insertion'][0].mean():.3f} (chance {area['insertion'][1].mean():.3f}, higher is better)."
    )
    if error is None:
        return text
    share = float(error.mean() / max(float(change.mean()), 1e-12))
    return f"{text} The attributions miss the change of the logit that they should sum to by {share:.1%} on average."


def _table(names: list[str], area: dict[str, np.ndarray], gain: dict[str, list[Interval]]) -> Table:
    rows = []
    for position, name in enumerate(names):
        cells: list[Any] = [name]
        for kind in KINDS:
            value = mean_interval(area[kind][position])
            cells.append(f"{value.value:.3f}{_span(value, '.3f')}")
            other = gain[kind][position - 1] if position else None
            cells.append(None if other is None else f"{other.value:+.3f}{_span(other, '+.3f')}")
        rows.append(tuple(cells))
    return Table(
        title="The attribution and its controls",
        columns=("map", "deletion", "attribution less it", "insertion", "attribution less it"),
        rows=tuple(rows),
        caption="Mean area over the pictures with 95 % intervals (Student's t); differences are paired. Deletion: lower is "
        "better, insertion: higher.",
    )


def _span(value: Interval, digits: str) -> str:
    """The interval in brackets; nothing where one picture gives none."""
    return f" ({value.lower:{digits}} to {value.upper:{digits}})" if finite(value.bounds) else ""


def _views(name: str, complete: bool) -> list[Any]:
    views: list[Any] = [
        ImageGrid(
            title="Pictures", images=("shown_image",), column="shown", labels="shown_caption",
            caption="With the class that is explained.",
        ),
        ImageGrid(
            title=f"Attributions: {name}",
            images=("shown_attribution",),
            column="shown",
            labels="shown_caption",
            value_range=(-1.0, 1.0),
            color_map="RdBu_r",
            caption="Red speaks for the class, blue against it; each map is scaled by its 99.5th percentile.",
        ),
        Line(
            title="Deletion",
            y=("deletion_curve",),
            x="fraction",
            by="attributor",
            x_label="pixels turned black, most important first",
            y_label="probability of the class",
            caption="The sooner it falls, the better.",
        ),
        Line(
            title="Insertion",
            y=("insertion_curve",),
            x="fraction",
            by="attributor",
            x_label="pixels put back into the blurred picture",
            y_label="probability of the class",
            caption="The sooner it rises, the better.",
        ),
    ]  # fmt: skip
    if complete:
        views.append(
            Histogram(
                title="Completeness error",
                values=("completeness_error",),
                x_label="|sum of attributions - change of the logit|",
                caption="More steps make it smaller.",
            )
        )
    return views


def _notes(result: Result, title: str) -> list[str]:
    explained = "predicted class" if result.params.explained == "prediction" else "label"
    notes = [
        f"What is explained is the logit of the {explained}, in the space of pictures in 0..1 (a model's own normalisation is "
        "part of the function).",
        "Deletion and insertion also measure how a classifier reacts to pictures it was never trained on (black or blurred "
        "patches); compare maps of one classifier only.",
        "A map that beats edges says something about the classifier and not only about the picture.",
    ]
    if "correct" in result and (wrong := int((~result["correct"].values).sum())):
        notes.append(f"{wrong} pictures are classified wrongly; the maps explain the {explained} all the same.")
    return notes
