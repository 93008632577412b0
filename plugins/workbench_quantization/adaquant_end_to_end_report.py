"""What the report of an AdaQuant run says about fine-tuning all weights end to end; nothing where that was left out."""

from __future__ import annotations

import numpy as np
from workbench import Bar, Metric, Result, Table
from workbench.report import View
from workbench.toolkit import Interval, mean_interval

from workbench_quantization.report_parts import accuracy_metric, share_interval, values

PAIRS = (
    ("gain_over_end_to_end", "adaquant", "end to end", "as fitted"),
    ("gain_over_end_to_end_norms", "adaquant + norms", "end to end + norms", "both with re-estimated batch norms"),
)


def fit_metrics(result: Result) -> tuple[Metric, ...]:
    """Accuracy of the fine-tuned model, and what AdaQuant is ahead of it by, image by image."""
    if "fit_correct" not in result:
        return ()
    accuracy, count = _accuracies(result), result["fit_correct"].sizes["sample"]
    metrics = [
        accuracy_metric("accuracy_end_to_end", accuracy["end to end"][0], count, "all weights fine-tuned on the labels")
    ]
    for name, ours, theirs, how in PAIRS:
        found = _ahead(result, ours, theirs)
        metrics.append(
            Metric(
                name=name,
                value=accuracy[ours][0] - accuracy[theirs][0],
                direction="higher",
                interval=found.bounds if count > 1 else None,
                description=f"accuracy of AdaQuant less that of fine-tuning end to end, {how} (interval over images, in pairs)",
            )
        )
    return tuple(metrics)


def fit_tables(result: Result) -> tuple[Table, ...]:
    """Accuracies on report and calibration images."""
    if "fit_correct" not in result:
        return ()
    count = result["fit_correct"].sizes["sample"]
    rows = []
    for name, (report, own) in _accuracies(result).items():
        low, high = share_interval(report, count)
        rows.append(
            (name, round(report, 4), f"{low:.4f} to {high:.4f}", round(own, 4), round(own - report, 4)),
        )
    return (
        Table(
            title="AdaQuant beside fine-tuning end to end",
            columns=("fit", "report images", "95 % interval", "calibration images", "difference"),
            rows=tuple(rows),
            caption=f"Accuracy at the stored widths. End to end: {result.params.end_to_end_steps:,} Adam steps on all weights "
            "and biases, from the naive ranges. A large difference to the calibration images is over-fitting.",
        ),
    )


def fit_views(result: Result) -> tuple[View, ...]:
    """The same as bars."""
    if "fit_correct" not in result:
        return ()
    return (
        Bar(
            title="AdaQuant beside fine-tuning end to end",
            y=("fit_accuracy",),
            x="fit",
            by="split",
            y_label="accuracy",
            caption="At the stored widths, on images of the report and on those that were fitted on.",
        ),
    )


def fit_notes(result: Result) -> tuple[str, ...]:
    """How far fine-tuning over-fitted, whether the two can be told apart, and what is unequal between them."""
    if "fit_correct" not in result:
        return ()
    accuracy, count = _accuracies(result), result["fit_correct"].sizes["sample"]
    report, own = accuracy["end to end"]
    said = [
        f"Fine-tuned end to end the model is right on {own:.1%} of the calibration images and {report:.1%} of the report's"
    ]
    for _, ours, theirs, how in PAIRS:
        found = _ahead(result, ours, theirs)
        sure = f" (95 % interval {100 * found.lower:+.1f} to {100 * found.upper:+.1f})" if count > 1 else ""
        said.append(f"AdaQuant is {100 * found.value:+.1f} points from it, {how}{sure}")
    return (
        "; ".join(said)
        + ". Fine-tuning sees the labels of these images, AdaQuant's layers do not; its rate and number of "
        "steps are as given, not searched for.",
    )


def _accuracies(result: Result) -> dict[str, list[float]]:
    """On report and calibration images, by fit."""
    table = result["fit_accuracy"]
    return dict(zip(map(str, table["fit"].values), np.asarray(table.values).tolist(), strict=True))


def _ahead(result: Result, ours: str, theirs: str) -> Interval:
    names = [str(name) for name in result["fit_correct"]["fit"].values]
    correct = values(result, "fit_correct").astype(np.float64)
    return mean_interval(correct[names.index(ours)] - correct[names.index(theirs)])
